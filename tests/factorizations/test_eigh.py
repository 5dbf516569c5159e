"""Eigenvalues of Hermitian matrices: the certificate of both sides, indefinite and complex too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, defect, gaussian, norm, quietly

import lowrank
from lowrank import ConvergenceWarning, Status, gallery


def hermitian(values, dtype, seed=0):
    """A Hermitian matrix with these eigenvalues, made in double precision."""
    n = len(values)
    V = np.linalg.qr(gaussian((n, n), "complex128" if np.dtype(dtype).kind == "c" else "f8", seed))
    A = (V.Q * values) @ adjoint(V.Q)
    return ((A + adjoint(A)) / 2).astype(dtype)


def alternating(s, every=3):
    return np.where(np.arange(len(s)) % every == 1, -1.0, 1.0) * s


def product(backend, found):
    """The approximation, after checks that every result must pass."""
    w, V = (backend.numpy(X) for X in found)
    assert w.shape[-1] == V.shape[-1] == found.rank
    assert found.eigenvalues.dtype == backend.xp.abs(found.eigenvectors).dtype
    assert np.all(np.diff(np.abs(w), axis=-1) <= 0)
    return (V * w[..., None, :]) @ adjoint(V), V


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    n=st.integers(1, 120),
    exponent=st.floats(-15, -0.5),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    kind=st.sampled_from(["fro", "spectral"]),
    every=st.integers(2, 5),
    krylov=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(backend, dtype, spectrum, n, exponent, cap, kind, every, krylov, seed):
    A = hermitian(alternating(gallery.SPECTRA[spectrum](n), every), dtype, seed)
    rtol = 10.0**exponent
    found = quietly(
        lowrank.eigh,
        backend.asarray(A),
        cap,
        rtol=rtol,
        norm=kind,
        krylov=krylov,
        rng=seed,
        failure_probability=DRAWN,
    )
    approximation, V = product(backend, found)
    assert defect(V) <= 200 * backend.eps(dtype) * max(found.rank, 1) ** 0.5
    A = A.astype(V.dtype)
    true = norm(A - approximation, kind)
    assert true <= found.error_bound
    assert found.rank <= (n if cap is None else cap)
    assert found.converged == (found.error_bound <= found.tolerance)
    assert (found.status is Status.CONVERGED) == found.converged
    if found.converged:
        assert true <= rtol * norm(A, kind)


@pytest.mark.parametrize("spectrum", ["slow", "fast", "s_shaped", "medium", "staircase", "drop"])
def test_rank_is_near_the_best_possible(backend, spectrum):
    s = gallery.SPECTRA[spectrum](250)
    A = backend.asarray(hermitian(alternating(s), "float32"))
    for rtol in (1e-1, 1e-2, 1e-3):
        best = gallery.best_rank(s, rtol=rtol)
        found = lowrank.eigh(A, rtol=rtol, rng=0)
        assert found.converged
        assert best <= found.rank <= max(best + 1, 1.05 * best)


def test_bound_is_near_the_truth(backend, dtype):
    """Most of the error is known from the energies of both sides."""
    A = backend.asarray(hermitian(alternating(gallery.medium(200)), dtype))
    found = lowrank.eigh(A, rtol=1e-2, rng=0)
    approximation, _ = product(backend, found)
    true = np.linalg.norm(backend.numpy(A) - approximation)
    assert found.error == pytest.approx(true, rel=0.02)
    assert true <= found.error_bound <= 1.2 * true


@pytest.mark.parametrize("shape", [(40, 40), (3, 40, 40)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 10, 40, 100])
def test_fixed_rank(backend, dtype, shape, rank):
    s = gallery.fast(40)
    members = np.stack([hermitian(alternating(s), dtype, seed) for seed in range(3)])
    A = members if len(shape) == 3 else members[0]
    found = lowrank.eigh(backend.asarray(A), rank, rng=0)
    assert found.rank == min(rank, 40)
    assert found.status is (Status.FULL_RANK if rank > 40 else Status.RANK_REACHED)
    assert found.converged is None
    approximation, V = product(backend, found)
    assert approximation.shape == shape
    if len(shape) == 2:
        assert np.linalg.norm(A - approximation) <= found.error_bound
    gram = adjoint(V) @ V - np.eye(found.rank)
    assert np.all(np.linalg.norm(gram, axis=(-2, -1)) <= 500 * backend.eps(dtype))
    error = np.linalg.norm(A - approximation, axis=(-2, -1))
    best = gallery.best_error(s, found.rank)
    assert np.all(error <= 1.001 * best + 200 * backend.eps(dtype))


def test_eigenvalues_have_their_signs(backend, dtype):
    values = alternating(gallery.fast(60))
    found = lowrank.eigh(backend.asarray(hermitian(values, dtype)), 12, rng=0)
    w = backend.numpy(found.eigenvalues)
    assert np.allclose(w, values[:12], rtol=1e-3)


def test_both_ends_of_the_spectrum(backend, dtype):
    """What has the largest absolute value is found, be it negative."""
    values = np.concatenate([-np.arange(5, 0, -1.0), np.zeros(45)])
    found = lowrank.eigh(backend.asarray(hermitian(values, dtype)), rtol=1e-3, rng=0)
    assert np.allclose(backend.numpy(found.eigenvalues), values[:5], atol=100 * backend.eps(dtype))


def test_cap_below_what_the_tolerance_needs(backend, dtype):
    s = gallery.medium(150)
    A = hermitian(alternating(s), dtype)
    with pytest.warns(ConvergenceWarning, match=r"RANK_REACHED"):
        found = lowrank.eigh(backend.asarray(A), 20, rtol=1e-2, rng=0)
    assert (found.rank, found.status, found.converged) == (20, Status.RANK_REACHED, False)
    approximation, _ = product(backend, found)
    true = np.linalg.norm(A - approximation)
    assert true <= found.error_bound
    assert true <= 1.15 * gallery.best_error(s, 20)


@pytest.mark.parametrize("spectrum", ["slow", "slower", "medium"])
def test_the_error_is_that_of_both_sides(backend, dtype, spectrum):
    """What is outside of the basis enters from the left and from the right, and is known."""
    A = hermitian(alternating(gallery.SPECTRA[spectrum](120)), dtype)
    for rtol in (0.3, 0.05):
        found = lowrank.eigh(backend.asarray(A), rtol=rtol, rng=0)
        approximation, _ = product(backend, found)
        true = np.linalg.norm(A - approximation)
        assert found.certificate == "exact"
        assert found.error == pytest.approx(true, rel=1e3 * backend.eps(dtype))
        assert true <= found.error_bound <= rtol * np.linalg.norm(A)


def test_operators_use_one_product(backend, dtype):
    """The adjoint is never asked for, and results are where products are."""
    A = hermitian(alternating(gallery.fast(80)), dtype)

    class Symmetric:
        shape, dtype = A.shape, A.dtype

        def matmat(self, X):
            return backend.asarray(
                (A @ (X if type(X) is np.ndarray else backend.numpy(X))).astype(A.dtype)
            )

        rmatmat = None

    found = lowrank.eigh(Symmetric(), rtol=1e-2, rng=0)
    approximation, _ = product(backend, found)
    assert np.linalg.norm(A - approximation) <= 1e-2 * np.linalg.norm(A)
    assert found.norm_A <= np.linalg.norm(A) * (1 + 1e-3)


def test_sparse_and_half_precision():
    sparse = pytest.importorskip("scipy.sparse")
    torch = pytest.importorskip("torch")
    values = alternating(gallery.fast(50))
    A = sparse.csr_array(np.diag(values))
    w, V = lowrank.eigh(A, rtol=1e-3, rng=0)
    assert np.linalg.norm(A - (V * w) @ V.T) <= 1e-3 * np.linalg.norm(values)
    for half in (torch.float16, torch.bfloat16):
        H = torch.asarray(hermitian(values, "float32")).to(half)
        w, V = lowrank.eigh(H, rtol=1e-2, rng=0)
        assert w.dtype == V.dtype == torch.float32
        error = torch.linalg.norm(H.float() - (V * w) @ V.mT)
        assert error <= 1e-2 * torch.linalg.norm(H.float())


@pytest.mark.parametrize("options", [{"rank": 4}, {"rtol": 0.1}, {"rtol": 0.1, "norm": "spectral"}])
def test_refused(backend, dtype, options):
    A = gaussian((30, 30), dtype)
    with pytest.raises(ValueError, match=r"`A` is not Hermitian: .* skew part"):
        quietly(lowrank.eigh, backend.asarray(A), rng=0, **options)
    with pytest.raises(ValueError, match=r"must be square \(and Hermitian\), got shape \(30, 20\)"):
        lowrank.eigh(backend.asarray(A[:, :20]), **options)
    if np.dtype(dtype).kind == "c":  # symmetric is not Hermitian
        with pytest.raises(ValueError, match="is not Hermitian"):
            quietly(lowrank.eigh, backend.asarray(A + A.T), rng=0, **options)
    bad = A + adjoint(A)
    bad[3, 4] = np.nan
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        lowrank.eigh(backend.asarray(bad), rng=0, **options)


def test_rounding_is_no_asymmetry(backend, dtype):
    """A product of a matrix and its adjoint is Hermitian up to rounding."""
    X = gaussian((90, 60), dtype)
    A = backend.asarray((adjoint(X) @ X).astype(dtype))
    for options in ({"rank": 60}, {"rtol": 1e-3}):
        assert lowrank.eigh(A, rng=0, **options).rank > 50


@pytest.mark.parametrize("n", [0, 1, 6])
def test_zero_and_empty(backend, dtype, n):
    A = backend.asarray(np.zeros((n, n), dtype))
    found = lowrank.eigh(A, rtol=1e-3)
    assert (found.rank, found.converged, found.error_bound) == (0, True, 0.0)
    approximation, V = product(backend, lowrank.eigh(A, 3))
    assert np.all(approximation == 0)
    assert defect(V) < 100 * backend.eps(dtype)


def test_large_and_small_entries(backend, dtype):
    backend.skip_if_flushed(dtype)
    double = np.finfo(dtype).bits == 64 or dtype == "complex128"
    A = hermitian(alternating(gallery.fast(40)), dtype)
    for size in (1e300, 1e-300) if double else (1e36, 1e-36):
        scaled = (A * A.real.dtype.type(size)).astype(dtype)
        found = lowrank.eigh(backend.asarray(scaled), rtol=1e-3, rng=0)
        w, V = backend.numpy(found.eigenvalues) / size, backend.numpy(found.eigenvectors)
        assert np.linalg.norm(A - (V * w) @ adjoint(V)) <= 1e-3 * np.linalg.norm(A)
        assert found.converged


# -- what is not Hermitian, and not seen at once ------------------------------------------------


def test_a_skew_part_outside_of_the_basis_is_found(backend, dtype):
    """Columns of e₁(e₁ + e_j/2)ᵀ span e₁ alone: samples of them know nothing of row 1."""
    A = np.zeros((200, 200), dtype)
    A[0, 0], A[0, 150] = 1.0, 0.5
    A = backend.asarray(A)
    with pytest.raises(ValueError, match=r"QᴴA\(I − QQᴴ\) has norm 0\.[45]"):
        lowrank.eigh(A, rtol=1e-2, rng=0)
    for options in ({"rank": 1, "oversampling": 0}, {"rtol": 0.1, "norm": "spectral"}):
        with pytest.raises(ValueError, match="is not Hermitian: for Gaussian x and y"):
            lowrank.eigh(A, rng=0, check=True, **options)


def test_a_hermitian_matrix_passes_every_check(backend, dtype):
    for spectrum in ("slow", "fast", "drop"):
        A = hermitian(alternating(gallery.SPECTRA[spectrum](60)), dtype)
        for rtol in (0.5, 1e-2, 1e-6):
            quietly(lowrank.eigh, backend.asarray(A), rtol=rtol, rng=0, check=True)


def test_a_member_that_is_not_hermitian_is_found_beside_a_large_one(backend, dtype):
    for sizes in ((1e15, 1.0), (1.0, 1e15)):
        A = np.stack([sizes[0] * np.eye(20), sizes[1] * np.eye(20)]).astype(dtype)
        lowrank.eigh(backend.asarray(A), 20, rng=0)
        small = int(np.argmin(sizes))
        A[small, 3, 4] = 1.0
        with pytest.raises(ValueError, match=r"skew part of norm 0\.707"):
            lowrank.eigh(backend.asarray(A), 20, rng=0)


def test_entries_below_the_normal_numbers(backend, dtype):
    """Their products are rounded to multiples of the smallest number, which is no asymmetry."""
    backend.skip_if_flushed(dtype)
    A = hermitian(alternating(gallery.fast(30)), dtype)
    single = dtype in ("float32", "complex64")
    size = A.real.dtype.type(1e-41 if single else 1e-311)
    A = (A * size).astype(dtype)
    for options in ({"rank": 5}, {"rtol": 0.3}, {"rtol": 0.3, "norm": "spectral"}):
        w = backend.numpy(lowrank.eigh(backend.asarray(A), rng=0, **options).eigenvalues)
        assert w[0] == pytest.approx(float(size), rel=1e-2)


def test_not_finite_and_not_checked(backend, dtype):
    for bad in (np.nan, np.inf):
        A = backend.asarray(np.full((12, 12), bad, dtype))
        with pytest.raises(ValueError, match="is not finite"):
            lowrank.eigh(A, 2, check_finite=False)


@pytest.mark.parametrize("multiply", ["matmat", "__matmul__"])
def test_a_product_is_enough(multiply):
    """No adjoint in any form."""
    A = hermitian(alternating(gallery.fast(60)), "complex128")
    kind = type("Known", (), {"shape": A.shape, "dtype": A.dtype, multiply: lambda _, X: A @ X})
    w, V = lowrank.eigh(kind(), rtol=1e-3, rng=0, check=True)
    assert norm(A - (V * w) @ adjoint(V), "fro") <= 1e-3 * norm(A, "fro")
    with pytest.raises(TypeError, match="without an adjoint"):
        lowrank.svd(kind(), 3)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_bound_is_that_of_the_vectors_returned(dtype):
    """Their signs are fixed before the error is measured: a phase rounds them once more."""
    eps = float(np.finfo(dtype).eps)
    for seed in range(500):
        V = np.linalg.qr(gaussian((2, 2), dtype, seed)).Q
        A = (V * np.asarray([1.0, 0.8], dtype)) @ adjoint(V)
        A = (A + adjoint(A)) / 2
        found = lowrank.eigh(A, rtol=40 * eps, rng=seed)
        W = found.eigenvectors.astype(np.clongdouble)
        lost = A.astype(np.clongdouble) - (W * found.eigenvalues) @ adjoint(W)
        assert float(np.sum(np.abs(lost) ** 2) ** 0.5) <= found.error_bound
