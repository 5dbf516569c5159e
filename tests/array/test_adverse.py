"""Certificates and bases of matrices that are made to break them."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import BACKENDS
from matrices import adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank._linalg.certificate import safety_factor
from lowrank._operators import as_operator
from lowrank._rangefinder import estimates
from lowrank._rangefinder.basis import Basis

NUMPY = BACKENDS[0]


def approximation(backend, A, found):
    """What a result says A is, in double precision."""
    if isinstance(found, lowrank.RangeFinderResult):
        return A - residual(A, backend.numpy(found.Q))
    if isinstance(found, lowrank.IDResult):
        return backend.numpy(found.skeleton) @ backend.numpy(found.coefficients)
    first, *rest = (backend.numpy(X) for X in found)
    return first @ rest[0] if len(rest) == 1 else (first * rest[0]) @ rest[1]


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("certificate", ["exact", "energy", "sampled"])
@pytest.mark.parametrize("name", ["range_finder", "qb", "svd", "interpolative"])
def test_a_matrix_and_its_normalized_residual_may_have_one_seed(name, certificate, kind):
    """Both have the norm one, and the sketch that found the basis is annihilated by the rest."""
    options = {"certificate": certificate, "norm": kind}
    A = gaussian((200, 200), "float64")
    A /= np.linalg.norm(A)
    for seed in range(3):
        Q = quietly(lowrank.range_finder, A, rtol=0.7, rng=seed, **options).Q
        E = residual(A, Q)
        E /= np.linalg.norm(E)
        found = quietly(getattr(lowrank, name), E, rtol=0.1, rng=seed, **options)
        assert norm(E - approximation(NUMPY, E, found), kind) <= found.error_bound
        assert found.converged


LIBRARIES = [each for each in BACKENDS if each.name in ("numpy", "torch:cpu", "torch:cuda", "cupy")]
WIDE = {"float32": "float64", "complex64": "complex128", "float64": "longdouble"}


CERTIFICATES = ["exact", "energy", "sampled"]
CONSTANT = [
    ((3000, 100), "float32"),
    ((3000, 100), "float64"),
    ((3000, 100), "complex64"),
    ((40, 3000), "float64"),
    ((50000, 30), "float32"),
]


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize(("shape", "dtype"), CONSTANT)
@pytest.mark.parametrize("library", LIBRARIES, ids=repr)
def test_bounds_on_constant_matrices(library, shape, dtype, certificate):
    """Rounding is biased in sums of equal numbers: columns that seem orthonormal are not.

    Libraries take turns at blocks of the usual width and of single columns.
    """
    turn = LIBRARIES.index(library) + CONSTANT.index((shape, dtype))
    block_size = (None, 1)[(turn + CERTIFICATES.index(certificate)) % 2]
    A = np.ones(shape, dtype)
    A[: shape[0] // 2] *= np.asarray(0.7, dtype)
    options = {"certificate": certificate, "block_size": block_size, "rng": 0}
    E = A.astype(WIDE[dtype])
    for rtol in (0.5, 100 * library.eps(dtype)):
        for side in ("left", "right"):
            given = {"rtol": rtol, "side": side, **options}
            found = quietly(lowrank.range_finder, library.asarray(A), **given)
            Q = library.numpy(found.Q)
            rest = residual(E, Q) if side == "left" else residual(adjoint(E), Q)
            assert np.linalg.norm(rest.astype(Q.dtype)) <= found.error_bound
            assert defect(Q) <= 0.4 * max(shape) * library.eps(dtype)
        found = quietly(lowrank.svd, library.asarray(A), rtol=rtol, **options)
        rest = (E - approximation(library, E, found)).astype(Q.dtype)
        assert np.linalg.norm(rest) <= found.error_bound


class Biased:
    """A matrix whose products with its adjoint are off by so much, as long sums may be."""

    def __init__(self, A, by, *, is_known):
        self.A, self.by, self.is_known = A, by, is_known

    def __lowrank_operator__(self):
        found = as_operator(self.A)
        return replace(
            found,
            rmatmat=lambda Y: found.rmatmat(Y) * (1.0 + self.by),
            norm=found.norm if self.is_known else None,
        )


@pytest.mark.parametrize("is_known", [True, False])
def test_a_factor_that_differs_from_the_projection_says_so(backend, dtype, is_known):
    """Reflectors and samples know nothing of ``B = QᴴA``: where it matters, that is measured."""
    eps = float(backend.eps(dtype))
    A = with_spectrum(np.r_[np.ones(10), np.full(20, 4e3 * eps)], (200, 140), dtype)
    X = Biased(backend.asarray(A), 100 * eps, is_known=is_known)
    for rtol in (220 * eps, 2e4 * eps):
        found = quietly(lowrank.qb, X, rtol=rtol, certificate="sampled", rng=0)
        assert (found.rank == 10) == (rtol > 4e3 * eps)
        truth = np.linalg.norm(A - approximation(backend, A, found))
        assert truth <= found.error_bound <= truth + 400 * eps * np.linalg.norm(A)


def test_a_basis_that_differs_from_its_reflectors_says_so(monkeypatch, backend, dtype):
    eps, usual, asked = float(backend.eps(dtype)), Basis.columns, []

    def factor(samples, delta, **options):
        asked.append(delta)
        return safety_factor(samples, delta, **options)

    monkeypatch.setattr(estimates.certificate, "safety_factor", factor)
    monkeypatch.setattr(
        Basis, "columns", lambda self, start=0: usual(self, start) * (1.0 + 35 * eps)
    )
    A = gaussian((200, 70), dtype) @ gaussian((70, 140), dtype, 1)
    finder = lowrank.RangeFinder(backend.asarray(A), certificate="sampled", rng=0)
    found = quietly(finder.reach, rtol=300 * eps).result()
    truth = np.linalg.norm(residual(A, backend.numpy(found.Q)))
    assert 60 * eps * np.linalg.norm(A) < truth <= found.error_bound <= 4 * truth
    assert found.converged
    width = 32 if np.dtype(dtype).kind == "c" else 64
    assert [look.rank for look in found.history] == [*range(0, found.rank + 1, width)]
    # δ/(j(j+1)) for the j-th sample, of which there may be any number
    assert sum(asked) <= 1e-9 * (1 - 1 / (len(asked) + 1)) * (1 + 1e-12)
    # what was measured once is not measured again
    again = finder.reach(rtol=300 * eps).result()
    assert (again.error_bound, again.products) == (found.error_bound, found.products)
    one = gaussian((200, 1), dtype) @ gaussian((1, 140), dtype, 1)
    options = {"rtol": 300 * eps, "certificate": "sampled", "rng": 0}
    few = quietly(lowrank.range_finder, backend.asarray(one), 1, **options)
    truth = np.linalg.norm(residual(one, backend.numpy(few.Q)))
    assert 60 * eps * np.linalg.norm(one) < truth <= few.error_bound
    # and what more columns do not remove stays in the bound
    more = quietly(finder.extend(8).reach, rtol=300 * eps, rank=finder.rank).result()
    truth = np.linalg.norm(residual(A, backend.numpy(more.Q)))
    assert 60 * eps * np.linalg.norm(A) < truth <= more.error_bound


@pytest.mark.parametrize("size", [1e-9, 1e9])
def test_columns_that_are_not_orthonormal_are_in_an_exact_bound(monkeypatch, backend, dtype, size):
    """A residual that is kept tells nothing of the columns; the size of the matrix is not one."""
    eps, usual = float(backend.eps(dtype)), Basis.columns
    monkeypatch.setattr("lowrank._rangefinder.growth.svd_is_cheaper", lambda *_, **__: False)
    monkeypatch.setattr(
        Basis, "columns", lambda self, start=0: usual(self, start) * (1.0 + 35 * eps)
    )
    A = size * (gaussian((60, 10), dtype) @ gaussian((10, 50), dtype, 1))
    found = quietly(lowrank.range_finder, backend.asarray(A.astype(dtype)), rtol=200 * eps, rng=0)
    truth = np.linalg.norm(residual(A, backend.numpy(found.Q)))
    assert 60 * eps * np.linalg.norm(A) < truth <= found.error_bound <= 4 * truth
    assert found.certificate == "exact"


@pytest.mark.parametrize("q", [0, 1, 2])
def test_all_columns_are_those_of_the_matrix(backend, dtype, q):
    """A square test matrix is ill-conditioned: what it makes small would be lost in rounding."""
    eps = backend.eps(dtype)
    for seed in range(5):
        A = 1 + np.asarray(1e-3, dtype) * gaussian((300, 60), dtype, seed)
        X, size = backend.asarray(A), eps * np.linalg.norm(A)
        options = {"rng": seed, "power_iterations": q}
        finder = lowrank.RangeFinder(X, **options)
        for Q, most in (
            (lowrank.range_finder(X, 60, **options).Q, 20),
            (lowrank.range_finder(backend.asarray(adjoint(A)), 60, side="right", **options).Q, 20),
            (finder.extend(30).extend(30).Q, 40),
        ):
            assert np.linalg.norm(residual(A, backend.numpy(Q))) <= most * size
        for function in (lowrank.svd, lowrank.qb):
            found = function(X, 60, **options)
            assert np.linalg.norm(A - approximation(backend, A, found)) <= 40 * size


def test_all_columns_take_one_product():
    A = gaussian((300, 60), "float64")
    found = lowrank.range_finder(A, 60, power_iterations=2, rng=0)
    assert (found.passes, found.products) == (1, 60)
    # the caller's test matrix is what is multiplied
    found = lowrank.range_finder(A, 60, test_matrix=gaussian((60, 60), "float64"), rng=0)
    assert np.linalg.norm(residual(A, found.Q)) > 0
    A[4, 5] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        lowrank.range_finder(A, 60, rng=0)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("shape", [(400, 9), (32, 32), (30, 1)])
def test_few_columns_are_never_sampled_by_more(backend, dtype, shape, kind):
    """A sample of as many columns tells no more than all of the residual, which is exact."""
    A = gaussian(shape, dtype)
    for rtol in (0.7, 0.3, 1e-3):
        options = {"rtol": rtol, "norm": kind, "certificate": "sampled", "rng": 0}
        found = quietly(lowrank.range_finder, backend.asarray(A), **options)
        truth = norm(residual(A, backend.numpy(found.Q)), kind)
        rounding = float(200 * backend.eps(dtype) * np.linalg.norm(A))
        assert found.error == pytest.approx(truth, abs=rounding)
        assert truth <= found.error_bound <= truth + rounding
        assert found.converged
        looks = len(found.history)
        assert found.products <= (3 * looks + 3) * min(shape) + 1


class Failing:
    """An operator of which one product is NaN, or is not there."""

    def __init__(self, A, at, error):
        self.A, self.at, self.error, self.asked = A, at, error, 0
        self.shape, self.dtype = A.shape, A.dtype

    def _product(self, Y):
        self.asked += 1
        if self.asked != self.at:
            return Y
        if self.error:
            raise OSError
        return Y * np.nan

    def matmat(self, X):
        return self._product(self.A @ X)

    def rmatmat(self, Y):
        return self._product(self.A.T @ Y)


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("shape", [(150, 120), (150, 20)])
def test_an_object_outlives_each_of_its_products(shape, kind, error):
    """Whichever product fails, once: the next request has a true answer."""
    A = gaussian((shape[0], 8), "float64") @ gaussian((8, shape[1]), "float64", 1)
    A += np.float64(1e-6) * gaussian(shape, "float64", 2)
    for at in range(1, 100):
        operator = Failing(A, at, error)
        finder = lowrank.RangeFinder(operator, norm=kind, rng=0)
        for rtol in (None, 0.3, 1e-13, 1e-3):
            before = operator.asked
            try:
                quietly(finder.extend, 2) if rtol is None else quietly(finder.reach, rtol=rtol)
            except (ValueError, OSError):
                assert before < at <= operator.asked
            assert not np.isnan(finder.Q).any()
        if operator.asked < at:
            break
        found = quietly(finder.reach, rtol=1e-3).result()
        truth = norm(residual(A, found.Q), kind)
        assert truth <= found.error_bound
        assert found.converged
    assert at > 5
