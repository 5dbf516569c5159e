"""AdamW with a low-rank momentum and a factored second moment."""

from collections.abc import Iterable
from typing import Any, Literal

import torch

from lowrank._linalg.panel import orthonormal
from lowrank.optim import _stacks as stacks
from lowrank.optim._base import LowRankOptimizer
from lowrank.optim._inner import adamw_of
from lowrank.optim._options import OF_LOWRANK, Weight
from lowrank.optim._refresh import found_basis

NAME = "AdamW, momentum of low rank"


class LowRankMomentum(LowRankOptimizer):
    """AdamW for large matrices, with both moments stored as low-rank factors.

    The first moment, the momentum, has rank r: its basis is updated by one step of subspace
    iteration, every step or every few steps. The second moment has rank 1. The whole gradient is
    used: the part that a rank-r momentum cannot store is applied to the weight immediately, so that
    nothing is lost. State of an m×n weight: ``(r + 1)·(m + n)`` numbers instead of ``2·m·n``.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        As for :class:`LowRank`; see :func:`select` for groups of a model. Each option except
        `budget_bytes`, `temporary_bytes` and `nonfinite` may differ by group.
    rank : int or float, optional
        Rank of the momentum, or its fraction of the short side (a float below 1). Parameters of
        groups without it are updated by :class:`torch.optim.AdamW`. So are vectors, complex
        parameters, and matrices for which no memory would be saved.
    budget_bytes : int, optional
        Instead of `rank`: bytes of state for all compressed parameters. All ranks are then the same
        fraction of the short side.
    lr, betas, eps, weight_decay
        As for AdamW, for compressed and other parameters; weight decay is decoupled. The gradient
        of one step changes a compressed weight by at most ``lr · scale`` in the root mean square.
    scale : float
        Factor on every change of a compressed weight, except weight decay. AdamW changes weights by
        about 0.2 `lr` in the root mean square, so with the default its learning rates fit.
    refresh_every : int
        Steps between updates of the basis of a momentum; they are spread over the steps. A basis
        that is updated in every step trains best.
    side : {None, "long", "left", "right"}
        Side of the basis; by default the short one.
    state_dtype : torch.dtype, optional
        Dtype of the r×M coordinates of the momentum. Their rounding error is applied to the weight,
        like everything that the momentum cannot store, with the factor β₁/(1 − β₁): don't use it
        for β₁ near 1. Bases and means of squares are float32, or float64 for float64 parameters.
    rounding, temporary_bytes, nonfinite, seed
        As for :class:`LowRank`.
    foreach, fused : bool, optional
        Options of the AdamW for uncompressed parameters.

    Raises
    ------
    TypeError, ValueError
        As for :class:`LowRank`; also if a group has an option of LowRank that is not listed here.

    Notes
    -----
    With the momentum M of rank r and the gradient G, both with the short side first, one step is

    ``D = β₁ M + (1 − β₁) G``, ``M⁺ = Q Qᵀ D``, ``U = G + β₁/(1 − β₁) · (M − M⁺)``,

    and the weight changes by ``−lr · scale · diag(a) U diag(b)``. Here ``(aᵢ bⱼ)⁻²`` is the product
    of the running means of squares of row i and of column j of G, divided by that of all entries
    (`eps` is added to the roots along the side of the basis). For every Q and a constant β₁,
    ``Σ U = Σ G − β₁/(1 − β₁) · M``: over all steps, every gradient is applied completely. If M is
    not truncated, U is M⁺, the momentum of Adam, without Adam's correction for the start from zero.
    In directions outside of Q, U is G. Q is an orthonormal basis of ``D Mᵀ Q``, with the previous Q
    on the right: one step of subspace iteration.

    If ``diag(a) G diag(b)`` exceeds 1 in the root mean square, the step is divided by it. As with
    Adam, β₂ should not be below β₁².

    Let k be the short and M the long side of a weight. A step costs two products of 2kMr flops;
    with a new basis, four, and a QR of a k×r matrix. Beyond the state it needs `temporary_bytes`,
    up to r = k/16 (k/32 for half-precision weights), and up to three times as much for convolutions
    in channels-last format. Steps in the backward pass, sharded weights, checkpoints, and what is
    not supported are as for :class:`LowRank`. For sharded weights, about k·r or M·r numbers are
    summed over the processes in each step. If rows are the short side, every process has the whole
    coordinates of the momentum. The step is not compiled by torch.compile.

    References
    ----------
    N. Shazeer and M. Stern, Adafactor, 2018, arXiv:1804.04235 (the means of squares, Section 3,
    and the clipping, Section 6).
    T. Vogels, S. P. Karimireddy and M. Jaggi, PowerSGD, 2019, arXiv:1905.13727 (the step of
    subspace iteration). J. Liu et al., Muon is scalable for LLM training, 2025, arXiv:2502.16982
    (the factor 0.2). K. Ahn et al., Dion, 2025, arXiv:2504.05295, also truncate the momentum, but
    keep the rest in a buffer of full size.

    Examples
    --------
    >>> import torch
    >>> from lowrank.optim import LowRankMomentum
    >>> model = torch.nn.Linear(512, 512, bias=False)
    >>> optimizer = LowRankMomentum(model.parameters(), rank=8, lr=1e-3)
    >>> model(torch.ones(1, 512)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state_bytes() / optimizer.report().uncompressed_bytes < 0.02
    True
    """

    _spread = ""  # coordinates are replicated: a step needs all of them
    _temporaries = 12
    _foreign = OF_LOWRANK
    _betas = ("betas",)

    def __init__(
        self,
        params: Iterable[Any],
        *,
        rank: float | None = None,
        budget_bytes: int | None = None,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        scale: float = 0.2,
        refresh_every: int = 1,
        side: Literal["long", "left", "right"] | None = None,
        state_dtype: torch.dtype | None = None,
        rounding: Literal["nearest", "stochastic", "compensated"] = "nearest",
        temporary_bytes: int | None = None,
        nonfinite: Literal["skip", "raise", "ignore"] = "skip",
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        given = {**locals(), "random_fraction": 0.0}
        super().__init__(params, adamw_of(given), given, NAME)

    @staticmethod
    def _bytes(weight: Weight, r: int) -> int:
        whole = (r + 1) * weight.k + weight.M
        return whole * weight.dtype.itemsize + r * weight.M * weight.kept.itemsize

    @staticmethod
    def _shapes(weight: Weight) -> dict[str, tuple[int, ...]]:
        k, M, r = weight.k, weight.M, weight.rank
        return {"basis": (k, r), "exp_avg": (r, M), "row_sq": (k,), "col_sq": (M,), "step": ()}

    @staticmethod
    def _initial_state(weight: Weight) -> dict[str, Any]:
        """A zero momentum, with a basis of the gradient."""
        Q, k, M = found_basis(weight, weight.policy), weight.along_k.height, weight.along_M.height
        momentum = Q.new_zeros((Q.shape[1], M), dtype=weight.kept)
        squares = {"row_sq": Q.new_zeros(k), "col_sq": Q.new_zeros(M)}
        return {"step": 0, "basis": Q, "exp_avg": momentum, **squares}

    def _kind(self, weight: Weight, state: dict[str, Any]) -> Any:
        step, every = state["step"], weight.group["refresh_every"]
        renew = step > 1 and (step + int(weight.offset * every)) % every == 0
        return step, renew, state["basis"].shape

    def _step_together(self, weights: list[Weight], states: list[dict[str, Any]]) -> None:
        """Step weights with the same number of steps; all get a new basis if `renew`, or none."""
        first, group = weights[0], weights[0].group
        beta, square_beta = group["betas"]
        step, renew, _ = self._kind(first, states[0])
        dtype = first.dtype
        G = stacks.gradients(weights)
        P, M = (stacks.read(states, name, dtype) for name in ("basis", "exp_avg"))
        Q = _basis(first, G, P, M, beta) if renew else P
        X = stacks.coordinates(Q, G)
        rows = first.along_M.sum(stacks.row_squares(G, dtype))
        columns = stacks.column_squares(G, dtype)
        # a product and a sum: a fused operation would round depending on the place in the stack
        if renew:
            C = stacks.of_stacks(lambda Q, P: Q.mT @ P, Q, P)
            X, columns, C = first.along_k.sum(X, columns, C)
            X.mul_(1.0 - beta).add_(stacks.of_stacks(torch.matmul, C, M).mul_(beta))
        else:
            X, columns = first.along_k.sum(X, columns)
            X.mul_(1.0 - beta).add_(M * beta)
        kept = first.kept
        if kept != dtype:  # use the rounded X, so that its rounding error goes into the step
            largest = min(torch.finfo(kept).max, torch.finfo(dtype).max)
            X = X.clamp(-largest, largest).to(kept).to(dtype)
        means = {}
        for name, sums, count in (("row_sq", rows, first.M), ("col_sq", columns, first.k)):
            means[name] = torch.lerp(sums.div_(count), stacks.read(states, name), square_beta)
        del rows, columns, sums
        bias = 1.0 - square_beta**step
        a, b = _factors(first, means["row_sq"] / bias, means["col_sq"] / bias, group["eps"])
        # Adafactor's clipping (Section 6): for gradients larger than their running means, and for
        # squares that are not nearly a matrix of rank 1
        sizes = _mean_squares(weights, G, a, b)
        b = b / sizes.clamp_(min=1.0).sqrt_().unsqueeze(-1)
        b = b * (group["lr"] * group["scale"] * (-1.0 if group["maximize"] else 1.0))
        if renew:
            left, right = torch.cat([Q, P], -1), torch.cat([X, M.neg_()], -2)
        else:
            left, right = Q, X - M
        left = left * a.unsqueeze(-1)
        right *= b.unsqueeze(-2) * (beta / (1.0 - beta))
        stacks.add_to_weights(weights, left, right, G, t=b, rows=a, states=states)
        del left, right, M
        bases = {"basis": Q} if renew else {}
        stacks.write(states, {**bases, "exp_avg": X.to(kept), **means})


def _basis(
    first: Weight, G: stacks.Matrices, Q: torch.Tensor, M: torch.Tensor, beta: float
) -> torch.Tensor:
    """A basis of ``D Mᵀ Q``, with ``D = β₁ M + (1 − β₁) G``; M are the coordinates in Q."""
    # scaled to norm 1, so that no product leaves the range of its dtype
    sizes = torch.linalg.vector_norm(M, dim=(-2, -1), keepdim=True)
    if first.along_M.dim is not None:
        sizes = first.along_M.sum(sizes.square()).sqrt()
    R = (M / torch.where(sizes > 0, sizes, 1.0)).mT
    C, Y = stacks.of_stacks(torch.matmul, M, R), stacks.of_stacks(stacks.product, G, R)
    C, Y = first.along_M.sum(C, Y)
    Y.mul_(1.0 - beta).add_(stacks.of_stacks(torch.matmul, Q, C), alpha=beta)
    is_whole = first.along_k.dim is None
    found = stacks.of_stacks(orthonormal, Y) if is_whole else first.along_k.orthonormalize(Y).Q
    return torch.where(sizes > 0, found, Q)


def _mean_squares(
    weights: list[Weight], G: stacks.Matrices, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Mean squares of the matrices ``diag(a) G diag(b)``."""
    first, squares = weights[0], stacks.weighted_column_squares(G, a) * b.square()
    return first.blocks.sum(stacks.of_stacks(lambda X: X.sum(-1), squares)) / (first.k * first.M)


def _factors(
    first: Weight, rows: torch.Tensor, columns: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors a and b of rows and columns; zero if all gradients so far were zero.

    The size of the rounding errors of other rows is added to that of a row: the part of a tiny row
    in the basis is rounding error only.
    """
    # the means over rows and over columns are equal; use the one that is complete on this process
    of_all = (rows if first.along_k.dim is None else columns).mean(-1, keepdim=True).sqrt()
    least = torch.finfo(rows.dtype).eps * of_all
    a = torch.where(rows > 0, 1.0 / (rows.sqrt() + eps + least), 0.0)
    b = torch.where(columns > 0, of_all / (columns.sqrt() + least), 0.0)
    return a, b
