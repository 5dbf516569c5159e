"""The state of a compressed parameter when a step begins: with a new basis where it is time."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lowrank._array import array_namespace
from lowrank._sketch import gaussian_source
from lowrank.compress import Subspace
from lowrank.optim._options import Member
from lowrank.optim._sharding import by_rows, sharded_operator
from lowrank.optim._update import coordinates, mean_square_outside, product, transported

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
    policy, A = replace(each.policy, basis=old), None
    if "sketch" in state:
        policy = replace(policy, side="left", power_iterations=0, warm_start=False)
        A = state["sketch"]
    Q = found_basis(each, policy, A, step=steps)
    if old is not None and not (group["transport"] == "keep" and old.shape == Q.shape):
        theirs = {key: state.pop(key) for key in list(state) if key not in OURS}
        if group["transport"] != "reset" and theirs:
            state.update(_moved(each, group, theirs, old, Q))
    state["basis"] = Q
    return state


def found_basis(
    each: Member, policy: Subspace, sketch: torch.Tensor | None = None, *, step: int = 0
) -> torch.Tensor:
    """The rows on this rank of a basis of the gradient, or of a sketch (k×l) of gradients.

    All ranks compute the whole of it, k×r numbers of products that are the same for all.
    """
    blocks, along_k = each.blocks, each.along_k
    A: Any = each.gradient.flatten(1) if sketch is None else sketch
    if along_k is not None:
        A = A if sketch is None else along_k.whole(sketch)
        old: Any = policy.basis
        policy = replace(policy, basis=None if old is None else along_k.whole(old))
    if blocks is not None and sketch is None:
        A = sharded_operator(A, blocks)
    Q: Any = policy.refresh(A, step=step).basis
    return by_rows(Q if along_k is None else along_k.part(Q))


def _sketch(each: Member, group: dict[str, Any], state: dict[str, Any]) -> None:
    """Average ``G Ω`` over the steps, for a test matrix Ω that never changes."""
    width = min(each.rank + group["oversampling"], each.k)
    device = each.parameter.device
    xp = array_namespace(each.weight)
    numbers = np.random.SeedSequence([group["seed"], each.index])
    draw = gaussian_source(numbers, xp, device, purpose="average")
    Omega: Any = draw((each.M, width), each.dtype)
    Omega = Omega if each.along_M is None else each.along_M.part(Omega)
    Y = each.sum_M(product(each, each.gradient, Omega))
    state["sketch"] = torch.lerp(Y, state["sketch"], group["average"]) if "sketch" in state else Y


def _moved(
    each: Member, group: dict[str, Any], theirs: dict[str, Any], old: torch.Tensor, Q: torch.Tensor
) -> dict[str, Any]:
    """The inner optimizer's state, moved from the basis `old` to Q."""
    R = old.new_empty(old.shape[1], each.here[1])
    coordinates(each, old, each.gradient, R)
    outside = mean_square_outside(each, each.own(each.sum_k(R)))
    return transported(theirs, each.sum_k(Q.mT @ old), group.get("betas", (0.0, 0.0))[:2], outside)
