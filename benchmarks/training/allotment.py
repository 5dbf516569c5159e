"""Ranks for every matrix from one budget of bytes, by what its gradients have in common.

The part of a gradient that is the same in all batches is the signal. Directions are bought one by
one, each for the matrix whose next one holds the largest share of its own signal per byte, until
the bytes of a uniform rank are spent. Signals are those of a model in the middle of its training,
which a user would not have before it: an allotment that adapts on the way can't know them better.
"""

import json
from dataclasses import asdict

import torch

from benchmarks import ROOT
from benchmarks.common.results import write_json
from benchmarks.training import data
from benchmarks.training.model import Shape, loss_of, short, split

BATCHES, STEPS = 48, 400
BATCH, CLIP = (16, 64), 1.0  # as the protocol has them


def allotted(corpus: str, rank: int) -> list[int]:
    """The ranks, as they are in a file that is made when it is first asked for."""
    path = ROOT / "benchmarks" / "results" / "training" / f"ranks-{corpus}.json"
    asked = {"rank": rank, "steps": STEPS, "batches": BATCHES, "model": asdict(Shape())}
    if not path.exists():
        found = shares_of_signal(corpus)
        write_json(path, asked | {"ranks": bought(found, rank)})
    content = json.loads(path.read_text("utf-8"))
    if any(content[key] != value for key, value in asked.items()):
        message = f"{path} is for {content}: move it away."
        raise SystemExit(message)
    ranks: list[int] = content["ranks"]
    return ranks


def shares_of_signal(corpus: str) -> list[tuple[tuple[int, int], torch.Tensor]]:
    """For every matrix its sides, short first, and the shares of its singular directions."""
    text = data.load(corpus)
    model, generator = Shape().build(0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    matrices = split(model).matrices
    for _ in range(STEPS):
        loss_of(model, text.batch(*BATCH, generator)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
    halves = []
    for _ in range(2):
        for _ in range(BATCHES // 2):
            loss_of(model, text.batch(*BATCH, generator)).backward()
        halves.append([p.grad / (BATCHES // 2) for p in matrices if p.grad is not None])
        optimizer.zero_grad()
    found = []
    for one, other in zip(*halves, strict=True):
        G, H = short(one), short(other)
        # What a direction of one half captures of the other is free of the noise of either.
        U = torch.linalg.svd(G, full_matrices=False)[0]
        signal = ((U.T @ G) * (U.T @ H)).sum(1).clamp(min=0)
        found.append(((G.shape[0], G.shape[1]), signal / signal.sum()))
    return found


def bought(found: list[tuple[tuple[int, int], torch.Tensor]], rank: int) -> list[int]:
    """Ranks of at least 1 that take no more than this uniform rank."""
    price = [k + 2 * M for (k, M), _ in found]
    left = sum(rank * each for each in price) - sum(price)
    ranks = [1] * len(found)
    while True:
        gains = [
            (float(shares[r]) / each, i)
            for i, ((_, shares), r, each) in enumerate(zip(found, ranks, price, strict=True))
            if r < len(shares) // 2 and each <= left
        ]
        if not gains:
            return ranks
        _, best = max(gains)
        ranks[best] += 1
        left -= price[best]
