"""Loading: whether a saved state fits the parameters, and copies of it."""

import copy
from collections import defaultdict
from typing import Any

import torch

from lowrank.optim._options import OWN_STATE, Weight, parse
from lowrank.optim._sharding import placed_as

Shapes = dict[str, tuple[int, ...]]


def copied(value: Any, device: torch.device | None) -> Any:
    """A copy, on `device` if given."""
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    if hasattr(value, "__tensor_flatten__"):  # a wrapper of other tensors, which `to` may not copy
        names, context = value.__tensor_flatten__()
        parts = {name: copied(getattr(value, name), device) for name in names}
        made: Any = type(value)
        return made.__tensor_unflatten__(parts, context, value.shape, value.stride())
    return value.detach().clone() if device is None else value.detach().to(device, copy=True)


def loaded_groups(
    saved: list[dict[str, Any]],
    own_groups: list[dict[str, Any]],
    defaults: dict[str, Any],
    names: set[Any],
) -> list[dict[str, Any]]:
    """Copies of saved groups with all options, and the parameters of this optimizer.

    A ValueError if they don't fit it.

    `names` are the names by which this optimizer may have been saved.
    """
    groups = copy.deepcopy(saved)
    sizes = [[len(group["params"]) for group in all] for all in (groups, own_groups)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the state has groups of {sizes[0]} parameters, but the optimizer of {sizes[1]}; make "
            "this optimizer with the same groups."
        )
    name = defaults["optimizer"]
    wrong = sorted({str(group.get("optimizer")) for group in groups} - names)
    if wrong:
        kind = "has none of its options" if wrong == ["None"] else f"is of {', '.join(wrong)}"
        raise ValueError(
            f"the state {kind}, but this optimizer is {name}; load one of the same optimizer."
        )
    loaded = []
    for group, own in zip(groups, own_groups, strict=True):
        kept = {option: own[option] for option in ("rank", "param_names") if option in own}
        options = {**defaults, **kept, **group, "optimizer": name, "params": own["params"]}
        loaded.append(parse(options))
    return loaded


def loaded_states(
    saved: dict[str, Any],
    groups: list[dict[str, Any]],
    names: dict[torch.Tensor, str],
    fits: dict[torch.Tensor, tuple[Weight, Shapes]],
) -> defaultdict[Any, Any]:
    """Copies of the saved states; a ValueError unless they fit the parameters and their ranks.

    `groups` are the loaded groups, with parameters instead of their numbers in the saved ones.
    `fits` are the compressed parameters, and shapes of tensors that a state that is not empty must
    have.
    """
    rest, states = dict(saved["state"]), defaultdict[Any, Any](dict)
    for old, group in zip(saved["param_groups"], groups, strict=True):
        on_host = not (group.get("capturable") or group.get("fused"))
        for key, p in zip(old["params"], group["params"], strict=True):
            if key not in rest:
                continue
            weight, shapes = fits.get(p, (None, {}))
            state = rest.pop(key)
            if wrong := _wrong(state, p, weight, shapes):
                raise ValueError(f"the state of parameter {names[p]} does not fit: {wrong}.")
            states[p] = {
                name: copied(
                    placed_as(p, X) if weight is None else weight.loaded(name, X),
                    None if name == "step" and on_host else p.device,
                )
                for name, X in state.items()
            }
    states.update(copy.deepcopy(rest))
    return states


def _wrong(
    saved: dict[str, Any], parameter: torch.Tensor, weight: Weight | None, shapes: Shapes
) -> str | None:
    basis, wanted = saved.get("basis"), tuple(parameter.shape)
    if (basis is None) != (weight is None) and saved:
        here, there = ("", "not ") if weight is None else ("not ", "")
        return (
            f"it is {here}compressed in the state, but {there}compressed here; give its group the "
            "same `rank`"
        )
    if weight is not None and basis is not None:
        k, r = basis.shape
        if k != weight.k:
            return f"its basis has {k} rows in the state, and {wanted} needs {weight.k}"
        if r != weight.rank and weight.policy.energy is None:
            here = f"{r} in the state and {weight.rank} here"
            return f"it has rank {here}; build the optimizer with rank={r}"
        wanted = r, weight.M
    for key, value in saved.items():
        if key in OWN_STATE or getattr(value, "ndim", 0) != len(wanted):
            continue
        if hasattr(value, "__tensor_flatten__") and not hasattr(value, "placements"):
            fits = value.numel() <= parameter.numel()  # quantized, perhaps padded
        else:
            fits = all(a in (b, 1) for a, b in zip(value.shape, wanted, strict=True))
        if not fits:
            return f"`{key}` has shape {tuple(value.shape)} in the state, and needs {wanted}"
    for key, shape in shapes.items() if saved else ():
        found = tuple(getattr(saved[key], "shape", ())) if key in saved else "nothing"
        if found != shape:
            return f"`{key}` must have shape {shape}, got {found} among {', '.join(saved)}"
    return None
