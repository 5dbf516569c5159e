"""The experiments of Penke and Herten (2026) with this library, on a processor: stability, speed.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.studies.published \
        --out benchmarks/results/published-NAME-DATE.json [--part stability speed] [--quick]

On one thread: the stability in three minutes, the speed in about twenty, when nothing else should
run. A part takes the place of what it measured last time. benchmarks/report/published.py makes
docs/explanation/published_tables.md and its pictures from the newest file.

- stability: the matrix of their figure 4, of order 1024 in float32 with singular values from 1 to
  1e-14 (below 1e-7 they drown in the rounding of its entries), and blocks of 64. A row has lists
  over the columns of the basis: `ranks`; `orthogonality`, ‖QᵀQ − I‖₂; `residual` and `error`,
  ‖A − QQᵀA‖ in the spectral and the Frobenius norm; all of these in float64. `tracked` is the error
  in the Frobenius norm that the method itself knows of, `bound` what `RangeFinder` certifies, and
  `energies` the root of ‖A‖² − ‖QᵀA‖². Block Gram–Schmidt is that of Martinsson and Voronin (2016)
  in our words, on NumPy, whose `qr` computes in double precision.
- speed: Gaussian matrices in float32, without power iterations: all columns of some, and up to so
  many of a larger one. `seconds` are medians of CPU times of calls that take turns.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import lowrank
from benchmarks.common.measuring import in_turn
from benchmarks.common.results import Results, cpu_name, header

Row = dict[str, Any]
PACKAGES = ("numpy", "torch", "array-api-compat")
SEEDS = 5
# Order, columns of a block.
STABILITY = {"full": (1024, 64), "quick": (128, 16)}
# Orders of matrices of which all columns are found; a larger one, and columns of it.
SPEED = {
    "full": ((1024, 2048, 4096), 8192, (128, 256, 512, 1024, 2048)),
    "quick": ((128, 256), 512, (32, 64)),
}
WIDTHS = (64, 128, 256)
AGAIN = "block Gram–Schmidt, twice"
ONCE = "block Gram–Schmidt"


# -- stability ------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A basis, the error that the method believes it has, and a bound on that where there is one.

    Both in the Frobenius norm.
    """

    Q: Any
    tracked: float
    bound: float | None = None


def graded(n: int) -> Any:
    """Orthonormal factors of Gaussian draws in float32, and singular values from 1 to 1e-14."""
    rng = np.random.default_rng(1)
    U, V = (np.linalg.qr(draw(rng, n, n)).Q for _ in range(2))
    return U * np.logspace(0, -14, n, dtype=np.float32) @ V.T


def draw(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def householder(A: Any, width: int, *, seed: int, power_iterations: int) -> Iterator[Step]:
    """Ours, block by block, on an explicit residual."""
    finder = lowrank.RangeFinder(A, rng=seed, power_iterations=power_iterations)
    loose = {"rtol": 2.0}  # which no columns meet: a look at the error, and no growth
    finder.reach(**loose)
    while finder.rank < min(A.shape):
        found = finder.extend(width).reach(**loose).result()
        yield Step(found.Q, found.error, found.error_bound)


def gram_schmidt(A: Any, width: int, *, seed: int, again: bool) -> Iterator[Step]:
    """A panel of the residual is orthonormalized, `again` against the basis, and projected out."""
    rng, Q, E = np.random.default_rng(seed), A[:, :0], A.copy()
    while Q.shape[1] < min(A.shape):
        P = np.linalg.qr(E @ draw(rng, A.shape[1], width)).Q
        if again:
            P = np.linalg.qr(P - Q @ (Q.T @ P)).Q
        E -= P @ (P.T @ E)
        Q = np.hstack([Q, P])
        yield Step(Q, float(np.linalg.norm(E)))


def energies(A: Any, Q: Any) -> float:
    """The root of ``‖A‖² − ‖QᵀA‖²``: products in the dtype of A, sums in float64; 0 of less."""
    left = np.sum(A.astype(np.float64) ** 2) - np.sum((Q.T @ A).astype(np.float64) ** 2)
    return float(np.sqrt(max(0.0, left)))


def truths(A: Any, Q: Any) -> dict[str, float]:
    """Orthogonality and residual of a basis, in float64."""
    A, Q = A.astype(np.float64), Q.astype(np.float64)
    E = A - Q @ (Q.T @ A)
    return {
        "orthogonality": float(np.max(np.abs(np.linalg.eigvalsh(Q.T @ Q - np.eye(Q.shape[1]))))),
        "residual": float(np.sqrt(max(0.0, np.linalg.eigvalsh(E.T @ E)[-1]))),
        "error": float(np.linalg.norm(E)),
    }


def followed(A: Any, steps: Iterator[Step]) -> Row:
    """The figures of all steps, as lists; three digits of each."""
    found: dict[str, list[Any]] = {"ranks": []}
    for step in steps:
        Q = np.asarray(step.Q)
        told = {"tracked": step.tracked, "bound": step.bound, "energies": energies(A, Q)}
        found["ranks"].append(int(Q.shape[1]))
        for name, value in (truths(A, Q) | told).items():
            found.setdefault(name, []).append(None if value is None else float(f"{value:.2e}"))
    return found


def stability(results: Results, size: str) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    n, width = STABILITY[size]
    A = graded(n)
    of = {"numpy": A, "torch": torch.from_numpy(A)}
    shared = {"section": "stability", "dtype": "float32", "shape": list(A.shape)}
    for seed in range(SEEDS):
        runs = [
            (library, f"q = {q}", householder(X, width, seed=seed, power_iterations=q))
            for library, X in of.items()
            for q in (0, 1)
        ]
        runs += [
            ("numpy", name, gram_schmidt(A, width, seed=seed, again=name == AGAIN))
            for name in (ONCE, AGAIN)
        ]
        for library, method, steps in runs:
            more = followed(A, steps)
            results.add(**shared, library=library, method=method, seed=seed, width=width, **more)
    values = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    best = [float(f"{value:.2e}") for value in (*values[width::width], 0.0)]
    ranks = list(range(width, n + 1, width))
    results.add(**shared, library="best", method="best possible", ranks=ranks, residual=best)


# -- speed ----------------------------------------------------------------------------------------


def calls_of(X: Any, k: int, xp: Any) -> dict[str, Callable[[int], Any]]:
    """Methods that find k columns, by the names of their rows; the argument is a seed."""

    def omega(seed: int) -> Any:
        if xp is np:
            return np.random.default_rng(seed).standard_normal((X.shape[1], k), dtype=X.dtype)
        return xp.randn(X.shape[1], k, generator=xp.Generator().manual_seed(seed))

    def both(seed: int) -> Any:
        Y = X @ omega(seed)
        return Y.T @ X

    def by_blocks(width: int) -> Callable[[int], Any]:
        def run(seed: int) -> Any:
            finder = lowrank.RangeFinder(X, rng=seed, power_iterations=0).reach(rtol=2.0)
            while finder.rank < k:
                finder.extend(min(width, k - finder.rank))
            return finder

        return run

    calls: dict[str, Callable[[int], Any]] = {
        "A @ Ω": lambda seed: X @ omega(seed),
        "both products": both,
        "Q by `linalg.qr(A @ Ω)`": lambda seed: xp.linalg.qr(X @ omega(seed)),
        "`range_finder(A, k)`": lambda seed: lowrank.range_finder(X, k, rng=seed),
        "`qb(A, k)`": lambda seed: lowrank.qb(X, k, rng=seed),
    }
    if k == min(X.shape):
        calls["`linalg.qr(A)`"] = lambda _: xp.linalg.qr(X)
    calls |= {f"blocks of {width}": by_blocks(width) for width in WIDTHS if width <= k}
    width = min(k, WIDTHS[1])
    calls[f"blocks of {width}, and Q"] = lambda seed: by_blocks(width)(seed).Q
    return calls


def speed(results: Results, size: str) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    orders, larger, columns = SPEED[size]
    for n, k in [(n, n) for n in orders] + [(larger, k) for k in columns]:
        A = draw(np.random.default_rng(n), n, n)
        for library, X, xp in (("numpy", A, np), ("torch", torch.from_numpy(A), torch)):
            group = {"section": "speed", "library": library, "dtype": "float32"}
            group |= {"shape": [n, n], "k": k}
            times = in_turn(calls_of(X, k, xp), 5 if n * k < 2**22 else 3, clock=time.process_time)
            for method, taken in times.items():
                shown = {"seconds": median(taken), "fastest": min(taken), "repeats": len(taken)}
                results.add(**group, method=method, **shown)


PARTS: dict[str, Callable[[Results, str], None]] = {"stability": stability, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small matrices, for a trial")
    options = parser.parse_args()
    about = header("published", cpu_name(), PACKAGES)
    results = Results(options.out, resume=True, **about, quick=options.quick, threads=1)
    for part in options.part:
        results.begin(part)
        PARTS[part](results, "quick" if options.quick else "full")


if __name__ == "__main__":
    main()
