"""A growing orthonormal basis, kept as blocks of Householder reflectors."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._panel import SMALL, defect, size_of_top, unitary_reflectors


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """``I − V T Vᴴ``, unitary, which acts on the rows from `start` on."""

    start: int
    V: Array
    T: Array

    @property
    def columns(self) -> int:
        return int(self.T.shape[-1])

    def apply(self, X: Array) -> None:
        """``X ← (I − V T Vᴴ) X`` on its rows of X, in place."""
        part = X[..., self.start :, :]
        xa.subtract_product(part, self.V, self.T @ xa.adjoint_matmul(self.V, part))

    def apply_adjoint(self, X: Array) -> None:
        """``X ← (I − V Tᴴ Vᴴ) X`` on its rows of X, in place."""
        part = X[..., self.start :, :]
        xa.subtract_product(part, self.V, xa.adjoint(self.T) @ xa.adjoint_matmul(self.V, part))


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The first k columns of the unitary m×m matrix ``H = H₁ H₂ ⋯``, one factor for each block.

    H is never formed. What is left of A when the basis is projected out of it is, in the
    coordinates of H, rows k and on of ``HᴴA``: the range finder works on those rows alone.
    """

    empty: Array  # m×0, where everything lives
    blocks: tuple[Block, ...] = ()
    departure: float = 0.0  # ‖QᴴQ − I‖_F for the columns Q of the last block

    @property
    def rank(self) -> int:
        return sum(block.columns for block in self.blocks)

    @property
    def rows(self) -> int:
        return int(self.empty.shape[-2])

    def append(self, Q: Array, agreed: Callable[[float], float] = float) -> "Basis":
        """The basis with more columns: Q is orthonormal, and has rows k and on. One read.

        A number by which something is decided is `agreed` by all processes.
        """
        D = defect(Q, is_panel=True)
        size, departure = xa.read(size_of_top(Q), xa.array_namespace(Q).linalg.vector_norm(D))
        V, T = unitary_reflectors(Q, D, is_plain=agreed(size) <= SMALL)
        return Basis(self.empty, (*self.blocks, Block(self.rank, V, T)), departure)

    def deflate(self, Y: Array) -> Array:
        """Rows k and on of ``HᴴY``."""
        return self.coordinates(Y)[..., self.rank :, :] if self.blocks else Y

    def embed(self, Y: Array) -> Array:
        """``H [0; Y]``, for rows k and on."""
        return self.rotate(xa.rows_below(Y, self.rank)) if self.blocks else Y

    def lift(self, X: Array) -> Array:
        """``Q X``, for the basis Q and k rows X."""
        below = xa.zeros((*X.shape[:-2], self.rows - self.rank, X.shape[-1]), X)
        return self.rotate(xa.array_namespace(X).concat([X, below], axis=-2))

    def coordinates(self, Y: Array) -> Array:
        """``HᴴY`` whole; its first k rows are ``QᴴY``."""
        Z = xa.array_namespace(Y).asarray(Y, copy=True)
        for block in self.blocks:
            block.apply_adjoint(Z)
        return Z

    def columns(self, start: int = 0) -> Array:
        """Columns `start` and on of Q, `start` at the edge of a block: 2mk² flops for all.

        Reflectors act on rows from their own first column on, where the columns of the unit matrix
        to the left of it are zero.
        """
        *batch, m, _ = self.empty.shape
        width = self.rank - start
        Q = xa.zeros((*batch, m, width), self.empty)
        Q[..., start : start + width, :] = Q[..., start : start + width, :] + xa.eye(
            width, width, like=Q
        )
        for block in reversed(self.blocks):
            block.apply(Q[..., max(0, block.start - start) :])
        return Q

    def rotate(self, X: Array) -> Array:
        """``H X`` for an X of m rows, in place."""
        for block in reversed(self.blocks):
            block.apply(X)
        return X
