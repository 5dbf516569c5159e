"""The options of the range finder, and its state: each step makes a new state."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowrank._array import Array
from lowrank._operators import Operator
from lowrank._operators.checks import as_count
from lowrank._operators.sketch import TestMatrix
from lowrank._rangefinder.basis import Basis
from lowrank._rangefinder.residuals import Explicit, FullSVD, Residual, Sampled
from lowrank.results import Look, Outcome, Status


@dataclass(frozen=True, slots=True)
class StopRule:
    """Stop when the error bound is at most ``max(rtol · ‖A‖, atol)``, or at `cap` columns.

    A basis of `full` = min(m, n) columns cannot grow either.
    """

    rtol: float
    atol: float
    cap: int | None
    full: int

    @classmethod
    def parse(
        cls, A: Operator, *, rtol: float | None, atol: float | None, rank: int | None
    ) -> "StopRule":
        if rtol is None and atol is None:
            raise ValueError(
                "a tolerance is needed: give `rtol` (relative to the norm of `A`) or `atol`."
            )
        cap = None if rank is None else as_count(rank, "rank")
        rule = cls(_tolerance(rtol, "rtol"), _tolerance(atol, "atol"), cap, min(A.shape[-2:]))
        if A.is_stack:
            raise ValueError(
                f"a tolerance needs a single matrix, got a stack of shape {A.shape}; give a `rank` "
                "alone, or loop over the matrices."
            )
        return rule

    @property
    def limit(self) -> int:
        return self.full if self.cap is None else min(self.cap, self.full)

    def tolerance(self, norm_A: float | None) -> float:
        """The absolute tolerance; `atol` alone where the norm is not known yet."""
        return self.atol if norm_A is None else max(self.atol, self.rtol * norm_A)

    def decide(
        self, look: Look, tolerance: float, floor: float, *, is_falling: bool = False
    ) -> Status | None:
        """Status to stop with after the newest estimate `look`, or None to go on.

        `tolerance` may be smaller than the tolerance of the rule, if a truncation spends the
        rest. `floor` is the rounding error of the basis. A known error that `is_falling` is not
        noise yet.
        """
        if look.bound <= tolerance:
            return Status.CONVERGED
        # At least half of the bound stands for rounding. More columns would be noise, and would
        # at best halve the bound.
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


class Work:
    """Counts the passes over A, and the columns multiplied in them."""

    def __init__(self) -> None:
        self.passes = self.products = 0

    def add(self, columns: int) -> None:
        self.passes += 1
        self.products += columns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """The options, the source of test matrices, and the count of the work."""

    norm: str
    failure_probability: float
    power_iterations: int | None
    krylov: bool
    block_size: int | None
    certificate: str
    overwrite_a: bool
    hermitian: bool
    check_finite: bool
    callback: Callable[[Look], object] | None
    source: TestMatrix
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A basis, and what is known of its error. Norms, estimates and tolerances are those of A."""

    A: Operator  # scaled; with the library, dtype and device of its products
    residual: Residual | FullSVD
    scale: float = 1.0  # of A: a power of two; not 1 only where products would overflow
    explicit_scale: float = 1.0  # of an explicit residual: makes ‖A‖_F about one
    is_overwritten: bool = False  # the memory of A holds HᴴA, or did when work was interrupted
    drift: float = 0.0  # error relative to ‖A‖ because reflectors are not exactly unitary
    is_salted: bool = False  # whether the seed of test matrices depends on a product with A
    frobenius: float | None = None  # ‖A‖_F, if it was measured
    norm_A: float | None = None  # in the chosen norm, or a lower bound
    norm_above: float | None = None  # an upper bound, if ‖A‖_F is sampled
    estimated: Any = None  # the residual that the last estimate is of
    checked: Any = None  # the same, once its bound is checked next to rounding
    pending: Array | None = None  # the sample of that estimate, which may join the basis
    history: tuple[Look, ...] = ()
    sampled_estimates: int = 0
    rule: StopRule | None = None
    status: Status = Status.RANK_REACHED

    @property
    def rank(self) -> int:
        return self.residual.basis.rank

    @property
    def tolerance(self) -> float | None:
        return None if self.rule is None else self.rule.tolerance(self.norm_A)

    @property
    def full(self) -> int:
        return min(self.A.shape[-2:])

    @property
    def measured_scale(self) -> float:
        """The scale of norms of the residual."""
        explicit = isinstance(self.residual, Explicit | FullSVD)
        return self.explicit_scale if explicit else self.scale


def start(A: Operator) -> State:
    return State(A=A, residual=Sampled(A, Basis(A.empty(A.shape[-2]))))


def outcome_of(problem: Problem, state: State) -> Outcome:
    """The attributes of a result for the basis found so far."""
    look, tolerance = state.history[-1] if state.history else None, state.tolerance
    converged = None if tolerance is None else look is not None and look.bound <= tolerance
    return Outcome(
        status=Status.CONVERGED if converged else state.status, converged=converged,
        tolerance=tolerance, norm=problem.norm, norm_A=state.norm_A, rank=state.rank,
        error=None if look is None else look.estimate,
        error_bound=None if look is None else look.bound,
        certificate=None if look is None else state.residual.certificate,
        passes=problem.work.passes, products=problem.work.products, history=state.history,
    )  # fmt: skip


def epsilon_of(state: State) -> float:
    return float(state.A.xp.finfo(state.A.dtype).eps)
