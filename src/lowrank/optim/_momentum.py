"""AdamW with a momentum of low rank and a factored mean of squares, on the whole gradient."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch

from lowrank._panel import orthonormal
from lowrank.optim import _stacks as stacks
from lowrank.optim._base import LowRankOptimizer
from lowrank.optim._chunks import Chunk
from lowrank.optim._inner import adamw_of
from lowrank.optim._options import OF_LOWRANK, Weight, kept_dtype
from lowrank.optim._refresh import found_basis
from lowrank.optim._stacks import Matrices

NAME = "AdamW, momentum of low rank"


class LowRankMomentum(LowRankOptimizer):
    """AdamW for large matrices, with both of its moments as factors of low rank.

    The first moment is a product of rank r that is found anew every few steps, by one step of
    subspace iteration from the last one; the second has rank 1. The gradient is used as a whole:
    what a momentum of rank r can't hold goes into the weight at once, and so nothing is lost.
    State of an m×n weight: ``(r + 1)·(m + n)`` numbers in place of ``2·m·n``.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        As for :class:`LowRank`; see :func:`select` for groups of a model. Each option but
        `budget_bytes`, `temporary_bytes` and `nonfinite` may differ by group.
    rank : int or float, optional
        Of the momentum, or its fraction of the short side (a float below 1). Parameters of groups
        without it are stepped by :class:`torch.optim.AdamW`; so are vectors, complex parameters,
        and those where nothing would be saved.
    budget_bytes : int, optional
        In place of `rank`: bytes of state for all compressed parameters, spent as one fraction of
        the short side for all.
    lr, betas, eps, weight_decay
        Of AdamW, for both kinds of parameters; decay is decoupled. What the gradient of a step
        changes in a compressed weight is ``lr · scale`` in the root mean square, or less.
    scale : float
        Factor on every change of a compressed weight, besides weight decay. AdamW's own changes
        have about 0.2 of `lr` in the root mean square, so that its learning rates fit.
    refresh_every : int
        Steps between changes of the basis of a momentum; they are spread over the steps. A basis
        that changes with every step trains best.
    side : {None, "long", "left", "right"}
        Side of the basis; by default the short one.
    state_dtype : torch.dtype, optional
        Of the r×M coordinates of the momentum. What rounding takes away goes into the weight, as
        all else that the momentum can't hold, and with the same factor β₁/(1 − β₁): not for β₁
        near 1. Bases and means of squares are float32, or float64 for such parameters.
    rounding, temporary_bytes, nonfinite, seed
        As for :class:`LowRank`.
    foreach, fused : bool, optional
        Of the AdamW of what is not compressed.

    Raises
    ------
    TypeError, ValueError
        As for :class:`LowRank`; and if a group has one of its other options.

    Notes
    -----
    With the momentum M of rank r and the gradient G, both k×M, one step is

    ``D = β₁ M + (1 − β₁) G``, ``M⁺ = Q Qᵀ D``, ``U = G + β₁/(1 − β₁) · (M − M⁺)``,

    and the weight changes by ``−lr · scale · diag(a) U diag(b)``, where ``(aᵢ bⱼ)⁻²`` is the
    product of the running means of squares of rows and columns of G over that of all (`eps` is
    added to the roots along the side of the basis). Whatever Q is, ``Σ U = Σ G − β₁/(1 − β₁) · M``
    for a constant β₁: of every gradient the steps add up to the whole. Where M is not cut, U is
    M⁺, the momentum of Adam, without its correction for the start from zero; outside of Q it is
    G. The basis is that of ``D Mᵀ Q``: a step of subspace iteration, begun with the last one.

    Steps in which ``diag(a) G diag(b)`` is larger than 1, in the root mean square, are shortened
    by that factor. As with Adam, β₂ should not be below β₁².

    Cost of a step: two products of 2kMr flops; and of one with a new basis four, and a QR of k×r.
    Beyond the state it needs `temporary_bytes`, up to r = k/16 (k/32 for weights of half
    precision), and up to three times as much for convolutions in channels-last format.
    Steps in the backward pass, sharded weights, checkpoints, and what is refused are as for
    :class:`LowRank`; of sharded weights about k·r or M·r numbers are summed over ranks in a step,
    and the coordinates of the momentum are whole on every rank where rows are the short side.
    torch.compile leaves the step as it is.

    References
    ----------
    N. Shazeer and M. Stern, Adafactor, 2018, arXiv:1804.04235 (the means of squares, Section 3,
    and the shortening, Section 6).
    T. Vogels, S. P. Karimireddy and M. Jaggi, PowerSGD, 2019, arXiv:1905.13727 (the step of
    subspace iteration). J. Liu et al., Muon is scalable for LLM training, 2025, arXiv:2502.16982
    (0.2). Truncated momentum is also in K. Ahn et al., Dion, 2025, arXiv:2504.05295, where what was
    cut stays in a buffer of full size.

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

    _spread: ClassVar[dict[str, bool]] = {}  # small coordinates, of which a step needs all old ones
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
    def _bytes(weight: Weight, r: int, group: dict[str, Any]) -> int:
        whole = (r + 1) * weight.k + weight.M
        return whole * weight.dtype.itemsize + r * weight.M * kept_dtype(group, weight).itemsize

    @staticmethod
    def _shapes(weight: Weight) -> dict[str, tuple[int, ...]]:
        k, M, r = weight.k, weight.M, weight.rank
        return {"basis": (k, r), "exp_avg": (r, M), "row_sq": (k,), "col_sq": (M,), "step": ()}

    def _step_chunk(self, chunk: Chunk, weights: list[Weight], group: dict[str, Any]) -> None:
        every = group["refresh_every"]

        def kind(weight: Weight) -> tuple[int, bool, Any]:
            state = self.state.get(weight.parameter, {})
            step = state.get("step", 0) + 1
            renew = (step + int(self._offsets[weight.parameter] * every)) % every == 0
            return step, renew and step > 1, state["basis"].shape if state else None

        for part in stacks.grouped_by(weights, kind):
            step, renew, _ = kind(part[0])
            self._step_alike(part, group, step, renew=renew, stacked=chunk.stacked)

    def _step_alike(
        self, weights: list[Weight], group: dict[str, Any], step: int, *, renew: bool, stacked: bool
    ) -> None:
        """Step weights that have taken as many steps, all with a new basis or none."""
        first, (beta, square_beta) = weights[0], group["betas"]
        if step == 1:
            states = [_initial_state(weight, group) for weight in weights]
        else:
            states = [dict(self.state[weight.parameter]) for weight in weights]
        dtype = first.dtype
        G = stacks.gradients(weights, stacked=stacked)
        P, M = (
            stacks.stack_of([state[name] for state in states], dtype)
            for name in ("basis", "exp_avg")
        )
        Q = _basis(first, G, P, M, beta) if renew else P
        X = stacks.coordinates(Q, G)
        rows, columns = first.sum_M(stacks.row_squares(G, dtype)), stacks.column_squares(G, dtype)
        # two roundings: a fused one would depend on the place of a number in the stack
        if renew:
            C = stacks.of_stacks(lambda Q, P: Q.mT @ P, Q, P)
            X, columns, C = first.sum_k(X, columns, C)
            X.mul_(1.0 - beta).add_(stacks.of_stacks(torch.matmul, C, M).mul_(beta))
        else:
            X, columns = first.sum_k(X, columns)
            X.mul_(1.0 - beta).add_(M * beta)
        kept = kept_dtype(group, first)
        if kept != dtype:  # the step takes what is kept, and so pays out what is not
            largest = min(torch.finfo(kept).max, torch.finfo(dtype).max)
            X = X.clamp(-largest, largest).to(kept).to(dtype)
        means = {}
        for name, sums, count in (("row_sq", rows, first.M), ("col_sq", columns, first.k)):
            before = stacks.stack_of([state[name] for state in states])
            means[name] = torch.lerp(sums.div_(count), before, square_beta)
        del rows, columns, sums
        bias = 1.0 - square_beta**step
        a, b = _factors(first, means["row_sq"] / bias, means["col_sq"] / bias, group["eps"])
        # Adafactor's clipping, Section 6: for steps that the means have not followed yet, and
        # where squares are far from a matrix of rank 1
        sizes = _mean_squares(weights, G, a, b)
        b = b / sizes.clamp_(min=1.0).sqrt_().unsqueeze(-1)
        b = b * (group["lr"] * group["scale"] * (-1.0 if group["maximize"] else 1.0))
        if renew:
            left, right = torch.cat([Q, P], -1), torch.cat([X, M.neg_()], -2)
        else:
            left, right = Q, X - M
        left = left * a.unsqueeze(-1)
        right *= b.unsqueeze(-2) * (beta / (1.0 - beta))
        for state in states:
            state["step"] = step
        decay = group["weight_decay"]
        stacks.add_to_weights(
            weights, left, right, G, kept=1.0 - group["lr"] * decay if decay else 1.0,
            t=b, rows=a, states=states, group=group,
        )  # fmt: skip
        del left, right, M
        new = {"basis": Q, "exp_avg": X.to(kept), **means}
        if not renew:
            del new["basis"]
        # a processor makes new tensors, a device writes to those that are there
        self._keep(weights, states, new, in_place=stacked)


def _initial_state(weight: Weight, group: dict[str, Any]) -> dict[str, Any]:
    """A state before the first step, with a basis of the gradient."""
    basis = found_basis(weight, weight.policy)
    k, M = weight.here
    return {
        "step": 0,
        "basis": basis,
        "exp_avg": basis.new_zeros((basis.shape[1], M), dtype=kept_dtype(group, weight)),
        "row_sq": basis.new_zeros(k),
        "col_sq": basis.new_zeros(M),
    }


def _basis(
    first: Weight, G: Matrices, Q: torch.Tensor, M: torch.Tensor, beta: float
) -> torch.Tensor:
    """A basis of ``D Mᵀ Q``, with ``D = β₁ M + (1 − β₁) G``; M are the coordinates in Q."""
    # of size 1, so that no product leaves the range of its dtype
    sizes = torch.linalg.vector_norm(M, dim=(-2, -1), keepdim=True)
    if first.along_M is not None:
        sizes = first.sum_M(sizes.square()).sqrt()
    R = (M / torch.where(sizes > 0, sizes, 1.0)).mT
    C, Y = first.sum_M(stacks.of_stacks(torch.matmul, M, R), stacks.products(G, R))
    Y.mul_(1.0 - beta).add_(stacks.of_stacks(torch.matmul, Q, C), alpha=beta)
    if first.along_k is None:
        found = stacks.of_stacks(orthonormal, Y)
    else:
        found = first.along_k.orthonormalize(Y).Q
    return torch.where(sizes > 0, found, Q)


def _mean_squares(
    weights: list[Weight], G: Matrices, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Of the matrices ``diag(a) G diag(b)``."""
    first, squares = weights[0], stacks.weighted_column_squares(G, a) * b.square()
    if first.blocks is not None:
        return first.blocks.sum(squares.sum(-1)) / (first.k * first.M)
    return stacks.of_stacks(lambda X: X.mean(-1), squares) / first.k


def _factors(
    first: Weight, rows: torch.Tensor, columns: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors a and b of rows and columns; zero where no gradient has ever been seen.

    A row that is smaller than the rounding errors of the others is divided by the size of these:
    its part in the basis is nothing else.
    """
    # the mean of the ones is that of the others, and one of them is whole on this rank
    of_all = (rows if first.along_k is None else columns).mean(-1, keepdim=True).sqrt()
    least = torch.finfo(rows.dtype).eps * of_all
    a = torch.where(rows > 0, 1.0 / (rows.sqrt() + eps + least), 0.0)
    b = torch.where(columns > 0, of_all / (columns.sqrt() + least), 0.0)
    return a, b
