"""What each rank does in the tests of sharded matrices."""

import contextlib
import os
import warnings
from collections import Counter

import numpy as np
import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import lowrank
from lowrank import gallery


def matrix(spectrum, shape, dtype, seed=0):
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    return gallery.matrix(spectrum, shape, dtype=wide, rng=seed).astype(dtype)


def mesh_of_all():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(A, axis, heights=None, mesh=None):
    """A as a DTensor, in torch's own parts, or in parts of these lengths."""
    mesh = mesh_of_all() if mesh is None else mesh
    T = torch.asarray(A)
    if heights is None:
        return distribute_tensor(T, mesh, [Shard(axis)])
    start = sum(heights[: dist.get_rank()])
    local = T.narrow(axis, start, heights[dist.get_rank()]).contiguous()
    shape = torch.Size(A.shape)
    return DTensor.from_local(
        local, mesh, [Shard(axis)], run_check=False, shape=shape, stride=(shape[1], 1)
    )


def whole(X, heights=None):
    """The whole of a DTensor in NumPy, and its placements."""
    if heights is None or not X.placements[0].is_shard():
        return X.full_tensor().numpy()
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, X.to_local().numpy())
    return np.concatenate(parts, axis=X.placements[0].dim)


def norm(X, kind):
    return float(np.linalg.norm(X, 2 if kind == "spectral" else None))


def told(found):
    """What all ranks have to agree on."""
    return (
        found.status.name, found.converged, found.rank, found.passes, found.products,
        found.error, found.error_bound, found.norm_A, found.history,
    )  # fmt: skip


def factorizations(shape, axis, dtype, heights=None, spectrum="fast"):
    """All functions and stop rules on one matrix: certificates, shapes, placements, signs."""
    A = matrix(gallery.SPECTRA[spectrum](min(shape)), shape, dtype)
    D = sharded(A, axis, heights)
    wide = A.astype(np.complex128)
    eps, outcomes = float(np.finfo(dtype).eps), []
    single = "float64" not in str(np.dtype(dtype)) and "complex128" not in str(np.dtype(dtype))
    rules = [
        {"rank": 7},
        {"rank": 7, "krylov": True},
        {"rtol": 1e-2},
        {"rtol": 1e-2, "norm": "spectral"},
        {"rtol": 1e-2, "krylov": True},
        {"rtol": 1e-2, "krylov": True, "norm": "spectral"},
        {"rank": 7, "check": True},
        {"rtol": 1e-3 if single else 1e-9},
        {"rtol": 1e-3, "rank": 5},
    ]
    along, across = [Shard(axis)], [Replicate()]
    left, right = (along, across) if axis == 0 else (across, along)
    for rule in rules:
        kind = rule.get("norm", "fro")
        for function in (lowrank.svd, lowrank.qb, lowrank.range_finder):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
                found = function(D, rng=3, failure_probability=1e-15, **rule)
            if function is lowrank.svd:
                U, S, Vh = (whole(X, heights) for X in found)
                product = (U * S) @ Vh
                placed = [list(X.placements) for X in found] == [left, across, right]
                largest = np.take_along_axis(Vh, np.argmax(np.abs(Vh), axis=1)[:, None], axis=1)
                assert np.all(largest.real > 0)
                assert np.all(np.abs(largest.imag) <= 10 * eps)
                bases = U, Vh.conj().T
            elif function is lowrank.qb:
                Q, B = (whole(X, heights) for X in found)
                product, bases = Q @ B, (Q,)
                placed = [list(X.placements) for X in found] == [left, right]
            else:
                Q = whole(found.Q, heights).astype(np.complex128)
                product, bases = Q @ (Q.conj().T @ wide), (Q,)
                placed = list(found.Q.placements) == left
            assert placed
            assert product.shape == A.shape
            for Q in bases:
                assert Q.shape[1] == found.rank
                assert norm(Q.conj().T @ Q - np.eye(found.rank), "fro") <= 200 * eps * 10
            error = norm(wide - product, kind)
            if found.converged is None:
                best = gallery.best_error(gallery.SPECTRA[spectrum](min(shape)), found.rank)
                assert error <= (1.01 if function is lowrank.svd else 20) * best + 1e3 * eps
            else:
                assert error <= found.error_bound
                assert found.converged == (found.error_bound <= found.tolerance)
                assert found.converged or "rank" in rule
            outcomes.append(told(found))
    # the corange, and the error of a basis of one's own
    corange = lowrank.range_finder(D, 6, side="right", rng=1)
    P = whole(corange.Q, heights).astype(np.complex128)
    assert list(corange.Q.placements) == (across if axis == 0 else [Shard(0)])
    assert norm(wide - wide @ P @ P.conj().T, "fro") <= 1.05 * norm(
        wide - wide @ np.linalg.qr(P)[0] @ np.linalg.qr(P)[0].conj().T, "fro"
    )
    for kind in ("fro", "spectral"):
        for factors in ((found.Q,), tuple(lowrank.qb(D, 5, rng=0))):
            estimate = lowrank.residual_norm(D, *factors, norm=kind, rng=7)
            Q, *B = (whole(X, heights).astype(np.complex128) for X in factors)
            left_over = wide - Q @ (B[0] if B else Q.conj().T @ wide)
            true = norm(left_over, kind)
            assert true <= estimate.upper_bound
            assert estimate.value <= 3 * true + 1e3 * eps
            outcomes.append((estimate.value, estimate.upper_bound))
    return outcomes


def qr(shape, dtype, heights=None, rank=None):
    A = np.random.default_rng(0).standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        A = A + 1j * np.random.default_rng(1).standard_normal(shape)
    if rank is not None:
        A = A[:, :rank] @ np.ones((rank, shape[1]))
    A = A.astype(dtype)
    Q, R = lowrank.qr(sharded(A, 0, heights))
    assert list(Q.placements) == [Shard(0)]
    assert list(R.placements) == [Replicate()]
    Q, R = (whole(X, heights).astype(np.complex128) for X in (Q, R))
    eps = float(np.finfo(dtype).eps)
    assert Q.shape == shape
    assert norm(Q.conj().T @ Q - np.eye(shape[1]), "fro") <= 100 * eps * shape[1] ** 0.5
    assert norm(A - Q @ R, "fro") <= 100 * eps * max(norm(A, "fro"), 1.0)
    assert np.all(np.tril(R, -1) == 0)
    return R.tolist()


@contextlib.contextmanager
def counted():
    """Numbers that this rank gives to each kind of collective."""
    counts, calls = Counter(), Counter()
    names = ("all_reduce", "all_gather", "broadcast")
    before = {name: getattr(dist, name) for name in names}

    def counting(name):
        def call(*args, **options):
            X = args[1] if name == "all_gather" else args[0]
            counts[name] += X.numel()
            calls[name] += 1
            return before[name](*args, **options)

        return call

    try:
        for name in names:
            setattr(dist, name, counting(name))
        yield counts, calls
    finally:
        for name in names:
            setattr(dist, name, before[name])


def communication(m, n, rule):
    """What is communicated, and the largest array that a rank makes along the long side."""
    s = gallery.slow(min(m, n))
    D = sharded(matrix(s, (m, n), "float64"), 0)
    with counted() as (counts, calls):
        found = lowrank.svd(D, rng=0, **rule)
    return dict(counts), dict(calls), found.rank, found.passes, found.products, len(found.history)


def bad_on_one_rank(value, rule):
    """NaN or Inf on the last rank alone: the error on each."""
    A = matrix(gallery.slow(30), (60, 30), "float64")
    A[-1, 3] = value
    messages = []
    for axis in (0, 1):
        for function in (lowrank.svd, lowrank.range_finder, lowrank.qb):
            try:
                function(sharded(A if axis == 0 else A.T.copy(), axis), rng=0, **rule)
            except ValueError as error:
                messages.append(str(error))
    return messages


def stopped(rank):
    """The status and the looks where the callback of one rank wants to stop at the second look."""
    A = sharded(matrix(gallery.slow(300), (400, 300), "float64"), 0)
    looks = []

    def stop(look):
        looks.append(look.rank)
        if len(looks) == 2:
            raise StopIteration

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
        callback = stop if dist.get_rank() == rank else None
        found = lowrank.range_finder(A, rtol=1e-12, rank=290, callback=callback, rng=0)
    return found.status.name, len(found.history)


def refusals():
    """Messages of what is refused, each raised on every rank."""
    mesh = mesh_of_all()
    A = torch.asarray(matrix(gallery.slow(20), (40, 20), "float64"))
    D, by_columns = (distribute_tensor(A, mesh, [Shard(axis)]) for axis in (0, 1))
    square = distribute_tensor(A.T @ A, mesh, [Shard(0)])
    partial = DTensor.from_local(A, mesh, [Partial()], run_check=False)
    stack = distribute_tensor(torch.stack([A, A]), mesh, [Shard(0)])
    Q = lowrank.range_finder(D, 3, rng=0).Q
    count = dist.get_world_size()
    uneven = sharded(A[:, :3], 0, [40 // count + (-1, 1)[i % 2] for i in range(count)], mesh)
    calls = {
        "partial": lambda: lowrank.svd(partial, 3),
        "stack": lambda: lowrank.svd(stack, 3),
        "test matrix": lambda: lowrank.svd(D, 3, test_matrix=A.T),
        "center": lambda: lowrank.svd(D, 3, center=True),
        "qr of columns": lambda: lowrank.qr(by_columns),
        "complete": lambda: lowrank.qr(D, mode="complete"),
        "Q is no DTensor": lambda: lowrank.residual_norm(D, A[:, :3]),
        "Q elsewhere": lambda: lowrank.residual_norm(by_columns, Q),
        "Q in other parts": lambda: lowrank.residual_norm(D, uneven),
        "B replicated": lambda: lowrank.residual_norm(D, Q, D),
        "object": lambda: lowrank.RangeFinder(D),
        "eigh": lambda: lowrank.eigh(square, 3),
        "interpolative": lambda: lowrank.interpolative(D, 3),
        "nystrom": lambda: lowrank.nystrom(square, 3),
        "integers": lambda: lowrank.svd(distribute_tensor(A.int(), mesh, [Shard(0)]), 3),
    }
    raised = {}
    for name, call in calls.items():
        try:
            call()
        except (TypeError, ValueError) as error:
            raised[name] = f"{type(error).__name__}: {error}"
    return raised


def seeds():
    """One result for all ranks, whatever seed each has; with the same integer the same again."""
    D = sharded(matrix(gallery.slow(40), (50, 40), "float64"), 0)
    rank = dist.get_rank()
    seeds = None, rank, np.random.default_rng(rank), torch.Generator().manual_seed(rank)
    found = [lowrank.svd(D, 5, power_iterations=0, rng=seed) for seed in seeds]
    results = [whole(result.S).tolist() for result in found]
    again = [lowrank.svd(D, 5, rng=4).S.full_tensor().tolist() for _ in range(2)]
    assert again[0] == again[1]
    return results


def opposite_parts():
    """Parts that cancel where test matrices of two ranks are the same."""
    part = matrix(gallery.slow(30), (40, 30), "float64")
    signs = [1, -1] * (dist.get_world_size() // 2)
    A = np.vstack([sign * part for sign in signs])
    found = lowrank.svd(sharded(A, 0), rtol=1e-2, rng=0)
    U, S, Vh = (whole(X) for X in found)
    assert norm(A - (U * S) @ Vh, "fro") <= 1e-2 * norm(A, "fro")
    estimate = lowrank.residual_norm(sharded(A, 0), lowrank.qb(sharded(A, 0), 0).Q, rng=0)
    assert estimate.upper_bound >= norm(A, "fro")
    return told(found)


def replicated():
    A = matrix(gallery.fast(30), (50, 30), "float32")
    D = distribute_tensor(torch.asarray(A), mesh_of_all(), [Replicate()])
    found = lowrank.svd(D, rtol=1e-2, rng=None)
    assert all(list(X.placements) == [Replicate()] for X in found)
    U, S, Vh = (whole(X) for X in found)
    assert norm(A - (U * S) @ Vh, "fro") <= 1e-2 * norm(A, "fro")
    Q, R = lowrank.qr(D)
    assert norm(A - whole(Q) @ whole(R), "fro") <= 1e-4
    return told(found)


def killed():
    """The last rank ends without a word, after its first look."""
    D = sharded(matrix(gallery.slow(200), (300, 200), "float64"), 0)

    def callback(look):
        if dist.get_rank() == dist.get_world_size() - 1:
            os._exit(9)

    lowrank.svd(D, rtol=1e-9, rng=0, callback=callback)


def half(name):
    A = torch.asarray(matrix(gallery.fast(30), (50, 30), "float32")).to(getattr(torch, name))
    found = lowrank.svd(distribute_tensor(A, mesh_of_all(), [Shard(0)]), rtol=1e-2, rng=0)
    assert found.U.dtype == torch.float32
    U, S, Vh = (whole(X) for X in found)
    A = A.float().numpy()
    assert norm(A - (U * S) @ Vh, "fro") <= 1e-2 * norm(A, "fro")
    return told(found)


def two_dimensions():
    """A mesh of replicas of shards; and shards of shards, which are refused."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    A = matrix(gallery.fast(30), (51, 30), "float64")
    outcomes = []
    for axis in (0, 1):
        D = distribute_tensor(torch.asarray(A), mesh, [Replicate(), Shard(axis)])
        found = lowrank.svd(D, rtol=1e-2)
        U, S, Vh = (X.full_tensor().numpy() for X in found)
        assert norm(A - (U * S) @ Vh, "fro") <= 1e-2 * norm(A, "fro")
        outcomes.append(told(found))
    D = distribute_tensor(torch.asarray(A), mesh, [Shard(0), Shard(1)])
    try:
        lowrank.svd(D, 3)
    except ValueError as error:
        outcomes.append(str(error))
    return outcomes
