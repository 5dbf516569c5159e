"""Blocked Householder QR that can grow, as one accumulated compact WY pair (V, T)."""

from typing import Literal

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._array.arithmetic import in_full_precision
from lowrank._linalg.panel import orthonormalize, reflectors
from lowrank._linalg.sharded import shards_of
from lowrank._linalg.triangular import block_triangle
from lowrank._operators.checks import as_block_size
from lowrank.results import QRResult

__all__ = ["HouseholderQR", "householder_qr", "qr", "reflect"]


class HouseholderQR:
    """QR factorization with the orthogonal factor kept as reflectors; columns can be appended.

    The m×m unitary factor is ``Q = (I − V T Vᴴ) · diag(D, I)`` with one accumulated compact WY
    pair: V is m×k, T is k×k and D is block diagonal with unitary blocks. Only :meth:`thin` forms
    its columns. Objects are made by :func:`householder_qr`.

    Attributes
    ----------
    R : array
        Upper triangular (trapezoidal for wide matrices), min(m, n)×n.
    V, T : array
        The compact WY pair. T is block upper triangular; its diagonal blocks are full.
    D : tuple of array
        Diagonal blocks of D, one per panel.
    shape : tuple of int
        ``(m, n)`` of the matrix factored so far.
    rank : int
        Number of reflectors k = min(m, n), independent of the numerical rank of the matrix.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> A = np.arange(12.0).reshape(4, 3)
    >>> F = lowrank.householder_qr(A[:, :2])
    >>> F.extend(A[:, 2:]).shape
    (4, 3)
    >>> bool(np.allclose(F.thin() @ F.R, A))
    True
    """

    def __init__(self, V: Array, T: Array, D: tuple[Array, ...], R: Array, block_size: int) -> None:
        self.V, self.T, self.D, self.R, self._block_size = V, T, D, R, block_size

    def __repr__(self) -> str:
        m, n = self.shape
        home = f"dtype={self.V.dtype}, device={xa.device_of(self.V)}"
        return f"HouseholderQR({m}×{n}, rank={self.rank}, {home})"

    @property
    def rank(self) -> int:
        return int(self.T.shape[-1])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.V.shape[-2]), int(self.R.shape[-1])

    @in_full_precision
    def apply(self, X: Array, /) -> Array:
        """``Q X`` for an m×c array X (or stack). Cost: 4mkc flops.

        Raises
        ------
        ValueError, TypeError
            If X does not have m rows, or another dtype or array library than the factorization.
        """
        X, k = self._check(X), self.rank
        top = _blocks_times(self.D, X[..., :k, :])
        X = xa.array_namespace(X).concat([top, X[..., k:, :]], axis=-2)
        Z = self.V @ (-self.T @ xa.adjoint_matmul(self.V, X))
        Z += X  # in place: allocating memory would take as long as the product
        return Z

    @in_full_precision
    def apply_adjoint(self, X: Array, /) -> Array:
        """``Qᴴ X`` for an m×c array X (or stack). Cost: 4mkc flops.

        Raises
        ------
        ValueError, TypeError
            If X does not have m rows, or another dtype or array library than the factorization.
        """
        X, k = self._check(X), self.rank
        Z = self.V @ -xa.adjoint_matmul(self.T, xa.adjoint_matmul(self.V, X))
        Z += X
        top = _blocks_adjoint_times(self.D, Z[..., :k, :])
        return xa.put(Z, (..., slice(k), slice(None)), top)

    @in_full_precision
    def thin(self) -> Array:
        """The first k columns of Q, m×k, orthonormal to rounding: ``A == thin() @ R``.

        Cost: 2mk² flops; nothing is cached.
        """
        k = self.rank
        Q = self.V @ (-self.T @ xa.adjoint(_blocks_adjoint_times(self.D, self.V[..., :k, :])))
        top = Q[..., :k, :] + _blocks_times(self.D, xa.eye(k, k, like=self.T))
        return xa.put(Q, (..., slice(k), slice(None)), top)

    @in_full_precision
    def extend(self, Y: Array, /) -> "HouseholderQR":
        """Append the columns of `Y` (m×c), as if they had been in the matrix from the start.

        Changes the object and returns it; after an exception it is unchanged. Cost: 4mkc + 2mc²
        flops for the panels, and 2mkc for the off-diagonal block of T.

        Raises
        ------
        ValueError, TypeError
            If Y does not have m rows, or another dtype or array library than the factorization.
        """
        # The new reflectors act on rows k and below. The product of both has the compact form
        # (I − V₁T₁V₁ᴴ)(I − V₂T₂V₂ᴴ) = I − [V₁ V₂] [[T₁, −T₁(V₁ᴴV₂)T₂], [0, T₂]] [V₁ V₂]ᴴ.
        k, Z, xp = self.rank, self.apply_adjoint(Y), xa.array_namespace(self.V)
        lower = reflect(Z[..., k:, :], self._block_size)
        coupling = -self.T @ (xa.adjoint_matmul(self.V[..., k:, :], lower.V) @ lower.T)
        self.V, self.T, self.D, self.R = (
            xp.concat([self.V, xa.rows_below(lower.V, k)], axis=-1),
            block_triangle(self.T, coupling, lower.T),
            self.D + lower.D,
            block_triangle(self.R, Z[..., :k, :], lower.R),
        )
        return self

    def _check(self, X: Array) -> Array:
        X, _ = xa.as_matrix(X, name="X", stacks=True)
        xa.same_place(self.V, X, names=("A", "X"))
        if X.shape[-2] != self.shape[0]:
            raise ValueError(
                f"expected {self.shape[0]} rows, got an array of shape {tuple(X.shape)}."
            )
        return X


def reflect(Y: Array, block_size: int) -> HouseholderQR:
    """Householder QR of any matrix or stack; the columns are halved down to single panels.

    The recursion (Elmroth & Gustavson, Applying recursion to serial and parallel QR factorization
    leads to better performance, 2000, doi:10.1147/rd.444.0605) keeps the products wide.
    """
    m, n = Y.shape[-2:]
    if n == 0 or m == 0:
        *batch, _, _ = Y.shape
        V, T, R = (xa.zeros((*batch, *size), Y) for size in ((m, 0), (0, 0), (0, n)))
        return HouseholderQR(V, T, (), R, block_size)
    if n > m:
        return reflect(Y[..., :m], block_size).extend(Y[..., m:])
    if n <= block_size:
        Q, R = orthonormalize(Y)
        V, T, D = reflectors(Q)
        return HouseholderQR(V, T, (D,), R, block_size)
    half = block_size * ((-(-n // block_size) + 1) // 2)
    return reflect(Y[..., :half], block_size).extend(Y[..., half:])


def _blocks_times(D: tuple[Array, ...], X: Array) -> Array:
    """``diag(D) X``, for an X of as many rows as D has."""
    parts, start = [], 0
    for block in D:
        parts.append(block @ X[..., start : start + block.shape[-1], :])
        start += block.shape[-1]
    return xa.array_namespace(X).concat(parts, axis=-2) if parts else X


def _blocks_adjoint_times(D: tuple[Array, ...], X: Array) -> Array:
    return _blocks_times(tuple(map(xa.adjoint, D)), X)


@in_full_precision
def householder_qr(A: Array, /, *, block_size: int | None = None) -> HouseholderQR:
    """Blocked Householder QR, ``A = Q R`` with Q kept as reflectors.

    Parameters
    ----------
    A : array, shape (..., m, n)
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Any
        shape and any rank, also with zero, graded or dependent columns.
    block_size : int, optional
        Panel width; by default 64 on a CPU and 128 elsewhere. It affects only rounding and speed.

    Returns
    -------
    HouseholderQR
        With ``apply``, ``apply_adjoint``, ``thin``, ``extend`` and ``R``.

    Raises
    ------
    TypeError
        If A is not a floating array of a supported library.
    ValueError
        If A has fewer than two dimensions or `block_size` is not positive.

    Notes
    -----
    Cost: 3mn² flops for tall matrices (2mn² for the panels and updates, mn² to accumulate T).
    Columns are not pivoted, so R does not reveal the rank, and the diagonal of R has no fixed sign.
    The input is not checked for NaN and Inf; they lead to NaN.

    References
    ----------
    R. Schreiber and C. Van Loan, A storage-efficient WY representation for products of Householder
    transformations, 1989, doi:10.1137/0910005. E. Elmroth and F. G. Gustavson, Applying recursion
    to serial and parallel QR factorization leads to better performance, 2000,
    doi:10.1147/rd.444.0605. In a range finder, with the orthogonal factor left implicit: C. Penke,
    Efficient computation of low-rank representations to reduce memory requirements in deep
    learning, talk, 2024, FZJ-2024-06883, doi:10.34734/FZJ-2024-06883; C. Penke and A. Herten, A
    GPU-accelerated blocked adaptive randomized range finder based on an implicit Householder QR
    decomposition, manuscript, 2026.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> F = lowrank.householder_qr(np.eye(5, 3))
    >>> F.shape, F.rank
    ((5, 3), 3)
    """
    A, _ = xa.as_matrix(A, stacks=True)
    return reflect(A, as_block_size(block_size, A))


@in_full_precision
def qr(A: Array, /, *, mode: Literal["reduced", "complete"] = "reduced") -> QRResult:
    """QR factorization with explicit factors, a replacement for ``xp.linalg.qr``.

    Parameters
    ----------
    A : array, shape (..., m, n)
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32), any
        rank. Or a DTensor of PyTorch, sharded by rows, with m ≥ n: Q is then sharded in the same
        way, and R replicated.
    mode : {"reduced", "complete"}
        Q is m×min(m, n) or m×m; R has as many rows as Q has columns.

    Returns
    -------
    QRResult
        Named tuple ``(Q, R)``: Q orthonormal to rounding for every rank, R upper triangular.

    Raises
    ------
    TypeError
        If A is not a floating array of a supported library.
    ValueError
        If A has fewer than two dimensions, or `mode` is unknown.

    Notes
    -----
    Cost for tall matrices: 4mn² flops where the library's own `qr` is used (PyTorch on a CPU), 3mn²
    to 6mn² in matrix products on NumPy, and about 20mn² on CUDA. A wide matrix costs as much as its
    first m columns, and one product. The diagonal of R has no fixed sign. Does not support
    derivatives. See :func:`householder_qr` for the factored form.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> A = np.arange(6.0).reshape(3, 2)
    >>> Q, R = lowrank.qr(A)
    >>> bool(np.allclose(Q @ R, A))
    True
    """
    if mode not in ("reduced", "complete"):
        raise ValueError(f"`mode` must be 'reduced' or 'complete', got {mode!r}.")
    shards = shards_of(A)
    if shards is not None:
        return shards.qr(mode)
    if mode == "reduced":
        A, _ = xa.as_matrix(A, stacks=True)
        return orthonormalize(A)
    F = householder_qr(A)
    m, k = F.shape[0], F.rank
    xp = xa.array_namespace(F.R)
    *batch, _, n = F.R.shape
    identity = xa.eye(m, m, like=F.V) + xa.zeros((*batch, m, m), F.V)
    return QRResult(F.apply(identity), xp.concat([F.R, xa.zeros((*batch, m - k, n), F.R)], axis=-2))
