"""Muon with a low-rank momentum, and a mean of squares for each row."""

from collections.abc import Iterable
from typing import Any, Literal

import torch

from lowrank._linalg.panel import orthonormal
from lowrank.optim._base import LowRankOptimizer
from lowrank.optim._inner import adamw_of
from lowrank.optim._options import OF_LOWRANK, Weight
from lowrank.optim._stacks import add_to_weights, of_stacks, read, stack_of, write

NAME = "Muon, momentum of low rank"
# Coefficients of the polynomial of a Newton–Schulz step (K. Jordan et al., 2024); number of steps.
COEFFICIENTS, STEPS = (3.4445, -4.7750, 2.0315), 5
# Decay of the running mean of the ratio.
PATIENCE = 0.95
# The smallest norm to divide by; its square is a normal number in single precision.
TINY = 1e-18


class LowRankMuon(LowRankOptimizer):
    """Muon for large matrices, with its momentum stored as low-rank factors.

    Experimental: tried only on models of 0.6 million weights, for up to 2,000 steps, on three
    texts. In 800 steps it trained as well as Muon on two texts and worse on the third, with a tenth
    of the state; after 2,000 steps it was 0.012 nats behind. See the page on training. State of an
    m×n weight: ``r·(m + n)`` numbers and one per row, instead of the ``m·n`` of Muon and the
    ``2·m·n`` of AdamW.

    Parameters
    ----------
    params : iterable of parameters, named parameters, or groups
        As for :class:`LowRank`; see :func:`select` for groups of a model. Each option except
        `temporary_bytes` and `nonfinite` may differ by group.
    rank : int or float, optional
        Rank of the momentum, or its fraction of the short side (a float below 1). 0: no momentum.
        Parameters of groups with None are updated by :class:`torch.optim.AdamW`, which is right for
        embeddings and heads. So are vectors, complex parameters, and matrices for which no memory
        would be saved.
    lr : float
        Learning rate of compressed and other parameters. Matrices train best with a quarter to a
        half of the rate of the others.
    momentum : float
        Decay of the momentum.
    beta2 : float
        Decay of the running means of squares of rows.
    betas, eps
        Options of the AdamW for uncompressed parameters.
    weight_decay : float
        Decoupled weight decay of compressed and other parameters.
    scale : float
        Factor on every change of a compressed weight, except weight decay. The default is that of
        :class:`torch.optim.Muon` with ``adjust_lr_fn="match_rms_adamw"``.
    state_dtype : torch.dtype, optional
        Dtype of the factors. Default: float32, or float64 for float64 parameters.
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
    With the k×M gradient G (short side first) and the momentum ``P R`` of rank r, one step is

    ``D = β P R + (1 − β) G``, ``Q = orth(D Dᵀ P)``, ``R⁺ = Qᵀ D``, ``X = (1 − β) G + β D``,

    ``O = polar(X)`` by five Newton–Schulz steps, ``U = c (O − (1 − 1/c) Q Qᵀ O)``,

    and the weight changes by ``−lr · scale · √max(m, n)`` times U. Before that, the rows of U are
    divided by the roots of the running means of their squares, and U is scaled back to its old
    norm. The new momentum is ``Q R⁺``; the part of D outside of Q is dropped.

    The polar factor has the same norm for every input, although a momentum is shorter than a
    gradient. Updates along the momentum accumulate over steps; those along single gradients do not,
    so they have to be longer. The factor is measured: c is a running mean of ``‖QᵀG‖/‖QᵀX‖``, at
    least 1. With rank 0 it is ``√((1 + β)/(1 − β))``, the ratio of the norm of noise to that of its
    running mean.

    Cost of a step: that of Muon (about ``20 k²M`` flops, in bfloat16; in float64 for float64
    weights), and 14kMr flops more. Weights of one shape are stepped as stacks, also on a CPU. For
    sharded weights (FSDP2, HSDP) gradients are gathered, because the polar factor needs all rows:
    every process computes the whole step and has the whole state. Steps in the backward pass,
    checkpoints, and what is not supported are as for :class:`LowRank`. The step is not compiled by
    torch.compile.

    References
    ----------
    K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024 (the step, and
    the polynomial). J. Liu et al., Muon is scalable for LLM training, 2025, arXiv:2502.16982 (the
    factor 0.2). Z. Li et al., NorMuon, 2025, arXiv:2510.05491 (the rows). T. Vogels, S. P.
    Karimireddy and M. Jaggi, PowerSGD, 2019, arXiv:1905.13727 (the step of subspace iteration).
    Muon with a low-rank momentum is also proposed by F. Huang et al., LiMuon, 2025,
    arXiv:2509.14562, with c = 1, and by K. Ahn et al., Dion, 2025, arXiv:2504.05295, who keep the
    rest in a buffer of full size.

    Examples
    --------
    >>> import torch
    >>> from lowrank.optim import LowRankMuon
    >>> model = torch.nn.Linear(512, 512, bias=False)
    >>> optimizer = LowRankMuon(model.parameters(), rank=8, lr=1e-3)
    >>> model(torch.ones(1, 512)).sum().backward()
    >>> optimizer.step()
    >>> optimizer.state_bytes() / optimizer.report().uncompressed_bytes < 0.04
    True
    """

    _spread = "gathers"
    _betas = ("momentum", "beta2")
    _states = 1
    _least_rank = 0
    _copies = 1
    _foreign = (*OF_LOWRANK, "refresh_every", "side")

    def __init__(
        self,
        params: Iterable[Any],
        *,
        rank: float | None = 8,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.95,
        beta2: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        scale: float = 0.2,
        state_dtype: torch.dtype | None = None,
        rounding: Literal["nearest", "stochastic", "compensated"] = "nearest",
        temporary_bytes: int | None = None,
        nonfinite: Literal["skip", "raise", "ignore"] = "skip",
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        given = locals()
        super().__init__(params, adamw_of(given), given, NAME)

    @staticmethod
    def _bytes(weight: Weight, r: int) -> int:
        factors = r * (weight.k + weight.M) * weight.kept.itemsize
        return factors + weight.parameter.shape[0] * weight.dtype.itemsize

    @staticmethod
    def _shapes(weight: Weight) -> dict[str, tuple[int, ...]]:
        k, M, r = weight.k, weight.M, weight.rank
        rows = (weight.parameter.shape[0],)
        return {"basis": (k, r), "exp_avg": (r, M), "row_sq": rows, "ratio": (), "step": ()}

    @staticmethod
    def _initial_state(weight: Weight) -> dict[str, Any]:
        """A zero momentum, and random columns instead of a basis."""
        Omega = weight.drawn(weight.rank, "momentum", long=False)
        return {
            "step": 0,
            "basis": Omega.to(weight.kept),
            "exp_avg": Omega.new_zeros((weight.rank, weight.M), dtype=weight.kept),
            "ratio": Omega.new_ones(()),
            "row_sq": Omega.new_zeros(weight.parameter.shape[0]),
        }

    def _step_together(self, weights: list[Weight], states: list[dict[str, Any]]) -> None:
        """Step weights with the same number of steps."""
        first, group, step = weights[0], weights[0].group, states[0]["step"]
        beta = group["momentum"]
        G = _gradients(weights)
        names = "basis", "exp_avg", "ratio", "row_sq"
        P, R, ratio, squares = (read(states, name, first.dtype) for name in names)
        D = torch.baddbmm(G, P, R, beta=1.0 - beta, alpha=beta)
        Q = _basis(D, P) if first.rank else P
        R, of_G = Q.mT @ D, Q.mT @ G
        X = D.mul_(beta).add_(G, alpha=1.0 - beta)
        sizes = [_norms(Y) for Y in (of_G, torch.lerp(of_G, R, beta))]  # of QᵀG and QᵀX
        ratio = _mean(ratio, sizes[0] / sizes[1], PATIENCE, step)
        del G, D, of_G
        Y = X.div_(_norms(X)[:, None, None])
        del X
        U = newton_schulz(Y if Y.dtype == torch.float64 else Y.bfloat16()).to(Y.dtype)
        del Y
        longer = ((1.0 + beta) / (1.0 - beta)) ** 0.5
        if first.rank:
            longer = ratio.clamp(min=1.0)[:, None]
            U.baddbmm_(Q, (Q.mT @ U).mul_((1.0 / longer - 1.0).unsqueeze(-1)))
        # the dimension along a row of the weight
        along = -1 if first.left else -2
        rows = torch.linalg.vector_norm(U, dim=along)
        squares = _mean(squares, (rows * longer).square_(), group["beta2"], step)
        a = squares.clamp(min=TINY).rsqrt_()
        sizes = [_norms(Y, -1) for Y in (rows, rows * a)]
        rate = group["lr"] * group["scale"] * max(first.k, first.M) ** 0.5
        rate = -rate if group["maximize"] else rate
        a.mul_((sizes[0] / sizes[1]).unsqueeze(-1) * longer * rate)
        U.mul_(a.unsqueeze(along))
        U = first.blocks.part(U, -2 if first.left else -1)
        add_to_weights(weights, None, None, U, states=states)
        new = Q.to(first.kept), R.to(first.kept), ratio, squares
        write(states, dict(zip(names, new, strict=True)))


def _gradients(weights: list[Weight]) -> torch.Tensor:
    """A stack of whole k×M gradients: Newton–Schulz steps need all rows."""
    first = weights[0]
    G = stack_of([weight.gradient for weight in weights], first.dtype).flatten(2)
    G = first.blocks.gather(G)
    return G if first.left else G.mT


def _norms(X: torch.Tensor, dim: Any = (-2, -1)) -> torch.Tensor:
    """Norms, at least TINY, to divide by."""
    return torch.linalg.vector_norm(X, dim=dim).clamp_(min=TINY)


def _basis(D: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """A basis of ``D Dᵀ P``; ``Dᵀ P`` is scaled to norm 1, so that no product overflows."""
    Z = D.mT @ P
    return of_stacks(orthonormal, D @ Z.div_(_norms(Z)[:, None, None]))


def _mean(before: torch.Tensor, now: torch.Tensor, beta: float, step: int) -> torch.Tensor:
    """A running mean, corrected for its start."""
    return torch.lerp(before, now, (1.0 - beta) / (1.0 - beta**step))


def newton_schulz(Y: torch.Tensor) -> torch.Tensor:
    """Approximate polar factors of matrices of norm 1: singular values become 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        A = Y @ Y.mT
        Y = torch.baddbmm(Y, torch.baddbmm(A, A, A, beta=b, alpha=c), Y, beta=a)
    return Y
