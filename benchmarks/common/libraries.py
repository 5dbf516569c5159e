"""Other libraries, each of which may be missing: what is called of them, given a seed."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

import numpy as np

from benchmarks.common.accuracy import cut


def is_here(package: str) -> bool:
    return find_spec(package) is not None


def module_of(package: str, module: str) -> Any:
    """A module of a package, whose own `__init__`, which wants more packages, is not run."""
    if package not in sys.modules:
        spec = find_spec(package)
        if spec is None:
            message = f"{package} is not installed"
            raise ModuleNotFoundError(message)
        sys.modules[package] = module_from_spec(spec)
    return import_module(f"{package}.{module}")


def galore(groups: list[dict[str, Any]], **options: Any) -> Any:
    """The AdamW of galore-torch."""
    cls = module_of("galore_torch", "adamw").AdamW
    return cls(groups, no_deprecation_warning=True, **options)


def svd_lowrank(A: Any, rank: int, q: int, niter: int = 2) -> Any:
    U, S, V = import_module("torch").svd_lowrank(A, q=q, niter=niter)
    return U[:, :rank], S[:rank], V[:, :rank].mH


def randomized_svd(A: Any, k: int, seed: int, **options: Any) -> Any:
    extmath = import_module("sklearn.utils.extmath")
    return extmath.randomized_svd(A, k, random_state=seed, **options)


def interpolative_svd(A: Any, eps_or_k: float, seed: int) -> Any:
    if A.dtype != np.float64:
        message = "computes in double precision only"
        raise TypeError(message)
    U, S, V = import_module("scipy.linalg.interpolative").svd(A, eps_or_k, rng=seed)
    return U, S, V.T.conj()


def full_svd(library: str, A: Any, k: int) -> Any:
    return cut(import_module(f"{library}.linalg").svd(A, full_matrices=False), k)


def truncated_svds(A: Any, k: int) -> dict[tuple[str, str], Callable[[int], Any]]:
    """Of scikit-learn and SciPy, for a NumPy array; by the library and the method."""

    def sparse(seed: int, solver: str) -> Any:
        return import_module("scipy.sparse.linalg").svds(A, k, solver=solver, rng=seed)

    return {
        ("scikit-learn", "randomized_svd"): lambda seed: randomized_svd(A, k, seed),
        ("scikit-learn", "randomized_svd, n_iter=2, QR"): lambda seed: randomized_svd(
            A, k, seed, n_iter=2, power_iteration_normalizer="QR"
        ),
        ("scipy", "svds, ARPACK"): lambda seed: sparse(seed, "arpack"),
        ("scipy", "svds, PROPACK"): lambda seed: sparse(seed, "propack"),
        ("scipy", "interpolative.svd"): lambda seed: interpolative_svd(A, k, seed),
    }
