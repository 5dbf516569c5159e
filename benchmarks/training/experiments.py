"""Smaller questions, each one function with a JSON result of flat rows.

E2 seconds of a refresh; E3 what a basis captures of a gradient; E4 what the basis of one batch
captures of the gradient of many; E5 a problem on which the basis of the gradient alone fails;
E6 bytes of state by their formula; E7 stop and resume in a new process; E8 a NaN in a gradient;
E9 two processes of data-parallel training beside one; E10 a small convolutional net; E11 the
language model with larger batches, weight decay, bfloat16 weights and more steps.
"""

import hashlib
import importlib
import io
import logging
import math
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common.measuring import interleaved, told
from benchmarks.common.results import write_json
from benchmarks.training import data
from benchmarks.training.methods import METHODS, Optimizers, Setting
from benchmarks.training.model import (
    Parts,
    Shape,
    loss_of,
    short,
    split,
    state_bytes,
    tensors_in,
)
from benchmarks.training.run import RESULTS, Protocol, Run, machine, train
from lowrank.compress import Subspace
from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon, select

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    protocol: Protocol
    name: str  # of the corpus: tensors are not sent to other processes
    quick: bool
    large: bool

    @property
    def corpus(self) -> data.Corpus:
        return data.load(self.name)


# -- bases ----------------------------------------------------------------------------------------


def basis(G: torch.Tensor, rank: int, **options: Any) -> torch.Tensor:
    space = Subspace(rank, **{"random_fraction": 0.0, **options}).refresh(G)
    return space.basis


def captured(Q: torch.Tensor, G: torch.Tensor) -> float:
    """The share of ‖G‖² in the subspace, in double precision; G has its short side first."""
    Q, G = Q.double(), G.double()
    return float((Q.T @ G).square().sum() / G.square().sum())


def by_svd_lowrank(G: torch.Tensor, rank: int, niter: int, more: int = 0) -> torch.Tensor:
    return torch.svd_lowrank(G, q=min(rank + more, G.shape[0]), niter=niter)[0][:, :rank]


BASES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "torch.linalg.svd": lambda G, r: torch.linalg.svd(G, full_matrices=False)[0][:, :r],
    "torch.svd_lowrank, niter=0": lambda G, r: by_svd_lowrank(G, r, 0),
    "torch.svd_lowrank, niter=2": lambda G, r: by_svd_lowrank(G, r, 2),
    "torch.svd_lowrank, niter=2, q=r+8": lambda G, r: by_svd_lowrank(G, r, 2, 8),
    "lowrank, power 0, oversampling 0": lambda G, r: basis(
        G, r, power_iterations=0, oversampling=0
    ),
    "lowrank, power 0": lambda G, r: basis(G, r, power_iterations=0),
    "lowrank": basis,
    "lowrank, power 2": lambda G, r: basis(G, r, power_iterations=2),
    "lowrank, half random": lambda G, r: basis(G, r, random_fraction=0.5),
    "lowrank, all random": lambda G, r: basis(G, r, random_fraction=1.0),
}


def e2(asked: Asked) -> Iterator[Row]:
    """Seconds of one refresh on one thread, and what the basis captures of the best possible."""
    shapes = [(512, 512)] if asked.quick else [(1024, 1024), (2048, 2048)]
    if asked.large:
        shapes += [(4096, 4096), (4096, 11008)]
    for k, M in shapes:
        generator = torch.Generator().manual_seed(0)
        scales = 1.0 / torch.arange(1, k + 1)
        G = torch.linalg.qr(torch.randn(k, k, generator=generator))[0] * scales
        G = G @ torch.randn(k, M, generator=generator)
        ranks = [r for r in (128, 256, 1024) if r <= k // 2]
        start = time.perf_counter()
        U = torch.linalg.svd(G, full_matrices=False)[0]
        exact = time.perf_counter() - start
        for r in ranks:
            timings = interleaved(
                {
                    name: lambda _, find=find, G=G, r=r: find(G, r)
                    for name, find in BASES.items()
                    if name != "torch.linalg.svd"
                }
            )
            best, common = captured(U[:, :r], G), {"shape": [k, M], "rank": r}
            yield (
                common
                | {"method": "torch.linalg.svd", "seconds": exact, "speedup": 1.0}
                | {"captured": 1.0}
            )
            for name, timing in timings.items():
                seconds = statistics.median(timing.seconds)
                told = {"method": name, "seconds": seconds, "speedup": exact / seconds}
                yield common | told | {"captured": captured(timing.result, G) / best}


def gradients_of(model: torch.nn.Module, windows: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss_of(model, windows).backward()
    found = [short(p.grad).clone() for p in split(model).matrices if p.grad is not None]
    model.zero_grad()
    return found


def trained(
    asked: Asked, shape: Shape, protocol: Protocol, visits: list[int]
) -> Iterator[tuple[int, torch.nn.Module, torch.Generator]]:
    """A model on its way by AdamW at 1e-3 of constant rate, stopped at some steps."""
    model, generator = shape.build(0), torch.Generator().manual_seed(0)
    optimizer = METHODS["adamw"].optimizers(split(model), Setting(1e-3, 0))[0]
    for step in range(1, max(visits) + 1):
        loss_of(model, asked.corpus.batch(protocol.batch, protocol.length, generator)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
        optimizer.step()
        optimizer.zero_grad()
        if step in visits:
            yield step, model, generator


def mean_of(rows: list[Row], *keys: str) -> Iterator[Row]:
    """One row for each combination of the keys: mean and least of what was captured."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row["captured"])
    for values, found in groups.items():
        yield dict(zip(keys, values, strict=True)) | {
            "captured": statistics.mean(found),
            "least": min(found),
            "matrices": len(found),
        }


def e3(asked: Asked) -> Iterator[Row]:
    """What bases capture of the gradient that they were found from, relative to the best."""
    shape = Shape() if asked.quick else Shape(hidden=256, intermediate=688, layers=4)
    protocol = asked.protocol if asked.quick else replace(asked.protocol, length=128)
    visits, promises = ([20, 40] if asked.quick else [100, 300]), (0.8, 0.95, 0.99)
    earlier: list[torch.Tensor] = []
    for step, model, generator in trained(asked, shape, protocol, visits):
        rows = []
        batch = asked.corpus.batch(protocol.batch, protocol.length, generator)
        found = gradients_of(model, batch)
        for place, G in enumerate(found):
            U = torch.linalg.svd(G, full_matrices=False)[0]
            for part in (16, 8, 4):
                r = G.shape[0] // part
                best = captured(U[:, :r], G)
                common = {"step": step, "of k": f"1/{part}"}
                rows.append(common | {"basis": "best, absolute", "captured": best})
                bases = {name: find(G, r) for name, find in BASES.items() if "linalg" not in name}
                if earlier:
                    old = basis(earlier[place], r)
                    bases["of the earlier step"] = old
                    space = Subspace(r, warm_start=True, basis=old)
                    bases["lowrank, warm start from it"] = space.refresh(G).basis
                for name, Q in bases.items():
                    rows.append(common | {"basis": name, "captured": captured(Q, G) / best})
            for energy in promises:
                Q = Subspace(energy=energy, max_rank=G.shape[0]).refresh(G).basis
                common = {"step": step, "of k": "adaptive", "basis": f"energy={energy}, absolute"}
                rows.append(common | {"captured": captured(Q, G)})
                rows.append(
                    common
                    | {"basis": f"rank/k at energy={energy}"}
                    | {"captured": Q.shape[1] / G.shape[0]}
                )
        earlier = found
        yield from mean_of(rows, "step", "of k", "basis")


def e4(asked: Asked) -> Iterator[Row]:
    """What the basis of one batch captures of the mean gradient of many, relative to the best."""
    many, visits = (8, [20, 40]) if asked.quick else (48, [100, 300, 600])
    protocol = asked.protocol
    for step, model, generator in trained(asked, protocol.shape, protocol, visits):
        batches = [
            asked.corpus.batch(protocol.batch, protocol.length, generator) for _ in range(many + 2)
        ]
        single, other, *rest = [gradients_of(model, batch) for batch in batches]
        big = [torch.stack(each).mean(0) for each in zip(*rest, strict=True)]
        noise = [
            float((g - G).square().sum() / G.square().sum())
            for g, G in zip(single, big, strict=True)
        ]
        yield {"step": step, "basis": "noise/signal of one batch"} | {
            "captured": statistics.mean(noise)
        }
        rows = []
        for g, h, G in zip(single, other, big, strict=True):
            for part in (16, 4):
                r = G.shape[0] // part
                for name in ("torch.linalg.svd", "lowrank", "lowrank, power 0, oversampling 0"):
                    Q = BASES[name](g, r)
                    for target, X in (("many batches", G), ("another batch", h)):
                        best = captured(BASES["torch.linalg.svd"](X, r), X)
                        common = {"step": step, "of k": f"1/{part}", "on": target, "basis": name}
                        rows.append(common | {"captured": captured(Q, X) / best})
        yield from mean_of(rows, "step", "of k", "on", "basis")


# -- optimizers -----------------------------------------------------------------------------------

FEW: dict[str, dict[str, Any]] = {
    "adamw": {},
    "galore-r8": {},
    "lowrank-r8-galore-like": {},
    "lowrank-r8-random-0": {},
    "lowrank-r8": {},
    "lowrank-r8-random-1": {},
    "lowrank-r8-average-0.98": {},
    "momentum-r8": {},
}


def e5(asked: Asked) -> Iterator[Row]:
    """Quadratic loss of a 10×10 matrix; noise, larger than its gradient, in other directions.

    After the example of He et al., 2024, arXiv:2410.11289: the loss knows the first 6 rows, and
    has a linear term there; the noise, ± a fixed matrix with the same chance, the last 4 rows and
    columns. Rank 4, a refresh every 50 steps, a rate that falls to a tenth by a cosine.
    """
    n, r, steps, seeds = 10, 4, (1000 if asked.quick else 4000), range(2 if asked.quick else 5)
    for name in FEW:
        gaps = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            B, noise = torch.zeros(n, n), torch.zeros(n, n)
            B[: n - r, : n - r] = torch.randn(n - r, n - r, generator=generator)
            noise[n - r :, n - r :] = torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
            noise *= 3.0 * torch.linalg.matrix_norm(B, ord=2)
            X = torch.nn.Parameter(torch.zeros(n, n))
            other = torch.nn.Parameter(torch.zeros(1))
            method = METHODS[name]
            options = dict(method.options)
            if "rank" in options:
                options["rank"] = r
            setting = Setting(0.01, seed, (0.9, 0.999), 50)
            optimizers = method.build(Parts([X], [other]), setting, **options)
            for step in range(steps):
                sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
                gradient = torch.cat([X.detach()[: n - r], torch.zeros(r, n)]) + B
                X.grad = gradient + sign * noise
                for each in optimizers:
                    each.param_groups[0]["lr"] = 0.01 * asked.protocol.factor(
                        step * asked.protocol.steps // steps
                    )
                    each.step()
            top = X.detach()[: n - r]
            loss = 0.5 * top.square().sum() + (X.detach() * B).sum()
            gaps.append(float(loss + 0.5 * B.square().sum()))
        yield {
            "method": name,
            "gap": statistics.mean(gaps),
            "least": min(gaps),
            "largest": max(gaps),
            "seeds": len(gaps),
        }


def e6(asked: Asked) -> Iterator[Row]:
    """Bytes of state after a step on one matrix, counted in storages, beside r·k + 2·r·M.

    Or (r + 1)(k + M) for LowRankMomentum."""
    shapes = [(256, 256), (352, 128), (1024, 512)]
    shapes += [] if asked.quick else [(1024, 2752), (2048, 2048)]
    for m, n in shapes:
        k, M = min(m, n), max(m, n)
        for name in ("adamw", "galore-r8", "galore-r32", "apollo-r8", "lowrank-r8", "momentum-r8"):
            W, other = torch.nn.Parameter(torch.zeros(m, n)), torch.nn.Parameter(torch.zeros(1))
            optimizers = METHODS[name].optimizers(Parts([W], [other]), Setting(1e-3, 0))
            W.grad = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
            for optimizer in optimizers:
                optimizer.step()
            r = METHODS[name].options.get("rank")
            numbers = 2 * k * M if r is None else r * k + 2 * r * M
            if name.startswith("momentum"):
                numbers = (r + 1) * (k + M)
            formula = 4 * numbers
            held = state_bytes(optimizers, [W])
            buffer = io.BytesIO()
            torch.save([optimizer.state_dict() for optimizer in optimizers], buffer)
            told = {"shape": [m, n], "method": name, "formula": formula, "held": held}
            yield told | {"held/formula": held / formula, "file": buffer.getbuffer().nbytes}


def start_of(asked: Asked, name: str) -> tuple[torch.nn.Module, Optimizers, torch.Generator]:
    model = asked.protocol.shape.build(0)
    options = Setting(1e-2, 0, refresh_every=6)
    return model, METHODS[name].optimizers(split(model), options), torch.Generator().manual_seed(0)


def some_steps(
    asked: Asked,
    model: torch.nn.Module,
    optimizers: Optimizers,
    generator: torch.Generator,
    steps: int,
) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = loss_of(
            model, asked.corpus.batch(asked.protocol.batch, asked.protocol.length, generator)
        )
        model.zero_grad()
        loss.backward()
        for each in optimizers:
            each.step()
        losses.append(float(loss.detach()))
    return losses


def digest(tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


PATIENCE = 300  # seconds, for other processes
STEPS = 10  # before the stop, and after it: with a refresh every 6


def e7(asked: Asked) -> Iterator[Row]:
    """Whether a run that goes on in a new process ends at the same weights, bit by bit."""
    for name in (
        "adamw",
        "galore-r8",
        "apollo-r8",
        "lowrank-r8",
        "lowrank-energy-0.95",
        "momentum-r8",
    ):
        model, optimizers, generator = start_of(asked, name)
        some_steps(asked, model, optimizers, generator, STEPS)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.pt"
            states = [optimizer.state_dict() for optimizer in optimizers]
            torch.save([model.state_dict(), states, generator.get_state()], path)
            some_steps(asked, model, optimizers, generator, STEPS)
            unbroken = digest(model.parameters())
            for safely in (True, False):
                (told,) = in_processes(1, resumed, asked, name, path, safely)
                yield {"method": name, "weights_only": safely} | {
                    "loads": not told.startswith("error"),
                    "bit by bit": told == unbroken,
                    "error": told if told.startswith("error") else None,
                }
                if told == unbroken:
                    break


def resumed(rank: int, asked: Asked, name: str, path: Path, safely: bool) -> str:  # noqa: ARG001
    model, optimizers, generator = start_of(asked, name)
    try:
        weights, states, numbers = torch.load(path, weights_only=safely)
    except Exception as error:
        return f"error: {told(error)[:60]}"
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    generator.set_state(numbers)
    some_steps(asked, model, optimizers, generator, STEPS)
    return digest(model.parameters())


def e8(asked: Asked) -> Iterator[Row]:
    """One NaN in the gradient of the tenth matrix, in a step with a refresh: what has changed."""
    for name in ("adamw", "galore-r8", "apollo-r8", "muon", "lowrank-r8", "momentum-r8"):
        model, optimizers, generator = start_of(asked, name)
        some_steps(asked, model, optimizers, generator, 6)
        batch = asked.corpus.batch(asked.protocol.batch, asked.protocol.length, generator)
        model.zero_grad()
        loss_of(model, batch).backward()
        split(model).matrices[9].grad.view(-1)[0] = torch.nan
        before, error = [p.detach().clone() for p in model.parameters()], None
        held = digest(_numbers(optimizers))
        try:
            for optimizer in optimizers:
                optimizer.step()
        except Exception as raised:
            error = told(raised)[:60]
        after = [p.detach() for p in model.parameters()]
        changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        bad = sum(not bool(torch.isfinite(p).all()) for p in after)
        yield {"method": name, "parameters": len(after), "changed": changed, "not finite": bad} | {
            "state changed": digest(_numbers(optimizers)) != held,
            "skipped": getattr(optimizers[0], "skipped_steps", None),
            "error": error,
        }


def _numbers(optimizers: Optimizers) -> Iterator[torch.Tensor]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for value in state.values():
                yield from tensors_in(torch.tensor(value) if isinstance(value, int) else value)


def e9(asked: Asked) -> Iterator[Row]:
    """Two gloo processes with half of each batch beside one with the whole of it."""
    steps = 8 if asked.quick else 20
    (one,) = in_processes(1, parallel, asked, 1, None, steps)
    with tempfile.TemporaryDirectory() as folder:
        two = in_processes(2, parallel, asked, 2, Path(folder) / "meeting", steps)
    gaps = [abs(a - b) for a, b in zip(one["losses"], two[0]["losses"], strict=True)]
    yield {
        "steps": steps,
        "same bases": two[0]["bases"] == two[1]["bases"],
        "same weights": two[0]["weights"] == two[1]["weights"],
        "first loss, gap to one process": gaps[0],
        "last loss, gap to one process": gaps[-1],
        "last loss": one["losses"][-1],
    }


def parallel(rank: int, asked: Asked, world: int, meeting: Path | None, steps: int) -> Row:
    model, optimizers, generator = start_of(asked, "lowrank-r8")
    whole: torch.nn.Module = model
    if meeting is not None:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=PATIENCE),
        )
        whole = DistributedDataParallel(model)
    losses = []
    for _ in range(steps):
        batch = asked.corpus.batch(asked.protocol.batch, asked.protocol.length, generator)
        loss = loss_of(whole, batch.chunk(world)[rank])
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        mean = loss.detach()
        if meeting is not None:
            distributed.all_reduce(mean)
        losses.append(float(mean) / world)
    bases = [optimizers[0].state[p]["basis"] for p in split(model).matrices]
    if meeting is not None:
        distributed.destroy_process_group()
    return {"losses": losses, "bases": digest(bases), "weights": digest(model.parameters())}


def e10(asked: Asked) -> Iterator[Row]:
    """Handwritten digits of 8×8 pixels by a net of three convolutions; 597 of 1,797 held out."""
    digits = importlib.import_module("sklearn.datasets").load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16.0
    y = torch.tensor(digits.target)
    steps, seeds = (20, (0,)) if asked.quick else (300, (0, 1, 2))
    rates = (3e-3,) if asked.quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    for name, make in CONVOLUTIONAL.items():
        first = {rate: convolutional(make, rate, 0, steps, x, y) for rate in rates}
        best = min(first, key=lambda rate: first[rate]["loss"])
        runs = [first[best], *(convolutional(make, best, s, steps, x, y) for s in seeds[1:])]
        losses = [run["loss"] for run in runs]
        yield {"method": name, "lr": best, "held-out loss": statistics.mean(losses)} | {
            "least": min(losses),
            "largest": max(losses),
            "accuracy": statistics.mean(run["accuracy"] for run in runs),
            "state of the convolutions": runs[0]["bytes"],
            "steps": steps,
        }


CONVOLUTIONAL: dict[str, Callable[[torch.nn.Module, float], torch.optim.Optimizer]] = {
    "SGD, momentum 0.9": lambda net, rate: torch.optim.SGD(
        net.parameters(), lr=10 * rate, momentum=0.9
    ),
    "AdamW": lambda net, rate: torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0),
    "LowRank, rank 8": lambda net, rate: LowRank(
        select(net, rank=8), torch.optim.AdamW, lr=rate, weight_decay=0.0, refresh_every=100
    ),
    "LowRankMomentum, rank 8": lambda net, rate: LowRankMomentum(
        select(net, rank=8), lr=rate, weight_decay=0.0
    ),
    "LowRankMomentum, rank 1": lambda net, rate: LowRankMomentum(
        select(net, rank=1), lr=rate, weight_decay=0.0
    ),
    "LowRankMuon, rank 8": lambda net, rate: LowRankMuon(
        select(net, rank=8), lr=rate, weight_decay=0.0
    ),
    "LowRankMuon, rank 0": lambda net, rate: LowRankMuon(
        select(net, rank=0), lr=rate, weight_decay=0.0
    ),
}


def convolutional(
    make: Callable[[torch.nn.Module, float], torch.optim.Optimizer],
    rate: float,
    seed: int,
    steps: int,
    x: torch.Tensor,
    y: torch.Tensor,
) -> Row:
    """One run: held-out loss and accuracy, and the bytes kept for the second and third weights."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.GELU(),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.GELU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(64, 128, 3, padding=1),
        torch.nn.GELU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 10),
    )
    optimizer = make(net, rate)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"])
            group["lr"] *= 0.5 * (1.0 + math.cos(math.pi * step / steps))
        batch = torch.randint(1200, (64,), generator=generator)
        loss = torch.nn.functional.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        told = net(x[1200:])
    held = sum(
        tensor.untyped_storage().nbytes()
        for weight in (net[2].weight, net[5].weight)
        for tensor in tensors_in(optimizer.state[weight])
    )
    return {
        "loss": float(torch.nn.functional.cross_entropy(told, y[1200:])),
        "accuracy": float((told.argmax(1) == y[1200:]).float().mean()),
        "bytes": held,
    }


def e11(asked: Asked) -> Iterator[Row]:
    """The protocol with one thing changed, each method at its best rates of the protocol."""
    for about, changes, options in OTHERWISE:
        protocol = replace(asked.protocol, **changes)
        if asked.quick:
            protocol = replace(protocol, steps=20)
        for method, rate in AT_BEST.items():
            numbers = train(Run(protocol, asked.name, method, rate, 0), **options)
            yield {
                "changed": about,
                "method": method,
                "lr": rate,
                "held-out loss": numbers["held_out"],
                "state of the matrices": numbers["state_bytes"],
                "seconds of the optimizer": numbers["optimizer_cpu_seconds"],
                "steps": numbers["steps_taken"],
            }


AT_BEST = {"adamw-0.1": 2e-2, "muon-0.5": 1e-2}
AT_BEST |= {"lowrank-muon-r8-0.5": 1e-2, "lowrank-muon-r0-0.5": 5e-3}
OTHERWISE: list[tuple[str, Row, dict[str, Any]]] = [
    ("300 steps, batch 16", {"steps": 300}, {}),
    ("300 steps, batch 64", {"steps": 300, "batch": 64}, {}),
    ("weight decay 0.1", {}, {"decay": 0.1}),
    ("bfloat16 weights", {"steps": 300}, {"dtype": torch.bfloat16}),
    ("2000 steps", {"steps": 2000}, {}),
]


# -- processes and files --------------------------------------------------------------------------


def in_processes(count: int, call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `call(rank, *arguments)` returns in new processes of one thread each."""
    # What torchao says while it is imported is kept quiet there too.
    quiet = {"initializer": logging.disable, "initargs": (logging.WARNING,)}
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), **quiet) as pool:
        asked = [pool.submit(alone, call, rank, *arguments) for rank in range(count)]
        return [each.result(timeout=PATIENCE) for each in asked]


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    return call(*arguments)


EXPERIMENTS: dict[str, Callable[[Asked], Iterator[Row]]] = {
    function.__name__: function for function in (e2, e3, e4, e5, e6, e7, e8, e9, e10, e11)
}


def perform(protocol: Protocol, corpus: str, only: str | None, *, large: bool) -> int:
    """Make the experiments, one file each; returns how many failed."""
    torch.set_num_threads(1)
    quick, failed = protocol.folder == "quick", 0
    asked = Asked(protocol, corpus, quick, large)
    for name, experiment in EXPERIMENTS.items():
        if not re.search(only or "", name):
            continue
        start = time.perf_counter()
        about = machine("galore-torch", "apollo-torch") | {
            "experiment": name,
            "question": (experiment.__doc__ or "").strip(),
            "corpus": asked.corpus.about(),
            "quick": quick,
        }
        try:
            rows = list(experiment(asked))
        except Exception as error:
            failed += 1
            print(f"{name} failed: {told(error)}", file=sys.stderr, flush=True)
            continue
        about |= {"wall_seconds": time.perf_counter() - start, "rows": rows}
        write_json(RESULTS / protocol.folder / "experiments" / f"{name}.json", about)
        print(f"{name}: {len(rows)} rows in {about['wall_seconds']:.0f} s", flush=True)
    return failed
