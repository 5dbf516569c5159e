"""Chunks: which weights are stepped together, and whether as one stack."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lowrank._operators.checks import as_rank
from lowrank.optim._options import Weight
from lowrank.optim._stacks import grouped_by

# Temporary arrays of the size of a weight, in single precision, that each kind of rounding needs.
OF_ROUNDING = {"nearest": 2, "compensated": 6, "stochastic": 10}
# Default bound on the bytes of temporary arrays in a step of weights of one shape; on a CPU at
# least those of the largest weight. On a GPU the bound is larger: launching an operation takes the
# host as long as the device needs for several weights.
TEMPORARY, TEMPORARY_ON_A_GPU = 2**24, 2**28


def similar_weights(
    weights: list[Weight], temporaries: int, copies: int, limit: int | None, *, alone: bool
) -> Iterator[tuple[Weight, ...]]:
    """Weights of the same group, shape, dtype, device and sharding, marked if they form a stack.

    A step needs `temporaries` arrays of the size of the coordinates, and `copies` of the gradient.
    `limit` bounds the bytes of temporary arrays.
    """
    largest = max((w.parameter.numel() * w.parameter.element_size() for w in weights), default=0)

    def kind(weight: Weight) -> Any:
        p = weight.parameter
        on_cpu = p.device.type == "cpu" and not copies
        own = weight.index if alone or (on_cpu and weight.policy.energy is not None) else None
        # as views, weights and transposed weights go together; in stacks they do not
        shape = (weight.k, weight.M) if on_cpu else (p.shape, weight.left)
        spread = weight.blocks.dim is not None and (weight.blocks, weight.left)
        return id(weight.group), shape, p.dtype, p.device, spread, own

    for same in grouped_by(weights, kind):
        first, on_cpu, most = same[0], same[0].parameter.device.type == "cpu", limit
        if most is None:
            most = max(TEMPORARY, largest) if on_cpu else TEMPORARY_ON_A_GPU
        wide = max(first.kept.itemsize, first.dtype.itemsize)
        size = first.rank * max(first.k, first.M) * wide * temporaries
        # arrays of the size of the weight: gradient, weight and others
        arrays = copies + OF_ROUNDING[first.rounding]
        whole = size + arrays * first.k * first.M * first.dtype.itemsize
        stacked = copies > 0 or (not on_cpu and first.blocks.dim is None and whole <= most)
        count = max(1, most // (whole if stacked else size))
        for start in range(0, len(same), count):
            yield tuple(replace(weight, stacked=stacked) for weight in same[start : start + count])


def largest_fraction(
    budget: int, weights: list[Weight], bytes_of: Callable[[Weight, int], int]
) -> float:
    """The largest fraction of k, at most 1/2, for which all states fit into the budget in bytes."""

    def needed(part: int) -> int:
        return sum(bytes_of(w, as_rank(part / parts, w.k, "budget_bytes")) for w in weights)

    parts = 2**51
    fitting = bisect_right(range(1, parts // 2 + 1), budget, key=needed)
    if fitting == 0:
        raise ValueError(
            f"`budget_bytes` must be at least {needed(1):,}, for rank 1 of each of "
            f"{len(weights)} parameters, got {budget:,}."
        )
    return fitting / parts
