"""Measures lowrank on this machine's processor, against the bare products and other libraries.

    python -m benchmarks.machines.cpu --out benchmarks/results/cpu-NAME-DATE.json [--quick]

Needs PyTorch and SciPy; scikit-learn, dask and librla are used where they are installed. Takes
about 12 minutes on two cores, and with --quick, on small matrices, a minute. Nothing else should
run meanwhile: threads that wait for one another lose far more than their share of a busy core.

NumPy and torch each have a process of their own, so that the threads of neither disturb the other.
Within a group of rows the calls take turns, on one input, and seconds are medians of repeats after
a first call that warms up. Sections of the rows:

- "fixed rank": bases and factorizations of rank k without power iterations or oversampling. `ratio`
  is to the draw of Omega and the product (bases), or to these and the second product (the others).
- "adaptive": the range finder to a tolerance, and at once for the rank that it then finds. The
  tolerance is a few times the best error at rank k, and not below what the dtype allows.
- "svd": truncated SVDs of the same rank, with accuracy; `ratio` is to lowrank.svd.
- "qr": QR of Gaussian matrices; `ratio` is to lowrank.qr, and `error` is ‖A − QR‖/‖A‖.
- "growth": seconds against m, n and k, each with the others fixed. "fits" has the least-squares
  slopes of log seconds, and of the log of the flops of all products, over the log of the size.

`error` is ‖A − QQᴴA‖/‖A‖ of a basis and the residual of a factorization, in the Frobenius norm and
computed in float64. `over_best` is the same over the best possible error at that rank; null where
that is below rounding. `orthogonality` is ‖QᴴQ − I‖_F. `k` is the rank asked for, `rank` that of
the result. "memory" lists the peak of what NumPy allocates beyond A, in elements, beside the
documented limit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.common.measuring import told
from benchmarks.common.results import Results, cpu_name, header
from benchmarks.machines.cpu.bench import FULL, QUICK, SPECTRA, Bench, Sizes
from benchmarks.machines.cpu.growth import growth, memory
from benchmarks.machines.cpu.matrices import adaptive, fixed_rank, qrs, svds
from lowrank import gallery

PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "dask", "librla", "array-api-compat")
THREAD_SETTINGS = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_THREAD_TIMEOUT",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)

Section = Callable[[Bench], None]
COMMON: tuple[Section, ...] = (fixed_rank, adaptive, svds, qrs)
# Memory comes last: counting allocations slows them down.
PARTS: dict[str, tuple[Section, ...]] = {"numpy": (*COMMON, growth, memory), "torch": COMMON}


def make_matrices(folder: Path, sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        np.save(folder / f"{spectrum}.npy", gallery.matrix(s, rng=0))
    np.save(folder / "svd.npy", gallery.matrix(gallery.slow(sizes.svd_n), rng=0))


def measure_part(name: str, out: Path, folder: Path, sizes: Sizes) -> None:
    results = Results(out, fits=[], memory=[], failures=[])
    bench = Bench(name, results, folder, sizes)
    for section in PARTS[name]:
        try:
            section(bench)
        except Exception as error:  # the other sections are still worth having
            results.header["failures"].append(f"{name}, {section.__name__}: {told(error)}")
            results.save()


def run_part(results: Results, name: str, folder: Path, *, quick: bool) -> None:
    """Measure a part in a process of its own, and take over what it found."""
    out = folder / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.machines.cpu", "--part", name]
    command += ["--out", str(out), "--folder", str(folder), *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        results.header["failures"].append(f"{name}: ended with exit code {done.returncode}")
    if out.exists():
        found = json.loads(out.read_text("utf-8"))
        results.rows += found["rows"]
        for key in ("fits", "memory", "failures"):
            results.header[key] += found[key]
    results.save()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="small matrices, for a trial")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    options = arguments()
    sizes = QUICK if options.quick else FULL
    if options.part:
        measure_part(options.part, options.out, options.folder, sizes)
        return
    start = time.perf_counter()
    about = header("cpu", cpu_name(), PACKAGES)
    settings = {name: os.environ.get(name) for name in THREAD_SETTINGS}
    empty: dict[str, list[Any]] = {"fits": [], "memory": [], "failures": []}
    results = Results(options.out, **about, quick=options.quick, settings=settings, **empty)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_matrices(folder, sizes)
        print(f"matrices made, {time.perf_counter() - start:.0f} s", flush=True)
        for part in PARTS:
            run_part(results, part, folder, quick=options.quick)
    results.header["wall_seconds"] = time.perf_counter() - start
    results.save()
    print(f"{len(results.rows)} rows in {results.header['wall_seconds']:.0f} s", flush=True)
    if results.header["failures"]:
        sys.exit("\n".join(results.header["failures"]))


if __name__ == "__main__":
    main()
