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
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

import lowrank
from benchmarks.common.libraries import is_here
from benchmarks.common.measuring import in_turn
from benchmarks.machines.peers import calls as of
from benchmarks.machines.peers.calls import Calls
from benchmarks.studies.factorizations import hermitian
from lowrank import estimators, gallery

TOLERANCES = {"slow": 1e-2, "fast": 1e-6, "noisy": 0.1}
SPECTRA = ("slow", "slower")
STACK = 32
# What makes one matrix of what a call returns, and tells its rank.
Form = Callable[[Any], tuple[Any, int]]


class Sizes(NamedTuple):
    n: int
    rank: int
    repeats: int
    stack_n: int
    stack_rank: int


FULL, QUICK = Sizes(2000, 50, 5, 512, 32), Sizes(300, 20, 2, 64, 8)


def measured(calls: Calls, A: Any, form: Form, repeats: int) -> dict[str, tuple[float, float, int]]:
    """Median seconds, median error and rank of each call; `form` is not timed."""
    errors: dict[str, list[float]] = {name: [] for name in calls}
    ranks = {}

    def look(name: str, found: Any) -> None:
        matrix, ranks[name] = form(found)
        errors[name].append(float(np.linalg.norm(A - matrix)))

    once = ("numpy.linalg.svd",)  # a few seconds each
    seconds = in_turn(calls, repeats, once=once, look=look)
    return {name: (median(seconds[name]), median(errors[name]), ranks[name]) for name in calls}


def of_svd(found: Any) -> tuple[Any, int]:
    U, S, Vh = (np.asarray(X) for X in found)
    return (U * S) @ Vh, len(S)


def of_eigen(found: Any) -> tuple[Any, int]:
    w, V, *more = found
    if more:  # an SVD all the same
        return of_svd(found)
    return (V * w) @ V.conj().T, len(w)


# -- sections -------------------------------------------------------------------------------------


def printed(title: str, head: str, lines: dict[str, str]) -> None:
    print(f"\n{title}\n{'':34} {head}")
    for name, line in lines.items():
        print(f"{name:34} {line}", flush=True)


def table(title: str, sizes: Sizes, calls: Calls, A: Any, s: Any, form: Form) -> None:
    """Times relative to the first call, and errors over the best for the singular values s."""
    found, best = measured(calls, A, form, sizes.repeats), gallery.best_error(s, sizes.rank)
    first = next(iter(calls))
    unit = found[first][0]
    title = f"{title}, {sizes.n}×{sizes.n}, rank {sizes.rank}; {first} takes {unit * 1e3:.0f} ms"
    lines = {
        name: f"{seconds / unit:6.2f} {max(0.0, error / best - 1):15.1e}"
        for name, (seconds, error, _) in found.items()
    }
    printed(title, f"{'time':>6} {'error/best − 1':>15}", lines)


def section_svd(sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        A = gallery.matrix(s, rng=0)
        table(spectrum, sizes, of.at_a_rank(A, sizes.rank), A, s, of_svd)


def of_tolerance(spectrum: str, n: int) -> tuple[Any, Any]:
    """The matrix and its singular values; a noisy one is exp(−j/20) and Gaussian noise of 8 %."""
    if spectrum != "noisy":
        s = getattr(gallery, spectrum)(n)
        return gallery.matrix(s, rng=0), s
    A = gallery.matrix(gallery.medium(n), rng=0)
    noise = np.random.default_rng(1).standard_normal((n, n))
    A += 0.08 * np.linalg.norm(A) / np.linalg.norm(noise) * noise
    return A, np.linalg.svd(A, compute_uv=False)


def section_tolerance(sizes: Sizes) -> None:
    to_tolerances(sizes, of.to_a_tolerance, lambda _: of_svd)


def section_range(sizes: Sizes) -> None:
    to_tolerances(sizes, of.to_a_basis, lambda A: lambda Q: (Q @ (Q.T @ A), Q.shape[1]))


def to_tolerances(
    sizes: Sizes, calls_of: Callable[[Any, float], Calls], form_of: Callable[[Any], Form]
) -> None:
    for spectrum, rtol in TOLERANCES.items():
        A, s = of_tolerance(spectrum, sizes.n)
        calls = calls_of(A, rtol)
        found = measured(calls, A, form_of(A), sizes.repeats)
        first, tolerance = next(iter(calls)), rtol * float(np.linalg.norm(s))
        unit = found[first][0]
        title = f"{spectrum}, {sizes.n}×{sizes.n}, to {rtol:g}, "
        title += f"best rank {gallery.best_rank(s, rtol=rtol)}; {first} takes {unit * 1e3:.0f} ms"
        lines = {
            name: f"{seconds / unit:6.2f} {error / tolerance:15.2f} {rank:5d}"
            for name, (seconds, error, rank) in found.items()
        }
        printed(title, f"{'time':>6} {'error/tolerance':>15} {'rank':>5}", lines)


def section_interpolative(sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        A = gallery.matrix(s, rng=0)

        def form(found: Any, A: Any = A) -> tuple[Any, int]:
            J, X = found
            return A[:, J] @ X, len(J)

        calls = of.of_columns(A, sizes.rank)
        table(f"columns of {spectrum}", sizes, calls, A, s, form)


def section_eigh(sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        A = hermitian(s, signs=True)
        calls = of.of_hermitian(A, sizes.rank)
        table(f"{spectrum} of both signs", sizes, calls, A, s, of_eigen)


def section_nystrom(sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        s = getattr(gallery, spectrum)(sizes.n)
        A = hermitian(s)
        calls = of.of_semidefinite(A, sizes.rank)
        table(f"{spectrum}, semidefinite", sizes, calls, A, s, of_eigen)


def section_center(sizes: Sizes) -> None:
    for spectrum in SPECTRA:
        rest = gallery.matrix(getattr(gallery, spectrum)(sizes.n), rng=0)
        rest -= rest.mean(axis=0)
        A = rest + np.random.default_rng(1).standard_normal(sizes.n)
        s = np.linalg.svd(rest, compute_uv=False)
        calls = of.of_components(A, sizes.rank)
        table(f"{spectrum} and a mean", sizes, calls, rest, s, of_svd)


def section_stacks(sizes: Sizes) -> None:
    """The basis of each matrix of a stack, beside what it cannot do without."""
    for spectrum in ("gaussian", "slow"):
        for library in ("numpy", "torch"):
            for dtype in ("float32", "float64"):
                stacks_of(sizes, spectrum, library, dtype)


def stacks_of(sizes: Sizes, spectrum: str, library: str, dtype: str) -> None:
    xp, n, k = import_module(library), sizes.stack_n, sizes.stack_rank
    if spectrum == "gaussian":
        stack = np.random.default_rng(0).standard_normal((STACK, n, n))
    else:
        stack = np.stack([gallery.matrix(gallery.slow(n), rng=seed) for seed in range(STACK)])
    A, finder, svd = xp.asarray(stack.astype(dtype)), lowrank.range_finder, lowrank.svd

    def draw(seed: int, *shape: int) -> Any:
        if library == "numpy":
            return np.random.default_rng(seed).standard_normal(shape, dtype=A.dtype)
        return torch.randn(shape, dtype=A.dtype)

    def each(call: Callable[[int], Any]) -> list[Any]:
        return [call(i) for i in range(STACK)]

    qr = xp.linalg.qr
    calls: Calls = {
        "range_finder of the stack": of.ours(finder, A, k),
        f"{STACK} calls of range_finder": lambda seed: each(lambda i: finder(A[i], k, rng=seed)),
        "draw and A @ Omega": lambda seed: A @ draw(seed, STACK, n, k),
        f"{library}.linalg.qr in a loop": lambda seed: each(
            lambda i: qr(A[i] @ draw(seed + i, n, k))[0]
        ),
        f"{library}.linalg.qr of the stack": lambda seed: qr(A @ draw(seed, STACK, n, k)),
        "svd of the stack": of.ours(svd, A, k),
        f"{STACK} calls of svd": lambda seed: each(lambda i: svd(A[i], k, rng=seed)),
    }
    found = {name: median(each) for name, each in in_turn(calls, sizes.repeats).items()}
    unit = found["range_finder of the stack"]
    lines = {name: f"{each * 1e3:8.1f} {each / unit:6.2f}" for name, each in found.items()}
    title = f"{STACK} {spectrum} matrices {n}×{n}, rank {k}, {library}, {dtype}"
    printed(title, f"{'ms':>8} {'time':>6}", lines)


def words(pieces: int) -> Any:
    """Weights of terms in pieces of Python's standard library: a sparse matrix."""
    library = Path(sysconfig.get_path("stdlib"))
    files = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    texts = (path.read_text("utf-8", errors="replace") for path in files)
    found = [text[i : i + 2000] for text in texts for i in range(0, len(text), 2000)]
    return TfidfVectorizer(min_df=3).fit_transform(found[:pieces])


def section_estimators(sizes: Sizes) -> None:
    n, rank = sizes.n, sizes.rank
    slower = gallery.matrix(gallery.slower(n), (2 * n, n), rng=0) + 1e-2
    dense = {"digits": load_digits().data, "slower": slower}
    dense["slower, float32"] = slower.astype("float32")

    def beside(ours: Any, theirs: Any, name: str, count: float, *solvers: str) -> dict[str, Any]:
        others = {f"scikit-learn, {of}": partial(theirs, count, **{name: of}) for of in solvers}
        return {"lowrank": partial(ours, count)} | others

    pca = partial(beside, estimators.PCA, PCA, "svd_solver")
    for name, X in dense.items():
        k = min(rank, X.shape[1] // 3)
        models = pca(k, "randomized", "arpack", "covariance_eigh", "full")
        fits(f"PCA({k}) of {name}", models, X, sizes)
        fits(f"PCA(0.9) of {name}", pca(0.9, "covariance_eigh", "full"), X, sizes)
    text = words(4 * n)
    fits(f"PCA({rank}) of words", pca(rank, "arpack"), text, sizes)
    svd = partial(beside, estimators.TruncatedSVD, TruncatedSVD, "algorithm")
    fits(f"TruncatedSVD({rank}) of words", svd(rank, "randomized", "arpack"), text, sizes)


def fits(title: str, models: dict[str, Callable[..., Any]], X: Any, sizes: Sizes) -> None:
    """Median time of a fit, components, and the share of the variance that they capture."""
    shares: dict[str, list[float]] = {name: [] for name in models}
    kept = {}

    def look(name: str, fitted: Any) -> None:
        shares[name].append(float(np.sum(fitted.explained_variance_ratio_)))
        kept[name] = len(fitted.components_)

    def fit(model: Callable[..., Any], seed: int) -> Any:
        return model(random_state=seed).fit(X)

    calls = {name: partial(fit, model) for name, model in models.items()}
    once = [name for name in models if name.endswith("full")]  # seconds each
    seconds = in_turn(calls, sizes.repeats, once=once, look=look)
    lines = {
        name: f"{median(each) * 1e3:8.1f} {kept[name]:10d} {median(shares[name]):10.6f}"
        for name, each in seconds.items()
    }
    title = f"{title}, {X.shape[0]}×{X.shape[1]}"
    printed(title, f"{'ms':>8} {'components':>10} {'variance':>10}", lines)


SECTIONS: dict[str, Callable[[Sizes], None]] = {
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
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small matrices, for a trial")
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all by default")
    options = parser.parse_args()
    if unknown := set(options.section) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    packages = ("numpy", "scipy", "scikit-learn", "torch", "fbpca", "librla", "pymor", "skerch")
    here = [name for name in packages if name == "scikit-learn" or is_here(name)]
    told = [platform.processor() or platform.machine(), f"Python {platform.python_version()}"]
    print(", ".join([*told, *(f"{name} {version(name)}" for name in here)]))
    for name in options.section or SECTIONS:
        start = time.perf_counter()
        SECTIONS[name](QUICK if options.quick else FULL)
        print(f"({name}: {time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
