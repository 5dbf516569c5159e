"""Growth with each size, and memory, on NumPy."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

import lowrank
from benchmarks.common.measuring import interleaved
from benchmarks.machines.cpu.bench import ADAPTIVE, FIXED, Bench, Row


def capped(A: Any, k: int, seed: int) -> Any:
    """The adaptive range finder up to k columns: a Gaussian matrix has no better tolerance."""
    return lowrank.range_finder(A, k, rtol=1e-9, rng=seed)


METHODS: dict[str, Callable[[Any, int, int], Any]] = {
    FIXED: lambda A, k, seed: lowrank.range_finder(A, k, rng=seed),
    ADAPTIVE: capped,
    "qb": lambda A, k, seed: lowrank.qb(A, k, rng=seed),
}


def growth(bench: Bench) -> None:
    sizes = bench.sizes
    other, k = sizes.growth_other, sizes.growth_k
    whole = bench.gaussian(sizes.growth_shape, "float64")
    of_axis: dict[str, list[tuple[Any, int]]] = {
        "m": [(bench.gaussian((m, other), "float64"), k) for m in sizes.growth],
        "n": [(bench.gaussian((other, n), "float64"), k) for n in sizes.growth],
        "k": [(whole, rank) for rank in sizes.growth_ranks],
    }
    for axis, cases in of_axis.items():
        rows = growth_of(bench, axis, cases)
        for method in METHODS:
            mine = [row for row in rows if row["method"] == method]
            points = [{"m": row["shape"][0], "n": row["shape"][1], "k": row["k"]} for row in mine]
            x = [point[axis] for point in points]
            slopes = (slope(x, [row[key] for row in mine]) for key in ("seconds", "flops"))
            fit = {"method": method, "axis": axis, "sizes": x}
            fit |= zip(("slope", "products_slope"), slopes, strict=True)
            bench.results.header["fits"].append(fit)
    bench.results.save()


def growth_of(bench: Bench, axis: str, cases: list[tuple[Any, int]]) -> list[Row]:
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
            group = bench.group("growth", A, axis=axis, k=k, spectrum="Gaussian")
            counted = {"products": timing.result, "flops": 2 * m * n * timing.result}
            row = bench.results.add(
                **group, library="lowrank", method=method, **timing.row(), **counted
            )
            rows.append(row)
    print(f"growth with {axis}", flush=True)
    return rows


def slope(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def memory(bench: Bench) -> None:
    """Peaks of what NumPy allocates, results included, beside the limits in the docstrings."""
    for m, n in bench.sizes.memory:
        A = bench.gaussian((m, n), "float64")
        for k in bench.sizes.memory_ranks:
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
                bench.results.header["memory"].append(entry)
    bench.results.save()
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
