"""When a growing basis is good enough: rank, relative and absolute tolerance, first one met."""

import math
from dataclasses import dataclass
from typing import Any

from lowrank._check import as_count
from lowrank.results import Look, Status

__all__ = ["StopRule"]


@dataclass(frozen=True, slots=True)
class StopRule:
    """Stop when the bound is below ``goal · max(rtol · ‖A‖, atol)``, or at `cap` columns.

    A basis of `full` columns, min(m, n), cannot grow either.
    """

    rtol: float
    atol: float
    cap: int | None
    full: int
    goal: float

    @classmethod
    def parse(
        cls,
        *,
        rtol: float | None,
        atol: float | None,
        rank: int | None,
        full: int,
        goal: float = 1.0,
    ) -> "StopRule":
        if rtol is None and atol is None:
            message = "a tolerance is needed: give `rtol` (relative to the norm of `A`) or `atol`."
            raise ValueError(message)
        cap = None if rank is None else as_count(rank, "rank")
        return cls(_tolerance(rtol, "rtol"), _tolerance(atol, "atol"), cap, full, goal)

    @property
    def limit(self) -> int:
        return self.full if self.cap is None else min(self.cap, self.full)

    def tolerance(self, norm_A: float) -> float:
        return max(self.atol, self.rtol * norm_A)  # of a norm that is NaN, not known, atol is left

    def decide(self, look: Look, rank: int, norm_A: float, floor: float) -> Status | None:
        """Status to stop with after `look`, or None to go on.

        `look` is the newest; it may be about a basis of fewer columns than `rank`, whose error is
        then at least that of the basis at hand. `floor` is the rounding error of the basis.
        """
        goal = self.goal if look.rank else 1.0  # without a basis there is nothing to trim
        if look.bound <= goal * self.tolerance(norm_A):
            return Status.CONVERGED
        if look.rank < rank:
            return None
        # The sampled part of the bound is down to the part for rounding: columns added from here
        # on are noise, and would not lower the bound by more than a half.
        if look.bound <= 2.0 * floor:
            return Status.PRECISION_FLOOR
        if rank >= self.limit:
            return Status.RANK_REACHED if self.limit == self.cap else Status.FULL_RANK
        return None


def _tolerance(value: Any, name: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, str | bytes):
        message = f"`{name}` must be a number, got {value!r}."
        raise TypeError(message)
    if not 0.0 <= value < math.inf:
        message = f"`{name}` must be a finite number that is not negative, got {value!r}."
        raise ValueError(message)
    return float(value)
