"""True error against tolerance, down to rounding: the certificate, and the rule of energies.

    python -m benchmarks.studies.floor > docs/explanation/floor_table.md

Takes about a minute on one thread. The matrix has the singular values exp(−j/20); all errors are
relative to its Frobenius norm, and true errors are computed in double precision from the entries
that both methods were given.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

import lowrank
from benchmarks.common.tables import print_table
from lowrank import gallery

N, BLOCK, SEEDS = 1000, 32, 10
TOLERANCES = {"float64": range(1, 15), "float32": range(1, 7)}


def energy_difference(A: Any, rtol: float, rng: Any) -> tuple[Any, bool]:
    """The basis of randQB_EI, and whether its rule says that the tolerance is met.

    W. Yu, Y. Gu and Y. Li, Efficient randomized algorithms for the fixed-precision low-rank matrix
    approximation, 2018, doi:10.1137/17M1141977, Algorithm 2: stop when ``‖A‖² − Σ‖B_i‖²`` is below
    ``rtol² ‖A‖²``.
    """
    m, n = A.shape
    Q, B = np.zeros((m, 0), A.dtype), np.zeros((0, n), A.dtype)
    energy = np.linalg.norm(A) ** 2
    target = np.asarray(rtol, A.dtype) ** 2 * energy
    while Q.shape[1] < min(m, n):
        Omega = rng.standard_normal((n, BLOCK), dtype=A.dtype)
        block = np.linalg.qr(A @ Omega - Q @ (B @ Omega)).Q
        block = np.linalg.qr(block - Q @ (Q.T @ block)).Q
        rows = block.T @ A
        Q, B = np.hstack([Q, block]), np.vstack([B, rows])
        energy = energy - np.linalg.norm(rows) ** 2
        if energy < target:
            return Q, True
    return Q, False


def relative_error(A: Any, Q: Any) -> float:
    A, Q = A.astype(np.float64), Q.astype(np.float64)
    # the nearest orthonormal basis, so that the rounding of Q itself is not counted
    Q = np.linalg.qr(Q).Q
    E = A - Q @ (Q.T @ A)
    return float(np.linalg.norm(E - Q @ (Q.T @ E)) / np.linalg.norm(A))


def certified(A: Any, rtol: float, seed: int) -> tuple[Any, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
        found = lowrank.range_finder(A, rtol=rtol, rng=seed)
    return found.Q, bool(found.converged)


def by_energies(A: Any, rtol: float, seed: int) -> tuple[Any, bool]:
    return energy_difference(A, rtol, np.random.default_rng(seed))


def cells(method: Any, A: Any, rtol: float) -> list[str]:
    """Median rank, largest true error, how often success was claimed, and how often falsely."""
    ranks, errors, claims = [], [], []
    for seed in range(SEEDS):
        Q, claim = method(A, rtol, seed)
        ranks.append(Q.shape[1])
        errors.append(relative_error(A, Q))
        claims.append(claim)
    false = sum(claim and error > rtol for claim, error in zip(claims, errors, strict=True))
    told = f"**{false}**" if false else "0"
    return [f"{np.median(ranks):.0f}", f"{max(errors):.1e}", f"{sum(claims)}", told]


def rows(A: Any, exponents: range) -> Iterator[list[str]]:
    names = ["rank", "largest error", "says success", "falsely"]
    yield ["tolerance", *names, *(f"energies: {name}" for name in names)]
    for exponent in exponents:
        rtol = 10.0**-exponent
        yield [f"{rtol:.0e}", *cells(certified, A, rtol), *cells(by_energies, A, rtol)]


def main() -> None:
    wide = gallery.matrix(gallery.medium(N), (N, N), rng=0)
    for dtype, exponents in TOLERANCES.items():
        print(f"**{dtype}**, {N}×{N}, {SEEDS} seeds\n")
        print_table(rows(wide.astype(dtype), exponents), words=())
        print()


if __name__ == "__main__":
    main()
