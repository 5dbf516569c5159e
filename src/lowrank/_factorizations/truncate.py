"""The truncation of all factorizations: the smallest rank for a tolerance, and its error."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lowrank._array import Array, array_namespace, eps, flushes, safe_norm
from lowrank._linalg.certificate import rounding_floor
from lowrank._linalg.panel import defect
from lowrank._linalg.small_svd import TOO_LARGE, tails
from lowrank._operators import Operator, of_row_blocks
from lowrank._rangefinder.basis import subtract_product
from lowrank._rangefinder.estimates import NEAR
from lowrank._rangefinder.found import Found
from lowrank._rangefinder.residuals import FullSVD, energy_error
from lowrank._rangefinder.sampling import measured
from lowrank._rangefinder.state import epsilon_of
from lowrank.results import Outcome, Status


def truncated(
    found: Found, S: Array, cap: int | None, *, residual: float, estimate: float, floor: float
) -> Outcome:
    """The outcome after truncating B to the smallest rank that meets the tolerance.

    The two parts of the error are orthogonal: ``‖A − Q B_r‖² = ‖A − QQᴴA‖² + ‖B − B_r‖²`` in the
    Frobenius norm, and ``≤`` in the spectral norm. The first part is at most `residual`, and its
    estimate is `estimate`; the second follows from the singular values `S` of B. Rounding adds
    `floor`. If the Frobenius norm of A is known exactly, it is the error of rank 0.
    """
    outcome = found.outcome
    if outcome.error is None or outcome.tolerance is None:  # the test matrix ran out of columns
        return outcome
    errors, largest = relative_tails(S, found.problem.norm)
    tolerance, rank = outcome.tolerance, int(S.shape[0])
    if residual + floor <= tolerance:
        limit = tolerance - floor
        budget = math.sqrt(max(0.0, limit - residual)) * math.sqrt(limit + residual)
        rank = rank_within(errors, budget / largest) if largest > 0 else rank
    if cap is not None:
        rank = min(rank, cap)
    tail = largest * float(errors[rank])
    bound, error = math.hypot(residual, tail) + floor, math.hypot(min(estimate, residual), tail)
    return with_bound(found, rank, cap, error, bound)


def relative_tails(S: Array, norm: str) -> tuple[Array, float]:
    """The error of each rank 0, …, k over the largest of the singular values S, and the latter."""
    largest = float(S[0]) if S.shape[0] else 0.0
    # divided by an array: a GPU divides by a number through its reciprocal, which may overflow
    return tails(S / S[:1] if largest > 0 else S, norm), largest


def rank_within(errors: Array, budget: float) -> int:
    """The smallest rank with an error of at most `budget`."""
    xp = array_namespace(errors)
    # a few eps less, because `errors` are rounded
    return int(xp.sum(xp.astype(errors > budget * (1 - 8 * eps(errors)), xp.int32)))


def with_bound(found: Found, rank: int, cap: int | None, error: float, bound: float) -> Outcome:
    """The outcome of an approximation of this rank, with this error."""
    outcome = found.outcome
    assert outcome.tolerance is not None
    if rank == 0 and found.norm_is_exact and not flushes(found.state.A.empty(0)):
        # the error is the norm of A, whatever the rounding in later steps
        error = outcome.norm_A or 0.0
        bound = min(bound, error * (1.0 + 32.0 * epsilon_of(found.state)))
    status, converged = outcome.status, bound <= outcome.tolerance
    if converged:
        status = Status.CONVERGED
    elif rank == cap:
        status = Status.RANK_REACHED
    elif status in (Status.CONVERGED, Status.RANK_REACHED):
        # the basis met the tolerance, but rounding in later steps did not allow it
        status = Status.PRECISION_FLOOR
    outcome = replace(outcome, rank=rank, status=status, converged=converged)
    return replace(outcome, error=min(error, bound), error_bound=bound)


def distance(A: Operator, L: Array, T: Array, scale: float) -> float:
    """``‖A − L T/scale‖_F``, computed by blocks of rows."""
    m, n = A.shape

    def difference(part: slice) -> Array:
        return subtract_product(A.rows(part) * scale, L[part, :], T)

    rows = max(1, max(2**16, m * n // 16) // max(1, n))
    norm: Any = of_row_blocks(difference, (m, n), rows, like=L).norm
    return norm() / scale


def is_near_rounding(found: Found) -> bool:
    """Whether the bound is so small that rounding in later steps matters.

    Not if the domain is sharded over processes: other products make the factors then.
    """
    outcome, A = found.outcome, found.state.A
    if outcome.error_bound is None or outcome.error is None or A.domain is not None:
        return False
    size = outcome.norm_A or 0.0
    drift = found.state.drift * max(size, found.state.frobenius or 0.0)
    near = max(drift, NEAR * eps(A.empty(0)) * size)
    return 0.0 < outcome.error_bound <= 2.0 * near


def with_rounding(
    found: Found, cap: int | None, U: Array, S: Array, Vh: Array
) -> tuple[Array, Array, Array, Outcome]:
    """The factors, and the outcome with the error of their product, if the bound is near rounding.

    Reflectors drift if sums are biased. In the Frobenius norm, if A is still in memory,
    ``‖A − U diag(S) Vh‖`` is computed. Its own rounding is at most ``½ eps √(r + 8) ‖A‖`` for the
    product (see `skeleton.lost_in`), and ½ eps ‖A‖ each for ``U diag(S)``, and ``diag(S) Vh`` in
    `qb`. That is less than the rounding floor of the basis, so that fewer columns may meet the
    tolerance. Otherwise the departure of U from orthonormality is added to the bound: the product
    differs by about ``U (UᴴU − I) diag(S)`` from the matrix that was bounded. S may hold
    eigenvalues.
    """
    outcome, state, epsilon = found.outcome, found.state, eps(S)
    bound, size = outcome.error_bound, outcome.norm_A
    if not is_near_rounding(found) or bound is None or outcome.error is None or not size:
        return U, S, Vh, outcome
    is_svd = isinstance(state.residual, FullSVD)  # the bound of which includes its rounding
    if outcome.certificate != "exact" or state.is_overwritten or found.problem.norm != "fro":
        drift = 0.0 if is_svd else float(safe_norm(defect(U) * S))
        outcome = with_bound(found, outcome.rank, cap, outcome.error, bound + drift)
        return U, S, Vh, outcome
    more = 1.0 + 32.0 * epsilon
    rounding = 0.5 * epsilon * (math.sqrt(outcome.rank + 8) + 2.0) * size

    def of_rank(r: int) -> Outcome:
        L = U[:, :r] * (S[:r] * state.explicit_scale)
        error = distance(state.A, L, Vh[:r, :], state.explicit_scale)
        return with_bound(found, r, cap, error, error * more + rounding)

    tolerance = outcome.tolerance or 0.0
    # with a full SVD, only if the tolerance is in reach, and rounding is a large part of it
    if is_svd and not rounding < tolerance < 4.0 * found.floor:
        return U, S, Vh, outcome
    outcome = of_rank(outcome.rank)
    error, limit = outcome.error or 0.0, (tolerance - rounding) / more
    errors, largest = relative_tails(array_namespace(S).abs(S), "fro")
    for share in (1.0, 0.9):  # the second if the rounding errors of columns add up
        if not error < limit or largest == 0.0:
            break
        budget = share * math.sqrt(limit - error) * math.sqrt(limit + error)
        r = rank_within(errors, budget / largest)
        shorter = of_rank(r) if r < outcome.rank else outcome
        if shorter.converged:
            outcome = shorter
            break
    r = outcome.rank
    return U[:, :r], S[:r], Vh[:r, :], outcome


def parts_of(found: Found, captured: Callable[[], float] | None = None) -> tuple[float, float]:
    """A bound on ``‖A − QQᴴA‖``, without the part for rounding, and its estimate.

    If it was sampled, but ‖A‖_F is known, the energies may give a smaller bound: `captured` is
    ‖B‖.
    """
    outcome = found.outcome
    if outcome.error is None or outcome.error_bound is None:
        return math.inf, math.inf
    residual, estimate = max(0.0, outcome.error_bound - found.floor), outcome.error
    if captured is not None and found.norm_is_exact and outcome.norm_A:
        share = captured() / outcome.norm_A
        left = (1.0 - share) * (1.0 + share)
        residual = min(residual, energy_error(found.state.A, outcome.norm_A, left).bound)
    return residual, min(estimate, residual)


def at_fixed_rank(found: Found, norm_of_it: Callable[[int], float]) -> Outcome:
    """The outcome of an approximation of a fixed rank, with its error if energies give it.

    ``‖A − A_r‖² = ‖A‖² − ‖A_r‖²`` for the projection A_r, down to the rounding of the difference.
    """
    problem, state, outcome, A = found.problem, found.state, found.outcome, found.state.A
    if problem.norm != "fro" or A.norm is None or A.is_stack or not problem.check_finite:
        return outcome
    norm = (state if state.frobenius is not None else measured(problem, state)).frobenius or 0.0
    outcome = replace(outcome, norm_A=norm, passes=problem.work.passes)
    captured = norm_of_it(outcome.rank)
    if not math.isfinite(captured):
        raise ValueError(TOO_LARGE)
    share = captured / norm if norm > 0.0 else 1.0
    error, bound = energy_error(A, norm, (1.0 - share) * (1.0 + share))
    bound += rounding_floor(A.empty(0), A.shape, outcome.rank, norm)
    return replace(outcome, error=error, error_bound=bound, certificate="energy")
