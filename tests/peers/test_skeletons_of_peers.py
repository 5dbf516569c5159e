"""Interpolative decompositions no worse than those of other libraries, at the same rank."""

import numpy as np
import pytest
from matrices import with_spectrum

import lowrank
from lowrank import gallery

SPECTRA = ["slow", "fast", "s_shaped", "medium", "slower"]
SEEDS = range(5)


def error(A, indices, coefficients):
    return np.linalg.norm(A - A[:, np.asarray(indices)] @ coefficients)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_scipy(spectrum, dtype):
    interpolative = pytest.importorskip("scipy.linalg.interpolative")
    A = with_spectrum(gallery.SPECTRA[spectrum](150), (180, 150), dtype)
    theirs, ours = [], []
    for seed in SEEDS:
        indices, projection = interpolative.interp_decomp(A, 20, rng=seed)
        coefficients = interpolative.reconstruct_interp_matrix(indices, projection)
        theirs.append(error(A, indices[:20], coefficients))
        found = lowrank.interpolative(A, 20, rng=seed)
        ours.append(error(A, *found))
        assert np.abs(found.coefficients).max() <= 2 * (1 + 1e-12)
    assert np.median(ours) <= 1.02 * np.median(theirs)


@pytest.mark.parametrize("spectrum", ["slow", "fast", "medium"])
def test_scipy_to_a_tolerance(spectrum):
    """The tolerance is kept; theirs counts in another norm, and is not."""
    interpolative = pytest.importorskip("scipy.linalg.interpolative")
    A = with_spectrum(gallery.SPECTRA[spectrum](200), (200, 200), "float64")
    found = lowrank.interpolative(A, rtol=1e-2, rng=0)
    assert found.converged
    assert error(A, *found) <= found.error_bound <= 1e-2 * np.linalg.norm(A)
    # of a rank with the error that was asked for
    for rank in range(1, 200):
        indices, projection = interpolative.interp_decomp(A, rank, rand=False)
        coefficients = interpolative.reconstruct_interp_matrix(indices, projection)
        if error(A, indices[:rank], coefficients) <= 1e-2 * np.linalg.norm(A):
            break
    assert found.rank <= 1.1 * rank + 2


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_librla(spectrum):
    librla = pytest.importorskip("librla")
    A = with_spectrum(gallery.SPECTRA[spectrum](150), (180, 150), "float64")
    theirs, ours = [], []
    for seed in SEEDS:
        rank, order, T = librla.id_sketch(A, 20, rng=np.random.default_rng(seed))
        coefficients = np.empty((rank, 150))
        coefficients[:, order[:rank]] = np.eye(rank)
        coefficients[:, order[rank:]] = T
        theirs.append(error(A, order[:rank], coefficients))
        assert rank == 20
        ours.append(error(A, *lowrank.interpolative(A, 20, rng=seed)))
    assert np.median(ours) <= 1.02 * np.median(theirs)
