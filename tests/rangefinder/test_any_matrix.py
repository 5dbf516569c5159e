"""Matrices that break other libraries: the outcome of each is known, and asked for exactly."""

import numpy as np
import pytest
from conftest import in_double
from matrices import adjoint, defect, gaussian, norm, quietly, with_spectrum

import lowrank
from lowrank import Status


def tiny(dtype):
    return float(np.finfo(dtype).tiny)


# name: (matrix of a dtype, rank that a tolerance of 1e-3 needs)
MATRICES = {
    "zero": (lambda dtype: np.zeros((30, 20), dtype), 0),
    "ones": (lambda dtype: np.ones((30, 20), dtype), 1),
    "identity": (lambda dtype: np.eye(30, dtype=dtype), 30),
    "one entry": (lambda dtype: np.eye(30, 20, dtype=dtype) * (np.arange(20) == 13), 1),
    "one by one": (lambda dtype: np.full((1, 1), -3, dtype), 1),
    "row": (lambda dtype: gaussian((1, 40), dtype), 1),
    "column": (lambda dtype: gaussian((40, 1), dtype), 1),
    "no rows": (lambda dtype: np.zeros((0, 20), dtype), 0),
    "no columns": (lambda dtype: np.zeros((20, 0), dtype), 0),
    "repeated": (lambda dtype: with_spectrum(np.r_[[3.0] * 7, [1e-4] * 13], (30, 20), dtype), 7),
    "cliff": (lambda dtype: with_spectrum(np.r_[[1.0] * 10, [1e-12] * 80], (90, 90), dtype), 10),
    "zero columns first": (
        lambda dtype: np.hstack([np.zeros((90, 70), dtype), gaussian((90, 5), dtype)]),
        5,
    ),
    "zero rows first": (
        lambda dtype: np.vstack([np.zeros((70, 90), dtype), gaussian((5, 90), dtype)]),
        5,
    ),
    "equal columns": (lambda dtype: np.repeat(gaussian((90, 3), dtype), 30, axis=1), 3),
    "graded columns": (
        lambda dtype: np.diag(1e-6 ** np.minimum(np.arange(90), 6)).astype(dtype),
        1,
    ),
    "below the normal numbers": (
        lambda dtype: np.full((30, 20), tiny(dtype) / 64, dtype),
        1,
    ),
    "near the largest number": (
        lambda dtype: np.full((30, 20), float(np.finfo(dtype).max) / 1000, dtype),
        1,
    ),
    "sizes far apart": (
        lambda dtype: np.vstack([np.full((1, 20), 1e30, dtype), np.full((9, 20), 1e-30, dtype)]),
        1,
    ),
}


def built(backend, dtype, make):
    A = make(dtype)
    if A.size and 0 < np.max(np.abs(A)) < tiny(dtype):
        backend.skip_if_flushed(dtype)
    return A


every_matrix = pytest.mark.parametrize("name", MATRICES)
KINDS = ("fro", "spectral")


def exponent_of(A):
    """k for which 2^k A has entries of the size of one."""
    return -int(np.frexp(np.max(np.abs(A)))[1]) if A.any() else 0


def scaled(X, exponent):
    """``2^exponent X``, in two steps, since the power itself may leave the range of the dtype."""
    return X * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


@every_matrix
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_to_a_tolerance(backend, dtype, name, kind):
    make, rank = MATRICES[name]
    A = built(backend, dtype, make)
    U, S, Vh = found = lowrank.svd(backend.asarray(A), rtol=1e-3, norm=kind, rng=0)
    assert (found.rank, found.converged, found.status) == (rank, True, Status.CONVERGED)
    k = exponent_of(A)
    U, S, Vh = backend.numpy(U), scaled(backend.numpy(S), k), backend.numpy(Vh)
    wide = scaled(A.astype(U.dtype), k)
    eps = backend.eps(dtype)
    assert norm(wide - (U * S) @ Vh, kind) <= scaled(found.error_bound, k)
    assert found.error_bound <= found.tolerance
    assert scaled(found.tolerance, k) <= 1e-3 * norm(wide, kind) * (1 + 20 * eps)
    assert max(defect(U), defect(adjoint(Vh))) <= 100 * eps * max(rank, 1) ** 0.5
    assert np.all(np.diff(S) <= 0)
    assert np.all(S >= 0)


@every_matrix
@pytest.mark.parametrize("rank", [0, 1, 5, 1000])
def test_to_a_rank(backend, dtype, name, rank):
    A = built(backend, dtype, MATRICES[name][0])
    full = min(A.shape)
    U, S, Vh = found = lowrank.svd(backend.asarray(A), rank, rng=0)
    assert found.rank == min(rank, full)
    assert found.status is (Status.FULL_RANK if rank > full else Status.RANK_REACHED)
    assert found.converged is None
    k = exponent_of(A)
    U, S, Vh = backend.numpy(U), scaled(backend.numpy(S), k), backend.numpy(Vh)
    eps = backend.eps(dtype)
    # orthonormal also where the rank is more than the matrix has
    assert max(defect(U), defect(adjoint(Vh))) <= 100 * eps * max(found.rank, 1) ** 0.5
    wide = scaled(A.astype(U.dtype), k)
    s = np.linalg.svd(wide, compute_uv=False)
    best = norm(np.diag(s[found.rank :]), "fro")
    error = norm(wide - (U * S) @ Vh, "fro")
    quantum = scaled(tiny(dtype) * eps * A.size, k)
    assert error <= 1.01 * best + 100 * eps * norm(wide, "fro") + quantum
    assert error <= scaled(found.error_bound, k)
    assert np.all(s[: found.rank] + 1e3 * eps + quantum >= S)


@every_matrix
def test_without_a_tolerance_to_meet(backend, dtype, name):
    """rtol = 0 is out of reach of rounding, except where nothing is rounded."""
    A = built(backend, dtype, MATRICES[name][0])
    found = quietly(lowrank.range_finder, backend.asarray(A), rtol=0.0, rng=0)
    if not A.any():
        assert (found.rank, found.status) == (0, Status.CONVERGED)
        return
    full = found.rank == min(A.shape)
    assert found.status is Status.PRECISION_FLOOR or (full and found.status is Status.FULL_RANK)
    assert found.converged is False
    Q = backend.numpy(found.Q)
    k = exponent_of(A)
    wide = scaled(A.astype(Q.dtype), k)
    assert norm(wide - Q @ (adjoint(Q) @ wide), "fro") <= scaled(found.error_bound, k)
    quantum = tiny(dtype) * backend.eps(dtype) * A.size
    assert found.error_bound <= 1e3 * backend.eps(dtype) * found.norm_A + quantum


@pytest.mark.parametrize(
    ("certificate", "kind"),
    [("energy", "fro"), *((each, kind) for each in ("exact", "sampled") for kind in KINDS)],
)
def test_what_is_said_scales_with_the_matrix(backend, dtype, certificate, kind):
    """By powers of two: to the ends of the range, where products are scaled, and near rounding."""
    limits, Omega = np.finfo(dtype), backend.asarray(gaussian((30, 30), dtype, 5))
    fast, ones = with_spectrum(0.5 ** np.arange(30), (40, 30), dtype), np.ones((900, 30), dtype)

    def said(function, A, exponent, rtol):
        options = {"rtol": rtol, "norm": kind, "certificate": certificate, "test_matrix": Omega}
        there = backend.asarray(scaled(A, exponent).astype(dtype))
        found = quietly(function, there, **options)
        bounds = [found.error_bound, *(look.bound for look in found.history)]
        sizes = scaled(np.asarray([found.norm_A, found.tolerance, *bounds]), -exponent)
        return (found.rank, found.status, found.passes, found.products), sizes

    for case, exponents in (
        ((lowrank.svd, fast), (limits.minexp + 12, limits.maxexp - 20)),
        ((lowrank.range_finder, ones), (20,)),
    ):
        rtol = 1e-2 if case[1] is fast else 60 * float(limits.eps)
        usual, sizes = said(*case, 0, rtol)
        for exponent in exponents:
            if exponent < 0:
                backend.skip_if_flushed(dtype)
            facts, found = said(*case, exponent, rtol)
            assert facts == usual
            assert found == pytest.approx(sizes, rel=1e-3, abs=float(10 * limits.eps * sizes[0]))


@pytest.mark.parametrize("rtol", [1.0, 1.5, 1e300])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_a_tolerance_above_one(backend, dtype, rtol, kind):
    A = gaussian((30, 20), dtype)
    found = lowrank.svd(backend.asarray(A), rtol=rtol, norm=kind, rng=0)
    assert found.converged
    assert norm(A, kind) <= found.error_bound or found.rank > 0
    assert found.rank <= 1


@pytest.mark.parametrize("size", [1e-310, 5e-324, 1.0, 1e300])
def test_nothing_found_means_that_the_error_is_the_norm(size):
    A = np.full((30, 20), size)
    found = lowrank.svd(A, rtol=2.0, rng=0)
    assert found.rank == 0
    assert found.error == found.norm_A == pytest.approx(size * 600**0.5, rel=0.05)
    assert found.norm_A <= found.error_bound <= found.tolerance


@in_double
@pytest.mark.parametrize("size", [1e-300, 1.5e308])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("with_b", [False, True])
def test_residual_norm_of_any_size(backend, size, kind, with_b):
    A = gaussian((30, 20), "float64")
    A /= np.max(np.abs(A)) * 30
    Q = np.linalg.qr(A[:, :3]).Q
    B = adjoint(Q) @ A
    options = {"norm": kind, "rng": 0}
    unit = lowrank.residual_norm(backend.asarray(A), backend.asarray(Q), **options)
    arrays = [backend.asarray(X) for X in ((A * size, Q, B * size) if with_b else (A * size, Q))]
    found = lowrank.residual_norm(*arrays, **options)
    assert found.value / size == pytest.approx(unit.value)
    assert found.upper_bound / size == pytest.approx(unit.upper_bound)


@pytest.mark.parametrize("shape", [(3, 500), (500, 3)])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_no_more_columns_than_the_matrix_has(shape, kind):
    """A sample of 64 columns would be larger than the matrix itself."""
    found = lowrank.range_finder(gaussian(shape, "float64"), rtol=1e-9, norm=kind, rng=0)
    assert found.converged
    assert found.rank == 3
    assert kind == "spectral" or found.products <= 3 + 64 * (shape[0] > 3)


@pytest.mark.parametrize("factorize", [lowrank.qb, lowrank.svd])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_a_tolerance_that_is_an_earlier_bound(factorize, kind):
    """Where what rounding leaves of the tolerance is nothing, or less."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        A = rng.standard_normal((int(rng.integers(5, 60)), int(rng.integers(5, 60))))
        first = quietly(factorize, A, rtol=0.0, norm=kind, rng=seed)
        second = quietly(factorize, A, atol=first.error_bound, norm=kind, rng=seed)
        left, right = tuple(second) if factorize is lowrank.qb else (second.U * second.S, second.Vh)
        assert norm(A - left @ right, kind) <= second.error_bound


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_reach_after_all_columns(backend, dtype, kind):
    A = gaussian((3, 9), dtype)
    finder = lowrank.RangeFinder(backend.asarray(A), norm=kind, rng=0)
    found = finder.extend(3).reach(atol=0.1).result()
    assert found.converged
    assert found.tolerance == 0.1
    assert found.error_bound <= 1e3 * backend.eps(dtype) * norm(A, kind)


@pytest.mark.parametrize("call", [lowrank.svd, lowrank.qb, lowrank.range_finder])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_a_test_matrix_without_columns(call, kind):
    """Of a small matrix the SVD needs none."""
    options = {"atol": 1.0, "norm": kind, "test_matrix": np.zeros((300, 0))}
    for certificate in ("exact", "energy", "sampled"):
        found = quietly(call, np.eye(300), certificate=certificate, **options)
        assert (found.rank, found.status, found.converged) == (0, Status.STOPPED, False)
        assert found.tolerance == 1.0


def test_residual_norm_of_complex_numbers_below_the_normal_ones():
    A = np.full((5, 4), 1e-310 * (1 + 1j))
    for kind in ("fro", "spectral"):
        found = lowrank.residual_norm(A, np.zeros((5, 1), complex), norm=kind, rng=0)
        assert found.upper_bound >= 6.3e-310


@pytest.fixture
def flushing():
    """A processor that takes numbers below the normal ones for zero, as a program may ask for."""
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    yield lambda: torch.set_flush_denormal(False)
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("large", [0.0, 1e-300])
def test_bounds_hold_what_a_processor_flushes_to_zero(flushing, kind, large):
    """The norm of what is lost is not in any sum: only the shape bounds it."""
    A = np.full((40, 30), 1.5e-308)
    A[0, 0] = large
    found = [
        quietly(function, A, rtol=rtol, norm=kind, certificate=certificate, rng=0)
        for function in (lowrank.range_finder, lowrank.svd)
        for certificate in ("exact", "sampled")
        for rtol in (1.1, 1e-3)
    ]
    estimate = lowrank.residual_norm(A, np.zeros((40, 1)), norm=kind, rng=0)
    flushing()
    lost = norm(A * 2.0**1000 * (large != A), kind)
    assert all(each.error_bound * 2.0**1000 >= lost for each in found)
    assert estimate.upper_bound * 2.0**1000 >= lost


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("certificate", ["exact", "energy"])
def test_a_cur_decomposition_says_if_its_middle_factor_underflows(flushing, dtype, certificate):
    """U is of the size of ``1/A``."""
    largest = float(np.finfo(dtype).max)
    A = with_spectrum(1.0 / np.arange(1, 31), (60, 30), "float64")
    A = (A / np.linalg.norm(A) * (0.9 * largest)).astype(dtype)
    found = quietly(lowrank.cur, A, rtol=0.5, certificate=certificate, rng=0)
    flushing()
    tiny = float(np.finfo(dtype).smallest_normal)
    C, U, R = (X.astype(np.longdouble) for X in (found.C, found.U, found.R))
    U = np.where(np.abs(U) < tiny, 0, U)  # as the processor takes it
    true = float(norm((A - C @ U @ R) / largest, "fro"))
    assert true <= found.error_bound / largest
    assert found.converged is False


def test_rounding_does_not_hide_in_a_single_sample():
    A = np.asarray([[1.0, 1e-14]])
    for seed in range(2000):
        found = lowrank.residual_norm(
            A, np.eye(1), np.asarray([[1.0, 0.0]]), samples=1, rng=seed, failure_probability=1e-9
        )
        assert found.upper_bound >= 1e-14


def test_meta_tensors_are_refused():
    torch = pytest.importorskip("torch")
    A = torch.empty(4, 3, device="meta")
    for call in (
        lambda: lowrank.svd(A, 2),
        lambda: lowrank.qr(A),
        lambda: lowrank.range_finder(A, rtol=0.1),
        lambda: lowrank.residual_norm(torch.eye(4), A),
    ):
        with pytest.raises(ValueError, match=r"is on the meta device, where arrays have a shape"):
            call()


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support:UserWarning")
def test_sparse_tensors_of_torch(layout, dtype):
    torch = pytest.importorskip("torch")
    A = gaussian((60, 40), dtype) * 0.7 ** np.arange(60)[:, None]
    A[np.random.default_rng(0).random(A.shape) < 0.8] = 0
    A = A.astype(dtype)
    given = getattr(torch.asarray(A), f"to_sparse_{layout}")()
    U, S, Vh = found = lowrank.svd(given, rtol=1e-3, rng=0)
    assert found.converged
    assert U.layout is torch.strided
    wide = A.astype("complex128")
    assert norm(wide - (U * S).numpy() @ Vh.resolve_conj().numpy(), "fro") <= found.error_bound
    assert found.norm_A == pytest.approx(norm(wide, "fro"))
    assert lowrank.range_finder(given, 3, side="right", rng=0).Q.shape == (40, 3)
    with pytest.raises(ValueError, match="must not have dense dimensions"):
        lowrank.svd(torch.asarray(A).to_sparse(1), 3)
    estimate = lowrank.residual_norm(given, U, rng=0)
    truth = norm(wide - U.numpy() @ (adjoint(U.numpy()) @ wide), "fro")
    assert truth <= estimate.upper_bound <= 4 * truth
