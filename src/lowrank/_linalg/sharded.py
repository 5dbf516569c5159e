"""PyTorch's DTensor, sharded over processes: the work and the messages of each process."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg.panel import orthonormalize
from lowrank._operators import Operator, as_operator, shape_of
from lowrank._operators.sketch import as_generator
from lowrank.results import QRResult


@dataclass(frozen=True)
class Rows:
    """How rows are cut into consecutive shards, one per process along one dimension of a mesh.

    If all placements are replicated, or there is no mesh, there is one shard of all rows.
    """

    mesh: Any = None  # torch.distributed.device_mesh.DeviceMesh
    placements: tuple[Any, ...] = ()
    heights: tuple[int, ...] = ()

    @property
    def dim(self) -> int | None:
        return next((dim for dim, place in enumerate(self.placements) if place.is_shard()), None)

    @property
    def position(self) -> int:
        return 0 if self.dim is None else int(self.mesh.get_local_rank(self.dim))

    @property
    def height(self) -> int:
        """Rows of the shard of this process."""
        return self.heights[self.position]

    def chunks(self, length: int) -> "Rows":
        """`length` rows, cut as by :func:`torch.chunk`, DTensor and FSDP2.

        All shards have one size, but for a smaller one and empty ones at the end.
        """
        count = 1 if self.dim is None else self.mesh.size(self.dim)
        largest = -(-length // count)
        heights = [min(max(length - i * largest, 0), largest) for i in range(count)]
        return replace(self, heights=tuple(heights))

    # -- communication --------------------------------------------------------------------------

    def sum(self, *several: Array) -> Any:
        """Sums over processes, in one all-reduce; the arguments may be overwritten."""
        torch, many = xa.loaded("torch"), len(several) > 1
        if self.dim is None:
            return several if many else several[0]
        together = torch.cat([X.flatten() for X in several]) if many else several[0].contiguous()
        xa.loaded("torch.distributed").all_reduce(together, group=self.mesh.get_group(self.dim))
        parts = torch.split(together.view(-1), [X.numel() for X in several])
        sums = [part.view(X.shape) for part, X in zip(parts, several, strict=True)]
        return sums if many else sums[0]

    def _all_gather(self, X: Array) -> list[Array]:
        """X of all processes, in their order; X must have the same shape on each."""
        if self.dim is None:
            return [X]
        parts = [xa.zeros(tuple(X.shape), X) for _ in range(self.mesh.size(self.dim))]
        group = self.mesh.get_group(self.dim)
        xa.loaded("torch.distributed").all_gather(parts, X.contiguous(), group=group)
        return parts

    def gather(self, X: Array) -> Array:
        """All rows of a matrix or stack, in an all-gather of the shards."""
        if self.dim is None:
            return X
        padded = X.new_zeros((*X.shape[:-2], max(self.heights), X.shape[-1]))
        padded[..., : self.height, :] = X
        parts = zip(self._all_gather(padded), self.heights, strict=True)
        return xa.loaded("torch").cat([part[..., :height, :] for part, height in parts], -2)

    def numbers(self, value: float, like: Operator) -> list[float]:
        """The numbers of all processes, in their order."""
        own = like.xp.asarray([value], dtype=like.xp.float64, device=like.device)
        return like.xp.concat(self._all_gather(own)).tolist()

    def broadcast(self, X: Array) -> Array:
        """X of process 0 of the mesh, broadcast to all.

        On different processors the same computation may round differently, but all processes must
        stop at the same time.
        """
        X, dist = X.contiguous(), xa.loaded("torch.distributed")
        for dim in range(self.mesh.ndim):
            group = self.mesh.get_group(dim)
            if dist.get_world_size(group) > 1:
                dist.broadcast(X, src=dist.get_global_rank(group, 0), group=group)
        return X

    def part(self, X: Array, dim: int = -2) -> Array:
        """The shard of this process of a replicated X, as a view."""
        if self.dim is None:
            return X
        return X.narrow(dim, sum(self.heights[: self.position]), self.height)

    def orthonormalize(self, X: Array) -> QRResult:
        """QR of a matrix or stack of any rank: of each shard, then of their stacked factors (TSQR).

        (J. Demmel, L. Grigori, M. Hoemmen and J. Langou, Communication-optimal parallel and
        sequential QR and LU factorizations, 2012, doi:10.1137/080731992; a tree of one level.) The
        factor of a shard with fewer rows than columns has only that many rows. Padding it would
        give the second QR directions that no shard has.
        """
        Q, R = orthonormalize(X)
        factors = replace(self, heights=tuple(min(one, X.shape[-1]) for one in self.heights))
        second, R = orthonormalize(factors.gather(R))
        return QRResult(Q @ factors.part(second), R)

    def signed(self, X: Array) -> Array:
        """:func:`~lowrank._array.signed` of rows whose columns are sharded."""
        xp, phase = xa.array_namespace(X), xa.signed(X)
        sizes = xp.max(xp.abs(X), axis=-1) if X.shape[-1] else xp.abs(phase) * 0.0
        return xa.signed(xp.stack(self._all_gather(sizes * xp.conj(phase)), axis=-1))

    # -- results --------------------------------------------------------------------------------

    def placed(self, dim: int | None = None) -> list[Any]:
        """Placements of a tensor sharded like the rows, along `dim`; replicated without `dim`."""
        module = xa.loaded("torch.distributed.tensor")
        cut = module.Replicate() if dim is None else module.Shard(dim)
        return [cut if place.is_shard() else module.Replicate() for place in self.placements]

    def holds(self, X: Any, dim: int | None = None) -> bool:
        """Whether X is a DTensor sharded like the rows, along `dim`; replicated without `dim`."""
        if not xa.is_sharded(X) or X.device_mesh != self.mesh:
            return False
        is_cut = dim is None or X.to_local().shape[dim] == self.height
        return is_cut and list(X.placements) == self.placed(dim)

    def wrapped(self, X: Array, dim: int | None = None) -> Any:
        """The DTensor whose shard along `dim` on this process is X; replicated without `dim`."""
        torch, shape = xa.loaded("torch"), list(X.shape)
        if dim is not None:
            shape[dim] = sum(self.heights)
        whole = torch.empty(shape, device="meta")
        kind = {"shape": whole.shape, "stride": whole.stride()}
        make = xa.loaded("torch.distributed.tensor").DTensor.from_local
        return make(X.contiguous(), self.mesh, self.placed(dim), run_check=False, **kind)


def of_columns(part: Operator, rows: Rows) -> Operator:
    """The operator of a matrix whose columns are sharded: this process has the columns `part`.

    Its domain is sharded, its range replicated. The range finder runs alike on every process, and
    only products are communicated: an all-reduce of n×b numbers for a product with b columns and n
    rows, and an all-gather of b×b numbers for a QR of sharded rows.
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
    """The operator of a matrix whose rows are sharded: this process has the rows `part`.

    Both products are replicated, and so is everything computed from them.
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

    `operator` is A if A is sharded by columns, and Aᴴ if A is sharded by rows, so that its domain
    is sharded (see :func:`of_columns`).
    """

    rows: Rows
    shape: tuple[int, int]
    by_rows: bool
    local: Any
    operator: Operator

    @property
    def _dims(self) -> tuple[int | None, int | None]:
        """The dimensions along which Q and B are sharded."""
        return (0, None) if self.by_rows else (None, 1)

    def seed(self, rng: Any) -> np.random.SeedSequence:
        """A seed for this process, from the seed or generator of process 0."""
        torch, A = xa.loaded("torch"), self.operator
        generator = as_generator(rng, A.xp, A.device)
        if isinstance(generator, np.random.Generator):
            seed = int(generator.integers(2**62))
        else:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        own = torch.tensor([seed], dtype=torch.int64, device=A.device)
        return np.random.SeedSequence([int(self.rows.broadcast(own)), self.rows.position])

    def part_of(self, X: Any, name: str, dim: int | None) -> Array:
        """The local part of a factor that is sharded with A along `dim`, or replicated."""
        if not xa.is_sharded(X) or X.device_mesh != self.rows.mesh:
            raise TypeError(
                f"`{name}` must be a DTensor on the mesh of `A`, got {type(X).__name__}; make "
                "one with torch.distributed.tensor.distribute_tensor."
            )
        if not self.rows.holds(X, dim):
            raise ValueError(
                f"`{name}` must have the placements {self.rows.placed(dim)} and shards as large as "
                f"those of `A`, got {list(X.placements)}; redistribute it."
            )
        local, _ = xa.as_matrix(X.to_local(), name=name)
        xa.same_place(self.operator.empty(0), local, names=("A", name))
        return local

    def qr(self, mode: str) -> QRResult:
        """Q, sharded, and R of a tall A, sharded by rows."""
        m, n = self.shape
        if not self.by_rows or m < n or mode != "reduced":
            side = "rows" if self.by_rows else "columns"
            raise ValueError(
                "`qr` of a DTensor needs a tall matrix sharded by rows and mode='reduced', got "
                f"shape {self.shape} sharded by {side} and mode {mode!r}."
            )
        return QRResult(*self.pair(*self.rows.orthonormalize(xa.as_matrix(self.local)[0])))

    def parts(self, Q: Any, B: Any) -> tuple[Array, Array | None]:
        """The local parts of factors Q and B of A."""
        of_Q, of_B = self._dims
        return self.part_of(Q, "Q", of_Q), None if B is None else self.part_of(B, "B", of_B)

    def pair(self, Q: Array, B: Array) -> tuple[Any, Any]:
        """Factors of A as DTensors."""
        of_Q, of_B = self._dims
        return self.rows.wrapped(Q, of_Q), self.rows.wrapped(B, of_B)

    def factors(self, U: Array, S: Array, Vh: Array) -> tuple[Any, Any, Any]:
        """The SVD of A as DTensors, with fixed signs, from the SVD of `operator`."""
        if self.by_rows:
            U, Vh = xa.adjoint(Vh), xa.adjoint(U)
        phase = (xa.signed(Vh) if self.by_rows else self.rows.signed(Vh))[:, None]
        U, Vh = self.pair(U * xa.adjoint(phase), Vh * phase)
        return U, self.rows.wrapped(S), Vh


def operand(A: Any, options: Any) -> tuple[Shards | None, Any]:
    """The sharded matrix `A`, if it is a DTensor, and what to factorize; sets its `rng`."""
    shards = shards_of(A)
    if shards is None:
        return None, A
    if options.get("test_matrix") is not None:
        raise ValueError("`test_matrix` is not supported for a DTensor; give `rng` instead.")
    options["rng"] = shards.seed(options.get("rng"))
    return shards, shards.operator


def shards_of(A: Any) -> Shards | None:
    """The sharded matrix `A`; None if A is not a DTensor."""
    if not xa.is_sharded(A):
        return None
    shape = shape_of(A, "a DTensor must be a matrix (two dimensions)")
    for place in A.placements:
        if place.is_partial():
            raise ValueError(
                f"`A` has the placement {place!r}, a sum that is not computed yet; pass "
                "A.redistribute(placements=[Shard(0)]), or another placement without Partial."
            )
    cut = [place for place in A.placements if not place.is_replicate()]
    if len(cut) > 1 or (cut and type(cut[0]).__name__ != "Shard"):
        raise ValueError(
            f"`A` has the placements {tuple(A.placements)}; it may be sharded along one dimension "
            "of the mesh only, by rows (Shard(0)) or by columns (Shard(1)). Redistribute it."
        )
    by_rows = not cut or cut[0].dim == 0  # a replicated matrix counts as sharded by rows
    local, rows = A.to_local().detach(), Rows(A.device_mesh, tuple(A.placements))
    part = as_operator(local)
    heights = rows.numbers(local.shape[0 if by_rows else 1], part)
    rows = replace(rows, heights=tuple(map(int, heights)))
    operator = of_columns(part.adjoint() if by_rows else part, rows)
    return Shards(rows, shape, by_rows, local, operator)
