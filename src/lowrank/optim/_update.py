"""A step of compressed weights: gradients as coordinates, and the change of those put back."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from lowrank.compress import transport_squares
from lowrank.optim._options import Member

# The part of the gradient outside the subspace may grow by this factor from step to step, and a
# number outside may change by this many times as much as one inside, in the mean of a column.
LARGEST_GROWTH = 1.01
LARGEST_RATIO = 3.0
# Pieces in which a half-precision weight is worked on in single precision, and moments are moved:
# as many, or fewer of so many numbers, for a GPU takes as long for a small piece as for a large.
PIECES = 16
PIECE_ON_A_GPU = 2**21
# Numbers of a block of rows that stays in the cache of a processor while it is summed.
CACHED = 2**16
# Columns of a product QᵀX with few rows, for which a processor takes four fifths of the time.
COLUMNS = 1024
# Names that optimizers give to means of squares; those of others contain none of them.
OF_SQUARES = ("_sq", "square", "sum", "var")


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one graph."""
    return torch.compile(function, fullgraph=True)


def _slices(length: int, X: torch.Tensor) -> list[slice]:
    count = PIECES
    if X.device.type != "cpu":
        count = min(PIECES, -(-X.numel() // PIECE_ON_A_GPU))
    width = max(1, -(-length // max(1, count)))
    return [slice(start, start + width) for start in range(0, max(1, length), width)]


def _pieces(X: torch.Tensor, *, whole: bool = False) -> list[tuple[slice, slice]]:
    """Rows and columns of a matrix to work on at a time, as they follow one another in memory."""
    everything = slice(None)
    if whole:
        return [(everything, everything)]
    if X.stride(0) >= X.stride(1):
        return [(rows, everything) for rows in _slices(X.shape[0], X)]
    return [(everything, columns) for columns in _slices(X.shape[1], X)]


def coordinates(member: Member, Q: torch.Tensor, X: torch.Tensor, out: torch.Tensor) -> None:
    """``QᵀX`` (r×M) of a tensor like the weight, written to `out`."""
    X = member.oriented(X)
    if X.dtype == Q.dtype:
        M = X.shape[1]
        width = COLUMNS if X.device.type == "cpu" else max(1, M)
        for start in range(0, M, width):
            part = slice(start, start + width)
            torch.mm(Q.mT, X[:, part], out=out[:, part])
        return
    for number, (rows, columns) in enumerate(_pieces(X)):
        beta = 0 if number == 0 or rows == slice(None) else 1
        out[:, columns].addmm_(Q[rows].mT, X[rows, columns].to(Q.dtype), beta=beta)


def product(member: Member, X: torch.Tensor, Omega: torch.Tensor) -> torch.Tensor:
    """``X Ω`` (k×l) of a tensor like the weight."""
    X = member.oriented(X)
    if len(pieces := _pieces(X, whole=X.dtype == Omega.dtype)) == 1:
        return X.to(Omega.dtype) @ Omega
    Y = Omega.new_zeros(X.shape[0], Omega.shape[1])
    for rows, columns in pieces:
        Y[rows].addmm_(X[rows, columns].to(Omega.dtype), Omega[columns])
    return Y


def column_squares(X: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sums of the squares of the columns of a matrix or stack, computed in `dtype`."""
    if torch.compiler.is_compiling():
        return X.to(dtype).square().sum(-2)
    along_columns = X.stride(-2) == 1
    if X.device.type != "cpu" or (along_columns and X.dtype == dtype):
        return torch.linalg.vector_norm(X, dim=-2, dtype=dtype).square()
    if along_columns:
        parts = [X[..., columns].to(dtype).square().sum(-2) for _, columns in _pieces(X)]
        return torch.cat(parts, -1)
    if X.numel() <= CACHED:
        return X.to(dtype).square().sum(-2)
    # torch's own norm across the rows takes ten times as long on a processor
    rows = max(1, min(CACHED // max(1, X.shape[-1]), X.shape[-2] // PIECES))
    squares = X.new_zeros((*X.shape[:-2], X.shape[-1]), dtype=dtype)
    for start in range(0, X.shape[-2], rows):
        squares += X[..., start : start + rows, :].to(dtype).square().sum(-2)
    return squares


def weighted_column_squares(G: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Sums of the squares of the columns of ``diag(a) G``, in the dtype of a."""
    if len(pieces := _pieces(G, whole=G.numel() <= CACHED)) == 1:
        return (G * a[:, None]).square_().sum(0)
    squares = a.new_zeros(G.shape[1])
    for rows, columns in pieces:
        squares[columns] += (G[rows, columns] * a[rows, None]).square_().sum(0)
    return squares


def change_of_weight(
    change: torch.Tensor,
    R: torch.Tensor,
    squares: torch.Tensor,
    k: int,
    lr: Any,
    sign: float,
    scale: float,
    before: torch.Tensor,
    total: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """X and t, such that the weight changes by ``Q X − G diag(t)``, and the norm of the residual.

    For a stack of b weights: `change` (b×r×M) is what the inner optimizer did to coordinates whose
    gradients were R (downhill, or uphill where `sign` is −1), and `squares` (b×M) are those of the
    columns of the whole gradients G. Where this rank has a part of the columns, `total` sums over
    the ranks. A column of ``G − QR`` is scaled as its coordinates were, by
    ``s = ‖change‖/(lr ‖R‖)``; all of them less where the norm of ``(G − QR) diag(s)`` would exceed
    1.01 times the norm `before` (b), unless that is zero. (X. Chen et al., Fira: can we achieve
    full-rank training of LLMs under low-rank constraint?, 2024, arXiv:2410.01623, Algorithm 1.)

    That factor has no bound where R is small beside the column of G, and one step may then be
    larger than the weight. So s is at most what makes the k − r numbers outside of a column change
    three times as much as the r inside, in the mean square.

    The norms of the columns of G − QR are ``√(‖G‖² − ‖R‖²)``, so that this matrix is never formed;
    where the difference cancels, its square root is below √eps ‖G‖.
    """
    r = R.shape[-2]
    inside = column_squares(R, R.dtype)
    outside = (squares - inside).clamp(min=0)
    least = outside * (r / (LARGEST_RATIO**2 * (k - r)))
    divisor = lr * torch.maximum(inside, least).sqrt()
    s = torch.where(divisor > 0, column_squares(change, R.dtype).sqrt() / divisor, 0.0)
    size = torch.linalg.vector_norm(s * outside.sqrt(), dim=-1)
    if total is not None:
        size = total(size.square()).sqrt()
    limit = LARGEST_GROWTH * before
    factor = torch.where((before > 0) & (size > limit), limit / size, 1.0)
    t = s * (sign * lr * factor.unsqueeze(-1))
    return change.addcmul_(R, t.unsqueeze(-2)).mul_(scale), t * scale, size * factor


def _scaled(X: torch.Tensor, factor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    return X.to(dtype) if factor is None else X * factor


def add_to_weight(
    member: Member,
    Q: torch.Tensor,
    X: torch.Tensor,
    *,
    kept: Any = 1.0,
    t: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> None:
    """``W ← kept · W + Q X − G diag(t)``, rounded once, without another matrix of its size.

    Or ``… − diag(rows) G diag(t)``.
    """
    flat = member.weight.flatten(1)
    W, G = flat if member.left else flat.mT, member.oriented(member.gradient)
    for part in _pieces(W, whole=W.dtype == Q.dtype and (rows is None or W.numel() <= CACHED)):
        here, columns = part
        w = W[part].to(Q.dtype)  # the weight itself, where it has that dtype
        if isinstance(kept, torch.Tensor):
            w.mul_(kept).addmm_(Q[here], X[:, columns])
        else:
            w.addmm_(Q[here], X[:, columns], beta=kept)
        if t is not None:
            factor = None if rows is None else rows[here, None]
            w.addcmul_(_scaled(G[part], factor, Q.dtype), t[columns], value=-1.0)
        if w.dtype != W.dtype:
            W[part] = w
    if flat.untyped_storage().data_ptr() != member.weight.untyped_storage().data_ptr():
        member.weight.copy_(flat.view_as(member.weight))


def put_back(
    members: list[Member],
    states: list[dict[str, Any]],
    changes: torch.Tensor,
    R: torch.Tensor,
    group: dict[str, Any],
    *,
    compiling: bool,
) -> None:
    """Change the weights as the inner optimizer changed the coordinates."""
    lr, scale, decay = group.get("lr", 1.0), group["scale"], group.get("weight_decay", 0.0)
    X, t, first = changes, None, members[0]
    if group["residual"] is None:
        X.mul_(scale)
    else:
        squares, change, rate = column_squares, change_of_weight, lr
        if compiling and first.blocks is None:
            squares, change = compiled(column_squares), compiled(change_of_weight)
            # a number would be a constant of the compiled code, which a scheduler changes
            rate = torch.as_tensor(lr, dtype=torch.float64 if R.is_cpu else None)
        for state in states:
            if "residual_norm" not in state:
                state["residual_norm"] = R.new_zeros(())
        norms = [state["residual_norm"] for state in states]
        whole = torch.stack([squares(each.oriented(each.gradient), R.dtype) for each in members])
        sign = -1.0 if group.get("maximize") else 1.0
        before = torch.stack(norms)
        total = None if first.columns is None else first.columns.total
        X, t, sizes = change(
            X, R, first.own(first.sum_k(whole)), first.k, rate, sign, scale, before, total
        )
        torch._foreach_copy_(norms, list(sizes))
    if first.along_k is not None:
        X, t = first.every(X), None if t is None else first.every(t.unsqueeze(-2)).squeeze(-2)
    kept = 1.0 - lr * decay if decay else 1.0
    for i, (each, state) in enumerate(zip(members, states, strict=True)):
        add_to_weight(each, state["basis"], X[i], kept=kept, t=None if t is None else t[i])


def mean_square_outside(member: Member, R: torch.Tensor) -> torch.Tensor:
    """Mean square of a coordinate of every column of the gradient outside the basis."""
    squares = column_squares(member.oriented(member.gradient), R.dtype)
    squares = member.own(member.sum_k(squares))
    rest = squares - column_squares(R, R.dtype)
    return rest.clamp(min=0) / max(1, member.k - R.shape[0])


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
            for part in _slices(X.shape[1], X):
                center = torch.zeros_like(X[:, part]) if mean is None else mean[:, part]
                Y[:, part] = unbiased[1] * transport_squares(
                    C, center / unbiased[0], X[:, part] / unbiased[1], new[part]
                )
        moved[name] = value.to(value.device, copy=True).copy_(Y) if quantised else Y.to(value.dtype)
    return moved
