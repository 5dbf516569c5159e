"""Truncated eigenvalue decomposition of a Hermitian matrix on a randomized range."""

import math
from dataclasses import replace
from typing import Any, Unpack

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._factorizations.truncate import at_fixed_rank, parts_of, truncated, with_rounding
from lowrank._linalg.pivots import norm_of
from lowrank._linalg.small_svd import eigh_by_size, refuse_infinite
from lowrank._operators import as_operator
from lowrank._operators.adjoints import check_adjoint, not_hermitian
from lowrank._rangefinder.found import Found, find, projection, refined, reported
from lowrank._rangefinder.options import Tolerances, shares_options
from lowrank._rangefinder.residuals import FullSVD, Orthonormal
from lowrank.results import EighResult, Outcome

__all__ = ["eigh"]

# Rounding may make QᴴAQ differ from its adjoint by this many eps √rank ‖AQ‖.
ASYMMETRY = 100.0
# The smallest factor on the goals of growth, if the second projection loses too much.
LEAST_SHARE = 0.4


@shares_options
def eigh(
    A: Array, /, rank: int | None = None, *, oversampling: int = 10, **options: Unpack[Tolerances]
) -> EighResult:
    """Truncated eigenvalue decomposition ``A ≈ V diag(w) Vᴴ`` of a Hermitian matrix.

    A may be indefinite. For a positive semidefinite A, :func:`nystrom` is more accurate in fewer
    passes.

    Parameters
    ----------
    A : array, shape (n, n), or (..., n, n) at a fixed rank
        Hermitian (symmetric if real), float32 or float64, real or complex (float16 and bfloat16
        are computed in float32). Or a sparse matrix of SciPy, CuPy or PyTorch; or an operator, see
        :class:`RangeFinder`, of which only ``matmat`` is used.
    rank : int, optional
        Rank of the result, at most n. With a tolerance, the largest rank allowed.
    rtol, atol : float, optional
        Find the smallest rank with ``‖A − V diag(w) Vᴴ‖ ≤ max(rtol · ‖A‖, atol)``, as certified by
        the error bound.
    oversampling : int
        At a fixed rank, extra columns of the basis, which are discarded.
    <options>

    Returns
    -------
    EighResult
        Unpacks as ``w, V``: the eigenvalues of largest absolute value, in descending order of it,
        and orthonormal eigenvectors. The entry of largest absolute value in each column of V is
        real and positive.

    Raises
    ------
    <raises>
    ValueError
        If A is not square, or is found not to be Hermitian (the projected matrix is tested, with a
        tolerance or with `check_finite`; `check` tests A itself); if `rank`, `rtol` and `atol` are
        all missing, an option is out of range, or A contains NaN or Inf.

    Warns
    -----
    <warns>

    Notes
    -----
    At a fixed rank k with p columns of oversampling and q power iterations: 2q + 2 passes over A of
    2n²(k + p) flops each, and one for ‖A‖_F, if available, from which the error follows. With a
    tolerance the basis grows as for :func:`svd`. Both ``E = A − QQᴴA`` and ``F = QQᴴA(I − QQᴴ)``
    enter the error, ``‖A − QQᴴAQQᴴ‖² = ‖E‖² + ‖F‖²``, and F is computed. The result is truncated to
    the smallest rank that the tolerance allows; if there is none, the basis grows further. `check`
    tests whether A is Hermitian, also for dense matrices (but not for stacks).

    Eigenvalues are those of the projected matrix: they lie between the smallest and the largest
    eigenvalue of A. Does not support derivatives, or stacks with a tolerance.

    References
    ----------
    N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with randomness, 2011,
    doi:10.1137/090771806, Algorithm 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> A = np.diag([5.0, -4.0, 1e-3, 1e-4, 0.0])
    >>> w, V = lowrank.eigh(A, rtol=1e-2, rng=0)
    >>> w.round(6).tolist()
    [5.0, -4.0]
    """
    operator = as_operator(A, hermitian=True)
    if operator.shape[-1] != operator.shape[-2]:
        raise ValueError(f"`A` must be square (and Hermitian), got shape {operator.shape}.")
    if options.pop("check", False):
        check_adjoint(operator, options.get("rng"), hermitian=True)
    operator = replace(operator, rmatmat=operator.matmat)
    own: dict[str, Any] = {"share": 1.0, "powers": 2, "hermitian": True, "projects": True}
    found = find(operator, rank, oversampling=oversampling, **own, **options)
    w, V, outcome = _at_fixed_rank(found) if found.fixed else _to_tolerance(found, rank)
    return EighResult(eigenvalues=w[..., : outcome.rank], eigenvectors=V, **reported(outcome))


def _at_fixed_rank(found: Found) -> tuple[Array, Array, Outcome]:
    found, C, scale = projection(found)
    T = xa.adjoint_matmul(found.basis.Q, C)
    refuse_infinite(T)
    if found.problem.check_finite:
        _check_hermitian(T, C)
    w, W, _ = _small_eigh(T)
    if scale != 1.0:
        w = w / scale
        refuse_infinite(w)
    outcome = at_fixed_rank(found, lambda k: xa.matrix_norm_by_rows(w[..., None, :k]))
    return w, _signed(found.basis.lift(W[..., : outcome.rank])), outcome


def _signed(V: Array) -> Array:
    """V with the largest entry of each column positive."""
    return V * xa.signed(xa.array_namespace(V).matrix_transpose(V))[..., None, :]


def _to_tolerance(found: Found, rank: int | None) -> tuple[Array, Array, Outcome]:
    """Cut to the smallest rank; if none meets the tolerance, grow the basis once more.

    A is projected from both sides, with ``T = QᴴAQ``. With ``E = A − QQᴴA`` and
    ``F = QQᴴA(I − QQᴴ)``, ``A − Q T_r Qᴴ`` has the orthogonal parts E, F and ``D = Q(T − T_r)Qᴴ``.
    In the spectral norm too ``‖E + F + D‖² ≤ ‖E‖² + ‖F‖² + ‖D‖²``: the range of E is orthogonal to
    that of F + D, and F and D act on orthogonal spaces. If A is Hermitian, ``‖F‖ ≤ ‖E‖``.
    """
    share = 1.0
    while True:
        if isinstance(found.state.residual, FullSVD):
            _check_full_svd(found.state.residual)
        before = found.basis.rank
        found, C, scale = projection(found)
        T, F = _projected(found.basis, C)
        refuse_infinite(T)
        _check_hermitian(T, C)
        lost_across = norm_of(F, found.problem.norm) / scale
        residual, estimate = parts_of(found)
        allowed = residual + 2.0 * found.floor
        if lost_across > allowed:  # impossible for a Hermitian A
            raise not_hermitian(
                f"QᴴA(I − QQᴴ) has norm {lost_across:.3g}, but the error of the basis allows only "
                f"{allowed:.3g}"
            )
        w, W, lost = _small_eigh(T)
        w = w / scale
        refuse_infinite(w)
        outcome = truncated(
            found, xa.array_namespace(w).abs(w), rank,
            residual=math.hypot(residual, lost_across), estimate=math.hypot(estimate, lost_across),
            floor=2.0 * found.floor + float(lost) / scale,
        )  # fmt: skip
        if outcome.converged is not False or share < LEAST_SHARE or outcome.rank == rank:
            break
        share *= 0.5**0.5
        found = refined(found, share)
        if found.basis.rank == before:
            break
    r = outcome.rank
    V = _signed(found.basis.lift(W[:, :r]))
    V, w, _, outcome = with_rounding(found._replace(outcome=outcome), rank, V, w[:r], xa.adjoint(V))
    return w, V, outcome


def _projected(basis: Any, C: Array) -> tuple[Array, Array]:
    """``QᴴC``, and the part of C orthogonal to Q, up to a unitary factor."""
    if isinstance(basis, Orthonormal):
        T = xa.adjoint_matmul(basis.Q, C)
        return T, C - basis.Q @ T
    Z = basis.coordinates(C)
    return Z[: basis.rank, :], Z[basis.rank :, :]


def _check_full_svd(whole: FullSVD) -> None:
    """Raise if A differs from its eigendecomposition, which reads only one triangle of A."""
    size, n = float(xa.safe_norm(whole.S)), whole.U.shape[0]
    limit = ASYMMETRY * xa.eps(whole.S) * (n + 1) ** 0.5 * size
    if whole.rounding > limit:
        raise not_hermitian(f"it has a skew part of about {whole.rounding / size:.3g} of its norm")


def _small_eigh(T: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues by size and eigenvectors of the Hermitian part of T, and their error for T.

    The error is ``‖T − Tᴴ‖_F / 2``, plus that of the decomposition itself.
    """
    xp = xa.array_namespace(T)
    H = (T + xa.adjoint(T)) / 2.0
    w, W = eigh_by_size(H)
    lost = H - (W * xp.astype(w, W.dtype)[..., None, :]) @ xa.adjoint(W)
    return w, W, xa.safe_norm(T - H) + xa.safe_norm(lost)


def _check_hermitian(T: Array, C: Array) -> None:
    """Raise unless ``T = QᴴC`` (each of a stack) is Hermitian up to the rounding of ``C = AQ``."""
    if 0 in T.shape:
        return
    xp, (n, r) = xa.array_namespace(T), C.shape[-2:]
    smallest = float(xp.finfo(T.dtype).smallest_normal)
    largest = xa.largest_of_each(C)
    skew, size = (
        xp.linalg.vector_norm(X / xp.astype(largest, X.dtype), axis=(-2, -1))
        for X in (T / 2.0 - xa.adjoint(T) / 2.0, C)
    )
    largest = largest[..., 0, 0]
    # products of tiny numbers are rounded to multiples of the smallest number
    limit = ASYMMETRY * xa.eps(C) * (r + 1) ** 0.5 * (size + n**0.5 * (smallest / largest))
    excess = xp.reshape(skew / limit, (-1,))
    if float(xp.max(excess)) <= 1.0:
        return
    worst = xp.argmax(excess)
    found, explained = (float(xp.reshape(X * largest, (-1,))[worst]) for X in (skew, limit))
    raise not_hermitian(
        f"QᴴAQ has a skew part of norm {found:.3g}; rounding explains only {explained:.3g}"
    )
