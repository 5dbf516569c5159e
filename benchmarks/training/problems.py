"""Experiments on other problems: E5 a quadratic, E10 a small net, E11 the protocol changed."""

import importlib
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.training.methods import METHODS, Setting
from benchmarks.training.model import Parts, tensors_in
from benchmarks.training.run import Asked, Row, Run, train
from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon, select

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


def e10(asked: Asked) -> Iterator[Row]:
    """Handwritten digits of 8×8 pixels by a net of three convolutions; 597 of 1,797 held out."""
    digits = importlib.import_module("sklearn.datasets").load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16.0
    y = torch.tensor(digits.target)
    steps, seeds = (20, (0,)) if asked.quick else (300, (0, 1, 2))
    rates = (3e-3,) if asked.quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    for name, make in CONVOLUTIONAL.items():
        run = partial(convolutional, x, y, steps, make)
        first = {rate: run(rate, 0) for rate in rates}
        best = min(first, key=lambda rate: first[rate]["loss"])
        runs = [first[best], *(run(best, seed) for seed in seeds[1:])]
        losses = [each["loss"] for each in runs]
        yield {"method": name, "lr": best, "held-out loss": statistics.mean(losses)} | {
            "least": min(losses),
            "largest": max(losses),
            "accuracy": statistics.mean(each["accuracy"] for each in runs),
            "state of the convolutions": runs[0]["bytes"],
            "steps": steps,
        }


Make = Callable[[torch.nn.Module, float], torch.optim.Optimizer]


def ours(cls: type[torch.optim.Optimizer], rank: int, *inner: Any, **options: Any) -> Make:
    plain = {"weight_decay": 0.0, **options}
    return lambda net, rate: cls(select(net, rank=rank), *inner, lr=rate, **plain)


SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
CONVOLUTIONAL: dict[str, Make] = {
    "SGD, momentum 0.9": lambda net, rate: SGD(net.parameters(), lr=10 * rate, momentum=0.9),
    "AdamW": lambda net, rate: AdamW(net.parameters(), lr=rate, weight_decay=0.0),
    "LowRank, rank 8": ours(LowRank, 8, AdamW, refresh_every=100),
    "LowRankMomentum, rank 8": ours(LowRankMomentum, 8),
    "LowRankMomentum, rank 1": ours(LowRankMomentum, 1),
    "LowRankMuon, rank 8": ours(LowRankMuon, 8),
    "LowRankMuon, rank 0": ours(LowRankMuon, 0),
}


def convolutional(
    x: torch.Tensor, y: torch.Tensor, steps: int, make: Make, rate: float, seed: int
) -> Row:
    """One run: held-out loss and accuracy, and the bytes kept for the second and third weights."""
    torch.manual_seed(seed)
    nn = torch.nn
    first, second, third = (
        nn.Conv2d(of, to, 3, padding=1) for of, to in ((1, 32), (32, 64), (64, 128))
    )
    parts = [first, nn.GELU(), second, nn.GELU(), nn.MaxPool2d(2), third, nn.GELU()]
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    net = nn.Sequential(*parts)
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
        for weight in (second.weight, third.weight)
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
