"""Weights whose rows are spread over the ranks of a process group, and sums over these."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed

from lowrank._operator import Operator, as_operator
from lowrank._panel import orthonormalise


@dataclass(frozen=True)
class Blocks:
    """`length` rows in consecutive blocks, one for each rank of a dimension of a mesh.

    As :func:`torch.chunk` cuts them, and so DTensor and FSDP2: all blocks are of one size, then
    there may be a smaller one, and then empty ones.
    """

    length: int
    mesh: Any  # torch.distributed.device_mesh.DeviceMesh
    placements: tuple[Any, ...]

    @property
    def dim(self) -> int:
        return next(i for i, one in enumerate(self.placements) if one.is_shard())

    @property
    def group(self) -> Any:
        return self.mesh.get_group(self.dim)

    @property
    def count(self) -> int:
        return int(self.mesh.size(self.dim))

    @property
    def rank(self) -> int:
        return int(self.mesh.get_local_rank(self.dim))

    @property
    def largest(self) -> int:
        return -(-self.length // self.count)

    @property
    def here(self) -> slice:
        """The rows of this rank."""
        start = min(self.rank * self.largest, self.length)
        return slice(start, min(start + self.largest, self.length))

    @property
    def size(self) -> int:
        return self.here.stop - self.here.start

    def total(self, *several: torch.Tensor) -> Any:
        """Sums over the ranks, with one message; what is given may be overwritten."""
        together = several[0].contiguous()
        if len(several) > 1:
            together = torch.cat([X.flatten() for X in several])
        distributed.all_reduce(together, group=self.group)
        if len(several) == 1:
            return together
        parts = torch.split(together, [X.numel() for X in several])
        return [part.view(X.shape) for part, X in zip(parts, several, strict=True)]

    def part(self, X: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The block of X of this rank, as a view."""
        return X.narrow(dim, self.here.start, self.size)

    def whole(self, X: torch.Tensor, height: int | None = None) -> torch.Tensor:
        """The rows of all ranks, one below the other; of each at most `height` of its block."""
        height = self.largest if height is None else min(height, self.largest)
        full, rest = divmod(self.length, self.largest)
        padded = X.new_zeros(*X.shape[:-2], height, X.shape[-1])
        padded[..., : X.shape[-2], :] = X
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(parts, padded, group=self.group)
        # padding is at the end only
        return torch.cat(parts, -2)[..., : full * height + min(rest, height), :]

    def distributed(self, X: torch.Tensor, dim: int) -> torch.Tensor:
        """The DTensor of which this rank has X, cut along `dim` as the rows are."""
        from torch.distributed.tensor import DTensor, Shard  # noqa: PLC0415

        shape = list(X.shape)
        shape[dim] = self.length
        return DTensor.from_local(
            X,
            self.mesh,
            [Shard(dim) if one.is_shard() else one for one in self.placements],
            run_check=False,
            shape=torch.Size(shape),
            stride=torch.empty(shape, device="meta").stride(),
        )

    def taken(self, X: Any, dim: int) -> torch.Tensor:
        """The part of this rank of a whole tensor, or of a DTensor, along `dim`."""
        if hasattr(X, "placements"):
            if X.device_mesh == self.mesh and X.placements[self.dim].is_shard(dim):
                return by_rows(local(X))
            X = X.full_tensor()
        return self.part(X, dim)


def by_rows(X: torch.Tensor) -> torch.Tensor:
    """A copy stored by rows, also along sides of length 1: products round by the strides."""
    return X.new_empty(X.shape).copy_(X)


def local(X: Any) -> torch.Tensor:
    """What this rank has of a tensor."""
    return X.to_local() if hasattr(X, "to_local") else X


def align(parameter: Any) -> None:
    """Cut a gradient as its parameter is, and make the sum over ranks if autograd left it open.

    Autograd leaves what the last operation has made: where inputs are DTensors too, `Partial`.
    """
    grad = parameter.grad
    if hasattr(grad, "placements") and grad.placements != parameter.placements:
        parameter.grad = grad.redistribute(placements=parameter.placements)


def placed_as(parameter: Any, X: Any) -> Any:
    """A tensor of the parameter's shape, whole where that is, and cut where that is cut."""
    if parameter.ndim == 0 or getattr(X, "shape", None) != parameter.shape:  # a count, say
        return X
    mesh, wanted = (getattr(parameter, name, None) for name in ("device_mesh", "placements"))
    if hasattr(X, "placements"):
        if (X.device_mesh, X.placements) == (mesh, wanted):
            return X
        X = X.full_tensor()
    if mesh is None or hasattr(X, "__tensor_flatten__"):
        return X
    from torch.distributed.tensor import DTensor, Replicate  # noqa: PLC0415

    whole = DTensor.from_local(
        X.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False
    )
    return whole.redistribute(placements=wanted)


def unfit_placements(parameter: Any) -> str | None:
    """What a DTensor is that can't be compressed; None where it can be."""
    placements = parameter.placements
    kinds = sorted(type(one).__name__ for one in placements if not one.is_replicate())
    if kinds != ["Shard"] or not all(one.is_replicate() or one.dim == 0 for one in placements):
        return f"DTensor with placements {tuple(placements)}, and not one cut by rows, Shard(0)"
    blocks, rows = blocks_of(parameter), local(parameter).shape[0]
    if blocks is not None and blocks.size != rows:
        return (
            f"DTensor of whose {blocks.length} rows rank {blocks.rank} has {rows}, and not "
            f"{blocks.size}, as torch.chunk cuts them"
        )
    return None


def blocks_of(parameter: Any) -> Blocks | None:
    """How the rows of a parameter are spread; None where it is whole."""
    if not hasattr(parameter, "placements"):
        return None
    return Blocks(parameter.shape[0], parameter.device_mesh, tuple(parameter.placements))


def orthonormal(Y: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """The rows on this rank of an orthonormal basis of a matrix or stack cut by rows, of any rank.

    Each rank factors its rows, ``Y_p = Q_p R_p``, with as many rows of R as it has of Y if these
    are fewer than columns; the R below one another are ``W T``; and ``Q_p W_p`` are the rows of
    ``Y T⁻¹``. (J. Demmel, L. Grigori, M. Hoemmen and J. Langou, Communication-optimal parallel and
    sequential QR and LU factorizations, 2012, doi:10.1137/080731992, with a tree of one level.)
    """
    Q, R = orthonormalise(Y)
    height = min(blocks.largest, Y.shape[-1])
    W = orthonormalise(blocks.whole(R, height)).Q
    start = blocks.rank * height
    return Q @ W[..., start : start + Q.shape[-1], :]


def sharded_operator(G: torch.Tensor, blocks: Blocks) -> Operator:
    """The operator of a whole matrix of which this rank has the rows G.

    Its products are whole on every rank, and equal, and so is what is computed of them.
    """
    A = as_operator(G)

    def norm() -> float:
        square = torch.linalg.vector_norm(G, dtype=torch.float64).square()  # no under- or overflow
        return float(blocks.total(square)) ** 0.5

    return replace(
        A,
        shape=(blocks.length, A.shape[1]),
        matmat=lambda X: blocks.whole(A.matmat(X)),
        rmatmat=lambda Y: blocks.total(A.rmatmat(blocks.part(Y))),
        norm=norm,
        max_abs=norm,  # which bounds it
        array=None,
        explicit=None,
    )


def agreed(fine: torch.Tensor, parameters: Iterable[Any]) -> torch.Tensor:
    """Whether all is fine on every rank that has a part of a parameter."""
    meshes = dict.fromkeys(p.device_mesh for p in parameters if hasattr(p, "device_mesh"))
    for mesh in meshes:
        number = fine.to(torch.float32)
        for dim in range(mesh.ndim):
            distributed.all_reduce(number, distributed.ReduceOp.MIN, group=mesh.get_group(dim))
        fine = number > 0
    return fine
