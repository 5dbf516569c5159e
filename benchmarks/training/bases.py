"""Experiments on bases: E2 their seconds, E3 and E4 what they capture of gradients."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.common.measuring import interleaved
from benchmarks.training.methods import METHODS, Setting
from benchmarks.training.model import Shape, loss_of, short, split
from benchmarks.training.run import Asked, Protocol, Row
from lowrank.compress import Subspace


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
