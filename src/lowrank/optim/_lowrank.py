"""Any torch optimizer, with its state on low-rank subspaces of the gradients."""

import copy
import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch

from lowrank._check import as_rank
from lowrank.optim._loading import check_saved, copied
from lowrank.optim._options import DEFAULTS, Member, is_asked, member, parse
from lowrank.optim._refresh import OURS, refreshed
from lowrank.optim._report import Report, Row, storage_bytes
from lowrank.optim._sharding import (
    agreed,
    align,
    is_elementwise,
    local,
    placed_as,
    unfit_placements,
)
from lowrank.optim._update import coordinates, put_back

# Optimizers whose step is proportional to the size of the weight: they are shown QᵀW, and not 0.
SHOWN_THE_WEIGHT = ("Adafactor", "Lamb", "LAMB", "Lars", "LARS")
# In a batch of compressed parameters, all that is temporary stays below the largest weight, or
# below a size that is not worth saving, in bytes. On a GPU every operation costs the host as much
# as several weights cost the device.
SMALL, SMALL_ON_A_GPU = 2**24, 2**26


@dataclass(frozen=True)
class Batch:
    """Compressed parameters of one group and size, stepped together: their coordinates stacked."""

    group: int
    members: tuple[Member, ...]
    proxies: tuple[torch.nn.Parameter, ...]
    inner: torch.optim.Optimizer
    is_born_with_state: bool  # Adagrad is, and up to torch 2.12 makes none later


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
        Class of the inner optimizer, :class:`torch.optim.AdamW` by default. It also steps,
        untouched, all parameters that are not compressed.
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
        float64 for such parameters. Bases are never of half precision, nor is the state of
        optimizers whose step is relative to the weight (Adafactor, LAMB, LARS).
    nonfinite : {"skip", "raise", "ignore"}
        What a NaN or Inf in any gradient, or one whose square overflows, does: no step (counted in
        `skipped_steps`), or a :exc:`FloatingPointError`; nothing is changed by either. One number
        is read from the device per step for it. With "ignore" none is; then a refresh from such a
        gradient raises a :exc:`ValueError` in the middle of the step. What a GradScaler has found
        is taken in place of a look, and skips the step.
    seed : int
        With the count of steps and the place of the parameter it gives all random numbers.
    **inner
        Options of the inner optimizer: `lr`, `betas`, …

    Raises
    ------
    TypeError, ValueError
        For options that are out of range or unknown to the inner optimizer, for the flattened
        parameters of FSDP1, and for DTensors that would be compressed but are cut in another way
        than by rows, or whose inner optimizer is not element by element.

    Warns
    -----
    UserWarning
        In the first step, if a rank is given and no parameter is compressed.

    Notes
    -----
    Weights that are compressed decay as a whole and decoupled, ``W ← (1 − lr · weight_decay) W``,
    whatever the inner optimizer does. Tensors of more than two dimensions are compressed as
    matrices, the first dimension by the product of the others. Half-precision weights are rounded
    once a step; products are in single precision.

    Beyond the state a step needs less memory than the largest of the weights, or 16 MiB (64 on a
    GPU), for ranks up to k/8 (k/16 for weights of half precision); up to three times as much for
    convolutions in channels-last format, and twice with `average`, adaptive ranks of half precision
    weights or a `state_dtype` wider than the weight. Gradients are not changed, but by the
    unscaling of a GradScaler. The ranks and sides of groups are settled in the first step.

    Of weights that FSDP2 (or HSDP) spreads over ranks each rank compresses its rows: sides, ranks,
    budgets and random numbers are those of the whole, and so are the steps, up to rounding. All
    ranks must step together. Each has the moments of some columns of the coordinates. Where the
    rows are the long side, it has the whole basis; where they are the short side, its rows of it,
    and r·M numbers are summed over the ranks in each step, and gathered. A refresh needs
    M·(r + oversampling) numbers on each rank, a step those of its coordinates.

    The state of a parameter is one flat dict of tensors and integers. Given the same state,
    gradients, software and device model, steps are the same bit by bit.

    Not supported: sparse gradients of compressed parameters, closures that must be called more than
    once a step (L-BFGS), and inner optimizers that keep numbers in parameter groups or read the
    parameters (schedule-free and distance-adaptive ones).

    References
    ----------
    J. Zhao et al., GaLore, 2024, arXiv:2403.03507. X. Chen et al., Fira, 2024, arXiv:2410.01623
    (the residual). T. Robert et al., LDAdam, 2024, arXiv:2410.16103 (transport).

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

    _made: list[Batch | torch.optim.Optimizer] | None
    _spread = True  # coordinates over the ranks, where these have rows of the short side
    _temporaries = 6  # of a step of a batch, in stacks of coordinates
    _places: dict[torch.Tensor, Batch | torch.optim.Optimizer]
    _turns: dict[torch.Tensor, float]  # of the compressed parameters

    # A GradScaler then leaves unscaling and skipping to `step`, and nothing is read twice.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
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
        self._forget()
        example = optimizer([torch.nn.Parameter(torch.zeros(1, 1))], **inner)
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
        for parameter in group["params"]:
            wrong = None
            if type(parameter).__name__ == "FlatParameter":
                wrong = "FlatParameter of FSDP1, several weights in one vector, which has no rank"
            elif hasattr(parameter, "placements") and member(group, parameter, 0) is not None:
                wrong = unfit_placements(parameter)
                if wrong is None and not self._is_elementwise(parameter.device):
                    wrong = (
                        f"DTensor, of whose coordinates each rank steps a part, and a step of "
                        f"{self.defaults['optimizer']} needs them all"
                    )
            if wrong is not None:
                self.param_groups.pop()
                message = (
                    f"a parameter is a {wrong}; keep the weights whole on every rank, as "
                    "DistributedDataParallel does, or give them to an optimizer of their own."
                )
                raise TypeError(message)
        self.param_groups[-1] = parse(group)  # with the defaults
        self._made = None

    def __getstate__(self) -> dict[str, Any]:
        names = ("nonfinite", "_make", "_options", "_inner_names")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_hooks" not in self.__dict__:  # a copy, and no loading
            self._forget()
        self._made = None
        super().__setstate__(state)

    def _forget(self) -> None:
        """Go on without hooks, and with workers that the next step makes."""
        if getattr(self, "_skipped", False):
            self.param_groups[0]["skipped_steps"] += 1
        self._made = None
        self._hooks: ExitStack | None = None
        self._skipped = False

    def _is_elementwise(self, device: torch.device) -> bool:
        if self._shows_the_weight:
            return False
        return is_elementwise(lambda params: self._make(params, **self._options), device)

    @property
    def _shows_the_weight(self) -> bool:
        return any(part in self.defaults["optimizer"] for part in SHOWN_THE_WEIGHT)

    @property
    def skipped_steps(self) -> int:
        """Steps that were not taken because a gradient held NaN or Inf."""
        return int(self.param_groups[0]["skipped_steps"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that the parameters hold; return the closure's loss."""
        # Dynamo makes a constant of this question; the rest of the step is not for tracing.
        return self._step(closure, compiling=torch.compiler.is_compiling())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None, *, compiling: bool) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        workers = self._workers()
        self._prepare(self._parameters())
        if self._gradients_allow():
            for worker in workers:
                self._work(worker, compiling=compiling)
        return loss

    def step_in_backward(self, when: Callable[[], bool] | None = None) -> ExitStack:
        """Step every parameter in the backward pass, as soon as its gradient is complete.

        The gradient is then freed, so that never more than a few exist at once. The training loop
        stays as it is: `step` takes what still has a gradient (parameters of groups that are added
        later, say), and `zero_grad` finds nothing. Steps, state and checkpoints are those of the
        ordinary loop.

        Parameters
        ----------
        when : callable, optional
            Asked each time a gradient is complete: False lets it stand, for gradients that are
            accumulated over several backward passes.

        Returns
        -------
        contextlib.ExitStack
            Its ``close()``, or leaving it as a context manager, goes back to ordinary steps.

        Raises
        ------
        RuntimeError
            If it is in force already. In a process group of several ranks, unless the parameters
            are DTensors: DDP averages gradients after the backward pass has reached them, FSDP2
            before it tells. And by `step`, if it is called by a GradScaler, whose factor is divided
            out after it, too.

        Notes
        -----
        Nothing can be known of gradients that are not yet computed: a NaN or Inf skips the
        parameter (`skipped_steps` counts the step once, and one number is read for each parameter),
        and norms over all gradients can't be clipped. A gradient is complete when autograd says so:
        under reentrant checkpointing a parameter that several segments share is stepped for each.
        Of two optimizers of one parameter the first takes the gradient.

        Examples
        --------
        >>> import torch
        >>> from lowrank.optim import LowRank
        >>> model = torch.nn.Linear(512, 512, bias=False)
        >>> optimizer = LowRank(model.parameters(), torch.optim.AdamW, rank=32, lr=1e-3)
        >>> with optimizer.step_in_backward(when=lambda: batch % 2 == 1):
        ...     for batch in range(4):
        ...         model(torch.ones(1, 512)).sum().backward()
        >>> model.weight.grad is None
        True
        """
        if self._hooks is not None:
            message = "step_in_backward is in force already; close() what it returned first."
            raise RuntimeError(message)
        world = torch.distributed.is_available() and torch.distributed.is_initialized()
        if world and torch.distributed.get_world_size() > 1:
            plain = [i for i, p in enumerate(self._parameters()) if not hasattr(p, "placements")]
            if plain:
                message = (
                    f"parameter {self._name(plain[0])} is not a DTensor, and there are "
                    f"{torch.distributed.get_world_size()} ranks: its gradient would be used "
                    "before it is averaged over them. Step after the backward pass."
                )
                raise RuntimeError(message)

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        @torch.no_grad()
        def hook(parameter: torch.Tensor) -> None:
            if when is not None and not when():
                return
            self._workers()
            self._prepare([parameter])
            if self.nonfinite == "ignore" or _are_finite([parameter]):
                self._work(self._places[parameter])
            elif self.nonfinite == "raise":
                self._raise_nonfinite()
            else:
                self._skipped = True
            parameter.grad = None

        hooks = ExitStack()
        hooks.callback(self._forget)
        for parameter in self._parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
        self._made, self._hooks = None, hooks
        return hooks

    # -- one batch ----------------------------------------------------------------------------

    def _work(self, worker: Batch | torch.optim.Optimizer, *, compiling: bool = False) -> None:
        if isinstance(worker, Batch):
            self._step_batch(worker, compiling=compiling)
            return
        worker.state = self.state
        for theirs in worker.param_groups:
            self._tell(theirs, self.param_groups[theirs["number"]])
        worker.step()

    def _step_batch(self, batch: Batch, *, compiling: bool) -> None:
        group, inner = self.param_groups[batch.group], batch.inner
        pairs = zip(batch.members, batch.proxies, strict=True)
        present = [(each, proxy) for each, proxy in pairs if each.parameter.grad is not None]
        if not present:
            return
        self._tell(inner.param_groups[0], group, weight_decay=0.0)
        states = [
            refreshed(each, group, self.state.get(each.parameter, {}), self._turns[each.parameter])
            for each, _ in present
        ]
        first, bases = present[0][0], [state["basis"] for state in states]
        R = bases[0].new_empty(len(present), bases[0].shape[1], first.here[1])
        start = torch.empty_like(R) if self._shows_the_weight else None
        for (each, _), Q, row in zip(present, bases, R, strict=True):
            coordinates(each, Q, each.gradient, row)
        R = first.own(first.sum_k(R))
        if start is not None:
            for (each, _), Q, row in zip(present, bases, start, strict=True):
                coordinates(each, Q, each.parameter.data, row)
        dtype, whole = R.dtype, group["residual"] is not None
        if group["state_dtype"] is not None and start is None:
            dtype = getattr(torch, group["state_dtype"])
        values = torch.zeros_like(R, dtype=dtype) if start is None else start.to(dtype, copy=True)
        # R is needed again for the residual, and some optimizers write to gradients
        grads = R.to(dtype, copy=whole)
        inner.state.clear()
        try:
            for (_, proxy), value, state in zip(present, values, states, strict=True):
                proxy.data = value
                theirs = {key: state[key] for key in state if key not in OURS}
                if not theirs and batch.is_born_with_state:
                    theirs = self._make([proxy], **self._options).state[proxy]
                if theirs:
                    inner.state[proxy] = theirs
            # apart: fused optimizers take either all state or none
            begun = [proxy in inner.state for _, proxy in present]
            for part in sorted(set(begun)):
                for (_, proxy), grad, has_state in zip(present, grads, begun, strict=True):
                    proxy.grad = grad if has_state is part else None
                inner.step()
            for (_, proxy), value in zip(present, values, strict=True):
                if proxy.data_ptr() != value.data_ptr():
                    value.copy_(proxy.data)
            changes = values.to(R.dtype)
            if start is not None:
                changes -= start
            members = [each for each, _ in present]
            put_back(members, states, changes, R, group, compiling=compiling)
            for (each, proxy), state in zip(present, states, strict=True):
                ours = {key: state[key] for key in OURS if key in state}
                self.state[each.parameter] = {**inner.state.get(proxy, {}), **ours}
        finally:
            inner.state.clear()
            for proxy in batch.proxies:
                proxy.grad, proxy.data = None, proxy.data.new_empty(0)

    # -- gradients ----------------------------------------------------------------------------

    def _prepare(self, parameters: list[torch.Tensor]) -> None:
        """Refuse sparse gradients, and cut those of weights that are spread as these are."""
        for parameter in parameters:
            align(parameter)
            grad = parameter.grad
            if grad is not None and grad.layout is not torch.strided and parameter in self._turns:
                name = self._name(self._parameters().index(parameter))
                message = (
                    f"parameter {name} has a sparse gradient, which cannot be compressed; put it "
                    "in a group of its own with rank=None."
                )
                raise TypeError(message)

    def _gradients_allow(self) -> bool:
        """Whether to take the step; nothing has been changed yet. Unscales for a GradScaler."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        parameters, skipped, self._skipped = self._parameters(), self._skipped, False
        if found is not None:  # a GradScaler has looked
            if self._hooks is not None:
                for name in ("found_inf", "grad_scale"):  # which the scaler would leave here
                    vars(self).pop(name, None)
                message = (
                    "a GradScaler divides gradients by its factor after the backward pass, and so "
                    "can't be used with step_in_backward; train in bfloat16, without one."
                )
                raise RuntimeError(message)
            finite = bool(agreed(found == 0, parameters))
            if finite and scale is not None:
                for parameter in parameters:
                    if parameter.grad is not None:
                        local(parameter.grad).mul_(1.0 / scale.to(parameter.device, torch.float32))
        else:
            finite = self.nonfinite == "ignore" or _are_finite(parameters)
        if not finite and found is None and self.nonfinite == "raise":
            self._raise_nonfinite()
        self.param_groups[0]["skipped_steps"] += not finite or skipped
        return finite

    def _raise_nonfinite(self) -> None:
        bad = [i for i, p in enumerate(self._parameters()) if not _are_finite([p])]
        message = (
            "the gradients of these parameters hold NaN, Inf or numbers whose squares overflow: "
            f"{', '.join(map(self._name, bad))}."
        )
        raise FloatingPointError(message)

    # -- workers ------------------------------------------------------------------------------

    def _parameters(self) -> list[torch.Tensor]:
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def _members(self) -> list[tuple[int, Member]]:
        """Compressed parameters with their groups."""
        indices = iter(range(len(self._parameters())))
        found = [
            (number, member(group, parameter, next(indices), spread=self._spread))
            for number, group in enumerate(self.param_groups)
            for parameter in group["params"]
        ]
        return [
            (number, each)
            for number, each in found
            if each is not None
            and self._bytes(each, each.rank, self.param_groups[number])
            < 2 * each.k * each.M * each.dtype.itemsize
        ]

    def _workers(self) -> list[Batch | torch.optim.Optimizer]:
        """What steps the parameters: batches, and inner optimizers of what is not compressed."""
        if self._made is not None:
            return self._made
        members, alone = self._members(), self._hooks is not None
        if any(map(is_asked, self.param_groups)) and not members:
            message = (
                "no parameter is compressed: matrices of more than the asked rank are, but no "
                "vectors, into which FSDP1 and ZeRO flatten them."
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        self._turns = {each.parameter: i / len(members) for i, (_, each) in enumerate(members, 1)}
        left = [
            (number, [p for p in group["params"] if p not in self._turns])
            for number, group in enumerate(self.param_groups)
        ]
        if alone:
            left = [(number, [p]) for number, params in left for p in params]
        others = [{"params": params, "number": number} for number, params in left if params]
        together = [[group] for group in others] if alone else [others] if others else []
        made: list[Batch | torch.optim.Optimizer] = []
        for groups in together:
            inner = self._make(groups, **self._options)
            for p, state in inner.state.items():
                if not self.state.get(p):
                    self.state[p] = state
            made.append(inner)

        alike = defaultdict(list)
        for number, each in members:
            own = each.index if alone or each.policy.energy is not None else None
            spread = each.along_k, each.along_M
            alike[number, each.k, each.M, each.dtype, each.parameter.device, spread, own].append(
                each
            )
        largest = max((p.numel() * p.element_size() for p in self._turns), default=0)
        for (number, *_), same in alike.items():
            group, each = self.param_groups[number], same[0]
            wide = getattr(torch, group["state_dtype"] or "float16").itemsize
            size = each.rank * max(each.k, each.M) * max(wide, each.dtype.itemsize)
            small = SMALL if each.parameter.device.type == "cpu" else SMALL_ON_A_GPU
            count = max(1, max(small, largest) // (self._temporaries * size))
            parts = (same[start : start + count] for start in range(0, len(same), count))
            made += [self._batch(number, part) for part in parts]
        self._made, self._places = made, {_first(worker): worker for worker in made}
        return made

    def _batch(self, number: int, members: list[Member]) -> Batch:
        proxies = tuple(
            torch.nn.Parameter(torch.zeros(1, 1, dtype=each.dtype, device=each.parameter.device))
            for each in members
        )
        inner = self._make(list(proxies), **self._options)
        return Batch(number, tuple(members), proxies, inner, bool(inner.state))

    def _tell(self, theirs: dict[str, Any], group: dict[str, Any], **instead: Any) -> None:
        """Give a group of an inner optimizer the options of ours, as a scheduler has set them."""
        for name in self._inner_names:
            value = instead.get(name, group[name])
            if isinstance(theirs[name], torch.Tensor) and not isinstance(value, torch.Tensor):
                value = torch.full_like(theirs[name], value)  # torchao keeps its rate on the device
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
        members = [(self.param_groups[number], each) for number, each in self._members()]

        def needed(fraction: float) -> int:
            return sum(
                self._bytes(each, as_rank(fraction, each.k, "budget_bytes"), group)
                for group, each in members
            )

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
        self._made = None

    # -- state --------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes that the state keeps alive, whole storages: 0 before the first step.

        Of weights that are spread over ranks, those on this rank.
        """
        return storage_bytes(chain.from_iterable(state.values() for state in self.state.values()))

    @staticmethod
    def _bytes(each: Member, r: int, group: dict[str, Any]) -> int:  # noqa: ARG004
        """Of the state of a parameter at rank r, with two numbers for each coordinate."""
        return (r * each.k + 2 * r * each.M) * each.dtype.itemsize

    @staticmethod
    def _uncompressed_bytes(each: Member, state: dict[str, Any]) -> int:
        rank = int(state["basis"].shape[1]) if state else each.rank
        theirs = [state[key] for key in state if key not in OURS]
        return sum(_unwound(value, rank, each.k) for value in theirs)

    def _check_saved(
        self, saved: dict[str, Any], parameter: torch.Tensor, name: str, each: Member | None
    ) -> None:
        check_saved(saved, parameter, name, each)

    def report(self) -> Report:
        """The rank and the bytes of state of every parameter, and the bytes it would have.

        The latter are those of the inner optimizer's state with k rows in place of r, without the
        basis. Before the first step the state is empty. Shapes are those of whole weights, bytes
        those on this rank.
        """
        compressed = {each.index: each for _, each in self._members()}
        rows = []
        for index, parameter in enumerate(self._parameters()):
            state, each = self.state.get(parameter, {}), compressed.get(index)
            here, rank = storage_bytes(state.values()), None
            whole = here
            if each is not None:
                rank = int(state["basis"].shape[1]) if "basis" in state else each.rank
                whole = self._uncompressed_bytes(each, state)
            name = self._name(index).strip("'")
            rows.append(Row(name, tuple(parameter.shape), rank, here, whole))
        return Report(tuple(rows))

    def state_dict(self) -> dict[str, Any]:
        """The state; parts of what is spread over ranks are DTensors in it."""
        saved = super().state_dict()
        for _, each in self._members():
            if state := saved["state"].get(each.index):
                saved["state"][each.index] = {name: each.saved(name, state[name]) for name in state}
        return saved

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
            each = members.get(index)
            self._check_saved(saved, parameter, self._name(index), each)
            if each is not None:
                saved = {name: each.loaded(name, saved[name]) for name in saved}  # noqa: PLW2901
            else:
                saved = {name: placed_as(parameter, saved[name]) for name in saved}  # noqa: PLW2901
            on_host = not any(group.get(name) for name in ("capturable", "fused"))
            state[parameter] = {
                name: copied(value, None if name == "step" and on_host else parameter.device)
                for name, value in saved.items()
            }
        for group, ours in zip(groups, self.param_groups, strict=True):
            group["params"] = ours["params"]
            if "param_names" in ours:
                group.setdefault("param_names", ours["param_names"])
        self.__setstate__({"state": state, "param_groups": groups})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)


def _first(worker: Batch | torch.optim.Optimizer) -> torch.Tensor:
    if isinstance(worker, Batch):
        return worker.members[0].parameter
    first: torch.Tensor = worker.param_groups[0]["params"][0]
    return first


def _are_finite(parameters: list[torch.Tensor]) -> bool:
    """Whether the squares of all gradients have a finite sum: one number read by the host."""
    alike = defaultdict(list)
    for grad in (_values(local(p.grad)) for p in parameters if p.grad is not None):
        alike[type(grad), grad.device, grad.dtype].append(grad)
    sizes = []
    for (_, _, dtype), grads in alike.items():
        # the range of bfloat16 is that of float32, and a norm in its own dtype needs no copy
        wide = torch.float32 if dtype == torch.float16 else None
        norms = torch.stack(torch._foreach_norm(grads, 2.0, wide))
        sizes.append(norms.double() / (torch.finfo(wide or dtype).max ** 0.5 / 16))
    if not sizes:  # on this rank: others may have gradients of weights that are not spread
        device = parameters[0].device if parameters else None
        sizes.append(torch.zeros(1, device=device))
    together = torch.cat([size.to(sizes[0].device) for size in sizes])
    return bool(agreed((together < 1).all(), parameters))


def _values(grad: torch.Tensor) -> torch.Tensor:
    return grad.coalesce().values() if grad.layout is torch.sparse_coo else grad


def _unwound(value: Any, rank: int, k: int) -> int:
    """Bytes of a tensor of state if it had k rows in place of `rank`."""
    here = storage_bytes([value])
    has_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rank
    return here * k // rank if has_rows else here
