from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import ConvergenceWarning, Status, gallery


@pytest.fixture(autouse=True)
def growing(monkeypatch):
    """No SVD of A itself, which matrices as small as these are given at once."""
    monkeypatch.setattr("lowrank._rangefinder.growth.svd_is_cheaper", lambda *_, **__: False)


TOLERANCES = {
    "float32": (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "float64": (1e-1, 1e-3, 1e-6, 1e-9, 1e-12, 1e-13, 1e-15),
}


def tolerances(dtype):
    return TOLERANCES["float32" if dtype in ("float32", "complex64") else "float64"]


def check_basis(Q, rows, rank, eps):
    assert Q.shape == (rows, rank)
    assert defect(Q) <= 100 * eps * max(rank, 1) ** 0.5


# -- the promise: converged is never false, the bound holds, the basis is orthonormal -----------


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 150),
    n=st.integers(1, 150),
    position=st.integers(0, 6),
    power_iterations=st.integers(0, 2),
    block_size=st.sampled_from([5, 16, 64]),
    side=st.sampled_from(["left", "right"]),
    kind=st.sampled_from(["fro", "spectral"]),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(
    backend, dtype, spectrum, m, n, position, power_iterations, block_size, side, kind, seed
):
    """With a failure probability that matrices.py accounts for."""
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    rtol = tolerances(dtype)[position % len(tolerances(dtype))]
    found = quietly(
        lowrank.range_finder,
        backend.asarray(A),
        rtol=rtol,
        norm=kind,
        power_iterations=power_iterations,
        block_size=block_size,
        side=side,
        rng=seed,
        failure_probability=DRAWN,
    )
    Q = backend.numpy(found.Q)
    A = A.astype(Q.dtype)
    if side == "right":
        A = adjoint(A)
    check_basis(Q, A.shape[0], found.rank, backend.eps(dtype))
    true = norm(residual(A, Q), kind)
    assert true <= found.error_bound
    assert found.converged == (found.error_bound <= found.tolerance)
    assert (found.status is Status.CONVERGED) == found.converged
    if found.converged:
        assert true <= rtol * norm(A, kind)
    else:
        # only rounding stands between a full basis and its tolerance
        assert found.status in (Status.PRECISION_FLOOR, Status.FULL_RANK)
        assert rtol < 1000 * backend.eps(dtype)


@pytest.mark.parametrize("spectrum", gallery.SPECTRA)
def test_every_spectrum_to_every_tolerance(backend, dtype, spectrum):
    """Tolerances down to 1e-13 (float64) and 1e-5 (float32) are met wherever the rank allows."""
    A = with_spectrum(gallery.SPECTRA[spectrum](120), (150, 120), dtype)
    there, wide = backend.asarray(A), A.astype(np.result_type(A, np.float64))
    for rtol in tolerances(dtype)[:-1]:
        found = quietly(lowrank.range_finder, there, rtol=rtol, block_size=32, rng=5)
        Q = backend.numpy(found.Q)
        check_basis(Q, 150, found.rank, backend.eps(dtype))
        true = np.linalg.norm(residual(wide, Q))
        assert true <= found.error_bound
        if found.rank < 120:
            assert found.converged
            assert true <= rtol * np.linalg.norm(wide)


def test_tolerance_below_the_floor_says_so(backend, dtype):
    A = with_spectrum(gallery.fast(150), (150, 150), dtype)
    with pytest.warns(ConvergenceWarning, match=r"was not certified.*PRECISION_FLOOR"):
        found = lowrank.range_finder(backend.asarray(A), rtol=0.0, rng=1)
    assert found.status is Status.PRECISION_FLOOR
    assert found.converged is False
    true = np.linalg.norm(residual(A.astype(np.result_type(A, np.float64)), backend.numpy(found.Q)))
    assert true <= found.error_bound <= 200 * backend.eps(dtype) * np.linalg.norm(A)


def test_tolerance_above_the_floor_is_met():
    """A bound of more than twice what rounding explains, which is 29 eps here, is no noise."""
    eps = np.finfo(float).eps
    A = with_spectrum(np.repeat([1.0, 17 * eps], [30, 80]), (200, 150), "float64")
    found = lowrank.range_finder(A, rtol=88 * eps, certificate="sampled", rng=0)
    assert found.converged
    assert [look.rank for look in found.history] == [0, 64, 128]


@pytest.mark.parametrize(("block_size", "height"), [(8, 80), (24, 20)])
def test_an_error_that_falls_is_no_noise_yet(backend, dtype, block_size, height):
    """Growth goes on although rounding is most of the bound, as long as blocks lower the error."""
    eps = backend.eps(dtype)
    tail = height * eps * 20**0.5 * 0.25 ** (np.arange(100) / 8)
    A = with_spectrum(np.r_[np.ones(20), tail], (150, 120), dtype)
    options = {"rtol": 42 * eps, "block_size": block_size, "power_iterations": 1, "rng": 0}
    found = quietly(lowrank.range_finder, backend.asarray(A), **options)
    assert found.error <= 0.25 * found.error_bound


def test_what_is_left_is_told_from_rounding(backend, dtype):
    """A bound near rounding grows by what reflectors lose, and not by the residual once more."""
    eps = backend.eps(dtype)
    A = with_spectrum(np.repeat([1.0, 15 * eps], [20, 130]), (200, 150), dtype)
    options = {"rtol": 180 * eps, "certificate": "sampled", "rng": 0}
    found = quietly(lowrank.range_finder, backend.asarray(A), **options)
    assert found.converged
    assert [look.rank for look in found.history] == [0, 32 if np.dtype(dtype).kind == "c" else 64]
    Q = backend.numpy(found.Q)
    assert norm(residual(A.astype(Q.dtype), Q), "fro") <= found.error_bound


def test_a_spectral_bound_is_at_most_the_norm_that_is_known(backend, dtype):
    """However much the safety factor of a sample is."""
    A = with_spectrum(gallery.slow(80), (90, 80), dtype)
    options = {"norm": "spectral", "power_iterations": 0, "failure_probability": 1e-200}
    found = quietly(lowrank.range_finder, backend.asarray(A), 20, rtol=1e-3, rng=0, **options)
    Q = backend.numpy(found.Q)
    E = residual(A.astype(Q.dtype), Q)
    assert norm(E, "spectral") <= found.error_bound <= norm(E, "fro") * (1 + 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_error_is_unbiased(dtype):
    """The mean of error² over seeds is the mean of the true squared error of the same bases."""
    A = with_spectrum(gallery.slow(120), (120, 120), dtype)
    estimates, truths = [], []
    for seed in range(60):
        found = quietly(lowrank.range_finder, A, 64, rtol=1e-6, rng=seed)
        estimates.append(found.error**2)
        truths.append(np.linalg.norm(residual(A, found.Q)) ** 2)
    # A relative standard deviation of √(2/64) a look at most, √60 less for the mean.
    assert abs(np.mean(estimates) / np.mean(truths) - 1) < 5 * (2 / 32 / 60) ** 0.5


# -- power iterations ---------------------------------------------------------------------------


def test_power_iterations_are_deflated(backend, dtype):
    """Without deflation the error stalls near eps^(1/3), even at full rank."""
    A = with_spectrum(gallery.fast(300), (300, 300), dtype)
    rtol = tolerances(dtype)[-2]
    found = lowrank.range_finder(backend.asarray(A), rtol=rtol, power_iterations=1, rng=2)
    assert found.converged
    assert found.rank < 300
    Q = backend.numpy(found.Q)
    assert np.linalg.norm(residual(A.astype(Q.dtype), Q)) <= rtol * np.linalg.norm(A)


def test_power_iterations_do_not_overflow(backend, dtype):
    A = with_spectrum(np.geomspace(1, 1e-6, 40), (50, 40), dtype) * np.asarray(1e15, dtype)
    found = lowrank.range_finder(backend.asarray(A), 10, power_iterations=10, rng=2)
    Q = backend.numpy(found.Q)
    check_basis(Q, 50, 10, backend.eps(dtype))
    best = np.linalg.svd(A.astype(Q.dtype), compute_uv=False)[10:]
    assert np.linalg.norm(residual(A.astype(Q.dtype), Q)) <= 1.01 * np.linalg.norm(best)


# -- stop rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1, 7, 64, 65])
def test_fixed_rank_has_exactly_that_many_columns(backend, dtype, rank):
    for A in (gaussian((90, 70), dtype), np.zeros((90, 70), dtype), np.ones((70, 90), dtype)):
        found = lowrank.range_finder(backend.asarray(A), rank, rng=0)
        check_basis(backend.numpy(found.Q), A.shape[0], rank, backend.eps(dtype))
        assert found.status is Status.RANK_REACHED
        assert (found.converged, found.error, found.error_bound) == (None, None, None)
        assert found.history == ()


def test_rank_above_full_is_clamped(backend):
    A = gaussian((9, 5), "float32")
    found = lowrank.range_finder(backend.asarray(A), 100, rng=0)
    assert found.rank == 5
    assert found.status is Status.FULL_RANK
    assert lowrank.range_finder(backend.asarray(A), 5, rng=0).status is Status.RANK_REACHED


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("certificate", ["exact", "energy"])
def test_panels_of_the_first_rows(backend, dtype, sign, certificate):
    """Their top blocks are as large as they can be, and minus the identity of one sign."""
    A, Omega = sign * np.eye(60, 50, dtype=dtype), np.eye(50, dtype=dtype)
    given = {"test_matrix": backend.asarray(Omega), "certificate": certificate}
    options = {"rtol": 1e-3, "block_size": 8, "power_iterations": 0}
    found = quietly(lowrank.range_finder, backend.asarray(A), 40, **options, **given)
    Q = backend.numpy(found.Q)
    check_basis(Q, 60, 40, backend.eps(dtype))
    assert norm(residual(A.astype(Q.dtype), Q), "fro") <= found.error_bound
    assert found.error == pytest.approx(10**0.5, rel=1e-3)


def test_cap_ends_the_work_after_one_more_look(backend, dtype):
    A = backend.asarray(with_spectrum(gallery.slower(200), (200, 200), dtype))
    with pytest.warns(ConvergenceWarning, match=r"RANK_REACHED"):
        found = lowrank.range_finder(A, 20, rtol=1e-3, rng=0)
    assert (found.rank, found.status, found.converged) == (20, Status.RANK_REACHED, False)
    assert found.history[-1].rank == 20
    Q, wide = backend.numpy(found.Q), backend.numpy(A)
    assert np.linalg.norm(residual(wide, Q)) <= found.error_bound
    # at a cap that is enough, the same look certifies it
    assert lowrank.range_finder(A, 20, rtol=0.9, rng=0).status is Status.CONVERGED


def test_the_looser_tolerance_ends_the_work(backend):
    A = backend.asarray(with_spectrum(gallery.fast(150), (150, 150), "float32"))
    size = np.linalg.norm(backend.numpy(A))
    for rtol, atol in ((1e-1, 1e-4 * size), (1e-4, 1e-1 * size)):
        found = lowrank.range_finder(A, rtol=rtol, atol=atol, rng=0)
        assert found.tolerance == pytest.approx(1e-1 * size, rel=1e-5)
        assert found.norm_A == pytest.approx(size, rel=1e-5)
        assert found.error_bound <= found.tolerance


def test_a_tolerance_of_the_norm_needs_no_basis(backend, dtype):
    A = backend.asarray(gaussian((30, 20), dtype))
    found = lowrank.range_finder(A, rtol=1.01)
    assert (found.rank, found.status, found.products) == (0, Status.CONVERGED, 0)
    assert found.error_bound == pytest.approx(np.linalg.norm(backend.numpy(A)), rel=1e-5)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (5, 3)], ids=str)
def test_zero_and_empty_matrices_need_no_basis(backend, dtype, shape, kind):
    A = backend.asarray(np.zeros(shape, dtype))
    found = lowrank.range_finder(A, rtol=1e-3, norm=kind)
    assert (found.rank, found.status) == (0, Status.CONVERGED)
    assert (found.error, found.error_bound) == (0.0, 0.0)
    assert tuple(found.Q.shape) == (shape[0], 0)


@pytest.mark.parametrize("rank", [12, 64, 70])
def test_exact_rank_is_found(backend, dtype, rank):
    """Rank below, at and above the edge of a look: the error falls to rounding just there."""
    A = with_spectrum(gallery.low_rank(150, rank), (150, 160)[::-1], dtype)
    options = {"rtol": tolerances(dtype)[-2], "block_size": 32, "rng": 0}
    found = lowrank.range_finder(backend.asarray(A), **options)
    assert found.converged
    assert rank <= found.rank <= 128


def test_no_stop_rule(backend):
    A = backend.asarray(gaussian((4, 3), "float32"))
    with pytest.raises(ValueError, match=r"no stopping criterion: give `rank`, `rtol` or `atol`"):
        lowrank.range_finder(A)
    with pytest.raises(ValueError, match=r"a tolerance is needed: give `rtol` .* or `atol`"):
        lowrank.RangeFinder(A).reach(rank=2)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_bad_tolerance(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number that is not negative"):
        lowrank.range_finder(gaussian((4, 3), "float64"), **{name: value})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": -1}, ValueError, "`rank` must be at least 0, got -1"),
        ({"rank": 1.5}, TypeError, "`rank` must be an integer, got 1.5"),
        ({"rank": 1, "norm": "nuclear"}, ValueError, "`norm` must be 'fro' or 'spectral'"),
        ({"rank": 1, "side": "top"}, ValueError, "`side` must be 'left'"),
        ({"rank": 1, "power_iterations": -1}, ValueError, "`power_iterations` must be at least 0"),
        ({"rank": 1, "block_size": 0}, ValueError, "`block_size` must be at least 1"),
        ({"rank": 1, "failure_probability": 0}, ValueError, "must lie between 0 and 1, got 0"),
        ({"rank": 1, "rng": 1.5}, TypeError, None),
        ({"rank": 1, "test_matrix": 3}, TypeError, "`test_matrix` must be an array or a callable"),
    ],
    ids=str,
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        lowrank.range_finder(gaussian((4, 3), "float64"), **options)


def test_stacks_need_a_fixed_rank(backend):
    A = backend.asarray(gaussian((2, 4, 3), "float32"))
    with pytest.raises(ValueError, match=r"a tolerance needs a single matrix"):
        lowrank.range_finder(A, rtol=0.1)


# -- test matrices, seeds, sides, stacks ---------------------------------------------------------


def test_same_test_matrix_same_subspace_on_all_libraries(backend, dtype):
    A = with_spectrum(gallery.fast(60), (80, 60), dtype)
    asked = []

    def draw(shape, dtype_there, device):
        asked.append(shape)
        assert device == backend.device
        return backend.asarray(gaussian(shape, dtype, seed=3))

    Q = backend.numpy(lowrank.range_finder(backend.asarray(A), 10, test_matrix=draw).Q)
    assert asked == [(60, 10)]
    reference, _ = np.linalg.qr(A @ gaussian((60, 10), dtype, seed=3))
    reference = reference.astype(Q.dtype)
    error = Q @ adjoint(Q) - reference @ adjoint(reference)
    assert np.linalg.norm(error) < 1e4 * backend.eps(dtype)


def test_an_exhausted_test_matrix_stops(backend):
    A = backend.asarray(with_spectrum(gallery.slower(200), (200, 200), "float32"))
    Omega = backend.asarray(gaussian((200, 100), "float32"))
    for certificate in ("exact", "energy", "sampled"):
        with pytest.warns(ConvergenceWarning, match=r"STOPPED"):
            found = lowrank.range_finder(A, rtol=3e-2, test_matrix=Omega, certificate=certificate)
        # all of its columns join the basis, the last ones after a look that they told
        assert (found.rank, found.status, found.converged) == (100, Status.STOPPED, False)
    with pytest.raises(ValueError, match=r"`test_matrix` needs 20 more columns"):
        lowrank.range_finder(A, 120, test_matrix=Omega)


@pytest.mark.parametrize(
    ("shape", "dtype_given", "error"),
    [((7, 3), "float32", ValueError), ((8, 3), "complex64", TypeError)],
    ids=str,
)
def test_unfit_test_matrices(backend, shape, dtype_given, error):
    A = backend.asarray(gaussian((9, 8), "float32"))
    given_array = backend.asarray(gaussian(shape, dtype_given))
    with pytest.raises(error, match=r"test.matrix"):
        lowrank.range_finder(A, 2, test_matrix=given_array)
    with pytest.raises(error, match=r"test.matrix"):
        lowrank.range_finder(A, 3, test_matrix=lambda *_: given_array)


def test_seeds(backend, dtype):
    A = backend.asarray(gaussian((40, 30), dtype))

    def basis(rng):
        return backend.numpy(lowrank.range_finder(A, 5, rng=rng).Q)

    assert np.array_equal(basis(1), basis(1))
    assert not np.array_equal(basis(1), basis(2))
    assert not np.array_equal(basis(None), basis(None))
    generator = np.random.default_rng(1)
    assert not np.array_equal(basis(generator), basis(generator))
    np.random.seed(0)  # noqa: NPY002 - global state must have no effect
    first = basis(None)
    np.random.seed(0)  # noqa: NPY002
    assert not np.array_equal(first, basis(None))


@pytest.mark.parametrize("shape", [(70, 50), (50, 70)], ids=str)
def test_corange_is_the_range_of_the_adjoint(backend, dtype, shape):
    A = gaussian(shape, dtype)
    Omega = backend.asarray(gaussian((shape[0], 6), dtype, seed=1))
    right = lowrank.range_finder(
        backend.asarray(A), 6, side="right", test_matrix=Omega, power_iterations=1
    )
    left = lowrank.range_finder(
        backend.asarray(adjoint(A)), 6, test_matrix=Omega, power_iterations=1
    )
    assert right.side == "right"
    Q, P = backend.numpy(right.Q), backend.numpy(left.Q)
    check_basis(Q, shape[1], 6, backend.eps(dtype))
    assert np.linalg.norm(Q @ adjoint(Q) - P @ adjoint(P)) < 1e3 * backend.eps(dtype)


def test_members_of_a_stack_have_their_own_sketches(backend, dtype):
    A = with_spectrum(gallery.fast(40), (50, 40), dtype)
    stack = np.stack([A, A, 2 * A])
    found = lowrank.range_finder(backend.asarray(stack), 8, rng=0, power_iterations=1)
    Q = backend.numpy(found.Q)
    assert Q.shape == (3, 50, 8)
    for member in range(3):
        check_basis(Q[member], 50, 8, backend.eps(dtype))
        assert norm(residual(A.astype(Q.dtype), Q[member]), "spectral") < 10 * gallery.fast(40)[8]
    assert np.linalg.norm(Q[0] @ adjoint(Q[0]) - Q[1] @ adjoint(Q[1])) > 1e-4


# -- the object that can be asked again -----------------------------------------------------------


def test_small_steps_equal_one_large_one(backend, dtype):
    A = backend.asarray(with_spectrum(gallery.medium(90), (100, 90), dtype))
    Omega = gaussian((90, 30), dtype)
    finder = lowrank.RangeFinder(A, test_matrix=backend.asarray(Omega), block_size=4)
    for columns in (1, 4, 0, 9, 16):
        finder.extend(columns)
    assert finder.rank == 30
    whole = lowrank.range_finder(A, 30, test_matrix=backend.asarray(Omega))
    Q, P = backend.numpy(finder.Q), backend.numpy(whole.Q)
    check_basis(Q, 100, 30, backend.eps(dtype))
    assert np.linalg.norm(Q @ adjoint(Q) - P @ adjoint(P)) < 1e4 * backend.eps(dtype)


@pytest.mark.parametrize("certificate", ["exact", "energy", "sampled"])
def test_reach_after_reach_reuses_all_work(backend, dtype, certificate):
    A = with_spectrum(gallery.slow(300), (300, 300), dtype)
    options = {"certificate": certificate, "block_size": 32}
    finder = lowrank.RangeFinder(backend.asarray(A), rng=0, **options)
    loose = finder.reach(rtol=1e-1).result()
    products = loose.products
    assert loose.converged
    for met in ({"rtol": 2e-1}, {"atol": loose.error_bound}):
        again = finder.reach(**met).result()
        assert (again.products, again.rank, again.converged) == (products, loose.rank, True)
    tight = finder.reach(rtol=1e-3).result()
    assert tight.converged
    assert tight.rank > loose.rank
    P, Q = backend.numpy(loose.Q), backend.numpy(tight.Q)
    check_basis(Q, 300, tight.rank, backend.eps(dtype))
    assert norm(residual(P, Q), "fro") <= 200 * backend.eps(dtype)  # the basis only grows
    assert np.linalg.norm(residual(A.astype(Q.dtype), Q)) <= 1e-3 * np.linalg.norm(A)
    if certificate == "sampled":
        # every column multiplied is in the basis, or in the one look that ended the work
        width = 32 if np.dtype(dtype).kind == "c" else 64
        assert tight.products == tight.rank + width + 1  # and one to salt the seed


def test_all_looks_share_one_failure_probability():
    """The bound of the j-th look is made with δ/(j(j+1)), whichever call it belongs to."""
    A = with_spectrum(gallery.slower(300), (300, 300), "float64")
    finder = lowrank.RangeFinder(A, rng=0, failure_probability=1e-3, certificate="sampled")
    for _ in range(3):
        quietly(finder.reach, rtol=1e-9, rank=finder.rank + 64)
    history = finder.result().history
    assert [look.rank for look in history] == [0, 64, 128, 192]
    floor = 3 * np.finfo(float).eps * np.linalg.norm(A)
    for j, look in enumerate(history[1:], start=1):
        factor = (look.bound - floor * (look.rank + 32) ** 0.5) / look.estimate
        x = factor**-2
        assert (x * np.exp(1 - x)) ** 32 == pytest.approx(1e-3 / (j * (j + 1)), rel=1e-6)


def test_extend_then_reach(backend, dtype):
    A = with_spectrum(gallery.fast(100), (100, 110), dtype)
    finder = lowrank.RangeFinder(backend.asarray(A), rng=0).extend(70)
    assert finder.result().converged is None
    found = finder.reach(rtol=1e-3).result()
    assert found.converged
    assert found.rank == 70
    Q = backend.numpy(found.Q)
    assert np.linalg.norm(residual(A.astype(Q.dtype), Q)) <= found.error_bound


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("certificate", ["exact", "energy", "sampled"])
def test_reach_to_a_cap_then_extend_then_reach(backend, dtype, kind, certificate):
    A = with_spectrum(gallery.slower(150), (150, 160), dtype)
    finder = lowrank.RangeFinder(backend.asarray(A), norm=kind, rng=0, certificate=certificate)
    quietly(finder.reach, rtol=1e-3, rank=10)
    assert finder.rank == 10
    assert finder.extend(20).rank == 30
    found = quietly(finder.reach, rtol=1e-3, rank=40).result()
    assert (found.rank, found.status) == (40, Status.RANK_REACHED)
    Q = backend.numpy(found.Q)
    check_basis(Q, 150, 40, backend.eps(dtype))
    assert norm(residual(A.astype(Q.dtype), Q), kind) <= found.error_bound


class InterruptError(Exception):
    pass


def test_callback(backend, dtype):
    A = backend.asarray(with_spectrum(gallery.slower(250), (250, 250), dtype))
    looks = []
    found = quietly(lowrank.range_finder, A, rtol=1e-2, rng=0, callback=looks.append)
    assert tuple(looks) == found.history[1:]  # the exact one at rank 0 costs no look
    assert [look.rank for look in looks] == sorted(look.rank for look in looks)

    def stop(look):
        if look.rank >= 32:
            raise StopIteration

    with pytest.warns(ConvergenceWarning, match=r"STOPPED"):
        found = lowrank.range_finder(A, rtol=1e-6, block_size=32, rng=0, callback=stop)
    assert (found.status, found.rank, found.converged) == (Status.STOPPED, 32, False)


@pytest.mark.parametrize("certificate", ["exact", "energy", "sampled"])
def test_no_look_is_lost_next_to_rounding(backend, dtype, certificate):
    """Where a bound may grow after its look was told."""
    A, looks = backend.asarray(np.ones((900, 30), dtype)), []
    options = {"certificate": certificate, "block_size": 8, "callback": looks.append, "rng": 0}
    found = quietly(lowrank.range_finder, A, rtol=60 * backend.eps(dtype), **options)
    exact, *told = found.history
    assert exact.rank == 0
    assert exact.bound == pytest.approx(27_000**0.5, rel=1e-5)
    assert [look.rank for look in told] == [look.rank for look in looks]
    assert all(late.bound >= first.bound for late, first in zip(told, looks, strict=True))
    assert (found.rank, found.error, found.error_bound) == told[-1]


def test_an_exception_leaves_the_object_usable(backend, dtype):
    A = with_spectrum(gallery.fast(200), (200, 200), dtype)
    seen = []

    def interrupt(look):
        seen.append(look)
        if len(seen) == 1:
            raise InterruptError

    finder = lowrank.RangeFinder(backend.asarray(A), rng=0, callback=interrupt)
    with pytest.raises(InterruptError):
        finder.reach(rtol=1e-5)
    assert finder.result().history[-1] == seen[0]  # it has spent its part of δ
    found = finder.reach(rtol=1e-5).result()
    assert found.converged
    Q = backend.numpy(found.Q)
    assert np.linalg.norm(residual(A.astype(Q.dtype), Q)) <= 1e-5 * np.linalg.norm(A)


def test_repr():
    finder = lowrank.RangeFinder(gaussian((5, 4), "float64"), rng=0).extend(2)
    assert repr(finder) == "RangeFinder(5×4, rank=2, norm='fro', RANK_REACHED)"


# -- input that is not finite, or at the edge of the dtype ----------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options", [{"rank": 3}, {"rtol": 1e-2}, {"rtol": 1e-2, "norm": "spectral"}]
)
def test_not_finite(backend, dtype, bad, options):
    A = gaussian((20, 15), dtype)
    A[17, 11] = bad * (1j if np.dtype(dtype).kind == "c" else 1)
    with pytest.raises(ValueError, match=r"`A` holds NaN or Inf"):
        lowrank.range_finder(backend.asarray(A), rng=0, **options)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("shape", "where"), [((20, 15), (0, 3)), ((4, 4), (3, 2))])
def test_what_a_qr_hides_is_not_finite(backend, bad, shape, where):
    """LAPACK's takes a column for one of the unit matrix where all below its diagonal is zero."""
    A = np.zeros(shape, "float32")
    A[where] = bad
    for rank in (1, 4):
        with pytest.raises(ValueError, match=r"`A` holds NaN or Inf"):
            lowrank.range_finder(backend.asarray(A), rank, rng=0)


@pytest.mark.parametrize(
    "options", [{"rank": 5}, {"rtol": 1e-3}, {"rtol": 1e-3, "norm": "spectral"}]
)
@pytest.mark.parametrize("edge", ["large", "small"])
def test_entries_at_the_edge_of_the_dtype(backend, dtype, options, edge):
    """1e±300 in float64 and 1e±37 in float32."""
    if edge == "small":
        backend.skip_if_flushed(dtype)
    exponent = 37 if dtype in ("float32", "complex64") else 300
    size = 10.0 ** (exponent if edge == "large" else -exponent)
    A = with_spectrum(gallery.low_rank(60, 5), (70, 60), dtype)
    A = A / np.max(np.abs(A)) * np.asarray(size, dtype)
    found = lowrank.range_finder(backend.asarray(A), rng=0, **options)
    Q = backend.numpy(found.Q)
    check_basis(Q, 70, found.rank, backend.eps(dtype))
    unit = A.astype(Q.dtype) / size
    limit = 1e-3 if "rtol" in options else 1e-5
    assert np.linalg.norm(residual(unit, Q)) <= limit * np.linalg.norm(unit)
    if "rtol" in options:
        assert found.converged
        assert norm(residual(unit, Q), options.get("norm", "fro")) <= found.error_bound / size


def test_extend_then_reach_at_the_edge_of_the_dtype(backend):
    A = with_spectrum(gallery.fast(100), (100, 100), "float32")
    A[0] = 3e37
    found = lowrank.RangeFinder(backend.asarray(A), rng=0).extend(20).reach(rtol=1e-2).result()
    assert found.converged
    unit = A.astype("float64") / 1e37
    assert np.linalg.norm(residual(unit, backend.numpy(found.Q))) <= found.error_bound / 1e37


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_in_a_stack(backend, bad):
    A = np.ones((2, 20, 15), "float32")
    A[1, 3, 3] = bad
    with pytest.raises(ValueError, match=r"`A` holds NaN or Inf"):
        lowrank.range_finder(backend.asarray(A), 3, rng=0)


def test_large_entries_in_a_stack(backend):
    A = np.full((2, 20, 15), 3e37, "float32")
    Q = backend.numpy(lowrank.range_finder(backend.asarray(A), 2, rng=0).Q)
    for member in Q:
        check_basis(member, 20, 2, backend.eps("float32"))
        assert np.linalg.norm(residual(np.ones((20, 15)), member)) < 1e-4


def test_a_test_matrix_that_is_not_finite(backend):
    A, Omega = gaussian((9, 8), "float32"), gaussian((8, 3), "float32")
    Omega[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"a product of `A` with the test matrix is not finite"):
        lowrank.range_finder(backend.asarray(A), 3, test_matrix=backend.asarray(Omega))


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_a_residual_with_the_seed_of_its_projection(backend, kind):
    """One seed for everything must not make the sketches of different matrices dependent."""
    A = with_spectrum(
        gallery.slower(200), (200, 200), "float64" if backend.has_float64 else "float32"
    )
    Q = backend.numpy(quietly(lowrank.range_finder, backend.asarray(A), 64, rtol=1e-9, rng=0).Q)
    E = residual(A, Q).astype(A.dtype)
    found = lowrank.range_finder(backend.asarray(E), rtol=0.2, norm=kind, rng=0)
    P = backend.numpy(found.Q)
    assert norm(residual(E.astype("float64"), P), kind) <= found.error_bound
    fixed = backend.numpy(lowrank.range_finder(backend.asarray(A), 64, rng=0).Q)
    estimate = lowrank.residual_norm(
        backend.asarray(A), backend.asarray(fixed.astype(A.dtype)), norm=kind, rng=0
    )
    assert norm(residual(A.astype("float64"), fixed), kind) <= estimate.upper_bound


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_a_residual_with_the_seed_of_its_projection_after_extend(backend, kind):
    dtype = "float64" if backend.has_float64 else "float32"
    A = with_spectrum(gallery.slower(200), (220, 200), dtype)
    for seed in range(3):
        finder = lowrank.RangeFinder(backend.asarray(A), norm=kind, rng=seed)
        Q = backend.numpy(finder.extend(20).reach(rtol=0.1).Q)
        E = residual(A, Q).astype(dtype)
        finder = lowrank.RangeFinder(backend.asarray(E), norm=kind, rng=seed)
        found = finder.extend(20).reach(rtol=0.5).result()
        truth = norm(residual(E.astype("float64"), backend.numpy(found.Q)), kind)
        assert truth <= found.error_bound


def test_large_and_small_members_of_a_stack(backend, dtype):
    limits = np.finfo(dtype)
    large = np.zeros((40, 30), dtype)
    large[0] = 0.9 * limits.max / 30**0.5
    small = with_spectrum(gallery.low_rank(30, 3), (40, 30), dtype) * np.asarray(
        float(limits.tiny) ** 0.5, dtype
    )
    A = np.stack([large, small])
    finder = lowrank.RangeFinder(backend.asarray(A), rng=0).extend(3).extend(2)
    Q = backend.numpy(finder.Q)
    for member in Q:
        check_basis(member, 40, 5, backend.eps(dtype))
    unit = small.astype(Q.dtype) / float(limits.tiny) ** 0.5
    assert np.linalg.norm(residual(unit, Q[1])) < 1e3 * backend.eps(dtype)
    assert np.linalg.norm(Q[0, 0]) == pytest.approx(1.0)


def test_the_norm_bounds_the_error_of_no_basis(backend):
    """The computed norm may lie below the true one; the bound may not."""
    for seed in range(20):
        A = gaussian((70, 50), "float32", seed)
        found = lowrank.range_finder(backend.asarray(A), rtol=1.01)
        assert found.rank == 0
        assert np.linalg.norm(A.astype("float64")) <= found.error_bound


def test_results_are_the_callers(backend, dtype):
    A = with_spectrum(gallery.fast(120), (120, 120), dtype)
    finder = lowrank.RangeFinder(backend.asarray(A), norm="spectral", rng=0).extend(5)
    for Q in (finder.result().Q, finder.Q):
        Q[:, :] = 7.0
    found = finder.reach(rtol=1e-2).result()
    check_basis(backend.numpy(found.Q), 120, found.rank, backend.eps(dtype))
    wide = A.astype(backend.numpy(found.Q).dtype)
    assert norm(residual(wide, backend.numpy(found.Q)), "spectral") <= found.error_bound
    assert found.norm_A <= norm(wide, "spectral") * (1 + 1e-5)


def test_estimate_never_exceeds_the_bound(backend):
    A = backend.asarray(with_spectrum(gallery.flat(100), (100, 100), "float32"))
    for seed in range(10):
        found = quietly(lowrank.range_finder, A, 1, rtol=1e-3, rng=seed)
        assert all(look.estimate <= look.bound for look in found.history)


def test_an_exhausted_test_matrix_at_full_rank(backend):
    """A basis of all rows needs no sample to certify it."""
    A, Omega = gaussian((40, 60), "float32"), gaussian((60, 40), "float32")
    found = lowrank.range_finder(backend.asarray(A), rtol=1e-4, test_matrix=backend.asarray(Omega))
    assert (found.rank, found.status) == (40, Status.CONVERGED)


def test_unchecked_input_raises_nothing(backend):
    A = gaussian((20, 15), "float32")
    A[3, 3] = np.nan
    found = lowrank.range_finder(backend.asarray(A), 4, rng=0, check_finite=False)
    assert np.isnan(backend.numpy(found.Q)).any()


@pytest.mark.parametrize("power_iterations", [2, 3])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_deflated_in_every_iteration(backend, dtype, power_iterations, kind):
    A = with_spectrum(gallery.fast(300), (300, 300), dtype)
    rtol = 1e-3 if backend.eps(dtype) > 1e-10 else 1e-9
    options = {"norm": kind, "power_iterations": power_iterations, "block_size": 32}
    found = lowrank.range_finder(backend.asarray(A), rtol=rtol, rng=2, **options)
    assert found.rank <= 192
    plain = lowrank.range_finder(backend.asarray(A), found.rank, power_iterations=1, rng=2)
    errors = [
        norm(residual(A.astype(Q.dtype), Q), kind) for Q in map(backend.numpy, (found.Q, plain.Q))
    ]
    assert errors[0] <= 3 * errors[1]


def test_products_that_overflow_at_a_fixed_rank(backend, dtype):
    A = np.zeros((40, 30), dtype)
    A[0] = 0.99 * np.finfo(dtype).max / 30**0.5
    found = lowrank.range_finder(backend.asarray(A), 20, rng=0)
    Q = backend.numpy(found.Q)
    check_basis(Q, 40, 20, backend.eps(dtype))
    assert np.linalg.norm(Q[0]) == pytest.approx(1.0)


def test_callback_that_stops_at_the_tolerance(backend):
    A = backend.asarray(with_spectrum(gallery.fast(100), (100, 100), "float32"))
    allowed = 1e-2 * float(np.linalg.norm(backend.numpy(A)))

    def stop(look):
        if look.bound <= 0.999 * allowed:
            raise StopIteration

    found = lowrank.range_finder(A, rtol=1e-2, rng=0, callback=stop)
    assert found.converged
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("spectrum", ["slow", "slower", "flat"])
def test_norm_of_a_spectral_tolerance(backend, dtype, spectrum):
    A = backend.asarray(with_spectrum(gallery.SPECTRA[spectrum](150), (160, 150), dtype))
    found = lowrank.range_finder(A, rtol=0.3, norm="spectral", rng=0)
    assert 0.95 <= found.norm_A <= 1 + 100 * backend.eps(dtype)
    assert found.tolerance == pytest.approx(0.3 * found.norm_A)


@pytest.mark.parametrize("q", [0, 1, 2])
def test_spectral_bound_is_near_the_estimate(backend, dtype, q):
    """factor 2.02^{1/(2q+1)}, more at later looks."""
    A = backend.asarray(with_spectrum(gallery.slow(150), (150, 150), dtype))
    found = lowrank.range_finder(A, rtol=0.1, norm="spectral", power_iterations=q, rng=0)
    look = found.history[-1]
    assert (
        look.estimate
        <= look.bound
        <= 2.2 ** (1 / (2 * q + 1)) * look.estimate + 1e2 * backend.eps(dtype)
    )


def test_bound_is_never_above_the_norm(backend):
    A = backend.asarray(with_spectrum(gallery.flat(200), (200, 200), "float32"))
    for certificate in ("exact", "energy", "sampled"):
        found = quietly(lowrank.range_finder, A, 10, rtol=0.1, certificate=certificate, rng=0)
        assert found.error_bound <= found.norm_A * (1 + 33 * backend.eps("float32"))


def test_extended_beyond_the_full_rank_in_steps(backend, dtype):
    """The room that is left is what counts; FULL_RANK says that fewer columns came."""
    A = backend.asarray(gaussian((30, 20), dtype))
    finder = lowrank.RangeFinder(A, rng=0).extend(8)
    assert finder.result().status is Status.RANK_REACHED
    result = finder.extend(13).result()
    assert (result.rank, result.status) == (20, Status.FULL_RANK)
    # which go through a power iteration: a square test matrix would lose some of them
    assert result.products == 8 + 3 * 12
    check_basis(backend.numpy(result.Q), 30, 20, backend.eps(dtype))
    assert finder.extend(0).rank == 20


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("q", [0, 1, 2])
def test_passes_and_products_are_counted(kind, q):
    """2q + 1 passes a block, of as many columns each, in the first block and the next."""
    A = gaussian((50, 40), "float64")
    finder = lowrank.RangeFinder(A, norm=kind, power_iterations=q, rng=0, check_finite=False)
    for block in (1, 2, 3):
        result = finder.extend(6).result()
        assert (result.passes, result.products) == (block * (2 * q + 1), 6 * block * (2 * q + 1))


@pytest.mark.parametrize("certificate", ["exact", "energy"])
def test_columns_from_before_are_multiplied_once_more(certificate):
    """Once the error is asked for: a pass for the norm, and one for the product with the basis."""
    A = gaussian((70, 50), "float64")
    finder = lowrank.RangeFinder(A, power_iterations=0, rng=0, certificate=certificate).extend(20)
    found = quietly(finder.reach, rtol=1e-3, rank=20).result()
    assert (found.passes, found.products) == (3, 40)
    # the errors are those of a basis that was grown to a tolerance from the start
    options = {"power_iterations": 0, "block_size": 20, "certificate": certificate, "rng": 0}
    grown = quietly(lowrank.range_finder, A, 20, rtol=1e-3, **options)
    assert (grown.passes, grown.products) == (3, 40)
    true = np.linalg.norm(residual(A, found.Q))
    assert found.error == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("delta", [1e-9, 0.9])
def test_bounds_on_the_norm_of_an_operator(kind, delta):
    """One from below, whatever chance does; the error of no basis is never below it."""
    for seed in range(8):
        one = gaussian((90, 1), "float64", seed) @ gaussian((1, 80), "float64", seed + 50)
        for A in (one, gaussian((90, 80), "float64", seed)):
            products = {"matmat": A.__matmul__, "rmatmat": A.T.__matmul__}
            X = SimpleNamespace(shape=A.shape, dtype=A.dtype, **products)
            options = {"norm": kind, "failure_probability": delta, "rng": seed}
            found = quietly(lowrank.range_finder, X, 0, rtol=0.5, **options)
            true = norm(A, kind)
            assert 0.4 * true <= found.norm_A <= min(true, found.error_bound)
            assert delta > 0.1 or true <= found.error_bound


def test_the_norm_of_a_matrix_is_one_pass():
    A = with_spectrum(gallery.slow(100), (100, 100), "float64")
    found = lowrank.range_finder(A, rtol=2.0, rng=0)
    assert (found.rank, found.passes, found.products) == (0, 1, 0)


@pytest.mark.parametrize("shape", [(3, 25, 18), (2, 2, 18, 25)])
def test_stacks_grow_as_their_members_do(backend, dtype, shape):
    """Appended blocks too: orthonormal, and the range of each member."""
    A = np.stack(
        [with_spectrum(0.1 ** np.arange(18), shape[-2:], dtype, seed) for seed in range(4)]
    )
    A = A[: int(np.prod(shape[:-2]))].reshape(shape)
    Q = backend.numpy(lowrank.RangeFinder(backend.asarray(A), rng=0).extend(4).extend(5).Q)
    assert Q.shape == (*shape[:-1], 9)
    eps = backend.eps(dtype)
    for member, basis in zip(A.reshape(-1, *shape[-2:]), Q.reshape(-1, shape[-2], 9), strict=True):
        check_basis(basis, shape[-2], 9, eps)
        assert norm(residual(member, basis), "fro") < 1e-4 + 100 * eps


@pytest.mark.parametrize("size", [1e-300, 1e-306])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_tolerances_of_a_matrix_near_the_smallest_numbers(size, kind):
    """Its products are scaled: the same rank as at size one, and a bound below the tolerance."""
    A = with_spectrum(gallery.fast(80), (80, 80), "float64")
    options = {"rtol": 1e-6, "norm": kind, "rng": 0}
    small, usual = lowrank.range_finder(A * size, **options), lowrank.range_finder(A, **options)
    assert small.converged
    assert abs(small.rank - usual.rank) <= 8
    assert norm(residual(A, small.Q), kind) * size <= small.error_bound <= 1e-6 * small.norm_A


def test_the_bound_on_a_spectral_norm_is_no_less_than_the_energy_says():
    """‖A‖₂ ≥ ‖A‖_F/√min(m, n), with equality for orthonormal columns."""
    for shape in ((100, 40), (40, 100)):
        A = with_spectrum(np.ones(40), shape, "float64")
        found = quietly(
            lowrank.range_finder, A, rtol=0.5, norm="spectral", power_iterations=0, rng=0
        )
        assert found.norm_A == pytest.approx(1.0, rel=1e-12)
