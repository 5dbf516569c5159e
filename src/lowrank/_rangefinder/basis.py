"""A growing orthonormal basis, kept as blocks of Householder reflectors."""

from collections.abc import Callable
from dataclasses import dataclass

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg.panel import SMALL, defect, size_of_top, unitary_reflectors


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The unitary matrix ``I − V T Vᴴ``, applied to rows `start` and below."""

    start: int
    V: Array
    T: Array

    @property
    def columns(self) -> int:
        return int(self.T.shape[-1])

    def apply(self, X: Array) -> Array:
        """``(I − V T Vᴴ) X`` on rows `start` and below, written into X if it can be."""
        return self._applied(X, self.T)

    def apply_adjoint(self, X: Array) -> Array:
        """``(I − V Tᴴ Vᴴ) X`` on rows `start` and below, written into X if it can be."""
        return self._applied(X, xa.adjoint(self.T))

    def _applied(self, X: Array, T: Array) -> Array:
        def applied(part: Array) -> Array:
            return subtract_product(part, self.V, T @ xa.adjoint_matmul(self.V, part))

        return xa.updated(X, (..., slice(self.start, None), slice(None)), applied)


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The first k columns of the unitary m×m matrix ``H = H₁ H₂ ⋯``, with one factor per block.

    H is never formed. The rows of ``HᴴA`` below row k are the residual ``A − QQᴴA`` in the
    coordinates of H. The range finder works on those rows alone.
    """

    empty: Array  # m×0: has the library, dtype and device of the basis
    blocks: tuple[Block, ...] = ()
    departure: float = 0.0  # ‖QᴴQ − I‖_F for the columns Q of the last block

    @property
    def rank(self) -> int:
        return sum(block.columns for block in self.blocks)

    def append(self, Q: Array, agreed: Callable[[float], float] = float) -> "Basis":
        """The basis with more columns. Q is orthonormal, in the coordinates of H from row k on.

        Reads from the device once. `agreed` makes a number the same on all processes, before
        anything is decided by it.
        """
        D = defect(Q, is_panel=True)
        size, departure = xa.read(size_of_top(Q), xa.array_namespace(Q).linalg.vector_norm(D))
        V, T = unitary_reflectors(Q, D, is_plain=agreed(size) <= SMALL)
        return Basis(self.empty, (*self.blocks, Block(self.rank, V, T)), departure)

    def deflate(self, Y: Array) -> Array:
        """``(HᴴY)[k:]``."""
        return self.coordinates(Y)[..., self.rank :, :] if self.blocks else Y

    def embed(self, Y: Array) -> Array:
        """``H [0; Y]``, with k rows of zeros above Y."""
        return self.rotate(xa.rows_below(Y, self.rank)) if self.blocks else Y

    def lift(self, X: Array) -> Array:
        """``Q X``, for an X of k rows."""
        below = xa.zeros((*X.shape[:-2], self.empty.shape[-2] - self.rank, X.shape[-1]), X)
        return self.rotate(xa.array_namespace(X).concat([X, below], axis=-2))

    def coordinates(self, Y: Array) -> Array:
        """``HᴴY``; its first k rows are ``QᴴY``."""
        Z = xa.array_namespace(Y).asarray(Y, copy=True)
        for block in self.blocks:
            Z = block.apply_adjoint(Z)
        return Z

    def columns(self, start: int = 0) -> Array:
        """The columns of Q from `start` on, which must begin a block. All columns: 2mk² flops.

        A block of reflectors changes rows `block.start` and below. There the columns of the
        identity to the left of `block.start` are zero, so those columns are skipped.
        """
        *batch, m, _ = self.empty.shape
        width = self.rank - start
        Q = xa.zeros((*batch, m, width), self.empty)
        Q = xa.put(Q, (..., slice(start, start + width), slice(None)), xa.eye(width, width, like=Q))
        for block in reversed(self.blocks):
            Q = xa.updated(Q, (..., slice(max(0, block.start - start), None)), block.apply)
        return Q

    def rotate(self, X: Array) -> Array:
        """``H X`` for an X of m rows, written into X if it can be."""
        for block in reversed(self.blocks):
            X = block.apply(X)
        return X


def subtract_product(Y: Array, V: Array, W: Array) -> Array:
    """``Y − V W``, written into Y if it can be, for a matrix or stack with many rows."""
    xp = xa.array_namespace(Y)
    if xa.is_jax_namespace(xp):
        return Y - V @ W
    if xa.is_torch_namespace(xp) and Y.ndim == 2:
        return Y.addmm_(V, W, alpha=-1)
    # by blocks of rows: no product is as large as Y, and on NumPy each one fits into the cache
    m, n = Y.shape[-2:]
    rows = max(1, max(2**16, 0 if xa.is_numpy_namespace(xp) else m * n // 16) // max(1, n))
    for part in xa.slices(m, rows):
        Y[..., part, :] -= V[..., part, :] @ W
    return Y
