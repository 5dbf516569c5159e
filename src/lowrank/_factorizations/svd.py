"""Truncated singular value decomposition on a randomized range."""

import math
from dataclasses import replace
from typing import Any, Unpack

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._factorizations import truncate
from lowrank._linalg.sharded import operand
from lowrank._linalg.small_svd import refuse_infinite, small_svd
from lowrank._operators import ENTRIES, UNKNOWN, Operator, as_operator, located, of_row_blocks
from lowrank._rangefinder.found import Found, find, projection, reported
from lowrank._rangefinder.options import Tolerances, shares_options
from lowrank._rangefinder.residuals import FullSVD
from lowrank._rangefinder.sampling import domain_qr
from lowrank.results import Outcome, SVDResult

__all__ = ["centered", "decompose", "svd"]


@shares_options
def svd(
    A: Array,
    /,
    rank: int | None = None,
    *,
    center: bool = False,
    oversampling: int = 10,
    **options: Unpack[Tolerances],
) -> SVDResult:
    """Truncated SVD ``A ≈ U diag(S) Vh``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        <matrix>; or a
        DTensor of PyTorch, see Notes.
    rank : int, optional
        Rank of the result, at most min(m, n). With a tolerance, the largest rank allowed.
    rtol, atol : float, optional
        Find the smallest rank with ``‖A − U diag(S) Vh‖ ≤ max(rtol · ‖A‖, atol)``, as certified by
        the error bound.
    center : bool
        Subtract the mean of the rows from A first, as in principal component analysis: then the
        rows of Vh are the components, ``U * S`` the scores, and ``S**2 / (m − 1)`` the variances.
        Norm, tolerance and error are those of the centered matrix. The rounding error of a sparse
        matrix or operator stays relative to A itself.
    oversampling : int
        At a fixed rank, extra columns of the basis, which are discarded. (With a tolerance
        the basis grows as far as the tolerance needs, also beyond `rank`.)
    <options>

    Returns
    -------
    SVDResult
        Unpacks as ``U, S, Vh``; also has the `mean` that was subtracted. With a tolerance, the rank
        is the smallest that the error bound allows, which is near the best possible one. The entry
        of largest absolute value in each row of Vh is real and positive, so that the signs do not
        depend on seed, library or method.

    Raises
    ------
    <raises>
    ValueError
        If `rank`, `rtol` and `atol` are all missing, an option is out of range, or A contains NaN
        or Inf.

    Warns
    -----
    <warns>

    Notes
    -----
    At a fixed rank k with p columns of oversampling and q power iterations: 2q + 2 passes over A of
    2mn(k + p) flops each, and one for ‖A‖_F, if available, from which the error follows as
    ``‖A‖² − Σ S²``. With a tolerance the basis grows, as in :func:`range_finder`, until its error
    is a part of the tolerance (0.88; 0.75 with `power_iterations=0`; 0.5 if samples measure it, or
    passes over A are expensive). The truncation uses the rest: the squares of both errors add up.
    It takes about 6nk² flops for the k columns found, and a k×k SVD. If the SVD of A takes less
    time than further growth, that SVD is truncated instead.

    With `krylov` the basis at a fixed rank has (q + 1)(k + p) columns, from 2q + 1 passes with
    k + p columns each; the last pass multiplies all of them.

    Memory beyond A: less than (3m + 4n)k + 10k² entries for a basis of k columns at a fixed rank.

    Singular values and vectors are those of the projected matrix: S never exceeds the singular
    values of A beyond rounding. Does not support derivatives, or stacks with a tolerance.

    A DTensor, sharded by rows or by columns along one dimension of its mesh, is never gathered. U
    is sharded like the rows of A, Vh like its columns, and all else is replicated. With blocks of b
    columns, every other pass has an all-reduce of n·b numbers (m·b if sharded by columns) and an
    all-gather of b² numbers per process. All processes stop at the same block and raise the same
    errors; the callback of process 0 can stop them.

    With `center` one more pass over A computes the mean; for a sparse matrix or operator, a product
    of Aᴴ with up to 16 columns. At a fixed rank, dense matrices are then centered in each pass, by
    blocks of 512 rows (fewer if these have more than 2¹⁸ entries, but at least a sixteenth of all).
    Sparse ones are never centered explicitly. To a tolerance the copy of A is centered.

    References
    ----------
    N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with randomness, 2011,
    doi:10.1137/090771806, Algorithm 5.1. Rules for signs are discussed by R. Bro, E. Acar and T. G.
    Kolda, Resolving the sign ambiguity in the singular value decomposition, 2008,
    doi:10.1002/cem.1122; the largest entry is the usual one.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> from lowrank import gallery
    >>> s = gallery.fast(300)
    >>> U, S, Vh = lowrank.svd(gallery.matrix(s, rng=0), rank=10, rng=1)
    >>> bool(np.allclose(S, s[:10]))
    True
    """
    mean, added, (shards, A) = None, 0, operand(A, options)
    if center:
        if shards is not None:
            raise ValueError("`center` does not support DTensors; pass A - A.mean(0) instead.")
        A, mean, added = centered(as_operator(A))
    U, S, Vh, outcome = decompose(
        A, rank, fixed_signs=shards is None, oversampling=oversampling, **options
    )
    if center:
        outcome = replace(outcome, passes=outcome.passes + 1, products=outcome.products + added)
    if shards is not None:
        U, S, Vh = shards.factors(U, S, Vh)
    return SVDResult(U=U, S=S, Vh=Vh, mean=mean, **reported(outcome))


def decompose(
    A: Array, rank: int | None, *, fixed_signs: bool = False, oversampling: int = 0, **options: Any
) -> tuple[Array, Array, Array, Outcome]:
    """:func:`svd` without a warning: U, S, Vh, and the other attributes of the result."""
    options |= {"share": 1.0, "powers": 2, "oversampling": oversampling, "projects": True}
    found = find(A, rank, **options)
    if isinstance(found.state.residual, FullSVD):  # it took less time than growing the basis
        return _truncated_full_svd(found, found.state.residual, rank, fixed_signs)
    found, C, scale = projection(found, release=True)
    small = small_svd(C, domain_qr(found.state.A))
    lost = (
        0.0
        if found.fixed
        else small.rounding(C if truncate.is_near_rounding(found) else None) / scale
    )
    del C
    S = small.S if scale == 1.0 else small.S / scale
    if found.fixed:
        outcome = truncate.at_fixed_rank(found, lambda k: xa.matrix_norm_by_rows(S[..., None, :k]))
        if outcome.error is None:  # with an error, the norm was read and checked
            refuse_infinite(S)
    else:
        refuse_infinite(S)
        residual, estimate = truncate.parts_of(found, lambda: xa.matrix_norm_by_rows(S[None, :]))
        outcome = truncate.truncated(
            found, S, rank, residual=residual, estimate=estimate, floor=found.floor + lost
        )
    r = int(found.state.A.agreed(float(outcome.rank)))
    Vh = xa.adjoint(small.right(r))
    U = small.U[..., :r]
    if fixed_signs:
        phase = xa.signed(Vh)[..., :, None]
        U = U * xa.adjoint(phase)
        Vh *= phase
    U, S, outcome = found.basis.lift(U), S[..., :r], replace(outcome, rank=r)
    if found.fixed:
        return U, S, Vh, outcome
    return truncate.with_rounding(found._replace(outcome=outcome), rank, U, S, Vh)


def _truncated_full_svd(
    found: Found, whole: FullSVD, rank: int | None, fixed_signs: bool
) -> tuple[Array, Array, Array, Outcome]:
    """The truncated SVD of A itself."""
    S = whole.S / found.state.explicit_scale
    refuse_infinite(S)
    outcome = truncate.truncated(found, S, rank, residual=0.0, estimate=0.0, floor=found.floor)
    r = outcome.rank
    U, Vh = whole.U[:, :r], whole.Vh[:r, :]
    phase = xa.signed(Vh)[:, None] if fixed_signs else found.state.A.xp.ones_like(Vh[:, :1])
    U, Vh, found = U * xa.adjoint(phase), Vh * phase, found._replace(outcome=outcome)
    return truncate.with_rounding(found, rank, U, S[:r], Vh)


# Rows of a dense matrix centered at a time, of at most ENTRIES; or a sixteenth of all, if that is
# more.
ROWS = 512
# Rows of other matrices are summed in at most GROUPS partial sums, of at least LEAST rows each.
GROUPS, LEAST = 16, 4096


def centered(A: Operator) -> tuple[Operator, Array, int]:
    """``A − 1μᵀ`` with μ the mean of the rows of A, and μ itself (one for each matrix of a stack).

    The third value is the number of columns that Aᴴ was multiplied with to find μ.
    """
    return _of_products(A) if A.array is None else _of_array(A, A.array)


def _of_array(A: Operator, X: Array) -> tuple[Operator, Array, int]:
    """By blocks of rows: ``AX − 1(μᵀX)`` would lose digits where μ is larger than the rest."""
    xp, m = A.xp, A.shape[-2]
    long = math.prod(A.shape) // max(1, m)  # entries of one row, over the whole stack
    rows = max(min(ROWS, ENTRIES // max(1, long)), m // 16, 1)
    parts = xa.slices(m, rows) or [slice(0, 0)]

    def block(part: slice) -> Array:
        return xa.as_matrix(X[..., part, :], stacks=True)[0]

    weighted = [_mean(block(part)) * ((part.stop - part.start) / max(1, m)) for part in parts]
    mean = xp.sum(xp.concat(weighted, axis=-2), axis=-2, keepdims=True)
    difference = of_row_blocks(lambda part: block(part) - mean, A.shape, rows, like=mean)

    whole = A.explicit

    def explicit(flipped: bool, own: bool) -> Array:
        matrix = whole(flipped, own)
        matrix -= xa.adjoint(mean) if flipped else mean
        return matrix

    difference = replace(difference, explicit=whole and explicit, costly_passes=A.costly_passes)
    return difference, mean[..., 0, :], 0


def _mean(X: Array) -> Array:
    """Mean of rows, corrected by the mean of the differences: NumPy sums rows in sequence."""
    xp, m = xa.array_namespace(X), max(1, X.shape[-2])
    mean = xp.sum(X / m, axis=-2, keepdims=True)
    return mean + xp.sum((X - mean) / m, axis=-2, keepdims=True)


def _of_products(A: Operator) -> tuple[Operator, Array, int]:
    """``AX − 1(μᵀX)`` and ``AᴴY − μ̄(1ᵀY)``; their rounding is relative to both terms.

    For the mean, rows are summed in groups first: sparse products sum in sequence, and would lose
    the last two digits of a mean of 10⁶ rows in single precision.
    """
    m, _ = A.shape
    groups = min(GROUPS, 1 + m // LEAST)
    of_row, every = (A.xp.arange(length, device=A.device) for length in (m, groups))
    members = A.xp.astype(of_row[:, None] % groups == every[None, :], A.dtype)
    sums = A.rmatmat(members)
    xp = xa.array_namespace(sums)
    # Aᴴ1 is the conjugate of the column sums
    conjugate = xp.sum(sums / max(1, m), axis=1, keepdims=True)
    row = xa.adjoint(conjugate)

    products = {
        "matmat": lambda X: A.matmat(X) - row @ X,
        "rmatmat": lambda Y: A.rmatmat(Y) - conjugate @ xp.sum(Y, axis=0, keepdims=True),
    }
    costly, offset = A.costly_passes, math.sqrt(m) * float(xa.safe_norm(row))
    known: dict[str, Any] = {**products, **UNKNOWN, "offset": offset, "costly_passes": costly}
    return located(sums, A.shape, **known), row[0, :], groups
