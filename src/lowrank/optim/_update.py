"""A step of a compressed weight: its gradient as coordinates, and their change put back."""

from collections.abc import Iterator
from typing import Any

import torch

from lowrank.compress import transport_squares
from lowrank.optim._options import Member

__all__ = [
    "add_to_weight",
    "channel_scales",
    "coordinates",
    "mean_square_outside",
    "product",
    "transported",
]

# The part of the gradient outside the subspace may grow by this factor from step to step.
LARGEST_GROWTH = 1.01
# Pieces in which a half-precision weight is worked on in single precision, and moments are moved.
PIECES = 16
# Names that optimizers give to means of squares; those of others contain none of them.
OF_SQUARES = ("_sq", "square", "sum", "var")


def _pieces(columns: int, *, whole: bool = False) -> Iterator[slice]:
    """Columns to work on at a time, so that what is temporary stays small."""
    width = columns if whole else -(-columns // PIECES)
    return (slice(start, start + width) for start in range(0, columns, width))


def coordinates(member: Member, Q: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
    """``QᵀX`` (r×M) of a tensor like the weight."""
    X = member.oriented(X)
    if X.dtype == Q.dtype:
        return Q.mT @ X
    R = Q.new_empty(Q.shape[1], X.shape[1])
    for part in _pieces(X.shape[1]):
        R[:, part] = Q.mT @ X[:, part].to(Q.dtype)
    return R


def product(member: Member, X: torch.Tensor, Omega: torch.Tensor) -> torch.Tensor:
    """``X Ω`` (k×l) of a tensor like the weight."""
    X = member.oriented(X)
    parts = _pieces(X.shape[1], whole=X.dtype == Omega.dtype)
    return sum(X[:, part].to(Omega.dtype) @ Omega[part] for part in parts)  # type: ignore[return-value]


def _column_norms(X: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    norms = X.new_empty(X.shape[1], dtype=dtype)
    for part in _pieces(X.shape[1], whole=X.dtype == dtype):
        norms[part] = torch.linalg.vector_norm(X[:, part].to(dtype), dim=0)
    return norms


def channel_scales(
    change: torch.Tensor,
    R: torch.Tensor,
    G: torch.Tensor,
    lr: Any,
    before: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale s of every column of ``G − QR``, and the norm of ``(G − QR) diag(s)``.

    A column is scaled as the optimizer scaled its coordinates, by ``‖change‖/(lr ‖R‖)``; all of
    them less where the norm would exceed 1.01 times the norm `before`. (X. Chen et al., Fira: can
    we achieve full-rank training of LLMs under low-rank constraint?, 2024, arXiv:2410.01623,
    Algorithm 1.) The norms of the columns of G − QR are ``√(‖G‖² − ‖R‖²)``, so that this matrix is
    never formed; where the difference cancels, its square root is below √eps ‖G‖.
    """
    norm = torch.linalg.vector_norm
    inside = norm(R, dim=0)
    divisor = lr * inside
    s = torch.where(divisor > 0, norm(change, dim=0) / divisor, 0.0)
    outside = (_column_norms(G, R.dtype) ** 2 - inside**2).clamp(min=0).sqrt()
    size = norm(s * outside)
    if before is not None:
        limit = LARGEST_GROWTH * before
        factor = torch.where((before > 0) & (size > limit), limit / size, 1.0)
        s, size = s * factor, size * factor
    return s, size


def add_to_weight(
    member: Member,
    Q: torch.Tensor,
    X: torch.Tensor,
    *,
    kept: Any = None,
    G: torch.Tensor | None = None,
    s: torch.Tensor | None = None,
) -> None:
    """``W ← kept · W + Q X − G diag(s)``, rounded once, without another matrix of its size."""
    flat = member.parameter.data.flatten(1)
    W = flat if member.left else flat.mT
    for part in _pieces(W.shape[1], whole=W.dtype == Q.dtype):
        w = W[:, part].to(Q.dtype)  # the weight itself, where it has that dtype
        if kept is not None:
            w *= kept
        w.addmm_(Q, X[:, part])
        if G is not None and s is not None:
            w.addcmul_(G[:, part].to(Q.dtype), s[part], value=-1.0)
        if w.dtype != W.dtype:
            W[:, part] = w
    if flat.untyped_storage().data_ptr() != member.parameter.untyped_storage().data_ptr():
        member.parameter.data.copy_(flat.view_as(member.parameter))


def mean_square_outside(Q: torch.Tensor, R: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
    """Mean square of a coordinate of every column of G outside the basis."""
    rest = _column_norms(G, Q.dtype) ** 2 - torch.linalg.vector_norm(R, dim=0) ** 2
    return rest.clamp(min=0) / max(1, Q.shape[0] - Q.shape[1])


def transported(
    state: dict[str, Any], C: torch.Tensor, betas: tuple[float, float], outside: torch.Tensor
) -> dict[str, Any]:
    """The optimizer's state in a new basis; empty, a new start, where it can't be moved.

    ``C = Q_newᵀ Q``. Means of coordinates become C times themselves; means of squares follow
    :func:`lowrank.compress.transport_squares`, after their bias towards a start from zero is
    divided out. A factored mean of squares (one number a row, one a column) moves by its rows.
    """
    r, moved = C.shape[1], dict(state)
    unbiased = [1.0 - beta ** state["step"] if "step" in state else 1.0 for beta in betas]
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            continue
        quantised = hasattr(value, "dequantize") and type(value) is not torch.Tensor
        X = (value.dequantize() if quantised else value).to(C.dtype)
        if X.shape[0] != r:
            if X.shape == (1, outside.shape[0]):  # of columns, which stay where they are
                continue
            return {}
        if quantised and C.shape[0] != r:
            return {}
        if not any(part in name for part in OF_SQUARES):
            Y = C @ X
        else:
            mean = state.get("exp_avg") if name == "exp_avg_sq" else None
            if mean is not None:
                mean = (mean.dequantize() if quantised else mean).to(C.dtype)
            new = outside if X.shape[1] == outside.shape[0] else outside.mean()[None]
            Y = X.new_empty(C.shape[0], X.shape[1])
            for part in _pieces(X.shape[1]):
                center = torch.zeros_like(X[:, part]) if mean is None else mean[:, part]
                Y[:, part] = unbiased[1] * transport_squares(
                    C, center / unbiased[0], X[:, part] / unbiased[1], new[part]
                )
        moved[name] = value.to(value.device, copy=True).copy_(Y) if quantised else Y.to(value.dtype)
    return moved
