"""A matrix less the mean of its rows, by its products: never formed, dense or sparse."""

import math
from dataclasses import replace

from lowrank._array import Array, array_namespace, device_of, safe_norm
from lowrank._operator import Operator, of_row_blocks

__all__ = ["centred"]

# Rows of a dense matrix that are centred at a time, or a sixteenth of it if more.
ROWS = 512


def centred(A: Operator) -> tuple[Operator, Array]:
    """``A − 1μᵀ`` with μ the mean of the rows of A, and μ itself (a mean for each of a stack)."""
    return _of_products(A) if A.array is None else _of_array(A, A.array)


def _of_array(A: Operator, X: Array) -> tuple[Operator, Array]:
    """By blocks of rows: ``AX − 1(μᵀX)`` would lose what μ is larger than the rest."""
    xp, m = A.xp, A.shape[-2]
    rows = max(ROWS, m // 16)
    parts = [slice(start, min(start + rows, m)) for start in range(0, max(1, m), rows)]
    sums = [xp.sum(X[..., part, :] / max(1, m), axis=-2, keepdims=True) for part in parts]
    mean = xp.sum(xp.concat(sums, axis=-2), axis=-2, keepdims=True)

    difference = of_row_blocks(lambda part: X[..., part, :] - mean, A.shape, rows, like=mean)
    return difference, mean[..., 0, :]


def _of_products(A: Operator) -> tuple[Operator, Array]:
    """``AX − 1(μᵀX)`` and ``AᴴY − μ̄(1ᵀY)``, whose rounding is relative to both terms."""
    m, _ = A.shape
    sums = A.rmatmat(A.xp.ones((m, 1), dtype=A.dtype, device=A.device))
    xp = array_namespace(sums)
    conjugate = sums / max(1, m)  # Aᴴ1 is the conjugate of what the columns add up to
    row = xp.matrix_transpose(conjugate)
    row = xp.conj(row) if xp.isdtype(row.dtype, "complex floating") else row

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
    return difference, row[0, :]
