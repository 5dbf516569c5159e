"""Results as matrices: their products, what can be done with them, and files of them."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import scipy.sparse
from matrices import adjoint, gaussian, norm, with_spectrum
from scipy.sparse.linalg import aslinearoperator

import lowrank

M, N = 40, 30
SPECTRUM = 0.6 ** np.arange(N)
HERMITIAN = ("eigh", "nystrom")
WAYS = {
    "qb": lambda A: lowrank.qb(A, 6, rng=1),
    "svd": lambda A: lowrank.svd(A, rtol=1e-2, rng=1),
    "centered": lambda A: lowrank.svd(A, rtol=1e-2, center=True, rng=1),
    "eigh": lambda A: lowrank.eigh(A, rtol=1e-2, rng=1),
    "nystrom": lambda A: lowrank.nystrom(A, 6, rng=1),
    "columns": lambda A: lowrank.interpolative(A, rtol=1e-1, rng=1),
    "rows": lambda A: lowrank.interpolative(A, rtol=1e-1, select="rows", rng=1),
    "cur": lambda A: lowrank.cur(A, rtol=1e-1, rng=1),
}
every_way = pytest.mark.parametrize("way", sorted(WAYS))


def matrix(way, dtype="float64"):
    A = with_spectrum(SPECTRUM, (M, N), dtype, 0)
    if way in HERMITIAN:
        A = adjoint(A) @ A
        return (A + adjoint(A)) / 2
    return A + 1.0 if way == "centered" else A


def limit(backend, dtype):
    return 100 * backend.eps(dtype)


@every_way
def test_products_are_those_of_the_matrix(backend, dtype, way):
    found = WAYS[way](backend.asarray(matrix(way, dtype)))
    whole = backend.numpy(found.reconstruct())
    m, n = whole.shape
    assert found.shape == (m, n)
    assert found.dtype == getattr(backend.xp, dtype)
    largest = norm(whole, "fro") + 1.0

    def same(product, true):
        product = backend.numpy(product)
        assert product.shape == true.shape
        size = limit(backend, dtype) * largest * (np.linalg.norm(true) + 1.0)
        assert np.linalg.norm(product - true) <= size

    X, Y = gaussian((n, 3), dtype, 1), gaussian((m, 3), dtype, 2)
    same(found @ backend.asarray(X), whole @ X)
    same(found @ backend.asarray(X[:, 0]), whole @ X[:, 0])
    same(found.matmat(backend.asarray(X)), whole @ X)
    if not backend.name.startswith("strict"):  # which leaves no product to the other side
        same(backend.asarray(Y.T) @ found, Y.T @ whole)
        same(backend.asarray(Y[:, 0]) @ found, Y[:, 0] @ whole)
    same(found.rmatmat(backend.asarray(Y)), adjoint(whole) @ Y)
    same(found.adjoint() @ backend.asarray(Y), adjoint(whole) @ Y)
    same(found.adjoint().adjoint() @ backend.asarray(X), whole @ X)
    many = gaussian((2, n, 3), dtype, 3)
    same(found @ backend.asarray(many), whole @ many)


@every_way
def test_the_matrix_is_what_the_error_is_of(backend, dtype, way):
    A = matrix(way, dtype)
    found = WAYS[way](backend.asarray(A))
    true = norm(A - backend.numpy(found.reconstruct()), "fro")
    if found.error_bound is not None:
        assert true <= found.error_bound + limit(backend, dtype) * norm(A, "fro")
    if way != "centered" or dtype in ("float64", "complex128"):
        sampled = lowrank.residual_norm(backend.asarray(A), found, rng=2)
        assert true <= sampled.upper_bound
        assert sampled.value <= 2 * true + limit(backend, dtype) * norm(A, "fro")


def test_a_stack_of_results(backend, dtype):
    A = np.stack([matrix("svd", dtype), 2 * matrix("svd", dtype)])
    found = lowrank.svd(backend.asarray(A), 4, rng=1)
    whole = backend.numpy(found.reconstruct())
    assert found.shape == (2, M, N)
    X = gaussian((N, 2), dtype, 1)
    size = limit(backend, dtype) * norm(whole[1], "fro") * norm(X, "fro")
    assert norm((backend.numpy(found @ backend.asarray(X)) - whole @ X)[1], "fro") <= size


USES = {
    "range_finder": lambda A: lowrank.range_finder(A, rtol=1e-2).Q,
    "RangeFinder": lambda A: lowrank.RangeFinder(A).extend(4).Q,
    "qb": lambda A: lowrank.qb(A, rtol=1e-2).reconstruct(),
    "svd": lambda A: lowrank.svd(A, rtol=1e-2).reconstruct(),
    "centered": lambda A: lowrank.svd(A, 5, center=True).reconstruct(),
    "interpolative": lambda A: lowrank.interpolative(A, rtol=1e-2).reconstruct(),
    "cur": lambda A: lowrank.cur(A, rtol=1e-2).reconstruct(),
    "subspace": lambda A: lowrank.compress.Subspace(rank=4).refresh(A).basis,
}


@every_way
@pytest.mark.parametrize("use", sorted(USES))
def test_results_are_given_to_other_functions(backend, way, use):
    dtype = "float64" if backend.has_float64 else "float32"
    found = WAYS[way](backend.asarray(matrix(way, dtype)))
    again = backend.numpy(USES[use](found))
    if use in ("qb", "svd", "interpolative", "cur"):
        whole = backend.numpy(found.reconstruct())
        assert norm(again - whole, "fro") <= 1.001e-2 * norm(whole, "fro")


def test_hermitian_results_are_given_to_hermitian_functions():
    found = lowrank.eigh(matrix("eigh"), 6, rng=1)
    for again in (lowrank.eigh(found, 6, rng=2), lowrank.nystrom(found, 6, rng=2)):
        assert norm(again.reconstruct() - found.reconstruct(), "fro") <= 1e-10


def test_what_needs_all_entries_says_so():
    found = lowrank.svd(matrix("svd"), 3)
    with pytest.raises(TypeError, match=r"A\.reconstruct\(\)"):
        lowrank.qr(found)


@every_way
def test_scipy_takes_results_for_operators(way):
    found = WAYS[way](matrix(way, "complex128"))
    operator, whole = aslinearoperator(found), found.reconstruct()
    assert (operator.shape, operator.dtype) == (found.shape, whole.dtype)
    x, Y = gaussian((whole.shape[1], 1), "complex128", 1)[:, 0], gaussian(whole.shape, "float64", 2)
    assert np.allclose(operator @ x, whole @ x)
    assert np.allclose(operator.rmatvec(Y[:, 0]), adjoint(whole) @ Y[:, 0])
    assert np.allclose(operator.rmatmat(Y), adjoint(whole) @ Y)


def test_sparse_matrices_multiply_results():
    found = lowrank.svd(matrix("svd"), 3)
    S = scipy.sparse.random(7, M, density=0.3, random_state=0, format="csr")
    assert np.allclose(S @ found, S @ found.reconstruct())


# -- components ------------------------------------------------------------------------


def test_coordinates_of_rows(backend, dtype):
    A, new = matrix("centered", dtype), gaussian((5, N), dtype, 3)
    found = lowrank.svd(backend.asarray(A), 6, center=True, rng=1)
    scores = backend.numpy(found.U) * backend.numpy(found.S)
    size = limit(backend, dtype) * norm(A, "fro")
    mean = A.mean(axis=0)
    best = np.linalg.svd(A - mean)[1]
    # what the range finder missed of a direction is between it and those beyond the rank
    missed = 20 * best[6] ** 2 / best[5]
    assert norm(backend.numpy(found.transform(backend.asarray(A))) - scores, "fro") <= size + missed
    Vh = backend.numpy(found.Vh)
    Z = backend.numpy(found.transform(backend.asarray(new)))
    assert norm(Z - (new - mean) @ adjoint(Vh), "fro") <= size
    rows = backend.numpy(found.inverse_transform(backend.asarray(Z.astype(dtype))))
    assert norm(rows - (Z @ Vh + mean), "fro") <= size


def test_coordinates_without_a_mean_and_of_sparse_rows():
    A = scipy.sparse.random(M, N, density=0.3, random_state=0, format="csr")
    for center in (False, True):
        found = lowrank.svd(A, 5, center=center, rng=1)
        mean = A.mean(axis=0) if center else np.zeros(N)
        dense = found.transform(A.toarray())
        assert np.allclose(dense, (A.toarray() - mean) @ found.Vh.T)
        assert np.allclose(found.transform(A), dense)
        assert np.allclose(found.inverse_transform(dense), dense @ found.Vh + mean)


def test_shares_of_the_variance(backend, dtype):
    A = matrix("centered", dtype)
    found = lowrank.svd(backend.asarray(A), rtol=1e-2, center=True, rng=1)
    shares, true = backend.numpy(found.explained_variance_ratio), np.linalg.svd(A - A.mean(0))[1]
    true = (true**2 / np.sum(true**2))[: found.rank]
    assert np.all(np.abs(shares[:4] - true[:4]) <= 1e-4)
    assert 1.0 - 1e-4 - limit(backend, dtype) <= shares.sum() <= 1.0 + limit(backend, dtype)


def test_shares_need_the_norm():
    A = matrix("svd")
    with pytest.raises(ValueError, match="norm='fro'"):
        _ = lowrank.svd(A, rtol=0.1, norm="spectral").explained_variance_ratio
    with pytest.raises(ValueError, match="norm='fro'"):
        _ = lowrank.svd(aslinearoperator(A), 3).explained_variance_ratio
    assert np.array_equal(lowrank.svd(np.zeros((4, 3)), 2).explained_variance_ratio, np.zeros(2))


# -- files ------------------------------------------------------------------------


@every_way
def test_a_file_holds_all_of_a_result(backend, dtype, way, tmp_path):
    found = WAYS[way](backend.asarray(matrix(way, dtype)))
    found.save(tmp_path / "found.npz")
    again = lowrank.load(tmp_path / "found.npz")
    assert type(again) is type(found)
    for field in dataclasses.fields(found):
        kept, read = getattr(found, field.name), getattr(again, field.name)
        if hasattr(kept, "shape"):
            assert type(read) is np.ndarray
            assert read.dtype.name == str(kept.dtype).rpartition(".")[2]
            assert np.array_equal(read.astype(np.complex128), backend.numpy(kept))
        else:
            assert read == kept
    assert [path.name for path in tmp_path.iterdir()] == ["found.npz"]


@every_way
def test_pickles_name_public_modules(way):
    """They stay readable when private modules change."""
    found = WAYS[way](matrix(way))
    pickled = pickle.dumps(found)
    assert b"lowrank.results" in pickled
    assert b"lowrank._" not in pickled
    assert repr(pickle.loads(pickled)) == repr(found)


def test_a_file_is_read_by_numpy_alone(tmp_path):
    found = lowrank.svd(matrix("svd"), rtol=1e-2, rng=1)
    found.save(tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz", allow_pickle=False) as file:
        assert np.array_equal((file["U"] * file["S"]) @ file["Vh"], found.reconstruct())
        assert json.loads(str(file["about"]))["error_bound"] == found.error_bound


def test_another_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path, found = tmp_path / "found.npz", lowrank.svd(matrix("svd"), 3)
    path.write_text("older")
    with pytest.raises(FileExistsError):
        found.save(path, replace=False)

    def half(file, **_):
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("numpy.savez", half)
        with pytest.raises(OSError, match="no space"):
            found.save(path)
    assert path.read_text() == "older"
    found.save(path)
    assert lowrank.load(path).rank == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["npz", "npy", "text"])
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / f"other.{kind}"
    if kind == "text":
        path.write_text("no result")
    else:
        (np.savez if kind == "npz" else np.save)(path, np.ones(3))
    with pytest.raises(ValueError, match="not a file that the method `save` of"):
        lowrank.load(path)
    with pytest.raises(FileNotFoundError):
        lowrank.load(tmp_path / "none.npz")


# -- what a person reads ------------------------------------------------------------------------


def test_repr():
    found = lowrank.svd(np.diag([4.0, 2.0, 1.0, 0.0]), rtol=0.3, rng=0)
    assert repr(found) == (
        "<SVDResult 4×4 float64, rank 2: error 1.00e+00, at most 1.00e+00 of 4.583; 144 B, "
        "112.50% of A; CONVERGED>"
    )
    found = lowrank.interpolative(np.eye(4, dtype=np.complex64), 2, rng=0)
    assert repr(found) == "<IDResult 4×4 complex64, rank 2: 128 B, 100.00% of A; RANK_REACHED>"
