"""Matrices of PyTorch that are sharded over processes, `DTensor`: what each process has to do."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowrank._array import (
    Array,
    adjoint,
    adjoint_matmul,
    array_namespace,
    as_matrix,
    is_complex,
    is_sharded,
    loaded,
    same_place,
    signed,
    zeros,
)
from lowrank._operator import Far, Operator, as_operator, shape_of
from lowrank._panel import Basis, orthonormalise
from lowrank._sketch import as_generator


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The part of a matrix that this process has, and how processes work together.

    The long side is the sharded one; vectors along it have parts, and those along the other side
    are replicated. `operator` is that of A where A is sharded by columns, and that of Aᴴ where it
    is sharded by rows, so that its range is the replicated side: a range finder then runs on each
    process alike, and only its products are communicated: one all-reduce of n×b numbers for a
    product with b columns, and a gather of b×b numbers for a QR along the sharded side.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, int]
    by_rows: bool
    local: Any
    operator: Operator
    heights: tuple[int, ...]  # of the parts along the sharded side
    group: Any
    position: int

    # -- communication --------------------------------------------------------------------------

    def sum(self, X: Array) -> Array:
        """The sum over processes; may overwrite X."""
        if len(self.heights) > 1:
            X = X.contiguous()
            loaded("torch.distributed").all_reduce(X, group=self.group)
        return X

    def orthonormalise(self, X: Array) -> Basis:
        """QR along the sharded side: of the parts, then of their triangular factors together.

        (J. Demmel, L. Grigori, M. Hoemmen and J. Langou, Communication-optimal parallel and
        sequential QR and LU factorizations, 2012, doi:10.1137/080731992, TSQR with a tree of one
        level.) Parts of fewer rows than columns have a factor of as many rows; padding it would
        give the second QR directions that no part has.
        """
        xp, b = array_namespace(X), X.shape[-1]
        Q, R = orthonormalise(X)
        padded = xp.concat([R, zeros((b - R.shape[0], b), R)], axis=0)
        rows = [min(height, b) for height in self.heights]
        factors = [part[:r, :] for part, r in zip(_gathered(padded, self.group), rows, strict=True)]
        second, R = orthonormalise(xp.concat(factors, axis=0))
        start = sum(rows[: self.position])
        return Basis(Q @ second[start : start + rows[self.position], :], R)

    def signed(self, X: Array) -> Array:
        """:func:`~lowrank._array.signed` of rows that are sharded."""
        xp = array_namespace(X)
        phase = signed(X)
        if X.shape[-1]:
            size = xp.max(xp.abs(X), axis=-1)
        else:
            size = zeros(tuple(phase.shape), xp.abs(phase))
        told = [xp.real(phase), xp.imag(phase)] if is_complex(X) else [phase]
        # real, which every backend gathers
        parts = xp.stack(_gathered(xp.stack([size, *told]), self.group))
        where = xp.argmax(parts[:, 0, :], axis=0)[None, None, :]
        where = xp.broadcast_to(where, (1, *parts.shape[1:]))
        _, *found = xp.unstack(xp.take_along_axis(parts, where, axis=0)[0, ...])
        return found[0] + 1j * found[1] if is_complex(X) else found[0]

    def seed(self, rng: Any) -> np.random.SeedSequence:
        """A seed for this process, of the seed or generator that the first one has."""
        torch, near = loaded("torch"), self.operator
        generator = as_generator(rng, near.xp, near.device)
        if isinstance(generator, np.random.Generator):
            seed = int(generator.integers(2**62))
        else:
            seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        own = torch.tensor([seed], dtype=torch.int64, device=near.device)
        return np.random.SeedSequence([int(_agreed(own, self.mesh)), self.position])

    def part_of(self, X: Any, name: str, *, along: bool) -> Array:
        """The part that this process has of a factor, sharded `along` with A or replicated."""
        if not is_sharded(X) or X.device_mesh != self.mesh:
            message = f"`{name}` must be a DTensor on the mesh of `A`, got {type(X).__name__}."
            raise TypeError(message)
        axis = 0 if self.by_rows else 1
        wanted = self._placements(axis if along else None)
        local, _ = as_matrix(X.to_local(), name=name)
        if list(X.placements) != wanted or (
            along and local.shape[axis] != self.heights[self.position]
        ):
            message = (
                f"`{name}` must have the placements {wanted}, with parts as large as those of "
                f"`A`; got {list(X.placements)}."
            )
            raise ValueError(message)
        same_place(self.operator.empty(0), local, names=("A", name))
        return local

    def qr(self, mode: str) -> tuple[Any, Any]:
        """Q, sharded, and R of a tall A, sharded by rows."""
        m, n = self.shape
        if not self.by_rows or m < n or mode != "reduced":
            side = "rows" if self.by_rows else "columns"
            message = (
                "of a DTensor `qr` makes the reduced factors if it is tall and sharded by rows, "
                f"got mode {mode!r} and shape {self.shape} sharded by {side}."
            )
            raise ValueError(message)
        local, _ = as_matrix(self.local)
        return self.pair(*self.orthonormalise(local))

    def leave(self, Q: Any, B: Any) -> Callable[[Array], tuple[Array, Array]]:
        """Of a sample with `operator`, what Q and B, or Q alone, leave of it."""
        m, n = self.shape
        k = int(Q.shape[1])
        if tuple(Q.shape) != (m, k) or (B is not None and tuple(B.shape) != (k, n)):
            told = f"{tuple(Q.shape)}" if B is None else f"{tuple(Q.shape)} and {tuple(B.shape)}"
            message = f"`Q` and `B` must have shapes {(m, 'k')} and {('k', n)}, got {told}."
            raise ValueError(message)
        q = self.part_of(Q, "Q", along=self.by_rows)
        b = None if B is None else self.part_of(B, "B", along=not self.by_rows)
        matmat = self.operator.matmat

        def of_rows(Omega: Array) -> tuple[Array, Array]:
            inner = self.sum(adjoint_matmul(q, Omega))
            Y = matmat(Omega)
            return Y, Y - (matmat(q @ inner) if b is None else adjoint_matmul(b, inner))

        def of_columns(Omega: Array) -> tuple[Array, Array]:
            Y = matmat(Omega)
            inner = adjoint_matmul(q, Y) if b is None else self.sum(b @ Omega)
            return Y, Y - q @ inner

        return of_rows if self.by_rows else of_columns

    # -- results --------------------------------------------------------------------------------

    def pair(self, Q: Array, B: Array) -> tuple[Any, Any]:
        """Factors of A as DTensors."""
        if self.by_rows:
            return self.sharded(Q), self.replicated(B)
        return self.replicated(Q), self.sharded(B, axis=1)

    def factors(self, U: Array, S: Array, Vh: Array) -> tuple[Any, Any, Any]:
        """An SVD of A as DTensors, with signs, from that of `operator`."""
        if self.by_rows:
            U, Vh = adjoint(Vh), adjoint(U)
        phase = (signed(Vh) if self.by_rows else self.signed(Vh))[:, None]
        U, Vh = self.pair(U * adjoint(phase), Vh * phase)
        return U, self.replicated(S), Vh

    def _placements(self, axis: int | None) -> list[Any]:
        module = loaded("torch.distributed.tensor")
        return [
            module.Replicate() if axis is None or place.is_replicate() else module.Shard(axis)
            for place in self.placements
        ]

    def replicated(self, X: Array) -> Any:
        module = loaded("torch.distributed.tensor")
        return module.DTensor.from_local(X, self.mesh, self._placements(None), run_check=False)

    def sharded(self, X: Array, *, axis: int = 0) -> Any:
        """A DTensor of which X is this process's part along `axis`."""
        module = loaded("torch.distributed.tensor")
        shape = [sum(self.heights), sum(self.heights)]
        shape[1 - axis] = X.shape[1 - axis]
        return module.DTensor.from_local(
            X.contiguous(),
            self.mesh,
            self._placements(axis),
            run_check=False,
            shape=loaded("torch").Size(shape),
            stride=(shape[1], 1),
        )


def shards_of(A: Any, *, test_matrix: Any = None) -> Shards | None:
    """What `A` is on this process, or None if it is no DTensor."""
    if not is_sharded(A):
        return None
    shape = shape_of(A, "a DTensor must be a matrix (two dimensions)")
    if test_matrix is not None:
        message = "a DTensor has a test matrix on each process, made from `rng`; give none."
        raise ValueError(message)
    dim = _sharded_dim(A)
    local, mesh = A.to_local().detach(), A.device_mesh
    part = as_operator(local)
    if dim is None:  # every process has all of it, and the sharded side has one part
        by_rows, group, position = True, None, 0
    else:
        by_rows = A.placements[dim].dim == 0
        group, position = mesh.get_group(dim), mesh.get_local_rank(dim)
    heights = tuple(map(int, _numbers(part.shape[0 if by_rows else 1], part, group)))
    shards = Shards(mesh, A.placements, shape, by_rows, local, part, heights, group, position)
    return replace(shards, operator=_operator(shards, part.adjoint() if by_rows else part))


def _sharded_dim(A: Any) -> int | None:
    """The dimension of the mesh along which A is sharded."""
    for place in A.placements:
        if place.is_partial():
            message = (
                f"`A` has the placement {place!r}, a sum that was never made; pass "
                "A.redistribute(placements=[Shard(0)]) or another placement without Partial."
            )
            raise ValueError(message)
    dims = [dim for dim, place in enumerate(A.placements) if not place.is_replicate()]
    if not dims:
        return None
    if len(dims) > 1 or type(A.placements[dims[0]]).__name__ != "Shard":
        message = (
            f"`A` has the placements {tuple(A.placements)}; it may be sharded along one dimension "
            "of the mesh only, by rows (Shard(0)) or by columns (Shard(1)). Redistribute it."
        )
        raise ValueError(message)
    return dims[0]


def _operator(shards: Shards, part: Operator) -> Operator:
    """Products of all parts together, by those of this process."""

    def norm() -> float:
        own = math.nan if part.norm is None else part.norm()
        return math.hypot(*_numbers(own, part, shards.group))

    return replace(
        part,
        shape=shards.shape[::-1] if shards.by_rows else shards.shape,
        matmat=lambda X: shards.sum(part.matmat(X)),
        norm=norm,
        max_abs=lambda: float(np.max(_numbers(part.max_abs(), part, shards.group))),
        array=None,
        explicit=None,
        far=Far(part.shape[1], shards.orthonormalise, lambda X: _agreed(X, shards.mesh)),
        costly_passes=True,
    )


def _gathered(X: Array, group: Any) -> list[Array]:
    """X of every process, in their order, which has the same shape on all."""
    if group is None:
        return [X]
    dist = loaded("torch.distributed")
    parts = [zeros(tuple(X.shape), X) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, X.contiguous(), group=group)
    return parts


def _numbers(value: float, part: Operator, group: Any) -> list[float]:
    """A number of every process, in their order."""
    own = part.xp.asarray([value], dtype=part.xp.float64, device=part.device)
    return [float(found[0]) for found in _gathered(own, group)]


def _agreed(X: Array, mesh: Any) -> Array:
    """X of the first process of the mesh.

    What all processes compute from the same numbers is the same where their processors are; where
    not, it differs by rounding, and they must not disagree about when to stop.
    """
    X = X.contiguous()
    for dim in range(mesh.ndim):
        group = mesh.get_group(dim)
        dist = loaded("torch.distributed")
        if dist.get_world_size(group) > 1:
            dist.broadcast(X, src=dist.get_global_rank(group, 0), group=group)
    return X
