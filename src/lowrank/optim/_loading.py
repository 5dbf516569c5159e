"""Whether a saved state fits the parameters, and copies of it."""

import copy
from typing import Any

import torch

from lowrank.optim._options import OURS, Weight


def copied(value: Any, device: torch.device | None) -> Any:
    """A copy on the device, or where the value is."""
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if hasattr(value, "__tensor_flatten__"):  # made of others, which `to` may not copy
        names, context = value.__tensor_flatten__()
        parts = {name: copied(getattr(value, name), device) for name in names}
        made: Any = type(value)
        return made.__tensor_unflatten__(parts, context, value.shape, value.stride())
    return value.detach().clone() if device is None else value.detach().to(device, copy=True)


def check_saved(
    saved: dict[str, Any], parameter: torch.Tensor, name: str, weight: Weight | None
) -> None:
    """Raise a ValueError unless the saved state of a parameter is one of it at this rank."""
    basis = saved.get("basis")
    if (basis is None) != (weight is None) and saved:
        here, there = ("", "not ") if weight is None else ("not ", "")
        message = (
            f"parameter {name} is {here}compressed in the state, and {there}compressed here; "
            "give its group the same `rank`."
        )
        raise ValueError(message)
    if weight is None or basis is None:
        for key, value in saved.items():
            if not isinstance(value, torch.Tensor) or value.ndim != parameter.ndim:
                continue
            if hasattr(value, "__tensor_flatten__") and not hasattr(value, "placements"):
                # quantised, perhaps padded
                fits = value.numel() <= parameter.numel()
            else:
                pairs = zip(value.shape, parameter.shape, strict=True)
                fits = all(one in (other, 1) for one, other in pairs)
            if not fits:
                message = (
                    f"`{key}` of parameter {name} has shape {tuple(value.shape)} in the state, but "
                    f"the parameter {tuple(parameter.shape)}."
                )
                raise ValueError(message)
        return
    k, r = basis.shape
    if k != weight.k:
        message = (
            f"the basis of parameter {name} has {k} rows in the state, but its shape "
            f"{tuple(parameter.shape)} needs {weight.k}."
        )
        raise ValueError(message)
    if r != weight.rank and weight.policy.energy is None:
        message = (
            f"parameter {name} has rank {r} in the state and {weight.rank} here; build the "
            f"optimizer with rank={r}."
        )
        raise ValueError(message)
    for key, value in saved.items():
        is_matrix = isinstance(value, torch.Tensor) and value.ndim == 2 and key not in OURS
        if is_matrix and not (value.shape[0] in (r, 1) and value.shape[1] in (weight.M, 1)):
            message = (
                f"`{key}` of parameter {name} has shape {tuple(value.shape)} in the state, but "
                f"shape {tuple(parameter.shape)} at rank {r} needs {(r, weight.M)}."
            )
            raise ValueError(message)
