"""Nyström approximation of a positive semidefinite matrix, in one pass over it."""

from typing import Any

from lowrank._array import Array, Namespace, adjoint, adjoint_matmul, largest_of_each, same_place
from lowrank._array.arithmetic import in_full_precision
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.small_svd import robust_svd
from lowrank._operators import Operator, as_operator
from lowrank._operators.checks import as_count
from lowrank._operators.sketch import TestMatrix
from lowrank._rangefinder.sampling import NOT_FINITE
from lowrank.results import EighResult, Status

__all__ = ["nystrom"]

# ΩᴴAΩ may lack symmetry, or have negative eigenvalues, of up to this many times the shift ν.
SLACK = 8.0
NOT_HERMITIAN = (
    "`A` is not Hermitian: ΩᴴAΩ is not, for an orthonormal Ω. If only by rounding, pass (A + Aᴴ)/2."
)
NOT_SEMIDEFINITE = (
    "`A` is not positive semidefinite: ΩᴴAΩ has a negative eigenvalue, for an orthonormal Ω. Use "
    "lowrank.eigh, which takes any Hermitian matrix."
)
MESSAGES = (NOT_FINITE, NOT_HERMITIAN, NOT_SEMIDEFINITE)


@in_full_precision
def nystrom(
    A: Array,
    /,
    rank: int,
    *,
    oversampling: int = 10,
    test_matrix: Any = None,
    rng: Any = None,
    check_finite: bool = True,
) -> EighResult:
    """Eigenvalues and eigenvectors of a positive semidefinite ``A ≈ V diag(w) Vᴴ``, in one pass.

    Parameters
    ----------
    A : array, shape (..., n, n)
        Hermitian positive semidefinite, real or complex, float32 or float64 (float16 and bfloat16
        are computed in float32). Or a sparse matrix of SciPy, CuPy or PyTorch; or an operator, see
        :class:`RangeFinder`, of which only `matmat` is used.
    rank : int
        Rank of the result, at most n.
    oversampling : int
        Columns of the test matrix beyond `rank`.
    test_matrix, rng
        As for :class:`RangeFinder`. Only the range of the test matrix matters. The test matrix
        ``range_finder(A, rank + oversampling).Q`` gives the method of Halko, Martinsson and Tropp
        (2011, Algorithm 5.5), which takes two passes and is far more accurate.
    check_finite : bool
        Read one number from the device, and raise an error for NaN and Inf, and for a matrix that
        is not Hermitian or not positive semidefinite. Only the sketch is tested: it may miss
        negative eigenvalues.

    Returns
    -------
    EighResult
        Unpacks as ``w, V``. Eigenvalues are not negative, the largest first; eigenvectors are
        orthonormal to rounding, also if `rank` exceeds the rank of A.

    Raises
    ------
    TypeError
        If A is not an array, sparse matrix or operator of floating dtype, or `rng` or `test_matrix`
        belongs to another library or device.
    ValueError
        If A is not square, an option is out of range, the test matrix has too few columns, or A
        is found not to be finite, Hermitian or positive semidefinite.

    Notes
    -----
    The approximation is ``A Ω (ΩᴴAΩ)⁺ ΩᴴA``, truncated to `rank`. It takes one product of
    2n²k flops with ``k = rank + oversampling`` columns, and 10nk² to 16nk² flops more. Its
    eigenvalues never exceed those of A, up to rounding. In every unitarily invariant norm it is at
    least as near to A as ``QQᴴAQQᴴ`` and ``QQᴴA`` are, for a basis Q of the range of Ω. For a
    Gaussian Ω the expected error in the trace norm is at most ``1 + rank/(oversampling − 1)`` times
    the best possible one (``1 + rank/oversampling`` if complex). There are no power iterations: if
    the spectrum decays slowly, :func:`svd` is more accurate, in more passes.

    A is replaced by ``A + νI``, with ν about ``√n eps ‖A‖``, above the rounding of the product, and
    ν is subtracted at the end. Eigenvalues below ν are noise. The reference uses a Cholesky factor
    of ``ΩᴴAΩ``, which can fail. Here its eigenvalues are used, and only those that rounding made
    negative are set to zero.

    The error is not computed. ``lowrank.residual_norm(A, found)`` estimates and bounds it, with one
    more product of 64 columns.

    Memory beyond A: less than 7nk + 15k² entries. Does not support derivatives or tolerances.

    References
    ----------
    J. A. Tropp, A. Yurtsever, M. Udell and V. Cevher, Fixed-rank approximation of a
    positive-semidefinite matrix from streaming data, 2017, arXiv 1706.05736, Algorithm 3.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> A = np.diag(0.5 ** np.arange(100))
    >>> w, V = lowrank.nystrom(A, 5, rng=0)
    >>> bool(np.allclose(w, 0.5 ** np.arange(5), atol=1e-3))
    True
    """
    operator = as_operator(A, hermitian=True)
    *batch, n, columns = operator.shape
    if n != columns:
        raise ValueError(f"`A` must be square, got shape {operator.shape}.")
    wanted = as_count(rank, "rank")
    k = min(wanted + as_count(oversampling, "oversampling"), n)
    r, status = min(wanted, n), Status.FULL_RANK if wanted > n else Status.RANK_REACHED
    Omega = TestMatrix(operator, test_matrix, rng).draw(k)
    if Omega.shape[-1] < k:
        missing = k - Omega.shape[-1]
        raise ValueError(f"`test_matrix` needs {missing} more columns; pass a wider one.")
    if k == 0 or 0 in batch:
        V = Omega
        w = operator.xp.abs(operator.xp.sum(V, axis=-2))  # zeros: real, one per column of V
    else:
        w, V = _decompose(operator, Omega, check_finite=check_finite)
    return EighResult(
        eigenvalues=w[..., :r], eigenvectors=V[..., :r], status=status, rank=r, passes=1, products=k
    )


def _decompose(A: Operator, Omega: Array, *, check_finite: bool) -> tuple[Array, Array]:
    """Eigenvalues and vectors of ``Y B⁻¹ Yᴴ − νI`` for ``Y = (A + νI)Ω`` and ``B = ΩᴴY``.

    With ``ΩᴴAΩ = W diag(d) Wᴴ`` and ``Y = QR``, the first is ``Q F Fᴴ Qᴴ`` for
    ``F = R W diag(d + ν)^{−1/2}``. A column of F for a small d has a small norm, about √(d + ν),
    and so a small error: rounding of Y changes the result by eps ‖A‖, not by its square root.
    """
    xp = A.xp
    Omega = orthonormalize(Omega).Q
    product = A.matmat(Omega)
    same_place(product, Omega, names=("A.matmat(X)", "test_matrix"))
    real = xp.finfo(product.dtype)
    largest = largest_of_each(product)
    Y = product / xp.astype(largest, product.dtype)
    size = xp.sqrt(xp.sum(xp.abs(Y) ** 2, axis=(-2, -1), keepdims=True))
    # for a zero matrix, any positive number
    n = float(Y.shape[-2])
    nu = xp.where(size > 0, size, size + 1)
    # products of tiny numbers are rounded to multiples of the smallest number
    nu = float(real.eps) * n**0.5 * (nu + n**0.5 * (float(real.smallest_normal) / largest))

    B = adjoint_matmul(Omega, Y)
    skew = xp.sqrt(xp.sum(xp.abs(B - adjoint(B)) ** 2, axis=(-2, -1)))
    finite = xp.isfinite(size[..., 0, 0])
    # LAPACK fails on NaN: replace B, and report below
    B = xp.where(finite[..., None, None], B, xp.zeros_like(B))
    d, W = xp.linalg.eigh((B + adjoint(B)) / 2)
    Q, R = orthonormalize(Y + xp.astype(nu, Y.dtype) * Omega)
    if check_finite:
        slack = SLACK * nu[..., 0, 0]
        _raise_if_unfit(finite, skew <= slack, xp.min(d, axis=-1) >= -slack, xp)
    nu = nu[..., 0]
    d = xp.maximum(d, xp.zeros_like(d)) + nu
    U, S, _ = robust_svd(R @ (W / xp.astype(xp.sqrt(d), W.dtype)[..., None, :]))
    w = S**2 - nu
    return xp.maximum(w, xp.zeros_like(w)) * largest[..., 0], Q @ U


def _raise_if_unfit(finite: Array, hermitian: Array, semidefinite: Array, xp: Namespace) -> None:
    """Raise for the first of the three conditions that fails for a member; reads one number."""
    first = [xp.astype(xp.all(holds), xp.int64) for holds in (finite, hermitian, semidefinite)]
    holding = int(first[0] * (1 + first[1] * (1 + first[2])))
    if holding < len(MESSAGES):
        raise ValueError(MESSAGES[holding])
