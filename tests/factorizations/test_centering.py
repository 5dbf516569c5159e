"""``svd(center=True)``: principal components of matrices that are never centered as a whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, gaussian, norm, quietly, with_spectrum

import lowrank
from lowrank import Status, gallery


class Operator:
    """Known by its products, which live in a library of their own."""

    def __init__(self, A, backend):
        self.A, self.backend = A, backend
        self.shape, self.dtype = A.shape, A.dtype

    def _there(self, X):
        return X if type(X) is np.ndarray else self.backend.numpy(X)

    def _here(self, X):
        return X if self.backend is None else self.backend.asarray(X.astype(self.dtype))

    def matmat(self, X):
        return self._here(self.A @ self._there(X))

    def rmatmat(self, Y):
        return self._here(adjoint(self.A) @ self._there(Y))


def data(spectrum, m, n, dtype, offset, seed=0):
    """Rows around a mean whose entries have this size."""
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    return (A + offset * gaussian((1, n), dtype, seed + 1)).astype(dtype)


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 1200),
    n=st.integers(1, 60),
    exponent=st.floats(-12, -0.5),
    offset=st.sampled_from([0.0, 1.0, 30.0]),
    kind=st.sampled_from(["fro", "spectral"]),
    as_operator=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(
    backend, dtype, spectrum, m, n, exponent, offset, kind, as_operator, seed
):
    A = data(spectrum, m, n, dtype, offset, seed)
    given_A = Operator(A, backend) if as_operator else backend.asarray(A)
    found = quietly(
        lowrank.svd,
        given_A,
        rtol=10.0**exponent,
        norm=kind,
        center=True,
        rng=seed,
        failure_probability=DRAWN,
    )
    U, S, Vh = (backend.numpy(factor) for factor in found)
    mean = backend.numpy(found.mean)
    A = A.astype(U.dtype)
    assert mean.shape == (n,)
    assert norm(mean - A.mean(0), "fro") <= 10 * backend.eps(dtype) * norm(A, "fro")
    true = norm(A - mean - (U * S) @ Vh, kind)
    # the mean is part of the answer, so its own rounding is no part of the error
    assert true <= found.error_bound
    if found.converged:
        assert true <= 10.0**exponent * norm(A - mean, kind)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (700, 20), (3, 50, 30)], ids=str)
def test_it_is_the_svd_of_the_centered_matrix(backend, dtype, shape):
    A = np.stack([data("slow", *shape[-2:], dtype, 5.0, seed) for seed in range(3)])
    A = A if len(shape) == 3 else A[0]
    Omega = gaussian((*shape[:-2], shape[-1], 18), dtype)
    options = {"test_matrix": backend.asarray(Omega)}
    found = lowrank.svd(backend.asarray(A), 8, center=True, **options)
    wide = np.result_type(dtype, np.float64)
    less = (A.astype(wide) - A.astype(wide).mean(-2, keepdims=True)).astype(dtype)
    plain = lowrank.svd(backend.asarray(less), 8, **options)
    assert plain.mean is None
    assert (found.passes, found.products) == (plain.passes + 1, plain.products)
    for one, other in zip(found, plain, strict=True):
        gap = np.abs(backend.numpy(one) - backend.numpy(other))
        assert np.all(gap <= 1e4 * backend.eps(dtype))


def test_a_mean_far_above_the_rest_costs_no_digits(backend, dtype):
    """A dense matrix is centered before it is multiplied, so the tolerance is that of the rest."""
    A = data("fast", 600, 40, dtype, 0.0)
    shift = np.asarray(2.0**12, dtype)
    A = (A + shift).astype(dtype)
    less = A.astype("complex128") - A.astype("complex128").mean(0)
    found = lowrank.svd(backend.asarray(A), rtol=1e-4, center=True, rng=0)
    assert found.converged
    U, S, Vh = (backend.numpy(factor) for factor in found)
    # all of the mean's own rounding is in the approximation's favor or not: it is one direction
    error = A.astype(U.dtype) - backend.numpy(found.mean) - (U * S) @ Vh
    assert norm(error, "fro") <= 1e-4 * norm(less, "fro") * (1 + 1e-2)


@pytest.mark.parametrize("half", ["numpy-float16", "torch-float16", "torch-bfloat16"])
def test_half_precision_is_centered_before_it_is_multiplied(half):
    """As in single precision, by blocks of rows: not a pass or a product more."""
    A = data("fast", 1100, 40, "float32", 2.0)
    library, _, name = half.partition("-")
    if library == "torch":
        torch = pytest.importorskip("torch")
        given_A = torch.as_tensor(A).to(getattr(torch, name))
        single = given_A.to(torch.float32)
    else:
        given_A = A.astype(name)
        single = given_A.astype(np.float32)
    for rule in ({"rank": 5}, {"rtol": 0.3}):
        found = lowrank.svd(given_A, center=True, rng=0, **rule)
        expected = lowrank.svd(single, center=True, rng=0, **rule)
        assert (found.passes, found.products) == (expected.passes, expected.products)
        assert found.rank == expected.rank > 0
        assert found.converged == expected.converged
        for one, other in zip((*found, found.mean), (*expected, expected.mean), strict=True):
            assert one.dtype == other.dtype == single.dtype
            assert float(abs(one - other).max()) <= 1e-4 * float(abs(other).max())


def test_rounding_of_products_is_relative_to_the_mean_too():
    """Of an operator whose mean is 1e10 times the rest no digits are left to certify."""
    backendless = 1e10 + gaussian((80, 40), "float64")

    class Known:
        shape, dtype = (80, 40), np.dtype("float64")

        def matmat(self, X):
            return backendless @ X

        def rmatmat(self, Y):
            return backendless.T @ Y

    found = quietly(lowrank.svd, Known(), rtol=1e-7, center=True, rng=0)
    assert not found.converged
    assert found.status in (Status.PRECISION_FLOOR, Status.FULL_RANK)


def test_sparse_stays_sparse():
    sparse = pytest.importorskip("scipy.sparse")
    A = sparse.random_array((40_000, 300), density=5e-4, rng=0, format="csr")
    found = lowrank.svd(A, 5, center=True, power_iterations=10, krylov=True, rng=0)
    mean = np.asarray(A.mean(axis=0)).ravel()
    assert np.allclose(found.mean, mean)
    gram = (A.T @ A).toarray() - 40_000 * np.outer(mean, mean)
    best = np.linalg.eigvalsh(gram)[::-1][:5] ** 0.5
    assert np.allclose(found.S, best, rtol=1e-4)


def test_complex_means_are_not_conjugated(backend):
    A = np.outer(np.ones(30), np.asarray([1 + 2j, 3 - 1j])).astype("complex64")
    for known in (backend.asarray(A), Operator(A, backend)):
        found = lowrank.svd(known, 1, center=True, rng=0)
        assert np.allclose(backend.numpy(found.mean), A[0])
        assert np.allclose(backend.numpy(found.S), 0, atol=1e-4)


def test_nothing_in_it(backend, dtype):
    for shape in ((0, 4), (4, 0), (1, 4)):
        found = lowrank.svd(backend.asarray(np.ones(shape, dtype)), rtol=0.1, center=True)
        assert (found.rank, found.mean.shape) == (0, shape[1:])


# -- signs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 40), (2, 40, 50)], ids=str)
def test_signs_are_those_of_the_largest_entry(backend, dtype, shape):
    A = np.stack([with_spectrum(gallery.fast(40), shape[-2:], dtype, seed) for seed in range(2)])
    A = A if len(shape) == 3 else A[0]
    found = [lowrank.svd(backend.asarray(A), 6, rng=seed) for seed in range(3)]
    U, S, Vh = (backend.numpy(factor) for factor in found[0])
    where = np.argmax(np.abs(Vh), axis=-1, keepdims=True)
    largest = np.take_along_axis(Vh, where, axis=-1)
    assert np.all(largest.real > 0)
    assert np.all(np.abs(largest.imag) <= 10 * backend.eps(dtype))
    assert norm((A - (U * S[..., None, :]) @ Vh).ravel(), "fro") <= 2 * gallery.best_error(
        gallery.fast(40), 6
    )
    for other in found[1:]:
        for one, again in zip(found[0], other, strict=True):
            assert np.max(np.abs(backend.numpy(one) - backend.numpy(again))) <= 0.05


def test_signs_of_eigenvectors(backend, dtype):
    A = with_spectrum(gallery.fast(40), (40, 40), dtype)
    A = (A + adjoint(A)).astype(dtype)
    found = [backend.numpy(lowrank.eigh(backend.asarray(A), 6, rng=s).eigenvectors) for s in (0, 1)]
    largest = np.take_along_axis(found[0], np.argmax(np.abs(found[0]), axis=0)[None], axis=0)
    assert np.all(largest.real > 0)
    assert np.all(np.abs(largest.imag) <= 10 * backend.eps(dtype))
    assert np.max(np.abs(found[0] - found[1])) <= 0.05


# -- many rows --------------------------------------------------------------------------------


def test_many_equal_rows_have_their_own_mean(backend):
    """Sums of so many numbers, one after the other, lose three digits in single precision."""
    A = backend.asarray(np.full((200_000, 2), 0.1, "float32"))
    found = lowrank.svd(A, 1, oversampling=0, power_iterations=0, center=True, rng=0)
    assert np.max(np.abs(backend.numpy(found.mean) - np.float32(0.1))) <= 5e-7 * 0.1
    assert backend.numpy(found.S)[0] <= 1e-6 * np.linalg.norm(backend.numpy(A))


def test_many_equal_rows_of_a_sparse_matrix():
    sparse = pytest.importorskip("scipy.sparse")
    A = sparse.csr_array(np.full((1_000_000, 1), 0.1, "float32"))
    found = lowrank.svd(A, 1, oversampling=0, power_iterations=0, center=True, rng=0)
    assert abs(found.mean[0] - np.float32(0.1)) <= 1e-3 * 0.1
    assert (found.passes, found.products) == (3, 18)  # of 16 groups of rows, and two of the SVD


def test_the_bound_of_an_operator_holds_its_rounding():
    """Of a mean 1e6 times the rest: what the last product loses is in no sample of the residual."""
    for seed in range(5):
        A = gaussian((300, 3), "float64", seed) @ gaussian((3, 60), "float64", seed + 50)
        A = A / norm(A, "fro") + 1e6 * gaussian((1, 60), "float64", seed + 99) / 60**0.5
        found = quietly(lowrank.svd, Operator(A, None), rtol=1e-9, center=True, rng=seed)
        error = A.astype(np.longdouble) - found.mean - (found.U * found.S) @ found.Vh
        assert float(np.sum(error**2)) ** 0.5 <= found.error_bound
