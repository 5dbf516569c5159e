"""CUR decomposition: columns and rows of A, and a small matrix between them."""

import math
from bisect import bisect_left
from typing import Unpack

from lowrank._array import (
    Array,
    adjoint,
    array_namespace,
    batched_adjoint_matmul,
    is_finite,
    zeros,
)
from lowrank._factorizations import skeleton
from lowrank._linalg import pivots
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.triangular import block_triangle, upper_solve
from lowrank._operators import as_operator
from lowrank._rangefinder.found import reported
from lowrank._rangefinder.options import Tolerances, shares_options
from lowrank.results import CURResult

__all__ = ["cur"]


@shares_options
def cur(
    A: Array, /, rank: int | None = None, *, oversampling: int = 10, **options: Unpack[Tolerances]
) -> CURResult:
    """CUR decomposition ``A ≈ C U R``, of a given rank or to a given tolerance.

    C holds k columns and R k rows of A, so both keep its sparsity, signs and units.

    Parameters
    ----------
    A : array, shape (m, n)
        <matrix>.
    rank : int, optional
        Number of columns and of rows, at most min(m, n). With a tolerance, the largest number
        allowed.
    rtol, atol : float, optional
        Find a small rank with ``‖A − C U R‖ ≤ max(rtol · ‖A‖, atol)``, as certified by the error
        bound.
    oversampling : int
        At a fixed rank, extra columns of the basis. (With a tolerance the basis grows as far as the
        tolerance needs, also beyond `rank`.)
    <options>

    Returns
    -------
    CURResult
        Unpacks as ``C, U, R``; C and R are copies of ``A[:, columns]`` and ``A[rows, :]``. If the
        rank is so large that a larger U would lose more to rounding than it gains, the last rows
        and columns of U are zero.

    Raises
    ------
    <raises>
    ValueError
        If A is a stack or contains NaN or Inf; if `rank`, `rtol` and `atol` are all missing, or an
        option is out of range; or if an entry of U, at least about 1/‖A‖, exceeds the largest
        number of the dtype.

    Warns
    -----
    <warns>

    Notes
    -----
    The columns are those of :func:`interpolative`, the rows those of an interpolative
    decomposition of C; U is the best one for the projected matrix ``Q QᴴA``. The error is at
    most about √2 times that of the interpolative decomposition of the same rank.

    Tolerances below about ``5 √eps ‖A‖`` are out of reach: U inverts singular values σ of A down
    to the tolerance, and its rounding changes the product by about eps ‖A‖²/σ. The interpolative
    decomposition does not have this limit.

    For an array, no passes are needed beyond those of the basis and of ``B = QᴴA``. Columns and
    rows of an operator or a sparse matrix are read by products with columns of the identity. It
    takes about twice the flops of :func:`interpolative`. Does not support derivatives or stacks.

    References
    ----------
    M. W. Mahoney and P. Drineas, CUR matrix decompositions for improved data analysis, 2009,
    doi:10.1073/pnas.0803205106. S. Voronin and P.-G. Martinsson, Efficient algorithms for CUR and
    interpolative matrix decompositions, 2017, doi:10.1007/s10444-016-9494-8.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> from lowrank import gallery
    >>> A = gallery.matrix(gallery.fast(300), rng=0)
    >>> found = lowrank.cur(A, rtol=1e-3, rng=1)
    >>> C, U, R = found
    >>> bool(np.linalg.norm(A - C @ U @ R) <= found.error_bound <= 1e-3 * np.linalg.norm(A))
    True
    """
    built, outcome = skeleton.approximate(
        as_operator(A), rank, _build, oversampling=oversampling, **options
    )
    C, U, R, columns, rows = built.factors
    return CURResult(C=C, U=U, R=R, columns=columns, rows=rows, **reported(outcome))


def _build(sketch: skeleton.Sketch, k: int) -> skeleton.Built:
    """Choose k columns and rows, and U.

    With orthonormal bases of C and of the adjoint of R, ``C = P S`` and ``Rᴴ = W T``, the U that
    is best for Q B is ``S⁻¹ M T⁻ᴴ`` with ``M = PᴴQ B W``. The error is computed from the final
    factors.
    """
    Q, B, scale = sketch.Q, sketch.B, sketch.scale
    xp, m, n = array_namespace(B), Q.shape[0], B.shape[1]
    J, _ = pivots.interpolate(B, sketch.pivoted.indices[:k])
    left = sketch.columns(J) * scale
    rows = adjoint(left) * skeleton.scale_of(left)
    picked = pivots.interpolate(rows, pivots.pivoted_qr(rows).indices)[0]  # rows of C that span it
    r = len(picked)
    right = adjoint(sketch.rows(picked)) * scale
    P, S = orthonormalize(left[:, :r])
    W, T = orthonormalize(adjoint(right))
    G = batched_adjoint_matmul(Q, P)
    M = adjoint(G) @ (B @ W)
    rest = pivots.norm_of(B - (G @ M) @ adjoint(W), "fro")
    sizes = xp.linalg.vector_norm(left[:, :r], axis=0)[:, None]
    sizes = sizes * xp.linalg.vector_norm(right, axis=1)[None, :]
    U, lost = _joined(S, M, T, sizes, rest)

    r = U.shape[0]
    k = k if sketch.fixed else r
    U = block_triangle(U, zeros((r, k - r), B), zeros((k - r, k - r), B))
    J, picked = pivots.filled(J, k, n)[:k], pivots.filled(picked, k, m)[:k]
    C, R = sketch.columns(J), adjoint(sketch.rows(picked))
    left, right, U_of_A = C * scale, R * scale, U * scale
    if not is_finite(U_of_A):
        raise ValueError(
            "an entry of U exceeds the largest number of its dtype; multiply `A` by a constant."
        )
    sizes = xp.linalg.vector_norm(left, axis=0)[:, None]
    # the scale is a power of two: U changes only where its entries are below the normal numbers
    underflow = sizes * xp.abs(U - U_of_A / scale) * xp.linalg.vector_norm(right, axis=1)
    T = U @ right
    lost += skeleton.lost_in(sizes, T, Q.shape[1]) + float(xp.sum(underflow))
    factors = C, U_of_A, R, pivots.as_indices(J, B), pivots.as_indices(picked, B)
    G = batched_adjoint_matmul(Q, left)
    return skeleton.errors_of(sketch, left, G, T, lost=lost, factors=factors)


def _joined(S: Array, M: Array, T: Array, sizes: Array, rest: float) -> tuple[Array, float]:
    """U, and a bound on the rounding error that it causes.

    With more leading columns and rows in U, its rounding error grows and the approximation error
    falls: their sum is smallest where the two are equal, or at the next rank.
    """
    k = M.shape[0]

    def joined(r: int) -> tuple[Array, float]:
        U = upper_solve(S[:r, :r], M[:r, :r])
        U = adjoint(upper_solve(T[:r, :r], adjoint(U)))
        return U, skeleton.lost_in(sizes[:r, :r], U, r)

    def outside(r: int) -> float:
        return math.hypot(rest, pivots.norm_of(M[:r, r:], "fro"), pivots.norm_of(M[r:, :], "fro"))

    # the last rank at which rounding loses less than the error
    r = bisect_left(range(1, k + 1), True, key=lambda r: not joined(r)[1] <= outside(r))
    tries = {r: joined(r) for r in (r, r + 1) if r <= k}
    return tries[min(tries, key=lambda r: tries[r][1] + outside(r))]
