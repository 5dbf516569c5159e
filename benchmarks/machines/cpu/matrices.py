"""Sections of rows at a fixed rank and to a tolerance, beside other libraries."""

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

import lowrank
from benchmarks.common.libraries import full_svd, randomized_svd, svd_lowrank, truncated_svds
from benchmarks.common.measuring import Call, grown_and_at_once
from benchmarks.machines.cpu.bench import ADAPTIVE, DTYPES, FIXED, SPECTRA, Bench, judged
from lowrank import gallery

PRODUCT, PRODUCTS = "draw and A @ Omega", "draw and both products"
# The tolerance of the adaptive range finder in units of the best error at rank k: without power
# iterations the error is two or three of them, and the certificate asks for twice that.
SLACK = 7.0
# What can be certified at these ranks, with some room.
LEAST_TOLERANCE = {"float32": 2e-5, "float64": 1e-13}


def svd(A: Any, k: int, seed: int, **options: Any) -> Any:
    return lowrank.svd(A, k, rng=seed, **options)


def fixed_rank(bench: Bench) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(bench.sizes.n)
        for dtype in DTYPES:
            A = bench.load(spectrum, dtype)
            calls, judge = fixed_rank_calls(bench, A, bench.sizes.k), judged(A, s, dtype)
            bench.measure("fixed rank", A, calls, judge, k=bench.sizes.k, spectrum=spectrum)


def fixed_rank_calls(bench: Bench, A: Any, k: int) -> list[Call]:
    shape = A.shape[1], k
    one, two = f"{bench.name} {PRODUCT}", f"{bench.name} {PRODUCTS}"

    def product(seed: int) -> Any:
        return A @ bench.draw(seed, shape, A.dtype)

    def both_products(seed: int) -> Any:
        return A.T @ product(seed)

    def basis(seed: int) -> Any:
        return (bench.xp.linalg.qr(product(seed))[0],)

    bare = partial(svd, A, k, oversampling=0, power_iterations=0)
    return [
        Call(bench.name, PRODUCT, "product", product, one),
        Call("lowrank", FIXED, "basis", lambda seed: lowrank.range_finder(A, k, rng=seed), one),
        Call(bench.name, PRODUCTS, "product", both_products, two),
        Call("lowrank", "qb", "qb", lambda seed: lowrank.qb(A, k, rng=seed), two),
        Call("lowrank", "svd", "svd", bare, two),
        Call(bench.name, "linalg.qr(A @ Omega)", "basis", basis, one),
        *(numpy_peers(A, k, one, two) if bench.name == "numpy" else torch_peers(A, k, two)),
    ]


def numpy_peers(A: Any, k: int, one: str, two: str) -> list[Call]:
    def basis(seed: int) -> Any:
        extmath = import_module("sklearn.utils.extmath")
        return (extmath.randomized_range_finder(A, size=k, n_iter=0, random_state=seed),)

    def svd(seed: int) -> Any:
        return randomized_svd(A, k, seed, n_oversamples=0, n_iter=0)

    name = "scikit-learn"
    return [
        Call(name, "randomized_range_finder", "basis", basis, one, foreign=True),
        Call(name, "randomized_svd", "svd", svd, two, foreign=True),
    ]


def torch_peers(A: Any, k: int, two: str) -> list[Call]:
    return [Call("torch", "svd_lowrank", "svd", lambda _: svd_lowrank(A, k, k, 0), two)]


def adaptive(bench: Bench) -> None:
    """To a tolerance, and for the rank that is found in the same turn."""
    for spectrum in ("slow", "fast"):
        s = getattr(gallery, spectrum)(bench.sizes.n)
        for dtype in DTYPES:
            A = bench.load(spectrum, dtype)
            best = gallery.best_error(s, bench.sizes.k) / gallery.best_error(s, 0)
            rtol = max(SLACK * best, LEAST_TOLERANCE[dtype])
            grown, at_once = grown_and_at_once(lowrank.range_finder, A, rtol, bench.sizes.k)
            base = f"lowrank {FIXED}"
            calls = [
                Call("lowrank", ADAPTIVE, "adaptive", grown, base),
                Call("lowrank", FIXED, "basis", at_once, base),
            ]
            named = {"spectrum": spectrum, "k": None, "rtol": rtol}
            bench.measure("adaptive", A, calls, judged(A, s, dtype), **named)


def svds(bench: Bench) -> None:
    s, k = gallery.slow(bench.sizes.svd_n), bench.sizes.svd_k
    for dtype in DTYPES:
        A = bench.load("svd", dtype)
        calls, judge = svd_calls(bench, A, k), judged(A, s, dtype)
        bench.measure("svd", A, calls, judge, spectrum="slow", k=k)


def svd_calls(bench: Bench, A: Any, k: int) -> list[Call]:
    def dask(seed: int, iterator: str) -> Any:
        whole = import_module("dask.array").from_array(A, chunks=A.shape)
        compressed = import_module("dask.array.linalg").svd_compressed
        lazy = compressed(whole, k, iterator=iterator, n_power_iter=2, seed=seed)
        return import_module("dask").compute(*lazy)

    def librla(seed: int) -> Any:
        sketch = import_module("librla").svd_sketch
        rng = np.random.default_rng(seed)
        return sketch(A, k, power_iter=2, extra_samples=10, rng=rng)

    if bench.name == "torch":
        theirs = {
            ("torch", "svd_lowrank"): lambda _: svd_lowrank(A, k, k),
            ("torch", f"svd_lowrank, q={k + 10}"): lambda _: svd_lowrank(A, k, k + 10),
            ("torch", "linalg.svd"): lambda _: full_svd("torch", A, k),
        }
    else:
        theirs = truncated_svds(A, k) | {
            ("dask", "svd_compressed, n_power_iter=2"): lambda seed: dask(seed, "power"),
            ("dask", "svd_compressed, n_power_iter=2, QR"): lambda seed: dask(seed, "QR"),
            ("librla", "svd_sketch, power_iter=2"): librla,
            ("numpy", "linalg.svd"): lambda _: full_svd("numpy", A, k),
            ("scipy", "linalg.svd"): lambda _: full_svd("scipy", A, k),
        }
    calls = {
        ("lowrank", "svd"): partial(svd, A, k),
        ("lowrank", "svd, power_iterations=7"): partial(svd, A, k, power_iterations=7),
        **theirs,
    }
    base, own = "lowrank svd", ("numpy", "torch", "lowrank")
    return [
        Call(of, method, "svd", run, base, once=method == "linalg.svd", foreign=of not in own)
        for (of, method), run in calls.items()
    ]


def qrs(bench: Bench) -> None:
    for shape in bench.sizes.qr:
        for dtype in DTYPES:
            A = bench.gaussian(shape, dtype)
            bench.measure("qr", A, qr_calls(bench, A), spectrum="Gaussian", k=None)


def qr_calls(bench: Bench, A: Any) -> list[Call]:
    def scipy(_: int) -> Any:
        return import_module("scipy.linalg").qr(A, mode="economic")

    base, own = "lowrank qr", bench.xp.linalg
    calls = [
        Call("lowrank", "qr", "qr", lambda _: tuple(lowrank.qr(A)), base),
        Call(bench.name, "linalg.qr", "qr", lambda _: tuple(own.qr(A)), base),
    ]
    if bench.name == "numpy":
        calls.append(Call("scipy", "linalg.qr", "qr", scipy, base, foreign=True))
    return calls
