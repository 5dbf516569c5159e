"""Trains a Llama in bfloat16 on a GPU with several optimizers: memory, time of a step, loss.

    python -m benchmarks.machines.llama --out benchmarks/results/llama-NAME-DATE.json [--size 350m]

Needs PyTorch and transformers; galore-torch is used where it is installed. Every method trains the
same model on the same batches, for `--steps` steps or `--seconds` seconds, whichever ends first.
The text is that of Python's standard library, its 32,000 most frequent words and signs being the
vocabulary. `--device cpu --size tiny` is a trial without a GPU.

Weights, gradients and states are in bfloat16 throughout. The matrices of attention and MLP are
compressed; embeddings, norms and the output are stepped by AdamW, by our optimizers and by
galore-torch alike. Learning rates are chosen so that a step changes the entries of every matrix by
about as much (1e-3 in units of AdamW): they are not tuned, and the losses say no more than that
every method trains.

Rows of section "llama": `step_seconds` is the median of steps without a refresh, forward and
backward passes included, `optimizer_seconds` of `step()` alone, `refresh_seconds` the mean of what
steps with refreshes took beyond the median (of the whole basis set; the first step is `first`),
`mean_seconds` the mean of a whole cycle. Bytes: `state_bytes` of the optimizer, `peak_bytes` of the
whole process in a step without a refresh, `refresh_peak_bytes` in one with, `weight_bytes`.
`losses` are means of 20 steps.
"""

import argparse
import gc
import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.common import libraries
from benchmarks.common.devices import asked_device, synchronize
from benchmarks.common.measuring import told
from benchmarks.common.results import Results, header
from benchmarks.training.data import stdlib, windows
from benchmarks.training.model import bytes_held, llama, loss_of, split
from lowrank.optim import LowRank, LowRankMomentum

PACKAGES = ("torch", "transformers", "numpy", "array-api-compat", "galore-torch")
VOCABULARY = 32_000
# Width, width of the MLP, layers, heads: the sizes of the papers on this subject.
SIZES = {
    "tiny": (64, 176, 2, 4),
    "60m": (512, 1376, 8, 8),
    "130m": (768, 2048, 12, 12),
    "350m": (1024, 2736, 24, 16),
}
LR, EVERY = 1e-3, 100
ADAM = {"lr": LR, "betas": (0.9, 0.95), "weight_decay": 0.0}
WINDOW = 20  # steps of one entry of `losses`


@dataclass(frozen=True)
class Method:
    make: Callable[[torch.nn.Module], Any]
    every: int = 0  # steps between refreshes that a step waits for, 0 where there are none
    in_backward: bool = False


def methods(rank: int) -> dict[str, Method]:
    def groups(model: torch.nn.Module, **options: Any) -> list[dict[str, Any]]:
        parts = split(model)
        return [{"params": parts.matrices, **options}, {"params": parts.rest}]

    def adamw(**options: Any) -> Method:
        return Method(lambda model: torch.optim.AdamW(model.parameters(), **ADAM, **options))

    def ours(*, in_backward: bool = False, **options: Any) -> Method:
        def make(model: torch.nn.Module) -> Any:
            told = groups(model, rank=rank, refresh_every=EVERY, **options)
            return LowRank(told, torch.optim.AdamW, **ADAM)

        return Method(make, EVERY, in_backward)

    def momentum(rank: int, *, in_backward: bool = False) -> Method:
        # five times the rate for matrices: the factor of their updates is 0.2
        return Method(
            lambda model: LowRankMomentum(groups(model, rank=rank, lr=5 * LR), **ADAM),
            in_backward=in_backward,
        )

    def galore(model: torch.nn.Module) -> Any:
        told = {"rank": rank, "update_proj_gap": EVERY, "scale": 1.0, "proj_type": "std"}
        return libraries.galore(groups(model, **told), **ADAM)

    return {
        "AdamW, foreach": adamw(foreach=True),
        "AdamW, fused": adamw(fused=True),
        f"LowRank, rank {rank}": ours(),
        f"LowRank, rank {rank}, no residual": ours(residual=None),
        f"LowRank, rank {rank}, in backward": ours(in_backward=True),
        "LowRankMomentum, rank 8": momentum(8),
        "LowRankMomentum, rank 8, in backward": momentum(8, in_backward=True),
        f"LowRankMomentum, rank {rank}": momentum(rank),
        f"galore-torch, rank {rank}": Method(galore, EVERY),
    }


def words() -> torch.Tensor:
    """The text as numbers of words; 0 stands for all that are rare."""
    found = re.findall(rb"\s*\w+|\s*[^\w\s]|\s+", stdlib())
    frequent = {w: i + 1 for i, (w, _) in enumerate(Counter(found).most_common(VOCABULARY - 1))}
    return torch.tensor([frequent.get(word, 0) for word in found])


@dataclass
class Bench:
    device: torch.device
    size: str
    batch: int
    length: int
    steps: int
    seconds: float
    text: torch.Tensor

    def peak(self) -> int | None:
        """The largest number of bytes allocated since the last call."""
        if self.device.type != "cuda":
            return None
        found = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return int(found)


def train(bench: Bench, method: Method) -> dict[str, Any]:
    model = llama(VOCABULARY, *SIZES[bench.size]).to(bench.device, torch.bfloat16)
    opt = method.make(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    generator = torch.Generator().manual_seed(1)
    losses, whole, alone, peaks = [], [], [], []
    start = time.perf_counter()
    with ExitStack() as stack:
        if method.in_backward:
            stack.enter_context(opt.step_in_backward())
        for _ in range(bench.steps):
            batch = windows(bench.text, bench.batch, bench.length, generator).to(bench.device)
            synchronize(bench.device)
            bench.peak()
            begun = time.perf_counter()
            loss = loss_of(model, batch)
            loss.backward()
            synchronize(bench.device)
            before = time.perf_counter()
            opt.step()
            opt.zero_grad()
            synchronize(bench.device)
            ended = time.perf_counter()
            whole.append(ended - begun)
            alone.append(ended - before)
            peaks.append(bench.peak())
            losses.append(float(loss.detach()))
            if len(losses) == 1:  # all bases, and what is compiled, are made in it
                start = time.perf_counter()
            if ended - start > bench.seconds or not math.isfinite(losses[-1]):
                break
    # ours spread refreshes over the steps of an interval, and so all its steps are counted
    refreshed = [i for i in range(len(whole)) if method.every and i % method.every == 0]
    ordinary = [i for i in range(1, len(whole)) if i not in refreshed] or [0]
    usual = median(whole[i] for i in ordinary)
    cycle = whole[1 : 1 + EVERY]
    longer = max(0.0, fmean(whole[i] for i in refreshed) - usual) if refreshed else None
    return {
        "seconds": usual,
        "step_seconds": usual,
        "optimizer_seconds": None if method.in_backward else median(alone[i] for i in ordinary),
        "mean_seconds": fmean(cycle) if cycle else None,
        "first": whole[0],
        "slowest": max(cycle, default=None),
        "refresh_seconds": longer,
        "repeats": len(whole),
        "weight_bytes": weights,
        "state_bytes": bytes_held([opt.state]),
        "peak_bytes": None if peaks[0] is None else int(median(peaks[i] for i in ordinary)),
        "refresh_peak_bytes": None if peaks[0] is None else max(peaks),
        "losses": [fmean(losses[i : i + WINDOW]) for i in range(0, len(losses), WINDOW)],
        "skipped_steps": getattr(opt, "skipped_steps", None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--size", default="350m", choices=list(SIZES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16, help="windows of a step")
    parser.add_argument("--length", type=int, default=256, help="words of a window")
    parser.add_argument("--steps", type=int, default=201)
    parser.add_argument("--rank", type=int, help="by default a quarter of the width")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each method")
    parser.add_argument("--only", metavar="PATTERN", default="", help="of the names of methods")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which none is begun")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device, name = asked_device(options.device, "--device cpu --size tiny")
    start = time.perf_counter()
    plan = {key: getattr(options, key) for key in ("size", "batch", "length", "steps", "seconds")}
    about = header("llama", name, PACKAGES)
    results = Results(options.out, **about, protocol=plan)
    bench = Bench(device, options.size, *(plan[k] for k in list(plan)[1:]), words())
    rank = options.rank or SIZES[options.size][0] // 4
    chosen = {k: v for k, v in methods(rank).items() if re.search(options.only, k)}
    for label, method in chosen.items():
        columns: dict[str, Any]
        try:
            late = time.perf_counter() - start > 60.0 * options.minutes
            columns = {"skipped": "no time left"} if late else train(bench, method)
        except Exception as error:
            columns = {"skipped": told(error)}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        library = label.partition(",")[0]
        library = {"AdamW": "torch", "galore-torch": library}.get(library, "lowrank")
        fixed = {"section": "llama", "library": library, "dtype": "bfloat16", "rank": rank}
        row = results.add(**fixed, method=label, **columns)
        print(f"{time.perf_counter() - start:4.0f} s  {label:40} {told_of(row)}", flush=True)


def told_of(row: dict[str, Any]) -> str:
    if row["skipped"]:
        return str(row["skipped"])

    def number(key: str, scale: float, unit: str) -> str:
        return f"{key.partition('_')[0]} {row[key] * scale:.1f} {unit}" if row[key] else ""

    shown = [number(f"{key}_seconds", 1e3, "ms") for key in ("step", "optimizer", "mean")]
    shown += [number("first", 1e3, "ms"), number("refresh_seconds", 1e3, "ms")]
    shown += [number(f"{key}_bytes", 1e-6, "MB") for key in ("state", "peak", "refresh_peak")]
    return ", ".join(
        filter(None, [*shown, f"{row['repeats']} steps", f"loss {row['losses'][-1]:.3f}"])
    )


if __name__ == "__main__":
    main()
