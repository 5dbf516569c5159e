"""Any torch optimizer, with its state on low-rank subspaces of the gradients."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lowrank.optim import _stacks as stacks
from lowrank.optim._base import LowRankOptimizer
from lowrank.optim._chunks import Chunk
from lowrank.optim._inner import inner_of, inner_state, join_key, step_coordinates
from lowrank.optim._options import OWN_STATE, Weight
from lowrank.optim._refresh import refreshed
from lowrank.optim._report import storage_bytes
from lowrank.optim._stacks import Matrices


@dataclass(frozen=True)
class ChunkOfCoordinates(Chunk):
    """With the optimizer that steps their coordinates: its proxies are empty between steps."""

    proxies: tuple[torch.nn.Parameter, ...]
    optimizer: torch.optim.Optimizer
    joins: bool  # one proxy has the coordinates of all


class LowRank(LowRankOptimizer):
    """Wraps an optimizer class, so that the state of large matrices is of low rank.

    Of a weight with short side k and long side M, the inner optimizer steps r×M coordinates of the
    gradient in an orthonormal basis of rank r, found by the range finder and refreshed now and
    then; their change is put back into the weight. State of an Adam-like inner optimizer:
    ``r·k + 2·r·M`` numbers in place of ``2·k·M``.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        Every option below but `budget_bytes`, `temporary_bytes` and `nonfinite` may differ by
        group. See :func:`select` for groups of a model.
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
        State of the inner optimizer at a refresh: moved to the new basis where its meaning is known
        (see below), left as it is, or begun anew.
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
    rounding : {"nearest", "stochastic", "compensated"}
        Of compressed weights of half precision. To the nearest number, steps below half a unit in
        the last place are lost. Stochastic rounding keeps them in the mean. A compensation keeps
        what was rounded away for the next step: as many numbers more as the weight has, in its
        dtype. What is not compressed is rounded by the inner optimizer.
    temporary_bytes : int, optional
        Bound on what is temporary in a step of weights of one shape, at one weight at least.
        Default: on a GPU 256 MiB, where weights are stepped as stacks that fit into it; on a
        processor 16 MiB, or the largest weight. A refresh needs up to as much again.
    nonfinite : {"skip", "raise", "ignore"}
        What a NaN or Inf in any gradient, or one whose square overflows, does: no step (counted in
        `skipped_steps`), or a :exc:`FloatingPointError`; nothing is changed by either. One number
        is read from the device per step for it. With "ignore" none is; then a refresh from such a
        gradient raises a :exc:`ValueError` in the middle of the step, or fills the weight with
        NaN. Steps that a GradScaler skips are not counted.
    seed : int
        With the count of steps and the place of the parameter it gives all random numbers.
    **inner
        Options of the inner optimizer: `lr`, `betas`, …

    Raises
    ------
    TypeError, ValueError
        For options that are out of range or unknown to the inner optimizer, for inner optimizers
        with options of the same names, for the flattened parameters of FSDP1, and for DTensors that
        would be compressed but are sharded in another way than by rows, or whose inner optimizer is
        not element by element.

    Warns
    -----
    UserWarning
        In the first step, if a rank is given and no parameter is compressed. At the first refresh,
        if the state of the inner optimizer begins anew though ``transport="rotate"``.

    Notes
    -----
    Weights that are compressed decay as a whole and decoupled, ``W ← (1 − lr · weight_decay) W``,
    whatever the inner optimizer does. Tensors of more than two dimensions are compressed as
    matrices, the first dimension by the product of the others. Half-precision weights are rounded
    once a step; products are in single precision.

    Beyond the state a step needs `temporary_bytes`, for ranks up to k/8 (k/16 for weights of half
    precision); up to three times as much for convolutions in channels-last format, and twice with
    `average`, adaptive ranks of half precision weights or a `state_dtype` wider than the weight.
    Gradients are not changed. Groups are read at every step: parameters may be replaced, appended
    and deleted. A `rank` that is changed holds from the next refresh on; where a parameter is
    compressed no longer, on another side or with another `state_dtype`, its state begins anew.

    State of the inner optimizer is moved where its meaning is known: of torch's Adam, AdamW, NAdam,
    RAdam, SGD, Muon, RMSprop, Adagrad and Adafactor, transformers' Adafactor, Lion, torchao's
    Adam and AdamW, and those of bitsandbytes in 32 bits; also through partials, functions and
    subclasses. State of others begins anew at each refresh, with one warning.

    On a GPU weights of one shape are stepped as a stack, and the optimizer sees one parameter for
    all of them if it works element by element. With ``nonfinite="ignore"`` nothing is read there,
    and no refresh of a fixed rank from 64 on waits, with the usual `random_fraction`.

    Of weights that FSDP2 (or HSDP) shards over processes each compresses its rows: sides, ranks,
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

    _rank_stays = False  # it changes at a refresh

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
        rounding: Literal["nearest", "stochastic", "compensated"] = "nearest",
        temporary_bytes: int | None = None,
        nonfinite: Literal["skip", "raise", "ignore"] = "skip",
        seed: int = 0,
        **inner: Any,
    ) -> None:
        given, wrapped = locals(), inner_of(optimizer, inner)
        super().__init__(params, wrapped, given, wrapped.name)

    @staticmethod
    def _bytes(weight: Weight, r: int, group: dict[str, Any]) -> int:  # noqa: ARG004
        """With two numbers for each coordinate."""
        return (r * weight.k + 2 * r * weight.M) * weight.dtype.itemsize

    def _uncompressed_bytes(self, weight: Weight, state: dict[str, Any]) -> int:
        rank = int(state["basis"].shape[1]) if "basis" in state else weight.rank
        return sum(_with_rows(value, rank, weight.k) for value in inner_state(state).values())

    def _refusal(self, weight: Weight) -> str | None:
        if self._inner.is_elementwise(weight.parameter.device):
            return None
        return (
            f"DTensor, but {self._inner.name} is not elementwise, so that its state cannot be "
            "sharded"
        )

    def _chunk(self, group: int, weights: Sequence[Weight], *, stacked: bool) -> Chunk:
        proxies = tuple(
            torch.nn.Parameter(torch.zeros(1, 1, dtype=weight.dtype, device=weight.data.device))
            for weight in weights
        )
        optimizer = self._inner.new(list(proxies))
        optimizer.state.clear()
        for proxy in proxies:
            proxy.data = proxy.data.new_empty(0)
        joins = stacked and self._inner.is_elementwise(weights[0].data.device)
        return ChunkOfCoordinates(group, tuple(weights), stacked, proxies, optimizer, joins)

    def _step_chunk(self, chunk: Any, weights: list[Weight], group: dict[str, Any]) -> None:
        self._inner.set_options(chunk.optimizer.param_groups[0], group, weight_decay=0.0)
        before = [self.state.get(weight.parameter, {}) for weight in weights]
        offsets = [self._offsets[weight.parameter] for weight in weights]
        states = refreshed(weights, before, group, offsets, self._inner, stacked=chunk.stacked)

        def kind(pair: tuple[Weight, dict[str, Any]]) -> Any:
            _, state = pair
            return state["basis"].shape, join_key(state) if chunk.joins else None

        for part in stacks.grouped_by(zip(weights, states, strict=True), kind):
            self._step_alike(chunk, [w for w, _ in part], [state for _, state in part], group)

    def _step_alike(
        self,
        chunk: ChunkOfCoordinates,
        weights: list[Weight],
        states: list[dict[str, Any]],
        group: dict[str, Any],
    ) -> None:
        """Step weights with bases of one rank: with ``R = QᵀG``, and ``Q·(change of R)`` back."""
        first, bases = weights[0], [state["basis"] for state in states]
        Q = stacks.stack_of(bases) if chunk.stacked else bases
        G = stacks.gradients(weights, stacked=chunk.stacked)
        R = first.shard(first.sum_k(stacks.coordinates(Q, G)))
        dtype, start = R.dtype, None
        if self._inner.sees_weights:
            W = stacks.matrices(weights, [weight.data for weight in weights], stacked=chunk.stacked)
            start = stacks.coordinates(Q, W)
        elif group["state_dtype"] is not None:
            dtype = getattr(torch, group["state_dtype"])
        values = torch.zeros_like(R, dtype=dtype) if start is None else start.clone()
        stepped = step_coordinates(
            self._inner, chunk.optimizer, chunk.proxies, values,
            # R is needed again for the residual, and some optimizers write to gradients
            R.to(dtype, copy=group["residual"] is not None),
            [inner_state(state) for state in states], stacked=chunk.joins,
        )  # fmt: skip
        change = values.to(R.dtype) if start is None else values.sub_(start)
        lr, decay = group.get("lr"), group.get("weight_decay", 0.0)
        if lr is None:  # the optimizer has a rate of its own
            lr = 1.0
            if decay:
                raise ValueError(
                    "`weight_decay` is a multiple of `lr`: give a number for it, got None."
                )
        X, t = self._with_residual(weights, states, change, R, G, lr, group)
        stacks.add_to_weights(
            weights, Q, X, G, kept=1.0 - lr * decay if decay else 1.0, t=t,
            states=states, group=group,
        )  # fmt: skip
        for weight, state, new in zip(weights, states, stepped, strict=True):
            ours = {name: state[name] for name in OWN_STATE if name in state}
            self.state[weight.parameter] = {**new, **ours}

    def _with_residual(
        self,
        weights: list[Weight],
        states: list[dict[str, Any]],
        change: torch.Tensor,
        R: torch.Tensor,
        G: Matrices,
        lr: Any,
        group: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """X and t of the change ``Q X − G diag(t)`` of the weights."""
        first = weights[0]
        if group["residual"] is None:
            return first.gather(change.mul_(group["scale"])), None
        squares, residual, rate = stacks.column_squares, stacks.change_of_weight, lr
        if self._compiles and first.blocks is None:
            squares, residual = (
                stacks.compiled(stacks.column_squares),
                stacks.compiled(stacks.change_of_weight),
            )
            # a number would be a constant of the compiled code, which a scheduler changes
            rate = torch.as_tensor(lr, dtype=torch.float64 if R.is_cpu else None)
        if isinstance(G, list):
            whole = torch.stack([squares(matrix, R.dtype) for matrix in G])
        else:
            whole = squares(G, R.dtype)
        for state in states:
            if "residual_norm" not in state:
                state["residual_norm"] = R.new_zeros(())
        norms = [state["residual_norm"] for state in states]
        total = None if first.columns is None else first.columns.sum
        sign = -1.0 if group.get("maximize") else 1.0
        X, t, sizes = residual(
            change, R, first.shard(first.sum_k(whole)), first.k, rate, sign, group["scale"],
            stacks.stack_of(norms), total,
        )  # fmt: skip
        torch._foreach_copy_(norms, list(sizes.unbind()))
        return first.gather(X), first.gather(t.unsqueeze(-2)).squeeze(-2)


def _with_rows(value: Any, rank: int, k: int) -> int:
    """Bytes of a tensor of state if it had k rows in place of `rank`."""
    here = storage_bytes([value])
    has_rows = isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rank
    return here * k // rank if has_rows else here
