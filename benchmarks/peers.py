"""The README's comparison with other libraries: time and error, on this machine.

    python benchmarks/peers.py

Needs SciPy, scikit-learn and PyTorch, and takes about two minutes on one thread. All calls are
interleaved, on one matrix, with their defaults; medians of five. Errors are in the Frobenius norm.
"""

import platform
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.linalg import interpolative
from scipy.sparse.linalg import svds
from sklearn.utils.extmath import randomized_svd

import lowrank
from lowrank import gallery

N, RANK, REPEATS = 2000, 50, 5
TOLERANCES = {"slow": 1e-2, "fast": 1e-6}


def measured(calls: dict[str, Callable[[int], Any]], A: Any) -> dict[str, tuple[float, float, int]]:
    """Median seconds, median error and rank of each call; the argument of a call is a seed."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, list[float]] = {name: [] for name in calls}
    ranks = {}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            if name == "numpy.linalg.svd" and repeat > 1:
                continue  # a few seconds each
            start = time.perf_counter()
            U, S, Vh = (np.asarray(X) for X in call(repeat))
            duration = time.perf_counter() - start
            if repeat > 0:  # the first call of each warms up
                seconds[name].append(duration)
                errors[name].append(float(np.linalg.norm(A - (U * S) @ Vh)))
                ranks[name] = len(S)
    return {name: (median(seconds[name]), median(errors[name]), ranks[name]) for name in calls}


def at_a_rank(A: Any) -> dict[str, Callable[[int], Any]]:
    At = torch.asarray(A)

    def of_torch(seed: int, q: int) -> Any:
        torch.manual_seed(seed)
        U, S, V = torch.svd_lowrank(At, q=q)
        return U[:, :RANK], S[:RANK], V[:, :RANK].T

    def full(_: int) -> Any:
        U, S, Vh = np.linalg.svd(A, full_matrices=False)
        return U[:, :RANK], S[:RANK], Vh[:RANK]

    def by_interpolation(_: int) -> Any:
        U, S, V = interpolative.svd(A, RANK)
        return U, S, V.T.conj()

    return {
        "lowrank.svd": lambda seed: lowrank.svd(A, RANK, rng=seed),
        "lowrank.svd, power_iterations=7": lambda seed: lowrank.svd(
            A, RANK, power_iterations=7, rng=seed
        ),
        "randomized_svd": lambda seed: randomized_svd(A, RANK, random_state=seed),
        "randomized_svd, n_iter=2, QR": lambda seed: randomized_svd(
            A, RANK, n_iter=2, power_iteration_normalizer="QR", random_state=seed
        ),
        "torch.svd_lowrank, q=50": lambda seed: of_torch(seed, RANK),
        "torch.svd_lowrank, q=60": lambda seed: of_torch(seed, RANK + 10),
        "svds, ARPACK": lambda seed: svds(A, RANK, rng=seed),
        "svds, PROPACK": lambda seed: svds(A, RANK, solver="propack", rng=seed),
        "interpolative.svd": by_interpolation,
        "numpy.linalg.svd": full,
    }


def to_a_tolerance(A: Any, rtol: float) -> dict[str, Callable[[int], Any]]:
    def by_interpolation(seed: int, eps: float) -> Any:
        U, S, V = interpolative.svd(A, eps, rng=seed)
        return U, S, V.T.conj()

    return {
        "lowrank.svd, rtol": lambda seed: lowrank.svd(A, rtol=rtol, rng=seed),
        "interpolative.svd, eps": lambda seed: by_interpolation(seed, rtol),
        "interpolative.svd, eps/10": lambda seed: by_interpolation(seed, rtol / 10),
    }


def main() -> None:
    warnings.simplefilter("ignore")
    packages = ("numpy", "scipy", "scikit-learn", "torch")
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join(f"{name} {version(name)}" for name in packages))
    for spectrum in ("slow", "slower"):
        s = getattr(gallery, spectrum)(N)
        A = gallery.matrix(s, (N, N), rng=0)
        best = gallery.best_error(s, RANK)
        found = measured(at_a_rank(A), A)
        unit = found["lowrank.svd"][0]
        print(f"\n{spectrum}, {N}×{N}, rank {RANK}; lowrank.svd takes {unit * 1e3:.0f} ms")
        print(f"{'':32} {'time':>6} {'error/best − 1':>15}")
        for name, (seconds, error, _) in found.items():
            print(f"{name:32} {seconds / unit:6.2f} {max(0.0, error / best - 1):15.1e}")
    for spectrum, rtol in TOLERANCES.items():
        s = getattr(gallery, spectrum)(N)
        A = gallery.matrix(s, (N, N), rng=0)
        best_rank = gallery.best_rank(s, rtol=rtol)
        found = measured(to_a_tolerance(A, rtol), A)
        unit = found["lowrank.svd, rtol"][0]
        print(
            f"\n{spectrum}, {N}×{N}, to {rtol:g}, best rank {best_rank}; lowrank.svd takes "
            f"{unit * 1e3:.0f} ms"
        )
        print(f"{'':32} {'time':>6} {'error/tolerance':>15} {'rank':>5}")
        for name, (seconds, error, rank) in found.items():
            missed = error / (rtol * float(np.linalg.norm(s)))
            print(f"{name:32} {seconds / unit:6.2f} {missed:15.2f} {rank:5d}")


if __name__ == "__main__":
    main()
