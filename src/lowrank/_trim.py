"""The rank that a tolerance needs: SVD of B = QᴴA, cut where the left-over budget allows."""

import math
from typing import Any, NamedTuple

import numpy as np

from lowrank._array import Array, adjoint, array_namespace, device_of, eps, safe_norm
from lowrank._check import as_block_size
from lowrank._sketch import gaussian_source
from lowrank.certificate import rounding_floor
from lowrank.householder import reflect
from lowrank.results import Status

__all__ = ["GOAL", "MARGIN", "SmallSVD", "small_svd", "trim"]

# Columns of the basis beyond a cap, before the truncation: those of one look, multiplied anyway.
MARGIN = 64
# The part of the tolerance that the basis aims at; the truncation spends the rest.
GOAL = 0.5
# ‖A‖² − ‖B‖² is known to this many eps ‖A‖²: the orthogonality of Q and the summation of both.
ENERGY_ROUNDING = 4096.0
# Rotations to try where an SVD does not converge.
TURNS = 5


class SmallSVD(NamedTuple):
    """``B = Rᴴ Pᴴ`` with P (n×k) orthonormal, and ``Rᴴ = U diag(S) W``, all k×k."""

    R: Array
    U: Array
    S: Array
    W: Array
    P: Array


def small_svd(C: Array) -> SmallSVD:
    """SVD of ``B = Cᴴ`` through the QR of the tall n×k matrix C."""
    factor = reflect(C, as_block_size(None, C))
    U, S, W = _svd(adjoint(factor.R))
    return SmallSVD(factor.R, U, S, W, factor.thin())


def _svd(M: Array) -> tuple[Array, Array, Array]:
    """SVD of a square matrix, turned by a random rotation where the library's does not converge.

    LAPACK's gesdd gives up on some finite matrices with clustered singular values, depending on
    the number of threads (numpy issue 11887, OpenBLAS issue 3044; 600 columns of the "steps"
    spectrum at κ = 1e10 are one). A rotation is backward stable and gives it another matrix to try.
    """
    xp = array_namespace(M)
    rotation = None
    for attempt in range(TURNS + 1):
        try:
            if rotation is None:
                U, S, W = xp.linalg.svd(M, full_matrices=False)
                return U, S, W
            U, S, W = xp.linalg.svd(M @ rotation, full_matrices=False)
            return U, S, W @ adjoint(rotation)
        except (np.linalg.LinAlgError, RuntimeError):  # torch's is a RuntimeError
            if attempt == TURNS:
                raise
            draw = gaussian_source(attempt, xp, device_of(M))
            rotation = reflect(draw(tuple(M.shape), M.dtype), as_block_size(None, M)).thin()
    raise AssertionError


def trim(outcome: dict[str, Any], small: SmallSVD, norm: str, cap: int | None) -> dict[str, Any]:
    """The outcome after cutting B to the smallest rank that keeps the tolerance.

    Both parts of the error are orthogonal: ``‖A − Q B_r‖² = ‖A − QQᴴA‖² + ‖B − B_r‖²`` in the
    Frobenius norm, and ``≤`` in the spectral norm. The second part is known from the singular
    values `S` of B; the first has a bound from the certificate and, in the Frobenius norm, another
    from the energies, ``‖A‖² − ‖B‖²``, sharp while it is far above rounding. Rounding adds to both;
    that of the small SVD is measured, since the libraries' differ (gesdd leaves up to 40 eps).
    """
    S = small.S
    xp, k, epsilon = array_namespace(S), int(S.shape[0]), eps(S)
    largest = float(S[0]) if k else 0.0
    tails = _tails(S / largest if largest > 0 else S, norm)
    norm_A, tolerance = outcome["norm_A"], outcome["tolerance"]
    floor = rounding_floor(epsilon, k, norm_A)
    residual = max(0.0, outcome["error_bound"] - floor)
    floor += float(safe_norm(adjoint(small.R) - (small.U * xp.astype(S, small.U.dtype)) @ small.W))
    if norm == "fro" and norm_A > 0:
        share = largest * float(tails[0]) / norm_A
        energy = max(0.0, (1.0 - share) * (1.0 + share)) + ENERGY_ROUNDING * epsilon
        residual = min(residual, norm_A * math.sqrt(energy))

    rank = k
    if largest > 0 and residual + floor <= tolerance:
        room = tolerance - floor
        budget = math.sqrt(room - residual) * math.sqrt(room + residual)
        # a few eps short, since the tails are rounded in the dtype of S
        cut = budget / largest * (1 - 8 * epsilon)
        rank = int(xp.sum(xp.astype(tails > cut, xp.int32)))
    if cap is not None:
        rank = min(rank, cap)
    tail = largest * float(tails[rank])
    bound = math.hypot(residual, tail) + floor
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
        "error": math.hypot(min(outcome["error"], residual), tail),
        "error_bound": bound,
    }


def _tails(S: Array, norm: str) -> Array:
    """Error of truncating at each rank 0, …, k: norms of what is cut off."""
    xp = array_namespace(S)
    nothing = xp.zeros((1,), dtype=S.dtype, device=device_of(S))
    if norm == "spectral":
        return xp.concat([S, nothing])
    # summed from the smallest on
    return xp.concat([xp.sqrt(xp.flip(xp.cumulative_sum(xp.flip(S) ** 2))), nothing])
