"""Comparisons with other libraries: time and error, on this machine.

    OMP_NUM_THREADS=1 python -m benchmarks.machines.peers [--quick] [SECTION ...] [> …]

Sections (all by default): `svd` and `tolerance`, the README's; `range`, bases to a tolerance;
`interpolative`, `eigh`, `nystrom`, `center` at equal rank, columns and products; `stacks`, many
small matrices at once; `estimators`, scikit-learn's and ours, by the variance that they capture.
Needs SciPy, scikit-learn and PyTorch; fbpca, librla, pyMOR and skerch are used where they are
installed. Takes about ten minutes on one thread, and with --quick, on small matrices, half a
minute; nothing else should run.

The calls of a table take turns on one matrix; medians of five after a first that warms up. Errors
are in the Frobenius norm. Options are defaults unless the name tells.
"""

import argparse
import platform
import sysconfig
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.linalg import interpolative
from scipy.linalg import qr as scipy_qr
from scipy.sparse.linalg import svds
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

import lowrank
from benchmarks.studies.factorizations import hermitian
from lowrank import estimators, gallery

N, RANK, OVER, REPEATS = 2000, 50, 10, 5
TOLERANCES = {"slow": 1e-2, "fast": 1e-6, "noisy": 0.1}
SPECTRA = ("slow", "slower")
STACK, STACK_SIZE, STACK_RANK = 32, 512, 32

Calls = dict[str, Callable[[int], Any]]


def measured(
    calls: Calls, A: Any, form: Callable[[Any], Any]
) -> dict[str, tuple[float, float, int]]:
    """Median seconds, median error and rank of each call; the argument of a call is a seed.

    `form` makes one matrix of what a call returns, and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, list[float]] = {name: [] for name in calls}
    ranks = {}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            if name == "numpy.linalg.svd" and repeat > 1:
                continue  # a few seconds each
            start = time.perf_counter()
            found = call(repeat)
            duration = time.perf_counter() - start
            if repeat > 0:  # the first call of each warms up
                matrix, rank = form(found)
                seconds[name].append(duration)
                errors[name].append(float(np.linalg.norm(A - matrix)))
                ranks[name] = rank
    return {name: (median(seconds[name]), median(errors[name]), ranks[name]) for name in calls}


def of_svd(found: Any) -> tuple[Any, int]:
    U, S, Vh = (np.asarray(X) for X in found)
    return (U * S) @ Vh, len(S)


def of_eigen(found: Any) -> tuple[Any, int]:
    w, V, *more = found
    if more:  # an SVD all the same
        return of_svd(found)
    return (V * w) @ V.conj().T, len(w)


def is_here(package: str) -> bool:
    return find_spec(package) is not None


def at_a_rank(A: Any) -> Calls:
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

    def skerch(seed: int) -> Any:
        ssvd = import_module("skerch.algorithms").ssvd
        U, S, Vh = ssvd(At, "cpu", At.dtype, RANK + OVER, seed=seed, noise_type="gaussian")
        return U[:, :RANK], S[:RANK], Vh[:RANK]

    calls: Calls = {
        "lowrank.svd": lambda seed: lowrank.svd(A, RANK, rng=seed),
        "lowrank.svd, power_iterations=7": lambda seed: lowrank.svd(
            A, RANK, power_iterations=7, rng=seed
        ),
        "randomized_svd": lambda seed: randomized_svd(A, RANK, random_state=seed),
        "randomized_svd, n_iter=2, QR": lambda seed: randomized_svd(
            A, RANK, n_iter=2, power_iteration_normalizer="QR", random_state=seed
        ),
        f"torch.svd_lowrank, q={RANK}": lambda seed: of_torch(seed, RANK),
        f"torch.svd_lowrank, q={RANK + 10}": lambda seed: of_torch(seed, RANK + 10),
        "svds, ARPACK": lambda seed: svds(A, RANK, rng=seed),
        "svds, PROPACK": lambda seed: svds(A, RANK, solver="propack", rng=seed),
        "interpolative.svd": by_interpolation,
        "numpy.linalg.svd": full,
    }
    if is_here("skerch"):
        calls |= {"lowrank.svd, power_iterations=0": partial(without_powers, A)}
        calls |= {f"skerch.ssvd, outer_dims={RANK + OVER}": skerch}
    return calls


def without_powers(A: Any, seed: int) -> Any:
    return lowrank.svd(A, RANK, power_iterations=0, rng=seed)


def to_a_tolerance(A: Any, rtol: float) -> Calls:
    def by_interpolation(seed: int, eps: float) -> Any:
        U, S, V = interpolative.svd(A, eps, rng=seed)
        return U, S, V.T.conj()

    return {
        "lowrank.svd, rtol": lambda seed: lowrank.svd(A, rtol=rtol, rng=seed),
        "interpolative.svd, eps": lambda seed: by_interpolation(seed, rtol),
        "interpolative.svd, eps/10": lambda seed: by_interpolation(seed, rtol / 10),
        "numpy.linalg.svd": lambda _: cut(np.linalg.svd(A, full_matrices=False), rtol),
    }


def cut(found: Any, rtol: float) -> Any:
    """The smallest rank that keeps the tolerance, of a full SVD."""
    U, S, Vh = found
    rank = gallery.best_rank(S, rtol=rtol)
    return U[:, :rank], S[:rank], Vh[:rank]


def to_a_basis(A: Any, rtol: float) -> Calls:
    """Of pyMOR with both of its estimators; the second bounds the spectral norm."""
    calls: Calls = {
        "lowrank.range_finder": lambda seed: lowrank.range_finder(A, rtol=rtol, rng=seed).Q
    }
    calls["lowrank.range_finder, spectral"] = lambda seed: (
        lowrank.range_finder(A, atol=rtol * float(np.linalg.norm(A)), norm="spectral", rng=seed).Q
    )
    if is_here("pymor"):
        import_module("pymor.core.logger").set_log_levels({"pymor": "ERROR"})
        operator = import_module("pymor.operators.numpy").NumpyMatrixOperator(A)
        finder = import_module("pymor.algorithms.rand_la").RandomizedRangeFinder
        tolerance = rtol * float(np.linalg.norm(A))

        failures = (import_module("pymor.core.exceptions").AccuracyError, AssertionError)

        def pymor(_: int, *, estimator: str, width: int) -> Any:
            for qr in ("shifted_chol_qr", "gram_schmidt"):  # the first, faster, fails on some
                options = {"error_estimator": estimator, "qr_method": qr, "block_size": width}
                with suppress(*failures):
                    return finder(operator, **options).find_range(tol=tolerance).to_numpy()
            raise RuntimeError(f"{estimator} fails")

        for estimator in ("loo", "bs18"):
            for width in (16, 64):
                name = f"pyMOR, {estimator}, block_size={width}"
                calls[name] = partial(pymor, estimator=estimator, width=width)
    return calls


def of_columns(A: Any) -> Calls:
    """Indices and coefficients of an interpolative decomposition."""

    def scipy(seed: int, *, rand: bool = True) -> Any:
        J, projection = interpolative.interp_decomp(A, RANK, rand=rand, rng=seed)
        return J[:RANK], interpolative.reconstruct_interp_matrix(J, projection)

    def librla(seed: int) -> Any:
        rank, order, T = import_module("librla").id_sketch(
            A, RANK, extra_samples=OVER, rng=np.random.default_rng(seed)
        )
        return order[:rank], with_identity(order, T)

    def lapack(_: int) -> Any:
        R, order = scipy_qr(A, mode="r", pivoting=True)
        T = np.linalg.solve(R[:RANK, :RANK], R[:RANK, RANK:])
        return order[:RANK], with_identity(order, T)

    calls: Calls = {
        "lowrank.interpolative": lambda seed: lowrank.interpolative(A, RANK, rng=seed),
        "lowrank, power_iterations=0": lambda seed: lowrank.interpolative(
            A, RANK, power_iterations=0, rng=seed
        ),
        "scipy interp_decomp": scipy,
        "scipy interp_decomp, rand=False": partial(scipy, rand=False),
    }
    if is_here("librla"):
        calls["librla.id_sketch"] = librla
    return calls | {"scipy.linalg.qr, pivoting": lapack}


def with_identity(order: Any, T: Any) -> Any:
    X = np.zeros((T.shape[0], len(order)))
    X[:, order[: len(T)]] = np.eye(len(T))
    X[:, order[len(T) :]] = T
    return X


def of_hermitian(A: Any) -> Calls:
    """Eigenvalues of both signs."""
    calls: Calls = {
        "lowrank.eigh": lambda seed: lowrank.eigh(A, RANK, rng=seed),
        "lowrank.eigh, krylov": lambda seed: lowrank.eigh(
            A, RANK, krylov=True, power_iterations=2, rng=seed
        ),
        "lowrank.svd": lambda seed: lowrank.svd(A, RANK, rng=seed),
        "numpy.linalg.eigh": lambda _: largest(np.linalg.eigh(A)),
    }
    if is_here("fbpca"):
        for n_iter in (2, 4):  # single products with A
            calls[f"fbpca.eigens, n_iter={n_iter}"] = partial(of_fbpca, "eigens", A, n_iter)
    return calls


def of_semidefinite(A: Any) -> Calls:
    def two(seed: int) -> Any:
        Q = lowrank.range_finder(A, RANK + OVER, rng=seed).Q
        return lowrank.nystrom(A, RANK, oversampling=OVER, test_matrix=Q)

    calls: Calls = {
        "lowrank.nystrom": lambda seed: lowrank.nystrom(A, RANK, rng=seed),
        "lowrank.nystrom, two passes": two,
        "lowrank.eigh": lambda seed: lowrank.eigh(A, RANK, rng=seed),
    }
    if is_here("fbpca"):
        for n_iter in (0, 1, 4):
            calls[f"fbpca.eigenn, n_iter={n_iter}"] = partial(of_fbpca, "eigenn", A, n_iter)
    return calls


def of_fbpca(name: str, A: Any, n_iter: int, seed: int) -> Any:
    np.random.seed(seed)  # noqa: NPY002 the only seed it knows
    return getattr(import_module("fbpca"), name)(A, RANK, n_iter=n_iter, l=RANK + OVER)


def largest(found: Any) -> Any:
    w, V = found
    order = np.argsort(-np.abs(w))[:RANK]
    return w[order], V[:, order]


def of_components(A: Any) -> Calls:
    """SVDs of A less the mean of its rows."""

    def sklearn(seed: int, **options: Any) -> Any:
        pca = PCA(RANK, svd_solver="randomized", random_state=seed, **options)
        scores = pca.fit_transform(A)
        S = pca.singular_values_
        return scores / S, S, pca.components_

    def fbpca(seed: int) -> Any:
        np.random.seed(seed)  # noqa: NPY002
        return import_module("fbpca").pca(A, RANK, raw=False, n_iter=2, l=RANK + OVER)

    calls: Calls = {
        "lowrank.svd, center": lambda seed: lowrank.svd(A, RANK, center=True, rng=seed),
        "lowrank.svd of A - A.mean(0)": lambda seed: lowrank.svd(A - A.mean(0), RANK, rng=seed),
        "PCA, randomized": sklearn,
        "PCA, iterated_power=2, QR": lambda seed: sklearn(
            seed, iterated_power=2, power_iteration_normalizer="QR"
        ),
    }
    if is_here("fbpca"):
        calls["fbpca.pca, raw=False, n_iter=2"] = fbpca
    return calls


# -- sections -------------------------------------------------------------------------------------


def table(title: str, calls: Calls, A: Any, best: float, form: Callable[[Any], Any]) -> None:
    """Times relative to the first call, and errors over the best."""
    found = measured(calls, A, form)
    first = next(iter(calls))
    unit = found[first][0]
    print(f"\n{title}; {first} takes {unit * 1e3:.0f} ms")
    print(f"{'':34} {'time':>6} {'error/best − 1':>15}")
    for name, (seconds, error, _) in found.items():
        print(f"{name:34} {seconds / unit:6.2f} {max(0.0, error / best - 1):15.1e}", flush=True)


def section_svd() -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(N)
        A = gallery.matrix(s, (N, N), rng=0)
        title = f"{spectrum}, {N}×{N}, rank {RANK}"
        table(title, at_a_rank(A), A, gallery.best_error(s, RANK), of_svd)


def of_tolerance(spectrum: str) -> tuple[Any, Any]:
    """The matrix and its singular values; a noisy one is exp(−j/20) and Gaussian noise of 8 %."""
    if spectrum != "noisy":
        s = getattr(gallery, spectrum)(N)
        return gallery.matrix(s, (N, N), rng=0), s
    A = gallery.matrix(gallery.medium(N), (N, N), rng=0)
    noise = np.random.default_rng(1).standard_normal((N, N))
    A += 0.08 * np.linalg.norm(A) / np.linalg.norm(noise) * noise
    return A, np.linalg.svd(A, compute_uv=False)


def section_tolerance() -> None:
    to_tolerances(to_a_tolerance, of_svd)


def section_range() -> None:
    def projected(A: Any) -> Callable[[Any], tuple[Any, int]]:
        def form(Q: Any) -> tuple[Any, int]:
            return Q @ (Q.T @ A), Q.shape[1]

        return form

    to_tolerances(to_a_basis, projected)


def to_tolerances(calls_of: Callable[[Any, float], Calls], form: Callable[[Any], Any]) -> None:
    for spectrum, rtol in TOLERANCES.items():
        A, s = of_tolerance(spectrum)
        best_rank = gallery.best_rank(s, rtol=rtol)
        calls = calls_of(A, rtol)
        found = measured(calls, A, form if form is of_svd else form(A))
        first = next(iter(calls))
        unit = found[first][0]
        print(
            f"\n{spectrum}, {N}×{N}, to {rtol:g}, best rank {best_rank}; {first} takes "
            f"{unit * 1e3:.0f} ms"
        )
        print(f"{'':34} {'time':>6} {'error/tolerance':>15} {'rank':>5}")
        for name, (seconds, error, rank) in found.items():
            missed = error / (rtol * float(np.linalg.norm(s)))
            print(f"{name:34} {seconds / unit:6.2f} {missed:15.2f} {rank:5d}")


def section_interpolative() -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(N)
        A = gallery.matrix(s, (N, N), rng=0)

        def form(found: Any, A: Any = A) -> tuple[Any, int]:
            J, X = found
            return A[:, J] @ X, len(J)

        title = f"columns of {spectrum}, {N}×{N}, rank {RANK}"
        table(title, of_columns(A), A, gallery.best_error(s, RANK), form)


def section_eigh() -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(N)
        A = hermitian(s * (-1.0) ** np.arange(N))
        title = f"{spectrum} of both signs, {N}×{N}, rank {RANK}"
        table(title, of_hermitian(A), A, gallery.best_error(s, RANK), of_eigen)


def section_nystrom() -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(N)
        A = hermitian(s)
        title = f"{spectrum}, semidefinite, {N}×{N}, rank {RANK}"
        table(title, of_semidefinite(A), A, gallery.best_error(s, RANK), of_eigen)


def section_center() -> None:
    for spectrum in SPECTRA:
        rest = gallery.matrix(getattr(gallery, spectrum)(N), (N, N), rng=0)
        rest -= rest.mean(axis=0)
        A = rest + np.random.default_rng(1).standard_normal(N)
        s = np.linalg.svd(rest, compute_uv=False)
        title = f"{spectrum} and a mean, {N}×{N}, rank {RANK}"
        table(title, of_components(A), rest, gallery.best_error(s, RANK), of_svd)


def section_stacks() -> None:
    """The basis of each matrix of a stack, beside what it cannot do without."""
    for spectrum in ("gaussian", "slow"):
        for library in ("numpy", "torch"):
            for dtype in ("float32", "float64"):
                stacks_of(spectrum, library, dtype)


def stacks_of(spectrum: str, library: str, dtype: str) -> None:
    xp, n, k = import_module(library), STACK_SIZE, STACK_RANK
    if spectrum == "gaussian":
        stack = np.random.default_rng(0).standard_normal((STACK, n, n))
    else:
        stack = np.stack([gallery.matrix(gallery.slow(n), rng=seed) for seed in range(STACK)])
    A = xp.asarray(stack.astype(dtype))

    def draw(seed: int, *shape: int) -> Any:
        if library == "numpy":
            return np.random.default_rng(seed).standard_normal(shape, dtype=A.dtype)
        return torch.randn(shape, dtype=A.dtype)

    def loop(seed: int) -> Any:
        return [xp.linalg.qr(A[i] @ draw(seed + i, n, k))[0] for i in range(STACK)]

    calls: Calls = {
        "range_finder of the stack": lambda seed: lowrank.range_finder(A, k, rng=seed),
        f"{STACK} calls of range_finder": lambda seed: [
            lowrank.range_finder(A[i], k, rng=seed) for i in range(STACK)
        ],
        "draw and A @ Omega": lambda seed: A @ draw(seed, STACK, n, k),
        f"{library}.linalg.qr in a loop": loop,
        f"{library}.linalg.qr of the stack": lambda seed: xp.linalg.qr(A @ draw(seed, STACK, n, k)),
        "svd of the stack": lambda seed: lowrank.svd(A, k, rng=seed),
        f"{STACK} calls of svd": lambda seed: [
            lowrank.svd(A[i], k, rng=seed) for i in range(STACK)
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(repeat)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    unit = median(seconds["range_finder of the stack"])
    print(f"\n{STACK} {spectrum} matrices {n}×{n}, rank {k}, {library}, {dtype}")
    print(f"{'':34} {'ms':>8} {'time':>6}")
    for name, each in seconds.items():
        print(f"{name:34} {median(each) * 1e3:8.1f} {median(each) / unit:6.2f}", flush=True)


def words() -> Any:
    """Weights of terms in pieces of Python's standard library: a sparse matrix."""
    library = Path(sysconfig.get_path("stdlib"))
    files = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    texts = (path.read_text("utf-8", errors="replace") for path in files)
    pieces = [text[i : i + 2000] for text in texts for i in range(0, len(text), 2000)]
    return TfidfVectorizer(min_df=3).fit_transform(pieces[: 4 * N])


def section_estimators() -> None:
    digits, text = load_digits().data, words()
    slower = gallery.matrix(gallery.slower(N), (2 * N, N), rng=0) + 1e-2
    single = slower.astype("float32")
    PCA_, SVD_ = estimators.PCA, estimators.TruncatedSVD
    for name, X in (("digits", digits), ("slower", slower), ("slower, float32", single)):
        k = min(RANK, X.shape[1] // 3)
        rank = {"lowrank": partial(PCA_, k)}
        for solver in ("randomized", "arpack", "covariance_eigh", "full"):
            rank[f"scikit-learn, {solver}"] = partial(PCA, k, svd_solver=solver)
        fits(f"PCA({k}) of {name}", rank, X)
        share = {"lowrank": partial(PCA_, 0.9)}
        for solver in ("covariance_eigh", "full"):
            share[f"scikit-learn, {solver}"] = partial(PCA, 0.9, svd_solver=solver)
        fits(f"PCA(0.9) of {name}", share, X)
    ours, theirs = partial(PCA_, RANK), partial(PCA, RANK, svd_solver="arpack")
    fits(f"PCA({RANK}) of words", {"lowrank": ours, "scikit-learn, arpack": theirs}, text)
    truncated = {"lowrank": partial(SVD_, RANK)}
    for solver in ("randomized", "arpack"):
        truncated[f"scikit-learn, {solver}"] = partial(TruncatedSVD, RANK, algorithm=solver)
    fits(f"TruncatedSVD({RANK}) of words", truncated, text)


def fits(title: str, models: dict[str, Callable[..., Any]], X: Any) -> None:
    """Median time of a fit, components, and the share of the variance that they capture."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    shares: dict[str, list[float]] = {name: [] for name in models}
    kept = {}
    for repeat in range(REPEATS + 1):
        for name, model in models.items():
            if name.endswith("full") and repeat > 1:
                continue  # seconds each
            start = time.perf_counter()
            fitted = model(random_state=repeat).fit(X)
            duration = time.perf_counter() - start
            if repeat > 0:  # the first call of each warms up
                seconds[name].append(duration)
                shares[name].append(float(np.sum(fitted.explained_variance_ratio_)))
                kept[name] = len(fitted.components_)
    print(f"\n{title}, {X.shape[0]}×{X.shape[1]}")
    print(f"{'':34} {'ms':>8} {'components':>10} {'variance':>10}")
    for name, each in seconds.items():
        ms, share = median(each) * 1e3, median(shares[name])
        print(f"{name:34} {ms:8.1f} {kept[name]:10d} {share:10.6f}", flush=True)


SECTIONS: dict[str, Callable[[], None]] = {
    "svd": section_svd,
    "tolerance": section_tolerance,
    "range": section_range,
    "interpolative": section_interpolative,
    "eigh": section_eigh,
    "nystrom": section_nystrom,
    "center": section_center,
    "stacks": section_stacks,
    "estimators": section_estimators,
}


def main() -> None:
    global N, RANK, REPEATS, STACK_SIZE, STACK_RANK
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small matrices, for a trial")
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.section) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if options.quick:
        N, RANK, REPEATS, STACK_SIZE, STACK_RANK = 300, 20, 2, 64, 8
    packages = ("numpy", "scipy", "scikit-learn", "torch", "fbpca", "librla", "pymor", "skerch")
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ",
        end="",
    )
    here = [name for name in packages if name == "scikit-learn" or is_here(name)]
    print(", ".join(f"{name} {version(name)}" for name in here))
    for name in options.section or SECTIONS:
        start = time.perf_counter()
        SECTIONS[name]()
        print(f"({name}: {time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
