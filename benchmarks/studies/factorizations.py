"""Errors and products of the factorizations, for the page that explains them.

    python -m benchmarks.studies.factorizations > docs/explanation/factorizations_tables.md

Takes about a minute on one thread; nothing is timed. Matrices are 500×500 in float64 where nothing
else is said, with the slowly falling singular values of the gallery, and the rank is 20. *Excess*
is ‖A − Â‖_F over the best possible error at that rank, less one, the median over seeds.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from scipy.linalg import qr as pivoted
from scipy.sparse.linalg import aslinearoperator

import lowrank
from benchmarks.common.tables import print_table
from lowrank import gallery

N, RANK, WIDTH, SEEDS = 500, 20, 30, 10
SPECTRA = ("slow", "slower", "medium")


def spectrum(name: str) -> Any:
    return gallery.SPECTRA[name](N)


def matrix(name: str) -> Any:
    return gallery.matrix(spectrum(name), rng=0)


def hermitian(s: Any, *, signs: bool = False) -> Any:
    """With the eigenvalues s, or every other one of them negative."""
    V = lowrank.qr(np.random.default_rng(0).standard_normal((len(s), len(s)))).Q
    w = s * (-1.0) ** np.arange(len(s)) if signs else s
    A = (V * w) @ V.T
    return (A + A.T) / 2


def product(found: Any) -> Any:
    left, *middle, right = found
    if middle:
        left = left * middle[0] if middle[0].ndim == 1 else left @ middle[0]
    return left @ right


def of_eigen(found: Any) -> Any:
    w, V = found
    return (V * w) @ V.T


def of_columns(A: Any, found: Any) -> Any:
    J, X = found
    return A[:, J] @ X


def excess(A: Any, s: Any, call: Callable[[int], Any]) -> float:
    best = gallery.best_error(s, RANK)
    errors = [float(np.linalg.norm(A - call(seed))) for seed in range(SEEDS)]
    return max(0.0, median(errors) / best - 1.0)


def cell(value: float) -> str:
    return f"{value:.1e}" if value else "0"


Table = Iterator[Sequence[Any]]
# Columns that hold words.
WORDS = ("", "method", "options of `svd(A, 20)`")


# -- tables ---------------------------------------------------------------------------------------


def krylov() -> Table:
    matrices = {name: matrix(name) for name in SPECTRA}
    options: list[dict[str, Any]] = [{"power_iterations": q} for q in (1, 2, 3, 4, 5, 6)]
    options += [{"power_iterations": q, "krylov": True} for q in (1, 2, 3, 4)]
    options += [{"power_iterations": 2, "oversampling": 20}]
    rows = []
    for option in options:
        found = lowrank.svd(matrices["slow"], RANK, rng=0, **option)

        def call(seed: int, A: Any, option: dict[str, Any] = option) -> Any:
            return product(lowrank.svd(A, RANK, rng=seed, **option))

        excesses = [excess(A, spectrum(name), partial(call, A=A)) for name, A in matrices.items()]
        shown = ", ".join(f"`{key}={value}`" for key, value in option.items())
        rows.append((found.products, found.passes, shown, *map(cell, excesses)))
    yield ("products", "passes", "options of `svd(A, 20)`", *SPECTRA)
    yield from sorted(rows)


def tolerances() -> Table:
    """Products of `svd` to a tolerance, and its rank."""
    options: list[dict[str, Any]] = [{"power_iterations": q} for q in (0, 1)]
    options += [{"power_iterations": q, "krylov": True} for q in (1, 2)]
    yield ("", "q = 0", "q = 1", "Krylov, q = 1", "Krylov, q = 2")
    for norm, rtol in (("fro", 1e-1), ("fro", 1e-2), ("spectral", 1e-1), ("spectral", 1e-2)):
        for name in SPECTRA:
            A = matrix(name)
            cells = []
            for option in options:
                found = lowrank.svd(A, rtol=rtol, norm=norm, rng=0, **option)
                assert found.converged
                cells.append(f"{found.products} ({found.rank})")
            yield (f"{name}, {rtol:g}, {'Frobenius' if norm == 'fro' else norm}", *cells)


def two_sides() -> Table:
    yield ("", *SPECTRA, "counted")
    for norm, order in (("Frobenius", "fro"), ("spectral", 2)):
        cells = []
        for name in SPECTRA:
            A = hermitian(spectrum(name), signs=True)
            ratios = []
            for seed in range(SEEDS):
                Q = lowrank.range_finder(A, WIDTH, rng=seed).Q
                E = A - Q @ (Q.T @ A)
                both = A - Q @ (Q.T @ A @ Q) @ Q.T
                ratios.append(float(np.linalg.norm(both, order) / np.linalg.norm(E, order)))
            cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
        yield (norm, *cells, "1.41")


def semidefinite() -> Table:
    def one(A: Any, seed: int) -> list[Any]:
        return [lowrank.nystrom(A, RANK, rng=seed)]

    def two(A: Any, seed: int) -> list[Any]:
        basis = lowrank.range_finder(A, WIDTH, rng=seed)
        return [basis, lowrank.nystrom(A, RANK, test_matrix=basis.Q)]

    def eigh(A: Any, seed: int, **options: Any) -> list[Any]:
        return [lowrank.eigh(A, RANK, rng=seed, **options)]

    methods: dict[str, Callable[[Any, int], list[Any]]] = {
        "`nystrom(A, 20)`": one,
        "`nystrom`, a basis of the range as test matrix": two,
        "`eigh(A, 20, power_iterations=0)`": partial(eigh, power_iterations=0),
        "`eigh(A, 20)`": eigh,
        "`eigh(A, 20, krylov=True, power_iterations=2)`": partial(
            eigh, krylov=True, power_iterations=2
        ),
    }
    yield ("method", "passes", "products", *SPECTRA)
    for name, call in methods.items():
        cells = []
        for kind in SPECTRA:
            A = hermitian(spectrum(kind))
            approximate = lambda seed, A=A, call=call: of_eigen(call(A, seed)[-1])  # noqa: E731
            cells.append(excess(A, spectrum(kind), approximate))
        found = call(A, 0)
        passes, products = sum(f.passes for f in found), sum(f.products for f in found)
        yield (name, passes, products, *map(cell, cells))


def skeletons() -> Table:
    def by_basis(A: Any, seed: int, q: int) -> tuple[Any, Any, Any]:
        Q = lowrank.range_finder(A, WIDTH, power_iterations=q, rng=seed).Q
        found = lowrank.interpolative(A, RANK, power_iterations=q, rng=seed)
        return Q, Q.T @ A, found.indices

    def of_B(A: Any, seed: int, q: int) -> Any:
        _, B, J = by_basis(A, seed, q)
        return A[:, J] @ (np.linalg.pinv(B[:, J]) @ B)

    def of_A(A: Any, seed: int, q: int) -> Any:
        _, _, J = by_basis(A, seed, q)
        return A[:, J] @ (np.linalg.pinv(A[:, J]) @ A)

    def lapack(A: Any, _: int, __: int) -> Any:
        J = pivoted(A, mode="economic", pivoting=True)[2][:RANK]
        return A[:, J] @ (np.linalg.pinv(A[:, J]) @ A)

    def of_rank(call: Any) -> Callable[[Any, int, int], Any]:
        return lambda A, seed, q: call(A, RANK, power_iterations=q, rng=seed)

    svd, both, ours = map(of_rank, (lowrank.svd, lowrank.cur, lowrank.interpolative))
    methods: dict[str, Any] = {
        "`svd(A, 20)`": lambda A, seed, q: product(svd(A, seed, q)),
        "`interpolative(A, 20)`, $X = A_J^+ QB$": lambda A, *more: of_columns(A, ours(A, *more)),
        "the same columns, $X = B_J^+ B$": of_B,
        "the same columns, $X = A_J^+ A$, the best": of_A,
        "`cur(A, 20)`": lambda A, seed, q: product(both(A, seed, q)),
        "QR of A with pivots (LAPACK), $X = A_J^+ A$": lapack,
    }
    names = [f"{name}, q = {q}" for q in (0, 2) for name in SPECTRA]
    yield ("method", *names)
    for name, call in methods.items():
        cells = []
        for q in (0, 2):
            for kind in SPECTRA:
                A, s = matrix(kind), spectrum(kind)
                over = excess(A, s, lambda seed, A=A, call=call, q=q: call(A, seed, q))
                cells.append(f"{1 + over:.3f}")
        yield (name, *cells)


def limits() -> Table:
    """The smallest tolerance certified, of the powers of √10."""
    tolerances = [10.0 ** (-half / 2) for half in range(2, 29)]
    names = ("svd", "interpolative", "cur")
    yield ("", *(f"`{name}`" for name in names))
    for dtype in ("float32", "float64"):
        A = gallery.matrix(gallery.fast(N), rng=0).astype(dtype)
        cells = []
        for name in names:
            least = 1.0
            for rtol in tolerances:
                if not getattr(lowrank, name)(A, rtol=rtol, rng=0).converged:
                    break
                least = rtol
            root = float(np.finfo(dtype).eps) ** 0.5
            cells.append(f"{least:.1e} ({least / root:.2g} √eps)")
        yield (dtype, *cells)


def centering() -> Table:
    """A mean that is 10⁶ times as large as the rest of the matrix; all of its rank is kept."""
    yield ("", "array", "operator", "operator, relative to ‖A‖")
    rest = gallery.matrix(gallery.fast(N), rng=0)
    rest -= rest.mean(axis=0)
    mean = np.random.default_rng(1).standard_normal(N)
    mean *= 1e6 * np.linalg.norm(rest) / np.linalg.norm(mean) / N**0.5
    for dtype in ("float32", "float64"):
        A = (rest + mean).astype(dtype)
        cells = []
        for matrix in (A, aslinearoperator(A)):
            found = lowrank.svd(matrix, N, center=True, rng=0)
            centered = A.astype(np.float64) - found.mean.astype(np.float64)
            error = float(np.linalg.norm(centered - product(X.astype(np.float64) for X in found)))
            cells.append(f"{error / np.linalg.norm(centered):.1e}")
        yield (dtype, *cells, f"{error / np.linalg.norm(A.astype(np.float64)):.1e}")


def streaming() -> Table:
    yield ("", *SPECTRA)
    sizes: dict[str, dict[str, int]] = {
        "k = 81, s = 163 (default)": {},
        "k = 41, s = 83": {"sketch_size": 41, "core_size": 83},
        "k = 81, s = 81": {"core_size": 81},
    }
    for name, options in sizes.items():
        cells = []
        for kind in SPECTRA:
            s, A = spectrum(kind), matrix(kind)
            errors, bounds = [], []
            for seed in range(SEEDS):
                sketch = lowrank.SketchedMatrix(A.shape, RANK, rng=seed, **options).update(A)
                found = sketch.svd()
                errors.append(float(np.linalg.norm(A - product(found))))
                bounds.append(found.error_bound / errors[-1])
            best = gallery.best_error(s, RANK)
            cells.append(f"{median(errors) / best:.3g} ({min(bounds):.2f} to {max(bounds):.2f})")
        yield (name, *cells)


def main() -> None:
    warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
    tables = {"krylov": krylov(), "tolerances": tolerances(), "two sides": two_sides()}
    tables |= {"semidefinite": semidefinite(), "skeletons": skeletons(), "limits": limits()}
    tables |= {"centering": centering(), "streaming": streaming()}
    for name, table in tables.items():
        print(f"<!-- {name} -->\n")
        print_table(table, words=WORDS)
        print(f"\n<!-- end of {name} -->\n")


if __name__ == "__main__":
    main()
