"""Factorizations to a tolerance, whose blocks continue a Krylov space: what it holds and takes."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BACKENDS
from matrices import adjoint, norm, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._array.tuning import GROWTH
from lowrank._rangefinder.blocks import missing_of_power_law
from lowrank._rangefinder.found import find

N = 120
PROCESSORS = [each for each in BACKENDS if each.name in ("numpy", "numpy:readonly", "torch:cpu")]
of_processors = pytest.mark.parametrize("backend", PROCESSORS, ids=repr)
of_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])


@pytest.fixture(autouse=True)
def growing(monkeypatch):
    """No SVD of A itself, which matrices as small as these are given at once."""
    monkeypatch.setattr("lowrank._rangefinder.growth.svd_is_cheaper", lambda *_, **__: False)


def slow(dtype, n=N, power=0.5):
    return with_spectrum(np.arange(1, n + 1) ** -power, (n + 20, n), dtype)


@of_processors
@of_dtypes
def test_the_basis_spans_a_krylov_space(monkeypatch, backend, dtype):
    monkeypatch.setattr("lowrank._rangefinder.blocks.GROWTH", GROWTH._replace(fresh=0.0))
    A = slow(dtype, power=0.25)
    options = {"rtol": 0.8, "share": 1.0, "block_size": 6, "rng": 1}
    found = find(backend.asarray(A), None, **options)
    blocks = [block.columns for block in found.basis.blocks]
    assert blocks == [6] * len(blocks)
    assert len(blocks) >= 4
    Q = backend.numpy(found.basis.columns()).astype(np.result_type(A, np.float64))
    A = A.astype(Q.dtype)
    space = Q[:, :6]
    for _ in blocks:
        beyond = space - Q @ (adjoint(Q) @ space)
        assert norm(beyond, "spectral") <= 5e3 * float(backend.eps(dtype))
        space = np.linalg.qr(A @ (adjoint(A) @ space))[0]
    if backend.eps(dtype) < 1e-10:  # and one step more does not
        assert norm(space - Q @ (adjoint(Q) @ space), "spectral") > 1e-7


@of_processors
@of_dtypes
@pytest.mark.parametrize("name", ["svd", "qb"])
def test_a_block_takes_two_products_for_a_column(backend, dtype, name):
    A = backend.asarray(slow(dtype))
    found = getattr(lowrank, name)(A, rtol=0.6, block_size=8, rng=1)
    columns, blocks = found.history[-1].rank, len(found.history) - 1
    assert blocks >= 3
    assert 2 * columns <= found.products <= 3.5 * columns  # power iterations take 4 or 6
    assert found.converged


@pytest.mark.parametrize("name", ["interpolative", "cur", "eigh"])
def test_other_factorizations_take_fewer_products(name):
    A = slow("float64")[:N]
    A = A + A.T if name == "eigh" else A
    options = {"rtol": 0.6, "block_size": 8, "rng": 1}
    found, powers = (getattr(lowrank, name)(A, power_iterations=q, **options) for q in (None, 1))
    assert found.converged
    assert found.products <= 0.75 * powers.products
    assert found.rank <= 1.2 * powers.rank


@of_processors
def test_the_rank_is_near_the_best(backend):
    """For fewer products than two power iterations take."""
    A = backend.asarray(slow("float64", 300))
    best = gallery.best_rank(np.arange(1, 301) ** -0.5, rtol=0.5)
    found, powers = (lowrank.svd(A, rtol=0.5, power_iterations=q, rng=1) for q in (None, 2))
    assert best <= found.rank <= 1.03 * best + 1
    assert found.products <= 0.85 * powers.products


CLUSTERED = {
    "a projector": np.where(np.arange(N) < 60, 1.0, 0.0),
    "with noise": np.where(np.arange(N) < 60, 1.0, 1e-3),
    "with a tail": np.where(np.arange(N) < 60, 1.0, 0.3 * np.exp(-np.arange(N) / 60)),
    "nearly": 1.0 / (1.0 + np.exp((np.arange(N) - 60.0) / 3)),
}


@of_processors
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("values", CLUSTERED.values(), ids=CLUSTERED)
def test_equal_singular_values_start_a_new_space(backend, dtype, values):
    """A Krylov space has no more of them than a block has columns."""
    A = backend.asarray(with_spectrum(values, (N, N), dtype))
    for rtol in (0.6, 0.3):
        best = gallery.best_rank(values, rtol=rtol)
        found = lowrank.svd(A, rtol=rtol, block_size=8, rng=2)
        assert found.converged
        assert best <= found.rank <= 1.03 * best + 1
        assert found.history[-1].rank <= 1.25 * best + 8


@of_processors
@pytest.mark.parametrize("q", [0, 1])
def test_not_with_given_power_iterations(backend, q):
    found = lowrank.svd(backend.asarray(slow("float64")), rtol=0.6, power_iterations=q, rng=1)
    assert found.products == (2 + 2 * q) * found.history[-1].rank


@of_processors
def test_not_with_a_given_test_matrix(backend):
    drawn = []

    def test_matrix(shape, dtype, device):
        drawn.append(shape[-1])
        return backend.asarray(np.random.default_rng(len(drawn)).standard_normal(shape))

    A = backend.asarray(slow("float64"))
    found = lowrank.svd(A, rtol=0.6, test_matrix=test_matrix, block_size=8)
    assert len(drawn) >= 3
    assert sum(drawn) == found.history[-1].rank


@pytest.mark.parametrize("name", ["range_finder", "RangeFinder"])
def test_not_where_every_column_counts(name):
    A = slow("float64", 600)
    found = (
        lowrank.range_finder(A, rtol=0.5, rng=1)
        if name == "range_finder"
        else lowrank.RangeFinder(A, rng=1).reach(rtol=0.5).result()
    )
    best = gallery.best_rank(np.arange(1, 601) ** -0.5, rtol=0.5)
    assert found.rank <= 1.16 * best


@of_processors
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
def test_a_cluster_within_a_slow_spectrum_is_seen(backend, scale):
    values = np.sort(np.r_[(np.arange(1120) / 8 + 1.0) ** -0.675, np.full(80, 0.39)])[::-1]
    A = backend.asarray(scale * with_spectrum(values, (1200, 1200), "float64"))
    best = gallery.best_rank(values, rtol=0.4)
    found = lowrank.svd(A, rtol=0.4, rng=1)
    assert best <= found.rank <= 1.08 * best + 1


@of_processors
def test_a_largest_rank_that_is_enough_is_enough(backend):
    """Before it is truncated, a Krylov space has far more columns than the result."""
    A = backend.asarray(slow("float64", 600))
    values = np.arange(1, 601) ** -0.5
    found = lowrank.svd(A, rtol=0.4, rng=1)
    again = lowrank.svd(A, found.rank, rtol=0.4, rng=1)
    assert (again.status, again.rank) == (found.status, found.rank)
    assert again.rank <= 1.03 * gallery.best_rank(values, rtol=0.4) + 1
    assert again.converged


def test_a_tolerance_near_rounding_after_a_steep_fall():
    j = np.arange(400)
    for values in (np.where(j < 40, np.exp(-j / 4), np.exp(-5 - j / 8)), np.exp(-j / 5)):
        A = with_spectrum(values, (400, 400), "float64")
        for options in ({}, {"block_size": 8}, {"certificate": "energy"}):
            assert lowrank.svd(A, rtol=2e-13, rng=1, **options).converged
        assert lowrank.svd(lowrank.RowBlocks(A, rows=200), rtol=2e-13, rng=1).converged


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0, 3.0])
def test_missing_columns_of_a_power_law(power):
    values = np.arange(1, 2001) ** -power

    def error(k):
        return float(np.linalg.norm(values[k:]))

    looks = [SimpleNamespace(rank=k, estimate=error(k)) for k in (96, 144)]
    state = SimpleNamespace(history=looks, full=2000)
    for wanted in (160, 700, 1900):
        missing = missing_of_power_law(state, error(wanted))
        assert missing == pytest.approx(wanted - 144, rel=0.02)
    assert missing_of_power_law(state, error(144)) == 0.0
    assert missing_of_power_law(state, 0.0) == np.inf


@pytest.mark.parametrize("ranks", [(1, 3_000_000), (1_999_999, 2_000_000)])
@pytest.mark.parametrize("fall", [1e-15, 1e300])
def test_the_power_law_takes_any_fall(ranks, fall):
    looks = [
        SimpleNamespace(rank=k, estimate=e) for k, e in zip(ranks, (1.0 + fall, 1.0), strict=True)
    ]
    state = SimpleNamespace(history=looks, full=4_000_000)
    for goal in (0.5, 1e-3, 1e-9, 1e-16, 1e-160, 1e-300):
        assert 0.0 <= missing_of_power_law(state, goal) <= 4_000_000
