"""Weights whose rows are sharded over processes, as with FSDP2 and HSDP."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed

from lowrank._linalg.sharded import Rows


def by_rows(X: torch.Tensor) -> torch.Tensor:
    """A copy stored by rows, also along sides of length 1: rounding depends on the strides."""
    return X.new_empty(X.shape).copy_(X)


def local(X: Any) -> torch.Tensor:
    """The shard of a tensor on this process; the tensor itself if it is not sharded."""
    return X.to_local() if hasattr(X, "to_local") else X


def align(parameter: Any) -> None:
    """Shard a gradient like its parameter, and compute a pending sum.

    If inputs are DTensors too, autograd may leave the gradient as `Partial`.
    """
    grad = parameter.grad
    if hasattr(grad, "placements") and grad.placements != parameter.placements:
        parameter.grad = grad.redistribute(placements=parameter.placements)


def placed_as(parameter: Any, X: Any) -> Any:
    """X, if it has the shape of the parameter, sharded like the parameter."""
    if parameter.ndim == 0 or getattr(X, "shape", None) != parameter.shape:  # for instance a count
        return X
    mesh, wanted = (getattr(parameter, name, None) for name in ("device_mesh", "placements"))
    if hasattr(X, "placements"):
        if (X.device_mesh, X.placements) == (mesh, wanted):
            return X
        X = X.full_tensor()
    if wanted is None or hasattr(X, "__tensor_flatten__"):
        return X
    return Rows(mesh, wanted).wrapped(X.to(parameter.device)).redistribute(placements=wanted)


def unfit_placements(parameter: Any) -> str | None:
    """A description of a DTensor that can't be compressed; None if it can be."""
    cut = [place for place in parameter.placements if not place.is_replicate()]
    if [type(place).__name__ for place in cut] != ["Shard"] or cut[0].dim != 0:
        placements = tuple(parameter.placements)
        return f"DTensor with placements {placements}, not one cut by rows, Shard(0)"
    rows = rows_of(parameter)
    height = local(parameter).shape[0]
    if height != rows.height:
        return (
            f"DTensor with {sum(rows.heights)} rows, of which process {rows.position} has {height}"
            f", and not {rows.height}, as torch.chunk cuts them"
        )
    return None


def rows_of(parameter: Any) -> Rows:
    """How the rows of a parameter are sharded; one shard if they are not."""
    mesh, placements = (getattr(parameter, name, None) for name in ("device_mesh", "placements"))
    return Rows(mesh, tuple(placements or ())).chunks(parameter.shape[0])


def true_on_all(fine: torch.Tensor, parameters: Iterable[Any]) -> torch.Tensor:
    """Whether `fine` is true on all processes that have a shard of a parameter."""
    meshes = dict.fromkeys(p.device_mesh for p in parameters if hasattr(p, "device_mesh"))
    for mesh in meshes:
        number = fine.to(torch.float32)
        for dim in range(mesh.ndim):
            distributed.all_reduce(number, distributed.ReduceOp.MIN, group=mesh.get_group(dim))
        fine = number > 0
    return fine
