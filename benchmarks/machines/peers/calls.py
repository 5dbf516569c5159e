"""What is compared: calls of a seed, of lowrank and of other libraries, by the names of rows."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from scipy.linalg import interpolative
from scipy.linalg import qr as scipy_qr
from sklearn.decomposition import PCA

import lowrank
from benchmarks.common import libraries
from lowrank import gallery

OVER = 10  # columns more than the rank
Calls = dict[str, Callable[[int], Any]]


def ours(function: Callable[..., Any], A: Any, k: int | None = None, **options: Any) -> Any:
    return lambda seed: function(A, k, rng=seed, **options)


def at_a_rank(A: Any, k: int) -> Calls:
    At = torch.asarray(A)

    def of_torch(seed: int, q: int) -> Any:
        torch.manual_seed(seed)
        return libraries.svd_lowrank(At, k, q)

    def skerch(seed: int) -> Any:
        ssvd = import_module("skerch.algorithms").ssvd
        U, S, Vh = ssvd(At, "cpu", At.dtype, k + OVER, seed=seed, noise_type="gaussian")
        return U[:, :k], S[:k], Vh[:k]

    theirs = {method: call for (_, method), call in libraries.truncated_svds(A, k).items()}
    calls: Calls = {
        "lowrank.svd": ours(lowrank.svd, A, k),
        "lowrank.svd, power_iterations=7": ours(lowrank.svd, A, k, power_iterations=7),
        **{name: call for name, call in theirs.items() if name.startswith("randomized")},
        f"torch.svd_lowrank, q={k}": partial(of_torch, q=k),
        f"torch.svd_lowrank, q={k + OVER}": partial(of_torch, q=k + OVER),
        **theirs,
        "numpy.linalg.svd": lambda _: libraries.full_svd("numpy", A, k),
    }
    if libraries.is_here("skerch"):
        bare = ours(lowrank.svd, A, k, power_iterations=0)
        calls |= {"lowrank.svd, power_iterations=0": bare}
        calls |= {f"skerch.ssvd, outer_dims={k + OVER}": skerch}
    return calls


def to_a_tolerance(A: Any, rtol: float) -> Calls:
    def smallest(_: int) -> Any:
        """The smallest rank that keeps the tolerance, of a full SVD."""
        U, S, Vh = np.linalg.svd(A, full_matrices=False)
        rank = gallery.best_rank(S, rtol=rtol)
        return U[:, :rank], S[:rank], Vh[:rank]

    return {
        "lowrank.svd, rtol": ours(lowrank.svd, A, rtol=rtol),
        "interpolative.svd, eps": lambda seed: libraries.interpolative_svd(A, rtol, seed),
        "interpolative.svd, eps/10": lambda seed: libraries.interpolative_svd(A, rtol / 10, seed),
        "numpy.linalg.svd": smallest,
    }


def to_a_basis(A: Any, rtol: float) -> Calls:
    """Of pyMOR with both of its estimators; the second bounds the spectral norm."""
    finder, tolerance = lowrank.range_finder, rtol * float(np.linalg.norm(A))
    spectral = {"atol": tolerance, "norm": "spectral"}
    calls: Calls = {
        "lowrank.range_finder": lambda seed: finder(A, rtol=rtol, rng=seed).Q,
        "lowrank.range_finder, spectral": lambda seed: finder(A, rng=seed, **spectral).Q,
    }
    if libraries.is_here("pymor"):
        import_module("pymor.core.logger").set_log_levels({"pymor": "ERROR"})
        operator = import_module("pymor.operators.numpy").NumpyMatrixOperator(A)
        theirs = import_module("pymor.algorithms.rand_la").RandomizedRangeFinder
        failures = (import_module("pymor.core.exceptions").AccuracyError, AssertionError)

        def pymor(_: int, *, estimator: str, width: int) -> Any:
            for qr in ("shifted_chol_qr", "gram_schmidt"):  # the first, faster, fails on some
                options = {"error_estimator": estimator, "qr_method": qr, "block_size": width}
                with suppress(*failures):
                    return theirs(operator, **options).find_range(tol=tolerance).to_numpy()
            raise RuntimeError(f"{estimator} fails")

        for estimator in ("loo", "bs18"):
            for width in (16, 64):
                name = f"pyMOR, {estimator}, block_size={width}"
                calls[name] = partial(pymor, estimator=estimator, width=width)
    return calls


def of_columns(A: Any, k: int) -> Calls:
    """Indices and coefficients of an interpolative decomposition."""

    def scipy(seed: int, *, rand: bool = True) -> Any:
        J, projection = interpolative.interp_decomp(A, k, rand=rand, rng=seed)
        return J[:k], interpolative.reconstruct_interp_matrix(J, projection)

    def librla(seed: int) -> Any:
        sketch, rng = import_module("librla").id_sketch, np.random.default_rng(seed)
        rank, order, T = sketch(A, k, extra_samples=OVER, rng=rng)
        return order[:rank], with_identity(order, T)

    def lapack(_: int) -> Any:
        R, order = scipy_qr(A, mode="r", pivoting=True)
        return order[:k], with_identity(order, np.linalg.solve(R[:k, :k], R[:k, k:]))

    calls: Calls = {
        "lowrank.interpolative": ours(lowrank.interpolative, A, k),
        "lowrank, power_iterations=0": ours(lowrank.interpolative, A, k, power_iterations=0),
        "scipy interp_decomp": scipy,
        "scipy interp_decomp, rand=False": partial(scipy, rand=False),
    }
    if libraries.is_here("librla"):
        calls["librla.id_sketch"] = librla
    return calls | {"scipy.linalg.qr, pivoting": lapack}


def with_identity(order: Any, T: Any) -> Any:
    X = np.zeros((T.shape[0], len(order)))
    X[:, order[: len(T)]] = np.eye(len(T))
    X[:, order[len(T) :]] = T
    return X


def of_hermitian(A: Any, k: int) -> Calls:
    """Eigenvalues of both signs."""

    def largest(_: int) -> Any:
        w, V = np.linalg.eigh(A)
        order = np.argsort(-np.abs(w))[:k]
        return w[order], V[:, order]

    calls: Calls = {
        "lowrank.eigh": ours(lowrank.eigh, A, k),
        "lowrank.eigh, krylov": ours(lowrank.eigh, A, k, krylov=True, power_iterations=2),
        "lowrank.svd": ours(lowrank.svd, A, k),
        "numpy.linalg.eigh": largest,
    }
    # of single products with A
    return calls | of_fbpca("eigens", A, k, (2, 4))


def of_semidefinite(A: Any, k: int) -> Calls:
    def two(seed: int) -> Any:
        Q = lowrank.range_finder(A, k + OVER, rng=seed).Q
        return lowrank.nystrom(A, k, oversampling=OVER, test_matrix=Q)

    calls: Calls = {
        "lowrank.nystrom": ours(lowrank.nystrom, A, k),
        "lowrank.nystrom, two passes": two,
        "lowrank.eigh": ours(lowrank.eigh, A, k),
    }
    return calls | of_fbpca("eigenn", A, k, (0, 1, 4))


def of_fbpca(name: str, A: Any, k: int, iterations: tuple[int, ...], **options: Any) -> Calls:
    def call(seed: int, *, n_iter: int) -> Any:
        np.random.seed(seed)  # noqa: NPY002 the only seed it knows
        function = getattr(import_module("fbpca"), name)
        return function(A, k, n_iter=n_iter, l=k + OVER, **options)

    told = "".join(f", {key}={value}" for key, value in options.items())
    names = {f"fbpca.{name}{told}, n_iter={n_iter}": n_iter for n_iter in iterations}
    there = names if libraries.is_here("fbpca") else {}
    return {shown: partial(call, n_iter=n_iter) for shown, n_iter in there.items()}


def of_components(A: Any, k: int) -> Calls:
    """SVDs of A less the mean of its rows."""

    def sklearn(seed: int, **options: Any) -> Any:
        pca = PCA(k, svd_solver="randomized", random_state=seed, **options)
        scores = pca.fit_transform(A)
        S = pca.singular_values_
        return scores / S, S, pca.components_

    by_qr = {"iterated_power": 2, "power_iteration_normalizer": "QR"}
    calls: Calls = {
        "lowrank.svd, center": ours(lowrank.svd, A, k, center=True),
        "lowrank.svd of A - A.mean(0)": lambda seed: lowrank.svd(A - A.mean(0), k, rng=seed),
        "PCA, randomized": sklearn,
        "PCA, iterated_power=2, QR": partial(sklearn, **by_qr),
    }
    return calls | of_fbpca("pca", A, k, (2,), raw=False)
