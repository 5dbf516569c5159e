"""Published error bounds: against simulation, against hand-made numbers, and on the range finder.

The simulations have fixed seeds; matrices.py accounts for what the property test draws.
"""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, defect, gaussian, norm, residual, with_spectrum

import lowrank
from lowrank import bounds, gallery

KINDS = ("fro", "spectral")
SPECTRA = {
    "slow": gallery.slow(40),
    "slower": gallery.slower(40),
    "fast": gallery.fast(40),
    "flat": np.ones(40),
    "staircase": gallery.staircase(40),
    "plateau": gallery.plateau_polynomial(40),
    "gap": np.r_[np.ones(8), np.full(32, 1e-2)],
    "exact rank": np.r_[np.ones(8), np.zeros(32)],
}
every_spectrum = pytest.mark.parametrize("s", SPECTRA.values(), ids=SPECTRA)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_power = pytest.mark.parametrize("q", [0, 1, 3])


def simulated(s, columns, q, draws, dtype="float64"):
    """True errors, in both norms, of Gaussian sketches of diag(s)."""
    return _simulated(tuple(s), columns, q, draws, dtype)


@cache
def _simulated(values, columns, q, draws, dtype):
    s = np.asarray(values)
    Y = s[:, None] ** (2 * q + 1) * gaussian((draws, s.size, columns), dtype)
    Q = np.linalg.qr(Y).Q
    E = s * np.eye(s.size) - Q @ np.conj(np.swapaxes(Q, -1, -2)) * s
    return {
        "fro": np.linalg.norm(E, axis=(1, 2)),
        "spectral": np.linalg.norm(E, ord=2, axis=(1, 2)),
    }


# -- against simulation ---------------------------------------------------------------------------


@every_spectrum
@every_power
@pytest.mark.parametrize(
    ("k", "p", "dtype"),
    [(5, 2, "float64"), (5, 2, "complex128"), (8, 4, "float64"), (3, 20, "complex128")],
)
def test_expected(s, q, k, p, dtype):
    errors = simulated(s, k + p, q, 200, dtype)
    for kind in KINDS:
        bound = bounds.expected(s, k, p, norm=kind, power_iterations=q)
        mean = np.mean(errors[kind])
        sure = 4 * np.std(errors[kind]) / 200**0.5
        assert mean <= bound + sure + 1e-14


@every_spectrum
@every_kind
@pytest.mark.parametrize("columns", [2, 10, 30])
def test_root_mean_square(s, kind, columns):
    squares = simulated(s, columns, 0, 200)[kind] ** 2
    bound = bounds.root_mean_square(s, columns, norm=kind)
    assert np.mean(squares) <= bound**2 + 4 * np.std(squares) / 200**0.5 + 1e-28
    if kind == "fro":
        if columns == 10:  # neither nearly nothing nor nearly everything: it is sharp
            assert bound <= 1.75 * np.sqrt(np.mean(squares)) + 1e-12
        assert all(
            bound <= bounds.expected(s, k, columns - k) * (1 + 1e-12) for k in range(columns - 1)
        )


@every_spectrum
@every_power
@every_kind
def test_deviation(s, q, kind):
    """At parameters that make failure visible, if the bound were ever so sharp."""
    k, p, t, u = 5, 5, 1.9, 2.2
    found = bounds.deviation(s, k, p, t=t, u=u, norm=kind, power_iterations=q)
    assert found.failure_probability == pytest.approx(2 * 1.9**-5 + math.exp(-(2.2**2) / 2))
    errors = simulated(s, k + p, q, 500)[kind]
    assert np.mean(errors > found.bound + 1e-14) <= found.failure_probability
    assert np.mean(errors) <= bounds.expected(s, k, p, norm=kind, power_iterations=q) <= found.bound


@every_spectrum
@every_power
def test_deviation_simple(s, q):
    found = bounds.deviation_simple(s, 5, 4, power_iterations=q)
    assert found.failure_probability == pytest.approx(3 * math.exp(-4))
    assert np.all(simulated(s, 9, q, 300)["spectral"] <= found.bound + 1e-14)
    # it is Theorem 10.8 with t = e and u = √(2p), rounded up
    full = bounds.deviation(s, 5, 4, t=math.e, u=8**0.5, norm="spectral", power_iterations=q)
    assert full.bound <= found.bound <= 3 * full.bound + 1e-14


@every_spectrum
@every_power
@every_kind
def test_likely(s, q, kind):
    errors = simulated(s, 24, q, 300)[kind]
    bound = bounds.likely(s, 24, norm=kind, power_iterations=q)
    assert np.all(errors <= bound + 1e-14)
    assert bound <= norm(np.diag(s), kind) * (1 + 1e-15)
    looser = bounds.likely(s, 24, norm=kind, power_iterations=q, failure_probability=1e-12)
    assert bound <= looser


@every_kind
def test_likely_is_the_best_deviation_of_that_probability(kind):
    s, delta = gallery.slow(40), 1e-6
    found = []
    for k in range(21):
        p = 24 - k
        options = {"t": (4 / delta) ** (1 / p), "u": math.sqrt(2 * math.log(2 / delta))}
        one = bounds.deviation(s, k, p, norm=kind, **options)
        assert one.failure_probability == pytest.approx(delta)
        found.append(one.bound)
    likely = bounds.likely(s, 24, norm=kind, failure_probability=delta)
    assert likely == pytest.approx(min(found))
    assert likely < norm(np.diag(s), kind)


@every_spectrum
@every_power
@every_kind
def test_given_sketch(s, q, kind):
    """Never exceeded, for any split; and sharp: some draw comes near, where there is a gap."""
    draws, columns = 60, 10
    sketch = gaussian((draws, s.size, columns), "float64", 1)
    Y = s[:, None] ** (2 * q + 1) * sketch
    Q = np.linalg.qr(Y).Q
    ratios = []
    for one, basis in zip(sketch, Q, strict=True):
        truth = norm(np.diag(s) - basis @ (basis.T * s), kind)
        for k in range(1, 11):
            bound = bounds.given_sketch(s, one, k, norm=kind, power_iterations=q)
            assert truth <= bound * (1 + 1e-9) + 1e-9 * s[0]
            ratios.append(truth / bound if bound > 1e-12 else 0.0)
    assert max(ratios) > 0.6 or s[-1] == 0


# -- against numbers made by hand -----------------------------------------------------------------


def test_known_values():
    s = np.r_[4.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    k, p, tau, spread = 2, 5, 2.0, math.e * 7**0.5
    assert bounds.expected(s, k, p) == pytest.approx((1 + 2 / 4) ** 0.5 * tau)
    assert bounds.expected(s, k, p, power_iterations=1) == pytest.approx(
        (1 + 0.5**4 * 2 / 4) ** 0.5 * tau
    )
    first = 1 + (2 / 4) ** 0.5
    assert bounds.expected(s, k, p, norm="spectral") == pytest.approx(first + spread / 5 * tau)
    assert bounds.expected(s, k, p, norm="spectral", power_iterations=1) == pytest.approx(
        (first + spread / 5 * tau) ** (1 / 3)
    )
    t, u = 2.0, 3.0
    f, g = t * (3 * 2 / 6) ** 0.5, t * spread / 6
    found = bounds.deviation(s, k, p, t=t, u=u)
    assert found == pytest.approx(((1 + f) * tau + u * g, 2 / 32 + math.exp(-4.5)))
    assert bounds.deviation(s, k, p, t=t, u=u, power_iterations=2).bound == pytest.approx(
        tau + 0.5**4 * (f * tau + u * g)
    )
    assert bounds.deviation(s, k, p, t=t, u=u, norm="spectral").bound == pytest.approx(
        1 + f + g * tau + u * g
    )
    simple = bounds.deviation_simple(s, k, p)
    assert simple.bound == pytest.approx(1 + 16 * (1 + 2 / 6) ** 0.5 + 8 * 7**0.5 / 6 * tau)
    # the best split of four columns is k = 1: (1 + 1/2) · 8, against 24 and 2 · 4 for k = 0 and 2
    assert bounds.root_mean_square(s, 4) == pytest.approx((3 * 4) ** 0.5)
    assert bounds.root_mean_square(s, 3) == pytest.approx((2 * 8) ** 0.5)
    e2 = math.e**2
    assert bounds.root_mean_square(s, 3, norm="spectral") == pytest.approx(
        min(16 + e2 / 3 * 24, 3 * (4 + e2 / 2 * 8)) ** 0.5
    )


def test_given_sketch_by_hand():
    s = np.r_[2.0, 1.0, 0.5]
    sketch = np.asarray([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert bounds.given_sketch(s, sketch, 1) == pytest.approx((1.25 + 9) ** 0.5)
    assert bounds.given_sketch(s, sketch, 1, norm="spectral") == pytest.approx((1 + 9) ** 0.5)
    assert bounds.given_sketch(s, sketch, 1, power_iterations=1) == pytest.approx(
        (1.25 + (3 * 0.5**2) ** 2) ** 0.5
    )
    assert bounds.given_sketch(s, sketch, 2) == math.inf  # the first rows are parallel
    assert bounds.given_sketch(s, sketch, 0) == pytest.approx(5.25**0.5)


@every_kind
@every_power
def test_any_scale(kind, q):
    s = gallery.slow(30)
    options = {"norm": kind, "power_iterations": q}
    for scale in (1e-300, 1e250):
        assert bounds.expected(scale * s, 5, 5, **options) / scale == pytest.approx(
            bounds.expected(s, 5, 5, **options)
        )
        assert bounds.likely(scale * s, 20, **options) / scale == pytest.approx(
            bounds.likely(s, 20, **options)
        )


def test_spectra_that_fall_to_nothing():
    s = np.exp(-np.arange(1000) / 7)
    for k in (20, 350, 800):
        for q in (0, 3, 7):
            best = s[k]
            for bound in (
                bounds.expected(s, k, 10, norm="spectral", power_iterations=q),
                bounds.likely(s, k + 10, norm="spectral", power_iterations=q) * s[k] / s[k + 10],
                bounds.deviation_simple(s, k, 10, power_iterations=q).bound,
            ):
                assert best <= bound <= 1e4 * best
    for size in (1e-200, 1e200):
        flat = bounds.root_mean_square(np.full(10, size), 5)
        assert flat / size == pytest.approx(bounds.root_mean_square(np.ones(10), 5))


@pytest.mark.parametrize(
    ("call", "values", "options"),
    [
        ("expected", ([1.0, 2.0], 1, 2), {}),
        ("expected", ([1.0, -1.0], 1, 2), {}),
        ("expected", ([1.0, math.nan], 1, 2), {}),
        ("expected", ([[1.0]], 1, 2), {}),
        ("expected", ([1.0], -1, 2), {}),
        ("expected", ([1.0], 1, 1), {}),
        ("expected", ([1.0], 1, 2), {"norm": "max"}),
        ("expected", ([1.0], 1, 2), {"power_iterations": -1}),
        ("deviation", ([1.0], 1, 3), {"t": 2.0, "u": 2.0}),
        ("deviation", ([1.0], 1, 4), {"t": 0.9, "u": 2.0}),
        ("deviation", ([1.0], 1, 4), {"t": 2.0, "u": math.nan}),
        ("deviation", ([1.0], 1, 4), {"t": math.inf, "u": 2.0}),
        ("deviation_simple", ([1.0], 1, 3), {}),
        ("root_mean_square", ([1.0], 1), {}),
        ("likely", ([1.0], 3), {}),
        ("likely", ([1.0], 5), {"failure_probability": 0.0}),
        ("given_sketch", ([1.0, 0.5], np.ones((3, 2)), 1), {}),
        ("given_sketch", ([1.0, 0.5], np.ones((2, 1)), 2), {}),
        ("given_sketch", ([1.0, 0.5], np.ones(2), 1), {}),
        ("given_sketch", ([1.0, 0.5], np.full((2, 1), math.nan), 1), {}),
    ],
    ids=str,
)
def test_refused(call, values, options):
    with pytest.raises(ValueError, match="must"):
        getattr(bounds, call)(*values, **options)


# -- on the range finder --------------------------------------------------------------------------


@given(
    spectrum=st.sampled_from(sorted(set(gallery.SPECTRA) - {"low_rank"})),
    m=st.integers(10, 60),
    n=st.integers(10, 60),
    columns=st.integers(4, 14),
    rank=st.integers(1, 9),
    power_iterations=st.integers(0, 3),
    seed=st.integers(0, 10_000),
)
def test_range_finder(backend, dtype, spectrum, m, n, columns, rank, power_iterations, seed):
    """Theorem 9.1 and its power version, certain once Ω is known; and the likely bounds."""
    s = gallery.SPECTRA[spectrum](min(m, n))
    columns = min(columns, m, n)
    rank = min(rank, columns)
    A = with_spectrum(s, (m, n), dtype, seed)
    Omega = gaussian((n, columns), dtype, seed + 1)
    found = lowrank.range_finder(
        backend.asarray(A),
        columns,
        power_iterations=power_iterations,
        test_matrix=backend.asarray(Omega),
    )
    Q, eps = backend.numpy(found.Q), backend.eps(dtype)
    assert Q.shape == (m, columns)
    assert defect(Q) <= 100 * eps * columns**0.5
    A, Omega = A.astype(Q.dtype), Omega.astype(Q.dtype)
    _, s, Vh = np.linalg.svd(A, full_matrices=False)
    rounding = 100 * eps * s[0] * np.linalg.norm(np.linalg.pinv(Vh[:rank] @ Omega))
    for kind in KINDS:
        error = norm(residual(A, Q), kind)
        known = bounds.given_sketch(
            s, Vh @ Omega, rank, norm=kind, power_iterations=power_iterations
        )
        assert error <= known + rounding
        likely = bounds.likely(
            s,
            columns,
            norm=kind,
            power_iterations=power_iterations,
            failure_probability=DRAWN,
        )
        assert error <= likely + rounding
