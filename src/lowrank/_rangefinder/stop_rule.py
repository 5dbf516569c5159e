"""When a growing basis is good enough: rank, relative and absolute tolerance, first one met."""

import math
from dataclasses import dataclass
from typing import Any

from lowrank._check import as_count
from lowrank.results import Look, Status


@dataclass(frozen=True, slots=True)
class StopRule:
    """Stop when the bound is below ``max(rtol · ‖A‖, atol)``, or at `cap` columns.

    A basis of `full` columns, min(m, n), cannot grow either.
    """

    rtol: float
    atol: float
    cap: int | None
    full: int

    @classmethod
    def parse(
        cls, *, rtol: float | None, atol: float | None, rank: int | None, full: int
    ) -> "StopRule":
        if rtol is None and atol is None:
            raise ValueError(
                "a tolerance is needed: give `rtol` (relative to the norm of `A`) or `atol`."
            )
        cap = None if rank is None else as_count(rank, "rank")
        return cls(_tolerance(rtol, "rtol"), _tolerance(atol, "atol"), cap, full)

    @property
    def limit(self) -> int:
        return self.full if self.cap is None else min(self.cap, self.full)

    def tolerance(self, norm_A: float | None) -> float:
        """The absolute tolerance; of a norm that is not known yet, `atol` is left."""
        return self.atol if norm_A is None else max(self.atol, self.rtol * norm_A)

    def decide(
        self, look: Look, tolerance: float, floor: float, *, is_falling: bool = False
    ) -> Status | None:
        """Status to stop with after the newest `look`, or None to go on.

        `tolerance` may be a part of that of the rule, where a truncation spends the rest. `floor`
        is the rounding error of the basis. An error that is known, and `is_falling`, is no noise.
        """
        if look.bound <= tolerance:
            return Status.CONVERGED
        # The rest of the bound is down to the part for rounding: columns added from here on are
        # noise, and would not lower the bound by more than a half.
        if look.bound <= 2.0 * floor and not (is_falling and floor < tolerance):
            return Status.PRECISION_FLOOR
        if look.rank >= self.limit:
            return Status.RANK_REACHED if self.limit == self.cap else Status.FULL_RANK
        return None


def _tolerance(value: Any, name: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, str | bytes):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not 0.0 <= value < math.inf:
        raise ValueError(f"`{name}` must be a finite number that is not negative, got {value!r}.")
    return float(value)
