"""Interpolative decomposition: columns (or rows) of A, and how the others follow from them."""

from typing import Literal, Unpack

from lowrank._array import Array, adjoint, array_namespace, upper_solve, zeros
from lowrank._operator import as_operator
from lowrank._options import Tolerances, shares_options
from lowrank._panel import orthonormalize
from lowrank._pivots import LARGEST, as_indices, filled, interpolate, positions, with_identity
from lowrank._skeleton import Built, Sketch, approximate, errors_of, lost_in
from lowrank.rangefinder import warn_unless_converged
from lowrank.results import IDResult, fields_of

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

    k columns J of A itself stand for its range, and X tells how the others follow from them: it
    holds the identity in the columns J, and no entry larger than two.

    Parameters
    ----------
    A : array, shape (m, n)
        <matrix>.
    rank : int, optional
        Number of columns; more than min(m, n) count as min(m, n). With a tolerance, a cap.
    rtol, atol : float, optional
        The certified error ``‖A − A[:, J] X‖`` is at most ``max(rtol · ‖A‖, atol)``.
    select : {"columns", "rows"}
        With ``"rows"``, ``A ≈ X A[I, :]``, by way of the adjoint.
    oversampling : int
        At a fixed rank, columns of the basis beyond `rank`. (With a tolerance the basis grows
        beyond the rank, also beyond a cap, as the tolerance needs.)
    <options>

    Returns
    -------
    IDResult
        Unpacks as ``indices, coefficients``; `skeleton` holds the columns (rows) themselves, a
        copy. At a rank beyond the numerical one, the last columns are any others, and what X has
        for them is the identity alone.

    Raises
    ------
    <raises>
    ValueError
        If A is a stack or holds NaN or Inf, there is no stop rule, or an option is out of range.

    Warns
    -----
    <warns>

    Notes
    -----
    From a basis of K columns and ``B = QᴴA``, as in :func:`svd`, columns are chosen by pivoted QR
    of B and strong rank-revealing swaps, and X solves ``min ‖A_J X − Q B‖``. Without the error of
    the basis, the error in the spectral norm is then at most √(1 + 4k(n − k)) times the best
    possible; pivoted QR of A itself, at many times the cost, gives hardly fewer columns.

    Beyond the passes of the basis and of B none is needed for an array; an operator and a sparse
    matrix are multiplied by columns of the identity to read theirs. Flops, with k chosen columns:
    about 4nK² for the pivots, in which each reads two numbers from the device; 6nk² + 2nkK and
    6mk² + 4mkK for X and its error, and (with a tolerance) for each of a few ranks that are tried.

    With a tolerance in the Frobenius norm, of an array in memory, the error ``‖A − A_J X‖`` itself
    is computed; else the bound holds if that of the basis does, as all else is computed. Of rows,
    a test matrix has m rows. Does not support derivatives or stacks.

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
    warn_unless_converged(outcome)
    indices, X, skeleton = built.factors
    if select == "rows":
        X, skeleton = adjoint(X), adjoint(skeleton)
    return IDResult(
        indices=indices, coefficients=X, skeleton=skeleton, select=select, **fields_of(outcome)
    )


def _build(sketch: Sketch, k: int) -> Built:
    """Choose k columns, and coefficients X for them.

    X solves ``min ‖A_J X − Q B‖``, which takes the error of the basis in A_J, E_J, into account:
    that of ``B_J X = B`` may multiply E_J by more than it gains. With the QR ``A_J = P R`` it is
    ``R⁻¹ PᴴQ B``. Where an entry of it should exceed two, the other, which is bounded, stands in.
    """
    Q, B = sketch.Q, sketch.B
    xp, n = array_namespace(B), B.shape[1]
    J, X = interpolate(B, sketch.pivoted.indices[:k])
    r, J = len(J), filled(J, k, n)
    skeleton = sketch.columns(J)
    L, below = skeleton * sketch.scale, zeros((k - r, n), B)
    if r > 0:
        P, R = orthonormalize(L[:, :r])
        Y = upper_solve(R, (adjoint(P) @ Q) @ B)
        X = xp.where(xp.max(xp.abs(Y), axis=0, keepdims=True) <= LARGEST, Y, X)
    X = with_identity(xp.concat([X, below], axis=0), positions(J, n, B))
    at = as_indices(J, B)
    lost = lost_in(xp.linalg.vector_norm(L, axis=0)[:, None], X, Q.shape[1])
    G = xp.take(B, at, axis=1)
    return errors_of(sketch, L, G, X, lost=lost, factors=(at, X, skeleton))
