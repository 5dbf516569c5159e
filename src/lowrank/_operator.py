"""What the range finder needs of a matrix: its products, its norm, and where it lives."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lowrank._array import (
    Array,
    Namespace,
    adjoint_matmul,
    array_namespace,
    as_matrix,
    device_of,
    matrix_norm_by_rows,
    max_abs,
)

__all__ = ["Operator", "as_operator"]


@dataclass(frozen=True, slots=True)
class Operator:
    """A matrix (or stack) known by ``matmat(X) = A X`` and ``rmatmat(Y) = Aᴴ Y``."""

    xp: Namespace
    shape: tuple[int, ...]
    dtype: Any
    device: Any
    matmat: Callable[[Array], Array]
    rmatmat: Callable[[Array], Array]
    norm: Callable[[], float]  # ‖A‖_F
    max_abs: Callable[[], float]

    @property
    def is_stack(self) -> bool:
        return len(self.shape) > 2

    @property
    def is_complex(self) -> bool:
        return bool(self.xp.isdtype(self.dtype, "complex floating"))

    def adjoint(self) -> "Operator":
        *batch, m, n = self.shape
        return replace(self, shape=(*batch, n, m), matmat=self.rmatmat, rmatmat=self.matmat)

    def empty(self, rows: int) -> Array:
        """An array of `rows` rows and no columns, where products of this operator live."""
        xp = self.xp
        return xp.zeros((*self.shape[:-2], rows, 0), dtype=self.dtype, device=self.device)


def as_operator(A: Any, /) -> Operator:
    """The operator of an array, or of a sparse matrix of SciPy or CuPy."""
    return _of_sparse(A) if hasattr(A, "tocsr") else _of_array(A)


def _of_array(A: Array) -> Operator:
    A, xp = as_matrix(A, stacks=True)
    return Operator(
        xp=xp,
        shape=tuple(int(length) for length in A.shape),
        dtype=A.dtype,
        device=device_of(A),
        matmat=lambda X: A @ X,
        rmatmat=lambda Y: adjoint_matmul(A, Y),
        norm=lambda: matrix_norm_by_rows(A),
        max_abs=lambda: max_abs(A),
    )


def _of_sparse(A: Any) -> Operator:
    if len(A.shape) != 2:
        message = f"`A` must be a matrix (two dimensions), got shape {tuple(A.shape)}."
        raise ValueError(message)
    csr = A.tocsr()
    if not csr.has_canonical_format:  # entries stored twice count twice in a norm
        csr = csr.copy()
        csr.sum_duplicates()
    values, xp = as_matrix(csr.data[None, :])
    return Operator(
        xp=xp,
        shape=tuple(int(length) for length in A.shape),
        dtype=values.dtype,
        device=device_of(values),
        matmat=lambda X: csr @ X,
        rmatmat=lambda Y: _sparse_adjoint_matmul(csr, Y),
        norm=lambda: matrix_norm_by_rows(values),
        max_abs=lambda: max_abs(values),
    )


def _sparse_adjoint_matmul(csr: Any, Y: Array) -> Array:
    xp = array_namespace(Y)
    # the transpose is a view of the same data, the conjugate would be a copy
    return xp.conj(csr.T @ xp.conj(Y)) if xp.isdtype(Y.dtype, "complex floating") else csr.T @ Y
