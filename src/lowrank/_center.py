"""A matrix less the mean of its rows, by its products: never formed, dense or sparse."""

import math
from dataclasses import replace

from lowrank._array import Array, adjoint, array_namespace, as_matrix, device_of, safe_norm, slices
from lowrank._operator import Operator, of_row_blocks

# Rows of a dense matrix that are centered at a time, and at most so many entries; or a sixteenth of
# it if more.
ROWS, ENTRIES = 512, 2**18
# Rows of other matrices are added up in so many groups at most, of no fewer rows than follows.
GROUPS, LEAST = 16, 4096


def centered(A: Operator) -> tuple[Operator, Array, int]:
    """``A − 1μᵀ`` with μ the mean of the rows of A, and μ itself (a mean for each of a stack).

    And how many columns were multiplied by Aᴴ to find it.
    """
    return _of_products(A) if A.array is None else _of_array(A, A.array)


def _of_array(A: Operator, X: Array) -> tuple[Operator, Array, int]:
    """By blocks of rows: ``AX − 1(μᵀX)`` would lose what μ is larger than the rest."""
    xp, m = A.xp, A.shape[-2]
    long = math.prod(A.shape) // max(1, m)  # a row of all members
    rows = max(min(ROWS, ENTRIES // max(1, long)), m // 16, 1)
    parts = slices(m, rows) or [slice(0, 0)]

    def block(part: slice) -> Array:
        return as_matrix(X[..., part, :], stacks=True)[0]

    weighted = [_mean(block(part)) * ((part.stop - part.start) / max(1, m)) for part in parts]
    mean = xp.sum(xp.concat(weighted, axis=-2), axis=-2, keepdims=True)
    difference = of_row_blocks(lambda part: block(part) - mean, A.shape, rows, like=mean)

    whole = A.explicit

    def explicit(flipped: bool, own: bool) -> Array:
        assert whole is not None
        matrix = whole(flipped, own)
        matrix -= adjoint(mean) if flipped else mean
        return matrix

    difference = replace(difference, explicit=whole and explicit, costly_passes=A.costly_passes)
    return difference, mean[..., 0, :], 0


def _mean(X: Array) -> Array:
    """Mean of rows, and of what they differ from it: NumPy adds them in sequence, not in pairs."""
    xp, m = array_namespace(X), max(1, X.shape[-2])
    mean = xp.sum(X / m, axis=-2, keepdims=True)
    return mean + xp.sum((X - mean) / m, axis=-2, keepdims=True)


def _of_products(A: Operator) -> tuple[Operator, Array, int]:
    """``AX − 1(μᵀX)`` and ``AᴴY − μ̄(1ᵀY)``, whose rounding is relative to both terms.

    The rows are added up in groups first: sparse products add in sequence, and lose the last two
    digits of a mean of 10⁶ rows in single precision.
    """
    m, _ = A.shape
    groups = min(GROUPS, 1 + m // LEAST)
    of_row, every = (A.xp.arange(length, device=A.device) for length in (m, groups))
    members = A.xp.astype(of_row[:, None] % groups == every[None, :], A.dtype)
    sums = A.rmatmat(members)
    xp = array_namespace(sums)
    # Aᴴ1 is the conjugate of what the columns add up to
    conjugate = xp.sum(sums / max(1, m), axis=1, keepdims=True)
    row = adjoint(conjugate)

    difference = replace(
        A,
        xp=xp,
        dtype=sums.dtype,
        device=device_of(sums),
        matmat=lambda X: A.matmat(X) - row @ X,
        rmatmat=lambda Y: A.rmatmat(Y) - conjugate @ xp.sum(Y, axis=0, keepdims=True),
        norm=None,
        max_abs=lambda: math.nan,
        offset=math.sqrt(m) * float(safe_norm(row)),
    )
    return difference, row[0, :], groups
