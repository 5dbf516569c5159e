"""Tests and times lowrank on a CUDA device, against the bare products and other libraries.

    python benchmarks/gpu.py --out benchmarks/results/gpu-NAME-DATE.json [--minutes 9]

Needs PyTorch and array-api-compat; CuPy, SciPy, scikit-learn, pytest and hypothesis are used where
they are installed. lowrank itself need not be: the checkout is used. The file is rewritten after
every row; rows that no longer fit into the time are recorded as skipped. A trial of the same code
without a GPU takes a minute:

    python benchmarks/gpu.py --out trial.json --device cpu --sizes small

Sections of the rows, in the order of their measurement:

- "matrix": range finders and low-rank factorizations of one matrix at rank `k`. "flat" is Gaussian;
  "fast" has singular values that fall from 1 to 1e-4 over 2k of them, and noise of 1e-5.
- "capture": the range finder replayed from a CUDA graph; `ratio` is to the eager call, `error` the
  relative difference from its result.
- "panel": ways to make the columns of a sketch orthonormal; `ratio` is to torch.linalg.qr, and
  `error` is ‖P − QR‖/‖P‖. The sketch "fast" has singular values that fall from 1 to 1e-10.
- "full svd": against torch.linalg.svd, `ratio` as for "matrix".
- "cupy": as "matrix", with CuPy's arrays and its own bare products.
- "compile": as "capture", by torch.compile(fullgraph=True).
- "step", "training", "refresh", "counts": of benchmarks/optimizer.py, in bfloat16.

Seconds are medians of interleaved repeats by `time.perf_counter` between synchronisations of the
device. In "matrix", `ratio` is to the time of as many bare products as the method takes: A@Omega
with the draw of Omega, and for each further product of k columns the difference between "A@Omega,
then AᴴQ" and it. `products` is their number; a factorization of the whole has the ratio to one.
Products of bfloat16 matrices are in float32, the cast included, unless the method says otherwise.
`error` is ‖A − QQᴴA‖/‖A‖ for a basis and the residual for a factorization, in the Frobenius norm
and computed in float64 (float32 above 2^27 entries), `orthogonality` is ‖QᴴQ − I‖_F in float64.
`rank` is that of the result. `peak_bytes` is what the call allocated beyond what was there, its
result included; `kernels` are counted by torch's profiler after all times have been taken.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import measuring
import optimizer
import torch
from measuring import ROOT, SOURCE, Budget, Results, interleaved, told

import lowrank
from lowrank import _panel
from lowrank.rangefinder import subspace_iteration

Shape = tuple[int, int]
# Shapes with their ranks, those of the goals first.
SIZES: dict[str, tuple[tuple[Shape, int], ...]] = {
    "full": (
        ((8192, 8192), 512),
        ((32768, 32768), 512),
        ((4096, 11008), 256),
        ((2048, 2048), 128),
        ((4096, 11008), 128),
        ((4096, 11008), 1024),
    ),
    "small": (((512, 512), 32), ((1024, 704), 64)),
}
PANELS: dict[str, tuple[Shape, ...]] = {
    "full": ((4096, 256), (8192, 128), (8192, 256), (8192, 512), (32768, 512)),
    "small": ((512, 64), (1024, 32)),
}
# A shape that is measured in full, and one that is measured once, if time is left for it.
FULL_SVDS: dict[str, tuple[tuple[Shape, int], tuple[Shape, int]]] = {
    "full": (((2048, 2048), 128), ((8192, 8192), 512)),
    "small": (((384, 384), 24), ((512, 512), 32)),
}
SPECTRA = ("flat", "fast")
DRIVERS = ("gesvdj", "gesvda")
PANEL_METHODS = ("_native_qr", "_unasked_cholesky_qr", "orthonormalise")
PACKAGES = (
    "torch",
    "numpy",
    "array-api-compat",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "scipy",
    "scikit-learn",
    "pytest",
    "hypothesis",
    "galore-torch",
)
PRODUCT, PRODUCTS = "A@Omega", "A@Omega, then AᴴQ"
# The tolerance of the adaptive range finder in units of the best error at rank k: without power
# iterations the error is about 3 of them, and the certificate asks for twice that. Tried.
SLACK = 7.0
# Seconds: the longest for one group of rows, and for a part that runs in a process of its own.
GROUP_SECONDS, CHILD_SECONDS = 45.0, 60.0
# Entries above which errors are computed in float32.
LARGE = 2**27


@dataclass(frozen=True)
class Group:
    """Rows that are measured together, on one matrix."""

    section: str
    dtype: str
    shape: Shape
    k: int
    spectrum: str

    def __str__(self) -> str:
        m, n = self.shape
        return f"{self.section}, {self.dtype}, {m}×{n}, k={self.k}, {self.spectrum}"


@dataclass(frozen=True)
class Call:
    """A method to measure; the argument of `run` is a seed.

    It returns a result of lowrank, or a tuple: the basis, a factorization, or nothing. `products`
    is the number of products of k columns, where the result does not tell.
    """

    library: str
    method: str
    run: Callable[[int], Any]
    products: float = 1.0
    once: bool = False

    @property
    def name(self) -> str:
        return f"{self.library} {self.method}"


Calls = Callable[[Group, Any], list[Call]]


@dataclass
class Bench:
    """What all parts of the run share."""

    device: torch.device
    sizes: str
    budget: Budget
    results: Results
    # groups with the calls and rows whose kernels are still to be counted
    uncounted: list[tuple[Group, Calls, dict[str, dict[str, Any]]]] = field(default_factory=list)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def say(self, what: object) -> None:
        print(f"{self.budget.spent():5.0f} s  {what}", flush=True)


# -- matrices -------------------------------------------------------------------------------------


def torch_dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def gaussian(
    rows: int, columns: int, generator: torch.Generator, dtype: torch.dtype
) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=dtype, device=generator.device)


def decay(k: int, shape: Shape) -> torch.Tensor:
    """Singular values that fall from 1 to 1e-4 over 2k of them."""
    return 10.0 ** (-4.0 * torch.arange(min(2 * k, *shape), dtype=torch.float64) / (2 * k))


def matrix(group: Group, device: torch.device) -> torch.Tensor:
    """The matrix of a group, made on the device: a sketch for the section "panel"."""
    generator = torch.Generator(device).manual_seed(1)
    dtype = torch_dtype(group.dtype)
    work = torch.float32 if dtype == torch.bfloat16 else dtype
    (m, n), k = group.shape, group.k
    if group.spectrum == "flat":
        return gaussian(m, n, generator, work).to(dtype)
    if group.section == "panel":
        r = min(2 * n, m)
        s = 10.0 ** (-10.0 * torch.arange(r, dtype=torch.float64) / r)
        U = torch.linalg.qr(gaussian(m, r, generator, work)).Q
        return (U * s.to(U)) @ gaussian(r, n, generator, work)
    s = decay(k, group.shape)
    U = torch.linalg.qr(gaussian(m, len(s), generator, work)).Q
    V = torch.linalg.qr(gaussian(n, len(s), generator, work)).Q
    A = (U * s.to(U)) @ V.mT
    noise = 1e-5 * float(torch.linalg.vector_norm(s)) / math.sqrt(m * n)
    for start in range(0, m, 2048):  # by blocks: the noise need not be as large as the matrix
        block = A[start : start + 2048]
        block += noise * gaussian(*block.shape, generator, work)
    return A.to(dtype)


def tolerance(group: Group) -> dict[str, Any]:
    """Options that lead the adaptive range finder to a rank near k.

    No tolerance can be certified on a flat spectrum before the basis is nearly complete; there the
    rank is capped.
    """
    if group.spectrum == "flat":
        return {"rank": group.k, "rtol": 1e-3}
    s = decay(group.k, group.shape)
    tail, norm = torch.linalg.vector_norm(s[group.k :]), torch.linalg.vector_norm(s)
    return {"rtol": SLACK * float(tail / norm)}


# -- what is measured -----------------------------------------------------------------------------


def lowrank_calls(group: Group, A: Any) -> list[Call]:
    """At the ranks, oversampling and power iterations that the peers get."""
    k, adaptive = group.k, tolerance(group)

    def svd(q: int) -> Callable[[int], Any]:
        return lambda seed: lowrank.svd(A, k, oversampling=0, power_iterations=q, rng=seed)

    return [
        Call("lowrank", "range_finder, q=0", lambda seed: lowrank.range_finder(A, k, rng=seed)),
        Call(
            "lowrank",
            "range_finder, q=2",
            lambda seed: lowrank.range_finder(A, k, power_iterations=2, rng=seed),
        ),
        Call(
            "lowrank",
            "range_finder, adaptive",
            lambda seed: lowrank.range_finder(A, rng=seed, **adaptive),
        ),
        Call("lowrank", "qb, q=0", lambda seed: lowrank.qb(A, k, rng=seed)),
        Call("lowrank", "svd, q=0", svd(0)),
        Call("lowrank", "svd, q=2", svd(2)),
    ]


def bare_products(group: Group, A: Any, *, half: bool = False) -> list[Call]:
    """The products alone; of a bfloat16 matrix in float32, as in lowrank, or in `half`."""
    n, k = group.shape[1], group.k
    dtype = torch.float32 if group.dtype == "bfloat16" and not half else torch_dtype(group.dtype)

    def one(_: int) -> tuple[()]:
        _ = A.to(dtype) @ torch.randn(n, k, dtype=dtype, device=A.device)
        return ()

    def two(_: int) -> tuple[()]:
        X = A.to(dtype)
        _ = X.mT @ (X @ torch.randn(n, k, dtype=dtype, device=A.device))
        return ()

    suffix = ", in bfloat16" if half else ""
    return [
        Call("torch", PRODUCT + suffix, one, 1.0),
        Call("torch", PRODUCTS + suffix, two, 2.0),
    ]


def peers(group: Group, A: Any) -> list[Call]:
    """Other libraries; what refuses bfloat16 gets the matrix in float32, and pays for the cast."""
    n, k = group.shape[1], group.k

    def cast() -> Any:
        return A.float() if group.dtype == "bfloat16" else A

    def svd_lowrank(niter: int) -> Callable[[int], Any]:
        def run(_: int) -> Any:
            U, S, V = torch.svd_lowrank(cast(), q=k, niter=niter)
            return U, S, V.mH

        return run

    def product_and_qr(_: int) -> Any:
        X = cast()
        return (torch.linalg.qr(X @ torch.randn(n, k, dtype=X.dtype, device=X.device)).Q,)

    return [
        Call("torch", "product + linalg.qr", product_and_qr, 1.0),
        Call("torch", "svd_lowrank, niter=0", svd_lowrank(0), 2.0),
        Call("torch", "svd_lowrank, niter=2", svd_lowrank(2), 6.0),
        Call(
            "scikit-learn",
            "randomized_svd, n_iter=2, QR",
            lambda seed: of_sklearn(cast(), k, seed),
            6.0,
        ),
    ]


def of_sklearn(A: Any, k: int, seed: int) -> Any:
    import sklearn  # noqa: PLC0415
    from sklearn.utils.extmath import randomized_svd  # noqa: PLC0415

    options = {"n_oversamples": 0, "n_iter": 2, "power_iteration_normalizer": "QR"}
    with sklearn.config_context(array_api_dispatch=True):
        return randomized_svd(A, n_components=k, random_state=seed, **options)


def matrix_calls(group: Group, A: Any) -> list[Call]:
    calls = bare_products(group, A)
    if group.dtype == "bfloat16":
        calls += bare_products(group, A, half=True)
    return calls + lowrank_calls(group, A) + peers(group, A)


def panel_calls(_: Group, P: Any) -> list[Call]:
    def of_panel(name: str) -> Callable[[int], Any]:
        return lambda _: getattr(_panel, name)(P)

    return [
        Call("torch", "linalg.qr", lambda _: torch.linalg.qr(P)),
        *(Call("lowrank", name, of_panel(name)) for name in PANEL_METHODS),
    ]


def full_svd_calls(
    group: Group, A: Any, *, drivers: tuple[str, ...] = DRIVERS, once: bool = False
) -> list[Call]:
    def full(driver: str) -> Callable[[int], Any]:
        def run(_: int) -> Any:
            chosen = driver if A.is_cuda else None  # a CPU has no choice
            U, S, Vh = torch.linalg.svd(A, full_matrices=False, driver=chosen)
            return U[:, : group.k], S[: group.k], Vh[: group.k]

        return run

    ours = [call for call in lowrank_calls(group, A) if call.method == "svd, q=2"]
    theirs = [Call("torch", driver_method(name), full(name), once=once) for name in drivers]
    return [*bare_products(group, A), *ours, *theirs]


def driver_method(driver: str) -> str:
    return f"linalg.svd, {driver}"


def cupy_calls(group: Group, A: Any, *, full: bool = False) -> list[Call]:
    n, k = group.shape[1], group.k

    def draw(seed: int) -> Any:
        return cupy().random.default_rng(seed).standard_normal((n, k), dtype=A.dtype)

    def one(seed: int) -> tuple[()]:
        _ = A @ draw(seed)
        return ()

    def two(seed: int) -> tuple[()]:
        _ = A.T @ (A @ draw(seed))
        return ()

    def svd(_: int) -> Any:
        U, S, Vh = cupy().linalg.svd(A, full_matrices=False)
        return U[:, :k], S[:k], Vh[:k]

    calls = [Call("cupy", PRODUCT, one, 1.0), Call("cupy", PRODUCTS, two, 2.0)]
    if full:
        return [*calls, Call("cupy", "linalg.svd", svd, once=True)]
    return calls + lowrank_calls(group, A)


def cupy() -> Any:
    import cupy  # noqa: PLC0415

    return cupy


# -- measuring ------------------------------------------------------------------------------------


def parts(result: Any) -> tuple[Any, ...]:
    """``(Q,)``, ``(Q, B)``, ``(U, S, Vh)`` or nothing, as arrays of torch."""
    if not isinstance(result, tuple):
        names = next(
            names for names in (("U", "S", "Vh"), ("Q", "B"), ("Q",)) if hasattr(result, names[-1])
        )
        result = tuple(getattr(result, name) for name in names)
    return tuple(
        X if isinstance(X, torch.Tensor) else torch.from_dlpack(cupy().ascontiguousarray(X))
        for X in result
    )


def accuracy(A: torch.Tensor, factors: tuple[Any, ...]) -> dict[str, Any]:
    """Error, orthogonality and rank of a result."""
    if not factors:
        return {}
    Q, *rest = factors
    k = Q.shape[-1]
    gram = Q.mT.double() @ Q.double() - torch.eye(k, dtype=torch.float64, device=Q.device)
    if len(rest) == 2:
        S, right = rest
        left = Q * S
    else:
        left, right = Q, rest[0] if rest else None
    return {
        "error": relative_error(A, left, right),
        "orthogonality": float(torch.linalg.matrix_norm(gram)),
        "rank": k,
    }


def relative_error(A: torch.Tensor, left: torch.Tensor, right: torch.Tensor | None) -> float:
    """``‖A − left right‖/‖A‖`` in the Frobenius norm, with ``leftᴴ A`` where `right` is None."""
    dtype = torch.float32 if A.numel() > LARGE and A.dtype != torch.float64 else torch.float64
    m, n = A.shape
    rows = max(1, 2**24 // n)
    left = left.to(dtype)
    if right is None:
        right = torch.zeros(left.shape[-1], n, dtype=dtype, device=A.device)
        for start in range(0, m, rows):
            right += left[start : start + rows].mT @ A[start : start + rows].to(dtype)
    right = right.to(dtype)
    squares = torch.zeros(2, dtype=torch.float64, device=A.device)
    for start in range(0, m, rows):
        block = A[start : start + rows].to(dtype)
        residual = block - left[start : start + rows] @ right
        for place, X in enumerate((residual, block)):
            squares[place] += torch.sum(torch.sum(X * X, dim=-1).double())
    residual, whole = (math.sqrt(float(square)) for square in squares)
    return residual / whole if whole else residual


def measure(bench: Bench, group: Group, make: Calls, *, keeping: float = 0.0) -> None:
    """Measure the calls of one group, and record a row for each."""
    budget = bench.budget.part(keeping=keeping, at_most=GROUP_SECONDS)
    if budget.left() < 1.0:
        skip(bench, group, make, "no time left")
        return
    bench.say(group)
    try:
        A = matrix(group, bench.device)
        measure_on(bench, group, make, A, budget, A)
    except Exception as error:  # out of memory, mostly
        skip(bench, group, make, told(error))
    finally:
        A = None
        tidy(bench.device)


def measure_on(
    bench: Bench, group: Group, make: Calls, A: Any, budget: Budget, reference: torch.Tensor
) -> None:
    """The calls of one group on `A`, whose entries `reference` has as an array of torch."""
    calls = make(group, A)
    timings = interleaved(
        {call.name: call.run for call in calls},
        bench.synchronise,
        budget=budget,
        once=frozenset(call.name for call in calls if call.once),
    )
    bases = [median(timings[call.name].seconds or [math.nan]) for call in calls[:2]]
    rows = {}
    for call in calls:
        timing = timings[call.name]
        columns = timing.row()
        if timing.seconds:
            products = getattr(timing.result, "products", call.products * group.k) / group.k
            base = bases[0]
            if group.section != "panel" and products > 1.0:
                base += (products - 1.0) * max(0.0, bases[1] - bases[0])
            ratio = None if math.isnan(base) else columns["seconds"] / base
            columns |= {"ratio": ratio, "products": products}
            columns |= inspected(bench, call, timing.result, reference, isinstance(A, torch.Tensor))
            timing.result = None
        row = bench.results.add(
            **described(group, call), arrays=arrays_of(A), **{"rank": None} | columns
        )
        if timing.seconds and not call.once:
            rows[call.name] = row
    if isinstance(A, torch.Tensor):
        bench.uncounted.append((group, make, rows))


def inspected(
    bench: Bench, call: Call, result: Any, reference: torch.Tensor, is_torch: bool
) -> dict[str, Any]:
    """What a row says beside times. A failure here is noted, and costs no more than its columns."""
    columns: dict[str, Any] = {}
    try:
        columns |= accuracy(reference, parts(result))
        if is_torch and not call.once:  # both counts from one more run
            reads: list[int] = []
            run = partial(call.run, 0)
            columns["peak_bytes"] = measuring.peak_bytes(
                lambda: reads.append(measuring.host_reads(run)), bench.device
            )
            columns["host_reads"] = reads[0]
    except Exception as error:
        columns["note"] = told(error)
    return columns


def described(group: Group, call: Call) -> dict[str, Any]:
    return {
        "section": group.section,
        "library": call.library,
        "method": call.method,
        "dtype": group.dtype,
        "shape": list(group.shape),
        "k": group.k,
        "spectrum": group.spectrum,
    }


def arrays_of(A: Any) -> str:
    return type(A).__module__.partition(".")[0]


def skip(bench: Bench, group: Group, make: Calls, reason: str) -> None:
    for call in make(group, None):
        bench.results.add(**described(group, call), skipped=reason)


def tidy(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def matrices(bench: Bench, dtype: str, *, keeping: float) -> None:
    for shape, k in SIZES[bench.sizes]:
        for spectrum in SPECTRA:
            group = Group("matrix", dtype, shape, k, spectrum)
            measure(bench, group, matrix_calls, keeping=keeping)


def panels(bench: Bench, dtype: str, *, keeping: float) -> None:
    for shape in PANELS[bench.sizes]:
        for spectrum in SPECTRA:
            group = Group("panel", dtype, shape, shape[1], spectrum)
            measure(bench, group, panel_calls, keeping=keeping)


def full_svds(bench: Bench, *, keeping: float) -> None:
    """The smaller shape; then the larger one, with the drivers whose cubic growth leaves time."""
    (small, small_k), (large, large_k) = FULL_SVDS[bench.sizes]
    group = Group("full svd", "float32", small, small_k, "fast")
    measure(bench, group, full_svd_calls, keeping=keeping)
    seconds = {
        row["method"]: row["seconds"] for row in find(bench.results.rows, section="full svd")
    }
    group = Group("full svd", "float32", large, large_k, "fast")
    growth = (large[0] / small[0]) ** 3
    left, chosen = bench.budget.left() - keeping, []
    for driver in DRIVERS:
        expected = growth * seconds.get(driver_method(driver), math.inf)
        if expected < left:
            left -= expected
            chosen.append(driver)
        else:
            call = Call("torch", driver_method(driver), lambda _: None)
            reason = f"might take {expected:.0f} s"
            bench.results.add(**described(group, call), skipped=reason)
    for (
        driver
    ) in chosen:  # one after the other: what the first took minutes for is then in the file
        bench.say(f"{group}, {driver}")
        measure_large(bench, group, partial(full_svd_calls, drivers=(driver,), once=True))


def measure_large(bench: Bench, group: Group, make: Calls) -> None:
    """As `measure`, without the limit for a group."""
    A = matrix(group, bench.device)
    try:
        measure_on(bench, group, make, A, bench.budget.part(), A)
    except Exception as error:
        skip(bench, group, make, told(error))
    del A
    tidy(bench.device)


def with_cupy(bench: Bench, *, keeping: float) -> None:
    (large, large_k), (small, small_k) = SIZES[bench.sizes][0], FULL_SVDS[bench.sizes][0]
    plan: tuple[tuple[Group, Calls], ...] = (
        (Group("cupy", "float32", large, large_k, "fast"), cupy_calls),
        (Group("cupy", "float32", small, small_k, "fast"), partial(cupy_calls, full=True)),
    )
    for group, make in plan:
        budget = bench.budget.part(keeping=keeping, at_most=GROUP_SECONDS)
        if budget.left() < 1.0:
            skip(bench, group, make, "no time left")
            continue
        bench.say(group)
        try:
            reference = matrix(group, bench.device)
            measure_on(bench, group, make, cupy().from_dlpack(reference), budget, reference)
        except Exception as error:
            skip(bench, group, make, told(error))
        tidy(bench.device)


def with_optimizer(bench: Bench, *, keeping: float) -> None:
    """Steps of the optimizer; each of its four parts is begun while time is left."""
    bench.say("optimizer")
    optimizer.measure(
        bench.results,
        bench.device,
        "bfloat16",
        quick=bench.sizes == "small",
        budget=bench.budget.part(keeping=keeping),
    )
    tidy(bench.device)


def count_kernels(bench: Bench, *, keeping: float) -> None:
    """Fill the column `kernels`, while time is left."""
    budget = bench.budget.part(keeping=keeping)
    for group, make, rows in bench.uncounted:
        if budget.left() < 5.0:
            return
        bench.say(f"kernels: {group}")
        try:
            calls = {call.name: call for call in make(group, matrix(group, bench.device))}
            for name, row in rows.items():
                if row["seconds"] < min(1.0, budget.left() / 10.0):
                    run = partial(calls[name].run, 0)
                    row["kernels"] = measuring.kernels(run, bench.device)
                    bench.results.save()
        except Exception as error:
            bench.results.header["profiler"] = told(error)
            return
        finally:
            calls = {}
            tidy(bench.device)


# -- CUDA graphs and torch.compile ----------------------------------------------------------------


def graph_groups(sizes: str) -> list[Group]:
    return [Group("capture", "float32", shape, k, "fast") for shape, k in SIZES[sizes][:3:2]]


def sketch(A: torch.Tensor, Omega: torch.Tensor) -> torch.Tensor:
    """The range finder without a power iteration, as a function of arrays."""
    return subspace_iteration(A @ Omega, lambda X: A @ X, lambda Y: A.mT @ Y, 0)


def captured(A: torch.Tensor, Omega: torch.Tensor) -> Callable[[], torch.Tensor]:
    """`sketch` as the replay of a CUDA graph. Nothing is drawn inside the capture."""
    if not A.is_cuda:
        message = "CUDA graphs need a CUDA device"
        raise RuntimeError(message)
    # libraries choose kernels and allocate workspaces at their first calls, which no graph may hold
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            sketch(A, Omega)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        Q = sketch(A, Omega)

    def replay() -> torch.Tensor:
        graph.replay()
        return Q

    return replay


def compiled(A: torch.Tensor, Omega: torch.Tensor) -> Callable[[], torch.Tensor]:
    # on a CPU the trial is of the graph alone: the compiler for C++ takes a minute, or is not there
    backend = "inductor" if A.is_cuda else "aot_eager"
    function = torch.compile(sketch, fullgraph=True, backend=backend)
    return lambda: function(A, Omega)


def transformed(bench: Bench, group: Group) -> None:
    """One row for `group`: the transformed range finder against the eager one."""
    transform, method = {
        "capture": (captured, "range_finder, q=0, replayed CUDA graph"),
        "compile": (compiled, "range_finder, q=0, torch.compile(fullgraph=True)"),
    }[group.section]
    row: dict[str, Any] = {}
    try:
        A = matrix(group, bench.device)
        generator = torch.Generator(bench.device).manual_seed(2)
        Omega = gaussian(group.shape[1], group.k, generator, A.dtype)
        function = transform(A, Omega)
        function()
        # other numbers in the same place: a replay must not return what it was captured with
        Omega.copy_(gaussian(*Omega.shape, generator, A.dtype))
        timings = interleaved(
            {"eager": lambda _: sketch(A, Omega), "transformed": lambda _: function()},
            bench.synchronise,
            budget=bench.budget,
        )
        eager, other = timings["eager"], timings["transformed"]
        row = other.row()
        if other.seconds and eager.seconds:
            difference = torch.linalg.matrix_norm(other.result - eager.result)
            row |= accuracy(A, (other.result,))
            row |= {"ratio": row["seconds"] / median(eager.seconds)}
            row["error"] = float(difference / torch.linalg.matrix_norm(eager.result))
    except Exception as error:
        row = {"skipped": f"failed: {told(error)}"}
    described_call = described(group, Call("lowrank", method, lambda _: None))
    print(json.dumps(described_call | {"arrays": "torch"} | row), flush=True)


def in_a_child(bench: Bench, section: str) -> None:
    """Run "capture" or "compile" in a process of its own.

    A capture that fails may leave torch's generators unusable, and a compiler may hang.
    """
    limit = min(CHILD_SECONDS, bench.budget.left())
    groups = [Group(section, g.dtype, g.shape, g.k, g.spectrum) for g in graph_groups(bench.sizes)]
    reason, rows = "no time left", []
    if limit > 15.0:
        bench.say(section)
        tidy(bench.device)
        command = [sys.executable, str(Path(__file__).resolve()), "--part", section, "--out", "-"]
        command += ["--device", str(bench.device), "--sizes", bench.sizes]
        command += ["--minutes", str(limit / 60.0)]
        status, shown = run_for(limit, command, cwd=ROOT, environment=environment())
        rows = [json.loads(line) for line in shown.splitlines() if line.startswith('{"section"')]
        reason = f"ended with status {status}: {' '.join(shown.split())[-300:]}"
    for row in rows:
        bench.results.add(**row)
    for group in groups[len(rows) :]:
        call = Call("lowrank", section, lambda _: None)
        bench.results.add(**described(group, call), skipped=reason)


def environment(*folders: str) -> dict[str, str]:
    paths = [*folders, str(SOURCE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_for(
    seconds: float, command: list[str], *, cwd: Path, environment: dict[str, str]
) -> tuple[int | None, str]:
    """Status and output of a command, which is interrupted, then ended, when its time is up.

    The output goes to a file: what was written before the end is kept.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its own children can be ended with it
        )
        try:
            child.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # pytest then reports what it has
            try:
                child.wait(10.0)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        output.seek(0)
        return child.returncode, output.read()


# -- the test-suite -------------------------------------------------------------------------------

# Stands for array-api-strict where it is not installed: the tests build their backends from it, and
# those that would use it are not selected.
STRICT = """
class Device:
    def __init__(self, name):
        self.name = name
"""


def run_tests(bench: Bench, seconds: float) -> None:
    bench.results.header["tests"] = tested(bench, seconds)
    bench.results.save()


def tested(bench: Bench, seconds: float) -> dict[str, Any]:
    """Outcome of the tests that run on torch CUDA and CuPy."""
    missing = [name for name in ("pytest", "hypothesis") if not has(name)]
    if missing:
        return {"skipped": f"not installed: {', '.join(missing)}"}
    import pytest  # noqa: PLC0415

    seconds = min(seconds, bench.budget.left())
    bench.say(f"tests, for {seconds:.0f} s at most")
    with tempfile.TemporaryDirectory() as folder:
        if not has("array_api_strict"):
            Path(folder, "array_api_strict.py").write_text(STRICT, "utf-8")
        # only the plugins named here: others of the machine may warn, and warnings are errors
        options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=short"]
        workers = min(8, measuring.cores() // 2)
        if has("xdist") and bench.device.type == "cuda" and workers > 1:
            options += ["-p", "xdist.plugin", "-n", str(workers)]
        if int(pytest.__version__.partition(".")[0]) < 9:  # cannot read the configuration
            settings = Path(folder, "pytest.ini")
            settings.write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
            options += ["-c", str(settings), "--rootdir", str(ROOT)]
        command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or cupy", *options, "tests"]
        paths = environment(folder) | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        paths.pop("SCIPY_ARRAY_API", None)
        status, shown = run_for(seconds, command, cwd=ROOT, environment=paths)
    return {"status": status, "seconds": seconds, **counts(shown), "output": shown[-3000:]}


def over_processes(bench: Bench) -> None:
    """The script of the tutorial on a sharded matrix, one process for each GPU (NCCL)."""
    processes = torch.cuda.device_count() if bench.device.type == "cuda" else 2
    if processes < 2:
        found: dict[str, Any] = {"skipped": f"the machine has {processes} GPU"}
    else:
        bench.say(f"a sharded matrix on {processes} processes")
        page = (ROOT / "docs" / "tutorials" / "sharded.md").read_text("utf-8")
        with tempfile.TemporaryDirectory() as folder:
            script = page.partition("```python\n")[2].partition("```")[0]
            Path(folder, "sharded.py").write_text(script, "utf-8")
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(processes), "sharded.py"]
            limit = min(CHILD_SECONDS, bench.budget.left())
            start = time.perf_counter()
            status, shown = run_for(limit, command, cwd=Path(folder), environment=environment())
        found = {"processes": processes, "status": status, "output": shown[-1000:]}
        found |= {"seconds": time.perf_counter() - start, "converged": "CONVERGED" in shown}
    bench.results.header["processes"] = found
    bench.results.save()


def counts(shown: str) -> dict[str, int]:
    """Passed, failed and skipped tests, from the summary or else from the dots."""
    summary = shown.strip().rpartition("\n")[2]
    found = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", summary)}
    if not re.search(r"\d+ (passed|failed|skipped|error)", summary):
        dots = "".join(re.findall(r"^([.sFExX]+)(?: *\[ *\d+%\])?$", shown, re.MULTILINE))
        found = {"passed": dots.count("."), "failed": dots.count("F"), "skipped": dots.count("s")}
        found["errors"] = dots.count("E")
    return {
        "passed": found.get("passed", 0),
        "failed": found.get("failed", 0),
        "errors": found.get("error", 0) + found.get("errors", 0),
        "skipped": found.get("skipped", 0),
    }


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# -- the report -----------------------------------------------------------------------------------


def find(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Measured rows with these values."""
    return [
        row
        for row in rows
        if row["seconds"] is not None
        and all(row.get(key) == value for key, value in wanted.items())
    ]


def goals(rows: list[dict[str, Any]], sizes: str) -> list[dict[str, Any]]:
    """What the library is meant to reach, and whether this run shows it."""
    found = []
    for (shape, k), limit in zip(SIZES[sizes][:2], (2.5, 1.5), strict=True):
        case = {"section": "matrix", "dtype": "float32", "shape": list(shape), "k": k}
        for q in (0, 2):
            ours = find(rows, **case, method=f"range_finder, q={q}")
            ratios = [row["ratio"] for row in ours if row["ratio"] is not None]
            name = f"range_finder, q={q}, {text(shape)}: at most {limit} × the products"
            found.append(goal(name, max(ratios, default=None), limit, at_most=True))
    case = {"section": "matrix", "dtype": "float32"}
    for shape, k in SIZES[sizes]:
        for q in (0, 2):
            where = case | {"shape": list(shape), "k": k}
            gains = quotients(
                find(rows, **where, method=f"svd_lowrank, niter={q}"),
                find(rows, **where, method=f"svd, q={q}"),
            )
            name = f"svd, q={q}, {text(shape)}, k={k}: 3 × as fast as torch.svd_lowrank or more"
            found.append(goal(name, min(gains, default=None), 3.0))
    for shape, k in FULL_SVDS[sizes]:
        where = {"section": "full svd", "shape": list(shape), "k": k}
        for driver in DRIVERS:
            gains = quotients(
                find(rows, **where, method=driver_method(driver)),
                find(rows, **where, method="svd, q=2"),
            )
            name = f"svd, q=2, {text(shape)}, k={k}: 100 × as fast as linalg.svd ({driver}) or more"
            found.append(goal(name, min(gains, default=None), 100.0))
    return found


def quotients(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[float]:
    """Their time over ours, for each spectrum."""
    seconds = {row["spectrum"]: row["seconds"] for row in ours}
    return [
        row["seconds"] / seconds[row["spectrum"]] for row in theirs if row["spectrum"] in seconds
    ]


def goal(
    name: str, reached: float | None, limit: float, *, at_most: bool = False
) -> dict[str, Any]:
    """`reached` is the worst over the spectra."""
    met = None if reached is None else (reached <= limit if at_most else reached >= limit)
    return {"goal": name, "reached": reached, "met": met}


def text(shape: Any) -> str:
    return "×".join(map(str, shape))


MATRIX_COLUMNS = {
    "rf q0": "range_finder, q=0",
    "rf q2": "range_finder, q=2",
    "rf ad": "range_finder, adaptive",
    "qb": "qb, q=0",
    "svd q0": "svd, q=0",
    "svd q2": "svd, q=2",
    "P+qr": "product + linalg.qr",
    "t.svdl0": "svd_lowrank, niter=0",
    "t.svdl2": "svd_lowrank, niter=2",
    "sklearn": "randomized_svd, n_iter=2, QR",
}
PANEL_COLUMNS = {
    "qr": "linalg.qr",
    "native": "_native_qr",
    "chol.": "_unasked_cholesky_qr",
    "chosen": "orthonormalise",
}


def report(bench: Bench) -> str:
    """A short account of the run, of less than 12,000 characters."""
    rows, header = bench.results.rows, bench.results.header
    tests = {key: value for key, value in header["tests"].items() if key != "output"}
    lines = [f"\n{header['machine']['device']}; tests: {tests} {header.get('ended', '')}"]
    lines += ["", "ratio to the bare products (A@Omega in ms), worst orthogonality of lowrank"]
    lines += table(rows, ("matrix", "cupy"), MATRIX_COLUMNS, "ratio", 1.0, PRODUCT)
    lines += ["", "panels, ms"]
    lines += table(rows, ("panel",), PANEL_COLUMNS, "seconds", 1e3, "linalg.qr")
    for section in ("capture", "full svd", "compile"):
        lines += ["", section]
        lines += [
            f"{case(row)} {row['method'][:40]:40} {cell(row)}"
            for row in of(rows, section)
            if not row["method"].startswith(PRODUCT)
        ]
    reasons: dict[str, int] = {}
    for row in rows:
        if row["skipped"] or row.get("note"):
            reason = f"{row['library']} {row['skipped'] or row['note']}"[:110]
            reasons[reason] = reasons.get(reason, 0) + 1
    lines += ["", "skipped or failed"]
    lines += [f"{number:4} × {reason}" for reason, number in list(reasons.items())[:9]]
    lines += ["", "goals"]
    for entry in goals(rows, bench.sizes):
        verdict = {True: "met", False: "MISSED", None: "not measured"}[entry["met"]]
        reached = "" if entry["reached"] is None else f", {entry['reached']:.3g}"
        lines.append(f"{entry['goal']}: {verdict}{reached}")
    return "\n".join(lines)[-11_500:]


def of(rows: list[dict[str, Any]], section: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["section"] == section]


def case(row: dict[str, Any]) -> str:
    return f"{row['dtype'][:8]:8} {text(row['shape']):11} {row['k']:4} {row['spectrum']:4}"


def cell(row: dict[str, Any]) -> str:
    if row["seconds"] is None:
        return str(row["skipped"])[:80]
    ratio, error = ("–" if row[key] is None else f"{row[key]:.2g}" for key in ("ratio", "error"))
    return f"{1e3 * row['seconds']:9.2f} ms, ratio {ratio}, error {error}"


def table(
    rows: list[dict[str, Any]],
    sections: tuple[str, ...],
    columns: dict[str, str],
    key: str,
    scale: float,
    base: str,
) -> list[str]:
    """One line for each group: `base` in ms, `key` of the methods, and the worst orthogonality."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["section"] in sections and row["seconds"] is not None:
            mark = "cupy " if row["section"] == "cupy" else ""
            groups.setdefault(case(row) + f" {mark:5}", []).append(row)
    lines = [f"{'':36}" + "".join(f"{name:>8}" for name in ("base", *columns, "orth"))]
    for name, members in groups.items():
        values = {row["method"]: scale * row[key] for row in members if row[key] is not None}
        bases = [1e3 * row["seconds"] for row in members if row["method"] == base]
        orthogonality = [
            row["orthogonality"]
            for row in members
            if row["library"] == "lowrank" and row["orthogonality"] is not None
        ]
        shown = [bases[0] if bases else None, *(values.get(method) for method in columns.values())]
        line = "".join(f"{'–' if value is None else f'{value:.2f}':>8}" for value in shown)
        worst = max(orthogonality, key=lambda value: (math.isnan(value), value), default=math.nan)
        lines.append(f"{name:36}{line}{worst:8.0e}")
    return lines


# -- the run --------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--test-minutes", type=float, default=2.5, help="of which for the tests")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a trial")
    parser.add_argument("--sizes", choices=list(SIZES), default="full")
    parser.add_argument("--only", nargs="+", metavar="PART", help="tests, float32, cupy, …")
    parser.add_argument("--part", choices=["capture", "compile"], help=argparse.SUPPRESS)
    return parser.parse_args()


def device_name(device: torch.device) -> str:
    is_cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if is_cuda else measuring.cpu_name()


def settings(device: torch.device, minutes: float) -> dict[str, Any]:
    found: dict[str, Any] = {
        "minutes": minutes,
        "timer": "time.perf_counter between synchronisations of the device",
        "allow_tf32_by_default": torch.backends.cuda.matmul.allow_tf32,
    }
    torch.set_float32_matmul_precision("highest")
    found["allow_tf32"] = torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device_memory"] = properties.total_memory
        found["capability"] = [properties.major, properties.minor]
        found["cuda"] = torch.version.cuda
    return found


def measure_all(bench: Bench, test_seconds: float, only: list[str] | None) -> None:
    """Everything, what matters most first, with time kept for what comes later; or some parts."""
    later = bench.budget.seconds / 5.0
    parts: dict[str, Callable[[], None]] = {
        "tests": lambda: run_tests(bench, test_seconds),
        "float32": lambda: matrices(bench, "float32", keeping=later),
        "capture": lambda: in_a_child(bench, "capture"),
        "panels": lambda: panels(bench, "float32", keeping=later / 2.0),
        "full-svd": lambda: full_svds(bench, keeping=later),
        "cupy": lambda: with_cupy(bench, keeping=later / 2.0),
        "bfloat16": lambda: matrices(bench, "bfloat16", keeping=later),
        "float64": lambda: matrices(bench, "float64", keeping=later),
        "panels64": lambda: panels(bench, "float64", keeping=later),
        "optimizer": lambda: with_optimizer(bench, keeping=later / 2.0),
        "kernels": lambda: count_kernels(bench, keeping=later / 2.0),
        "compile": lambda: in_a_child(bench, "compile"),
        "processes": lambda: over_processes(bench),
    }
    for name in only or parts:
        parts[name]()


def finish(bench: Bench) -> None:
    bench.results.header["goals"] = goals(bench.results.rows, bench.sizes)
    bench.results.header["wall_seconds"] = bench.budget.spent()
    bench.results.save()
    print(report(bench), flush=True)


def give_up(bench: Bench) -> None:
    """End a run whose current call does not: all that was measured is in the file."""
    bench.results.header["ended"] = "out of time, in the middle of a call"
    finish(bench)
    os._exit(3)


def main() -> None:
    # before anything imports SciPy, which reads it once; scikit-learn asks for it
    os.environ["SCIPY_ARRAY_API"] = "1"
    warnings.simplefilter("ignore")
    options = arguments()
    device = torch.device(options.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            sys.exit("torch sees no CUDA device; for a trial: --device cpu --sizes small")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    torch.set_grad_enabled(False)
    set_up = settings(device, options.minutes)
    if options.part:
        budget = Budget(60.0 * options.minutes - 5.0)
        bench = Bench(device, options.sizes, budget, Results(None))
        for group in graph_groups(options.sizes):
            transformed(
                bench, Group(options.part, group.dtype, group.shape, group.k, group.spectrum)
            )
        return
    header = measuring.header("gpu", device_name(device), PACKAGES)
    results = Results(options.out, **header, settings=set_up, tests={})
    # the last seconds are for the report
    bench = Bench(device, options.sizes, Budget(60.0 * options.minutes - 15.0), results)
    watch = threading.Timer(60.0 * options.minutes, give_up, [bench])
    watch.daemon = True
    watch.start()
    try:
        measure_all(bench, 60.0 * options.test_minutes, options.only)
    finally:
        finish(bench)
        watch.cancel()


if __name__ == "__main__":
    main()
