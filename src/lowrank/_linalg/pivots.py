"""Columns that span all others: pivoted QR, then swaps until no coefficient exceeds two."""

import math
from collections.abc import Callable
from typing import NamedTuple

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg.certificate import spectral_norm
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.triangular import upper_solve

# Bound on the coefficients, the f of Gu & Eisenstat.
LARGEST = 2.0
# Pivots between two updates of the remainder.
BLOCK = 32
# Below ROUNDING · eps · √K times the largest column, the remainder of a column is rounding error.
ROUNDING = 4.0
# Swaps allowed, in addition to one per column.
SWAPS = 20


class Pivoted(NamedTuple):
    """``B = P R + rest``, P orthonormal; row i of R belongs to the pivot ``indices[i]``."""

    indices: list[int]
    R: Array
    rest: float


def pivoted_qr(B: Array) -> Pivoted:
    """Column-pivoted QR of a K×n matrix with entries of about one.

    The pivots of Businger & Golub (Linear least squares solutions by Householder transformations,
    1965, doi:10.1007/BF01436084), by Gram–Schmidt. Each column is orthogonalized twice against all
    pivots before it: by the remainder, and directly. The remainder is updated by one product for a
    block of columns. In between, the norms of its columns are updated by subtraction, as long as at
    most half of their digits are lost (Quintana-Ortí, Sun & Bischof, A BLAS-3 version of the QR
    factorization with column pivoting, 1998, doi:10.1137/S1064827595296732). It ends when the
    remainder is rounding error, so there may be fewer than min(K, n) pivots. Each pivot takes one
    pass over B and reads two numbers from the device.
    """
    xp = xa.array_namespace(B)
    (K, n), epsilon = B.shape, xa.eps(B)
    most = min(K, n)
    P, R, rest = xa.zeros((K, most), B), xa.zeros((most, n), B), xp.asarray(B, copy=True)
    indices: list[int] = []
    if most == 0:
        return Pivoted(indices, R, float(xa.safe_norm(rest)))
    position = xp.arange(n, device=xa.device_of(B))
    taken = position < 0
    sizes = _squares(rest, axis=0)
    start, first, largest = 0, 0.0, float(xp.max(sizes))
    while len(indices) < most:
        k = len(indices)
        j = int(xp.argmax(xp.where(taken, -xp.ones_like(sizes), sizes)))
        v = rest[:, j : j + 1] - P[:, start:k] @ R[start:k, j : j + 1]
        # Rounding leaves a part along P of order eps · √k · first, below the size that is accepted:
        # one more projection is enough.
        v -= P[:, :k] @ (xa.adjoint(P[:, :k]) @ v)
        size = float(xa.safe_norm(v))
        first = first if k else size
        if k > start and (k - start == BLOCK or size * size <= epsilon**0.5 * largest):
            rest -= P[:, start:k] @ R[start:k, :]
            sizes = _squares(rest, axis=0)
            start, largest = k, float(xp.max(sizes))
            continue
        if size <= ROUNDING * epsilon * math.sqrt(K) * first:
            break
        P = xa.put(P, (slice(None), slice(k, k + 1)), v / size)
        R = xa.put(R, (slice(k, k + 1), ...), xa.adjoint(P[:, k : k + 1]) @ rest)
        sizes = xp.maximum(sizes - _squares(R[k : k + 1, :], axis=0), xp.zeros_like(sizes))
        taken = xp.logical_or(taken, position == j)
        indices.append(j)
    k = len(indices)
    rest -= P[:, start:k] @ R[start:k, :]
    return Pivoted(indices, R[:k, :], float(xa.safe_norm(rest)))


def _squares(X: Array, axis: int) -> Array:
    return xa.array_namespace(X).sum(xa.squares(X), axis=axis)


def tails(pivoted: Pivoted, norm: str) -> Callable[[int], float]:
    """A function of k: the norm of the remainder of B after k pivots."""
    R, rest = pivoted.R, pivoted.rest
    xp, r = xa.array_namespace(R), R.shape[0]
    if norm == "spectral":
        L = xa.adjoint(orthonormalize(xa.adjoint(R)).R)  # R = L Wᴴ with W orthonormal
        return lambda k: math.hypot(float(spectral_norm(L[k:, :], xp)), rest)
    sums = xp.flip(xp.cumulative_sum(xp.flip(_squares(R, axis=1))))  # from the smallest on
    return lambda k: math.hypot(float(sums[k]) ** 0.5 if k < r else 0.0, rest)


def norm_of(X: Array, norm: str) -> float:
    return float(xa.safe_norm(X) if norm == "fro" else spectral_norm(X, xa.array_namespace(X)))


def as_indices(indices: list[int], like: Array) -> Array:
    xp = xa.array_namespace(like)
    return xp.asarray(indices, dtype=xp.int64, device=xa.device_of(like))


def filled(indices: list[int], k: int, n: int) -> list[int]:
    """Return k different indices below n, beginning with the given ones."""
    used = set(indices)
    others = (j for j in range(n) if j not in used)
    return indices + [next(others) for _ in range(k - len(indices))]


def positions(indices: list[int], n: int, like: Array) -> Array:
    """k×n booleans: row i is true at ``indices[i]`` only."""
    xp = xa.array_namespace(like)
    every = xp.arange(n, dtype=xp.int64, device=xa.device_of(like))
    return every[None, :] == as_indices(indices, like)[:, None]


def interpolate(B: Array, pivots: list[int]) -> tuple[list[int], Array]:
    """Columns J of B, as many as `pivots`, and X with ``B ≈ B_J X``, ``X_J = I``, |X_ij| ≤ 2.

    X solves the least-squares problem ``min ‖B_J X − B‖``, by the QR ``B_J = P R``. Replacing the
    i-th column of J by column j multiplies the volume of B_J by

        ρ_ij = √(|X_ij|² + ω_i² γ_j²),   ω_i = ‖row i of R⁻¹‖,   γ_j = ‖column j of B − B_J X‖,

    and where all ρ_ij ≤ f, the singular values of ``B − B_J X`` are at most √(1 + f²k(n − k)) times
    those of B from the (k+1)-th on (Gu & Eisenstat, Efficient algorithms for computing a strong
    rank-revealing QR factorization, 1996, doi:10.1137/0917055, Lemma 3.1, Theorem 3.2 and
    Algorithm 4). Each swap at least doubles the volume, so the swaps end. After pivoted QR few are
    needed, usually none. If B_J is singular to rounding, they might not end: then columns are
    dropped, and J is shorter than `pivots`.
    """
    xp, J, n = xa.array_namespace(B), list(pivots), B.shape[1]
    swaps = SWAPS + len(J)
    while J:
        k, hits = len(J), positions(J, n, B)
        P, R = orthonormalize(xp.take(B, as_indices(J, B), axis=1))
        Y = xa.adjoint(P) @ B
        X = upper_solve(R, Y)
        omega = _squares(upper_solve(R, xa.eye(k, k, like=B)), axis=1)
        growth = xa.squares(X) + omega[:, None] * _squares(B - P @ Y, axis=0)[None, :]
        growth = xp.where(xp.any(hits, axis=0)[None, :], xp.zeros_like(growth), growth)
        i, j = divmod(int(xp.argmax(growth)), n)
        if float(growth[i, j]) <= LARGEST**2:
            return J, with_identity(X, hits)
        if swaps > 0:
            J[i], swaps = j, swaps - 1
        else:
            del J[i]
    return J, xa.zeros((0, n), B)


def with_identity(X: Array, hits: Array) -> Array:
    """X with the identity in the columns that `hits` marks."""
    xp = xa.array_namespace(X)
    return xp.where(xp.any(hits, axis=0)[None, :], xp.astype(hits, X.dtype), X)
