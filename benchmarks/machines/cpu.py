"""Measures lowrank on this machine's processor, against the bare products and other libraries.

    python -m benchmarks.machines.cpu --out benchmarks/results/cpu-NAME-DATE.json [--quick]

Needs PyTorch and SciPy; scikit-learn, dask and librla are used where they are installed. Takes
about 12 minutes on two cores, and with --quick, on small matrices, a minute. Nothing else should
run meanwhile: threads that wait for one another lose far more than their share of a busy core.

NumPy and torch each have a process of their own, so that the threads of neither disturb the other.
Within a group of rows the calls take turns, on one input, and seconds are medians of repeats after
a first call that warms up. Sections of the rows:

- "fixed rank": bases and factorizations of rank k without power iterations or oversampling. `ratio`
  is to the draw of Omega and the product (bases), or to these and the second product (the others).
- "adaptive": the range finder to a tolerance, and at once for the rank that it then finds. The
  tolerance is a few times the best error at rank k, and not below what the dtype allows.
- "svd": truncated SVDs of the same rank, with accuracy; `ratio` is to lowrank.svd.
- "qr": QR of Gaussian matrices; `ratio` is to lowrank.qr, and `error` is ‖A − QR‖/‖A‖.
- "growth": seconds against m, n and k, each with the others fixed. "fits" has the least-squares
  slopes of log seconds, and of the log of the flops of all products, over the log of the size.

`error` is ‖A − QQᴴA‖/‖A‖ of a basis and the residual of a factorization, in the Frobenius norm and
computed in float64. `over_best` is the same over the best possible error at that rank; null where
that is below rounding. `orthogonality` is ‖QᴴQ − I‖_F. `k` is the rank asked for, `rank` that of
the result. "memory" lists the peak of what NumPy allocates beyond A, in elements, beside the
documented limit.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import lowrank
from benchmarks import ROOT
from benchmarks.common import measuring
from benchmarks.common.accuracy import accuracy, cut, parts
from benchmarks.common.measuring import Call, Judge, interleaved, told
from benchmarks.common.results import Results, cpu_name, header
from lowrank import gallery

Shape = tuple[int, int]
Row = dict[str, Any]
DTYPES = ("float32", "float64")
SPECTRA = ("flat", "fast", "slow")
PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "dask", "librla", "array-api-compat")
THREAD_SETTINGS = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_THREAD_TIMEOUT",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)
PRODUCT, PRODUCTS = "draw and A @ Omega", "draw and both products"
FIXED, ADAPTIVE = "range_finder", "range_finder, adaptive"
# The tolerance of the adaptive range finder in units of the best error at rank k: without power
# iterations the error is two or three of them, and the certificate asks for twice that.
SLACK = 7.0
# What can be certified at these ranks, with some room.
LEAST_TOLERANCE = {"float32": 2e-5, "float64": 1e-13}
# Seconds: the threads of a second BLAS in the process go on spinning for a while after each call.
REST = 0.05


@dataclass(frozen=True)
class Sizes:
    n: int  # of the square matrix for "fixed rank" and "adaptive"
    k: int
    svd_n: int
    svd_k: int
    qr: tuple[Shape, ...]
    growth: tuple[int, ...]  # values of m and n
    growth_other: int  # n or m beside them
    growth_ranks: tuple[int, ...]
    growth_shape: Shape  # of the matrix for these ranks
    growth_k: int  # beside values of m and n
    memory: tuple[Shape, ...]
    memory_ranks: tuple[int, ...]


FULL = Sizes(
    n=4096,
    k=256,
    svd_n=2000,
    svd_k=50,
    qr=((65536, 256), (100_000, 64), (1_000_000, 32), (2000, 2000)),
    growth=(1024, 2048, 4096, 8192, 16384),
    growth_other=2048,
    growth_ranks=(64, 128, 256, 512, 1024),
    growth_shape=(4096, 4096),
    growth_k=128,
    memory=((20_000, 1000), (4000, 4000), (1000, 20_000)),
    memory_ranks=(64, 128, 256),
)
QUICK = Sizes(
    n=768,
    k=48,
    svd_n=300,
    svd_k=20,
    qr=((8192, 64), (20_000, 16), (300, 300)),
    growth=(256, 512, 1024, 2048, 4096),
    growth_other=512,
    growth_ranks=(64, 96, 128, 192, 256),
    growth_shape=(1024, 1024),
    growth_k=32,
    memory=((8000, 400), (1500, 1500), (400, 8000)),
    memory_ranks=(64, 128),
)


# -- arrays ---------------------------------------------------------------------------------------


class Arrays:
    """NumPy or torch: what both are needed for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.xp = import_module(name)

    def load(self, path: Path, dtype: str) -> Any:
        return self.of(np.load(path).astype(dtype))

    def of(self, X: Any) -> Any:
        return X if self.name == "numpy" else self.xp.from_numpy(X)

    def draw(self, seed: int, shape: Shape, dtype: Any) -> Any:
        if self.name == "numpy":
            return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)
        return self.xp.randn(shape, dtype=dtype)

    def gaussian(self, shape: Shape, dtype: str) -> Any:
        """A matrix to factorize, the same for both libraries."""
        return self.of(np.random.default_rng(1).standard_normal(shape, dtype=np.dtype(dtype)))


def judged(A: Any, spectrum: Any, dtype: str) -> Judge:
    """Accuracy of bases and factorizations of a matrix with these singular values."""
    norm = gallery.best_error(spectrum, 0)

    def judge(_: Call, result: Any, __: Any) -> Row:
        found = accuracy(A, parts(result))
        if not found:
            return {}
        best = gallery.best_error(spectrum, found["rank"]) / norm
        is_visible = best > math.sqrt(found["rank"]) * float(np.finfo(dtype).eps)
        told_by = {key: getattr(result, key, None) for key in ("converged", "products")}
        return {**found, "over_best": found["error"] / best if is_visible else None, **told_by}

    return judge


# -- measuring ------------------------------------------------------------------------------------


def measure(results: Results, group: Row, A: Any, calls: list[Call], judge: Judge) -> None:
    measuring.measure(results, group, calls, judge, rest=lambda _: rest(A))
    print(", ".join(f"{key} {value}" for key, value in group.items()), flush=True)


def rest(A: Any) -> None:
    """Let foreign threads fall asleep, and wake the own ones with an untimed product with A."""
    time.sleep(REST)
    _ = A.T @ A[:, :16]


def group_of(section: str, arrays: Arrays, A: Any, **more: Any) -> Row:
    dtype = str(A.dtype).rpartition(".")[2]
    return {
        "section": section,
        "arrays": arrays.name,
        "dtype": dtype,
        "shape": [int(size) for size in A.shape],
    } | more


# -- sections -------------------------------------------------------------------------------------


def fixed_rank(results: Results, arrays: Arrays, folder: Path, sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        for dtype in DTYPES:
            A = arrays.load(folder / f"{spectrum}.npy", dtype)
            measure(
                results,
                group_of("fixed rank", arrays, A, k=sizes.k, spectrum=spectrum),
                A,
                fixed_rank_calls(arrays, A, sizes.k),
                judged(A, s, dtype),
            )


def fixed_rank_calls(arrays: Arrays, A: Any, k: int) -> list[Call]:
    shape = A.shape[1], k
    one, two = f"{arrays.name} {PRODUCT}", f"{arrays.name} {PRODUCTS}"

    def product(seed: int) -> Any:
        return A @ arrays.draw(seed, shape, A.dtype)

    def both_products(seed: int) -> Any:
        return A.T @ product(seed)

    def svd(seed: int) -> Any:
        return lowrank.svd(A, k, oversampling=0, power_iterations=0, rng=seed)

    return [
        Call(arrays.name, PRODUCT, "product", product, one),
        Call("lowrank", FIXED, "basis", lambda seed: lowrank.range_finder(A, k, rng=seed), one),
        Call(arrays.name, PRODUCTS, "product", both_products, two),
        Call("lowrank", "qb", "qb", lambda seed: lowrank.qb(A, k, rng=seed), two),
        Call("lowrank", "svd", "svd", svd, two),
        Call(
            arrays.name,
            "linalg.qr(A @ Omega)",
            "basis",
            lambda seed: (arrays.xp.linalg.qr(product(seed))[0],),
            one,
        ),
        *(numpy_peers(A, k, one, two) if arrays.name == "numpy" else torch_peers(A, k, two)),
    ]


def numpy_peers(A: Any, k: int, one: str, two: str) -> list[Call]:
    def basis(seed: int) -> Any:
        extmath = import_module("sklearn.utils.extmath")
        return (extmath.randomized_range_finder(A, size=k, n_iter=0, random_state=seed),)

    def svd(seed: int) -> Any:
        extmath = import_module("sklearn.utils.extmath")
        return extmath.randomized_svd(A, k, n_oversamples=0, n_iter=0, random_state=seed)

    name = "scikit-learn"
    return [
        Call(name, "randomized_range_finder", "basis", basis, one, foreign=True),
        Call(name, "randomized_svd", "svd", svd, two, foreign=True),
    ]


def torch_peers(A: Any, k: int, two: str) -> list[Call]:
    return [Call("torch", "svd_lowrank", "svd", lambda _: svd_lowrank(A, k, k, 0), two)]


def svd_lowrank(A: Any, rank: int, q: int, niter: int) -> Any:
    U, S, V = import_module("torch").svd_lowrank(A, q=q, niter=niter)
    return U[:, :rank], S[:rank], V[:, :rank].T


def adaptive(results: Results, arrays: Arrays, folder: Path, sizes: Sizes) -> None:
    """To a tolerance, and for the rank that is found in the same turn."""
    for spectrum in ("slow", "fast"):
        s = getattr(gallery, spectrum)(sizes.n)
        for dtype in DTYPES:
            A = arrays.load(folder / f"{spectrum}.npy", dtype)
            best = gallery.best_error(s, sizes.k) / gallery.best_error(s, 0)
            rtol = max(SLACK * best, LEAST_TOLERANCE[dtype])
            ranks = [sizes.k]

            def grown(seed: int, A: Any = A, rtol: float = rtol, ranks: list[int] = ranks) -> Any:
                found = lowrank.range_finder(A, rtol=rtol, rng=seed)
                ranks.append(found.rank)
                return found

            def at_once(seed: int, A: Any = A, ranks: list[int] = ranks) -> Any:
                return lowrank.range_finder(A, ranks[-1], rng=seed)

            base = f"lowrank {FIXED}"
            measure(
                results,
                group_of("adaptive", arrays, A, spectrum=spectrum, k=None, rtol=rtol),
                A,
                [
                    Call("lowrank", ADAPTIVE, "adaptive", grown, base),
                    Call("lowrank", FIXED, "basis", at_once, base),
                ],
                judged(A, s, dtype),
            )


def svds(results: Results, arrays: Arrays, folder: Path, sizes: Sizes) -> None:
    s, k = gallery.slow(sizes.svd_n), sizes.svd_k
    for dtype in DTYPES:
        A = arrays.load(folder / "svd.npy", dtype)
        measure(
            results,
            group_of("svd", arrays, A, spectrum="slow", k=k),
            A,
            svd_calls(arrays, A, k),
            judged(A, s, dtype),
        )


def svd_calls(arrays: Arrays, A: Any, k: int) -> list[Call]:
    base = "lowrank svd"

    def peer(library: str, method: str, run: Callable[[int], Any], *, once: bool = False) -> Call:
        foreign = library not in ("numpy", "torch", "lowrank")
        return Call(library, method, "svd", run, base, once=once, foreign=foreign)

    def ours(name: str, **options: Any) -> Call:
        return peer("lowrank", name, lambda seed: lowrank.svd(A, k, rng=seed, **options))

    def full(library: str) -> Call:
        svd = import_module(f"{library}.linalg").svd
        return peer(library, "linalg.svd", lambda _: cut(svd(A, full_matrices=False), k), once=True)

    both = [ours("svd"), ours("svd, power_iterations=7", power_iterations=7)]
    if arrays.name == "torch":
        return [
            *both,
            peer("torch", "svd_lowrank", lambda _: svd_lowrank(A, k, k, 2)),
            peer("torch", f"svd_lowrank, q={k + 10}", lambda _: svd_lowrank(A, k, k + 10, 2)),
            full("torch"),
        ]

    def sklearn(seed: int, **options: Any) -> Any:
        extmath = import_module("sklearn.utils.extmath")
        return extmath.randomized_svd(A, k, random_state=seed, **options)

    def sparse(seed: int, solver: str) -> Any:
        return import_module("scipy.sparse.linalg").svds(A, k, solver=solver, rng=seed)

    def by_interpolation(seed: int) -> Any:
        if A.dtype != np.float64:
            message = "computes in double precision only"
            raise TypeError(message)
        U, S, V = import_module("scipy.linalg.interpolative").svd(A, k, rng=seed)
        return U, S, V.T.conj()

    def dask(seed: int, iterator: str) -> Any:
        whole = import_module("dask.array").from_array(A, chunks=A.shape)
        compressed = import_module("dask.array.linalg").svd_compressed
        lazy = compressed(whole, k, iterator=iterator, n_power_iter=2, seed=seed)
        return import_module("dask").compute(*lazy)

    def librla(seed: int) -> Any:
        sketch = import_module("librla").svd_sketch
        rng = np.random.default_rng(seed)
        return sketch(A, k, power_iter=2, extra_samples=10, rng=rng)

    return [
        *both,
        peer("scikit-learn", "randomized_svd", sklearn),
        peer(
            "scikit-learn",
            "randomized_svd, n_iter=2, QR",
            lambda seed: sklearn(seed, n_iter=2, power_iteration_normalizer="QR"),
        ),
        peer("scipy", "svds, ARPACK", lambda seed: sparse(seed, "arpack")),
        peer("scipy", "svds, PROPACK", lambda seed: sparse(seed, "propack")),
        peer("scipy", "interpolative.svd", by_interpolation),
        peer("dask", "svd_compressed, n_power_iter=2", lambda seed: dask(seed, "power")),
        peer("dask", "svd_compressed, n_power_iter=2, QR", lambda seed: dask(seed, "QR")),
        peer("librla", "svd_sketch, power_iter=2", librla),
        full("numpy"),
        full("scipy"),
    ]


def qrs(results: Results, arrays: Arrays, folder: Path, sizes: Sizes) -> None:  # noqa: ARG001
    base = "lowrank qr"
    for shape in sizes.qr:
        for dtype in DTYPES:
            A = arrays.gaussian(shape, dtype)
            linalg = arrays.xp.linalg
            calls = [
                Call("lowrank", "qr", "qr", lambda _, A=A: tuple(lowrank.qr(A)), base),
                Call(
                    arrays.name,
                    "linalg.qr",
                    "qr",
                    lambda _, A=A, linalg=linalg: tuple(linalg.qr(A)),
                    base,
                ),
            ]
            if arrays.name == "numpy":
                calls.append(Call("scipy", "linalg.qr", "qr", scipy_qr(A), base, foreign=True))
            measure(
                results,
                group_of("qr", arrays, A, spectrum="Gaussian", k=None),
                A,
                calls,
                lambda _, result, __, A=A: accuracy(A, result),
            )


def scipy_qr(A: Any) -> Callable[[int], Any]:
    return lambda _: import_module("scipy.linalg").qr(A, mode="economic")


# -- growth and memory, on NumPy ------------------------------------------------------------------


def capped(A: Any, k: int, seed: int) -> Any:
    """The adaptive range finder up to k columns: a Gaussian matrix has no better tolerance."""
    return lowrank.range_finder(A, k, rtol=1e-9, rng=seed)


METHODS: dict[str, Callable[[Any, int, int], Any]] = {
    FIXED: lambda A, k, seed: lowrank.range_finder(A, k, rng=seed),
    ADAPTIVE: capped,
    "qb": lambda A, k, seed: lowrank.qb(A, k, rng=seed),
}


def growth(results: Results, arrays: Arrays, folder: Path, sizes: Sizes) -> None:  # noqa: ARG001
    other, k = sizes.growth_other, sizes.growth_k
    whole = arrays.gaussian(sizes.growth_shape, "float64")
    of_axis: dict[str, list[tuple[Any, int]]] = {
        "m": [(arrays.gaussian((m, other), "float64"), k) for m in sizes.growth],
        "n": [(arrays.gaussian((other, n), "float64"), k) for n in sizes.growth],
        "k": [(whole, rank) for rank in sizes.growth_ranks],
    }
    for axis, cases in of_axis.items():
        rows = growth_of(results, arrays, axis, cases)
        for method in METHODS:
            mine = [row for row in rows if row["method"] == method]
            points = [{"m": row["shape"][0], "n": row["shape"][1], "k": row["k"]} for row in mine]
            x = [point[axis] for point in points]
            results.header["fits"].append(
                {
                    "method": method,
                    "axis": axis,
                    "sizes": x,
                    "slope": slope(x, [row["seconds"] for row in mine]),
                    "products_slope": slope(x, [row["flops"] for row in mine]),
                }
            )
    results.save()


def growth_of(
    results: Results, arrays: Arrays, axis: str, cases: list[tuple[Any, int]]
) -> list[Row]:
    """All sizes and methods in turn."""
    calls = {
        f"{method} {place}": lambda seed, run=run, A=A, k=k: run(A, k, seed).products
        for place, (A, k) in enumerate(cases)
        for method, run in METHODS.items()
    }
    timings = interleaved(calls)
    rows = []
    for place, (A, k) in enumerate(cases):
        m, n = A.shape
        for method in METHODS:
            timing = timings[f"{method} {place}"]
            if timing.result is None:
                raise RuntimeError(timing.failure)
            group = group_of("growth", arrays, A, axis=axis, k=k, spectrum="Gaussian")
            counted = {"products": timing.result, "flops": 2 * m * n * timing.result}
            row = results.add(**group, library="lowrank", method=method, **timing.row(), **counted)
            rows.append(row)
    print(f"growth with {axis}", flush=True)
    return rows


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def memory(results: Results, arrays: Arrays, folder: Path, sizes: Sizes) -> None:  # noqa: ARG001
    """Peaks of what NumPy allocates, results included, beside the limits in the docstrings."""
    for m, n in sizes.memory:
        A = arrays.gaussian((m, n), "float64")
        for k in sizes.memory_ranks:
            look = 64 * (1 + k // 512)  # columns of the last look
            basis = (3 * m + n) * k + 4 * k**2
            wide = k + 10  # with the usual oversampling
            cases = {
                FIXED: (METHODS[FIXED], basis + (m + n) * 64),
                ADAPTIVE: (METHODS[ADAPTIVE], basis + (m + n) * look),
                "svd": (
                    lambda A, k, seed: lowrank.svd(A, k, rng=seed),
                    (3 * m + 4 * n) * wide + 10 * wide**2,
                ),
            }
            for method, (run, limit) in cases.items():
                run(A, k, 0)  # what is imported or cached on the way does not count
                entry = {"method": method, "shape": [m, n], "k": k, "dtype": "float64"}
                elements = peak_bytes(run, A, k) / A.itemsize
                entry |= {"elements": elements, "limit": limit, "fraction": elements / limit}
                results.header["memory"].append(entry)
    results.save()
    print("memory", flush=True)


def peak_bytes(run: Callable[[Any, int, int], Any], A: Any, k: int) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = run(A, k, 1)
        peak = tracemalloc.get_traced_memory()[1]
        del result
    finally:
        tracemalloc.stop()
    return peak - before


# -- the run --------------------------------------------------------------------------------------

Section = Callable[[Results, Arrays, Path, Sizes], None]
COMMON: tuple[Section, ...] = (fixed_rank, adaptive, svds, qrs)
# Memory comes last: counting allocations slows them down.
PARTS: dict[str, tuple[Section, ...]] = {
    "numpy": (*COMMON, growth, memory),
    "torch": COMMON,
}


def make_matrices(folder: Path, sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        np.save(folder / f"{spectrum}.npy", gallery.matrix(s, rng=0))
    np.save(folder / "svd.npy", gallery.matrix(gallery.slow(sizes.svd_n), rng=0))


def measure_part(name: str, out: Path, folder: Path, sizes: Sizes) -> None:
    results = Results(out, fits=[], memory=[], failures=[])
    arrays = Arrays(name)
    for section in PARTS[name]:
        try:
            section(results, arrays, folder, sizes)
        except Exception as error:  # the other sections are still worth having
            results.header["failures"].append(f"{name}, {section.__name__}: {told(error)}")
            results.save()


def run_part(results: Results, name: str, folder: Path, *, quick: bool) -> None:
    """Measure a part in a process of its own, and take over what it found."""
    out = folder / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.machines.cpu", "--part", name]
    command += ["--out", str(out), "--folder", str(folder), *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        results.header["failures"].append(f"{name}: ended with exit code {done.returncode}")
    if out.exists():
        found = json.loads(out.read_text("utf-8"))
        results.rows += found["rows"]
        for key in ("fits", "memory", "failures"):
            results.header[key] += found[key]
    results.save()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="small matrices, for a trial")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    options = arguments()
    sizes = QUICK if options.quick else FULL
    if options.part:
        measure_part(options.part, options.out, options.folder, sizes)
        return
    start = time.perf_counter()
    about = header("cpu", cpu_name(), PACKAGES)
    settings = {name: os.environ.get(name) for name in THREAD_SETTINGS}
    empty: dict[str, list[Any]] = {"fits": [], "memory": [], "failures": []}
    results = Results(options.out, **about, quick=options.quick, settings=settings, **empty)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_matrices(folder, sizes)
        print(f"matrices made, {time.perf_counter() - start:.0f} s", flush=True)
        for part in PARTS:
            run_part(results, part, folder, quick=options.quick)
    results.header["wall_seconds"] = time.perf_counter() - start
    results.save()
    print(f"{len(results.rows)} rows in {results.header['wall_seconds']:.0f} s", flush=True)
    if results.header["failures"]:
        sys.exit("\n".join(results.header["failures"]))


if __name__ == "__main__":
    main()
