"""Any torch optimizer, with its state on low-rank subspaces of the gradients."""

from collections.abc import Callable
from typing import Any, Literal

import torch

from lowrank.optim import _stacks as stacks
from lowrank.optim._base import LowRankOptimizer
from lowrank.optim._inner import inner_of, inner_state, is_array, join_key, step_coordinates
from lowrank.optim._options import Weight
from lowrank.optim._refresh import refresh
from lowrank.optim._report import storage_bytes


class LowRank(LowRankOptimizer):
    """Wraps any torch optimizer, so that its state for large matrices has low rank.

    Let a weight have the short side k and the long side M. The range finder finds an orthonormal
    basis of rank r for its gradient, and refreshes it at intervals. The inner optimizer updates
    the r×M coordinates of the gradient in this basis; their change is mapped back to the weight.
    The state of an Adam-like optimizer then has ``r·k + 2·r·M`` numbers instead of ``2·k·M``.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        Every option below except `budget_bytes`, `temporary_bytes` and `nonfinite` may differ by
        group. See :func:`select` for groups of a model.
        The keys of galore-torch's groups (`update_proj_gap`, `proj_type`) are also accepted.
    optimizer : callable
        Class of the inner optimizer, by default :class:`torch.optim.AdamW`. It also updates all
        parameters that are not compressed, in the ordinary way.
    rank : int or float, optional
        Columns of a basis, or their fraction of k (a float below 1). Parameters of groups without
        `rank` and `energy` are not compressed. Neither are vectors and complex parameters, nor
        matrices without ``r < k`` and ``r·k + 2·r·M < 2·k·M``.
    energy : float, optional
        Fraction of ``‖G‖_F²`` of a gradient G to capture. The rank is chosen at each refresh, up to
        `rank` or `max_rank` (default a quarter of k), which alone bounds the memory.
    max_rank : int or float, optional
        Largest adaptive rank.
    budget_bytes : int, optional
        Instead of `rank` and `max_rank`: bytes for the bases of all compressed parameters and two
        numbers per coordinate. All ranks are then the same fraction of k.
    refresh_every : int
        Steps between refreshes of a basis. In the first step every parameter gets a basis; later
        refreshes are spread over the steps.
    residual : {"scaled", None}
        "scaled": also use the part of the gradient outside the subspace, with each of its M columns
        scaled as the inner optimizer scaled the coordinates. None: leave it out.
    random_fraction : float
        Fraction of random directions in a basis, new at each refresh.
    transport : {"rotate", "keep", "reset"}
        What happens to the state of the inner optimizer at a refresh. "rotate": it is transformed
        to the new basis, if its meaning is known (see below). "keep": it is left as it is.
        "reset": it starts again from zero.
    power_iterations, oversampling, warm_start
        See :class:`lowrank.compress.Subspace`.
    average : float
        If above 0, the decay of a running average of gradients. The basis is then that of the
        average, found from a sketch with ``k·(r + oversampling)`` additional numbers of state.
    scale : float
        Factor on every change of a compressed weight, except weight decay.
    side : {None, "long", "left", "right"}
        Side of the basis; by default the short one.
    state_dtype : torch.dtype, optional
        Dtype of the inner optimizer's state for compressed parameters. Default: float32, or float64
        for float64 parameters. Bases are never in half precision. Neither is the state of
        optimizers whose step is relative to the weight (Adafactor, LAMB, LARS).
    rounding : {"nearest", "stochastic", "compensated"}
        Rounding of compressed half-precision weights. With "nearest", steps below half a unit in
        the last place are lost. "stochastic" keeps them on average. "compensated" stores the
        rounding error for the next step: one more number per number of the weight, in its dtype.
        Uncompressed parameters are rounded by the inner optimizer.
    temporary_bytes : int, optional
        Bound on the temporary memory of a step of weights of one shape; at least one weight is
        stepped at a time. Default: on a GPU 256 MiB, for stacks of weights; on a CPU 16 MiB, or the
        size of the largest weight. A refresh needs up to as much again.
    nonfinite : {"skip", "raise", "ignore"}
        What to do if a gradient contains NaN or Inf, or a number whose square overflows. "skip":
        the whole step is skipped, and counted in `skipped_steps`. "raise": a
        :exc:`FloatingPointError`. Neither changes anything, and one number per step is read from
        the device. "ignore": nothing is read; then a refresh from such a gradient raises a
        :exc:`ValueError` in the middle of the step, or fills the weight with NaN. Steps that a
        GradScaler skips are not counted.
    seed : int
        Determines all random numbers, with the number of steps and the index of the parameter.
    **inner
        Options of the inner optimizer: `lr`, `betas`, …

    Raises
    ------
    TypeError, ValueError
        If an option is out of range or unknown to the inner optimizer; if an option of the inner
        optimizer has a name that is used here; for the flattened parameters of FSDP1; for DTensors
        that would be compressed but are not sharded by rows, or whose inner optimizer is not
        elementwise.

    Warns
    -----
    UserWarning
        In the first step, if a rank is given and no parameter is compressed. At the first refresh,
        if the state of the inner optimizer is reset in spite of ``transport="rotate"``.

    Notes
    -----
    Weight decay of compressed weights applies to the whole weight and is decoupled,
    ``W ← (1 − lr · weight_decay) W``, for every inner optimizer. Tensors with more than two
    dimensions are compressed as matrices: the first dimension by the product of the others.
    Half-precision weights are rounded once per step; products are in single precision.

    Beyond the state a step needs `temporary_bytes`, for ranks up to k/8 (k/16 for half-precision
    weights). It needs up to three times as much for convolutions in channels-last format, and twice
    as much with `average`, with adaptive ranks of half-precision weights, or with a `state_dtype`
    wider than the weight. Gradients are not changed. Groups are read at every step, so parameters
    may be replaced, added and removed. A changed `rank` takes effect at the next refresh. If a
    parameter is no longer compressed, or on another side, or with another `state_dtype`, its state
    is reset.

    The meaning of the state is known for torch's Adam, AdamW, NAdam, RAdam, SGD, Muon, RMSprop,
    Adagrad and Adafactor, transformers' Adafactor, Lion, torchao's Adam and AdamW, and the 32-bit
    Adam, AdamW and Lion of bitsandbytes; also through partials, functions and subclasses. The state
    of all others is reset at each refresh, with one warning.

    On a GPU weights of one shape are stepped as a stack. If the inner optimizer is elementwise, it
    sees one parameter for all of them. With ``nonfinite="ignore"`` no number is read there; with
    the default `random_fraction`, refreshes of a fixed rank of at least 64 do not wait either.

    If FSDP2 (or HSDP) shards weights over processes, each process compresses its rows. Sides,
    ranks, budgets and random numbers are those of whole weights, and so are the steps, up to
    rounding. All processes must step together. Each has the moments of some columns of the
    coordinates. If the rows are the long side, it also has the whole basis. If they are the short
    side, it has its rows of the basis, and each step has an all-reduce and an all-gather of r·M
    numbers. A refresh needs M·(r + oversampling) numbers on each process, a step those of its
    coordinates.

    The state of a parameter is one flat dict of tensors and integers. With the same state,
    gradients, software and device model, steps are identical to the last bit.

    Not supported: sparse gradients of compressed parameters, closures that must be called more than
    once per step (L-BFGS), and inner optimizers that store numbers in parameter groups or read the
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

    _rank_stays = False  # the rank may change at a refresh

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

    def _uncompressed_bytes(self, weight: Weight, rank: int, state: dict[str, Any]) -> int:
        values = inner_state(state).values()
        with_rows = [X for X in values if is_array(X) and X.shape[0] == rank]
        return storage_bytes(values) + storage_bytes(with_rows) * (weight.k - rank) // rank

    def _begin(self, weights: list[Weight], states: list[dict[str, Any]]) -> None:
        refresh(weights, states, self._inner)

    def _joins(self, weight: Weight) -> bool:
        """Whether one proxy holds the coordinates of weights like this."""
        return weight.stacked and self._inner.is_elementwise(weight.parameter.device)

    def _kind(self, weight: Weight, state: dict[str, Any]) -> Any:
        return state["basis"].shape, join_key(state) if self._joins(weight) else None

    def _step_together(self, weights: list[Weight], states: list[dict[str, Any]]) -> None:
        """Step weights with bases of one rank: step ``R = QᵀG``, and add ``Q·(change of R)``."""
        first, bases = weights[0], [state["basis"] for state in states]
        Q = stacks.stack_of(bases) if first.stacked else bases
        G = stacks.gradients(weights)
        R = first.shard(first.along_k.sum(stacks.coordinates(Q, G)))
        start = None
        if self._inner.sees_weights:
            W = stacks.matrices(weights, [weight.data for weight in weights])
            start = stacks.coordinates(Q, W)
        values = torch.zeros_like(R, dtype=first.kept) if start is None else start.clone()
        joined = self._joins(first)
        step_coordinates(self._inner, self._proxied, first, values, R, states, joined=joined)
        change = values.to(R.dtype) if start is None else values.sub_(start)
        X, t = self._with_residual(weights, states, change, R, G)
        stacks.add_to_weights(weights, Q, X, G, t=t, states=states)

    def _with_residual(
        self,
        weights: list[Weight],
        states: list[dict[str, Any]],
        change: torch.Tensor,
        R: torch.Tensor,
        G: stacks.Matrices,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """X and t of the change ``Q X − G diag(t)`` of the weights."""
        first, group = weights[0], weights[0].group
        if group["residual"] is None:
            return first.gather(change.mul_(group["scale"])), None
        squares, residual = stacks.column_squares, stacks.change_of_weight
        rate = 1.0 if group.get("lr") is None else group["lr"]
        if self._compiles and first.blocks.dim is None:
            squares, residual = map(stacks.compiled, (squares, residual))
            # a tensor: compiled code would treat a number as a constant, but schedulers change it
            rate = torch.as_tensor(rate, dtype=torch.float64 if R.is_cpu else None)
        whole = first.along_k.sum(stacks.of_stacks(lambda X: squares(X, R.dtype), G))
        for new in (state for state in states if "residual_norm" not in state):
            new["residual_norm"] = R.new_zeros(())
        norms = [state["residual_norm"] for state in states]
        total = None if first.columns.dim is None else first.columns.sum
        sign, scale = -1.0 if group.get("maximize") else 1.0, group["scale"]
        whole, before = first.shard(whole), stacks.stack_of(norms)
        X, t, sizes = residual(change, R, whole, first.k, rate, sign, scale, before, total)
        torch._foreach_copy_(norms, list(sizes.unbind()))
        return first.gather(X), first.gather(t.unsqueeze(-2)).squeeze(-2)
