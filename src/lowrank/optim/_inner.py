"""The inner optimizer: its class, its steps of coordinates, and the meaning of its state."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lowrank.compress import transport_squares
from lowrank.optim._loading import copied
from lowrank.optim._options import DEFAULTS, OWN_NAMES, OWN_STATE, Weight
from lowrank.optim._stacks import read, slices, stack_of, write

# What a tensor of state holds for each coordinate (or row of coordinates): a mean, which changes
# with the basis like coordinates; a mean or sum of squares; or numbers per column, which don't
# change.
Meaning = Literal["mean", "squares", "sum of squares", "columns"]
ADAM: dict[str, Meaning] = {"exp_avg": "mean", "exp_avg_sq": "squares", "max_exp_avg_sq": "squares"}
MOMENTUM: dict[str, Meaning] = {"momentum_buffer": "mean"}
LION: dict[str, Meaning] = {"exp_avg": "mean"}
# By package and class; subclasses inherit the meanings of their parents. The state of all others,
# and any state with other tensors in it, is reset in a new basis: nothing is guessed.
KNOWN: dict[str, dict[str, Meaning]] = {
    **dict.fromkeys(("torch.Adam", "torch.AdamW", "torch.NAdam", "torch.RAdam"), ADAM),
    "torch.SGD": MOMENTUM,
    "torch.Muon": MOMENTUM,
    "torch.RMSprop": {"square_avg": "squares", "grad_avg": "mean", **MOMENTUM},
    "torch.Adagrad": {"sum": "sum of squares"},
    "torch.Adafactor": {"row_var": "squares", "col_var": "columns", "variance": "squares"},
    "transformers.Adafactor": {**ADAM, "exp_avg_sq_row": "squares", "exp_avg_sq_col": "columns"},
    "torchao._AdamBase": ADAM,
    "lion_pytorch.Lion": LION,
    "pytorch_optimizer.Lion": LION,
    "bitsandbytes.Lion": {"state1": "mean"},
    "bitsandbytes.Adam": {"state1": "mean", "state2": "squares"},
    "bitsandbytes.AdamW": {"state1": "mean", "state2": "squares"},
}
# For each mean of squares, the mean of the same numbers.
OF_MEANS = {"exp_avg_sq": "exp_avg", "state2": "state1", "square_avg": "grad_avg"}
# Optimizers whose step is proportional to the size of the weight: their proxies hold QᵀW, not 0.
SHOWN_THE_WEIGHT = ("adafactor", "lamb", "lars")


@dataclass(frozen=True)
class Inner:
    """An optimizer class, or a function that makes one, with its options and properties."""

    make: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    name: str
    defaults: dict[str, Any]
    meanings: dict[str, Meaning] | None
    sees_weights: bool
    has_initial_state: bool  # as Adagrad, which up to torch 2.12 makes no state later
    elementwise: dict[torch.device, bool] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)

    def new(self, params: Any) -> torch.optim.Optimizer:
        return self.make(params, **self.options)

    def is_elementwise(self, device: torch.device) -> bool:
        """Whether each coordinate is stepped on its own, with plain state of the same shape."""
        if device not in self.elementwise:
            self.elementwise[device] = not self.sees_weights and _is_elementwise(self.new, device)
        return self.elementwise[device]

    def set_options(self, target: dict[str, Any], group: dict[str, Any], **instead: Any) -> None:
        """Copy options from our `group`, as a scheduler may have set them, to an inner group."""
        for name in self.defaults:
            _set(target, name, instead.get(name, group[name]))

    def warn_of_reset(self, state: dict[str, Any]) -> None:
        """Warn, once, that the state is reset at refreshes."""
        if self.warned:
            return
        self.warned.append(self.name)
        names = ", ".join(f"`{name}`" for name, value in state.items() if is_array(value))
        message = (
            f"the state of {self.name} ({names}) is reset at each refresh, because its meaning in "
            "a new basis is unknown; give transport='reset' to avoid this warning."
        )
        warnings.warn(message, UserWarning, stacklevel=2)


def inner_of(make: Callable[..., torch.optim.Optimizer], options: dict[str, Any]) -> Inner:
    """The properties of an optimizer; `make` may be a class, subclass, partial or function."""
    example = make([torch.nn.Parameter(torch.zeros(1, 1))], **options)
    name, kinds = type(example).__name__, type(example).__mro__
    closure = inspect.signature(example.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(f"{name} cannot be wrapped: its step needs a closure.")
    if clash := sorted({*OWN_NAMES, *DEFAULTS} & set(example.defaults)):
        raise TypeError(
            f"{name} cannot be wrapped: its options {', '.join(clash)} have the same names as "
            "options of LowRank."
        )
    names = (f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in kinds)
    meanings = next((KNOWN[name] for name in names if name in KNOWN), None)
    sees = any(part in kind.__name__.lower() for kind in kinds for part in SHOWN_THE_WEIGHT)
    return Inner(make, options, name, dict(example.defaults), meanings, sees, bool(example.state))


def adamw_of(given: dict[str, Any]) -> Inner:
    """The AdamW for uncompressed parameters, from the arguments of a low-rank optimizer."""
    names = ("lr", "betas", "eps", "weight_decay", "foreach", "fused")
    return inner_of(torch.optim.AdamW, {name: given[name] for name in names})


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    """Set an option, as a tensor if it is one, like torchao's rate: then it is on a device."""
    if isinstance(group[name], torch.Tensor) and not isinstance(value, torch.Tensor):
        value = torch.full_like(group[name], value)
    group[name] = value


def is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _is_on_device(value: Any) -> bool:
    """Whether a value of state is an array, or a number on a device other than the CPU."""
    return is_array(value) or (isinstance(value, torch.Tensor) and not value.is_cpu)


def inner_state(state: dict[str, Any]) -> dict[str, Any]:
    """The part of a parameter's state that belongs to the inner optimizer."""
    return {name: value for name, value in state.items() if name not in OWN_STATE}


def _is_elementwise(make: Callable[..., torch.optim.Optimizer], device: torch.device) -> bool:
    """Test whether steps of two halves of a parameter equal steps of the whole."""
    device = torch.device("cpu") if device.type == "meta" else device  # weights without data yet
    draw = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[1.0, 30.0], [1.0, 2.0], [5.0, 0.1]]).repeat_interleave(64, dim=1)
    gradients, found = (draw * sizes[:, None, :]).to(device), []
    for parts in ([gradients], list(gradients.chunk(2, dim=2))):
        proxies = [torch.nn.Parameter(torch.zeros_like(part[0])) for part in parts]
        for proxy, part in zip(proxies, parts, strict=True):
            optimizer = make([proxy])
            for group in optimizer.param_groups:  # a warm-up may start with 0
                if group.get("lr") is not None:
                    _set(group, "lr", 0.01)
            for G in part:
                proxy.grad = G.clone()
                optimizer.step()
            for value in optimizer.state[proxy].values():
                is_plain = getattr(value, "shape", ()) in ((), proxy.shape)
                if not is_plain or hasattr(value, "__tensor_flatten__"):
                    return False
        found.append(torch.cat([proxy.detach() for proxy in proxies], dim=1))
    whole, halves = found
    return bool(torch.isclose(whole, halves, rtol=1e-4, atol=0.0).all())


# -- a step of coordinates -------------------------------------------------------------------------


def step_coordinates(
    inner: Inner,
    kept: dict[Any, torch.optim.Optimizer],
    weight: Weight,
    values: torch.Tensor,
    R: torch.Tensor,
    states: list[dict[str, Any]],
    *,
    joined: bool,
) -> None:
    """Step the `values` (n×r×M) by their gradients R, in place, and the inner part of the states.

    If `joined`, one parameter holds all values, and the states must have one `join_key`. Otherwise
    there is one for each. Optimizers of these proxies are `kept`, without state between steps: one
    for all that are stepped with this first `weight`, since some count their steps.
    """
    # R is needed again for the residual, and some optimizers write to gradients
    grads = R.to(values.dtype, copy=weight.group["residual"] is not None)
    initial, parts = [inner_state(state) for state in states], (list(values), list(grads))
    if joined:
        initial, parts = [_joined(initial)], ([values], [grads])
    kind = weight.index, values.device, values.dtype, len(initial)
    if kind not in kept:
        kept[kind] = inner.new([torch.nn.Parameter(values.new_zeros(1, 1)) for _ in initial])
    optimizer = kept[kind]
    optimizer.state.clear()
    inner.set_options(optimizer.param_groups[0], weight.group, weight_decay=0.0)
    proxies = [proxy for group in optimizer.param_groups for proxy in group["params"]]
    present = list(zip(proxies, *parts, initial, strict=True))
    try:
        for proxy, value, _, state in present:
            proxy.data = value
            starts_with_state = not state and inner.has_initial_state
            own = inner.new([proxy]).state[proxy] if starts_with_state else state
            if own:
                optimizer.state[proxy] = own
        # in two parts: fused optimizers need state for all parameters or for none
        have = [proxy in optimizer.state for proxy, *_ in present]
        for part in sorted(set(have)):
            for (proxy, _, grad, _), has_state in zip(present, have, strict=True):
                proxy.grad = grad if has_state is part else None
            optimizer.step()
        for proxy, value, *_ in present:
            if proxy.data_ptr() != value.data_ptr():
                value.copy_(proxy.data)
        made = [dict(optimizer.state.get(proxy, {})) for proxy, *_ in present]
    finally:
        optimizer.state.clear()
        for proxy, *_ in present:
            proxy.grad, proxy.data = None, proxy.data.new_empty(0)
    if joined:
        _part(made[0], states)
    else:
        for state, new in zip(states, made, strict=True):
            state.update(inner_state(new))


def join_key(state: dict[str, Any]) -> tuple[Any, ...]:
    """Equal for states that can be joined: tensors of the same shape and dtype, and equal numbers.

    A number on a device is not read; states of the same age are assumed to have the same.
    """
    key: list[Any] = [state.get("updates", 0) - state.get("began", 0)]
    for name, value in inner_state(state).items():
        if _is_on_device(value):
            key.append((name, value.shape, value.dtype))
        else:
            key.append((name, float(value) if isinstance(value, torch.Tensor) else repr(value)))
    return tuple(key)


def _joined(states: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: read(states, name) if is_array(value) else copied(value, None)
        for name, value in states[0].items()
    }


def _part(joined: dict[str, Any], states: list[dict[str, Any]]) -> None:
    """Copy the parts of a joined state to the states."""
    for name, value in joined.items():
        if _is_on_device(value):
            write(states, {name: value if value.ndim else value.expand(len(states))})
        else:
            for state in states:
                state[name] = copied(value, None)


# -- state in a new basis --------------------------------------------------------------------------


def transported(
    inner: Inner,
    states: list[dict[str, Any]],
    C: torch.Tensor,
    group: dict[str, Any],
    outside: torch.Tensor,
) -> list[dict[str, Any]] | None:
    """States with one `join_key`, in a new basis; None if their meaning is unknown.

    ``C = Q_newᵀ Q`` (n×r'×r). A mean of coordinates is multiplied by C. A mean of squares is
    corrected for its start from zero, and then changed by
    :func:`lowrank.compress.transport_squares`, with the mean squares `outside` (n×M) of the old
    basis. A sum of squares is the mean times the number of steps. Of a factored mean of squares,
    the numbers of rows are changed, and those of columns stay.
    """
    arrays = {name: value for name, value in states[0].items() if is_array(value)}
    if inner.meanings is None or not arrays.keys() <= inner.meanings.keys():
        return None
    changed = {name: X for name, X in arrays.items() if inner.meanings[name] != "columns"}
    (new_r, r), M = C.shape[-2:], outside.shape[-1]
    if any(X.shape[0] != r or (_is_quantized(X) and new_r != r) for X in changed.values()):
        return None
    new: list[dict[str, Any]] = [{} for _ in states]
    plain = {name: _plain([state[name] for state in states], C.dtype) for name in changed}
    for name, first in changed.items():
        meaning, X = inner.meanings[name], plain[name]
        X = X if X.ndim > 2 else X.unsqueeze(-1)
        if meaning == "mean":
            Y = C @ X
        else:
            mean = plain.get(OF_MEANS.get(name, ""))
            mean = X.new_zeros(()).expand_as(X) if mean is None else mean
            rest = outside if X.shape[-1] == M else outside.mean(-1, keepdim=True)
            a, b = _sizes(meaning, states[0], group)
            pieces = [
                transport_squares(C, mean[..., part] / a, X[..., part] / b, rest[:, None, part])
                for part in slices(X.shape[-1], X)
            ]
            Y = (torch.cat(pieces, -1) if len(pieces) > 1 else pieces[0]).mul_(b)
        Y = Y.view(*Y.shape[:2], *first.shape[1:])
        if _is_quantized(first):
            for state, made, y in zip(states, new, Y, strict=True):
                made[name] = state[name].to(first.device, copy=True).copy_(y)
        else:
            write(new, {name: Y.to(first.dtype)})
    return [{**state, **made} for state, made in zip(states, new, strict=True)]


def _sizes(meaning: Any, state: dict[str, Any], group: dict[str, Any]) -> tuple[Any, Any]:
    """The factors of a mean and a mean of squares due to their start from zero; or the count."""
    step = state.get("step")
    if step is None:
        return 1.0, 1.0
    # in double precision: 1 − β₂ᵗ in single is zero for β₂ near 1
    step = float(step) if not isinstance(step, torch.Tensor) or step.is_cpu else step.double()
    if meaning == "sum of squares":
        return 1.0, step
    betas = group.get("betas") or (group.get("alpha", 0.0),) * 2
    return tuple(1.0 - float(beta) ** step for beta in betas[:2])  # type: ignore[return-value]


def _is_quantized(value: Any) -> bool:
    return getattr(type(value), "dequantize", None) is not torch.Tensor.dequantize


def _plain(values: list[Any], dtype: torch.dtype) -> torch.Tensor:
    if _is_quantized(values[0]):
        values = [value.dequantize() for value in values]
    return stack_of([value.to(dtype) for value in values])
