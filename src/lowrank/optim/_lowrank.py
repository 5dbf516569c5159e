"""Any torch optimizer, with its state on low-rank subspaces of the gradients."""

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch

from lowrank._array import array_namespace
from lowrank._check import as_rank
from lowrank._sketch import gaussian_source
from lowrank.optim._options import DEFAULTS, Member, member, parse
from lowrank.optim._report import Report, Row, storage_bytes
from lowrank.optim._update import (
    add_to_weight,
    channel_scales,
    coordinates,
    mean_square_outside,
    product,
    transported,
)

__all__ = ["Batch", "LowRank"]

# What this optimizer adds to the state of a compressed parameter; all else is the inner one's.
OURS = ("basis", "updates", "next_refresh", "residual_norm", "sketch")
# Optimizers whose step is proportional to the size of the weight: they are shown QᵀW, and not 0.
SHOWN_THE_WEIGHT = ("Adafactor", "Lamb", "LAMB", "Lars", "LARS")
# In a batch of compressed parameters, all that is temporary stays below the largest weight.
TEMPORARIES = 4


@dataclass(frozen=True)
class Batch:
    """Compressed parameters of one group that the inner optimizer steps together."""

    group: int
    members: tuple[Member, ...]
    proxies: tuple[torch.nn.Parameter, ...]
    inner: torch.optim.Optimizer


class LowRank(torch.optim.Optimizer):
    """Wraps an optimizer class, so that the state of large matrices is of low rank.

    Of a weight with short side k and long side M, the inner optimizer steps r×M coordinates of the
    gradient in an orthonormal basis of rank r, found by the range finder and refreshed now and
    then; their change is put back into the weight. State of an Adam-like inner optimizer:
    ``r·k + 2·r·M`` numbers in place of ``2·k·M``.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        Every option below may differ by group. See :func:`select` for groups of a model.
        The keys of galore-torch's groups (`update_proj_gap`, `proj_type`) are understood.
    optimizer : callable
        Class of the inner optimizer, such as ``torch.optim.AdamW``. It also steps, untouched, all
        parameters that are not compressed.
    rank : int or float, optional
        Columns of a basis, or their fraction of k (a float below 1). Parameters of groups without
        `rank` and `energy` are not compressed; nor are vectors, complex parameters, and those where
        ``r < k`` and ``r·k + 2·r·M < 2·k·M`` do not hold.
    energy : float, optional
        Fraction of ``‖G‖_F²`` to capture: the rank follows at each refresh, up to `rank` or
        `max_rank` (default a quarter of k). The memory is bounded by the cap only.
    max_rank : int or float, optional
        Cap on an adaptive rank.
    budget_bytes : int, optional
        In place of `rank` and `max_rank`: bytes for the bases of all compressed parameters and two
        numbers for each coordinate, spent as one fraction of k for all.
    refresh_every : int
        Steps between refreshes of a basis. They are spread over the steps; only in the first step
        every parameter gets a basis.
    residual : {"scaled", None}
        Use the gradient outside the subspace too, each of its M columns scaled as the inner
        optimizer scaled its coordinates, or leave it out.
    random_fraction : float
        Share of random directions in a basis, fresh at each refresh.
    transport : {"rotate", "keep", "reset"}
        State of the inner optimizer at a refresh: moved to the new basis, left as it is, or begun
        anew.
    power_iterations, oversampling, warm_start
        See :class:`lowrank.compress.Subspace`.
    average : float
        Above 0, the decay by which gradients are averaged: a basis is then one of the average,
        by a sketch of ``k·(r + oversampling)`` numbers more.
    scale : float
        Factor on every change of a compressed weight, besides weight decay.
    side : {None, "long", "left", "right"}
        Side of the basis; by default the short one.
    state_dtype : torch.dtype, optional
        Of the state of the inner optimizer for compressed parameters. Default: float32, or
        float64 for such parameters. Bases are never of half precision.
    nonfinite : {"skip", "raise", "ignore"}
        What a NaN or Inf in any gradient does: no step (counted in `skipped_steps`), or a
        FloatingPointError; nothing is changed by either. One number is read from the device per
        step for it, but none with "ignore". What a GradScaler has found is taken in its place, and
        skips the step.
    seed : int
        With the count of steps and the place of the parameter it gives all random numbers.
    **inner
        Options of the inner optimizer: `lr`, `betas`, …

    Raises
    ------
    TypeError, ValueError
        For options that are out of range or unknown to the inner optimizer.

    Notes
    -----
    Weights that are compressed decay as a whole and decoupled, ``W ← (1 − lr · weight_decay) W``,
    whatever the inner optimizer does. Tensors of more than two dimensions are compressed as
    matrices, the first dimension by the product of the others. Half-precision weights are rounded
    once a step; products are in single precision.

    Beyond the state a step needs less memory than the largest of the weights, for ranks up to
    k/8 (k/16 for weights of half precision). Gradients are not changed, but by the unscaling of a
    GradScaler. The ranks and sides of groups are settled in the first step.

    The state of a parameter is one flat dict of tensors and integers. Given the same state,
    gradients, software and device model, steps are the same bit by bit.

    Not supported: sparse gradients of compressed parameters, closures that must be called more than
    once a step (L-BFGS), and inner optimizers that keep numbers in parameter groups or read the
    parameters (schedule-free and distance-adaptive ones).

    References
    ----------
    J. Zhao et al., GaLore, 2024, arXiv:2403.03507. X. Chen et al., Fira, 2024, arXiv:2410.01623
    (the residual). T. Robert et al., LDAdam, 2025, arXiv:2410.16103 (transport).

    Examples
    --------
    >>> import torch
    >>> from lowrank.optim import LowRank
    >>> model = torch.nn.Linear(512, 512, bias=False)
    >>> optimizer = LowRank(model.parameters(), torch.optim.AdamW, rank=32, lr=1e-3)
    >>> model(torch.ones(1, 512)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state_bytes() / optimizer.report().uncompressed_bytes < 0.1
    True
    """

    # A GradScaler then leaves unscaling and skipping to `step`, and nothing is read twice.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        rank: float | None = None,
        energy: float | None = None,
        max_rank: float | None = None,
        budget_bytes: int | None = None,
        refresh_every: int = 200,
        residual: Literal["scaled"] | None = "scaled",
        random_fraction: float = 0.5,
        transport: Literal["rotate", "keep", "reset"] = "rotate",
        power_iterations: int = 1,
        oversampling: int = 8,
        warm_start: bool = False,
        average: float = 0.0,
        scale: float = 1.0,
        side: Literal["long", "left", "right"] | None = None,
        state_dtype: torch.dtype | None = None,
        nonfinite: Literal["skip", "raise", "ignore"] = "skip",
        seed: int = 0,
        **inner: Any,
    ) -> None:
        if nonfinite not in ("skip", "raise", "ignore"):
            message = f"`nonfinite` must be 'skip', 'raise' or 'ignore', got {nonfinite!r}."
            raise ValueError(message)
        self.nonfinite = nonfinite
        self._make, self._options = optimizer, inner
        self._batches: list[Batch] | None = None
        self._rest: torch.optim.Optimizer | None = None
        example = optimizer([torch.nn.Parameter(torch.zeros(1))], **inner)
        closure = inspect.signature(example.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            message = f"{type(example).__name__} cannot be wrapped: its step needs a closure."
            raise TypeError(message)
        self._inner_names = tuple(example.defaults)
        own = {
            "rank": rank,
            "energy": energy,
            "max_rank": max_rank,
            "refresh_every": refresh_every,
            "residual": residual,
            "random_fraction": random_fraction,
            "transport": transport,
            "power_iterations": power_iterations,
            "oversampling": oversampling,
            "warm_start": warm_start,
            "average": average,
            "scale": scale,
            "side": side,
            "state_dtype": state_dtype,
            "seed": seed,
            "optimizer": getattr(optimizer, "__name__", type(optimizer).__name__),
        }
        defaults = parse({**example.defaults, **DEFAULTS, **own})
        if budget_bytes is not None:
            defaults["rank"] = 0.5  # until all parameters are known
        super().__init__(params, defaults)
        if budget_bytes is not None:
            self._spend(budget_bytes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(parse(param_group))
        group = self.param_groups[-1]
        self.param_groups[-1] = parse(group)  # with the defaults
        self._batches = self._rest = None

    def __getstate__(self) -> dict[str, Any]:
        names = ("nonfinite", "_make", "_options", "_inner_names")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._batches = self._rest = None
        super().__setstate__(state)

    @property
    def skipped_steps(self) -> int:
        """Steps that were not taken because a gradient held NaN or Inf."""
        return int(self.param_groups[0]["skipped_steps"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches, rest = self._workers()
        self._refuse_sparse(batches)
        if not self._gradients_allow():
            return loss
        if rest is not None:
            rest.state = self.state
            for theirs in rest.param_groups:
                self._tell(theirs, self.param_groups[theirs["number"]])
            rest.step()
        for batch in batches:
            self._step_batch(batch)
        return loss

    # -- one batch ----------------------------------------------------------------------------

    def _step_batch(self, batch: Batch) -> None:
        group, inner = self.param_groups[batch.group], batch.inner
        self._tell(inner.param_groups[0], group, weight_decay=0.0)
        prepared = []
        try:
            for each, proxy in zip(batch.members, batch.proxies, strict=True):
                if each.parameter.grad is None:
                    continue
                state = self.state[each.parameter] = self._refreshed(each, group)
                R = coordinates(each, state["basis"], each.gradient)
                start = self._start(each, state["basis"])
                dtype = R.dtype
                if group["state_dtype"] is not None:
                    dtype = getattr(torch, group["state_dtype"])
                proxy.data = torch.zeros_like(R, dtype=dtype)
                if start is not None:
                    proxy.data.copy_(start)
                proxy.grad = R.to(dtype)
                inner.state[proxy] = {key: state[key] for key in state if key not in OURS}
                if not inner.state[proxy]:
                    del inner.state[proxy]  # so that the inner optimizer begins
                prepared.append((each, proxy, state, start, R))
            inner.step()
            for each, proxy, state, start, R in prepared:
                self._put_back(each, proxy, state, start, R, group)
                ours = {key: state[key] for key in OURS if key in state}
                self.state[each.parameter] = {**inner.state.get(proxy, {}), **ours}
        finally:
            inner.state.clear()
            for proxy in batch.proxies:
                proxy.grad, proxy.data = None, proxy.data.new_empty(0)

    def _refreshed(self, each: Member, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter for this step, with a new basis where its turn has come."""
        state: dict[str, Any] = dict(self.state.get(each.parameter, {}))
        steps = state.get("updates", 0)
        state["updates"] = steps + 1
        old = state.get("basis")
        if group["average"] > 0.0:
            self._sketch(each, group, state)
        if old is not None and steps < state["next_refresh"]:
            return state
        every = group["refresh_every"]
        if old is None:  # from now on spread over the steps
            order, count = self._orders[each.index]
            state["next_refresh"] = steps + max(1, (order + 1) * every // count)
        else:
            state["next_refresh"] = steps + every
        policy = replace(each.policy, basis=old)
        if "sketch" in state:
            policy = replace(policy, side="left", power_iterations=0, warm_start=False)
            Q = policy.refresh(state["sketch"], step=steps).basis
        else:
            Q = policy.refresh(each.gradient.flatten(1), step=steps).basis
        if old is not None:
            self._move(each, group, state, old, Q)
        state["basis"] = Q
        return state

    def _sketch(self, each: Member, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Average ``G Ω`` over the steps, for a test matrix Ω that never changes."""
        width = min(each.rank + group["oversampling"], each.k)
        device = each.parameter.device
        xp = array_namespace(each.parameter)
        numbers = np.random.SeedSequence([group["seed"], each.index])
        draw = gaussian_source(numbers, xp, device, purpose="average")
        Y = product(each, each.gradient, draw((each.M, width), each.dtype))
        state["sketch"] = (
            torch.lerp(Y, state["sketch"], group["average"]) if "sketch" in state else Y
        )

    def _move(
        self,
        each: Member,
        group: dict[str, Any],
        state: dict[str, Any],
        old: torch.Tensor,
        Q: Any,
    ) -> None:
        """Move the inner optimizer's part of `state` from the basis `old` to Q."""
        if group["transport"] == "keep" and old.shape == Q.shape:
            return
        theirs = {key: state.pop(key) for key in list(state) if key not in OURS}
        if group["transport"] != "reset" and theirs:
            G = each.oriented(each.gradient)
            R = coordinates(each, old, each.gradient)
            betas = group.get("betas", (0.0, 0.0))[:2]
            outside = mean_square_outside(old, R, G)
            state.update(transported(theirs, Q.mT @ old, betas, outside))

    def _start(self, each: Member, Q: torch.Tensor) -> torch.Tensor | None:
        if not any(part in self.defaults["optimizer"] for part in SHOWN_THE_WEIGHT):
            return None
        return coordinates(each, Q, each.parameter.data)

    def _put_back(
        self,
        each: Member,
        proxy: torch.nn.Parameter,
        state: dict[str, Any],
        start: torch.Tensor | None,
        R: torch.Tensor,
        group: dict[str, Any],
    ) -> None:
        Q, change = state["basis"], proxy.data.to(R.dtype)
        if start is not None:
            change -= start
        lr, scale, decay = group.get("lr", 1.0), group["scale"], group.get("weight_decay", 0.0)
        kept = 1.0 - lr * decay if decay else None
        G, s = None, None
        if group["residual"] is not None:
            G = each.oriented(each.gradient)
            s, size = channel_scales(change, R, G, lr, state.get("residual_norm"))
            state["residual_norm"] = size
            s *= -lr if group.get("maximize") else lr
            change.addcmul_(R, s)
            s *= scale
        add_to_weight(each, Q, change.mul_(scale), kept=kept, G=G, s=s)

    # -- gradients ----------------------------------------------------------------------------

    def _gradients(self) -> Iterator[torch.Tensor]:
        for parameter in chain.from_iterable(group["params"] for group in self.param_groups):
            if parameter.grad is not None and parameter.grad.numel():
                yield parameter.grad

    def _refuse_sparse(self, batches: list[Batch]) -> None:
        for each in chain.from_iterable(batch.members for batch in batches):
            grad = each.parameter.grad
            if grad is not None and grad.layout is not torch.strided:
                message = (
                    f"parameter {self._name(each.index)} has a sparse gradient, which cannot be "
                    "compressed; put it in a group of its own with rank=None."
                )
                raise TypeError(message)

    def _gradients_allow(self) -> bool:
        """Whether to take the step; nothing has been changed yet. Unscales for a GradScaler."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found is not None:  # a GradScaler has looked
            finite = not bool(found)
            if finite and scale is not None:
                for grad in self._gradients():
                    grad.mul_(1.0 / scale.to(grad.device, torch.float32))
        else:
            finite = self.nonfinite == "ignore" or self._are_finite()
        if finite:
            return True
        if found is None and self.nonfinite == "raise":
            names = [self._name(index) for index, p in enumerate(self._parameters()) if _is_bad(p)]
            message = f"the gradients of these parameters hold NaN or Inf: {', '.join(names)}."
            raise FloatingPointError(message)
        self.param_groups[0]["skipped_steps"] += 1
        return False

    def _are_finite(self) -> bool:
        sizes = [_largest(grad) for grad in self._gradients()]
        if not sizes:
            return True
        together = torch.stack([size.to(sizes[0].device, torch.float64) for size in sizes])
        return bool(torch.isfinite(together).all())

    # -- workers ------------------------------------------------------------------------------

    def _parameters(self) -> list[torch.Tensor]:
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def _members(self) -> list[tuple[int, Member]]:
        """Compressed parameters with their groups."""
        indices = iter(range(len(self._parameters())))
        found = [
            (number, member(group, parameter, next(indices)))
            for number, group in enumerate(self.param_groups)
            for parameter in group["params"]
        ]
        return [(number, each) for number, each in found if each is not None]

    def _workers(self) -> tuple[list[Batch], torch.optim.Optimizer | None]:
        """The inner optimizers: one a batch, and one for what is not compressed."""
        if self._batches is None:
            members = self._members()
            self._orders = {each.index: (i, len(members)) for i, (_, each) in enumerate(members)}
            weights = (each.parameter for _, each in members)
            most = max((p.numel() * p.element_size() for p in weights), default=0)
            self._batches, taken = [], {each.parameter for _, each in members}
            waiting: list[Member] = []
            for i, (number, each) in enumerate(members):
                waiting.append(each)
                following = members[i + 1] if i + 1 < len(members) else (None, each)
                together = [*waiting, following[1]]
                size = sum(one.rank * one.M * one.dtype.itemsize for one in together)
                if following[0] != number or TEMPORARIES * size > most:
                    self._batches.append(self._batch(number, waiting))
                    waiting = []
            groups = [
                {"params": [p for p in group["params"] if p not in taken], "number": number}
                for number, group in enumerate(self.param_groups)
            ]
            groups = [group for group in groups if group["params"]]
            self._rest = self._make(groups, **self._options) if groups else None
        return self._batches, self._rest

    def _batch(self, number: int, members: list[Member]) -> Batch:
        proxies = tuple(
            torch.nn.Parameter(torch.zeros(1, 1, dtype=each.dtype, device=each.parameter.device))
            for each in members
        )
        return Batch(number, tuple(members), proxies, self._make(list(proxies), **self._options))

    def _tell(self, theirs: dict[str, Any], group: dict[str, Any], **instead: Any) -> None:
        """Give a group of an inner optimizer the options of ours, as a scheduler has set them."""
        for name in self._inner_names:
            value = instead.get(name, group[name])
            if isinstance(theirs[name], torch.Tensor) and not isinstance(value, torch.Tensor):
                theirs[name].fill_(value)  # torchao keeps its learning rate on the device
            else:
                theirs[name] = value

    def _name(self, index: int) -> str:
        names = [
            name
            for group in self.param_groups
            for name in group.get("param_names", [None] * len(group["params"]))
        ]
        return str(index) if names[index] is None else f"{names[index]!r}"

    def _spend(self, budget: int) -> None:
        """Give all compressed parameters the largest fraction of k that the budget allows."""
        members = [each for _, each in self._members()]

        def needed(fraction: float) -> int:
            total = 0
            for each in members:
                r = as_rank(fraction, each.k, "budget_bytes")
                total += (r * each.k + 2 * r * each.M) * each.dtype.itemsize
            return total

        low, high = 0.0, 0.5
        if members and needed(high) > budget:
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if needed(middle) <= budget else (low, middle)
            if low == 0.0:
                message = (
                    f"`budget_bytes` must be at least {needed(1e-9):,}, for a basis of one column "
                    f"for each of {len(members)} parameters, got {budget:,}."
                )
                raise ValueError(message)
            high = low
        for group in self.param_groups:
            if group["rank"] is not None:
                group["rank"] = high
        self._batches = self._rest = None

    # -- state --------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes that the state keeps alive, whole storages: 0 before the first step."""
        return storage_bytes(chain.from_iterable(state.values() for state in self.state.values()))

    def report(self) -> Report:
        """The rank and the bytes of state of every parameter, and the bytes it would have.

        The latter are those of the inner optimizer's state with k rows in place of r, without the
        basis. Before the first step the state is empty.
        """
        compressed = {each.index: each for _, each in self._members()}
        rows = []
        for index, parameter in enumerate(self._parameters()):
            state, each = self.state.get(parameter, {}), compressed.get(index)
            here, rank, whole = storage_bytes(state.values()), None, storage_bytes(state.values())
            if each is not None:
                rank = int(state["basis"].shape[1]) if "basis" in state else each.rank
                theirs = [state[key] for key in state if key not in OURS]
                whole = sum(_unwound(value, rank, each.k) for value in theirs)
            name = self._name(index).strip("'")
            rows.append(Row(name, tuple(parameter.shape), rank, here, whole))
        return Report(tuple(rows))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a state; nothing is shared with it, and every dtype stays as it was saved.

        Raises
        ------
        ValueError
            If it belongs to other groups, ranks, shapes or another inner optimizer: nothing has
            been changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        groups = copy.deepcopy(state_dict["param_groups"])
        sizes = [[len(group["params"]) for group in all] for all in (groups, self.param_groups)]
        if sizes[0] != sizes[1]:
            message = (
                f"the state has groups of {sizes[0]} parameters, this optimizer of {sizes[1]}; "
                "build it with the same groups."
            )
            raise ValueError(message)
        told = {group.get("optimizer", self.defaults["optimizer"]) for group in groups}
        if told != {self.defaults["optimizer"]}:
            message = (
                f"the state is one of {', '.join(sorted(told))}, this optimizer wraps "
                f"{self.defaults['optimizer']}."
            )
            raise ValueError(message)
        keys = [(key, group) for group in groups for key in group["params"]]
        places = {key: (index, group) for index, (key, group) in enumerate(keys)}
        parameters, members = self._parameters(), {each.index: each for _, each in self._members()}
        state: defaultdict[Any, Any] = defaultdict(dict)
        for key, saved in state_dict["state"].items():
            if key not in places:
                state[key] = copy.deepcopy(saved)
                continue
            index, group = places[key]
            parameter = parameters[index]
            self._check_saved(saved, parameter, index, members.get(index))
            on_host = not any(group.get(name) for name in ("capturable", "fused"))
            state[parameter] = {
                name: _copied(value, None if name == "step" and on_host else parameter.device)
                for name, value in saved.items()
            }
        for group, ours in zip(groups, self.param_groups, strict=True):
            group["params"] = ours["params"]
            if "param_names" in ours:
                group.setdefault("param_names", ours["param_names"])
        self.__setstate__({"state": state, "param_groups": groups})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _check_saved(
        self, saved: dict[str, Any], parameter: torch.Tensor, index: int, each: Member | None
    ) -> None:
        basis, name = saved.get("basis"), self._name(index)
        if (basis is None) != (each is None) and saved:
            here, there = ("", "not ") if each is None else ("not ", "")
            message = (
                f"parameter {name} is {here}compressed in the state, and {there}compressed here; "
                "give its group the same `rank`."
            )
            raise ValueError(message)
        if each is None or basis is None:
            for key, value in saved.items():
                wrong = isinstance(value, torch.Tensor) and value.ndim == parameter.ndim > 0
                if wrong and value.numel() == value.shape.numel() > parameter.numel():
                    message = f"`{key}` of parameter {name} has shape {tuple(value.shape)}."
                    raise ValueError(message)
            return
        k, r = basis.shape
        if k != each.k:
            message = (
                f"the basis of parameter {name} has {k} rows in the state, but its shape "
                f"{tuple(parameter.shape)} needs {each.k}."
            )
            raise ValueError(message)
        if r != each.rank and each.policy.energy is None:
            message = (
                f"parameter {name} has rank {r} in the state and {each.rank} here; build the "
                f"optimizer with rank={r}."
            )
            raise ValueError(message)
        for key, value in saved.items():
            is_matrix = isinstance(value, torch.Tensor) and value.ndim == 2 and key not in OURS
            if is_matrix and not (value.shape[0] in (r, 1) and value.shape[1] in (each.M, 1)):
                message = (
                    f"`{key}` of parameter {name} has shape {tuple(value.shape)} in the state, but "
                    f"shape {tuple(parameter.shape)} at rank {r} needs {(r, each.M)}."
                )
                raise ValueError(message)


def _largest(grad: torch.Tensor) -> torch.Tensor:
    values = grad.coalesce().values() if grad.layout is torch.sparse_coo else grad
    if values.numel() == 0:
        return torch.zeros((), device=grad.device)
    return torch.linalg.vector_norm(values, ord=math.inf)


def _is_bad(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None and not bool(torch.isfinite(_largest(parameter.grad)))


def _copied(value: Any, device: torch.device | None) -> Any:
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    return value.detach().clone() if device is None else value.detach().to(device, copy=True)


def _unwound(value: Any, rank: int, k: int) -> int:
    """Bytes of a tensor of state if it had k rows in place of `rank`."""
    here = storage_bytes([value])
    has_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rank
    return here * k // rank if has_rows else here
