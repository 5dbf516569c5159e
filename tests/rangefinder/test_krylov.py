"""Block Krylov spaces: what they contain, what they save, and the certificate that they keep."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import Status, gallery


@pytest.fixture(autouse=True)
def growing(monkeypatch):
    """No SVD of A itself, which matrices as small as these are given at once."""
    monkeypatch.setattr("lowrank._rangefinder.growth.svd_is_cheaper", lambda *_, **__: False)


SLOW = ["slow", "slower", "medium"]


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 120),
    n=st.integers(1, 120),
    exponent=st.floats(-15, -0.5),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    kind=st.sampled_from(["fro", "spectral"]),
    q=st.integers(1, 2),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(backend, dtype, spectrum, m, n, exponent, cap, kind, q, seed):
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    found = quietly(
        lowrank.range_finder,
        backend.asarray(A),
        cap,
        rtol=10.0**exponent,
        norm=kind,
        power_iterations=q,
        krylov=True,
        rng=seed,
        failure_probability=DRAWN,
    )
    Q = backend.numpy(found.Q)
    assert Q.shape == (m, found.rank)
    assert found.rank <= min(m, n, m if cap is None else cap)
    assert defect(Q) <= 200 * backend.eps(dtype) * max(found.rank, 1) ** 0.5
    true = norm(residual(A.astype(Q.dtype), Q), kind)
    assert true <= found.error_bound
    assert found.converged == (found.error_bound <= found.tolerance)
    if found.converged:
        assert true <= 10.0**exponent * norm(A, kind)


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("grown", [False, True])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_it_is_the_krylov_space(backend, dtype, q, grown, kind):
    """All of ``(A Aᴴ)^j A Ω`` lie in it, and nothing else; of the residual, where it grows."""
    # of singular values that hardly fall, so that the powers are far from dependent
    A = with_spectrum(np.linspace(1, 0.1, 60), (70, 60), dtype)
    Omega = gaussian((60, 10), dtype, seed=1)
    options = {"power_iterations": q, "krylov": True, "norm": kind}
    finder = lowrank.RangeFinder(backend.asarray(A), test_matrix=backend.asarray(Omega), **options)
    A, Omega = (X.astype(np.complex128) for X in (A, Omega))
    space = []
    for block in (Omega[:, :4], Omega[:, 4:]) if grown else (Omega,):
        finder.extend((q + 1) * block.shape[1])
        E = residual(A, np.linalg.qr(np.hstack(space)).Q) if space else A
        Y = E @ block
        for _ in range(q + 1):
            space.append(Y)
            Y = E @ (adjoint(E) @ Y)
    Q, K = backend.numpy(finder.Q), np.hstack(space)
    assert Q.shape == K.shape
    K /= np.linalg.norm(K, axis=0)
    assert norm(residual(K, Q), "fro") <= 1e3 * backend.eps(dtype)


@pytest.mark.parametrize("spectrum", sorted(gallery.SPECTRA))
def test_never_worse_than_power_iterations_with_the_same_test_matrix(backend, dtype, spectrum):
    """Products with A are as many; the Krylov space holds the other one."""
    s = gallery.SPECTRA[spectrum](90)
    A = with_spectrum(s, (100, 90), dtype)
    Omega = backend.asarray(gaussian((90, 12), dtype, seed=2))
    for kind in ("fro", "spectral"):
        finders = [
            lowrank.RangeFinder(
                backend.asarray(A),
                test_matrix=Omega,
                norm=kind,
                power_iterations=2,
                krylov=krylov,
            ).extend(36 if krylov else 12)
            for krylov in (True, False)
        ]
        errors = [norm(residual(A, backend.numpy(finder.Q)), kind) for finder in finders]
        counts = [(f.result().passes, f.result().products) for f in finders]
        assert counts[0] == counts[1] == (5, 60)
        assert errors[0] <= errors[1] * (1 + 1e-6) + 100 * backend.eps(dtype)


@pytest.mark.parametrize("spectrum", SLOW)
def test_smaller_error_for_the_same_products_of_slow_spectra(backend, spectrum):
    """All products of the SVD counted, those of its last pass too."""
    s, dtype = gallery.SPECTRA[spectrum](200), "float64" if backend.has_float64 else "float32"
    A = backend.asarray(with_spectrum(s, (200, 200), dtype))
    excess = {}
    for krylov, q in ((True, 2), (False, 3)):
        found = [
            lowrank.svd(A, 10, power_iterations=q, krylov=krylov, rng=seed) for seed in range(5)
        ]
        assert {(f.rank, f.products) for f in found} == {(10, 160)}
        S = np.array([backend.numpy(f.S) for f in found])
        # of the energy that the best approximation has, what was not captured
        excess[krylov] = np.mean(np.sum(s[:10] ** 2) - np.sum(S**2, axis=1))
    assert excess[True] < max(excess[False] / 4, 50 * backend.eps(dtype))


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize(("spectrum", "rtol"), [("slower", 1e-2), ("medium", 0.1)])
def test_fewer_products_to_a_tolerance_than_power_iterations(kind, spectrum, rtol):
    A = with_spectrum(gallery.SPECTRA[spectrum](400), (400, 400), "float64")
    found = {
        krylov: lowrank.svd(
            A,
            rtol=rtol,
            norm=kind,
            power_iterations=1,
            krylov=krylov,
            certificate="sampled",
            rng=0,
        )
        for krylov in (True, False)
    }
    assert found[True].converged
    assert found[False].converged
    assert found[True].products < found[False].products


@pytest.mark.parametrize(
    ("spectrum", "q"),
    [(spectrum, 1 + 2 * (turn % 2)) for turn, spectrum in enumerate(sorted(gallery.SPECTRA))],
)
def test_every_spectrum_to_a_tolerance(backend, dtype, spectrum, q):
    """Also where a cluster of singular values is larger than the block, and at the full rank."""
    A = backend.asarray(with_spectrum(gallery.SPECTRA[spectrum](110), (150, 110), dtype))
    for kind in ("fro", "spectral"):
        options = {"norm": kind, "power_iterations": q, "krylov": True, "rng": 0}
        assert lowrank.range_finder(A, rtol=1e-3, **options).converged


def test_extend_by_any_number(backend, dtype):
    A = backend.asarray(with_spectrum(gallery.slow(50), (60, 50), dtype))
    for kind in ("fro", "spectral"):
        finder = lowrank.RangeFinder(A, norm=kind, power_iterations=2, krylov=True, rng=0)
        for rank in (1, 2, 7, 8, 31, 50):
            finder.extend(rank - finder.rank)
            Q = backend.numpy(finder.Q)
            assert Q.shape == (60, rank)
            assert defect(Q) <= 200 * backend.eps(dtype) * rank**0.5
        assert finder.extend(1).result().status is Status.FULL_RANK


def test_members_of_a_stack(backend, dtype):
    A = np.stack([with_spectrum(gallery.slower(30), (40, 30), dtype, seed) for seed in range(3)])
    Omega = gaussian((3, 30, 5), dtype, seed=4)
    options = {"power_iterations": 1, "krylov": True}
    Q = lowrank.range_finder(backend.asarray(A), 10, test_matrix=backend.asarray(Omega), **options)
    for member in range(3):
        alone = lowrank.range_finder(
            backend.asarray(A[member]), 10, test_matrix=backend.asarray(Omega[member]), **options
        )
        one = backend.numpy(Q.Q)[member]
        assert norm(residual(one, backend.numpy(alone.Q)), "fro") <= 1e3 * backend.eps(dtype)


def test_all_of_the_space_is_cut_down_to_the_rank():
    A = with_spectrum(gallery.slower(100), (100, 100), "float64")
    found = lowrank.svd(A, 5, oversampling=3, krylov=True, rng=0)
    # and one pass for the norm
    assert (found.rank, found.passes, found.products) == (5, 7, 8 * 5 + 24)


def test_refused():
    with pytest.raises(ValueError, match="needs `power_iterations` of at least 1"):
        lowrank.range_finder(np.eye(5), 2, krylov=True, power_iterations=0)


@pytest.mark.parametrize("wrong", ["two", 1.5, -1])
def test_wrong_powers_are_told(wrong):
    for function in (lowrank.svd, lowrank.range_finder):
        with pytest.raises((TypeError, ValueError), match="`power_iterations` must be"):
            function(np.eye(5), 2, krylov=True, power_iterations=wrong)


def test_any_truth_is_one_power_iteration():
    for krylov in (True, 2, np.True_):
        found = lowrank.range_finder(np.eye(9), 4, krylov=krylov, rng=0)
        assert (found.passes, found.products) == (3, 6)


def test_the_best_of_the_space_comes_first(backend, dtype):
    """Where fewer columns are asked for than it has, ``A Ω`` itself is what is cut off."""
    A = with_spectrum(np.linspace(1, 0.1, 60), (70, 60), dtype)
    Omega = gaussian((60, 4), dtype, seed=1)
    wide = A.astype(np.complex128)
    for kind in ("fro", "spectral"):
        finder = lowrank.RangeFinder(
            backend.asarray(A),
            test_matrix=backend.asarray(Omega),
            norm=kind,
            power_iterations=2,
            krylov=True,
        )
        first = backend.numpy(finder.extend(6).Q)
        E = residual(wide, first.astype(np.complex128))
        Q = backend.numpy(finder.extend(4).Q)
        once = E @ (adjoint(E) @ (E @ Omega[:, 2:]))
        both = np.hstack([once, E @ (adjoint(E) @ once)])
        both /= np.linalg.norm(both, axis=0)
        assert Q.shape == (70, 10)
        assert norm(residual(both, Q), "fro") <= 1e4 * backend.eps(dtype)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("q", [1, 2])
def test_bounds_scale_with_the_matrix(backend, dtype, kind, q):
    A = with_spectrum(gallery.slow(150), (160, 150), dtype)
    options = {"norm": kind, "power_iterations": q, "krylov": True, "rtol": 0.05}
    options["test_matrix"] = backend.asarray(gaussian((150, 1200), dtype))
    one, large = (
        lowrank.range_finder(backend.asarray((c * A).astype(dtype)), **options) for c in (1, 1024)
    )
    assert one.rank == large.rank
    for found, again in zip(one.history, large.history, strict=True):
        assert 1024 * found.bound == pytest.approx(again.bound, rel=1e-3)
        assert 1024 * found.estimate == pytest.approx(again.estimate, rel=1e-3)
