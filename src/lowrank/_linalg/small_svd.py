"""SVD of the small matrix B: the library's SVD, checked and corrected."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg.certificate import safety_factor
from lowrank._linalg.panel import defect, is_mixed, mixed_svd, orthonormalize
from lowrank._operators.sketch import gaussian_source
from lowrank.results import QRResult

# Up to MANY columns, Gram matrices and residuals are computed; of larger ones SAMPLES bound the
# norm, and FEW samples decide whether to try again.
MANY, SAMPLES, FEW = 256, 32, 8
TOO_LARGE = (
    "QᴴA is not finite: `A` holds NaN or Inf, or a singular value of it exceeds the largest number "
    "of its dtype; divide `A` by a constant."
)
# Random rotations to try if an SVD does not converge, or its vectors are not orthonormal.
ROTATIONS = 4


class SmallSVD(NamedTuple):
    """``B = Rᴴ Pᴴ`` with P (n×k) orthonormal, and ``Rᴴ = U diag(S) W``, all k×k.

    Without W, ``B = U Rᴴ Pᴴ`` with R near diag(S).
    """

    R: Array
    U: Array
    S: Array
    W: Array | None
    P: Array

    def right(self, rank: int) -> Array:
        """The first `rank` right singular vectors, as columns."""
        return self.P[..., :rank] if self.W is None else self.P @ xa.adjoint(self.W[..., :rank, :])

    def rounding(self, C: Array | None = None) -> float:
        """``‖Rᴴ − U diag(S) W‖_F``, the error of the library's SVD (gesdd leaves up to 40 eps).

        Given ``C = Bᴴ``, also that of its QR, which may be p/4 eps for p rows of equal numbers.
        """
        xp, more = xa.array_namespace(self.R), 0.0
        if C is not None:
            R = self.R if self.W is not None else self.R @ xa.adjoint(self.U)
            more = _lost(C, self.P, xp.ones_like(self.S), R)
        if self.W is not None:
            return more + _lost(xa.adjoint(self.R), self.U, self.S, self.W)
        identity = xa.eye(self.R.shape[-1], self.R.shape[-1], like=self.R)
        return more + float(xa.safe_norm(self.R - xp.astype(self.S, self.R.dtype) * identity))


def small_svd(C: Array, qr: Callable[[Array], QRResult] = orthonormalize) -> SmallSVD:
    """SVD of ``B = Cᴴ`` by a QR of the tall n×k matrix C; the caller may pass its own `qr`.

    C must be finite; the caller checks that S is finite, too.
    """
    if qr is orthonormalize and is_mixed(C):
        return SmallSVD(*mixed_svd(C))
    P, R = qr(C)
    U, S, W = robust_svd(xa.adjoint(R))
    return SmallSVD(R, U, S, W, P)


def svd_of(A: Array, *, hermitian: bool = False) -> tuple[Array, Array, Array, float]:
    """Thin SVD of a matrix of any shape: U, S, Vh, and a bound on its rounding error.

    The SVD of a `hermitian` matrix is computed from its eigenvalues.
    """
    U, S, Vh = _factors(A, hermitian=hermitian)
    return U, S, Vh, _lost(A, U, S, Vh, of_basis=True)


def _factors(A: Array, *, hermitian: bool = False) -> tuple[Array, Array, Array]:
    xp, (m, n) = xa.array_namespace(A), A.shape
    if hermitian:
        w, U = eigh_by_size(A)
        return U, xp.abs(w), xa.adjoint(U) * xp.astype(xp.sign(w), U.dtype)[:, None]
    if n > 2 * m:
        V, S, Uh = _factors(xa.adjoint(A))
        return xa.adjoint(Uh), S, xa.adjoint(V)
    if m > 2 * n:
        P, R = orthonormalize(A)
        U, S, Vh = robust_svd(R)
        return P @ U, S, Vh
    return robust_svd(A)


def eigh_by_size(H: Array) -> tuple[Array, Array]:
    """Eigenvalues, those of largest absolute value first, and eigenvectors."""
    xp = xa.array_namespace(H)
    w, V = xp.linalg.eigh(H)
    order = xp.argsort(-xp.abs(w), axis=-1, stable=True)
    every = xp.broadcast_to(order[..., None, :], V.shape)
    return xp.take_along_axis(w, order, axis=-1), xp.take_along_axis(V, every, axis=-1)


def _lost(A: Array, U: Array, S: Array, Vh: Array, *, of_basis: bool = False) -> float:
    """``‖A − U diag(S) Vh‖_F``; for large matrices a bound that fails with probability 1e-12.

    With `of_basis`, ``‖(UᴴU − I) diag(S)‖_F`` is added: it is part of the error ``A − UUᴴA``.
    """
    xp, k = xa.array_namespace(A), S.shape[0]
    weights = xp.astype(S, U.dtype)
    if k <= MANY:
        parts = [A - (U * weights) @ Vh]
        if of_basis:
            parts.append(defect(U) * weights)
        return sum(float(xa.safe_norm(part)) for part in parts)
    X, AX = sample_of(A)
    Z = weights[:, None] * _product(Vh, X)
    Y = _product(U, Z)
    return norm_of_samples(AX - Y, *([xa.adjoint_matmul(U, Y) - Z] if of_basis else []))


def _product(Q: Array, X: Array) -> Array:
    """``Q X``. torch's SVD stores Q by columns, and its products with such a Q take up to three
    times as long as those of the transposes, which read it by rows.
    """
    xp = xa.array_namespace(Q)
    if not xa.is_torch_namespace(xp):
        return Q @ X
    return xp.matrix_transpose(xp.matrix_transpose(X) @ xp.matrix_transpose(Q))


def sample_of(A: Array) -> tuple[Array, Array]:
    """A Gaussian Ω of SAMPLES columns, and ``A Ω``."""
    Omega = _gaussian("rounding", (A.shape[-1], SAMPLES), A)
    return Omega, A @ Omega


def norm_of_samples(*parts: Array) -> float:
    """A bound on ``Σ ‖X‖_F`` from samples ``X Ω``, which fails with probability 1e-12."""
    factor = safety_factor(SAMPLES, 1e-12, is_complex=xa.is_complex(parts[0])) / SAMPLES**0.5
    return factor * sum(float(xa.safe_norm(part)) for part in parts)


def tails(S: Array, norm: str) -> Array:
    """The error of a truncation at each rank 0, …, k: the norms of the tails of S."""
    xp = xa.array_namespace(S)
    nothing = xp.zeros((1,), dtype=S.dtype, device=xa.device_of(S))
    if norm == "spectral":
        return xp.concat([S, nothing])
    # summed from the smallest on
    return xp.concat([xp.sqrt(xp.flip(xp.cumulative_sum(xp.flip(S) ** 2))), nothing])


def robust_svd(M: Array) -> tuple[Array, Array, Array]:
    """Thin SVD of a small matrix or stack; a ValueError if it is not finite.

    LAPACK's gesdd, which NumPy and torch call, has three faults. It fails on some finite matrices
    with clustered singular values (numpy issue 11887, OpenBLAS issue 3044). For others of that kind
    its vectors are orthonormal only to 1e-6 (the "steps" spectrum with κ = 1e10 shows both). And it
    may never return for infinite matrices. So infinite matrices are rejected. If the SVD fails, the
    matrix is multiplied by a random rotation, which is backward stable, and tried again. If vectors
    are still not orthonormal, they are orthonormalized.

    cuSOLVER's gesvdj, which torch calls on a GPU, squares entries beyond the range of the dtype,
    and its vectors are orthonormal only to a few dozen eps. There the matrix is divided by its
    largest entry, and vectors are orthonormalized without another trial.
    """
    if xa.is_traced(M):
        return xa.array_namespace(M).linalg.svd(M, full_matrices=False)
    refuse_infinite(M)
    if not xa.is_of_a_gpu(M) or 0 in M.shape:
        U, S, W = _svd(M, retries=True)
    else:
        largest = xa.largest_of_each(M)
        U, S, W = _svd(M / largest, retries=False)
        S = S * largest[..., 0]
    refuse_infinite(S)
    return U, S, W


def refuse_infinite(X: Array) -> None:
    """Raise unless a product with A is finite."""
    if not xa.is_traced(X) and not xa.is_finite(X):
        raise ValueError(TOO_LARGE)


def _svd(M: Array, *, retries: bool) -> tuple[Array, Array, Array]:
    xp = xa.array_namespace(M)
    errors: tuple[type[Exception], ...] = (np.linalg.LinAlgError,)
    if xa.is_torch_namespace(xp):
        errors += (xa.loaded("torch").linalg.LinAlgError,)
    found, failure = None, None
    for trial in range(ROTATIONS + 1):
        G = _rotation(trial, M) if trial else None
        try:
            U, S, W = xp.linalg.svd(M if G is None else M @ G, full_matrices=False)
        except errors as error:
            failure = error
            continue
        found = U, S, W if G is None else W @ xa.adjoint(G)
        if _are_orthonormal(U, xa.adjoint(W), limit=64.0 if retries else 32.0):
            return found
        if not retries:
            break
    if found is None:
        raise failure or AssertionError
    return _polished(M, found[0])


def _rotation(seed: int, M: Array) -> Array:
    shape = (*M.shape[:-2], M.shape[-1], M.shape[-1])
    return orthonormalize(_gaussian("rotation", shape, M, seed)).Q


def _gaussian(purpose: str, shape: tuple[int, ...], like: Array, seed: int = 0) -> Array:
    draw = gaussian_source(seed, xa.array_namespace(like), xa.device_of(like), purpose=purpose)
    return draw(shape, like.dtype)


def _are_orthonormal(*bases: Array, limit: float) -> bool:
    """Whether all bases, and all members of a stack, are orthonormal to `limit` eps √k."""
    departure = 0.0
    for Q in bases:
        if 0 in Q.shape:
            return True
        xp, k = xa.array_namespace(Q), Q.shape[-1]
        if k > MANY:  # the square of ‖(QᴴQ − I)X‖_F/√samples is unbiased for that of QᴴQ − I
            X, samples = _gaussian("orthonormal", (k, FEW), Q), FEW
        else:
            X, samples = xa.eye(k, k, like=Q), 1
        left = xa.adjoint_matmul(Q, _product(Q, X)) - X
        departure = departure + xp.max(xp.sum(xp.abs(left) ** 2, axis=(-2, -1))) / samples
    return bool(departure <= (limit * xa.eps(Q)) ** 2 * k)


def _polished(M: Array, U: Array) -> tuple[Array, Array, Array]:
    """SVD of M from a U that is nearly orthonormal, with columns near the singular vectors.

    The errors of U mix vectors within clusters of singular values. Once U is orthonormal, the rows
    of UᴴM are orthogonal up to that error times the width of the cluster, and the triangular factor
    of their QR is diagonal up to the same.
    """
    xp = xa.array_namespace(M)
    U = orthonormalize(U).Q
    P, R = orthonormalize(xa.adjoint(xa.adjoint(U) @ M))
    diagonal = xp.linalg.diagonal(R)
    # sorting moves only values that are equal up to this error
    S = -xp.sort(-xp.abs(diagonal), axis=-1)  # no flip: other libraries reject negative strides
    return U, S, xa.adjoint(P * xa.phases(diagonal)[..., None, :])
