"""``python -m lowrank`` alone: a small real matrix, compressed to three tolerances."""

import time
from collections.abc import Callable
from importlib import resources
from statistics import median
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

import lowrank
from lowrank import gallery
from lowrank._command.telling import tell

__all__ = ["Row", "demonstrate", "elevation", "measure"]

Matrix = np.ndarray[Any, np.dtype[np.float64]]
_T = TypeVar("_T")

REPEATS = 5


class Row(NamedTuple):
    """One line of the table; errors are relative to ‖A‖_F, and memory to that of A."""

    rtol: float
    rank: int
    best_rank: int
    bound: float
    error: float
    memory: float
    seconds: float


def elevation() -> Matrix:
    """Elevation in metres around the Jacksboro fault, Tennessee (344×403, float64)."""
    file = resources.files("lowrank") / "data" / "elevation.npz"
    with file.open("rb") as stream, np.load(stream) as archive:
        grid: Matrix = archive["elevation"].astype(np.float64)
        return grid


def measure(A: Matrix, singular_values: Matrix, rtol: float) -> Row:
    """Compress `A` with the defaults and compare with the best possible."""
    result, seconds = _timed(lambda: lowrank.svd(A, rtol=rtol, rng=0))
    U, S, Vh = result
    norm_A = float(np.linalg.norm(A))
    return Row(
        rtol=rtol,
        rank=result.rank,
        best_rank=gallery.best_rank(singular_values, rtol=rtol),
        bound=cast("float", result.error_bound) / norm_A,
        error=float(np.linalg.norm(A - (U * S) @ Vh) / norm_A),
        memory=(U.nbytes + S.nbytes + Vh.nbytes) / A.nbytes,
        seconds=seconds,
    )


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return result, median(seconds)


def demonstrate() -> None:
    """Print the table."""
    A = elevation()
    (_, singular_values, _), full = _timed(lambda: np.linalg.svd(A, full_matrices=False))
    m, n = A.shape
    tell(f"lowrank {lowrank.__version__}: elevation around the Jacksboro fault, Tennessee")
    tell(f"({m}×{n}, float64, {A.nbytes / 2**20:.2f} MiB; US Geological Survey, public domain)\n")
    tell("tolerance  rank  best possible  certified bound  true error  memory       time  full SVD")
    for rtol in (1e-1, 1e-2, 1e-3):
        row = measure(A, singular_values, rtol)
        tell(
            f"{row.rtol:9.0e} {row.rank:5d} {row.best_rank:14d} {row.bound:16.2e} "
            f"{row.error:11.2e} {row.memory:7.0%} {row.seconds * 1e3:7.1f} ms "
            f"{full * 1e3:6.1f} ms"
        )
    tell(
        "\nTolerance, bound and error are relative to the Frobenius norm of the matrix; memory is"
        "\nthat of U, S and Vh relative to it. The best possible rank comes from the full SVD. A"
        "\nmatrix this small does not flatter a range finder: its cost grows as m·n·rank, that of"
        "\nthe full SVD as m·n·min(m, n), and here the two differ by little."
        "\n\npython -m lowrank --help tells how to compress a matrix of your own."
    )
