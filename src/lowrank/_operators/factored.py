"""Products of a few matrices, used as one matrix without forming it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import matmul
from typing import Any

from lowrank._array import Array, adjoint
from lowrank._array.arithmetic import in_full_precision
from lowrank._operators import UNKNOWN, Operator, located


class Factored:
    """A matrix, or a stack of them, that is a product of factors.

    It can be multiplied from both sides (``found @ X``, ``X @ found``) by vectors, matrices and
    stacks of its library and device. The factors are multiplied one after the other: for rank r,
    shape m×n and p columns, 2pr(m + n) flops. Every function here that takes an operator accepts
    it, and so does :func:`scipy.sparse.linalg.aslinearoperator`.
    """

    __slots__ = ()
    __array_ufunc__ = None  # so that NumPy and CuPy use __rmatmul__ for ``X @ found``

    @property
    def factors(self) -> tuple[Array, ...]:
        """The factors, from left to right."""
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix or stack."""
        left, *_, right = self.factors
        return (*(int(length) for length in left.shape[:-1]), int(right.shape[-1]))

    @property
    def dtype(self) -> Any:
        """Dtype of the entries."""
        return self.factors[0].dtype

    @in_full_precision
    def __matmul__(self, X: Array) -> Array:
        return reduce(lambda product, factor: factor @ product, reversed(self.factors), X)

    @in_full_precision
    def __rmatmul__(self, X: Array) -> Array:
        return reduce(matmul, self.factors, X)

    def adjoint(self) -> "Factored":
        """The conjugate transpose, as a product of the conjugate transposes of the factors."""
        return Product(tuple(adjoint(factor) for factor in reversed(self.factors)))

    def matmat(self, X: Array, /) -> Array:
        """``found @ X``."""
        return self @ X

    def rmatmat(self, Y: Array, /) -> Array:
        """``found.adjoint() @ Y``."""
        return self.adjoint() @ Y

    # SciPy's aslinearoperator looks for these names
    matvec: Callable[..., Array] = matmat
    rmatvec: Callable[..., Array] = rmatmat

    @in_full_precision
    def reconstruct(self) -> Array:
        """The m×n matrix as an array."""
        return reduce(matmul, self.factors)

    def __lowrank_operator__(self) -> Operator:
        products = {"matmat": self.matmat, "rmatmat": self.rmatmat}
        return located(self.factors[0], self.shape, **products, **UNKNOWN)


@dataclass(frozen=True, slots=True, eq=False)
class Product(Factored):
    """The product of given factors."""

    factors: tuple[Array, ...]
