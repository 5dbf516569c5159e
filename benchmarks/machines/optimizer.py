"""Measures the optimizer of low-rank state beside the optimizers that it wraps.

    python -m benchmarks.machines.optimizer [--quick] \
        --out benchmarks/results/optimizer-NAME-DATE.json

Needs PyTorch; galore-torch is used where it is installed. Takes about five minutes on two cores.
Nothing else should run meanwhile. `--device cuda --dtype bfloat16` measures on a GPU;
benchmarks/machines/gpu does so. Sections of the rows:

- "step": steps alone of one transformer block, over a whole cycle of refreshes (every 200 steps),
  in turn, and beside them the two products of every weight that low rank can't do without.
  `seconds` is the mean of the cycle, `median` that of single steps, `slowest` the slowest but for
  the first, which is `first`. `ratio` is of means, to AdamW with foreach.
- "training": forward, backward and step, at a number of tokens; `ratio` is to the same with AdamW
  (foreach). Refreshes are added as their share in a cycle.
- "refresh": one basis against torch.linalg.svd, of which `ratio` is a fraction; `captured` is
  ‖QᵀG‖² over that of the SVD's basis, `spectrum` how the singular values fall.
- "counts": kernels (on a GPU) and reads by the host in a step without a refresh; `kernels` are for
  each compressed parameter, `together` those that do not grow with their number.

`rank` is k/8, unless the name says another. `state_bytes` is what the optimizer keeps, `peak_bytes`
what a step needs beyond it
and beyond weights and gradients (on a GPU).
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import fmean, median
from typing import Any

import torch

from benchmarks.common import libraries
from benchmarks.common.devices import asked_device, host_reads, kernels, peak_bytes, synchronize
from benchmarks.common.measuring import Budget, Timing, in_turn, interleaved, timed, told
from benchmarks.common.results import Results, header
from lowrank.compress import Subspace
from lowrank.optim import LowRank, LowRankMomentum, select

PACKAGES = ("torch", "numpy", "array-api-compat", "galore-torch")
EVERY = 200
REPEATS = 15  # of a training step
ADAMW = {"lr": 1e-4, "weight_decay": 0.01}
BASE, PRODUCTS = "AdamW, foreach", "bare products"


class Sizes:
    """Width of the block, tokens of a batch, steps of a cycle, and the matrix of a refresh."""

    def __init__(self, *, quick: bool) -> None:
        self.width, self.tokens, self.cycle = (128, 256, 20) if quick else (1024, 2048, EVERY)
        self.refresh, self.rank = (256, 32) if quick else (2048, 256)


def block(width: int, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, dropout=0.0, batch_first=True, norm_first=True
    )
    return layer.to(device, dtype)


Make = Callable[[torch.nn.Module], Any]


def makers(rank: int) -> dict[str, Make]:
    """Optimizers of a model, by the name of the row."""

    def ours(**options: Any) -> Make:
        return lambda model: LowRank(
            select(model, rank=rank), torch.optim.AdamW, **ADAMW, refresh_every=EVERY, **options
        )

    def momentum(rank: int) -> Make:
        return lambda model: LowRankMomentum(select(model, rank=rank), **ADAMW)

    def plain(**options: Any) -> Make:
        return lambda model: torch.optim.AdamW(model.parameters(), **ADAMW, **options)

    def galore(model: torch.nn.Module) -> torch.optim.Optimizer:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        projected = {"rank": rank, "update_proj_gap": EVERY, "scale": 1.0, "proj_type": "std"}
        groups = [{"params": others}, {"params": matrices, **projected}]
        return libraries.galore(groups, **ADAMW)

    return {
        BASE: plain(foreach=True),
        "AdamW, fused": plain(fused=True),
        "AdamW, loop": plain(foreach=False),
        "LowRank, no residual": ours(residual=None),
        "LowRank": ours(),
        "LowRank, no residual, fused": ours(residual=None, fused=True),
        "LowRank, fused": ours(fused=True),
        "LowRankMomentum": momentum(rank),
        "LowRankMomentum, rank 8": momentum(8),
        "galore-torch": galore,
        PRODUCTS: lambda model: Products(model, rank),
    }


def with_gradients(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator(next(model.parameters()).device).manual_seed(1)
    for p in model.parameters():
        options = {"device": p.device, "dtype": torch.float32}
        p.grad = torch.randn(p.shape, generator=generator, **options).to(p.dtype) * 1e-2
    return model


class Products:
    """The bare products of a step: QᵀG, and QX added to the weight."""

    def __init__(self, model: torch.nn.Module, rank: int) -> None:
        self.state: dict[Any, dict[str, Any]] = {}
        self.parts = []
        for p in model.parameters():
            if p.ndim == 2:
                G, W = (p.grad, p.data) if p.shape[0] <= p.shape[1] else (p.grad.mT, p.data.mT)
                Q = G.new_zeros(G.shape[0], rank)
                self.parts.append((Q, G, W, G.new_zeros(rank, G.shape[1])))

    def step(self) -> None:
        for Q, G, W, X in self.parts:
            torch.mm(Q.mT, G, out=X)
            W.addmm_(Q, X)


def library_of(name: str) -> str:
    libraries = {"LowRank": "lowrank", "LowRankMomentum": "lowrank", "AdamW": "torch"}
    return libraries.get(name.partition(",")[0], name)


class Bench:
    def __init__(self, results: Results, device: torch.device, dtype: str, *, quick: bool) -> None:
        self.results, self.device, self.dtype = results, device, dtype
        self.sizes = Sizes(quick=quick)
        self.rank = self.sizes.width // 8
        self.wait = partial(synchronize, device)
        self.made: dict[str, tuple[torch.nn.Module, torch.optim.Optimizer]] = {}

    def clock(self) -> float:
        self.wait()
        return time.perf_counter()

    def add(self, section: str, name: str, **columns: Any) -> None:
        fixed = {"section": section, "library": library_of(name), "method": name}
        self.results.add(**{**fixed, "dtype": self.dtype, "rank": self.rank, **columns})

    def optimizers(self, names: tuple[str, ...] | None = None) -> None:
        """Make models with gradients and their optimizers; one that fails is a row that says so."""
        self.made.clear()
        for name, make in makers(self.rank).items():
            if names is not None and name not in names:
                continue
            model = with_gradients(block(self.sizes.width, self.device, getattr(torch, self.dtype)))
            try:
                self.made[name] = model, make(model)
            except Exception as error:
                self.add("step", name, skipped=told(error))


def steps(bench: Bench) -> None:
    bench.optimizers()
    seconds: dict[str, list[float]] = {name: [] for name in bench.made}
    # the first step makes every basis; the cycle begins after it
    for _ in range(bench.sizes.cycle + 1):
        for name, (_, opt) in list(bench.made.items()):
            try:
                seconds[name].append(timed(opt.step, bench.wait)[0])
            except Exception as error:
                bench.add("step", name, skipped=told(error))
                del bench.made[name], seconds[name]
    base = fmean(seconds[BASE][1:])
    for name, (model, opt) in bench.made.items():
        first, *cycle = seconds[name]
        bench.add(
            "step",
            name,
            seconds=fmean(cycle),
            median=median(cycle),
            fastest=min(cycle),
            slowest=max(cycle),
            first=first,
            repeats=len(cycle),
            ratio=fmean(cycle) / base,
            state_bytes=state_bytes(opt),
            peak_bytes=peak_bytes(opt.step, bench.device),
            numbers=sum(p.numel() for p in model.parameters()),
        )


def state_bytes(opt: torch.optim.Optimizer) -> int:
    storages = {}
    for state in opt.state.values():
        for value in (*state.values(), getattr(state.get("projector"), "ortho_matrix", None)):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def training(bench: Bench) -> None:
    sizes, dtype = bench.sizes, getattr(torch, bench.dtype)
    names = (BASE, "AdamW, fused", "LowRank, no residual", "LowRank", "LowRank, fused")
    names += ("LowRankMomentum", "LowRankMomentum, rank 8")
    bench.optimizers(names)
    refreshes = {row["method"]: row for row in bench.results.rows if row["section"] == "step"}
    for tokens in (sizes.tokens, 4 * sizes.tokens):
        length = min(tokens, 512)
        generator = torch.Generator(bench.device).manual_seed(2)
        shape = (tokens // length, length, sizes.width)
        x = torch.randn(shape, generator=generator, device=bench.device).to(dtype)
        calls = {name: partial(train, *made, x) for name, made in bench.made.items()}
        repeats = REPEATS if tokens == sizes.tokens else 3
        found = in_turn(calls, repeats, clock=bench.clock)
        timings = {name: Timing(seconds) for name, seconds in found.items()}
        share = {name: refresh_share(refreshes.get(name)) for name in calls}
        base = median(timings[BASE].seconds) + share[BASE]
        for name, timing in timings.items():
            columns = timing.row()
            if timing.seconds:
                columns["seconds"] += share[name]
                columns["ratio"] = columns["seconds"] / base
                columns["peak_bytes"] = peak_bytes(calls[name], bench.device)
            bench.add("training", name, tokens=tokens, **columns)


def train(model: torch.nn.Module, opt: torch.optim.Optimizer, x: torch.Tensor, _: int = 0) -> None:
    with torch.enable_grad():  # which a caller may have switched off for everything
        opt.zero_grad()
        model(x).square().mean().backward()
    opt.step()


def refresh_share(row: dict[str, Any] | None) -> float:
    """Seconds that refreshes add to a step on the average."""
    return 0.0 if not row or row["seconds"] is None else max(0.0, row["seconds"] - row["median"])


def refreshes(bench: Bench) -> None:
    """Of single precision on a processor; half precision elsewhere if the model has it."""
    n, r = bench.sizes.refresh, bench.sizes.rank
    generator = torch.Generator(bench.device).manual_seed(3)

    def gaussian() -> torch.Tensor:
        return torch.randn(n, n, generator=generator, device=bench.device)

    U, V = (torch.linalg.qr(gaussian()).Q for _ in range(2))
    j = torch.arange(1, n + 1, device=bench.device)
    for spectrum, s in {"1/j": 1.0 / j, "1/√j": j**-0.5, "flat": None}.items():
        G = gaussian() if s is None else (U * s) @ V.mT
        warm = Subspace(rank=r, warm_start=True).refresh(G + 0.1 * G.std() * gaussian())
        policies = {
            "Subspace": Subspace(rank=r),
            "Subspace, half random": Subspace(rank=r, random_fraction=0.5),
            "Subspace, warm start": warm,
            "Subspace, no power iteration": Subspace(rank=r, power_iterations=0),
        }
        calls: dict[str, Callable[[int], Any]] = {
            "svd": lambda _, G=G: torch.linalg.svd(G, full_matrices=False).U[:, :r],
            "svd_lowrank": lambda _, G=G: torch.svd_lowrank(G, q=r + 8, niter=1)[0][:, :r],
        }
        calls |= {
            name: lambda seed, policy=policy, G=G: policy.refresh(G, step=seed).basis
            for name, policy in policies.items()
        }
        timings = interleaved(calls, bench.wait)
        base = median(timings["svd"].seconds)
        best = energy(timings["svd"].result, G)
        for name, timing in timings.items():
            columns = timing.row()
            if timing.seconds:
                columns["ratio"] = columns["seconds"] / base
                columns["captured"] = energy(timing.result, G) / best
            columns |= {"shape": [n, n], "rank": r, "spectrum": spectrum, "dtype": "float32"}
            bench.add("refresh", name if "Sub" in name else f"torch {name}", **columns)


def energy(Q: torch.Tensor, G: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(Q.mT.double() @ G.double())) ** 2


def counts(bench: Bench) -> None:
    """Of models with one and with three blocks: their difference is due to the parameters."""
    for name, options in {
        "LowRank": {},
        "LowRank, no residual": {"residual": None},
        "LowRank, fused": {"fused": True},
        'LowRank, nonfinite="ignore"': {"nonfinite": "ignore"},
        BASE: None,
    }.items():
        found = []
        for blocks in (1, 3):
            layers = [
                block(bench.sizes.width, bench.device, getattr(torch, bench.dtype))
                for _ in range(blocks)
            ]
            model = with_gradients(torch.nn.Sequential(*layers))
            opt: torch.optim.Optimizer
            if options is None:
                opt = torch.optim.AdamW(model.parameters(), foreach=True, **ADAMW)
            else:
                more = {"foreach": True} | options if "fused" not in options else options
                opt = LowRank(
                    select(model, rank=bench.rank), torch.optim.AdamW, refresh_every=10**6,
                    **ADAMW, **more,
                )  # fmt: skip
            opt.step()
            reads = host_reads(opt.step)
            found.append(kernels(opt.step, bench.device))
        columns: dict[str, Any] = {"host_reads": reads}
        if None not in found:
            compressed = sum(p.ndim == 2 for p in layers[0].parameters())
            each = (found[1] - found[0]) / (2 * compressed)
            columns |= {"kernels": each, "together": found[0] - each * compressed}
        bench.add("counts", name, **columns)


def measure(
    results: Results, device: torch.device, dtype: str, *, quick: bool, budget: Budget | None = None
) -> None:
    """All parts in turn; one that fails, or for which no time is left, is a row that says so."""
    bench = Bench(results, device, dtype, quick=quick)
    for part in (steps, training, refreshes, counts):
        reason = None
        try:
            if budget is not None and budget.left() < 1.0:
                reason = "no time left"
            else:
                part(bench)
        except Exception as error:
            reason = told(error)
        if reason is not None:
            bench.add(part.__name__, "all", skipped=reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="a trial on small matrices")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    device, name = asked_device(options.device, "--device cpu --quick")
    about = header("optimizer", name, PACKAGES)
    results = Results(options.out, **about, quick=options.quick)
    measure(results, device, options.dtype, quick=options.quick)
    for row in results.rows:
        shown = {key: row.get(key) for key in ("seconds", "ratio", "captured", "kernels")}
        figures = {key: round(v, 4) for key, v in shown.items() if v and math.isfinite(v)}
        print(row["section"], row["method"], row.get("tokens", ""), figures, row["skipped"] or "")


if __name__ == "__main__":
    main()
