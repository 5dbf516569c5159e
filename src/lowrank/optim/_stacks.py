"""The arithmetic of a step, on the gradients of n weights of one shape.

On a GPU, where each operation has to be launched, the gradients are one n×k×M tensor, a stack. On a
CPU, and if a stack would take too much memory, they are a list of k×M matrices, which are handled
one after the other and in pieces.
"""

import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from lowrank.optim._options import Weight
from lowrank.optim._sharding import local, true_on_all

Matrices = torch.Tensor | list[torch.Tensor]
# The norm of the residual may grow by LARGEST_GROWTH from step to step. In the root mean square of
# a column, numbers outside the subspace may change LARGEST_RATIO times as much as numbers inside.
LARGEST_GROWTH = 1.01
LARGEST_RATIO = 3.0
# Half-precision weights are processed in single precision in PIECES pieces, and so are moments at a
# refresh. On a GPU a piece has at least PIECE_ON_A_GPU numbers: smaller ones take as long.
PIECES = 16
PIECE_ON_A_GPU = 2**21
# Numbers of a piece that stays in the cache of a CPU while its squares are summed.
CACHED = 2**16
# Columns of a block of a product QᵀX with few rows: on a CPU blocks take 4/5 of the time.
COLUMNS = 1024


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one graph."""
    return torch.compile(function, fullgraph=True)


# -- stacks and lists ------------------------------------------------------------------------------


def grouped_by(items: Iterable[Any], key: Callable[[Any], Any]) -> list[list[Any]]:
    """Lists of the items that have the same key, in their order."""
    found = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return list(found.values())


def stack_of(tensors: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
    """A stack: copies of tensors of one shape in one tensor."""
    first = tensors[0]
    stack = first.new_empty((len(tensors), *first.shape), dtype=dtype or first.dtype)
    torch._foreach_copy_(list(stack.unbind()), list(tensors))
    return stack


def read(states: list[dict[str, Any]], name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A stack of one tensor of each state."""
    return stack_of([state[name] for state in states], dtype)


def write(states: Sequence[dict[str, Any]], stacks: dict[str, torch.Tensor]) -> None:
    """Copy the parts of stacks to states: on a CPU to new tensors, else to those that fit."""
    for name, stack in stacks.items():
        parts = list(stack.unbind())
        for state, part in zip(states, parts, strict=True):
            old = None if part.is_cpu else state.get(name)
            if old is None or (old.shape, old.dtype) != (part.shape, part.dtype):
                state[name] = part.new_empty(part.shape)
        torch._foreach_copy_([state[name] for state in states], parts)


def of_stacks(function: Callable[..., torch.Tensor], *stacks: Matrices) -> torch.Tensor:
    """Apply a function of matrices to stacks; to lists, and on a CPU, to one after the other.

    A CPU gains nothing from stacks, and so each parameter rounds as if it were stepped alone.
    """
    if isinstance(stacks[0], torch.Tensor) and stacks[0].device.type != "cpu":
        return function(*stacks)
    return torch.stack([function(*matrices) for matrices in zip(*stacks, strict=True)])


def gradients(weights: Sequence[Weight]) -> Matrices:
    """The gradients of weights of one shape, as k×M matrices."""
    return matrices(weights, [weight.gradient for weight in weights])


def matrices(weights: Sequence[Weight], tensors: Sequence[torch.Tensor]) -> Matrices:
    """Tensors with the shape of the weights, as k×M: a stack in the dtype of products, or views."""
    first = weights[0]
    if not first.stacked:
        return [weight.oriented(X) for weight, X in zip(weights, tensors, strict=True)]
    stack = stack_of(tensors, first.dtype).flatten(2)
    return stack if first.left else stack.mT


def coordinates(Q: Matrices, X: Matrices) -> torch.Tensor:
    """``QᵀX``, n×r×M."""
    if isinstance(Q, torch.Tensor) and isinstance(X, torch.Tensor):
        return Q.mT @ X
    R = Q[0].new_empty(len(X), Q[0].shape[1], X[0].shape[1])
    for basis, matrix, out in zip(Q, X, R, strict=True):
        _coordinates(basis, matrix, out)
    return R


def column_squares(X: Matrices, dtype: torch.dtype) -> torch.Tensor:
    """Sums of the squares of the columns of matrices, computed in `dtype`."""
    if isinstance(X, list):
        return torch.stack([column_squares(matrix, dtype) for matrix in X])
    compiling, by_columns = torch.compiler.is_compiling(), X.stride(-2) == 1
    if not (compiling or (X.is_cpu and not (by_columns and X.dtype == dtype))):
        return torch.linalg.vector_norm(X, dim=-2, dtype=dtype).square()
    if compiling or X.numel() <= CACHED:
        return X.to(dtype).square().sum(-2)
    # torch's own norm across the rows takes ten times as long on a CPU, or copies all numbers
    squares = X.new_zeros((*X.shape[:-2], X.shape[-1]), dtype=dtype)
    for rows, columns in _pieces(X, PIECES if by_columns else max(PIECES, X.numel() // CACHED)):
        squares[..., columns].add_(X[..., rows, columns].to(dtype).square().sum(-2))
    return squares


def _column_norms(X: torch.Tensor) -> torch.Tensor:
    if X.device.type == "cpu" or torch.compiler.is_compiling():
        return column_squares(X, X.dtype).sqrt()
    return torch.linalg.vector_norm(X, dim=-2)


def row_squares(X: Matrices, dtype: torch.dtype) -> torch.Tensor:
    """Sums of the squares of the rows of matrices, computed in `dtype`."""
    turned = X.mT if isinstance(X, torch.Tensor) else [matrix.mT for matrix in X]
    return column_squares(turned, dtype)


def weighted_column_squares(G: Matrices, a: torch.Tensor) -> torch.Tensor:
    """Sums of the squares of the columns of ``diag(a) G``; a stack G is overwritten with it."""
    if isinstance(G, torch.Tensor):
        return column_squares(G.mul_(a.unsqueeze(-1)), a.dtype)
    return of_stacks(_weighted_column_squares, G, a)


# -- one matrix, in pieces -------------------------------------------------------------------------


def slices(length: int, X: torch.Tensor, count: int = PIECES) -> list[slice]:
    count = count if X.is_cpu else min(count, -(-X.numel() // PIECE_ON_A_GPU))
    width = max(1, -(-length // max(1, count)))
    return [slice(start, start + width) for start in range(0, max(1, length), width)]


def _pieces(X: torch.Tensor, count: int = PIECES) -> list[tuple[slice, slice]]:
    """Pieces of a matrix, as slices of rows and columns, each contiguous in memory if possible."""
    everything = slice(None)
    if count == 1:
        return [(everything, everything)]
    if X.stride(-2) >= X.stride(-1):
        return [(rows, everything) for rows in slices(X.shape[-2], X, count)]
    return [(everything, columns) for columns in slices(X.shape[-1], X, count)]


def _coordinates(Q: torch.Tensor, X: torch.Tensor, out: torch.Tensor) -> None:
    """``QᵀX`` (r×M), written to `out`."""
    if X.dtype == Q.dtype:
        M = X.shape[1]
        width = COLUMNS if X.is_cpu else max(1, M)
        for part in [slice(start, start + width) for start in range(0, M, width)]:
            torch.mm(Q.mT, X[:, part], out=out[:, part])
        return
    out.zero_()
    for rows, columns in _pieces(X):
        out[:, columns].addmm_(Q[rows].mT, X[rows, columns].to(Q.dtype))


def product(X: torch.Tensor, Omega: torch.Tensor) -> torch.Tensor:
    """``X Ω`` (k×l) of one matrix, or of a stack in the dtype of Ω."""
    if len(pieces := _pieces(X, 1 if X.dtype == Omega.dtype else PIECES)) == 1:
        return X.to(Omega.dtype) @ Omega
    Y = Omega.new_zeros(X.shape[0], Omega.shape[1])
    for rows, columns in pieces:
        Y[rows].addmm_(X[rows, columns].to(Omega.dtype), Omega[columns])
    return Y


def _weighted_column_squares(G: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    if G.numel() <= CACHED:
        return (G * a[:, None]).square_().sum(0)
    squares = a.new_zeros(G.shape[1])
    for rows, columns in _pieces(G):
        squares[columns].add_((G[rows, columns] * a[rows, None]).square_().sum(0))
    return squares


# -- the change of the weights ---------------------------------------------------------------------


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
    gradients were R (downhill, or uphill if `sign` is −1), and `squares` (b×M) are those of the
    columns of the whole gradients G. If columns are sharded, `total` sums over the processes. A
    column of ``G − QR`` is scaled like its coordinates, by ``s = ‖change‖/(lr ‖R‖)``. All columns
    are scaled down further if the norm of ``(G − QR) diag(s)`` would exceed 1.01 times the norm
    `before` (b), unless that is zero. (X. Chen et al., Fira: can we achieve
    full-rank training of LLMs under low-rank constraint?, 2024, arXiv:2410.01623, Algorithm 1.)

    The factor s has no bound if R is small compared to the column of G; a step could then be larger
    than the weight. So s is limited: in the root mean square, the k − r numbers outside of a column
    change at most three times as much as the r numbers inside.

    The norms of the columns of G − QR are computed as ``√(‖G‖² − ‖R‖²)``, so that this matrix is
    never formed. If the difference cancels, its square root is below √eps ‖G‖.
    """
    r = R.shape[-2]
    inside = column_squares(R, R.dtype)
    outside = (squares - inside).clamp_(min=0)
    least = outside * (r / (LARGEST_RATIO**2 * (k - r)))
    # lr s; zero if G and R are zero, where there is nothing to scale
    s = _column_norms(change) / torch.maximum(inside, least).sqrt()
    s = s.nan_to_num(nan=0.0, posinf=0.0)
    size = torch.linalg.vector_norm(s * outside.sqrt(), dim=-1)
    if total is not None:
        size = total(size.square()).sqrt()
    size = (size / lr).nan_to_num(nan=0.0)  # a rate of zero changes nothing
    limit = torch.where(before > 0, LARGEST_GROWTH * before, torch.inf)
    factor = (limit / size).clamp(max=1.0)  # one if the size is zero
    if scale != 1.0:
        change.mul_(scale)
    signed = factor if sign * scale == 1.0 else factor * (sign * scale)
    t = s * signed.unsqueeze(-1)
    return change.addcmul_(R, t.unsqueeze(-2)), t, size * factor


def add_to_weights(
    weights: Sequence[Weight],
    Q: Matrices | None,
    X: torch.Tensor | None,
    G: Matrices,
    *,
    t: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    states: Sequence[dict[str, Any]],
) -> None:
    """``W ← (1 − lr · weight_decay) W + Q X − diag(rows) G diag(t)``, rounded once, as `rounding`.

    A stack G must already be ``diag(rows) G``. Without Q and X, ``diag(t)`` is one. With
    compensated rounding, the rounding error is stored as `compensation` in the state, in the
    weight's dtype, and is added in the next step. (N. J. Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd ed. 2002, doi:10.1137/1.9780898718027, Section 4.3.)
    """
    first, group = weights[0], weights[0].group
    lr, decay = group.get("lr"), group.get("weight_decay")
    if decay and lr is None:  # an optimizer that chooses its rate itself
        raise ValueError("`lr` must be a number if `weight_decay` is not zero, got None.")
    kept = 1.0 - lr * decay if decay else 1.0
    kind, rounding = first.parameter.dtype, first.rounding
    for weight, state in zip(weights, states, strict=True):
        if rounding != "compensated":
            state.pop("compensation", None)
        elif "compensation" not in state:  # stored by rows
            state["compensation"] = weight.data.new_zeros(weight.data.shape)
    lost: list[Any] = [state.get("compensation") for state in states]
    random = rounding == "stochastic"
    noise = [_noise(*pair) for pair in zip(weights, states, strict=True) if random]

    def change(w: torch.Tensor, i: int, Q: Any, X: Any, G: Any, t: Any) -> None:
        apart = X is None or isinstance(kept, torch.Tensor)
        if apart:
            w.mul_(kept)
        if X is None:
            w.sub_(G)
        else:
            add = w.addmm_ if w.ndim == 2 else w.baddbmm_
            add(Q, X, beta=1.0 if apart else kept)
        if t is not None:
            w.addcmul_(G, t.unsqueeze(-2), value=-1.0)
        if random:
            _round_to_neighbors(w, kind, noise[i])

    if isinstance(G, torch.Tensor):
        data = [weight.data for weight in weights]
        whole = stack_of(data, first.dtype)
        if lost[0] is not None:
            whole += stack_of(lost)
        flat = whole.flatten(2)
        change(flat if first.left else flat.mT, 0, Q, X, G, t)
        torch._foreach_copy_(data, list(whole.unbind()))
        if lost[0] is not None:
            torch._foreach_copy_(lost, list((whole - stack_of(data)).unbind()))
        return
    assert Q is not None
    assert X is not None
    for i, weight in enumerate(weights):
        flat = weight.data.flatten(1)
        W = flat if weight.left else flat.mT
        C = None if lost[i] is None else weight.oriented(lost[i])
        cut = kind != first.dtype or (rows is not None and W.numel() > CACHED)
        for part in _pieces(W, PIECES if cut else 1):
            here, columns = part
            w = W[part].to(first.dtype)  # the weight itself, if it has that dtype
            if C is not None:
                w += C[part]
            g = None
            if t is not None:
                g = G[i][part].to(w.dtype) if rows is None else G[i][part] * rows[i][here, None]
            change(w, i, Q[i][here], X[i][:, columns], g, None if t is None else t[i][columns])
            if w.dtype != kind:
                W[part] = w
            if C is not None:
                C[part] = w - W[part]
        if flat.untyped_storage().data_ptr() != weight.data.untyped_storage().data_ptr():
            weight.data.copy_(flat.view_as(weight.data))


def _noise(weight: Weight, state: dict[str, Any]) -> torch.Generator:
    """A generator seeded by the seed, the step, the index of a weight, and its shard."""
    step = state.get("updates", state.get("step", 0))
    numbers = weight.policy.seed, int(step), weight.index, weight.blocks.position
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest()
    return torch.Generator(weight.parameter.device).manual_seed(int.from_bytes(digest, "little"))


def _round_to_neighbors(w: torch.Tensor, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Round w to a neighbor among the numbers of `dtype`, with the mean w.

    The upper one is taken with the distance to the lower one as its probability, in units in the
    last place (M. P. Connolly, N. J. Higham and T. Mary, Stochastic rounding and its probabilistic
    backward error analysis, 2021, doi:10.1137/20M1334796, mode 1).
    """
    info = torch.finfo(dtype)
    # eps is 2^(1 − p), and w lies between 2^(e − 1) and 2^e: the unit is 2^(e − p)
    unit = torch.ldexp(torch.ones_like(w), torch.frexp(w).exponent) * (info.eps / 2)
    unit.clamp_(min=info.smallest_normal * info.eps)
    below = (w / unit).floor_()
    uniform = torch.rand(w.shape, dtype=w.dtype, device=w.device, generator=generator)
    w.copy_((below + (uniform < w / unit - below)).mul_(unit))


def are_finite(parameters: list[torch.Tensor]) -> bool:
    """Whether the sum of the squares of all gradients is finite; reads one number."""
    grads = [_values(local(p.grad)) for p in parameters if p.grad is not None]
    sizes = []
    for same in grouped_by(grads, lambda grad: (type(grad), grad.device, grad.dtype)):
        dtype = same[0].dtype
        # the range of bfloat16 is that of float32, and a norm in its own dtype needs no copy
        wide = torch.float32 if dtype == torch.float16 else None
        norms = torch.stack(torch._foreach_norm(same, 2.0, wide))
        sizes.append(norms.double() / (torch.finfo(wide or dtype).max ** 0.5 / 16))
    if not sizes:  # no gradients on this process; other processes may have some
        sizes.append(torch.zeros(1, device=parameters[0].device if parameters else None))
    together = torch.cat([size.to(sizes[0].device) for size in sizes]) if sizes[1:] else sizes[0]
    return bool(true_on_all((together < 1).all(), parameters))


def _values(grad: torch.Tensor) -> torch.Tensor:
    return grad.coalesce().values() if grad.layout is torch.sparse_coo else grad
