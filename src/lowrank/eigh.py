"""Truncated eigenvalue decomposition of a Hermitian matrix on a randomized range."""

import math
from dataclasses import replace
from typing import Any

from lowrank._array import (
    Array,
    adjoint,
    adjoint_matmul,
    array_namespace,
    eps,
    largest_of_each,
    safe_norm,
    signed,
)
from lowrank._dot_test import check_adjoint
from lowrank._operator import as_operator
from lowrank._small_svd import refuse_infinite
from lowrank._trim import ENERGY_ROUNDING, GOAL, MARGIN, trim
from lowrank.rangefinder import Callback, Norm, find, warn_unless_converged
from lowrank.results import EighResult, Status

__all__ = ["eigh"]

# What rounding may leave of QᴴAQ less its adjoint: this many eps √rank ‖AQ‖.
ASYMMETRY = 100.0


def eigh(
    A: Array,
    /,
    rank: int | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    norm: Norm = "fro",
    oversampling: int = 10,
    power_iterations: int | None = None,
    krylov: bool = False,
    block_size: int | None = None,
    test_matrix: Any = None,
    rng: Any = None,
    failure_probability: float = 1e-9,
    check: bool = False,
    check_finite: bool = True,
    callback: Callback | None = None,
) -> EighResult:
    """Truncated eigenvalue decomposition ``A ≈ V diag(w) Vᴴ`` of a Hermitian matrix.

    A may be indefinite; of a positive semidefinite one :func:`nystrom` makes more in fewer passes.

    Parameters
    ----------
    A : array, shape (n, n), or (..., n, n) at a fixed rank
        Hermitian (symmetric if real), float32 or float64, real or complex (float16 and bfloat16
        are computed in float32). Or a sparse matrix of SciPy, CuPy or PyTorch; or an operator, see
        :class:`RangeFinder`, of which only ``matmat`` is used.
    rank : int, optional
        Rank of the result; more than n count as n. With a tolerance, a cap.
    rtol, atol : float, optional
        The certified error ``‖A − V diag(w) Vᴴ‖`` is at most ``max(rtol · ‖A‖, atol)``.
    norm : {"fro", "spectral"}
        Norm of tolerance, error and bound.
    oversampling : int
        At a fixed rank, columns of the basis beyond `rank`, cut off in the end.
    power_iterations : int, optional
        Products with A² that each block goes through. Default: 2 at a fixed rank; with a tolerance
        0 in the Frobenius and 1 in the spectral norm, and with `krylov`.
    krylov, block_size, test_matrix, rng, failure_probability, check, check_finite, callback
        As for :class:`RangeFinder`; `check` tests whether A is Hermitian, dense matrices too (but
        no stacks).

    Returns
    -------
    EighResult
        Unpacks as ``w, V``: the eigenvalues of largest absolute value, that one first, and
        orthonormal eigenvectors. The largest entry of each column of V in absolute value is
        positive (real and positive).

    Raises
    ------
    TypeError
        If A is no array, sparse matrix or operator of floating dtype, or `rng` or `test_matrix`
        belongs elsewhere.
    ValueError
        If A is not square, or not Hermitian as far as the basis and the norm show it (found with a
        tolerance or with `check_finite`; with `check` whatever they miss is found too); if there is
        no stop rule, an option is out of range, or A holds NaN or Inf.

    Warns
    -----
    ConvergenceWarning
        If a tolerance was given and not certified.

    Notes
    -----
    Fixed rank k with p columns of oversampling and q power iterations: 2q + 2 passes over A of
    2n²(k + p) flops each. With a tolerance the basis grows until its certified error E leaves room
    for both sides: ``‖A − QQᴴAQQᴴ‖ ≤ √2 ‖E‖``. Then it is cut to the smallest rank that the
    tolerance allows.

    Eigenvalues are those of the projected matrix: none is larger than the largest of A, or smaller
    than the smallest. Does not support derivatives, or stacks with a tolerance.

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
        message = f"`A` must be Hermitian, and so square, got shape {operator.shape}."
        raise ValueError(message)
    if check:
        check_adjoint(operator, rng, hermitian=True)
    fixed = rtol is None and atol is None
    finder = find(
        replace(operator, rmatmat=operator.matmat),
        rank,
        rtol=rtol,
        atol=atol,
        power_iterations=power_iterations,
        krylov=krylov,
        cuts=True,
        oversampling=oversampling,
        margin=MARGIN,
        goal=GOAL * 0.5**0.5,
        norm=norm,
        block_size=block_size,
        test_matrix=test_matrix,
        rng=rng,
        failure_probability=failure_probability,
        check_finite=check_finite,
        callback=callback,
    )
    Q = finder.basis()
    C = finder.image(Q)
    T = adjoint_matmul(Q, C)
    refuse_infinite(T)
    if not fixed or check_finite:
        _check_hermitian(T, C)
    w, W, asymmetry, rounding = _small_eigh(T)
    xp = array_namespace(w)
    finder.learn_norm(C)
    outcome = finder.outcome()
    if not fixed:
        if finder.norm_is_exact and outcome["error"] is not None:
            _check_energy(w, outcome["norm_A"], outcome["error_bound"])
        outcome = trim(
            outcome,
            xp.abs(w),
            norm,
            rank,
            floor=finder.floor(),
            rounding=float(asymmetry) + float(rounding),
            norm_is_exact=finder.norm_is_exact,
            hermitian=True,
        )
    elif rank is not None and rank <= finder.rank:
        outcome |= {"rank": rank, "status": Status.RANK_REACHED}
    warn_unless_converged(outcome)
    r = outcome["rank"]
    V = Q @ W[..., :r]
    V = V * signed(xp.matrix_transpose(V))[..., None, :]
    return EighResult(eigenvalues=w[..., :r], eigenvectors=V, **outcome)


def _small_eigh(T: Array) -> tuple[Array, Array, Array, Array]:
    """Eigenvalues by size and eigenvectors of the Hermitian part, and what they leave of T.

    First ``‖T − Tᴴ‖_F / 2``, then what the decomposition itself lost.
    """
    xp = array_namespace(T)
    H = (T + adjoint(T)) / 2.0
    w, W = xp.linalg.eigh(H)
    order = xp.argsort(-xp.abs(w), axis=-1, stable=True)
    w = xp.take_along_axis(w, order, axis=-1)
    W = xp.take_along_axis(W, xp.broadcast_to(order[..., None, :], W.shape), axis=-1)
    lost = H - (W * xp.astype(w, W.dtype)[..., None, :]) @ adjoint(W)
    return w, W, safe_norm(T - H), safe_norm(lost)


def _check_hermitian(T: Array, C: Array) -> None:
    """Raise unless ``T = QᴴC`` is Hermitian up to the rounding of ``C = AQ``, each of a stack."""
    if 0 in T.shape:
        return
    xp, (n, r) = array_namespace(T), C.shape[-2:]
    smallest = float(xp.finfo(T.dtype).smallest_normal)
    largest = largest_of_each(C)
    skew, size = (
        xp.linalg.vector_norm(X / xp.astype(largest, X.dtype), axis=(-2, -1))
        for X in (T / 2.0 - adjoint(T) / 2.0, C)
    )
    largest = largest[..., 0, 0]
    # products of numbers near the smallest ones are rounded to multiples of the smallest
    limit = ASYMMETRY * eps(C) * (r + 1) ** 0.5 * (size + n**0.5 * (smallest / largest))
    excess = xp.reshape(skew / limit, (-1,))
    if float(xp.max(excess)) <= 1.0:
        return
    worst = xp.argmax(excess)
    told, explained = (float(xp.reshape(X * largest, (-1,))[worst]) for X in (skew, limit))
    message = (
        f"`A` is not Hermitian: QᴴAQ has a skew part of norm {told:.3g}, where rounding explains "
        f"{explained:.3g}. Pass (A + Aᴴ)/2, or use `svd`."
    )
    raise ValueError(message)


def _check_energy(w: Array, norm_A: float, bound: float) -> None:
    """Raise where ``‖A − QQᴴAQQᴴ‖_F`` is more than the bound explains of a Hermitian A.

    Its square is ``‖A‖² − ‖QᴴAQ‖²``, and no more than twice that of ``A − QQᴴA`` if A is Hermitian.
    If not, what is left of the rows, ``QᴴA(I − QQᴴ)``, is in no sample of the columns.
    """
    share = float(safe_norm(w)) / norm_A if norm_A > 0 else 1.0
    left = math.sqrt(max(0.0, (1.0 - share) * (1.0 + share) - ENERGY_ROUNDING * eps(w))) * norm_A
    if left > math.sqrt(2.0) * bound:
        message = (
            f"`A` is not Hermitian: QQᴴAQQᴴ is off by {left:.3g}, where a Hermitian A may lose "
            f"{math.sqrt(2.0) * bound:.3g}. Pass (A + Aᴴ)/2, or use `svd`."
        )
        raise ValueError(message)
