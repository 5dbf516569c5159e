"""The base of the low-rank optimizers: groups, steps, gradients, checkpoints and reports."""

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, ClassVar

import torch

from lowrank._check import as_count
from lowrank.optim._chunks import Chunk, largest_fraction, parameters_of, plan, similar_weights
from lowrank.optim._inner import Inner
from lowrank.optim._loading import check_saved, copied, loaded_groups
from lowrank.optim._options import (
    DEFAULTS,
    PLANNED,
    Weight,
    check_betas,
    parse,
    wants_compression,
    weight_of,
)
from lowrank.optim._report import Report, Row, storage_bytes
from lowrank.optim._sharding import align, placed_as, unfit_placements
from lowrank.optim._stacks import are_finite, write


class LowRankOptimizer(torch.optim.Optimizer):
    """A torch optimizer that compresses the state of some weights.

    Subclasses step the compressed weights in `_step_chunk`. The inner optimizer steps all others.
    """

    # How the state of sharded weights is shared out, see `Weight`.
    _spread: ClassVar[dict[str, bool]] = {"shares": True}
    _temporaries = 6  # temporary arrays of a step, each of the size of the coordinates
    _copies = 0  # copies of the gradient in a stack
    _compiles = False  # whether compiled code calls the step
    _foreign: tuple[str, ...] = ()  # options of the other optimizers, which are rejected
    _betas: tuple[str, ...] = ()  # options that are factors of running means
    _more: tuple[str, ...] = ()  # options of this class only
    _least_rank = 1
    _states = 2  # numbers of state per number of an uncompressed weight
    _rank_stays = True  # whether the state is reset if the rank changes
    _made: list[Chunk | torch.optim.Optimizer]
    _worker_of: dict[torch.Tensor, Chunk | torch.optim.Optimizer]
    # For each compressed parameter, the place of its refreshes within `refresh_every`: 0 to 1.
    _offsets: dict[torch.Tensor, float]
    _seen: Any

    def __init__(self, params: Any, inner: Inner, given: dict[str, Any], name: str) -> None:
        """`given` are the arguments of the constructor of the subclass."""
        nonfinite, budget = given["nonfinite"], given.get("budget_bytes")
        if nonfinite not in ("skip", "raise", "ignore"):
            raise ValueError(f"`nonfinite` must be 'skip', 'raise' or 'ignore', got {nonfinite!r}.")
        if given["temporary_bytes"] is not None:
            as_count(given["temporary_bytes"], "temporary_bytes")
        self.nonfinite, self.temporary_bytes = nonfinite, given["temporary_bytes"]
        self._inner = inner
        self._forget()
        own = {option: given[option] for option in (*DEFAULTS, *self._more) if option in given}
        defaults = parse({**inner.defaults, **DEFAULTS, **own, "optimizer": name})
        if budget is not None:
            defaults["rank"] = 0.5  # until all parameters are known
        super().__init__(params, defaults)
        if budget is not None:
            weights = [(weight, self.param_groups[number]) for number, weight in self._weights()]
            fraction = largest_fraction(budget, weights, self._bytes)
            for group in self.param_groups:
                group["rank"] = None if group["rank"] is None else fraction

    # -- what subclasses define ---------------------------------------------------------------

    def _step_chunk(self, chunk: Chunk, weights: list[Weight], group: dict[str, Any]) -> None:
        """Step weights that have gradients."""
        raise NotImplementedError

    def _chunk(self, group: int, weights: Sequence[Weight], *, stacked: bool) -> Chunk:
        return Chunk(group, tuple(weights), stacked)

    @staticmethod
    def _bytes(weight: Weight, r: int, group: dict[str, Any]) -> int:
        """Bytes of the state of a parameter at rank r, without the compensation of rounding."""
        raise NotImplementedError

    def _uncompressed_bytes(self, weight: Weight, state: dict[str, Any]) -> int:  # noqa: ARG002
        return self._states * weight.data.numel() * weight.data.element_size()

    def _refusal(self, weight: Weight) -> str | None:  # noqa: ARG002
        """Why a sharded weight can't be compressed; None if it can be."""
        return None

    @staticmethod
    def _shapes(weight: Weight) -> dict[str, tuple[int, ...]]:  # noqa: ARG004
        """Shapes of the tensors that the state of a parameter must hold, if known."""
        return {}

    # -- groups -------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(parse(param_group))
        try:
            self.param_groups[-1] = self._checked(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _checked(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group with translated options; raises for options or parameters that don't work."""
        group = parse(group)
        check_betas(group, self._betas)
        if group["rank"] == 0:
            as_count(0, "rank", least=self._least_rank)
        for name in self._foreign:
            if group[name] != self.defaults[name]:
                raise ValueError(f"`{name}` is not for {type(self).__name__}, got {group[name]!r}.")
        for parameter in group["params"]:
            wrong = None
            if getattr(parameter, "_is_flat_param", False):
                wrong = "FlatParameter of FSDP1: several weights in one vector, which has no rank"
            elif hasattr(parameter, "placements"):
                weight = weight_of(group, parameter, 0)
                if weight is not None:
                    wrong = unfit_placements(parameter) or self._refusal(weight)
            if wrong is not None:
                raise TypeError(
                    f"a parameter is a {wrong}; keep the weights whole on every process, as "
                    "DistributedDataParallel does, or give them to another optimizer."
                )
        return group

    def _is_stale(self, state: dict[str, Any], weight: Weight | None) -> bool:
        """Whether a state was made with other options and can't be used any more."""
        if weight is None or "basis" not in state:
            return ("basis" in state) != (weight is not None)
        return self._rank_stays and state["basis"].shape[1] != weight.rank

    def __getstate__(self) -> dict[str, Any]:
        names = ("nonfinite", "temporary_bytes", "_inner")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_hooks" not in self.__dict__:  # for a copy of the object, not when loading a state
            self._forget()
        self._seen = ()
        super().__setstate__(state)

    def _forget(self) -> None:
        """Remove the hooks, and let the next step plan the work again."""
        if getattr(self, "_skipped", False):
            self._count_a_skip()
        self._seen = ()  # the groups for which the work was planned
        self._kinds: dict[torch.Tensor, Any] = {}  # side and state dtype of compressed parameters
        self._hooks: ExitStack | None = None
        self._skipped = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by a GradScaler. False: it unscales gradients itself, and skips steps."""
        if self._hooks is not None:
            raise RuntimeError(
                "a GradScaler unscales gradients after the backward pass, so it can't be used with "
                "step_in_backward; train in bfloat16, without a GradScaler."
            )
        return False

    @property
    def skipped_steps(self) -> int:
        """Number of steps that were skipped because a gradient contained NaN or Inf."""
        return sum(int(group["skipped_steps"]) for group in self.param_groups)

    def _count_a_skip(self) -> None:
        for group in self.param_groups[:1]:
            group["skipped_steps"] += 1

    # -- steps --------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients of the parameters; return the loss of the closure."""
        # Dynamo replaces is_compiling() by a constant; the rest of the step is not traced.
        return self._step(closure, compiling=torch.compiler.is_compiling())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _step(self, closure: Callable[[], Any] | None, *, compiling: bool) -> Any:
        self._compiles, loss = compiling, None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        workers, parameters = self._workers(), self._parameters()
        self._prepare(parameters)
        skipped, self._skipped = self._skipped, False
        finite = self.nonfinite == "ignore" or are_finite(parameters)
        if not finite and self.nonfinite == "raise":
            self._raise_nonfinite()
        if not finite or skipped:
            self._count_a_skip()
        if finite:
            for worker in workers:
                self._work(worker)
        return loss

    def step_in_backward(self, when: Callable[[], bool] | None = None) -> ExitStack:
        """Step every parameter during the backward pass, as soon as its gradient is complete.

        The gradient is then freed, so that only a few gradients exist at once. The training loop
        need not change: `step` steps parameters that still have a gradient (for instance parameters
        added later), and `zero_grad` finds nothing to do. Steps, state and checkpoints are those of
        the ordinary loop.

        Parameters
        ----------
        when : callable, optional
            Called each time a gradient is complete. If it returns False, the gradient is kept, for
            gradients accumulated over several backward passes.

        Returns
        -------
        contextlib.ExitStack
            Call its ``close()``, or use it as a context manager, to return to ordinary steps.

        Raises
        ------
        RuntimeError
            If it is already active. In a process group of several processes, unless the parameters
            are DTensors: DDP averages gradients only after their hooks have run, FSDP2 before. Also
            raised by a GradScaler, which unscales gradients after the backward pass.

        Notes
        -----
        The step of a parameter cannot depend on gradients that are not computed yet. So a NaN or
        Inf skips only its parameter (`skipped_steps` counts the step once, and one number is read
        for each parameter), and the norm of all gradients can't be clipped. A gradient is complete
        when autograd says so: under reentrant checkpointing, a parameter shared by several segments
        is stepped once for each. If two optimizers have the same parameter, the first one uses the
        gradient.

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
            raise RuntimeError(
                "step_in_backward is already active; call close() on what it returned first."
            )
        world = torch.distributed.is_available() and torch.distributed.is_initialized()
        if world and torch.distributed.get_world_size() > 1:
            plain = [i for i, p in enumerate(self._parameters()) if not hasattr(p, "placements")]
            if plain:
                raise RuntimeError(
                    f"parameter {self._name(plain[0])} is not a DTensor, and there are "
                    f"{torch.distributed.get_world_size()} processes: its gradient would be used "
                    "before it is averaged over them. Call step() after the backward pass."
                )

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        @torch.no_grad()
        def hook(parameter: torch.Tensor) -> None:
            if when is not None and not when():
                return
            self._compiles = False
            self._workers()
            if parameter not in self._worker_of:  # removed from the groups
                return
            self._prepare([parameter])
            if self.nonfinite == "ignore" or are_finite([parameter]):
                self._work(self._worker_of[parameter])
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
        self._seen, self._hooks = (), hooks
        return hooks

    def _work(self, worker: Chunk | torch.optim.Optimizer) -> None:
        if isinstance(worker, Chunk):
            weights = [weight for weight in worker.weights if weight.parameter.grad is not None]
            if weights:
                group = self.param_groups[worker.group]
                check_betas(group, self._betas)
                self._step_chunk(worker, weights, group)
            return
        worker.state = self.state
        for inner_group in worker.param_groups:
            self._inner.set_options(inner_group, self.param_groups[inner_group["number"]])
        worker.step()

    def _keep(
        self,
        weights: list[Weight],
        states: list[dict[str, Any]],
        new: dict[str, torch.Tensor],
        *,
        in_place: bool,
    ) -> None:
        """Store the parts of stacks in states: in their tensors if `in_place`, or in new ones."""
        for name, stack in new.items():
            places = [state.get(name) if in_place else None for state in states]
            for state, value in zip(states, write(stack, places), strict=True):
                state[name] = value
        for weight, state in zip(weights, states, strict=True):
            self.state[weight.parameter] = state

    def _prepare(self, parameters: list[torch.Tensor]) -> None:
        """Reject sparse gradients, and shard each gradient like its parameter."""
        for parameter in parameters:
            align(parameter)
            grad = parameter.grad
            if grad is not None and grad.layout is not torch.strided and parameter in self._offsets:
                index = next(i for i, p in enumerate(self._parameters()) if p is parameter)
                raise TypeError(
                    f"parameter {self._name(index)} has a sparse gradient, which cannot be "
                    "compressed; put it into a group of its own with rank=None."
                )

    def _raise_nonfinite(self) -> None:
        bad = [i for i, p in enumerate(self._parameters()) if not are_finite([p])]
        raise FloatingPointError(
            "the gradients of these parameters hold NaN, Inf or numbers whose squares overflow: "
            f"{', '.join(map(self._name, bad))}."
        )

    # -- workers ------------------------------------------------------------------------------

    def _parameters(self) -> list[torch.Tensor]:
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def _weights(self) -> list[tuple[int, Weight]]:
        """The compressed parameters, each with the number of its group."""
        found, index = [], 0
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                weight = weight_of(group, parameter, index, **self._spread)
                index += 1
                if weight is None:
                    continue
                size = self._bytes(weight, weight.rank, group)
                if size < 2 * weight.k * weight.M * weight.dtype.itemsize:
                    found.append((number, weight))
        return found

    def _workers(self) -> list[Chunk | torch.optim.Optimizer]:
        """The plan: chunks of compressed parameters, and inner optimizers of all others.

        Made again when parameters or options of the groups change.
        """
        seen = [
            [*map(id, group["params"]), *(group.get(name) for name in PLANNED)]
            for group in self.param_groups
        ]
        if seen == self._seen:
            return self._made
        alone = self._hooks is not None
        for group in self.param_groups:
            checked = self._checked(group)
            group.clear()
            group.update(checked)
        weights = self._weights()
        if any(map(wants_compression, self.param_groups)) and not weights and not self._seen:
            message = (
                "no parameter is compressed: only matrices whose short side exceeds `rank` are, "
                "and no vectors, into which FSDP1 and ZeRO flatten them. Give a smaller rank."
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        self._offsets = {
            weight.parameter: i / len(weights) for i, (_, weight) in enumerate(weights, 1)
        }
        compressed = {weight.parameter: weight for _, weight in weights}
        before = self._kinds
        self._kinds = {
            weight.parameter: (weight.left, self.param_groups[number]["state_dtype"])
            for number, weight in weights
        }
        for p in self._parameters():
            state, changed = self.state.get(p), before.get(p) != self._kinds.get(p)
            if state and ((p in before and changed) or self._is_stale(state, compressed.get(p))):
                del self.state[p]
        left = [
            (number, [p for p in group["params"] if p not in self._offsets])
            for number, group in enumerate(self.param_groups)
        ]
        if alone:
            left = [(number, [p]) for number, params in left for p in params]
        others = [{"params": params, "number": number} for number, params in left if params]
        made: list[Chunk | torch.optim.Optimizer] = []
        for groups in [[group] for group in others] if alone else [others] if others else []:
            optimizer = self._inner.new(groups)
            for p, state in optimizer.state.items():
                if not self.state.get(p):
                    self.state[p] = state
            made.append(optimizer)
        largest = max((p.numel() * p.element_size() for p in self._offsets), default=0)
        for number, same in similar_weights(weights, alone=alone, as_stacks=self._copies > 0):
            group = self.param_groups[number]
            stacked, count = plan(
                same[0], group, self._temporaries, self._copies, self.temporary_bytes, largest
            )
            parts = (same[start : start + count] for start in range(0, len(same), count))
            made += [self._chunk(number, part, stacked=stacked) for part in parts]
        self._made, self._seen = made, seen
        self._worker_of = {p: worker for worker in made for p in parameters_of(worker)}
        return made

    def _name(self, index: int) -> str:
        names: list[Any] = []
        for group in self.param_groups:
            known = list(group.get("param_names", []))
            names += (known + [None] * len(group["params"]))[: len(group["params"])]
        return str(index) if names[index] is None else f"{names[index]!r}"

    # -- state --------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes of memory that the state keeps alive on this process; 0 before the first step.

        Whole storages are counted. For sharded weights, only the shards of this process.
        """
        return storage_bytes(chain.from_iterable(state.values() for state in self.state.values()))

    def report(self) -> Report:
        """For every parameter its rank, the bytes of its state, and the bytes without compression.

        Without compression, the state has k rows instead of r, and no basis. Before the first step
        the state is empty. Shapes are those of whole weights, bytes those on this process.
        """
        compressed = {weight.index: weight for _, weight in self._weights()}
        rows = []
        for index, parameter in enumerate(self._parameters()):
            state, weight = self.state.get(parameter, {}), compressed.get(index)
            here, rank = storage_bytes(state.values()), None
            whole = here
            if weight is not None:
                rank = int(state["basis"].shape[1]) if "basis" in state else weight.rank
                whole = self._uncompressed_bytes(weight, state)
            name = self._name(index).strip("'")
            rows.append(Row(name, tuple(parameter.shape), rank, here, whole))
        return Report(tuple(rows))

    def state_dict(self) -> dict[str, Any]:
        """The state; tensors that are sharded over processes are DTensors in it."""
        saved = super().state_dict()
        for _, weight in self._weights():
            if state := saved["state"].get(weight.index):
                saved["state"][weight.index] = {
                    name: weight.saved(name, state[name]) for name in state
                }
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a copy of a state; every dtype stays as it was saved.

        Options that are missing in its groups get the defaults of this optimizer.

        Raises
        ------
        ValueError
            If the state has other groups, ranks or shapes, or is that of another optimizer. Then
            nothing is changed.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        name, made_by = self.defaults["optimizer"], None
        if name == self._inner.name:  # earlier versions saved the name of a partial or function
            made_by = getattr(self._inner.make, "__name__", type(self._inner.make).__name__)
        groups = loaded_groups(
            state_dict["param_groups"], self.param_groups, self.defaults, {name, made_by}
        )
        keys = [key for group in groups for key in group["params"]]
        on_host = {
            key: not any(group.get(name) for name in ("capturable", "fused"))
            for group in groups
            for key in group["params"]
        }
        parameters = dict(zip(keys, self._parameters(), strict=True))
        places = {key: index for index, key in enumerate(keys)}
        weights = {weight.index: weight for _, weight in self._weights()}
        state: defaultdict[Any, Any] = defaultdict(dict)
        for key, saved in state_dict["state"].items():
            if key not in places:
                state[key] = copy.deepcopy(saved)
                continue
            parameter, weight = parameters[key], weights.get(places[key])
            shapes = {} if weight is None else self._shapes(weight)
            check_saved(saved, parameter, self._name(places[key]), weight, shapes)
            state[parameter] = {
                name: copied(
                    placed_as(parameter, X) if weight is None else weight.loaded(name, X),
                    None if name == "step" and on_host[key] else parameter.device,
                )
                for name, X in saved.items()
            }
        for group, here in zip(groups, self.param_groups, strict=True):
            group["params"] = here["params"]
            if "param_names" in here:
                group.setdefault("param_names", here["param_names"])
        self.__setstate__({"state": state, "param_groups": groups})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)
