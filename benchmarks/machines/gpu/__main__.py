"""Tests and times lowrank on a CUDA device, in parts that run alone in less than four minutes each.

    python -m benchmarks.machines.gpu --out benchmarks/results/gpu-NAME-DATE.json [--part NAME ...]

Needs PyTorch and array-api-compat; CuPy, SciPy, scikit-learn, pytest and hypothesis are used where
they are installed. Several calls may fill one file: a part takes the place of what it measured last
time, the others stay, and a run that is cut off keeps the rows that it has. For a trial without a
GPU, add `--device cpu --sizes small`. The parts, in their order, and the sections of their rows:

- tests: those of the test-suite that run on torch's CUDA device and on CuPy.
- published: the grid of Penke and Herten (2026): Gaussian matrices in float32, without power
  iterations. `published` and `published_fixed` are their seconds on another machine, to a rank and
  with B, and of a fixed rank with cuSOLVER, without B.
- tolerances ("tolerance"): the SVD to a tolerance, and at the rank that it finds; `ratio` is to it.
- matrices ("matrix", "full svd"): range finders and factorizations at rank `k`, and their peers.
  "flat" is Gaussian; "fast" has singular values that fall from 1 to 1e-4 over 2k of them, and noise
  of 1e-5.
- optimizers: one step of each on the weights of a Llama of 130M ("llama step"), and the sections of
  benchmarks/machines/optimizer.py; all in bfloat16.
- small_svd ("small svd", "rate"): decompositions of Gram matrices of order `k`, and rates.
- panels ("panel"): the QR of a sketch. "fast" has singular values that fall from 1 to 1e-10.
- functions: what docs/capabilities.toml says of CUDA, with every kind of input and dtype, and the
  replay of a CUDA graph ("capture", whose `ratio` is to the eager call).

Seconds are medians of interleaved repeats by `time.perf_counter` between synchronizations of the
device. `ratio` is to the time of as many bare products as the method takes (`products`), where
nothing else is said: A@Omega with the draw of Omega, and for each further product of k columns the
difference between "A@Omega, then AᴴQ" and it. Of bfloat16 matrices they are in float32, the cast
included, unless the method says otherwise. `error` is ‖A − QQᴴA‖/‖A‖ of a basis and the residual of
a factorization, in the Frobenius norm, `orthogonality` is ‖QᴴQ − I‖_F, both in float64.
`peak_bytes` is what the call allocated beyond what was there, its result included. `operations`,
`host_reads` and `work` are counted in one more run, and `predicted` is the time by
benchmarks/machines/gpu/model.py, with the constants that `predicted_by` names. "model" in the file
holds its constants, fitted to all rows of the file.
"""

import argparse
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common.devices import asked_device
from benchmarks.common.measuring import Budget, told
from benchmarks.common.results import Results, header
from benchmarks.common.tables import duration, number, size
from benchmarks.machines.gpu import functions, matrices, model, optimizers
from benchmarks.machines.gpu.bench import Bench
from benchmarks.report.goals import gpu_goals

PACKAGES = ("torch", "numpy", "array-api-compat", "cupy-cuda12x", "cupy-cuda13x", "scipy")
PACKAGES += ("scikit-learn", "pytest", "hypothesis", "galore-torch")
PART_MINUTES = 3.8  # the longest for one part
# What tells most comes first.
PARTS: dict[str, Callable[[Bench], None]] = {
    "tests": functions.tests,
    "published": matrices.published,
    "tolerances": matrices.tolerances,
    "matrices": matrices.matrices,
    "optimizers": optimizers.optimizers,
    "small_svd": matrices.small_svd,
    "panels": matrices.panels,
    "functions": functions.functions,  # a capture that fails may leave torch unusable
}


def told_of(row: dict[str, Any]) -> str:
    """A row in one line."""
    group = [row["section"], row.get("arrays"), row["dtype"], row["shape"] and size(row["shape"])]
    group += [row.get("k") and f"k={row['k']}", row["spectrum"], row["method"]]
    time = f"{duration(row['seconds'])} ({duration(row.get('predicted'))} predicted)"
    figures = [f"ratio {number(row['ratio'])}"] if row["ratio"] else []
    figures += [f"{key} {float(row[key]):.1e}" for key in ("error", "orthogonality") if row[key]]
    told = [row["skipped"]] if row["seconds"] is None else [time, *figures, row.get("note")]
    return f"{' '.join(filter(None, group))}: {', '.join(filter(None, told))}"[:300]


def finish(bench: Bench) -> None:
    """Refit the model, and say what the run shows."""
    results = bench.results
    fitted = model.refit(results.rows)
    results.header["model"] = fitted and {"of": sorted(results.header["parts"]), **fitted}
    results.save()
    for goal, reached, met in gpu_goals(results.rows):
        if reached != "–":
            print(f"{goal}: {reached}, {met}")
    if fitted:
        before, after = (fitted[f"within_30_percent{of}"] for of in ("_before", ""))
        print(f"within 30 % of the model: {before}, fitted {after}, of {fitted['rows']} rows")
    print(f"{len(results.rows)} rows", flush=True)


def give_up(bench: Bench) -> None:
    """End a run whose current call does not: all that was measured is in the file."""
    bench.results.header["parts"][bench.results.part["part"]]["ended"] = "in the middle of a call"
    finish(bench)
    os._exit(3)


def main() -> None:
    # before anything imports SciPy, which reads it once; scikit-learn asks for it
    os.environ["SCIPY_ARRAY_API"] = "1"
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write, or to add to")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, help="for all; by default 3.8 for each part")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a trial")
    parser.add_argument("--sizes", choices=list(matrices.SIZES), default="full")
    options = parser.parse_args()
    device, name = asked_device(options.device, "--device cpu --sizes small")
    settings: dict[str, Any] = {"allow_tf32_by_default": torch.backends.cuda.matmul.allow_tf32}
    torch.set_float32_matmul_precision("highest")
    torch.set_grad_enabled(False)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        settings |= {"device_memory": properties.total_memory, "cuda": torch.version.cuda}
        settings["capability"] = [properties.major, properties.minor]
    about = header("gpu", name, PACKAGES)
    about |= {"settings": settings, "quick": options.sizes == "small"}
    results = Results(options.out, resume=True, **about)
    results.tell = lambda row: print(f"{budget.spent():4.0f} s  {told_of(row)}", flush=True)
    fitted = results.header.get("model")
    constants = fitted["constants"] if fitted else model.CONSTANTS
    by = "earlier rows of this file" if fitted else model.FITTED_TO
    seconds = 60.0 * (options.minutes or PART_MINUTES * len(options.part))
    budget = Budget(seconds - 10.0)  # the last ones are for the end
    bench = Bench(device, options.sizes, results, budget, dict(constants), by)
    watch = threading.Timer(seconds, give_up, [bench])
    watch.daemon = True
    watch.start()
    for part in options.part:
        bench.budget = budget.part(at_most=60.0 * PART_MINUTES - 10.0)
        if bench.budget.left() < 5.0:
            print(f"no time left for {part}")
            continue
        stamp = results.begin(part)
        try:
            PARTS[part](bench)
        except Exception as error:  # the other parts are still worth having
            stamp["ended"] = told(error)
        stamp["seconds"] = bench.budget.spent()
    finish(bench)
    watch.cancel()


if __name__ == "__main__":
    main()
