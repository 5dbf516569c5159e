"""A small network whose weights have sharded long and short sides, and empty shards."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon

BATCH = 32


def network() -> torch.nn.Module:
    """Weights 6×(4·3), 10×24, 10×10 twice, 2×10, 3×2, 24×3 and 5×24, and vectors."""
    torch.manual_seed(3)
    sizes = ((24, 10), (10, 10), (10, 10), (10, 2), (2, 3), (3, 24), (24, 5))
    layers: list[torch.nn.Module] = [torch.nn.Conv1d(4, 6, 3), torch.nn.Flatten()]
    for n, m in sizes:
        layers += [torch.nn.Tanh(), torch.nn.Linear(n, m)]
    return torch.nn.Sequential(*layers).double()


def sharded(model: torch.nn.Module, mesh: Any = None, *, by_layer: bool = False) -> torch.nn.Module:
    """A copy of the model under FSDP2, which gathers it at once or layer by layer."""
    model = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),)) if mesh is None else mesh
    for layer in model if by_layer else ():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def momentum(parameters: Any, **options: Any) -> LowRankMomentum:
    return LowRankMomentum(parameters, rank=0.4, lr=0.05, **options)


def muon(parameters: Any, **options: Any) -> LowRankMuon:
    return LowRankMuon(parameters, **{"rank": 0.4, "lr": 0.02, **options})


def around_adamw(parameters: Any, **options: Any) -> LowRank:
    options = {"rank": 0.4, "lr": 0.02, "refresh_every": 7, **options}
    return LowRank(parameters, torch.optim.AdamW, **options)


def batch(step: int, *, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a step: all, or the part of this rank."""
    numbers = torch.Generator().manual_seed(step)
    X = torch.randn(BATCH, 4, 6, generator=numbers, dtype=torch.float64)
    Y = torch.stack([X.mean((1, 2)), *X[:, :, 0].sin().unbind(1)], 1)
    if whole:
        return X, Y
    count, rank = distributed.get_world_size(), distributed.get_rank()
    return X.chunk(count)[rank], Y.chunk(count)[rank]


def train(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    *,
    whole: bool,
    before: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The losses of the whole batch at every step."""
    losses = []
    for step in steps:
        X, Y = batch(step, whole=whole)
        loss = torch.nn.functional.mse_loss(model(X), Y)
        loss.backward()
        if before is not None:
            before(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    found = torch.stack(losses)
    if not whole:
        distributed.all_reduce(found)
        found /= distributed.get_world_size()
    return found


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [
        (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for p in model.parameters()
    ]


def assert_alike(found: Any, wanted: Any, *, rtol: float = 1e-7) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol)


def gathered(X: torch.Tensor) -> list[torch.Tensor]:
    """A tensor of the same shape on every rank, as each has it."""
    every = [torch.empty_like(X) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, X.contiguous())
    return every
