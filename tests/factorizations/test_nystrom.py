"""Nyström approximation: below the matrix, exact on its rank, near the best, in one pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import adjoint, defect, gaussian

import lowrank
from lowrank import Status, gallery
from lowrank._factorizations.nystrom import nystrom

NORMS = {"trace": "nuc", "Frobenius": None, "spectral": 2}
every_norm = pytest.mark.parametrize("kind", NORMS.values(), ids=NORMS)


def semidefinite(values, dtype, seed=0):
    """A matrix with these eigenvalues, made in double precision, rounded once, Hermitian."""
    wide = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
    n = len(values)
    V = np.linalg.qr(gaussian((n, n), wide, seed)).Q
    A = (V * values) @ adjoint(V)
    return ((A + adjoint(A)) / 2).astype(dtype)


def wide(A):
    return A.astype("complex128" if A.dtype.kind == "c" else "float64")


def product(backend, found):
    """The approximation, after checks that every result must pass."""
    w, V = (backend.numpy(factor) for factor in found)
    eps = float(np.finfo(str(found.eigenvalues.dtype).rpartition(".")[2]).eps)
    assert w.dtype.kind == "f"
    assert w.shape[-1] == V.shape[-1] == found.rank
    assert np.all(w >= 0)
    assert np.all(np.diff(w, axis=-1) <= 0)
    for member in np.ndindex(V.shape[:-2]):
        assert defect(V[member]) <= 100 * eps * max(found.rank, 1) ** 0.5
    return (V * w[..., None, :]) @ adjoint(V)


def smallest(E):
    """The smallest eigenvalue."""
    return float(np.linalg.eigvalsh((E + adjoint(E)) / 2)[0])


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    n=st.integers(1, 100),
    rank=st.integers(0, 120),
    oversampling=st.integers(0, 20),
    seed=st.integers(0, 10_000),
)
def test_lies_between_zero_and_the_matrix(backend, dtype, spectrum, n, rank, oversampling, seed):
    s = gallery.SPECTRA[spectrum](n)
    A = semidefinite(s, dtype, seed)
    found = nystrom(backend.asarray(A), rank, oversampling=oversampling, rng=seed)
    E = wide(A) - product(backend, found)
    rounding = 20 * backend.eps(dtype) * n**0.5 * np.linalg.norm(A)
    assert smallest(E) >= -rounding
    # no better than the best, and exact at full rank
    assert np.linalg.norm(E) >= gallery.best_error(s, min(rank, n)) - rounding
    if rank >= n:
        assert np.linalg.norm(E) <= n**0.5 * rounding
    assert found.rank == min(rank, n)
    assert found.status is (Status.FULL_RANK if rank > n else Status.RANK_REACHED)


@pytest.mark.parametrize(
    ("spectrum", "oversampling"),
    [("slow", 3), ("medium", 10), ("s_shaped", 10), ("plateau_polynomial", 3)],
)
def test_published_expectation(backend, dtype, spectrum, oversampling):
    """``E‖A − Â‖₁ ≤ (1 + r/(k − r − α)) ‖A − A_r‖₁`` with α = 1, or 0 if complex."""
    n, r, draws = 80, 8, 25
    s = gallery.SPECTRA[spectrum](n)
    A = semidefinite(s, dtype)
    alpha = 0 if np.dtype(dtype).kind == "c" else 1
    errors = []
    for seed in range(draws):
        found = nystrom(backend.asarray(A), r, oversampling=oversampling, rng=seed)
        errors.append(np.linalg.norm(wide(A) - product(backend, found), "nuc"))
    best = float(np.sum(s[r:]))
    assert best <= min(errors) * (1 + 100 * backend.eps(dtype)) + 1e-3 * backend.eps(dtype)
    assert np.mean(errors) <= (1 + r / (oversampling - alpha)) * best
    assert min(errors) < max(errors)


def test_exact_up_to_the_rank_of_the_matrix(backend, dtype):
    """With some columns to spare: the shift acts as a flat tail, which a square ΩᴴV amplifies."""
    A = semidefinite(gallery.low_rank(60, 7), dtype)
    tolerance = 300 * backend.eps(dtype) * np.linalg.norm(A)
    for rank, oversampling in ((7, 10), (17, 0), (60, 0)):
        found = nystrom(backend.asarray(A), rank, oversampling=oversampling, rng=0)
        assert np.linalg.norm(wide(A) - product(backend, found)) <= tolerance
        w = backend.numpy(found.eigenvalues)
        assert np.allclose(w[:7], np.linalg.eigvalsh(wide(A))[::-1][:7], rtol=1e-3)
        assert np.all(w[7:] <= tolerance)


def test_definition(backend, dtype):
    """``A Ω (ΩᴴAΩ)⁻¹ ΩᴴA``, of which only the range of Ω matters; then cut."""
    A, Omega = semidefinite(0.8 ** np.arange(40), dtype), gaussian((40, 9), dtype, 1)
    Y = wide(A) @ wide(Omega)
    expected = Y @ np.linalg.solve(adjoint(wide(Omega)) @ Y, adjoint(Y))
    tolerance = 300 * backend.eps(dtype)
    A, Omega = backend.asarray(A), backend.asarray(Omega)
    found = nystrom(A, 9, oversampling=0, test_matrix=Omega)
    assert np.linalg.norm(product(backend, found) - expected) <= tolerance
    scaled = nystrom(A, 9, oversampling=0, test_matrix=Omega * 1000.0)
    assert np.linalg.norm(product(backend, scaled) - expected) <= tolerance
    w, V = np.linalg.eigh(expected)
    cut = nystrom(A, 4, oversampling=5, test_matrix=Omega)
    expected = (V[:, -4:] * w[-4:]) @ adjoint(V[:, -4:])
    assert np.linalg.norm(product(backend, cut) - expected) <= tolerance


@every_norm
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("spectrum", ["slow", "medium", "flat", "s_shaped"])
def test_never_worse_than_the_projection_on_the_same_basis(dtype, spectrum, kind):
    """In the basis ``[Q Q⊥]`` the errors are a Schur complement S ≤ D, and a matrix that holds D.

    So ‖S‖ ≤ ‖D‖ in every unitarily invariant norm, and D is a part of both other errors.
    """
    A = wide(semidefinite(gallery.SPECTRA[spectrum](60), dtype))
    for seed in range(3):
        for Q in (
            np.linalg.qr(gaussian((60, 8), A.dtype, seed)).Q,
            lowrank.range_finder(A, 8, rng=seed).Q,
        ):
            w, V = nystrom(A, 8, oversampling=0, test_matrix=Q)
            error = np.linalg.norm(A - (V * w) @ adjoint(V), kind)
            QQA = Q @ (adjoint(Q) @ A)
            for other in (QQA, QQA @ Q @ adjoint(Q)):
                assert error <= np.linalg.norm(A - other, kind) * (1 + 1e-12)


def test_stack_equals_its_members(backend, dtype):
    spectra = [gallery.low_rank(30, 4), np.zeros(30), gallery.slow(30), 2.0**30 * gallery.fast(30)]
    A = np.stack([semidefinite(s, dtype, seed) for seed, s in enumerate(spectra)])
    A = A.reshape(2, 2, 30, 30)
    Omega = gaussian((2, 2, 30, 9), dtype)
    found = nystrom(backend.asarray(A), 6, oversampling=3, test_matrix=backend.asarray(Omega))
    approximation = product(backend, found)
    for member in np.ndindex(2, 2):
        single = product(
            backend,
            nystrom(
                backend.asarray(A[member]),
                6,
                oversampling=3,
                test_matrix=backend.asarray(Omega[member]),
            ),
        )
        difference = np.linalg.norm(approximation[member] - single)
        assert difference <= 200 * backend.eps(dtype) * np.linalg.norm(A[member])


def test_members_of_a_stack_have_their_own_test_matrices(backend):
    A = np.stack([semidefinite(gallery.slow(30), "float32")] * 2)
    w = backend.numpy(nystrom(backend.asarray(A), 5, oversampling=0, rng=0).eigenvalues)
    assert np.any(w[0] != w[1])


def test_zero_matrix(backend, dtype):
    for n in (1, 9):
        found = nystrom(backend.asarray(np.zeros((n, n), dtype)), 4, rng=0)
        assert np.all(product(backend, found) == 0)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4, 4), (3, 0, 0), (4, 4)], ids=str)
def test_empty(backend, dtype, shape):
    found = nystrom(backend.asarray(np.zeros(shape, dtype)), 0 if shape == (4, 4) else 2)
    r = 0 if shape == (4, 4) else min(2, shape[-1])
    assert found.rank == r
    assert found.eigenvectors.shape == (*shape[:-1], r)
    assert found.eigenvalues.shape == (*shape[:-2], r)
    product(backend, found)


@pytest.mark.parametrize("extreme", [-1, 1])
def test_any_size(backend, dtype, extreme):
    """Entries of about 1e±300 (1e±37 in single precision)."""
    size = 10.0 ** (extreme * (36 if backend.eps(dtype) > 1e-10 else 300))
    A = semidefinite(gallery.fast(50), dtype)
    found = nystrom(backend.asarray((A * size).astype(dtype)), 10, rng=0)
    unit = nystrom(backend.asarray(A), 10, rng=0)
    difference = backend.numpy(found.eigenvalues) / size - backend.numpy(unit.eigenvalues)
    assert np.max(np.abs(difference)) <= 100 * backend.eps(dtype)


def test_outcome(backend):
    A = backend.asarray(semidefinite(gallery.fast(40), "float32"))
    found = nystrom(A, 5, rng=0)
    assert (found.passes, found.products, found.history) == (1, 15, ())
    assert found.converged is found.error is found.error_bound is found.norm_A is None
    assert nystrom(A, 5, oversampling=100, rng=0).products == 40
    again = nystrom(A, 5, rng=0)
    assert np.all(backend.numpy(again.eigenvalues) == backend.numpy(found.eigenvalues))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(backend, dtype, bad):
    A = semidefinite(gallery.fast(30), dtype)
    A[3, 4] = bad
    for given_ in (A, np.stack([semidefinite(gallery.fast(30), dtype), A])):
        for check_finite in (True, False):
            with pytest.raises(ValueError, match="holds NaN or Inf"):
                nystrom(backend.asarray(given_), 5, rng=0, check_finite=check_finite)


def test_not_semidefinite(backend, dtype):
    s = gallery.fast(30).copy()
    A = semidefinite(s, dtype)
    s[0] *= -1
    worse = semidefinite(s, dtype)
    for given_ in (worse, np.stack([A, worse]), -A):
        with pytest.raises(ValueError, match=r"not positive semidefinite.*Use lowrank\.eigh"):
            nystrom(backend.asarray(given_), 5, rng=0)
    found = nystrom(backend.asarray(worse), 5, rng=0, check_finite=False)
    product(backend, found)


def test_not_hermitian(backend, dtype):
    A = semidefinite(gallery.fast(30), dtype) + 0.01 * gaussian((30, 30), dtype)
    with pytest.raises(ValueError, match=r"not Hermitian"):
        nystrom(backend.asarray(A.astype(dtype)), 5, rng=0)
    if np.dtype(dtype).kind == "c":  # symmetric, but not Hermitian
        A = gaussian((30, 30), dtype)
        with pytest.raises(ValueError, match=r"not Hermitian"):
            nystrom(backend.asarray(A @ A.T), 5, rng=0)


@pytest.mark.parametrize("n", [30, 400])
def test_rounded_gram_matrices_are_accepted(backend, dtype, n):
    """Products are neither Hermitian nor semidefinite but for rounding."""
    X = backend.asarray(gaussian((n, 6), dtype))
    Xh = backend.asarray(adjoint(gaussian((n, 6), dtype)))
    found = nystrom(X @ Xh, 20, rng=0)
    gram = wide(gaussian((n, 6), dtype))
    gram = gram @ adjoint(gram)
    tolerance = 20 * backend.eps(dtype) * n**0.5 * np.linalg.norm(gram)
    assert np.linalg.norm(product(backend, found) - gram) <= tolerance


class Once:
    """An operator that may be multiplied once, and from one side."""

    def __init__(self, A):
        self.A, self.shape, self.dtype, self.calls = A, A.shape, A.dtype, 0

    def matmat(self, X):
        self.calls += 1
        return self.A @ X

    rmatmat = None


def test_operators_and_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    for dtype in ("float32", "complex128"):
        A = semidefinite(gallery.fast(50), dtype)
        operator = Once(A)
        w, V = nystrom(operator, 12, rng=0)
        assert operator.calls == 1
        for given_ in (A, sparse.csr_array(A)):
            found = nystrom(given_, 12, rng=0)
            difference = (V * w) @ adjoint(V) - (found.eigenvectors * found.eigenvalues) @ adjoint(
                found.eigenvectors
            )
            assert np.linalg.norm(difference) <= 1000 * np.finfo(dtype).eps


def test_refused():
    A = np.eye(6)
    with pytest.raises(ValueError, match=r"`A` must be square, got shape \(6, 5\)"):
        nystrom(A[:, :5], 2)
    with pytest.raises(ValueError, match=r"`test_matrix` needs 8 more columns"):
        nystrom(np.eye(20), 2, test_matrix=np.ones((20, 4)))
    with pytest.raises(ValueError, match=r"`rank` must be at least 0, got -1"):
        nystrom(A, -1)
    with pytest.raises(ValueError, match=r"`oversampling` must be at least 0, got -1"):
        nystrom(A, 1, oversampling=-1)
    with pytest.raises(TypeError, match=r"cast it to float32"):
        nystrom(np.eye(6, dtype=int), 2)


def test_nothing_is_modified(backend, dtype):
    A, Omega = semidefinite(gallery.fast(20), dtype), gaussian((20, 8), dtype)
    there = backend.asarray(A), backend.asarray(Omega)
    nystrom(there[0], 3, oversampling=5, test_matrix=there[1])
    assert np.array_equal(backend.numpy(there[0]), A)
    assert np.array_equal(backend.numpy(there[1]), Omega)


@pytest.mark.parametrize("multiply", ["matmat", "__matmul__"])
def test_a_product_is_enough(multiply):
    """No adjoint in any form."""
    A = semidefinite(gallery.fast(60), "complex128")
    kind = type("Known", (), {"shape": A.shape, "dtype": A.dtype, multiply: lambda _, X: A @ X})
    found, dense = (nystrom(X, 20, rng=0).eigenvalues for X in (kind(), A))
    assert np.allclose(found, dense)


def test_entries_below_the_normal_numbers(backend, dtype):
    """Their products are rounded to multiples of the smallest number, which is no asymmetry."""
    backend.skip_if_flushed(dtype)
    A = semidefinite(gallery.fast(30), dtype)
    size = A.real.dtype.type(1e-41 if dtype in ("float32", "complex64") else 1e-311)
    found = nystrom(backend.asarray((A * size).astype(dtype)), 3, rng=0)
    assert backend.numpy(found.eigenvalues)[0] == pytest.approx(float(size), rel=1e-2)


@pytest.mark.parametrize("kind", ["skew", "negative"])
def test_small_departures_are_found(dtype_of_numpy, kind):
    """A thousand times the rounding of the product, and not the rounding itself."""
    n = 50
    A = semidefinite(np.ones(n), dtype_of_numpy)
    nystrom(A, n, rng=0)
    size = 1e3 * n**0.5 * np.finfo(dtype_of_numpy).eps * np.linalg.norm(A)
    B = A.copy()
    if kind == "skew":
        B[0, 1] += size
    else:
        B[0, 0] = -size
        B[0, 1:] = B[1:, 0] = 0.0
    told = "not Hermitian" if kind == "skew" else "not positive semidefinite"
    with pytest.raises(ValueError, match=told):
        nystrom(B, n, rng=0)


@pytest.fixture(params=["float32", "float64", "complex64", "complex128"])
def dtype_of_numpy(request):
    return request.param
