"""Chunks: which weights are stepped together, and whether as one stack."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lowrank._check import as_rank
from lowrank.optim._options import Weight
from lowrank.optim._stacks import grouped_by

# Temporary arrays of the size of a weight, in single precision, that each kind of rounding needs.
OF_ROUNDING = {"nearest": 2, "compensated": 6, "stochastic": 10}
# Default bound on the bytes of temporary arrays in a step of weights of one shape; on a CPU at
# least those of the largest weight. On a GPU the bound is larger: launching an operation takes the
# host as long as the device needs for several weights.
TEMPORARY, TEMPORARY_ON_A_GPU = 2**24, 2**28


@dataclass(frozen=True)
class Chunk:
    """Compressed parameters of one group and shape, stepped together."""

    group: int
    weights: tuple[Weight, ...]
    stacked: bool  # whether their gradients form one tensor


def similar_weights(
    weights: list[tuple[int, Weight]], *, alone: bool, as_stacks: bool
) -> Iterable[tuple[int, list[Weight]]]:
    """Lists of weights with the same group, shape, dtype, device and sharding."""

    def kind(item: tuple[int, Weight]) -> Any:
        number, weight = item
        p = weight.parameter
        on_cpu = p.device.type == "cpu" and not as_stacks
        own = weight.index if alone or (on_cpu and weight.policy.energy is not None) else None
        # as views, weights and transposed weights go together; in stacks they do not
        shape = (weight.k, weight.M) if on_cpu else (p.shape, weight.left)
        spread = weight.blocks, weight.blocks is not None and weight.left
        return number, shape, p.dtype, p.device, spread, own

    return [(part[0][0], [weight for _, weight in part]) for part in grouped_by(weights, kind)]


def plan(
    first: Weight,
    group: dict[str, Any],
    temporaries: int,
    copies: int,
    temporary_bytes: int | None,
    largest: int,
) -> tuple[bool, int]:
    """Whether weights like the first are stepped as a stack, and how many at a time.

    A step needs `temporaries` arrays of the size of the coordinates, and `copies` of the gradient.
    `largest` is the size of the largest weight in bytes.
    """
    wide = getattr(torch, group["state_dtype"] or "float16").itemsize
    size = first.rank * max(first.k, first.M) * max(wide, first.dtype.itemsize) * temporaries
    on_cpu, limit = first.parameter.device.type == "cpu", temporary_bytes
    if limit is None:
        limit = max(TEMPORARY, largest) if on_cpu else TEMPORARY_ON_A_GPU
    half = first.parameter.dtype != first.dtype
    # arrays of the size of the weight: gradient, weight and others
    arrays = copies + OF_ROUNDING[group["rounding"] if half else "nearest"]
    whole = size + arrays * first.k * first.M * first.dtype.itemsize
    stacked = copies > 0 or (not on_cpu and first.blocks is None and whole <= limit)
    return stacked, max(1, limit // (whole if stacked else size))


def largest_fraction(
    budget: int, weights: list[tuple[Weight, dict[str, Any]]], bytes_of: Callable[..., int]
) -> float:
    """The largest fraction of k, at most 1/2, for which all states fit into the budget in bytes."""

    def needed(fraction: float) -> int:
        return sum(
            bytes_of(weight, as_rank(fraction, weight.k, "budget_bytes"), group)
            for weight, group in weights
        )

    low, high = 0.0, 0.5
    if not weights or needed(high) <= budget:
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if needed(middle) <= budget else (low, middle)
    if low == 0.0:
        raise ValueError(
            f"`budget_bytes` must be at least {needed(1e-9):,}, for rank 1 of each of "
            f"{len(weights)} parameters, got {budget:,}."
        )
    return low


def parameters_of(worker: Chunk | torch.optim.Optimizer) -> list[torch.Tensor]:
    if isinstance(worker, Chunk):
        return [weight.parameter for weight in worker.weights]
    return [p for group in worker.param_groups for p in group["params"]]
