"""Refreshes: new bases for compressed parameters, and their state in a new basis."""

from dataclasses import replace
from typing import Any

import torch

from lowrank._linalg.sharded import of_rows
from lowrank._operators import as_operator, located
from lowrank.compress import Subspace, keeps_sketch, new_basis, source
from lowrank.optim import _stacks as stacks
from lowrank.optim._inner import Inner, inner_state, join_key, transported
from lowrank.optim._options import Weight
from lowrank.optim._sharding import by_rows


def refresh(weights: list[Weight], states: list[dict[str, Any]], inner: Inner) -> None:
    """Give the states of this step new bases where a refresh is due.

    The offset of a weight, from 0 to 1, is the time of the first refresh after the first step, in
    units of `refresh_every`. The offsets differ, so that refreshes are spread over the steps.
    """
    due, every, average = [], weights[0].group["refresh_every"], weights[0].group["average"]
    for weight, state in zip(weights, states, strict=True):
        steps, old = state.get("updates", 0), state.get("basis")
        state["updates"] = steps + 1
        if "began" not in state:  # a state saved by an earlier version
            state["began"] = steps - int(state.get("step", steps))
        if average > 0.0:
            _sketch(weight, average, state)
        else:
            state.pop("sketch", None)
        if old is None or steps >= state["next_refresh"]:
            wait = every if old is not None else max(1, int(weight.offset * every))
            state["next_refresh"] = steps + wait
            due.append((weight, state))

    def kind(item: tuple[Weight, dict[str, Any]]) -> Any:
        weight, state = item
        old = state.get("basis")
        policy = replace(weight.policy, basis=old)
        if not weight.stacked or "sketch" in state or not keeps_sketch(policy, weight.k, weight.M):
            return weight.index
        return state["updates"], None if old is None else old.shape, join_key(state)

    for part in stacks.grouped_by(due, kind):
        _give_bases([weight for weight, _ in part], [state for _, state in part], inner)


def _give_bases(weights: list[Weight], states: list[dict[str, Any]], inner: Inner) -> None:
    """Put new bases into states that can be joined, and transport the rest of each state."""
    first, group, step = weights[0], weights[0].group, states[0]["updates"] - 1
    olds: Any = [state.pop("basis") for state in states] if "basis" in states[0] else None
    if len(weights) > 1:
        G: Any = stacks.gradients(weights)
        A = located(G, G.shape, matmat=lambda X: G @ X, rmatmat=lambda Y: G.mT @ Y)
        draws = [source(weight.policy, A, step) for weight in weights]

        def draw(shape: tuple[int, ...], dtype: Any) -> torch.Tensor:
            return stacks.stack_of([one(shape, dtype) for one in draws])

        old: Any = olds and stacks.stack_of(olds)
        bases: Any = new_basis(replace(first.policy, basis=old), A, step, draw)
        stacks.write(states, {"basis": bases})
    else:
        G = [first.oriented(first.gradient)]
        old = olds and olds[0].unsqueeze(0)
        policy, sketch = replace(first.policy, basis=olds and olds[0]), states[0].get("sketch")
        if sketch is not None:
            policy = replace(policy, side="left", power_iterations=0, warm_start=False)
        states[0]["basis"] = found_basis(first, policy, sketch, step=step)
        bases = states[0]["basis"].unsqueeze(0)
    keeps = group["transport"] == "keep" and old is not None and old.shape == bases.shape
    if old is not None and not keeps:
        before = [inner_state(state) for state in states]
        after = None
        if group["transport"] != "reset" and before[0]:
            R = first.shard(first.along_k.sum(stacks.coordinates(old, G)))
            squares = first.shard(first.along_k.sum(stacks.column_squares(G, R.dtype)))
            outside = (squares - stacks.column_squares(R, R.dtype)).clamp_(min=0)
            outside /= max(1, first.k - R.shape[-2])
            after = transported(inner, before, first.along_k.sum(bases.mT @ old), group, outside)
            if after is None:
                inner.warn_of_reset(before[0])
        for i, state in enumerate(states):
            for name in before[i]:
                del state[name]
            state.update({"began": step} if after is None else after[i])


def found_basis(
    weight: Weight, policy: Subspace, sketch: torch.Tensor | None = None, *, step: int = 0
) -> torch.Tensor:
    """The rows on this process of a basis of the gradient, or of a k×l sketch of gradients.

    Every process computes the whole k×r basis, from products that are the same on all.
    """
    along_k, old = weight.along_k, policy.basis
    A: Any = weight.gradient.flatten(1) if sketch is None else along_k.gather(sketch)
    if weight.blocks.dim is not None and sketch is None:
        A = of_rows(as_operator(A), weight.blocks)
    policy = replace(policy, basis=None if old is None else along_k.gather(old))
    return by_rows(along_k.part(policy.refresh(A, step=step).basis))


def _sketch(weight: Weight, average: float, state: dict[str, Any]) -> None:
    """Update the running average of ``G Ω``, for a test matrix Ω that never changes."""
    width = min(weight.rank + weight.policy.oversampling, weight.k)
    Omega = weight.drawn(width, "average", long=True)
    Y = stacks.product(weight.oriented(weight.gradient), weight.along_M.part(Omega))
    Y = weight.along_M.sum(Y)
    old = state.get("sketch")
    if old is not None and old.shape == Y.shape:
        Y = torch.lerp(Y, old, average)
    state["sketch"] = Y
