"""The state of a compressed parameter when a step begins: with a new basis where it is time."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lowrank._array import array_namespace
from lowrank._sketch import gaussian_source
from lowrank.optim._options import Member
from lowrank.optim._update import coordinates, mean_square_outside, product, transported

__all__ = ["OURS", "refreshed"]

# What this optimizer adds to the state of a compressed parameter; all else is the inner one's.
OURS = ("basis", "updates", "next_refresh", "residual_norm", "sketch")


def refreshed(
    each: Member, group: dict[str, Any], state: dict[str, Any], turn: float
) -> dict[str, Any]:
    """A copy of `state` for this step; the first refresh after the first step is at this turn.

    `turn`, between 0 and 1, is the place of the parameter among all that are compressed, so that
    their refreshes are spread over the steps.
    """
    state = dict(state)
    steps, every = state.get("updates", 0), group["refresh_every"]
    state["updates"] = steps + 1
    old = state.get("basis")
    if group["average"] > 0.0:
        _sketch(each, group, state)
    if old is not None and steps < state["next_refresh"]:
        return state
    state["next_refresh"] = steps + (every if old is not None else max(1, int(turn * every)))
    policy = replace(each.policy, basis=old)
    A = each.gradient.flatten(1)
    if "sketch" in state:
        policy = replace(policy, side="left", power_iterations=0, warm_start=False)
        A = state["sketch"]
    Q: Any = policy.refresh(A, step=steps).basis
    if old is not None and not (group["transport"] == "keep" and old.shape == Q.shape):
        theirs = {key: state.pop(key) for key in list(state) if key not in OURS}
        if group["transport"] != "reset" and theirs:
            state.update(_moved(each, group, theirs, old, Q))
    state["basis"] = Q
    return state


def _sketch(each: Member, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Average ``G Ω`` over the steps, for a test matrix Ω that never changes."""
    width = min(each.rank + group["oversampling"], each.k)
    device = each.parameter.device
    xp = array_namespace(each.parameter)
    numbers = np.random.SeedSequence([group["seed"], each.index])
    draw = gaussian_source(numbers, xp, device, purpose="average")
    Y = product(each, each.gradient, draw((each.M, width), each.dtype))
    state["sketch"] = torch.lerp(Y, state["sketch"], group["average"]) if "sketch" in state else Y


def _moved(
    each: Member, group: dict[str, Any], theirs: dict[str, Any], old: torch.Tensor, Q: torch.Tensor
) -> dict[str, Any]:
    """The inner optimizer's state, moved from the basis `old` to Q."""
    R = old.new_empty(old.shape[1], each.M)
    coordinates(each, old, each.gradient, R)
    outside = mean_square_outside(old, R, each.oriented(each.gradient))
    return transported(theirs, Q.mT @ old, group.get("betas", (0.0, 0.0))[:2], outside)
