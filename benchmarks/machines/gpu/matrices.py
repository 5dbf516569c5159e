"""Parts that time range finders and factorizations, and what they are made of, on one matrix."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import lowrank
from benchmarks.common.accuracy import cut
from benchmarks.common.libraries import svd_lowrank
from benchmarks.common.measuring import Call, grown_and_at_once
from benchmarks.common.tables import size
from benchmarks.machines.gpu.bench import PRODUCT, PRODUCTS, Bench, Calls, Shape, decay

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
# The tolerance of the adaptive range finder in units of the best error at rank k: without power
# iterations the error is about 3 of them, and a sampled certificate asks for twice that.
SLACK = 7.0

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

    def of_torch(niter: int) -> Callable[[int], Any]:
        return lambda _: svd_lowrank(cast(), k, k, niter)

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
        Call("torch", "svd_lowrank, niter=0", "svd, q=0", of_torch(0), BASE, 2.0),
        Call("torch", "svd_lowrank, niter=2", "svd, q=2", of_torch(2), BASE, 6.0),
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
    runs = zip(("svd, rtol", "svd, rank"), grown_and_at_once(lowrank.svd, A, rtol), strict=True)
    return [Call("lowrank", name, None, run, "lowrank svd, rank") for name, run in runs]


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
