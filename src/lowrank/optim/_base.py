"""The base of the low-rank optimizers: steps, gradients, checkpoints and reports."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from lowrank.optim._loading import loaded_groups, loaded_states
from lowrank.optim._options import Weight, check_betas
from lowrank.optim._planned import Planned, Worker
from lowrank.optim._report import Report, Row, storage_bytes
from lowrank.optim._sharding import align
from lowrank.optim._stacks import are_finite, grouped_by


class LowRankOptimizer(Planned):
    """A torch optimizer that compresses the state of some weights.

    Subclasses step the compressed weights in `_step_together`. The inner optimizer steps all
    others.
    """

    _compiles = False  # whether compiled code calls the step
    _states = 2  # numbers of state per number of an uncompressed weight

    # -- what subclasses define ---------------------------------------------------------------

    def _begin(self, weights: list[Weight], states: list[dict[str, Any]]) -> None:
        """Prepare the states of weights for a step; they are empty before the first one."""
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state.update(self._initial_state(weight))
            state["step"] = state["step"] + 1

    @staticmethod
    def _initial_state(weight: Weight) -> dict[str, Any]:
        """The state of a weight before the first step."""
        raise NotImplementedError

    def _kind(self, weight: Weight, state: dict[str, Any]) -> Any:  # noqa: ARG002
        """Equal for weights that are stepped together."""
        return state["step"]

    def _step_together(self, weights: list[Weight], states: list[dict[str, Any]]) -> None:
        """Step weights of one kind that have gradients, and their states."""
        raise NotImplementedError

    def _uncompressed_bytes(self, weight: Weight, rank: int, state: dict[str, Any]) -> int:  # noqa: ARG002
        return self._states * weight.data.numel() * weight.data.element_size()

    @staticmethod
    def _shapes(weight: Weight) -> dict[str, tuple[int, ...]]:  # noqa: ARG004
        """Shapes of the tensors that the state of a parameter must hold, if known."""
        return {}

    # -- steps --------------------------------------------------------------------------------

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
        workers = self._workers()
        accepted = self._accepts(list(workers))
        if self._skipped or not accepted:
            self.param_groups[0]["skipped_steps"] += 1
        self._skipped = False
        for worker in dict.fromkeys(workers.values()) if accepted else ():
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
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        processes = torch.distributed.get_world_size() if several else 1
        plain = [name for p, name in self._names().items() if not hasattr(p, "placements")]
        if processes > 1 and plain:
            raise RuntimeError(
                f"parameter {plain[0]} is not a DTensor, and there are {processes} processes: its "
                "gradient would be used before it is averaged over them. Call step() after the "
                "backward pass."
            )

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        @torch.no_grad()
        def hook(parameter: torch.Tensor) -> None:
            if when is not None and not when():
                return
            self._compiles = False
            worker = self._workers().get(parameter)
            if worker is None:  # removed from the groups
                return
            if self._accepts([parameter]):
                self._work(worker)
            else:
                self._skipped = True
            parameter.grad = None

        hooks = ExitStack()
        hooks.callback(self._forget)
        for parameter in self._names():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
        self._seen, self._hooks = (), hooks
        return hooks

    def _work(self, worker: Worker) -> None:
        if isinstance(worker, torch.optim.Optimizer):
            worker.state = self.state
            for group in worker.param_groups:
                self._inner.set_options(group, group["outer"])
            worker.step()
        elif weights := [weight for weight in worker if weight.parameter.grad is not None]:
            check_betas(weights[0].group, self._betas)
            states = [dict(self.state.get(weight.parameter, {})) for weight in weights]
            self._begin(weights, states)
            pairs = zip(weights, states, strict=True)
            for part in grouped_by(pairs, lambda pair: self._kind(*pair)):
                self._step_together([weight for weight, _ in part], [state for _, state in part])
                self.state.update((weight.parameter, state) for weight, state in part)

    def _accepts(self, parameters: list[torch.Tensor]) -> bool:
        """Whether a step may use these gradients. Each is then sharded like its parameter."""
        for parameter in parameters:
            align(parameter)
            layout = getattr(parameter.grad, "layout", torch.strided)
            if layout is not torch.strided and parameter in self._compressed:
                raise TypeError(
                    f"parameter {self._names()[parameter]} has a sparse gradient, which cannot be "
                    "compressed; put it into a group of its own with rank=None."
                )
        if self.nonfinite == "ignore" or are_finite(parameters):
            return True
        if self.nonfinite == "raise":
            bad = [name for p, name in self._names().items() if not are_finite([p])]
            raise FloatingPointError(
                "the gradients of these parameters hold NaN, Inf or numbers whose squares "
                f"overflow: {', '.join(bad)}."
            )
        return False

    # -- state --------------------------------------------------------------------------------

    def state_bytes(self) -> int:
        """Bytes of memory that the state keeps alive on this process; 0 before the first step.

        Whole storages are counted. For sharded weights, only the shards of this process.
        """
        return storage_bytes(value for state in self.state.values() for value in state.values())

    def report(self) -> Report:
        """For every parameter its rank, the bytes of its state, and the bytes without compression.

        Without compression, the state has k rows instead of r, and no basis. Before the first step
        the state is empty. Shapes are those of whole weights, bytes those on this process.
        """
        compressed = {weight.parameter: weight for weight in self._weights()}
        rows = []
        for p, name in self._names().items():
            state, weight = self.state.get(p, {}), compressed.get(p)
            here, rank = storage_bytes(state.values()), None
            whole = here
            if weight is not None:
                rank = int(state["basis"].shape[1]) if "basis" in state else weight.rank
                whole = self._uncompressed_bytes(weight, rank, state)
            rows.append(Row(name.strip("'"), tuple(p.shape), rank, here, whole))
        return Report(tuple(rows))

    def state_dict(self) -> dict[str, Any]:
        """The state; tensors that are sharded over processes are DTensors in it."""
        saved = super().state_dict()
        for weight in self._weights():
            if state := saved["state"].get(weight.index):
                saved["state"][weight.index] = {
                    name: weight.saved(name, X) for name, X in state.items()
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
        names = {self.defaults["optimizer"]}
        if self._inner.name in names:  # earlier versions saved the name of a partial or function
            names.add(getattr(self._inner.make, "__name__", type(self._inner.make).__name__))
        groups = loaded_groups(state_dict["param_groups"], self.param_groups, self.defaults, names)
        fits = {weight.parameter: (weight, self._shapes(weight)) for weight in self._weights()}
        state = loaded_states(state_dict, groups, self._names(), fits)
        self.__setstate__({"state": state, "param_groups": groups})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)
