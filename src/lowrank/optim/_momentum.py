"""AdamW with a momentum of low rank and a factored mean of squares, on the whole gradient."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from lowrank._panel import orthonormalise
from lowrank.optim._lowrank import Batch, LowRank
from lowrank.optim._options import Member
from lowrank.optim._refresh import found_basis
from lowrank.optim._sharding import orthonormal
from lowrank.optim._update import (
    add_to_weight,
    column_squares,
    coordinates,
    product,
    weighted_column_squares,
)

NAME = "AdamW, momentum of low rank"
# Options of LowRank and AdamW that have no meaning here.
FOREIGN = (
    *("energy", "max_rank", "residual", "random_fraction", "power_iterations", "oversampling"),
    *("transport", "warm_start", "average", "amsgrad", "decoupled_weight_decay"),
)


class LowRankMomentum(LowRank):
    """AdamW for large matrices, with both of its moments as factors of low rank.

    The first moment is a product of rank r that is found anew every few steps, by one step of
    subspace iteration from the last one; the second has rank 1. The gradient is used as a whole:
    what a momentum of rank r can't hold goes into the weight at once, and so nothing is lost.
    State of an m×n weight: ``(r + 1)·(m + n)`` numbers in place of ``2·m·n``.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        As for :class:`LowRank`; see :func:`select` for groups of a model. Each option but
        `budget_bytes`, `nonfinite` and those of AdamW for the rest may differ by group.
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
    nonfinite, seed
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
    Beyond the state it needs less memory than the largest of the weights, or 16 MiB (64 on a GPU),
    up to r = k/16 (k/32 for weights of half precision), and up to three times as much for
    convolutions in channels-last format.
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

    _spread = False  # they are small, and a step needs the old ones whole
    _temporaries = 12

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
        nonfinite: Literal["skip", "raise", "ignore"] = "skip",
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            torch.optim.AdamW,
            rank=rank,
            budget_bytes=budget_bytes,
            scale=scale,
            refresh_every=refresh_every,
            random_fraction=0.0,
            side=side,
            state_dtype=state_dtype,
            nonfinite=nonfinite,
            seed=seed,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            foreach=foreach,
            fused=fused,
        )
        for group in (self.defaults, *self.param_groups):
            group["optimizer"] = NAME

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        for name in FOREIGN:
            if name in param_group and param_group[name] != self.defaults[name]:
                message = f"`{name}` is not for LowRankMomentum, got {param_group[name]!r}."
                raise ValueError(message)
        super().add_param_group(param_group)
        betas = self.param_groups[-1]["betas"]
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            self.param_groups.pop()
            message = f"`betas` must be two numbers between 0 and 1 (and not 1), got {betas!r}."
            raise ValueError(message)

    @staticmethod
    def _bytes(each: Member, r: int, group: dict[str, Any]) -> int:
        whole = (r + 1) * each.k + each.M
        return whole * each.dtype.itemsize + r * each.M * _kind(group, each.dtype).itemsize

    @staticmethod
    def _uncompressed_bytes(each: Member, state: dict[str, Any]) -> int:  # noqa: ARG004
        return 2 * each.weight.numel() * each.parameter.element_size()

    def _check_saved(
        self, saved: dict[str, Any], parameter: torch.Tensor, name: str, each: Member | None
    ) -> None:
        super()._check_saved(saved, parameter, name, each)
        if each is None or not saved:
            return
        r = each.rank
        wanted: dict[str, tuple[int, ...]] = {"basis": (each.k, r), "exp_avg": (r, each.M)}
        wanted |= {"row_sq": (each.k,), "col_sq": (each.M,)}
        found = {key: tuple(getattr(saved.get(key), "shape", ())) for key in wanted}
        if found != wanted or "step" not in saved:
            message = (
                f"the state of parameter {name} needs `step` and tensors of shapes {wanted}, got "
                f"{found} among {', '.join(saved)}."
            )
            raise ValueError(message)

    def _step_batch(self, batch: Batch, *, compiling: bool) -> None:  # noqa: ARG002
        group = self.param_groups[batch.group]
        members = [each for each in batch.members if each.parameter.grad is not None]
        if not members:
            return
        beta, square_beta = group["betas"]
        states = [_begun(each, self.state.get(each.parameter, {}), group) for each in members]
        first = members[0]
        old = [state["basis"] for state in states]
        dtype = old[0].dtype
        before = torch.stack([state["exp_avg"].to(dtype) for state in states])
        new = self._bases(members, states, before, group)
        after = torch.empty_like(before)
        for each, Q, X in zip(members, new, after, strict=True):
            coordinates(each, Q, each.gradient, X)
        both = torch.stack(new), torch.stack(old)
        stays = [Q is P for Q, P in zip(new, old, strict=True)]
        rows, columns = _squares(members, dtype)
        rows, M = first.sum_M(rows), before
        if all(stays):
            after, columns = first.sum_k(after, columns)
        else:
            C = _of_stacks(lambda Q, P: Q.mT @ P, *both)
            after, columns, C = first.sum_k(after, columns, C)
            M = _of_stacks(torch.matmul, C, before)
        if any(stays) and not all(stays):
            M = torch.where(torch.tensor(stays, device=M.device)[:, None, None], before, M)
        # two roundings: a fused one would depend on the place of a number in the stack
        after.mul_(1.0 - beta).add_(M * beta)
        kind = _kind(group, dtype)
        if kind != dtype:  # the step takes what is kept, and so pays out what is not
            largest = min(torch.finfo(kind).max, torch.finfo(dtype).max)
            after = after.clamp(-largest, largest).to(kind).to(dtype)
        for name, sums, count in (("row_sq", rows, first.M), ("col_sq", columns, first.k)):
            squares = sums.div_(count).unbind()
            means = torch._foreach_lerp(squares, [state[name] for state in states], square_beta)
            for state, mean in zip(states, means, strict=True):
                state[name] = mean
        del rows, columns, sums, squares
        a, b = _factors(first, states, square_beta, group["eps"])
        sizes = _mean_squares(members, a, b)
        # Adafactor's clipping, Section 6: for steps that the means have not followed yet, and
        # where squares are far from a matrix of rank 1
        b = b / sizes.clamp(min=1.0).sqrt().unsqueeze(-1)
        b = b * (group["lr"] * group["scale"] * (-1.0 if group["maximize"] else 1.0))
        kept = 1.0 - group["lr"] * group["weight_decay"] if group["weight_decay"] else 1.0
        gain = b.unsqueeze(-2) * (beta / (1.0 - beta))
        if all(stays):
            Q, X = both[0], (after - before).mul_(gain)
        else:
            Q, X = torch.cat(both, -1), torch.cat([after, before.neg()], -2).mul_(gain)
        Q.mul_(a.unsqueeze(-1))
        for i, (each, state) in enumerate(zip(members, states, strict=True)):
            part = Q[i], X[i]
            if stays[i] and not all(stays):
                part = Q[i, :, : after.shape[1]], (after[i] - before[i]).mul_(gain[i])
            add_to_weight(each, *part, kept=kept, t=b[i], rows=a[i])
            state["basis"] = new[i]
            state["exp_avg"] = after[i].to(kind, copy=True)
            self.state[each.parameter] = state

    def _bases(
        self,
        members: list[Member],
        states: list[dict[str, Any]],
        moments: torch.Tensor,
        group: dict[str, Any],
    ) -> list[torch.Tensor]:
        """The bases of this step: for those whose turn it is, of ``D Mᵀ Q``."""
        every, (beta, _) = group["refresh_every"], group["betas"]
        bases = [state["basis"] for state in states]
        turns = [
            i
            for i, (each, state) in enumerate(zip(members, states, strict=True))
            if (state["step"] + int(self._turns[each.parameter] * every)) % every == 0
        ]
        turns = [i for i in turns if states[i]["step"] > 1]  # else found in this step
        if not turns:
            return bases
        M = moments if len(turns) == len(moments) else moments[turns]
        # of size 1, so that no product leaves the range of its dtype
        sizes = torch.linalg.vector_norm(M, dim=(-2, -1), keepdim=True)
        if (first := members[0]).along_M is not None:
            sizes = first.sum_M(sizes.square()).sqrt()
        R = M / torch.where(sizes > 0, sizes, 1.0)
        parts = [product(members[i], members[i].gradient, R[n].mT) for n, i in enumerate(turns)]
        C, Y = first.sum_M(M @ R.mT, torch.stack(parts))
        del parts
        for n, i in enumerate(turns):
            Y[n].mul_(1.0 - beta).addmm_(bases[i], C[n], alpha=beta)
        if first.along_k is None:
            found = _of_stacks(lambda Y: orthonormalise(Y).Q, Y)
        else:
            found = orthonormal(Y, first.along_k)
        for n, i in enumerate(turns):
            bases[i] = torch.where(sizes[n] > 0, found[n], bases[i])
        return bases


def _of_stacks(function: Callable[..., torch.Tensor], *stacks: torch.Tensor) -> torch.Tensor:
    """A function of matrices: on a processor of one after the other, which rounds the same for all.

    It has nothing to gain from a stack, and steps of single parameters equal those of many.
    """
    if stacks[0].device.type != "cpu":
        return function(*stacks)
    return torch.stack([function(*matrices) for matrices in zip(*stacks, strict=True)])


def _begun(each: Member, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    """A copy of the state for this step, or the first one."""
    state = dict(state)
    if not state:
        basis = found_basis(each, each.policy)
        state = {"step": 0, "basis": basis}
        k, M = each.here
        state["exp_avg"] = basis.new_zeros((basis.shape[1], M), dtype=_kind(group, basis.dtype))
        state["row_sq"], state["col_sq"] = basis.new_zeros(k), basis.new_zeros(M)
    state["step"] += 1
    return state


def _squares(members: list[Member], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the squares of the rows and of the columns of the gradients."""
    gradients = [each.oriented(each.gradient) for each in members]
    rows = torch.stack([column_squares(G.mT, dtype) for G in gradients])
    columns = torch.stack([column_squares(G, dtype) for G in gradients])
    return rows, columns


def _mean_squares(members: list[Member], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of the matrices ``diag(a) G diag(b)``."""
    gradients = [each.oriented(each.gradient) for each in members]
    squares = torch.stack([weighted_column_squares(G, a[i]) for i, G in enumerate(gradients)])
    squares, first = squares * b.square(), members[0]
    if first.blocks is not None:
        return first.blocks.total(squares.sum(-1)) / (first.k * first.M)
    return _of_stacks(lambda X: X.mean(-1), squares) / first.k


def _factors(
    first: Member, states: list[dict[str, Any]], beta: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors a and b of rows and columns; zero where no gradient has ever been seen.

    A row that is smaller than the rounding errors of the others is divided by the size of these:
    its part in the basis is nothing else.
    """
    bias = [1.0 - beta ** state["step"] for state in states]
    rows, columns = (
        torch.stack([state[name] / one for state, one in zip(states, bias, strict=True)])
        for name in ("row_sq", "col_sq")
    )
    # the mean of the ones is that of the others, and one of them is whole on this rank
    of_all = (rows if first.along_k is None else columns).mean(-1, keepdim=True).sqrt()
    least = torch.finfo(rows.dtype).eps * of_all
    a = torch.where(rows > 0, 1.0 / (rows.sqrt() + eps + least), 0.0)
    b = torch.where(columns > 0, of_all / (columns.sqrt() + least), 0.0)
    return a, b


def _kind(group: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The dtype of the coordinates of a momentum, by default that of its basis."""
    name = group["state_dtype"]
    return dtype if name is None else getattr(torch, name)
