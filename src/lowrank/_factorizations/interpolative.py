"""Interpolative decomposition: columns (or rows) of A, and coefficients for all others."""

from typing import Literal, Unpack

from lowrank._array import Array, adjoint, array_namespace, batched_adjoint_matmul, zeros
from lowrank._factorizations.skeleton import Built, Sketch, approximate, errors_of, lost_in
from lowrank._linalg import pivots
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.triangular import upper_solve
from lowrank._operators import as_operator
from lowrank._rangefinder.found import reported
from lowrank._rangefinder.options import Tolerances, shares_options
from lowrank.results import IDResult

__all__ = ["interpolative"]


@shares_options
def interpolative(
    A: Array,
    /,
    rank: int | None = None,
    *,
    select: Literal["columns", "rows"] = "columns",
    oversampling: int = 10,
    **options: Unpack[Tolerances],
) -> IDResult:
    """Interpolative decomposition ``A ≈ A[:, J] X``, of a given rank or to a given tolerance.

    k columns J of A itself span its approximate range, and X gives all columns as combinations of
    them. The columns J of X are the identity, and no entry of X is larger than two.

    Parameters
    ----------
    A : array, shape (m, n)
        <matrix>.
    rank : int, optional
        Number of columns, at most min(m, n). With a tolerance, the largest number allowed.
    rtol, atol : float, optional
        Find a small rank with ``‖A − A[:, J] X‖ ≤ max(rtol · ‖A‖, atol)``, as certified by the
        error bound.
    select : {"columns", "rows"}
        With ``"rows"``, ``A ≈ X A[I, :]``, computed from the adjoint.
    oversampling : int
        At a fixed rank, extra columns of the basis. (With a tolerance the basis grows as far as the
        tolerance needs, also beyond `rank`.)
    <options>

    Returns
    -------
    IDResult
        Unpacks as ``indices, coefficients``; `skeleton` is a copy of the columns (rows) of A. If
        the rank exceeds the numerical rank of A, the last columns are arbitrary, and X uses them
        only to reproduce themselves.

    Raises
    ------
    <raises>
    ValueError
        If A is a stack or contains NaN or Inf; if `rank`, `rtol` and `atol` are all missing, or an
        option is out of range.

    Warns
    -----
    <warns>

    Notes
    -----
    From a basis of K columns and ``B = QᴴA``, as in :func:`svd`, columns are chosen by pivoted QR
    of B and strong rank-revealing swaps, and X solves ``min ‖A_J X − Q B‖``. Apart from the error
    of the basis, the error in the spectral norm is then at most √(1 + 4k(n − k)) times the best
    possible one. Pivoted QR of A itself costs many times as much and gives hardly fewer columns.

    For an array, no passes are needed beyond those of the basis and of B. Columns of an operator or
    a sparse matrix are read by products with columns of the identity. Flops, with k chosen columns:
    about 4nK² for the pivots, each of which reads two numbers from the device; 6nk² + 2nkK and
    6mk² + 4mkK for X and its error (with a tolerance, for each of a few ranks).

    With a tolerance in the Frobenius norm, for an array in memory, the error ``‖A − A_J X‖`` itself
    is computed. Otherwise the bound holds if that of the basis does; all other parts are computed.
    With ``select="rows"`` a test matrix has m rows. Does not support derivatives or stacks.

    References
    ----------
    N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with randomness, 2011,
    doi:10.1137/090771806, Section 5.2 (rows of A by those of Q). M. Gu and S. C. Eisenstat,
    Efficient algorithms for computing a strong rank-revealing QR factorization, 1996,
    doi:10.1137/0917055, Algorithm 4.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> from lowrank import gallery
    >>> A = gallery.matrix(gallery.fast(300), rng=0)
    >>> found = lowrank.interpolative(A, rtol=1e-3, rng=1)
    >>> J, X = found
    >>> bool(np.linalg.norm(A - A[:, J] @ X) <= found.error_bound <= 1e-3 * np.linalg.norm(A))
    True
    """
    if select not in ("columns", "rows"):
        raise ValueError(f"`select` must be 'columns' or 'rows', got {select!r}.")
    operator = as_operator(A)
    operator = operator if select == "columns" else operator.adjoint()
    built, outcome = approximate(operator, rank, _build, oversampling=oversampling, **options)
    indices, X, skeleton = built.factors
    if select == "rows":
        X, skeleton = adjoint(X), adjoint(skeleton)
    return IDResult(
        indices=indices, coefficients=X, skeleton=skeleton, select=select, **reported(outcome)
    )


def _build(sketch: Sketch, k: int) -> Built:
    """Choose k columns, and coefficients X for them.

    X solves ``min ‖A_J X − Q B‖``. Unlike the solution of ``B_J X = B``, this takes into account
    the error E_J of the basis in A_J, which large coefficients would multiply. With the QR
    ``A_J = P R``, it is ``R⁻¹ PᴴQ B``. A column of it with an entry above two is replaced by that
    of the other solution, whose entries are at most two.
    """
    Q, B = sketch.Q, sketch.B
    xp, n = array_namespace(B), B.shape[1]
    J, X = pivots.interpolate(B, sketch.pivoted.indices[:k])
    r, J = len(J), pivots.filled(J, k, n)
    skeleton = sketch.columns(J)
    L, below = skeleton * sketch.scale, zeros((k - r, n), B)
    if r > 0:
        P, R = orthonormalize(L[:, :r])
        Y = upper_solve(R, batched_adjoint_matmul(P, Q) @ B)
        X = xp.where(xp.max(xp.abs(Y), axis=0, keepdims=True) <= pivots.LARGEST, Y, X)
    X = pivots.with_identity(xp.concat([X, below], axis=0), pivots.positions(J, n, B))
    at = pivots.as_indices(J, B)
    lost = lost_in(xp.linalg.vector_norm(L, axis=0)[:, None], X, Q.shape[1])
    return errors_of(sketch, L, xp.take(B, at, axis=1), X, lost=lost, factors=(at, X, skeleton))
