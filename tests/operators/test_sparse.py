"""Sparse matrices of SciPy: what holds for the array holds for them, and they are left alone."""

import numpy as np
import pytest
from matrices import adjoint, defect, norm, quietly, residual

import lowrank

sparse = pytest.importorskip("scipy.sparse")

FORMATS = ("bsr", "coo", "csc", "csr", "dia", "dok", "lil")
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
every_shape = pytest.mark.parametrize("shape", [(120, 70), (70, 120)])


def decaying(shape, dtype, seed=0):
    """A random sparse matrix whose rows fall off, so that its singular values do too."""
    rng = np.random.default_rng(seed)
    A = sparse.random_array(shape, density=0.1, rng=rng, dtype="float64").toarray()
    if np.dtype(dtype).kind == "c":
        A = A * np.exp(2j * np.pi * rng.random(shape))
    return (A * 0.8 ** np.arange(shape[0])[:, None]).astype(dtype)


@every_dtype
@every_shape
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_svd_keeps_its_promise(dtype, shape, kind):
    A = decaying(shape, dtype)
    found = lowrank.svd(sparse.csr_array(A), rtol=1e-3, norm=kind, rng=0)
    U, S, Vh = found
    assert U.dtype == Vh.dtype == dtype
    assert found.converged
    assert norm(A - (U * S) @ Vh, kind) <= found.error_bound <= 1e-3 * norm(A, kind) * (1 + 1e-6)
    if kind == "fro":
        assert found.norm_A == pytest.approx(norm(A, kind), rel=1e-5)


@every_dtype
def test_same_sketch_same_range_as_the_array(dtype):
    A = decaying((120, 70), dtype)
    for side in ("left", "right"):
        Q = [
            lowrank.range_finder(X, 12, power_iterations=1, side=side, rng=3).Q
            for X in (A, sparse.csc_array(A))
        ]
        eps = np.finfo(dtype).eps
        assert norm(residual(Q[0], Q[1]), "fro") <= 1e4 * eps
        assert defect(Q[1]) <= 100 * eps


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("interface", ["array", "matrix"])
def test_formats(kind, interface):
    A = decaying((60, 40), "float64")
    given = getattr(sparse, f"{kind}_{interface}")(A)
    Q, B = lowrank.qb(given, rtol=1e-6, rng=0)
    assert type(Q) is type(B) is np.ndarray
    assert norm(A - Q @ B, "fro") <= 1e-6 * norm(A, "fro")


@every_dtype
def test_residual_norm(dtype):
    A = decaying((120, 70), dtype)
    Q = np.linalg.qr(A[:, :9]).Q
    found = lowrank.residual_norm(sparse.csr_array(A), Q, rng=0)
    truth = norm(residual(A, Q), "fro")
    assert truth <= found.upper_bound <= 4 * truth
    with_b = lowrank.residual_norm(sparse.csr_array(A), Q, adjoint(Q) @ A, rng=0)
    assert with_b.value == pytest.approx(found.value, rel=1e-3)


def test_entries_stored_twice_are_added_and_the_matrix_is_left_alone():
    rows, columns = np.array([0, 0, 1, 2]), np.array([1, 1, 0, 2])
    values = np.array([3.0, -3.0, 2.0, 1.0])
    indptr = np.array([0, 2, 3, 4])
    given = sparse.csr_array((values, columns, indptr), shape=(3, 3))
    found = lowrank.range_finder(given, rtol=0.5, rng=0)
    assert found.norm_A == pytest.approx(5**0.5)
    assert given.nnz == 4
    assert np.array_equal(given.data, [3.0, -3.0, 2.0, 1.0])
    twice = sparse.coo_array((values, (rows, columns)), shape=(3, 3))
    assert lowrank.range_finder(twice, rtol=0.5, rng=0).norm_A == pytest.approx(5**0.5)


def test_storage_longer_than_the_matrix():
    A = decaying((60, 40), "float64")
    given = sparse.csr_array(A)
    given.data = np.r_[given.data, np.full(50, 7.0)]
    given.indices = np.r_[given.indices, np.zeros(50, given.indices.dtype)]
    assert lowrank.svd(given, rtol=1e-3, rng=0).norm_A == pytest.approx(norm(A, "fro"))


@pytest.mark.parametrize("size", [1e-300, 1e200])
def test_any_size(size):
    A = decaying((60, 40), "float64")
    found = lowrank.svd(sparse.csr_array(size * A), rtol=1e-3, rng=0)
    assert norm(A - (found.U * (found.S / size)) @ found.Vh, "fro") <= 1e-3 * norm(A, "fro")


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5, 3)])
def test_nothing_stored(shape):
    found = lowrank.svd(sparse.csr_array(shape), rtol=1e-3, rng=0)
    assert (found.rank, found.converged, found.error_bound) == (0, True, 0.0)
    assert lowrank.range_finder(sparse.csr_array(shape), 2, rng=0).Q.shape[0] == shape[0]


@pytest.mark.parametrize("options", [{"rank": 3}, {"rtol": 0.1}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(options, bad):
    A = decaying((60, 40), "float64")
    A[30, 20] = bad
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        quietly(lowrank.svd, sparse.csr_array(A), rng=0, **options)


def test_refused():
    with pytest.raises(TypeError, match=r"`A` has dtype int64.*cast it to float32"):
        lowrank.svd(sparse.csr_array(np.eye(4, dtype=int)), rtol=0.1)
    with pytest.raises(TypeError, match=r"convert it, for instance with A.toarray\(\)"):
        lowrank.qr(sparse.csr_array(np.eye(4)))
    with pytest.raises(ValueError, match=r"must be a matrix \(two dimensions\), got shape \(4,\)"):
        lowrank.svd(sparse.coo_array(np.ones(4)), rtol=0.1)


CALLS = {
    "svd": lambda A: lowrank.svd(A, rtol=1e-3, rng=0),
    "svd, rank": lambda A: lowrank.svd(A, 5, rng=0),
    "qb, spectral": lambda A: lowrank.qb(A, rtol=1e-2, norm="spectral", rng=0),
    "range, right": lambda A: lowrank.range_finder(A, 5, side="right", rng=0),
    "residual": lambda A: lowrank.residual_norm(A, np.eye(A.shape[0], 3), rng=0),
}


@pytest.fixture
def never_dense(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError

    for kind in FORMATS:
        for interface in ("array", "matrix"):
            for name in ("toarray", "todense", "__array__"):
                monkeypatch.setattr(
                    getattr(sparse, f"{kind}_{interface}"), name, refuse, raising=False
                )


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", FORMATS)
def test_never_made_dense(never_dense, kind, call):
    rng = np.random.default_rng(0)
    values, places = rng.standard_normal(80), rng.choice(2400, 80, replace=False)
    A = sparse.coo_array((values, np.unravel_index(places, (60, 40))), shape=(60, 40))
    quietly(CALLS[call], A.asformat(kind))


def few_rows(shape, rows):
    """A matrix of rank `rows` with a thousand numbers in each of its rows."""
    rng = np.random.default_rng(0)
    where = np.repeat(rng.choice(shape[0], rows, replace=False), 1000)
    columns = rng.choice(shape[1], rows * 1000, replace=False)
    values = rng.standard_normal(rows * 1000) * np.repeat(0.5 ** np.arange(rows), 1000)
    return sparse.coo_array((values.astype("float32"), (where, columns)), shape=shape)


def test_too_large_to_be_dense(never_dense):
    """180 GB as an array; its rows share no column, so that their norms are the singular values."""
    A = few_rows((300_000, 150_000), 12)
    expected = np.linalg.norm(A.data.reshape(12, 1000).astype("float64"), axis=1)
    found = lowrank.svd(A, rtol=1e-2, rng=0)
    assert found.converged
    assert found.rank <= 9
    assert np.allclose(found.S, np.sort(expected)[::-1][: found.rank], rtol=1e-4)
