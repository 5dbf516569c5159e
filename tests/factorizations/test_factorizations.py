"""qb and svd: what both promise, and what a tolerance trims."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import in_double
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import ConvergenceWarning, Status, gallery
from lowrank._factorizations.truncate import truncated
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.small_svd import SmallSVD, small_svd
from lowrank.results import Outcome


@pytest.fixture(autouse=True)
def growing(monkeypatch):
    """No SVD of A itself, which matrices as small as these are given at once."""
    monkeypatch.setattr("lowrank._rangefinder.growth.svd_is_cheaper", lambda *_, **__: False)


FACTORIZATIONS = [lowrank.qb, lowrank.svd]


def product(backend, result):
    """The approximation and its left factor, after checks that every factorization must pass."""
    if isinstance(result, lowrank.QBResult):
        Q, B = (backend.numpy(factor) for factor in result)
        assert Q.shape[-1] == B.shape[-2] == result.rank
        return Q @ B, Q
    U, S, Vh = (backend.numpy(factor) for factor in result)
    assert U.shape[-1] == S.shape[-1] == Vh.shape[-2] == result.rank
    assert S.dtype.kind == "f"
    assert np.all(S >= 0)
    assert np.all(np.diff(S, axis=-1) <= 0)
    rows = adjoint(Vh)
    for member in np.ndindex(rows.shape[:-2]):
        assert defect(rows[member]) <= 200 * eps_of(result.S) * max(result.rank, 1) ** 0.5
    return (U * S[..., None, :]) @ Vh, U


def eps_of(X):
    return float(np.finfo(str(X.dtype).rpartition(".")[2]).eps)


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 120),
    n=st.integers(1, 120),
    exponent=st.floats(-15, -0.5),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    kind=st.sampled_from(["fro", "spectral"]),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(backend, dtype, factorize, spectrum, m, n, exponent, cap, kind, seed):
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    rtol = 10.0**exponent
    found = quietly(
        factorize,
        backend.asarray(A),
        cap,
        rtol=rtol,
        norm=kind,
        rng=seed,
        failure_probability=DRAWN,
    )
    approximation, left = product(backend, found)
    assert defect(left) <= 200 * backend.eps(dtype) * max(found.rank, 1) ** 0.5
    A = A.astype(left.dtype)
    true = norm(A - approximation, kind)
    assert true <= found.error_bound
    assert found.rank <= (min(m, n) if cap is None else cap)
    assert found.converged == (found.error_bound <= found.tolerance)
    assert (found.status is Status.CONVERGED) == found.converged
    if found.converged:
        assert true <= rtol * norm(A, kind)


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
@pytest.mark.parametrize("spectrum", ["slow", "fast", "s_shaped", "medium", "staircase", "drop"])
def test_rank_is_near_the_best_possible(backend, factorize, spectrum):
    """Within five per cent, or one, of the best possible rank, with the defaults."""
    s = gallery.SPECTRA[spectrum](250)
    A = backend.asarray(with_spectrum(s, (300, 250), "float32"))
    for rtol in (1e-1, 1e-2, 1e-3):
        best = gallery.best_rank(s, rtol=rtol)
        found = factorize(A, rtol=rtol, rng=0)
        assert found.converged
        assert best <= found.rank <= max(best + 1, 1.05 * best)


@pytest.mark.parametrize("factorize", [*FACTORIZATIONS, lowrank.eigh])
@pytest.mark.parametrize("spectrum", ["fast", "medium"])
@pytest.mark.parametrize("part", [80, 200])
def test_rank_is_near_the_best_possible_next_to_rounding(backend, dtype, factorize, spectrum, part):
    """Where half of the bound of the basis, or all of it, stands for rounding."""
    eps = float(np.finfo(dtype).eps)
    A = with_spectrum(gallery.SPECTRA[spectrum](160), (160, 160), dtype)
    A = (A + adjoint(A)) / 2 if factorize is lowrank.eigh else A
    s = np.linalg.svd(A.astype(np.result_type(dtype, np.float64)), compute_uv=False)
    found = factorize(backend.asarray(A), rtol=part * eps, rng=0)
    assert found.converged
    assert found.rank <= 1.05 * gallery.best_rank(s, rtol=part * eps) + 1


def test_published_ranks():
    """Diagonal matrices have the ranks of their rotations; best possible: 15, 49, 32."""
    for s, rtol, most in (
        (gallery.slow(600), 1e-2, 16),
        (gallery.fast(600), 1e-3, 50),
        (gallery.s_shaped(600), 1e-2, 33),
    ):
        assert lowrank.svd(np.diag(s), rtol=rtol, rng=0).rank <= most


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_error_is_pythagorean(backend, dtype, factorize):
    """Bound and estimate of a trimmed result are close, since most of both is known exactly."""
    A = backend.asarray(with_spectrum(gallery.medium(200), (200, 200), dtype))
    found = factorize(A, rtol=1e-2, rng=0)
    approximation, _ = product(backend, found)
    true = np.linalg.norm(backend.numpy(A) - approximation)
    assert found.error == pytest.approx(true, rel=0.02)
    assert true <= found.error_bound <= 1.2 * true


def test_cap_below_what_the_tolerance_needs(backend, dtype):
    s = gallery.medium(150)
    A = backend.asarray(with_spectrum(s, (150, 160), dtype))
    for factorize in FACTORIZATIONS:
        with pytest.warns(ConvergenceWarning, match=r"RANK_REACHED"):
            found = factorize(A, 20, rtol=1e-2, rng=0)
        assert (found.rank, found.status) == (20, Status.RANK_REACHED)
        assert found.converged is False
        approximation, _ = product(backend, found)
        true = np.linalg.norm(backend.numpy(A) - approximation)
        # the basis has more columns than the cap, so the cut is near the best of its rank
        assert true <= found.error_bound
        assert true <= 1.1 * gallery.best_error(s, 20)


def test_cap_equal_to_what_the_tolerance_needs(backend, dtype):
    A = backend.asarray(with_spectrum(gallery.low_rank(150, 12), (150, 150), dtype))
    for factorize in FACTORIZATIONS:
        found = factorize(A, 12, rtol=1e-4, rng=0)
        assert (found.rank, found.status) == (12, Status.CONVERGED)


@pytest.mark.parametrize("shape", [(80, 50), (50, 80), (3, 40, 30)], ids=str)
@pytest.mark.parametrize("factorize", FACTORIZATIONS)
@pytest.mark.parametrize("rank", [0, 1, 10, 100])
def test_fixed_rank(backend, dtype, shape, factorize, rank):
    members = [with_spectrum(gallery.fast(30), shape[-2:], dtype, seed) for seed in range(3)]
    A = np.stack(members) if len(shape) == 3 else members[0]
    found = factorize(backend.asarray(A), rank, rng=0)
    full = min(shape[-2:])
    assert found.rank == min(rank, full)
    assert found.status is (Status.FULL_RANK if rank > full else Status.RANK_REACHED)
    assert found.converged is None
    approximation, _ = product(backend, found)
    assert approximation.shape == shape
    error = np.linalg.norm(A - approximation, axis=(-2, -1))
    if len(shape) == 3:  # of a stack nobody asks for one number
        assert (found.error, found.error_bound, found.certificate) == (None, None, None)
    else:
        assert found.certificate == "energy"
        assert error <= found.error_bound
        rounding = float((4096 * backend.eps(dtype)) ** 0.5 * np.linalg.norm(A))
        assert found.error_bound <= np.hypot(error, 1.1 * rounding)
        assert found.error == pytest.approx(error, abs=rounding, rel=1e-3)
    best = gallery.best_error(gallery.fast(30), min(rank, full))
    # svd oversamples by 10 and iterates twice; qb does neither
    slack = 1.001 if factorize is lowrank.svd else 30
    assert np.all(error <= slack * best + 200 * backend.eps(dtype))


def test_svd_values(backend, dtype):
    s = gallery.fast(60)
    A = with_spectrum(s, (60, 70), dtype)
    found = lowrank.svd(backend.asarray(A), 20, rng=0)
    S = backend.numpy(found.S)
    assert np.allclose(S, s[:20], rtol=1e-3)
    assert np.all(np.linalg.svd(A, compute_uv=False)[:20] + 100 * backend.eps(dtype) >= S)


def test_oversampling_and_power_iterations_help():
    A = with_spectrum(gallery.slower(200), (200, 200), "float64")
    error = {
        (p, q): np.mean(
            [
                np.linalg.norm(A - (r.U * r.S) @ r.Vh)
                for r in (
                    lowrank.svd(A, 10, oversampling=p, power_iterations=q, rng=seed)
                    for seed in range(5)
                )
            ]
        )
        for p in (0, 20)
        for q in (0, 2)
    }
    assert error[20, 2] < error[20, 0] < error[0, 0]
    assert error[20, 2] < error[0, 2] < error[0, 0]
    assert error[20, 2] < 1.001 * gallery.best_error(gallery.slower(200), 10)


def test_qb_b_is_the_projection(backend, dtype):
    A = backend.asarray(with_spectrum(gallery.slow(50), (60, 50), dtype))
    for options in ({"rank": 7}, {"rtol": 1e-2}):
        Q, B = (backend.numpy(X) for X in lowrank.qb(A, rng=0, **options))
        assert np.linalg.norm(B - adjoint(Q) @ backend.numpy(A)) < 100 * backend.eps(dtype)


def test_zero_matrix(backend, dtype):
    A = backend.asarray(np.zeros((8, 6), dtype))
    for factorize in FACTORIZATIONS:
        found = factorize(A, rtol=1e-3)
        assert (found.rank, found.converged, found.error_bound) == (0, True, 0.0)
        approximation, left = product(backend, factorize(A, 3))
        assert np.all(approximation == 0)
        assert defect(left) < 100 * backend.eps(dtype)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)], ids=str)
def test_empty(backend, dtype, shape):
    A = backend.asarray(np.zeros(shape, dtype))
    for factorize in FACTORIZATIONS:
        for options in ({"rank": 2}, {"rtol": 1e-3}):
            approximation, _ = product(backend, factorize(A, **options))
            assert approximation.shape == shape


def test_large_entries(backend, dtype):
    exponent = 36 if dtype in ("float32", "complex64") else 300
    unit = with_spectrum(gallery.fast(60), (60, 60), dtype)
    A = unit * np.asarray(10.0**exponent, dtype)
    for factorize in FACTORIZATIONS:
        found = factorize(backend.asarray(A), rtol=1e-3, rng=0)
        assert found.converged
        Q = backend.numpy(found.Q if factorize is lowrank.qb else found.U)
        scaled = A.astype(Q.dtype) / 10.0**exponent
        true = np.linalg.norm(scaled - Q @ (adjoint(Q) @ scaled))
        assert true <= found.error_bound / 10.0**exponent <= 1.01e-3 * np.linalg.norm(scaled)


def test_no_stop_rule(backend):
    A = backend.asarray(gaussian((4, 3), "float32"))
    for factorize in FACTORIZATIONS:
        with pytest.raises(
            ValueError, match=r"no stopping criterion: give `rank`, `rtol` or `atol`"
        ):
            factorize(A)
    with pytest.raises(ValueError, match=r"`oversampling` must be at least 0, got -1"):
        lowrank.svd(A, 2, oversampling=-1)


def by_the_library(C):
    """On a GPU too, where the eigenvalues of CᴴC do in single precision."""
    return small_svd(C, partial(orthonormalize))


def test_small_svd_survives_an_svd_that_does_not_converge(backend, monkeypatch):
    """LAPACK's gesdd gives up on some finite matrices; a rotated one has the same factors."""
    C = gaussian((20, 6), "float32")
    calls = []
    native = backend.xp.linalg.svd

    def unwilling(X, /, **options):
        calls.append(X)
        if len(calls) <= 2:
            message = "SVD did not converge"
            raise np.linalg.LinAlgError(message)
        return native(X, **options)

    monkeypatch.setattr(backend.xp.linalg, "svd", unwilling)
    small = by_the_library(backend.asarray(C))
    assert len(calls) == 3
    U, S, W, P = (backend.numpy(X) for X in (small.U, small.S, small.W, small.P))
    assert np.allclose((U * S) @ W @ adjoint(P), adjoint(C), atol=1e-5)
    assert max(defect(U), defect(W), defect(P)) < 1e-5

    def never(*_, **__):
        return unwilling(calls.clear())

    monkeypatch.setattr(backend.xp.linalg, "svd", never)
    with pytest.raises(np.linalg.LinAlgError):
        by_the_library(backend.asarray(C))


@pytest.mark.parametrize("noise", [1e-3, 1e-6])
def test_small_svd_mends_vectors_that_are_not_orthonormal(backend, dtype, monkeypatch, noise):
    """gesdd returns such vectors for clustered singular values; the cluster is right."""
    s = np.repeat([1.0, 1e-3], [4, 8])
    C = with_spectrum(s, (30, 12), dtype)
    native = backend.xp.linalg.svd
    spoil = np.eye(12) + noise * np.kron(np.diag([0, 1, 1]), gaussian((4, 4), "float64"))

    def sloppy(X, /, **options):
        U, S, W = native(X, **options)
        return U @ backend.asarray(spoil.astype(dtype)), S, W

    monkeypatch.setattr(backend.xp.linalg, "svd", sloppy)
    small = by_the_library(backend.asarray(C))
    U, S, W, P = (backend.numpy(X) for X in (small.U, small.S, small.W, small.P))
    assert max(defect(U), defect(W), defect(P)) < 100 * backend.eps(dtype) * 12**0.5
    # off-diagonal parts of the size noise · σ within the cluster are what is left out
    left_out = np.linalg.norm((U * S) @ W @ adjoint(P) - adjoint(C))
    assert left_out < 20 * noise * 1e-3 + 100 * backend.eps(dtype)
    assert np.all(np.diff(S) <= 0)


@pytest.mark.parametrize("size", [1e30, 1.0, 1e-30, 0.0])
def test_small_svd_as_on_a_gpu(monkeypatch, size):
    """cuSOLVER squares entries, and is not quite orthonormal."""
    torch = pytest.importorskip("torch")
    native = torch.linalg.svd

    def jacobi(X, /, **options):
        U, S, W = native(X, **options)
        slant = torch.eye(12) + 2e-5 * torch.as_tensor(gaussian((12, 12), "float32"))
        return U @ slant, torch.sqrt(S**2), W

    monkeypatch.setattr(torch.linalg, "svd", jacobi)
    monkeypatch.setattr("lowrank._array.is_of_a_gpu", lambda _: True)
    C = size * with_spectrum(np.geomspace(1, 1e-2, 12), (30, 12), "float32")
    C = C.astype("float32").astype("float64")
    small = small_svd(torch.as_tensor(C, dtype=torch.float32))
    U, S, W, P = (X.numpy().astype("float64") for X in (small.U, small.S, small.W, small.P))
    assert max(defect(U), defect(W), defect(P)) < 100 * np.finfo("float32").eps * 12**0.5
    assert np.linalg.norm((U * S) @ W @ P.T - C.T) <= 1e-3 * np.linalg.norm(C)
    assert np.all(np.abs(S - size * np.geomspace(1, 1e-2, 12)) <= 1e-5 * size)


@in_double
@pytest.mark.parametrize("condition", [1e8, 1e10, 1e12])
@pytest.mark.parametrize("n", [100, 117, 150])
def test_orthonormal_for_clusters_that_lapack_gets_wrong(backend, condition, n):
    A = backend.asarray(with_spectrum(gallery.steps(n, condition), (n, n), "float64", seed=0))
    for factorize in FACTORIZATIONS:
        found = quietly(factorize, A, rtol=1e-13, rng=50)
        approximation, left = product(backend, found)
        assert defect(left) < 100 * np.finfo(float).eps * n**0.5
        assert np.linalg.norm(backend.numpy(A) - approximation) <= found.error_bound


def test_singular_values_beyond_the_dtype_are_refused(backend):
    A = backend.asarray(np.full((200, 200), 1e37, "float32"))
    assert lowrank.range_finder(A, rtol=1e-3, rng=0).converged
    for options in ({"rank": 3}, {"rtol": 1e-3}):
        with pytest.raises(ValueError, match=r"divide `A` by a constant"):
            lowrank.svd(A, rng=0, **options)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("q", [0, 1, 2])
def test_cost_at_a_fixed_rank_is_as_documented(backend, kind, q):
    A = backend.asarray(with_spectrum(gallery.fast(60), (80, 60), "float32"))
    found = lowrank.range_finder(A, 10, norm=kind, power_iterations=q, rng=0)
    assert (found.passes, found.products) == (2 * q + 1, 10 * (2 * q + 1))
    norm_is_read = int(kind == "fro")
    found = lowrank.qb(A, 10, norm=kind, power_iterations=q, rng=0)
    assert (found.passes, found.products) == (2 * q + 2 + norm_is_read, 10 * (2 * q + 2))
    found = lowrank.svd(A, 10, norm=kind, power_iterations=q, rng=0)
    assert (found.passes, found.products) == (2 * q + 2 + norm_is_read, 20 * (2 * q + 2))
    stack = backend.xp.stack([A, A, A])  # counted as one matrix, and no norm is read
    found = lowrank.svd(stack, 10, norm=kind, power_iterations=q, rng=0)
    assert (found.passes, found.products) == (2 * q + 2, 20 * (2 * q + 2))


def test_default_power_iterations(backend):
    A = backend.asarray(with_spectrum(gallery.fast(160), (180, 160), "float32"))
    assert lowrank.range_finder(A, 10, rng=0).passes == 1
    assert lowrank.qb(A, 10, rng=0).products == 20
    assert lowrank.svd(A, 10, rng=0).products == 6 * 20
    defaults = lowrank.range_finder(A, rtol=0.5, norm="spectral", rng=0)
    given = lowrank.range_finder(A, rtol=0.5, norm="spectral", power_iterations=1, rng=0)
    assert (defaults.passes, defaults.products) == (given.passes, given.products)
    assert (
        given.passes
        > lowrank.range_finder(A, rtol=0.5, norm="spectral", power_iterations=0, rng=0).passes
    )


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_cap_reached_from_a_basis_that_converged(backend, factorize):
    A = backend.asarray(with_spectrum(gallery.medium(150), (150, 160), "float32"))
    with pytest.warns(ConvergenceWarning, match=r"RANK_REACHED"):
        found = factorize(A, 40, rtol=1e-1, rng=0)
    assert (found.rank, found.status, found.converged) == (40, Status.RANK_REACHED, False)


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
@pytest.mark.parametrize("spectrum", ["slow", "fast", "medium", "slower"])
def test_rank_is_near_the_best_possible_in_the_spectral_norm(backend, factorize, spectrum):
    s = gallery.SPECTRA[spectrum](250)
    A = backend.asarray(with_spectrum(s, (300, 250), "float32"))
    for rtol in (1e-1, 1e-2, 1e-3):
        best = gallery.best_rank(s, rtol=rtol, norm="spectral")
        found = factorize(A, rtol=rtol, norm="spectral", rng=0)
        assert found.converged
        assert best <= found.rank <= max(best + 1, 1.15 * best)


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_rank_of_a_gap_is_exact(backend, factorize):
    A = backend.asarray(with_spectrum(gallery.low_rank(150, 12), (150, 150), "float32"))
    for kind in ("fro", "spectral"):
        assert factorize(A, rtol=1e-3, norm=kind, rng=0).rank == 12


@pytest.mark.parametrize(
    ("spectrum", "rtol", "q"),
    [
        (spectrum, rtol, (i + j) % 2)
        for i, spectrum in enumerate(("slow", "slower", "medium"))
        for j, rtol in enumerate((0.3, 0.1, 0.03))
    ],
)
def test_loose_spectral_tolerances(backend, dtype, spectrum, rtol, q):
    A = with_spectrum(gallery.SPECTRA[spectrum](200), (200, 200), dtype)
    found = quietly(
        lowrank.svd, backend.asarray(A), rtol=rtol, norm="spectral", power_iterations=q, rng=0
    )
    U, S, Vh = (backend.numpy(factor) for factor in found)
    assert norm(A.astype(U.dtype) - (U * S) @ Vh, "spectral") <= found.error_bound


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_bound_of_a_cap_comes_from_the_energies(backend, factorize):
    A = with_spectrum(gallery.slower(300), (300, 300), "float32")
    found = quietly(factorize, backend.asarray(A), 30, rtol=1e-2, rng=0)
    Q = backend.numpy(found.Q if factorize is lowrank.qb else found.U)
    assert found.error_bound <= 1.05 * np.linalg.norm(residual(A.astype(Q.dtype), Q))


def test_a_basis_that_converged_but_not_its_svd(backend):
    """R is off by more than the room left: the rounding of the SVD stands in the way."""
    there = backend.asarray
    one = there(np.eye(2, dtype="float32"))
    S = there(np.ones(2, "float32"))
    small = SmallSVD(there(np.eye(2, dtype="float32") * np.float32(1.01)), one, S, one, one)
    assert small.rounding() == pytest.approx(0.01 * 2**0.5, rel=1e-4)
    outcome = reached(tolerance=1e-3, error=1e-4, bound=5e-4)
    basis, floor = of_basis(outcome), small.rounding()
    found = truncated(basis, S, None, residual=5e-4, estimate=1e-4, floor=floor)
    assert (found.status, found.converged) == (Status.PRECISION_FLOOR, False)


def of_basis(outcome):
    """What a truncation reads of a basis that was found, in the spectral norm."""
    problem = SimpleNamespace(norm="spectral")
    return SimpleNamespace(outcome=outcome, problem=problem, norm_is_exact=False)


def reached(*, tolerance, error, bound, norm_A=1.0):
    """What the range finder says of a basis that converged."""
    return Outcome(
        status=Status.CONVERGED,
        converged=True,
        tolerance=tolerance,
        error=error,
        error_bound=bound,
        norm_A=norm_A,
        rank=2,
        passes=1,
        products=2,
    )


def test_svd_of_exactly_full_rank(backend):
    A = backend.asarray(gaussian((9, 5), "float32"))
    for factorize in FACTORIZATIONS:
        assert factorize(A, 5, rng=0).status is Status.RANK_REACHED
        assert factorize(A, 6, rng=0).status is Status.FULL_RANK


def test_nothing_to_find_above_a_tolerance_of_the_norm(backend):
    A = backend.asarray(gaussian((30, 20), "float32"))
    for factorize in FACTORIZATIONS:
        found = factorize(A, rtol=1.01)
        assert (found.rank, found.products, found.status) == (0, 0, Status.CONVERGED)


@pytest.mark.parametrize(("part", "directions"), [(0.5, 1 / 3), (0.1, 3 / 4)])
def test_noise_below_its_norm_takes_most_directions(part, directions):
    """What docs/explanation/choosing.md says of tolerances below the noise of a square matrix."""
    A = gaussian((400, 400), "float64")
    best = gallery.best_rank(np.linalg.svd(A, compute_uv=False), rtol=part)
    assert best == pytest.approx(400 * directions, rel=0.04)
    assert best <= lowrank.svd(A, rtol=part, rng=0).rank <= 1.04 * best


@pytest.mark.parametrize(
    ("above", "asked"),
    [(above, {"rtol": rtol}) for above, rtol in ((-3, 1e-2), (7, 1e-4), (17, 1e-2), (17, 1e-6))]
    + [(-3, {"rtol": 1e-6}), (-19, {"rank": 100}), (-19, {"rank": 30}), (-3, {"rank": 100})],
)
def test_bound_holds_near_the_smallest_numbers(backend, dtype, above, asked):
    """Entries of about 2^above times the smallest normal number, scaled back in two steps."""
    backend.skip_if_flushed(dtype)
    exponent = int(np.log2(float(np.finfo(dtype).tiny))) + above
    half = -exponent // 2

    def up(X):
        return X * 2.0**half * 2.0 ** (-exponent - half)

    unit = with_spectrum(gallery.fast(100), (120, 100), dtype)
    wide = unit.astype(np.result_type(unit, "float64"))
    A = (wide * 2.0**-half * 2.0 ** (exponent + half)).astype(dtype)
    for factorize in FACTORIZATIONS:
        found = quietly(factorize, backend.asarray(A), **asked, rng=0)
        if factorize is lowrank.qb:
            left, right = found.Q, up(backend.numpy(found.B))
        else:
            left, right = found.U, up(backend.numpy(found.S))[:, None] * backend.numpy(found.Vh)
        left = backend.numpy(left)
        true = np.linalg.norm(up(A.astype(left.dtype)) - left @ right)
        assert true <= up(found.error_bound)
        if "rtol" in asked and found.converged:
            assert true <= up(found.tolerance)


@pytest.mark.parametrize("factorize", FACTORIZATIONS)
def test_options_arrive(factorize):
    A = with_spectrum(gallery.slower(150), (150, 150), "float64")
    looks = []

    def first_bound(**options):
        found = quietly(factorize, A, 10, rtol=1e-3, rng=0, certificate="sampled", **options)
        return found.history[1].bound

    assert first_bound(failure_probability=1e-2) < first_bound()
    quietly(factorize, A, 10, rtol=1e-3, rng=0, callback=looks.append)
    assert looks
    asked = []

    def draw(shape, dtype, device):
        asked.append(shape)
        return gaussian(shape, dtype)

    factorize(A, 5, test_matrix=draw)
    assert len(asked) == 1
    A[3, 3] = np.nan
    with pytest.raises(ValueError, match="holds NaN"):
        factorize(A, 5, rng=0)


@pytest.mark.parametrize("step", np.linspace(-1, 1, 21))
def test_a_tolerance_at_a_singular_value_is_kept(backend, step):
    """Within rounding of σ₂ the cut may fall on either side, but never outside the tolerance."""
    S = np.asarray([1, 0.1, 0.001], "float32")
    floor = 3 * backend.eps("float32") * 35**0.5
    tolerance = float(S[1]) * (1 + step * backend.eps("float32")) + floor
    outcome = reached(tolerance=tolerance, error=0.0, bound=floor)
    basis = of_basis(outcome)
    found = truncated(basis, backend.asarray(S), None, residual=0.0, estimate=0.0, floor=floor)
    assert found.converged
