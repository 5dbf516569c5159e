"""Tensors of PyTorch that are sharded over processes, `DTensor`: what each process has to do."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._operator import Operator, as_operator, shape_of
from lowrank._panel import QR, orthonormalize
from lowrank._sketch import as_generator


@dataclass(frozen=True)
class Rows:
    """How rows are cut into consecutive shards, one for each process along a dimension of a mesh.

    Or one shard, of all rows, where all placements are replicated.
    """

    mesh: Any  # torch.distributed.device_mesh.DeviceMesh
    placements: tuple[Any, ...]
    heights: tuple[int, ...] = ()

    @property
    def dim(self) -> int | None:
        return next((dim for dim, place in enumerate(self.placements) if place.is_shard()), None)

    @property
    def position(self) -> int:
        return 0 if self.dim is None else int(self.mesh.get_local_rank(self.dim))

    @property
    def height(self) -> int:
        """Of the shard of this process."""
        return self.heights[self.position]

    def chunks(self, length: int) -> "Rows":
        """So many rows, as :func:`torch.chunk` cuts them, and so DTensor and FSDP2.

        All shards are of one size, then there may be a smaller one, and then empty ones.
        """
        count = self.mesh.size(self.dim)
        largest = -(-length // count)
        heights = [min(max(length - i * largest, 0), largest) for i in range(count)]
        return replace(self, heights=tuple(heights))

    # -- communication --------------------------------------------------------------------------

    def sum(self, *several: Array) -> Any:
        """Sums over processes, with one message; what is given may be overwritten."""
        torch, many = xa.loaded("torch"), len(several) > 1
        together = torch.cat([X.flatten() for X in several]) if many else several[0].contiguous()
        if len(self.heights) > 1:
            xa.loaded("torch.distributed").all_reduce(together, group=self.mesh.get_group(self.dim))
        parts = torch.split(together.view(-1), [X.numel() for X in several])
        sums = [part.view(X.shape) for part, X in zip(parts, several, strict=True)]
        return sums if many else sums[0]

    def _all_gather(self, X: Array) -> list[Array]:
        """X of all processes, in their order, which has the same shape on each."""
        if self.dim is None:
            return [X]
        parts = [xa.zeros(tuple(X.shape), X) for _ in range(self.mesh.size(self.dim))]
        group = self.mesh.get_group(self.dim)
        xa.loaded("torch.distributed").all_gather(parts, X.contiguous(), group=group)
        return parts

    def gather(self, X: Array) -> Array:
        """The rows of all processes, one below the other, of a matrix or stack."""
        padded = X.new_zeros((*X.shape[:-2], max(self.heights), X.shape[-1]))
        padded[..., : self.height, :] = X
        parts = zip(self._all_gather(padded), self.heights, strict=True)
        return xa.loaded("torch").cat([part[..., :height, :] for part, height in parts], -2)

    def numbers(self, value: float, like: Operator) -> list[float]:
        """A number of each process, in their order."""
        own = like.xp.asarray([value], dtype=like.xp.float64, device=like.device)
        return like.xp.concat(self._all_gather(own)).tolist()

    def agree(self, X: Array) -> Array:
        """X of the first process of the mesh.

        What all processes compute from the same numbers is the same where their processors are;
        where not, it differs by rounding, and they must not disagree about when to stop.
        """
        X, dist = X.contiguous(), xa.loaded("torch.distributed")
        for dim in range(self.mesh.ndim):
            group = self.mesh.get_group(dim)
            if dist.get_world_size(group) > 1:
                dist.broadcast(X, src=dist.get_global_rank(group, 0), group=group)
        return X

    def part(self, X: Array, dim: int = -2) -> Array:
        """The shard of this process of what all processes have, as a view."""
        return X.narrow(dim, sum(self.heights[: self.position]), self.height)

    def orthonormalize(self, X: Array) -> QR:
        """QR of a matrix or stack of any rank: of the shards, then of their factors together.

        (J. Demmel, L. Grigori, M. Hoemmen and J. Langou, Communication-optimal parallel and
        sequential QR and LU factorizations, 2012, doi:10.1137/080731992, TSQR with a tree of one
        level.) Shards of fewer rows than columns have a triangular factor of as many rows; more
        would give the second QR directions that no shard has.
        """
        Q, R = orthonormalize(X)
        factors = replace(self, heights=tuple(min(one, X.shape[-1]) for one in self.heights))
        second, R = orthonormalize(factors.gather(R))
        return QR(Q @ factors.part(second), R)

    def signed(self, X: Array) -> Array:
        """:func:`~lowrank._array.signed` of rows of which each process has some columns."""
        xp, phase = xa.array_namespace(X), xa.signed(X)
        sizes = xp.max(xp.abs(X), axis=-1) if X.shape[-1] else xp.abs(phase) * 0.0
        return xa.signed(xp.stack(self._all_gather(sizes * xp.conj(phase)), axis=-1))

    # -- results --------------------------------------------------------------------------------

    def placed(self, dim: int | None = None) -> list[Any]:
        """Placements of what is sharded along a dimension as the rows are, or replicated."""
        module = xa.loaded("torch.distributed.tensor")
        cut = module.Replicate() if dim is None else module.Shard(dim)
        return [cut if place.is_shard() else module.Replicate() for place in self.placements]

    def holds(self, X: Any, dim: int | None = None) -> bool:
        """Whether X is a DTensor, sharded along a dimension as the rows are, or replicated."""
        if not xa.is_sharded(X) or X.device_mesh != self.mesh:
            return False
        is_cut = dim is None or X.to_local().shape[dim] == self.height
        return is_cut and list(X.placements) == self.placed(dim)

    def wrapped(self, X: Array, dim: int | None = None) -> Any:
        """The DTensor of which X is the shard of this process along a dimension, or all."""
        torch, shape = xa.loaded("torch"), list(X.shape)
        if dim is not None:
            shape[dim] = sum(self.heights)
        whole = torch.empty(shape, device="meta")
        kind = {"shape": whole.shape, "stride": whole.stride()}
        make = xa.loaded("torch.distributed.tensor").DTensor.from_local
        return make(X.contiguous(), self.mesh, self.placed(dim), run_check=False, **kind)


def of_columns(part: Operator, rows: Rows) -> Operator:
    """The operator of a matrix of which this process has some columns.

    Vectors along them are sharded. Its range is replicated: a range finder then runs on each
    process alike, and only its products are communicated, with an all-reduce of n×b numbers for a
    product with b columns and n rows, and an all-gather of b×b numbers for a QR of sharded rows.
    """
    norm: Any = part.norm
    return replace(
        part,
        shape=(part.shape[0], sum(rows.heights)),
        matmat=lambda X: rows.sum(part.matmat(X)),
        norm=lambda: math.hypot(*rows.numbers(norm(), part)),
        max_abs=lambda: float(np.max(rows.numbers(part.max_abs(), part))),
        array=None, explicit=None, domain=rows, costly_passes=True,
    )  # fmt: skip


def of_rows(part: Operator, rows: Rows) -> Operator:
    """The operator of a matrix of which this process has some rows.

    Its products, both, are whole on all processes, and equal, and so is what is computed of them.
    """
    A = of_columns(part.adjoint(), rows)
    return replace(
        A.adjoint(),
        matmat=lambda X: rows.gather(A.rmatmat(X)), rmatmat=lambda Y: A.matmat(rows.part(Y)),
        domain=None, costly_passes=False,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """A matrix to factorize, sharded along the rows or the columns.

    `operator` is that of A where A is sharded by columns, and that of Aᴴ where it is sharded by
    rows, see :func:`of_columns`.
    """

    rows: Rows
    shape: tuple[int, int]
    by_rows: bool
    local: Any
    operator: Operator

    @property
    def _dims(self) -> tuple[int | None, int | None]:
        """Along which dimensions Q and B are sharded."""
        return (0, None) if self.by_rows else (None, 1)

    def seed(self, rng: Any) -> np.random.SeedSequence:
        """A seed for this process, of the seed or generator that the first one has."""
        torch, near = xa.loaded("torch"), self.operator
        generator = as_generator(rng, near.xp, near.device)
        if isinstance(generator, np.random.Generator):
            seed = int(generator.integers(2**62))
        else:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        own = torch.tensor([seed], dtype=torch.int64, device=near.device)
        return np.random.SeedSequence([int(self.rows.agree(own)), self.rows.position])

    def part_of(self, X: Any, name: str, dim: int | None) -> Array:
        """What this process has of a factor, sharded with A along a dimension or replicated."""
        if not xa.is_sharded(X) or X.device_mesh != self.rows.mesh:
            raise TypeError(
                f"`{name}` must be a DTensor on the mesh of `A`, got {type(X).__name__}."
            )
        if not self.rows.holds(X, dim):
            raise ValueError(
                f"`{name}` must have the placements {self.rows.placed(dim)}, with parts as large "
                f"as those of `A`; got {list(X.placements)}."
            )
        local, _ = xa.as_matrix(X.to_local(), name=name)
        xa.same_place(self.operator.empty(0), local, names=("A", name))
        return local

    def qr(self, mode: str) -> tuple[Any, Any]:
        """Q, sharded, and R of a tall A, sharded by rows."""
        m, n = self.shape
        if not self.by_rows or m < n or mode != "reduced":
            side = "rows" if self.by_rows else "columns"
            raise ValueError(
                "of a DTensor `qr` makes the reduced factors if it is tall and sharded by rows, "
                f"got mode {mode!r} and shape {self.shape} sharded by {side}."
            )
        return self.pair(*self.rows.orthonormalize(xa.as_matrix(self.local)[0]))

    def parts(self, Q: Any, B: Any) -> tuple[Array, Array | None]:
        """Of factors of A, those of this process."""
        of_Q, of_B = self._dims
        return self.part_of(Q, "Q", of_Q), None if B is None else self.part_of(B, "B", of_B)

    def pair(self, Q: Array, B: Array) -> tuple[Any, Any]:
        """Factors of A as DTensors."""
        of_Q, of_B = self._dims
        return self.rows.wrapped(Q, of_Q), self.rows.wrapped(B, of_B)

    def factors(self, U: Array, S: Array, Vh: Array) -> tuple[Any, Any, Any]:
        """An SVD of A as DTensors, with signs, from that of `operator`."""
        if self.by_rows:
            U, Vh = xa.adjoint(Vh), xa.adjoint(U)
        phase = (xa.signed(Vh) if self.by_rows else self.rows.signed(Vh))[:, None]
        U, Vh = self.pair(U * xa.adjoint(phase), Vh * phase)
        return U, self.rows.wrapped(S), Vh


def shards_of(A: Any, *, test_matrix: Any = None) -> Shards | None:
    """What `A` is on this process, or None if it is no DTensor."""
    if not xa.is_sharded(A):
        return None
    shape = shape_of(A, "a DTensor must be a matrix (two dimensions)")
    if test_matrix is not None:
        raise ValueError("a DTensor has a test matrix on each process, made from `rng`; give none.")
    for place in A.placements:
        if place.is_partial():
            raise ValueError(
                f"`A` has the placement {place!r}, a sum that was never made; pass "
                "A.redistribute(placements=[Shard(0)]) or another placement without Partial."
            )
    cut = [place for place in A.placements if not place.is_replicate()]
    if len(cut) > 1 or (cut and type(cut[0]).__name__ != "Shard"):
        raise ValueError(
            f"`A` has the placements {tuple(A.placements)}; it may be sharded along one dimension "
            "of the mesh only, by rows (Shard(0)) or by columns (Shard(1)). Redistribute it."
        )
    by_rows = not cut or cut[0].dim == 0  # of a replicated matrix all processes have all rows
    local, rows = A.to_local().detach(), Rows(A.device_mesh, tuple(A.placements))
    part = as_operator(local)
    heights = rows.numbers(local.shape[0 if by_rows else 1], part)
    rows = replace(rows, heights=tuple(map(int, heights)))
    operator = of_columns(part.adjoint() if by_rows else part, rows)
    return Shards(rows, shape, by_rows, local, operator)
