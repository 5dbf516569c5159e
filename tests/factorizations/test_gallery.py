import numpy as np
import pytest
from matrices import adjoint, defect

from lowrank import gallery


@pytest.mark.parametrize("name", gallery.SPECTRA)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 50, 2000])
def test_spectra_descend(name, n):
    s = gallery.SPECTRA[name](n)
    assert s.shape == (n,)
    assert s.dtype == np.float64
    assert np.all(s >= 0)
    assert np.all(np.diff(s) <= 0)


# Best possible ranks, computed in exact arithmetic from the published definitions.
PUBLISHED = [
    (gallery.slow, 8000, {1e-1: 3, 1e-2: 15, 1e-3: 68, 1e-4: 313, 1e-5: 1452}),
    (gallery.fast, 8000, {1e-1: 17, 1e-2: 33, 1e-3: 49, 1e-4: 65, 1e-5: 81, 1e-6: 97, 1e-8: 129}),
    (gallery.s_shaped, 8000, {1e-1: 30, 1e-2: 32, 5e-3: 33, 2e-3: 35, 1.5e-3: 1587, 1e-3: 5150}),
    (gallery.s_shaped, 2000, {1e-2: 32, 1.5e-3: 35, 1e-3: 35}),
    (gallery.medium, 2000, {0.5: 14, 0.1: 47, 1e-2: 93, 1e-3: 139, 1e-4: 185, 1e-6: 277}),
    (gallery.slower, 2000, {0.1: 59, 1e-2: 1505}),
    (gallery.staircase, 2000, {0.5: 25, 0.1: 57, 1e-2: 110, 1e-3: 151, 1e-4: 207, 1e-6: 301}),
    (gallery.staircase, 4000, {1e-6: 301}),
    (gallery.geometric, 200, {1e-2: 51, 2.0**-13: 100}),
]


@pytest.mark.parametrize(
    ("spectrum", "n", "ranks"), PUBLISHED, ids=[f"{s.__name__}-{n}" for s, n, _ in PUBLISHED]
)
def test_best_ranks(spectrum, n, ranks):
    found = {rtol: gallery.best_rank(spectrum(n), rtol=rtol) for rtol in ranks}
    assert found == ranks


def test_best_errors():
    """Published for rank 200 and n = 2000, relative to the norm."""
    for spectrum, error in (
        (gallery.medium, 4.54e-5),
        (gallery.slow, 1.95e-4),
        (gallery.slower, 5.22e-2),
        (gallery.staircase, 1.54e-4),
    ):
        s = spectrum(2000)
        found = gallery.best_error(s, 200) / gallery.best_error(s, 0)
        assert found == pytest.approx(error, rel=5e-3)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_best_rank_and_error_agree(kind):
    s = gallery.slow(60)
    for rank in range(61):
        error = gallery.best_error(s, rank, norm=kind)
        assert gallery.best_rank(s, atol=error * (1 + 1e-12), norm=kind) == rank
        assert gallery.best_rank(s[::-1], atol=error * (1 - 1e-12), norm=kind) == min(rank + 1, 60)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (9, 9)], ids=str)
def test_matrix_has_the_spectrum(backend, dtype, shape):
    s = gallery.fast(9)
    A = gallery.matrix(
        s, shape, xp=backend.xp, dtype=getattr(backend.xp, dtype), device=backend.device, rng=0
    )
    A = backend.numpy(A)
    assert A.shape == shape
    assert np.allclose(np.linalg.svd(A, compute_uv=False), s, atol=30 * backend.eps(dtype))


def test_matrix_defaults_and_errors():
    A = gallery.matrix([2.0, 1.0], rng=1)
    assert A.shape == (2, 2)
    assert A.dtype == np.float64
    assert np.array_equal(A, gallery.matrix([2.0, 1.0], rng=1))
    with pytest.raises(ValueError, match=r"at most 2 singular values, got shape \(3,\)"):
        gallery.matrix([3, 2, 1], (2, 5))


def test_kahan():
    K = gallery.kahan(60)
    assert np.array_equal(K, np.triu(K))
    s = np.linalg.svd(K, compute_uv=False)
    assert s[-1] < 0.02 * K[-1, -1]


def test_spiked():
    A = gallery.spiked(100, 20, spikes=3, height=1e3, rng=0)
    rows = np.linalg.norm(A, axis=1)
    assert np.sum(rows > 50) == 3
    assert defect(A / np.where(rows > 50, 1e3, 1)[:, None]) < 1e-13


def test_noisy():
    A = gallery.noisy(80, ones=10, noise=1e-2, rng=0)
    assert np.array_equal(A, adjoint(A))
    values = np.linalg.eigvalsh(A)
    assert np.all(values >= -1e-14)
    assert np.sum(values > 0.5) == 10
