"""A model of the time of a call on a GPU: what the host launches against what the device computes.

Between two reads of a number the host and the device work at the same time. So a call takes

    call + Σ over its reads (read + max(host, device)),

where the host's time is that of the operations it launches, and the device's the sum of kernels,
flops, bytes, and of columns where cuSOLVER goes column by column. `counted` runs a call on torch
and notes how much of each it asks for, `predicted` is the sum with the `CONSTANTS`, and `refit`
finds the constants that are nearest to measured times. No model of caches, streams, sparse products
or stacks of factorizations. None stands for calls with a routine that it has no constants for, such
as an SVD of an order above 1,024.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Row = dict[str, Any]
# Seconds, on an H200 with torch 2.11. Those without a source were fitted to 66 rows of FITTED_TO
# (61 of them within 30 %), or are those of a kernel that was timed alone there.
FITTED_TO = "gpu-nvidia-h200-2026-11-27.json"
CONSTANTS = {
    # of the whole call
    "call, array API": 1.09e-3,
    "call, torch": 0.1e-3,
    "read": 60e-6,
    # of the host
    "operation, array API": 36e-6,
    "operation, torch": 10e-6,
    "qr, launch of a column": 6.4e-6,
    # of the device
    "kernel": 3e-6,
    "byte": 1 / 3.6e12,  # of 4.8e12 by NVIDIA's data sheet
    "flop, 16": 1 / 600e12,  # of 990e12
    "flop, 32": 1 / 53e12,  # of 67e12, without TF32
    "flop, 64": 1 / 50e12,  # of 67e12, by tensor cores; not measured
    "flop of a triangular solve": 1 / 9.7e12,
    "triangular solve, column": 15e-6 / 128,
    "qr, column": 4.6e-6,
    "qr, entry": 0.61e-9,
    "cholesky": 20e-6,
    "cholesky, column": 0.38e-6,
    "lu": 0.7e-3,
    "lu, column": 1.2e-6,
    "gesvdj, column": 6.6e-6,
    "gesvdj, entry": 0.031e-6,
    # 0.64, 0.91 and 1.67 ms at orders 128, 256 and 512: issue 31368 of jax-ml/jax, in float64
    "eigh": 0.44e-3,
    "eigh, column": 1.25e-6,
    "eigh, entry": 2.2e-9,
}
NAMES = tuple(CONSTANTS)
ALWAYS, HOST = NAMES[:3], NAMES[3:6]
SEGMENTS = 6  # between reads; where there are more, neighbors are taken together

# Operations that launch nothing, beside views, and those that wait for the device.
FREE = {"_reshape_alias", "_unsafe_view", "empty", "empty_like", "empty_strided", "lift_fresh"}
FREE |= {"new_empty", "new_empty_strided", "resize_", "set_"}
READS = {"_linalg_check_errors", "_local_scalar_dense", "equal", "masked_select", "nonzero"}
WAITING = {"_linalg_eigh", "_linalg_svd"}
PRODUCTS = {"addbmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "bmm", "mm"}
LU = {"linalg_inv_ex", "linalg_lu_factor_ex", "_linalg_solve_ex"}
QR = {"linalg_qr": 1.0, "geqrf": 0.5, "linalg_householder_product": 0.5}
UNKNOWN = {"linalg_eig", "_linalg_eigvals", "linalg_lu", "ormqr"}


def costlier(*asked: Row) -> Row:
    """What takes longer, where the device does two things at the same time."""
    return max(asked, key=lambda of: sum(CONSTANTS[name] * count for name, count in of.items()))


def of_qr(*shape: int, share: float = 1.0) -> Row:
    long, columns = max(shape[-2:]), math.prod(shape[:-2]) * min(shape[-2:]) * share
    launched = {"qr, launch of a column": columns, "qr, column": columns}
    return {**launched, "qr, entry": long * columns}


def work_of(name: str, given: list[Any], made: list[Any], driver: str | None) -> Row | None:
    """What one operation asks of the device."""
    size = sum(X.numel() * X.element_size() for X in (*given, *made))
    shape = tuple(given[0].shape) if given else ()
    order = min(shape[-2:], default=0)
    complexity = 4 if given and given[0].is_complex() else 1
    if name in PRODUCTS:
        X, Y = given[-2:]
        bits = 8 * X.element_size() // (2 if X.is_complex() else 1)
        # tiles of 128×128 on 132 processors; a long inner dimension is split
        tiles = made[0].numel() / 128**2 * max(1.0, X.shape[-1] / 512)
        flops = 2 * complexity * X.numel() * Y.shape[-1] / min(1.0, max(tiles, 4.0) / 132)
        return {"kernel": 1, **costlier({f"flop, {bits}": flops}, {"byte": size})}
    if name in QR:
        return of_qr(*shape, share=QR[name])
    if name == "linalg_cholesky_ex":
        return {"cholesky": 1, "cholesky, column": order}
    if name == "linalg_solve_triangular":
        flops = {"flop of a triangular solve": complexity * order * given[1].numel()}
        return {"kernel": 1, **costlier(flops, {"triangular solve, column": order})}
    if name in LU:
        return {"lu": 1, "lu, column": order}
    if name == "_linalg_svd":
        if driver not in (None, "gesvdj") or order > 1024:
            return None
        stack = math.prod(shape[:-2])
        found = {"gesvdj, column": stack * order, "gesvdj, entry": stack * order**2}
        return found | (of_qr(*shape) if max(shape[-2:]) >= 2 * order else {})
    if name == "_linalg_eigh":
        return {"eigh": 1, "eigh, column": order, "eigh, entry": order**2}
    return None if name in UNKNOWN else {"kernel": 1, "byte": size}


class _Counter(TorchDispatchMode):
    def __init__(self, through: str) -> None:
        super().__init__()
        self.through, self.operations, self.reads, self.is_known = through, 0, 0, True
        self.segments: list[Counter[str]] = [Counter()]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        given, out = ([X for X in tree_leaves(of) if torch.is_tensor(X)] for of in (args, made))
        is_read = name in READS and (not given[0].is_cpu or not torch.cuda.is_available())
        is_read |= bool(given and out) and out[0].is_cpu and not given[-1].is_cpu
        is_free = name in READS or name in FREE or func.is_view
        if not is_free and any(X.numel() for X in out or given):
            asked = work_of(name, given, out, (kwargs or {}).get("driver"))
            self.is_known &= asked is not None
            self.operations += 1
            self.segments[-1].update({f"operation, {self.through}": 1, **(asked or {})})
        if is_read or name in WAITING:
            self.reads += is_read
            self.segments[-1]["read"] += 1
            self.segments.append(Counter())
        return made


def counted(call: Callable[[], Any], through: str = "array API") -> Row:
    """Run a call on torch; its operations, its reads, and its work between them (None: unknown)."""
    with _Counter(through) as counter:
        call()
    segments = [segment for segment in counter.segments if segment]
    while len(segments) > SEGMENTS:
        pairs = range(0, len(segments), 2)
        segments = [sum(segments[at : at + 2], Counter()) for at in pairs]
    work = [{f"call, {through}": 1}, *({**segment} for segment in segments)]
    found = {"operations": counter.operations, "host_reads": counter.reads}
    return found | {
        "work": work if counter.is_known and counter.operations + counter.reads else None
    }


def _costs(works: list[list[Row]], seconds: Any) -> tuple[Any, Any]:
    """Times, and what part of each is due to each constant."""
    counts = np.zeros((len(works), max(map(len, works)), len(NAMES)))
    for row, work in enumerate(works):
        for place, segment in enumerate(work):
            for name, count in segment.items():
                counts[row, place, NAMES.index(name)] = count
    costs = counts * seconds
    a, h = len(ALWAYS), len(ALWAYS) + len(HOST)
    is_host = costs[..., a:h].sum(-1) >= costs[..., h:].sum(-1)
    costs[..., a:h] *= is_host[..., None]
    costs[..., h:] *= ~is_host[..., None]
    by_constant = costs.sum(1)
    times = by_constant.sum(-1)
    return times, by_constant / times[:, None]


def predicted(work: list[Row] | None, constants: Mapping[str, float] = CONSTANTS) -> float | None:
    if work is None:
        return None
    return float(_costs([work], np.array([constants[name] for name in NAMES]))[0][0])


def refit(rows: Iterable[Row], start: Mapping[str, float] = CONSTANTS) -> Row | None:
    """Constants that are nearest to the measured rows: least squares of the log of the ratio.

    By Levenberg and Marquardt's method in the logarithms of the constants, with Cauchy's weights,
    by which rows that are off by much more than 30 % hardly count. Constants that no row depends on
    stay where they are: all are drawn there by a hundredth of what a row weighs.
    """
    known = [row for row in rows if row.get("work") and row["seconds"]]
    if len(known) < 2:
        return None
    works, measured = [row["work"] for row in known], np.array([row["seconds"] for row in known])
    first = np.log([start[name] for name in NAMES])
    prior, bend = 0.01, math.log(1.3)

    def loss(x: Any) -> tuple[float, Any, Any]:
        times, J = _costs(works, np.exp(x))
        r = np.log(times / measured)
        far = bend**2 * np.log1p((r / bend) ** 2)
        return float(far.sum() + prior * ((x - first) ** 2).sum()), r, J

    x, damping = first, 1.0
    best, r, J = loss(x)
    for _ in range(200):
        weights = 1.0 / (1.0 + (r / bend) ** 2)
        H = (J.T * weights) @ J + (prior + damping) * np.eye(len(NAMES))
        step = np.linalg.solve(H, -(J.T @ (weights * r)) - prior * (x - first))
        found = loss(x + step)
        if found[0] < best:
            x, (best, r, J), damping = x + step, found, damping / 3.0
        else:
            damping *= 4.0
        if damping > 1e8:
            break

    def near(r: Any) -> int:
        return int(np.sum(np.abs(r) < math.log(1.3)))

    return {
        "constants": dict(zip(NAMES, np.exp(x).tolist(), strict=True)),
        "rows": len(known),
        "within_30_percent": near(r),
        "within_30_percent_before": near(loss(first)[1]),
    }
