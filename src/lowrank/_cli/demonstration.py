"""``lowrank`` alone: a small real matrix, compressed to three tolerances."""

import timeit
from functools import partial
from importlib import resources
from statistics import median
from typing import Any

import numpy as np

import lowrank
from lowrank import gallery
from lowrank._cli.telling import tell


def elevation() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Elevation in meters around the Jacksboro fault, Tennessee (344×403, float64)."""
    file = resources.files("lowrank") / "data" / "elevation.npz"
    with file.open("rb") as stream, np.load(stream) as archive:
        return archive["elevation"].astype(np.float64)


def _seconds(work: partial[Any]) -> float:
    return median(timeit.repeat(work, number=1, repeat=5))


def demonstrate() -> None:
    """Compress to each tolerance with the defaults, and compare with the best possible rank."""
    A = elevation()
    full_svd = partial(np.linalg.svd, A, full_matrices=False)
    singular_values, full = full_svd().S, _seconds(full_svd)
    (m, n), norm_A = A.shape, np.linalg.norm(A)
    tell(f"lowrank {lowrank.__version__}: elevation around the Jacksboro fault, Tennessee")
    tell(f"({m}×{n}, float64, {A.nbytes / 2**20:.2f} MiB; US Geological Survey, public domain)\n")
    tell("tolerance  rank  best possible  certified bound  true error  memory       time  full SVD")
    for rtol in (1e-1, 1e-2, 1e-3):
        compress = partial(lowrank.svd, A, rtol=rtol, rng=0)
        found: Any = compress()
        U, S, Vh = found
        best = gallery.best_rank(singular_values, rtol=rtol)
        bound, error = found.error_bound / norm_A, np.linalg.norm(A - (U * S) @ Vh) / norm_A
        memory = (U.nbytes + S.nbytes + Vh.nbytes) / A.nbytes
        tell(
            f"{rtol:9.0e} {found.rank:5d} {best:14d} {bound:16.2e} {error:11.2e} {memory:7.0%} "
            f"{_seconds(compress) * 1e3:7.1f} ms {full * 1e3:6.1f} ms"
        )
    tell(
        "\nTolerance, bound, error and memory are relative to those of the matrix, a small one. The"
        "\ncost of a range finder grows as m·n·rank, that of the full SVD, which finds the best,"
        "\nas m·n·min(m, n). lowrank --help shows how to compress a matrix of your own."
    )
