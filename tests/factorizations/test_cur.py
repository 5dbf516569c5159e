"""CUR decompositions: columns and rows of A, and a certified error of the stored product."""

from functools import reduce

import numpy as np
import pytest
import scipy.sparse
from conftest import BACKENDS, in_turn
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, gaussian, norm, quietly, with_spectrum
from test_operators import Operator

from lowrank import ConvergenceWarning, Status, gallery
from lowrank._factorizations.cur import cur
from lowrank._factorizations.interpolative import interpolative


def approximation(backend, A, found):
    """``C U R``, after checks that every CUR decomposition must pass."""
    C, U, R = (backend.numpy(X) for X in found)
    J, I = ([int(i) for i in chosen] for chosen in (found.columns, found.rows))
    A, k = A.astype(U.dtype), found.rank
    m, n = A.shape
    assert (C.shape, U.shape, R.shape) == ((m, k), (k, k), (k, n))
    assert len(set(J)) == len(set(I)) == len(J) == len(I) == k
    assert all(0 <= j < n for j in J)
    assert all(0 <= i < m for i in I)
    assert np.array_equal(C, A[:, J])
    assert np.array_equal(R, A[I, :])
    return C @ U @ R


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 70),
    n=st.integers(1, 70),
    exponent=st.floats(-15, -0.5),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    kind=st.sampled_from(["fro", "spectral"]),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(backend, dtype, spectrum, m, n, exponent, cap, kind, seed):
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    rtol = 10.0**exponent
    found = quietly(
        cur,
        backend.asarray(A),
        cap,
        rtol=rtol,
        norm=kind,
        rng=seed,
        failure_probability=DRAWN,
    )
    true = norm(A - approximation(backend, A, found), kind)
    assert true <= found.error_bound
    assert found.rank <= (min(m, n) if cap is None else cap)
    assert found.converged == (found.error_bound <= found.tolerance)
    assert (found.status is Status.CONVERGED) == found.converged
    if found.converged:
        assert true <= rtol * norm(A, kind)


@in_turn("spectrum", ["slow", "fast", "s_shaped", "medium", "slower"])
def test_error_is_near_that_of_an_interpolative_decomposition(backend, spectrum):
    """Columns leave an error, and rows one of much the same size, orthogonal to it."""
    ratios = []
    for seed in range(5):
        A = with_spectrum(gallery.SPECTRA[spectrum](100), (110, 100), "float32", seed)
        found = cur(backend.asarray(A), 25, rng=seed)
        J, X = (backend.numpy(Y) for Y in interpolative(backend.asarray(A), 25, rng=seed))
        theirs = np.linalg.norm(A - A[:, np.real(J).astype(int)] @ X)
        ratios.append(np.linalg.norm(A - approximation(backend, A, found)) / theirs)
    assert np.median(ratios) <= 1.1 * 2**0.5


@in_turn("case", ["slow-fro", "fast-spectral", "s_shaped-fro", "medium-spectral"])
def test_rank_is_near_that_of_an_interpolative_decomposition(backend, case):
    spectrum, kind = case.split("-")
    A = backend.asarray(with_spectrum(gallery.SPECTRA[spectrum](100), (110, 100), "float32"))
    for rtol in (1e-1, 1e-2):
        found = cur(A, rtol=rtol, norm=kind, rng=0)
        assert found.converged
        columns = interpolative(A, rtol=rtol, norm=kind, rng=0).rank
        assert found.rank <= max(columns + 3, 1.3 * columns)


@pytest.mark.parametrize("shape", [(80, 50), (50, 80), (40, 40)], ids=str)
def test_fixed_rank(backend, dtype, shape):
    A = with_spectrum(gallery.medium(40), shape, dtype)
    for rank in (0, 1, 10, 100):
        found = cur(backend.asarray(A), rank, rng=0)
        k = min(rank, *shape)
        assert found.rank == k
        assert found.status is (Status.FULL_RANK if rank > k else Status.RANK_REACHED)
        assert (found.converged, found.error, found.error_bound) == (None, None, None)
        error = np.linalg.norm(A - approximation(backend, A, found))
        assert error <= 3 * gallery.best_error(gallery.medium(40), k) + 2000 * backend.eps(dtype)


def test_bound_and_estimate_are_near_the_error(backend, dtype):
    A = with_spectrum(gallery.medium(120), (120, 120), dtype)
    found = cur(backend.asarray(A), rtol=1e-2, rng=0)
    true = np.linalg.norm(A - approximation(backend, A, found))
    assert found.error == pytest.approx(true, rel=0.05)
    assert true <= found.error_bound <= 1.2 * true


def test_precision_floor_is_the_root_of_eps(backend, dtype):
    """U inverts small singular values; those that cost more than they bring are left out of it."""
    A = with_spectrum(gallery.fast(120), (120, 120), dtype)
    size, root = np.linalg.norm(A), backend.eps(dtype) ** 0.5
    with pytest.warns(ConvergenceWarning, match=r"PRECISION_FLOOR|FULL_RANK"):
        found = cur(backend.asarray(A), rtol=1e-15, rng=0)
    true = np.linalg.norm(A - approximation(backend, A, found))
    assert true <= found.error_bound <= 10 * root * size
    fixed = cur(backend.asarray(A), 120, rng=0)
    assert np.linalg.norm(A - approximation(backend, A, fixed)) <= 10 * root * size


def test_cap(backend, dtype):
    A = with_spectrum(gallery.medium(100), (100, 110), dtype)
    with pytest.warns(ConvergenceWarning, match=r"RANK_REACHED"):
        found = cur(backend.asarray(A), 20, rtol=1e-2, rng=0)
    assert (found.rank, found.status, found.converged) == (20, Status.RANK_REACHED, False)
    true = np.linalg.norm(A - approximation(backend, A, found))
    assert true <= found.error_bound <= 1.1 * true


def test_rank_beyond_the_numerical_one(backend, dtype):
    A = with_spectrum(gallery.low_rank(40, 5), (50, 40), dtype)
    A[:, 7] = 0
    A[3, :] = A[4, :]
    for rank in (5, 6, 30, 40):
        found = cur(backend.asarray(A), rank, rng=0)
        assert found.rank == rank
        assert np.linalg.norm(A - approximation(backend, A, found)) <= 2000 * backend.eps(dtype)
        assert np.max(np.abs(backend.numpy(found.U))) < 1e4
    assert cur(backend.asarray(A), rtol=1e-3, rng=0).rank == 5


def test_zero_and_empty(backend, dtype):
    for shape in ((8, 6), (0, 0), (0, 3), (3, 0)):
        A = np.zeros(shape, dtype)
        found = cur(backend.asarray(A), rtol=1e-3)
        assert (found.rank, found.converged, found.error_bound) == (0, True, 0.0)
        for rank in (0, 3):
            found = cur(backend.asarray(A), rank)
            assert np.all(approximation(backend, A, found) == 0)
            assert found.rank == min(rank, *shape)


@pytest.mark.parametrize("size", ["large", "small"])
def test_extreme_entries(backend, dtype, size):
    """Small entries are no smaller than what U, of their inverses, leaves room for."""
    single = dtype in ("float32", "complex64")
    exponent = (118, -100) if single else (1000, -1000)
    exponent = exponent[size == "small"]
    unit = with_spectrum(gallery.fast(60), (60, 60), dtype)
    A = unit * np.asarray(2.0**exponent, dtype)
    half = 2.0 ** (exponent // 2)
    for options in ({"rtol": 1e-2}, {"rank": 30}):
        found = cur(backend.asarray(A), rng=0, **options)
        C, U, R = (backend.numpy(X) for X in found)
        product = (C / half) @ U @ (R / half)
        true = np.linalg.norm(unit - product)
        if "rtol" in options:
            assert found.converged
            assert true <= found.error_bound * 2.0**-exponent <= 1e-2 * np.linalg.norm(unit)
        else:
            assert true <= 5 * gallery.best_error(gallery.fast(60), 30)


def test_a_joining_matrix_beyond_the_dtype_is_refused(backend):
    backend.skip_if_flushed("float32")
    A = backend.asarray(with_spectrum(gallery.fast(60), (60, 60), "float32") * np.float32(2**-124))
    for options in ({"rtol": 1e-2}, {"rank": 30}):
        with pytest.raises(ValueError, match=r"entry of U exceeds .* multiply `A` by a constant"):
            cur(A, rng=0, **options)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
def test_operators_and_sparse_matrices(dtype):
    backend = BACKENDS[0]  # NumPy
    A = with_spectrum(gallery.fast(60), (70, 60), dtype)
    A[np.abs(A) < np.quantile(np.abs(A), 0.5)] = 0
    for coat in (Operator, scipy.sparse.csr_array):
        for options in ({"rank": 10}, {"rtol": 0.3}):
            found = cur(coat(A), rng=0, **options)
            product = approximation(backend, A, found)
            if "rtol" in options:
                assert np.linalg.norm(A - product) <= found.error_bound <= found.tolerance
    counted = Operator(A)
    found = cur(counted, rtol=0.3, rng=0)
    assert (found.passes, found.products) == (len(counted.columns), sum(counted.columns))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision(half):
    torch = pytest.importorskip("torch")
    A = torch.as_tensor(with_spectrum(gallery.fast(60), (70, 60), "float32"))
    A = A.to(getattr(torch, half))
    found = cur(A, rtol=1e-2, rng=0)
    wide = A.to(torch.float32)
    expected = cur(wide, rtol=1e-2, rng=0)
    assert (found.passes, found.products) == (expected.passes, expected.products)
    assert found.C.dtype == found.U.dtype == found.R.dtype == torch.float32
    assert bool((wide[:, found.columns] == found.C).all())
    assert bool((wide[found.rows, :] == found.R).all())
    error = float((wide - found.C @ found.U @ found.R).norm())
    assert error <= found.error_bound <= found.tolerance


def test_results_are_copies(backend):
    """Also where all columns and rows are chosen."""
    A = backend.asarray(gaussian((4, 4), "float32"))
    if backend.readonly:
        A = A.copy()
    found = cur(A, 4, rng=0)
    before = [backend.numpy(X).copy() for X in found]
    A[:, :] = A + 1
    for X, Y in zip(found, before, strict=True):
        assert np.array_equal(backend.numpy(X), Y)


def test_cost_at_a_fixed_rank_is_as_documented(backend):
    A = backend.asarray(with_spectrum(gallery.fast(60), (80, 60), "float32"))
    for q in (0, 1, 2):
        found = cur(A, 10, power_iterations=q, rng=0)
        assert (found.passes, found.products) == (2 * q + 2, 20 * (2 * q + 2))
    assert cur(A, 10, rng=0).passes == 6


def test_of_the_adjoint(backend, dtype):
    """Complex A: ``C U R`` of A and of Aᴴ have errors of one size, from one seed or another."""
    A = with_spectrum(gallery.fast(50), (60, 50), dtype)
    errors = [
        np.linalg.norm(X - approximation(backend, X, cur(backend.asarray(X), 10, rng=0)))
        for X in (A, adjoint(A).copy())
    ]
    assert max(errors) <= 1.5 * min(errors)


def test_what_is_refused(backend):
    A = gaussian((6, 5), "float32")
    with pytest.raises(ValueError, match=r"got a stack of shape \(2, 6, 5\)"):
        cur(backend.asarray(np.stack([A, A])), 2)
    with pytest.raises(ValueError, match=r"no stopping criterion: give `rank`, `rtol` or `atol`"):
        cur(backend.asarray(A))
    with pytest.raises(ValueError, match=r"`oversampling` must be at least 0, got -1"):
        cur(backend.asarray(A), 2, oversampling=-1)
    A[3, 3] = np.nan
    for options in ({"rank": 2}, {"rank": 2, "check_finite": False}, {"rtol": 1e-2}):
        with pytest.raises(ValueError, match="holds NaN"):
            cur(backend.asarray(A), **options)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("certificate", ["sampled", "energy", "exact"])
@pytest.mark.parametrize("factorize", [cur, interpolative])
def test_bound_for_long_columns_of_equal_numbers(factorize, certificate, library):
    """Of which products that add 12,500 terms in sequence lose 0.2 % of the error."""
    A = np.tril(np.ones((12_500, 3), "float32"))
    given = A if library == "numpy" else pytest.importorskip("torch").from_numpy(A)
    found = factorize(given, rtol=0.5, rank=2, certificate=certificate, rng=42)
    factors = found if factorize is cur else (found.skeleton, found.coefficients)
    product = reduce(np.matmul, (np.asarray(X).astype(np.longdouble) for X in factors))
    error = float(np.sum((A - product) ** 2) ** 0.5)
    assert error <= found.error_bound
    if certificate != "energy":
        assert found.error_bound <= error + 100 * 2.0**-23 * found.norm_A
