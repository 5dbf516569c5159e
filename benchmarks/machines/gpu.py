"""Tests and times lowrank on a CUDA device, in parts that run alone in less than four minutes each.

    python -m benchmarks.machines.gpu --out benchmarks/results/gpu-NAME-DATE.json [--part NAME ...]

Needs PyTorch and array-api-compat; CuPy, SciPy, scikit-learn, pytest and hypothesis are used where
they are installed. Several calls may fill one file: a part takes the place of what it measured last
time, the others stay, and a run that is cut off keeps the rows that it has. For a trial without a
GPU, add `--device cpu --sizes small`. The parts, in their order, and the sections of their rows:

- tests: those of the test-suite that run on torch's CUDA device and on CuPy.
- published: the grid of Penke and Herten (2026): Gaussian matrices in float32, without power
  iterations. `published` and `published_fixed` are their seconds on another machine, to a rank and
  with B, and of a fixed rank with cuSOLVER, without B.
- tolerances ("tolerance"): the SVD to a tolerance, and at the rank that it finds; `ratio` is to it.
- matrices ("matrix", "full svd"): range finders and factorizations at rank `k`, and their peers.
  "flat" is Gaussian; "fast" has singular values that fall from 1 to 1e-4 over 2k of them, and noise
  of 1e-5.
- optimizers: one step of each on the weights of a Llama of 130M ("llama step"), and the sections of
  benchmarks/machines/optimizer.py; all in bfloat16.
- small_svd ("small svd", "rate"): decompositions of Gram matrices of order `k`, and rates.
- panels ("panel"): the QR of a sketch. "fast" has singular values that fall from 1 to 1e-10.
- functions: what docs/capabilities.toml says of CUDA, with every kind of input and dtype, and the
  replay of a CUDA graph ("capture", whose `ratio` is to the eager call).

Seconds are medians of interleaved repeats by `time.perf_counter` between synchronisations of the
device. `ratio` is to the time of as many bare products as the method takes (`products`), where
nothing else is said: A@Omega with the draw of Omega, and for each further product of k columns the
difference between "A@Omega, then AᴴQ" and it. Of bfloat16 matrices they are in float32, the cast
included, unless the method says otherwise. `error` is ‖A − QQᴴA‖/‖A‖ of a basis and the residual of
a factorization, in the Frobenius norm, `orthogonality` is ‖QᴴQ − I‖_F, both in float64.
`peak_bytes` is what the call allocated beyond what was there, its result included. `operations`,
`host_reads` and `work` are counted in one more run, and `predicted` is the time by
benchmarks/machines/gpu_model.py, with the constants that `predicted_by` names. "model" in the file
holds its constants, fitted to all rows of the file.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import lowrank
from benchmarks import ROOT, SOURCE
from benchmarks.common import measuring
from benchmarks.common.accuracy import accuracy, cut, parts
from benchmarks.common.devices import asked_device, peak_bytes
from benchmarks.common.measuring import REPEATS, Budget, Call, told
from benchmarks.common.results import Results, cores, header
from benchmarks.common.tables import duration, number, size
from benchmarks.machines import gpu_model, optimizer
from benchmarks.report.goals import gpu_goals
from lowrank import gallery

Shape = tuple[int, int]
Calls = list[Call]
# Shapes with their ranks.
SIZES: dict[str, tuple[tuple[Shape, int], ...]] = {
    "full": (
        ((8192, 8192), 512), ((32768, 32768), 512), ((4096, 11008), 256),
        ((2048, 2048), 128), ((4096, 11008), 128), ((4096, 11008), 1024),
    ),
    "small": (((512, 512), 32), ((1024, 704), 64)),
}  # fmt: skip
# Milliseconds by C. Penke and A. Herten (A GPU-accelerated blocked adaptive randomized range finder
# based on an implicit Householder QR decomposition, manuscript, 2026; data of the repository
# caropen/Reproduce-BARRF-Householder at 1264cd3): order, columns, adaptive, at a fixed rank.
# Float32, CUDA and MAGMA 2.10; their makefiles point to a Grace Hopper. Blocks of 128.
PUBLISHED: dict[str, tuple[tuple[int, int, float | None, float | None], ...]] = {
    "full": (
        (16384, 128, 12.7, 11.2), (16384, 512, 30.1, 32.3), (16384, 1024, 49.2, 60.8),
        (16384, 4096, 157.0, 229.0), (4096, 4096, 37.2, None), (2048, 2048, 15.7, None),
        (1024, 1024, 7.5, None), (16384, 256, 20.4, 18.0), (16384, 2048, 85.8, 117.0),
        (16384, 8192, 275.0, 430.0), (16384, 16384, 423.0, 737.0),
    ),
    "small": ((512, 64, None, None), (256, 256, None, None)),
}  # fmt: skip
# Shapes, names in `SPECTRA`, tolerances and dtypes.
TOLERANCES: dict[str, tuple[tuple[Shape, str, float, str], ...]] = {
    "full": (
        ((8192, 8192), "decay + 8 % noise", 0.1, "float32"),
        ((8192, 8192), "1/j", 0.1, "float32"),
        ((8192, 8192), "1/j²", 1e-3, "float32"),
        ((8192, 8192), "exp(−j/7)", 1e-3, "float32"),
        ((4096, 11008), "1/j", 0.1, "float32"),
        ((2048, 2048), "1/j²", 1e-3, "float32"),
        ((4096, 11008), "decay + 8 % noise", 0.1, "float64"),
        ((8192, 8192), "1/j", 0.1, "float64"),
        ((8192, 8192), "1/j", 0.1, "complex64"),
    ),
    "small": (
        ((512, 512), "decay + 8 % noise", 0.1, "float32"),
        ((384, 512), "1/j", 0.1, "float64"),
    ),
}
PANELS: dict[str, tuple[Shape, ...]] = {
    "full": ((8192, 128), (8192, 256), (8192, 512), (4096, 256), (16384, 128), (32768, 512)),
    "small": ((512, 64), (1024, 32)),
}
ORDERS = {"full": (128, 256, 512, 1024), "small": (64, 128)}  # of small decompositions
# Order and rank of the matrices of the part "functions".
OF_FUNCTIONS = {"full": (1024, 32), "small": (96, 8)}
PACKAGES = ("torch", "numpy", "array-api-compat", "cupy-cuda12x", "cupy-cuda13x", "scipy")
PACKAGES += ("scikit-learn", "pytest", "hypothesis", "galore-torch")
PRODUCT, PRODUCTS = "A@Omega", "A@Omega, then AᴴQ"
# The tolerance of the adaptive range finder in units of the best error at rank k: without power
# iterations the error is about 3 of them, and a sampled certificate asks for twice that.
SLACK = 7.0
# The longest for one part (minutes) and for one group of rows (seconds).
PART_MINUTES, GROUP_SECONDS = 3.8, 40.0


def decay(n: int, k: int) -> torch.Tensor:
    """Singular values that fall from 1 to 1e-4 over 2k of them."""
    return 10.0 ** (-4.0 * torch.arange(min(2 * k, n), dtype=torch.float64) / (2 * k))


# Singular values of n, by the rank k that is asked for, and the noise relative to their norm.
SPECTRA: dict[str, tuple[Callable[[int, int], torch.Tensor], float]] = {
    "fast": (decay, 1e-5),
    "panel, fast": (lambda n, _: 10.0 ** (-10.0 * torch.arange(n) / n), 0.0),
    "1/j": (lambda n, _: 1.0 / torch.arange(1, n + 1), 0.0),
    "1/j²": (lambda n, _: torch.arange(1, n + 1) ** -2.0, 0.0),
    "exp(−j/7)": (lambda n, _: torch.exp(-torch.arange(min(n, 200)) / 7.0), 0.0),
    "decay + 8 % noise": (lambda n, _: torch.exp(-torch.arange(min(n, 200)) / 12.0), 0.08),
}


@dataclass
class Bench:
    """What all parts of the run share."""

    device: torch.device
    sizes: str
    results: Results
    budget: Budget
    constants: dict[str, float]
    predicted_by: str

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def matrix(self, spectrum: str, shape: Shape, k: int, dtype: str) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(1)
        kind = getattr(torch, dtype)
        options = {"dtype": torch.float32 if kind.itemsize == 2 else kind, "device": self.device}
        if spectrum == "flat":
            return torch.randn(*shape, generator=generator, **options).to(kind)
        if spectrum == "Gram":
            C = self.matrix("flat", (4 * k, k), k, dtype)
            return C.mT @ C
        if spectrum == "positive":
            C = self.matrix("fast", shape, k, "complex128" if kind.is_complex else "float64")
            # and so much of the identity that it stays so when it is rounded to half precision
            return (C.mH @ C + 3e-3 * torch.eye(len(C), device=self.device)).to(kind)
        values, noise = SPECTRA[spectrum]
        s = values(min(shape), k)
        A = gallery.matrix(s.tolist(), shape, xp=torch, rng=generator, **options)
        scale = noise * float(torch.linalg.vector_norm(s)) / math.sqrt(A.numel())
        for block in A.split(2048) if noise else ():  # the noise need not be as large as A
            block.add_(torch.randn(*block.shape, generator=generator, **options), alpha=scale)
        return A.to(kind)

    def measure(
        self,
        section: str,
        calls_of: Callable[[Any], Calls],
        dtype: str,
        shape: Shape | None,
        k: int | None,
        spectrum: str | None,
        *,
        arrays: str = "torch",
        through: str | None = None,
        **columns: Any,
    ) -> None:
        """Rows of the calls on one matrix; a single one that says why, where that fails."""
        group = {"section": section, "arrays": arrays, "dtype": dtype, **columns}
        group |= {"shape": shape and list(shape), "k": k, "spectrum": spectrum}
        budget = self.budget.part(at_most=GROUP_SECONDS)
        A, calls = None, []
        try:
            if budget.left() < 1.0:
                raise TimeoutError("no time left")
            if shape is not None:
                special = f"{section}, {spectrum}"
                A = self.matrix(special if special in SPECTRA else spectrum, shape, k or 0, dtype)
            calls = calls_of(A)
            judge = partial(self.judge, A, group, through)
            how = {"budget": budget, "repeats": 2 if section == "functions" else REPEATS}
            measuring.measure(self.results, group, calls, judge, self.synchronise, **how)
        except Exception as error:  # out of memory, mostly
            self.results.add(**group, library="all", method="all", skipped=told(error))
        del A, calls
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def judge(
        self, A: Any, group: Any, through: str | None, call: Call, result: Any, medians: Any
    ) -> dict[str, Any]:
        """The columns of a row beside its times; what fails is noted, and costs no others."""
        columns: dict[str, Any] = {"converged": getattr(result, "converged", None)}
        if call.base == f"torch {PRODUCT}" and call.base in medians:
            products = getattr(result, "products", call.products * group["k"]) / group["k"]
            base, both = medians[call.base], medians.get(f"torch {PRODUCTS}", math.nan)
            base += (products - 1.0) * max(0.0, both - base) if products > 1.0 else 0.0
            ratio = medians[call.name] / base
            columns |= {"products": products, "ratio": None if math.isnan(ratio) else ratio}
        try:
            through = through or ("array API" if call.library == "lowrank" else "torch")
            if not call.once and "cupy" not in group["arrays"]:
                columns |= self.counts(call, through)
            if A is not None:
                columns |= accuracy(A, tuple(map(as_torch, parts(result))))
            if call.method in ("interpolative", "cur"):
                columns["orthogonality"] = None  # of columns of A
        except Exception as error:
            columns["note"] = told(error)
        return columns

    def counts(self, call: Call, through: str) -> dict[str, Any]:
        """What one more run launches, reads and allocates, and the prediction that follows."""
        found: dict[str, Any] = {}
        peak = peak_bytes(
            lambda: found.update(gpu_model.counted(partial(call.run, 0), through)), self.device
        )
        predicted = gpu_model.predicted(found["work"], self.constants)
        by = self.predicted_by
        return {**found, "peak_bytes": peak, "predicted": predicted, "predicted_by": by}


def as_torch(X: Any) -> torch.Tensor:
    return X if isinstance(X, torch.Tensor) else torch.from_dlpack(cupy().ascontiguousarray(X))


def cupy() -> Any:
    import cupy  # noqa: PLC0415

    return cupy


# -- matrices -------------------------------------------------------------------------------------

BASE = f"torch {PRODUCT}"


def bare_products(A: Any, k: int, *, half: bool = False) -> Calls:
    """The products alone; of a bfloat16 matrix in float32, as in lowrank, or in `half`."""
    dtype = torch.float32 if A.dtype == torch.bfloat16 and not half else A.dtype

    def product(X: torch.Tensor) -> torch.Tensor:
        return X @ torch.randn(X.shape[1], k, dtype=dtype, device=X.device)

    def both(X: torch.Tensor) -> torch.Tensor:
        return X.mT @ product(X)

    suffix = ", in bfloat16" if half else ""
    return [
        Call("torch", PRODUCT + suffix, "product", lambda _: product(A.to(dtype)), BASE, 1.0),
        Call("torch", PRODUCTS + suffix, "product", lambda _: both(A.to(dtype)), BASE, 2.0),
    ]


def lowrank_calls(A: Any, k: int, spectrum: str) -> Calls:
    """At the ranks, oversampling and power iterations that the peers get."""
    s = decay(min(A.shape), k)
    # no tolerance can be met on a flat spectrum before the basis is nearly complete
    tail = torch.linalg.vector_norm(s[k:]) / torch.linalg.vector_norm(s)
    adaptive = {"rank": k, "rtol": 1e-3} if spectrum == "flat" else {"rtol": SLACK * float(tail)}

    def ours(method: str, task: str | None, run: Callable[..., Any], **options: Any) -> Call:
        return Call("lowrank", method, task, lambda seed: run(A, rng=seed, **options), BASE)

    def svd(q: int) -> Call:
        options = {"rank": k, "oversampling": 0, "power_iterations": q}
        return ours(f"svd, q={q}", f"svd, q={q}", lowrank.svd, **options)

    finder = lowrank.range_finder
    return [
        ours("range_finder, q=0", "basis", finder, rank=k),
        ours("range_finder, q=2", None, finder, rank=k, power_iterations=2),
        ours("range_finder, adaptive", None, finder, **adaptive),
        ours("qb, q=0", None, lowrank.qb, rank=k),
        svd(0),
        svd(2),
    ]


def peers(A: Any, k: int) -> Calls:
    """Other libraries; what refuses bfloat16 gets the matrix in float32, and pays for the cast."""

    def cast() -> Any:
        return A.float() if A.dtype == torch.bfloat16 else A

    def svd_lowrank(niter: int) -> Callable[[int], Any]:
        def run(_: int) -> Any:
            U, S, V = torch.svd_lowrank(cast(), q=k, niter=niter)
            return U, S, V.mH

        return run

    def product_and_qr(_: int) -> Any:
        X = cast()
        return (torch.linalg.qr(X @ torch.randn(X.shape[1], k, dtype=X.dtype, device=X.device)).Q,)

    def of_sklearn(seed: int) -> Any:
        import sklearn  # noqa: PLC0415
        from sklearn.utils.extmath import randomized_svd  # noqa: PLC0415

        options = {"n_oversamples": 0, "n_iter": 2, "power_iteration_normalizer": "QR"}
        with sklearn.config_context(array_api_dispatch=True):
            return randomized_svd(cast(), n_components=k, random_state=seed, **options)

    method = "randomized_svd, n_iter=2, QR"
    return [
        Call("torch", "product + linalg.qr", "basis", product_and_qr, BASE, 1.0),
        Call("torch", "svd_lowrank, niter=0", "svd, q=0", svd_lowrank(0), BASE, 2.0),
        Call("torch", "svd_lowrank, niter=2", "svd, q=2", svd_lowrank(2), BASE, 6.0),
        Call("scikit-learn", method, "svd, q=2", of_sklearn, BASE, 6.0),
    ]


def matrix_calls(k: int, spectrum: str, A: torch.Tensor) -> Calls:
    half = bare_products(A, k, half=True) if A.dtype == torch.bfloat16 else []
    return [*bare_products(A, k), *half, *lowrank_calls(A, k, spectrum), *peers(A, k)]


def matrices(bench: Bench) -> None:
    sizes = SIZES[bench.sizes]
    plan = [("float32", *of) for of in sizes]
    plan += [(dtype, *of) for dtype in ("bfloat16", "float64") for of in sizes[:2]]
    for dtype, shape, k in plan:
        for spectrum in ("flat", "fast"):
            calls_of = partial(matrix_calls, k, spectrum)
            bench.measure("matrix", calls_of, dtype, shape, k, spectrum)
    shape, k = sizes[3 % len(sizes)]
    bench.measure("full svd", partial(full_svd_calls, k), "float32", shape, k, "fast")


def full_svd_calls(k: int, A: torch.Tensor) -> Calls:
    def full(driver: str) -> Call:
        name = f"linalg.svd, {driver}"
        return Call("torch", name, "svd", lambda _: cut(torch_svd(A, driver), k), BASE, once=True)

    ours = replace(lowrank_calls(A, k, "fast")[-1], task="svd")
    return [*bare_products(A, k), ours, full("gesvdj"), full("gesvda")]


def torch_svd(A: torch.Tensor, driver: str) -> Any:
    return torch.linalg.svd(A, full_matrices=False, driver=driver if A.is_cuda else None)


def published(bench: Bench) -> None:
    for n, k, *theirs in PUBLISHED[bench.sizes]:
        adaptive, fixed = (of and of / 1e3 for of in theirs)
        columns = {"published": adaptive, "published_fixed": fixed}
        calls_of = partial(published_calls, k)
        bench.measure("published", calls_of, "float32", (n, n), k, "flat", **columns)


def published_calls(k: int, A: torch.Tensor) -> Calls:
    def grown(seed: int) -> Any:
        finder = lowrank.RangeFinder(A, power_iterations=0, block_size=128, rng=seed)
        return finder.reach(rtol=1e-6, rank=k)

    basis, *_, qb, _, _ = lowrank_calls(A, k, "flat")
    reach = Call("lowrank", "RangeFinder.reach, q=0", "qb", grown, BASE, 3.0)
    return [*bare_products(A, k), basis, replace(qb, task="qb"), reach]


def tolerances(bench: Bench) -> None:
    for shape, spectrum, rtol, dtype in TOLERANCES[bench.sizes]:
        calls_of = partial(tolerance_calls, rtol)
        bench.measure("tolerance", calls_of, dtype, shape, None, spectrum, rtol=rtol)


def tolerance_calls(rtol: float, A: torch.Tensor) -> Calls:
    ranks = [1]

    def grown(seed: int) -> Any:
        found = lowrank.svd(A, rtol=rtol, rng=seed)
        ranks.append(found.rank)
        return found

    def at_once(seed: int) -> Any:
        return lowrank.svd(A, ranks[-1], rng=seed)

    runs = {"svd, rtol": grown, "svd, rank": at_once}
    return [Call("lowrank", name, None, run, "lowrank svd, rank") for name, run in runs.items()]


def panels(bench: Bench) -> None:
    for dtype in ("float32", "float64", "complex64"):
        for shape in PANELS[bench.sizes]:
            for spectrum in ("flat", "fast"):
                bench.measure("panel", panel_calls, dtype, shape, shape[1], spectrum)


def panel_calls(P: torch.Tensor) -> Calls:
    base = "torch linalg.qr"
    return [
        Call("torch", "linalg.qr", "panel", lambda _: tuple(torch.linalg.qr(P)), base),
        Call("lowrank", "qr", "panel", lambda _: tuple(lowrank.qr(P)), base),
        Call("torch", "geqrf", None, lambda _: torch.geqrf(P)[0], base),
    ]


def small_svd(bench: Bench) -> None:
    for k in ORDERS[bench.sizes]:
        bench.measure("small svd", small_calls, "float64", (k, k), k, "Gram")
    n, b = (16384, 128) if bench.sizes == "full" else (512, 64)
    bench.measure("rate", partial(rates, bench, b), "float32", (n, n), b, "flat")


def small_calls(G: torch.Tensor) -> Calls:
    S = G.float()

    def eigh(X: torch.Tensor) -> Any:
        w, V = torch.linalg.eigh(X)
        return V, w, V.mH

    runs: dict[str, Callable[[], Any]] = {
        "eigh, float64": lambda: eigh(G),
        "eigh, float32": lambda: eigh(S),
        **{f"svd, {of}": partial(torch_svd, S, of) for of in ("gesvdj", "gesvda", "gesvd")},
        "qr, float32": lambda: tuple(torch.linalg.qr(S)),
        "cholesky_ex, float64": lambda: torch.linalg.cholesky_ex(G)[0],
        "inv_ex, float64": lambda: torch.linalg.inv_ex(G)[0],
    }
    return [Call("torch", name, None, lambda _, run=run: run()) for name, run in runs.items()]


def rates(bench: Bench, b: int, A: torch.Tensor) -> Calls:
    def of(method: str, run: Callable[[], Any]) -> Call:
        return Call("torch", method, None, lambda _: run())

    def product(dtype: str, shape: Shape, columns: int) -> Call:
        X = bench.matrix("flat", shape, 0, dtype)
        Y = bench.matrix("flat", (shape[1], columns), 0, dtype)
        return of(f"{size(shape)} by {columns} columns, {dtype}", lambda: X @ Y)

    dtypes = ("float32", "float64", "bfloat16", "complex64")
    return [
        *(product(dtype, A.shape, columns) for dtype in dtypes for columns in (b, 4 * b)),
        product("float64", (4 * b, len(A)), 4 * b),
        of("norm", lambda: torch.linalg.vector_norm(A)),
        of("a number read", lambda: float(A[0, 0])),
    ]


# -- every function, kind of input and dtype -------------------------------------------------------


class Products:
    """A matrix that can only be multiplied with."""

    def __init__(self, A: Any) -> None:
        self.A, self.shape, self.dtype, self.device = A, A.shape, A.dtype, A.device

    def cast(self, X: Any) -> Any:
        return (self.A.to if isinstance(X, torch.Tensor) else self.A.astype)(X.dtype)

    def matmat(self, X: Any) -> Any:
        return self.cast(X) @ X

    def rmatmat(self, Y: Any) -> Any:
        return self.cast(Y).conj().T @ Y


def call_of(function: str, A: Any, Q: Any, k: int, seed: int) -> Any:
    """At a fixed rank, and RangeFinder to a tolerance."""
    if function == "RangeFinder":
        return lowrank.RangeFinder(A, rng=seed).reach(rtol=0.1).result()
    if function == "residual_norm":
        return lowrank.residual_norm(A, Q, rng=seed)
    if function == "SketchedMatrix.update":
        return lowrank.SketchedMatrix(A.shape, k, like=Q, rng=seed).update(A).svd()
    if function in ("qr", "householder_qr"):
        return getattr(lowrank, function)(A)
    return getattr(lowrank, function)(A, k, rng=seed)


def functions(bench: Bench) -> None:
    """What the table of capabilities says of CUDA; then a CUDA graph."""
    n, k = OF_FUNCTIONS[bench.sizes]
    table = tomllib.loads((ROOT / "docs" / "capabilities.toml").read_text("utf-8"))
    inputs, heads = list(table["inputs"]), table["libraries"]["columns"][2:6]
    for name, (_, device, *cells) in table["libraries"]["rows"].items():
        kind = name.partition(":")[0]
        for head, cell in zip(heads, cells, strict=False):
            for dtype in head.split(", ") if device == "CUDA" and cell != "none" else ():
                column = kind if kind in inputs else "half" if cell != "yes" else "array"
                place = inputs.index(column)
                names = [of for of, row in table["functions"].items() if row[place] != "no"]
                calls_of = partial(function_calls, name, names, k)
                bench.measure("functions", calls_of, dtype, (n, n), k, "positive", arrays=name)
    shape, k = SIZES[bench.sizes][0]
    bench.measure("capture", partial(captured, k), "float32", shape, k, "fast")


def function_calls(name: str, names: list[str], k: int, A: Any) -> Calls:
    dtype = torch.float32 if A.element_size() == 2 else A.dtype
    Q = torch.eye(len(A), 4, dtype=dtype, device=A.device)
    if "cupy" in name:
        A, Q = (cupy().from_dlpack(X) for X in (A, Q))
    if name == "sparse:cupy":
        A = import_module("cupyx.scipy.sparse").csr_matrix(A)
    elif name.startswith("sparse"):
        A = A.to_sparse()
    elif name.startswith("operator"):
        A = Products(A)
    return [Call("lowrank", of, None, partial(call_of, of, A, Q, k)) for of in names]


def captured(k: int, A: torch.Tensor) -> Calls:
    """The range finder, and its replay as a CUDA graph on other numbers than it was captured on."""
    Omega = torch.randn(A.shape[1], k, device=A.device)

    def eager(_: int = 0) -> Any:
        return lowrank.range_finder(A, k, test_matrix=Omega, check_finite=False)

    # libraries choose kernels and allocate workspaces at their first calls, which no graph may hold
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = eager()
    Omega.normal_()

    def replay(_: int) -> Any:
        graph.replay()
        return found

    base, name = "lowrank range_finder, q=0", "range_finder, q=0"
    again = Call("lowrank", f"{name}, replayed CUDA graph", None, replay, base)
    return [Call("lowrank", name, None, eager, base), again]


# -- optimizers ------------------------------------------------------------------------------------


def llama(device: torch.device, *, small: bool) -> torch.nn.Module:
    """The weights of a Llama of 130M: 84 matrices that are compressed, and 27 that are not."""
    width, wide, words, layers = (64, 176, 500, 2) if small else (768, 2048, 32_000, 12)
    of = {"in": (width, wide), "out": (wide, width), "same": (width, width)}
    names = ("same",) * 4 + ("in",) * 2 + ("out",)
    linear = partial(torch.nn.Linear, bias=False)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(words, width),
            "layers": torch.nn.ModuleList(linear(*of[name]) for name in names * layers),
            "norms": torch.nn.ModuleList(torch.nn.RMSNorm(width) for _ in range(2 * layers + 1)),
            "lm_head": linear(width, words),
        }
    )
    return model.to(device, torch.bfloat16)


def stepping(model_of: Callable[[], torch.nn.Module], rank: int, _: Any = None) -> Calls:
    """A step of each optimizer, after the first one, which makes its bases."""

    def fail(error: Exception) -> None:
        raise error

    calls = []
    for name, make in optimizer.makers(rank).items():
        try:
            step = make(optimizer.with_gradients(model_of())).step
            step()
        except Exception as error:
            step = partial(fail, error)
        run = partial(lambda step, _: step(), step)
        calls.append(Call(optimizer.library_of(name), name, None, run, "torch AdamW, fused"))
    return calls


def optimizers(bench: Bench) -> None:
    small = bench.sizes == "small"
    rank = 16 if small else 192
    calls_of = partial(stepping, partial(llama, bench.device, small=small), rank)
    options = {"through": "torch", "rank": rank}
    bench.measure("llama step", calls_of, "bfloat16", None, None, None, **options)
    budget = bench.budget.part(keeping=15.0)
    optimizer.measure(bench.results, bench.device, "bfloat16", quick=small, budget=budget)
    width = optimizer.Sizes(quick=small).width
    block = partial(optimizer.block, width, bench.device, torch.bfloat16)
    calls = {call.method: call for call in stepping(block, width // 8)}
    for row in bench.results.rows:
        if row["section"] == "step" and row["seconds"] and bench.budget.left() > 0.0:
            counts = bench.counts(calls[row["method"]], "torch")
            row.update(counts, peak_bytes=row["peak_bytes"])
    bench.results.save()


# -- the test-suite -------------------------------------------------------------------------------

# Stands for array-api-strict where it is not installed: the tests build their backends from it, and
# those that would use it are not selected.
STRICT = """
class Device:
    def __init__(self, name):
        self.name = name
"""


def tests(bench: Bench) -> None:
    """Outcome of the tests that run on torch CUDA and CuPy."""
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        bench.results.header["tests"] = {"skipped": f"not installed: {', '.join(missing)}"}
        return
    seconds = bench.budget.left() - 12.0
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("array_api_strict") is None:
            Path(folder, "array_api_strict.py").write_text(STRICT, "utf-8")
        # only the plugins named here: others of the machine may warn, and warnings are errors
        options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=short"]
        workers = min(8, cores() // 2)
        if find_spec("xdist") and bench.device.type == "cuda" and workers > 1:
            options += ["-p", "xdist.plugin", "-n", str(workers)]
        command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or cupy", *options, "tests"]
        paths = os.pathsep.join(filter(None, [folder, str(SOURCE), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment.pop("SCIPY_ARRAY_API", None)
        # interrupted, it reports what it has; its own children end with it
        limit = ["timeout", "--signal=INT", "--kill-after=10", f"{seconds:.0f}"]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
        done = subprocess.run([*limit, *command], cwd=ROOT, env=environment, check=False, **output)
    found = {"status": done.returncode, "seconds": seconds, **counts(done.stdout)}
    bench.results.header["tests"] = {**found, "output": done.stdout[-6000:]}
    print(done.stdout[-2000:], flush=True)


def counts(shown: str) -> dict[str, int]:
    """Passed, failed and skipped tests, from the summary or else from the dots."""
    words = {"passed": ".", "failed": "F", "skipped": "s", "error": "E"}
    last = shown.strip().rpartition("\n")[2]
    found = {of: int(count) for count, of in re.findall(rf"(\d+) ({'|'.join(words)})", last)}
    if not found:
        dots = "".join(re.findall(r"^([.sFExX]+)(?: *\[ *\d+%\])?$", shown, re.MULTILINE))
        found = {word: dots.count(letter) for word, letter in words.items()}
    return {word.replace("error", "errors"): found.get(word, 0) for word in words}


# -- the run --------------------------------------------------------------------------------------

# What tells most comes first.
PARTS: dict[str, Callable[[Bench], None]] = {
    "tests": tests,
    "published": published,
    "tolerances": tolerances,
    "matrices": matrices,
    "optimizers": optimizers,
    "small_svd": small_svd,
    "panels": panels,
    "functions": functions,  # a capture that fails may leave torch unusable
}


def told_of(row: dict[str, Any]) -> str:
    """A row in one line."""
    group = [row["section"], row.get("arrays"), row["dtype"], row["shape"] and size(row["shape"])]
    group += [row.get("k") and f"k={row['k']}", row["spectrum"], row["method"]]
    time = f"{duration(row['seconds'])} ({duration(row.get('predicted'))} predicted)"
    figures = [f"ratio {number(row['ratio'])}"] if row["ratio"] else []
    figures += [f"{key} {float(row[key]):.1e}" for key in ("error", "orthogonality") if row[key]]
    told = [row["skipped"]] if row["seconds"] is None else [time, *figures, row.get("note")]
    return f"{' '.join(filter(None, group))}: {', '.join(filter(None, told))}"[:300]


def finish(bench: Bench) -> None:
    """Refit the model, and say what the run shows."""
    results = bench.results
    model = gpu_model.refit(results.rows)
    results.header["model"] = model and {"of": sorted(results.header["parts"]), **model}
    results.save()
    for goal, reached, met in gpu_goals(results.rows):
        if reached != "–":
            print(f"{goal}: {reached}, {met}")
    if model:
        before, after = (model[f"within_30_percent{of}"] for of in ("_before", ""))
        print(f"within 30 % of the model: {before}, fitted {after}, of {model['rows']} rows")
    print(f"{len(results.rows)} rows", flush=True)


def give_up(bench: Bench) -> None:
    """End a run whose current call does not: all that was measured is in the file."""
    bench.results.header["parts"][bench.results.part["part"]]["ended"] = "in the middle of a call"
    finish(bench)
    os._exit(3)


def main() -> None:
    # before anything imports SciPy, which reads it once; scikit-learn asks for it
    os.environ["SCIPY_ARRAY_API"] = "1"
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write, or to add to")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, help="for all; by default 3.8 for each part")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a trial")
    parser.add_argument("--sizes", choices=list(SIZES), default="full")
    options = parser.parse_args()
    device, name = asked_device(options.device, "--device cpu --sizes small")
    settings: dict[str, Any] = {"allow_tf32_by_default": torch.backends.cuda.matmul.allow_tf32}
    torch.set_float32_matmul_precision("highest")
    torch.set_grad_enabled(False)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        settings |= {"device_memory": properties.total_memory, "cuda": torch.version.cuda}
        settings["capability"] = [properties.major, properties.minor]
    about = header("gpu", name, PACKAGES)
    about |= {"settings": settings, "quick": options.sizes == "small"}
    results = Results(options.out, resume=True, **about)
    results.tell = lambda row: print(f"{budget.spent():4.0f} s  {told_of(row)}", flush=True)
    fitted = results.header.get("model")
    constants = fitted["constants"] if fitted else gpu_model.CONSTANTS
    by = "earlier rows of this file" if fitted else gpu_model.FITTED_TO
    seconds = 60.0 * (options.minutes or PART_MINUTES * len(options.part))
    budget = Budget(seconds - 10.0)  # the last ones are for the end
    bench = Bench(device, options.sizes, results, budget, dict(constants), by)
    watch = threading.Timer(seconds, give_up, [bench])
    watch.daemon = True
    watch.start()
    for part in options.part:
        bench.budget = budget.part(at_most=60.0 * PART_MINUTES - 10.0)
        if bench.budget.left() < 5.0:
            print(f"no time left for {part}")
            continue
        stamp = results.begin(part)
        try:
            PARTS[part](bench)
        except Exception as error:  # the other parts are still worth having
            stamp["ended"] = told(error)
        stamp["seconds"] = bench.budget.spent()
    finish(bench)
    watch.cancel()


if __name__ == "__main__":
    main()
