"""Matrices, measures and a way to call that several test files share; all of it NumPy."""

import warnings

import numpy as np

from lowrank import ConvergenceWarning, gallery

# Failure probability of every bound that a drawn matrix is held against. In the nightly profile
# (1,500 examples for each of 22 combinations of library and dtype here, up to 30 with CUDA and
# CuPy) the range finder has 1 such bound an example, qb and svd 2, the published bounds 2 and the
# operators 3,000 in all: at most 30 · 1,500 · 5 + 3,000 = 228,000 bounds, which fail with a
# probability of 2.3e-10 together; in the default profile 4e-12.
DRAWN = 1e-15


def gaussian(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        X = (X + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return X.astype(dtype)


def with_spectrum(values, shape, dtype, seed=0):
    """A matrix with these singular values, made in double precision and rounded once."""
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    return gallery.matrix(values, shape, dtype=wide, rng=seed).astype(dtype)


def adjoint(X):
    return np.conj(np.swapaxes(X, -1, -2))


def defect(Q):
    """``‖QᴴQ − I‖_F``."""
    return np.linalg.norm(adjoint(Q) @ Q - np.eye(Q.shape[-1]))


def residual(A, Q):
    """``A − Q QᴴA`` in double precision."""
    return A - Q @ (adjoint(Q) @ A)


def norm(X, kind):
    return np.linalg.norm(X, 2 if kind == "spectral" else None) if X.size else 0.0


def quietly(function, *args, **options):
    """Call without the warning that the outcome itself repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return function(*args, **options)
