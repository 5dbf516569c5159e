"""The rank that a tolerance needs: singular values, cut where the left-over budget allows."""

import math
from typing import Any

from lowrank._array import Array, array_namespace, device_of, eps
from lowrank.results import Status

__all__ = ["GOAL", "MARGIN", "tails", "trim"]

# Columns of the basis beyond a cap, before the truncation: those of one look, multiplied anyway.
MARGIN = 64
# The part of the tolerance that the basis aims at; the truncation spends the rest.
GOAL = 0.5
# ‖A‖² − ‖B‖² is known to this many eps ‖A‖²: the orthogonality of Q and the summation of both.
ENERGY_ROUNDING = 4096.0


def trim(
    outcome: dict[str, Any],
    S: Array,
    norm: str,
    cap: int | None,
    *,
    floor: float,
    rounding: float,
    norm_is_exact: bool,
    hermitian: bool = False,
) -> dict[str, Any]:
    """The outcome after cutting B to the smallest rank that keeps the tolerance.

    `floor` is the part of the bound that stands for rounding, and `rounding` what the small
    decomposition adds to it; `norm_is_exact` tells that the norm of A in the outcome is that in the
    Frobenius norm, and no lower bound.

    Both parts of the error are orthogonal: ``‖A − Q B_r‖² = ‖A − QQᴴA‖² + ‖B − B_r‖²`` in the
    Frobenius norm, and ``≤`` in the spectral norm. The second part is known from the singular
    values `S` of B; the first has a bound from the certificate and, in the Frobenius norm, another
    from the energies, ``‖A‖² − ‖B‖²``, sharp while it is far above rounding. Rounding adds to both.

    A `hermitian` A is projected from both sides, with ``T = QᴴAQ`` in place of B and the absolute
    values of its eigenvalues as S. With ``E = A − QQᴴA``, ``A − Q T_r Qᴴ`` has the orthogonal parts
    E, ``F = QQᴴA(I − QQᴴ)``, no larger than E, and ``D = Q(T − T_r)Qᴴ``. In the spectral norm too
    ``‖E + F + D‖² ≤ 2 ‖E‖² + ‖D‖²``: the range of E is orthogonal to that of F + D, and F and D
    act on orthogonal spaces.
    """
    if outcome["error"] is None:  # the test matrix had no columns for a single look
        return outcome
    xp, k, epsilon = array_namespace(S), int(S.shape[0]), eps(S)
    largest = float(S[0]) if k else 0.0
    # by an array: a GPU divides by a number through its reciprocal, which may overflow
    errors = tails(S / S[:1] if largest > 0 else S, norm)
    norm_A, tolerance = outcome["norm_A"], outcome["tolerance"]
    residual = max(0.0, outcome["error_bound"] - floor)
    floor = (1 + hermitian) * floor + rounding  # a projection from each side
    sides = math.sqrt(2.0) if hermitian else 1.0
    residual, estimate = sides * residual, sides * outcome["error"]
    if norm_is_exact and norm_A > 0:
        share = largest * float(errors[0]) / norm_A
        energy = max(0.0, (1.0 - share) * (1.0 + share)) + ENERGY_ROUNDING * epsilon
        residual = min(residual, norm_A * math.sqrt(energy))

    rank = k
    if largest > 0 and residual + floor <= tolerance:
        room = tolerance - floor
        budget = math.sqrt(max(0.0, room - residual)) * math.sqrt(room + residual)
        # a few eps short, since these errors are rounded in the dtype of S
        cut = budget / largest * (1 - 8 * epsilon)
        rank = int(xp.sum(xp.astype(errors > cut, xp.int32)))
    if cap is not None:
        rank = min(rank, cap)
    tail = largest * float(errors[rank])
    bound = math.hypot(residual, tail) + floor
    error = math.hypot(min(estimate, residual), tail)
    if rank == 0 and norm_is_exact:  # the error is the norm itself, whatever is lost in B
        error, bound = norm_A, min(bound, norm_A * (1.0 + 32.0 * epsilon))
    status = outcome["status"]
    if bound <= tolerance:
        status = Status.CONVERGED
    elif rank == cap:
        status = Status.RANK_REACHED
    elif status is Status.CONVERGED:  # the basis did; the rounding of the SVD stands in the way
        status = Status.PRECISION_FLOOR
    return outcome | {
        "rank": rank,
        "status": status,
        "converged": bound <= tolerance,
        "error": error,
        "error_bound": bound,
    }


def tails(S: Array, norm: str) -> Array:
    """Error of truncating at each rank 0, …, k: norms of what is cut off."""
    xp = array_namespace(S)
    nothing = xp.zeros((1,), dtype=S.dtype, device=device_of(S))
    if norm == "spectral":
        return xp.concat([S, nothing])
    # summed from the smallest on
    return xp.concat([xp.sqrt(xp.flip(xp.cumulative_sum(xp.flip(S) ** 2))), nothing])
