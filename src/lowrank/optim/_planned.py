"""The groups of a low-rank optimizer: their options, and the plan of its work."""

import warnings
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import torch

from lowrank._operators.checks import as_count
from lowrank.optim._chunks import largest_fraction, similar_weights
from lowrank.optim._inner import Inner
from lowrank.optim._options import DEFAULTS, PLANNED, Weight, parse, wants_compression, weight_of
from lowrank.optim._sharding import unfit_placements
from lowrank.optim._stacks import grouped_by

# Compressed parameters that are stepped together, or the inner optimizer of others.
Worker = tuple[Weight, ...] | torch.optim.Optimizer


class Planned(torch.optim.Optimizer):
    """A torch optimizer that knows which weights it compresses, and which it steps together."""

    # How the state of sharded weights is shared out, see `weight_of`.
    _spread = "shares"
    _temporaries = 6  # temporary arrays of a step, each of the size of the coordinates
    _copies = 0  # copies of the gradient in a stack
    _foreign: tuple[str, ...] = ()  # options of the other optimizers, which are rejected
    _betas: tuple[str, ...] = ()  # options that are factors of running means
    _least_rank = 1
    _rank_stays = True  # whether the state is reset if the rank changes
    _seen: Any
    _worker_of: dict[torch.Tensor, Worker]

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
        own = {option: given[option] for option in (*DEFAULTS, *self._betas) if option in given}
        defaults = parse({**inner.defaults, **DEFAULTS, **own, "optimizer": name})
        if budget is not None:
            defaults["rank"] = 0.5  # until all parameters are known
        super().__init__(params, defaults)
        if budget is not None:
            fraction = largest_fraction(budget, self._weights(), self._bytes)
            for group in self.param_groups:
                group["rank"] = None if group["rank"] is None else fraction

    # -- what subclasses define ---------------------------------------------------------------

    @staticmethod
    def _bytes(weight: Weight, r: int) -> int:
        """Bytes of the state of a parameter at rank r, without the compensation of rounding."""
        return weight.adam_bytes(r)

    # -- groups -------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(parse(param_group))
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        """Translate the options of a group; raise for options or parameters that don't work."""
        translated = parse(group, self._betas)
        group.clear()
        group.update(translated)
        if group["rank"] == 0:
            as_count(0, "rank", least=self._least_rank)
        for name in self._foreign:
            if group[name] != self.defaults[name]:
                kind, value = type(self).__name__, group[name]
                raise ValueError(f"`{name}` is not an option of {kind}, got {value!r}.")
        for parameter in group["params"]:
            wrong = None
            if getattr(parameter, "_is_flat_param", False):
                wrong = "FlatParameter of FSDP1: weights in one vector, not matrices"
            elif hasattr(parameter, "placements") and weight_of(group, parameter, 0) is not None:
                wrong = unfit_placements(parameter)
                if wrong is None and not self._inner.is_elementwise(parameter.device):
                    wrong = (
                        f"DTensor, but {self._inner.name} is not elementwise, so its state cannot "
                        "be sharded"
                    )
            if wrong is not None:
                raise TypeError(
                    f"a parameter is a {wrong}; keep the weights whole on every process, as "
                    "DistributedDataParallel does, or give them to another optimizer."
                )

    def _is_stale(self, state: dict[str, Any], was: Weight | None, now: Weight | None) -> bool:
        """Whether a state was made with other options and can't be used any more."""
        if now is None or "basis" not in state:
            return ("basis" in state) != (now is not None)
        if was is not None and (was.left, was.state_dtype) != (now.left, now.state_dtype):
            return True
        return self._rank_stays and state["basis"].shape[1] != now.rank

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
            self.param_groups[0]["skipped_steps"] += 1
        self._seen = ()  # the groups for which the work was planned
        self._compressed: dict[torch.Tensor, Weight] = {}
        self._proxied: dict[Any, torch.optim.Optimizer] = {}  # see `step_coordinates`
        self._hooks: ExitStack | None = None
        self._skipped = False

    # -- the plan -----------------------------------------------------------------------------

    def _names(self) -> dict[torch.Tensor, str]:
        """For each parameter its name in quotes, or else its number."""
        names: dict[torch.Tensor, str] = {}
        for group in self.param_groups:
            known = chain(group.get("param_names", []), repeat(None))
            for parameter, name in zip(group["params"], known, strict=False):
                names[parameter] = str(len(names)) if name is None else repr(name)
        return names

    def _weights(self) -> list[Weight]:
        """The compressed parameters."""
        pairs = ((group, p) for group in self.param_groups for p in group["params"])
        found = (weight_of(*pair, i, self._spread) for i, pair in enumerate(pairs))
        weights = [weight for weight in found if weight is not None]
        return [w for w in weights if self._bytes(w, w.rank) < 2 * w.k * w.M * w.dtype.itemsize]

    def _workers(self) -> dict[torch.Tensor, Worker]:
        """The plan: what steps each parameter. Made again when parameters or options change."""
        seen = [
            [id(group), *map(id, group["params"]), *(group.get(name) for name in PLANNED)]
            for group in self.param_groups
        ]
        if seen == self._seen:
            return self._worker_of
        for group in self.param_groups:
            self._check(group)
        weights = self._weights()
        if any(map(wants_compression, self.param_groups)) and not weights and not self._seen:
            message = (
                "no parameter is compressed: only matrices whose short side exceeds `rank` are, "
                "and FSDP1 and ZeRO make vectors of them. Give a smaller rank."
            )
            warnings.warn(message, UserWarning, stacklevel=2)
        weights = [replace(w, offset=i / len(weights)) for i, w in enumerate(weights, 1)]
        before, self._compressed = self._compressed, {w.parameter: w for w in weights}
        others, alone = [], self._hooks is not None
        for group in self.param_groups:
            for p in group["params"]:
                state, now = self.state.get(p), self._compressed.get(p)
                if state and self._is_stale(state, before.get(p), now):
                    del self.state[p]
                if now is None:
                    others.append((p, group))
        worker_of: dict[torch.Tensor, Worker] = {}
        for part in grouped_by(others, lambda pair: pair[0] if alone else None):
            groups = grouped_by(part, lambda pair: id(pair[1]))
            optimizer = self._inner.new(
                [{"params": [p for p, _ in same], "outer": same[0][1]} for same in groups]
            )
            made = optimizer.state.items()
            self.state.update((p, state) for p, state in made if not self.state.get(p))
            worker_of.update((p, optimizer) for p, _ in part)
        arrays = self._temporaries, self._copies, self.temporary_bytes
        for same in similar_weights(weights, *arrays, alone=alone):
            worker_of.update((weight.parameter, same) for weight in same)
        self._worker_of, self._seen = worker_of, seen
        return worker_of
