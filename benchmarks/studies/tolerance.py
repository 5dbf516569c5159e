"""What a tolerance costs: beside a plain program of the published algorithm, the SVD, and a rank.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.studies.tolerance [TABLE ...] \
        > docs/explanation/tolerance_tables.md

CPU time of one thread, medians of interleaved repeats (in the table `svd`, of the ratios of three
rounds of them); takes about 30 minutes. With names of tables, those alone. `--quick` tries it on
small matrices. The plain program (`published`) is ours, from the description of the algorithm of
Penke and Herten: blocks of 64, one power iteration on the residual, growth to a part of the
tolerance, on torch. It skips complex numbers, bad input and certificates near rounding.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from operator import matmul
from statistics import median
from typing import Any

import numpy as np
import torch

import lowrank
from benchmarks.common.measuring import in_turn
from benchmarks.common.results import cpu_name
from benchmarks.common.tables import print_table
from lowrank import gallery

QUICK = "--quick" in sys.argv
N, SMALL, REPEATS, ROUNDS = (300, 200, 1, 1) if QUICK else (1536, 900, 5, 3)
# Spectrum, tolerance, and the part of it to which the plain program grows. With 0.9 that program's
# rank is near the best but for 1/√j, where it needs 0.75 for a rank as small as ours.
CASES = [
    ("exp(−j/7)", 1e-3, 0.9),
    ("1/j²", 1e-3, 0.9),
    ("1/j", 0.1, 0.9),
    ("1/j", 0.05, 0.9),
    ("1/√j", 0.5, 0.9),
    ("1/√j", 0.5, 0.75),
    ("decay + 8 % noise", 0.1, 0.9),
    ("decay + 8 % noise", 0.3, 0.9),
]
DTYPES = ("float32", "float64")


def matrix(name: str, dtype: str, m: int, n: int) -> Any:
    rng, j = np.random.default_rng(0), np.arange(1, n + 1)
    if name == "decay + 8 % noise":
        A = gallery.matrix(np.exp(-np.arange(n) / 12), (m, n), xp=np, rng=0)
        noise = rng.standard_normal(A.shape)
        return (A / np.linalg.norm(A) + 0.08 * noise / np.linalg.norm(noise)).astype(dtype)
    if name == "noise":
        return rng.standard_normal((m, n)).astype(dtype)
    values = {
        "exp(−j/7)": gallery.fast(n),
        "exp(−j/40)": np.exp(-j / 40),
        "1/j²": gallery.slow(n),
        "1/j": 1 / j,
        "1/√j": j**-0.5,
        "orthogonal": np.ones(n),
    }
    if name == "identity":
        return np.eye(m, n, dtype=dtype)
    return gallery.matrix(values[name], (m, n), xp=np, rng=0).astype(dtype)


def best_rank(A: Any, rtol: float) -> int:
    return gallery.best_rank(np.linalg.svd(A.astype(np.float64), compute_uv=False), rtol=rtol)


def seconds(*calls: Callable[[], Any], repeats: int = REPEATS) -> list[list[float]]:
    """CPU times of calls that take turns."""
    named = {str(place): lambda _, call=call: call() for place, call in enumerate(calls)}
    return list(in_turn(named, repeats, clock=time.process_time).values())


def milliseconds(*calls: Callable[[], Any], repeats: int = REPEATS) -> list[float]:
    """Median CPU times of calls that take turns."""
    return [1e3 * median(taken) for taken in seconds(*calls, repeats=repeats)]


# -- the published algorithm -----------------------------------------------------------------------


def published(A: Any, rtol: float, *, width: int = 64, goal: float = 0.9) -> tuple[Any, Any, Any]:
    """Truncated SVD from a basis that grows on the explicit residual."""
    (m, n), generator = A.shape, torch.Generator().manual_seed(1)
    tolerance = rtol * float(torch.linalg.vector_norm(A))
    B, k, error, blocks = A.clone(), 0, math.inf, []
    while error > goal * tolerance and k < min(m, n):
        E = B[k:]
        b = min(width, m - k, n - k)
        Y = E @ torch.randn(n, b, generator=generator, dtype=A.dtype)
        Q = torch.linalg.qr(E @ torch.linalg.qr(E.mT @ torch.linalg.qr(Y).Q).Q).Q
        W, R = torch.linalg.qr(Q[:b])
        W = W * torch.where(torch.diagonal(R) < 0, -1.0, 1.0).to(Q)
        V = Q.clone()
        V[:b] += W
        T = torch.linalg.inv(torch.eye(b).to(Q) + W.mT @ Q[:b]).mT
        E.addmm_(V, T.mT @ (V.mT @ E), alpha=-1)
        blocks.append((V, T))
        k += b
        error = float(torch.linalg.vector_norm(B[k:]))
    P, R = torch.linalg.qr(B[:k].mT)
    U, S, W = torch.linalg.svd(R.mT, full_matrices=False)
    tails = torch.flip(torch.cumsum(torch.flip(S.double() ** 2, (0,)), 0), (0,))
    rank = int(torch.sum(tails + error**2 > tolerance**2 * (1 - 1e-6)))
    left = torch.zeros(m, rank, dtype=A.dtype)
    left[:k] = U[:, :rank]
    for V, T in reversed(blocks):
        part = left[m - V.shape[0] :]
        part.addmm_(V, T @ (V.mT @ part), alpha=-1)
    return left, S[:rank], W[:rank] @ P.mT


# -- the tables ------------------------------------------------------------------------------------


Table = Iterator[tuple[Any, ...]]


def beside_the_published() -> Table:
    yield ("published", f"{N}×{N}, noise {2 * N}×{N}")
    head = "matrix, tolerance, dtype", "goal", "best rank", "plain program: ms", "rank"
    yield (*head, "torch: ms", "over it", "rank", "NumPy: ms", "over it", "rank")
    for name, rtol, goal in CASES:
        for dtype in DTYPES:
            A = matrix(name, dtype, 2 * N if "noise" in name else N, N)
            X = torch.from_numpy(A)
            calls = (
                lambda X=X, rtol=rtol, goal=goal: published(X, rtol, goal=goal),
                partial(lowrank.svd, X, rtol=rtol, rng=1),
                partial(lowrank.svd, A, rtol=rtol, rng=1),
            )
            plain, *times = milliseconds(*calls)
            cells = [f"{plain:.0f}", int(calls[0]()[1].shape[0])]
            for call, time_of in zip(calls[1:], times, strict=True):
                cells += [f"{time_of:.0f}", f"{time_of / plain:.2f}", int(call().rank)]
            yield (f"{name}, {rtol:g}, {dtype}", f"{goal:g}", best_rank(A, rtol), *cells)


def over_the_svd() -> Table:
    """Every round visits each cell once: noise lasts for about a minute."""
    tolerances = (0.5, 0.1, 1e-2, 1e-4, 1e-6, 1e-10)
    yield ("svd", f"n = {SMALL}")
    yield ("matrix, dtype, library", *(f"{tolerance:g}" for tolerance in tolerances))
    ratios: dict[str, list[list[float]]] = {}
    names = ("noise", "orthogonal", "identity", "1/j", "1/√j", "exp(−j/40)")
    for _, name, dtype in product(range(ROUNDS), names, DTYPES):
        A = matrix(name, dtype, SMALL, SMALL)
        for library, (X, svd) in (("NumPy", (A, np.linalg.svd)), ("torch", as_torch(A))):
            row = ratios.setdefault(f"{name}, {dtype}, {library}", [[] for _ in tolerances])
            for rtol, cell in zip(tolerances, row, strict=True):
                ours, full = seconds(
                    partial(lowrank.svd, X, rtol=rtol, rng=1),
                    partial(svd, X, full_matrices=False),
                )
                cell += [a / b for a, b in zip(ours, full, strict=True)]
    for label, row in ratios.items():
        yield (label, *(f"{median(cell):.2f}" for cell in row))


def of_small_matrices() -> Table:
    sizes = (60, 90) if QUICK else (150, 400)
    yield ("small", "The largest of the tolerances 0.1, 0.01 and 0.0001")
    yield ("matrix, dtype, library", *(f"{n} rows" for n in sizes))
    for name in ("noise", "orthogonal", "1/j"):
        for dtype in DTYPES:
            for library in ("NumPy", "torch"):
                cells = []
                for n in sizes:
                    A = matrix(name, dtype, n, n)
                    X, svd = (A, np.linalg.svd) if library == "NumPy" else as_torch(A)
                    *ours, full = milliseconds(
                        *(partial(lowrank.svd, X, rtol=rtol, rng=1) for rtol in (0.1, 1e-2, 1e-4)),
                        partial(svd, X, full_matrices=False),
                    )
                    cells.append(f"{max(ours) / full:.1f}")
                yield (f"{name}, {dtype}, {library}", *cells)


def as_torch(A: Any) -> tuple[Any, Any]:
    return torch.from_numpy(A), torch.linalg.svd


def over_the_svd_at_a_rank() -> Table:
    shares = (0.1, 0.2, 0.3, 0.4, 0.5, 0.9)
    yield ("share", "Rank over n")
    yield ("n, dtype, library", *(f"{share:g}" for share in shares))
    for n in (60, 90) if QUICK else (200, 500, 1000, 2000):
        for dtype in DTYPES:
            A = matrix("1/j", dtype, n, n)
            for library, (X, svd) in (("NumPy", (A, np.linalg.svd)), ("torch", as_torch(A))):
                *ours, full = milliseconds(
                    *(partial(lowrank.svd, X, int(share * n), rng=1) for share in shares),
                    partial(svd, X, full_matrices=False),
                    repeats=1 if QUICK or n > 1000 else 3,
                )
                yield (f"{n}, {dtype}, {library}", *(f"{time / full:.2f}" for time in ours))


def over_the_same_rank() -> Table:
    m, n = (300, 200) if QUICK else (3072, 2048)
    yield ("rank", f"{m}×{n}")
    over = (f"{library}: over svd(A, rank)" for library in ("NumPy", "torch"))
    yield ("matrix, tolerance, dtype", "rank", *over)
    for name, rtol in (("exp(−j/40)", 1e-3), ("1/j", 0.1), ("decay + 8 % noise", 0.1)):
        for dtype in DTYPES:
            A, cells = matrix(name, dtype, m, n), []
            for X in (A, torch.from_numpy(A)):
                rank = lowrank.svd(X, rtol=rtol, rng=1).rank
                ours, fixed = milliseconds(
                    partial(lowrank.svd, X, rtol=rtol, rng=1), partial(lowrank.svd, X, rank, rng=1)
                )
                cells.append(f"{ours / fixed:.2f}")
            yield (f"{name}, {rtol:g}, {dtype}", rank, *cells)


def of_a_sparse_matrix() -> Table:
    from scipy import sparse  # noqa: PLC0415

    m, n = (300, 200) if QUICK else (2400, 1600)
    A = sparse.csr_array(matrix("decay + 8 % noise", "float64", m, n))
    yield ("sparse", f"{m}×{n}")
    yield ("tolerance", "best rank", "rank", "columns multiplied", "passes")
    for rtol in (0.3, 0.15, 0.1):
        found = lowrank.svd(A, rtol=rtol, rng=1)
        best = best_rank(A.toarray(), rtol)
        yield (f"{rtol:g}", best, found.rank, found.products, found.passes)


def over_the_product() -> Table:
    n, k = (400, 32) if QUICK else (4096, 256)
    yield ("product", f"{n}×{n}, k = {k}")
    yield ("dtype", "NumPy", "torch", "torch qr over linalg.qr")
    for dtype in DTYPES:
        A = np.random.default_rng(0).standard_normal((n, n)).astype(dtype)
        cells = []
        for X in (A, torch.from_numpy(A)):
            Omega = X[:, :k] + 1
            ours, product = milliseconds(
                partial(lowrank.range_finder, X, k, rng=1), partial(matmul, X, Omega)
            )
            cells.append(f"{ours / product:.2f}")
        tall = torch.from_numpy(A[:, :k].copy())
        ours, native = milliseconds(partial(lowrank.qr, tall), partial(torch.linalg.qr, tall))
        yield (dtype, *cells, f"{ours / native:.2f}")


def main() -> None:
    warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
    torch.set_num_threads(1)
    versions = f"NumPy {np.__version__}, torch {torch.__version__}"
    print(f"<!-- of benchmarks/studies/tolerance.py: {cpu_name()}, one thread, {versions} -->\n")
    of_tolerances = beside_the_published(), over_the_svd(), of_small_matrices()
    of_ranks = over_the_same_rank(), over_the_svd_at_a_rank()
    names = {*sys.argv[1:]} - {"--quick"}
    for table in (*of_tolerances, *of_ranks, of_a_sparse_matrix(), over_the_product()):
        name, size = next(table)
        if names and name not in names:
            continue
        print(f"<!-- {name} -->\n\n{size}:\n")
        print_table(table)
        print("\n<!-- end -->\n")


if __name__ == "__main__":
    main()
