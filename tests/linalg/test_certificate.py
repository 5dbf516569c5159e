import math

import numpy as np
import pytest
from matrices import adjoint, gaussian, norm, residual, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._linalg.certificate import norm_of_product, safety_factor, spectral_norm

RESIDUALS = {
    "rank one": np.asarray([1.0]),
    "rank two": np.asarray([1.0, 1.0]),
    "flat": np.ones(30),
    "slow": gallery.slow(30),
    "slower": gallery.slower(30),
    "fast": gallery.fast(30),
    "staircase": gallery.staircase(60),
    "plateau": gallery.plateau_exponential(30),
}


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("samples", [1, 8, 64, 500])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-9, 1e-100])
def test_safety_factor_solves_its_equation(samples, delta, is_complex):
    x = safety_factor(samples, delta, is_complex=is_complex) ** -2
    exponent = samples if is_complex else samples / 2
    assert 0 < x < 1
    assert exponent * (math.log(x) + 1 - x) == pytest.approx(math.log(delta), rel=1e-12)


def test_safety_factor_known_values():
    """Published values for 64 real samples, and the same for 32 complex ones."""
    assert safety_factor(64, 1e-6, is_complex=False) == pytest.approx(1.73, abs=0.005)
    assert safety_factor(64, 1e-9, is_complex=False) == pytest.approx(2.02, abs=0.005)
    assert safety_factor(32, 1e-9, is_complex=True) == pytest.approx(2.02, abs=0.005)


@pytest.mark.parametrize("values", RESIDUALS.values(), ids=RESIDUALS)
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_the_bound_fails_no_more_often_than_stated(values, is_complex, kind):
    """At δ = 0.05, where failure is visible; 2,000 draws, each of 64 (or 32 complex) samples."""
    draws, samples, delta = 2000, 32 if is_complex else 64, 0.05
    dtype = "complex128" if is_complex else "float64"
    sketch = values[:, None] * gaussian((draws, len(values), samples), dtype)
    if kind == "fro":
        truth, measured = np.linalg.norm(values), np.linalg.norm(sketch, axis=(1, 2))
    else:
        truth, measured = values[0], np.linalg.norm(sketch, ord=2, axis=(1, 2))
    bounds = measured / np.sqrt(samples) * safety_factor(samples, delta, is_complex=is_complex)
    # Four standard deviations of the count above its mean: at most 3e-5 by chance for each case.
    assert np.sum(bounds < truth) <= draws * delta + 4 * (draws * delta * (1 - delta)) ** 0.5
    if kind == "fro":
        assert np.median(bounds) / truth < 1.6


def test_rank_one_is_the_worst_case():
    """The bound is nearest to failing where the residual has rank one."""
    sketches = {
        name: values[:, None] * gaussian((4000, len(values), 8), "float64")
        for name, values in RESIDUALS.items()
    }
    low = {
        name: np.quantile(
            np.linalg.norm(sketch, axis=(1, 2)) / np.linalg.norm(RESIDUALS[name]), 0.01
        )
        for name, sketch in sketches.items()
    }
    assert min(low, key=low.get) == "rank one"


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("with_b", [False, True])
def test_residual_norm(backend, dtype, kind, with_b):
    A = with_spectrum(gallery.slow(80), (90, 80), dtype)
    Q = np.linalg.qr(gaussian((90, 10), dtype, seed=1))[0].astype(dtype)
    wide = np.result_type(A, np.float64)
    B = gaussian((10, 80), dtype, seed=2) * np.asarray(0.1, dtype)
    error = A.astype(wide) - Q @ B if with_b else residual(A.astype(wide), Q.astype(wide))
    truth = norm(error, kind)
    arrays = [backend.asarray(X) for X in ([A, Q, B] if with_b else [A, Q])]
    found = lowrank.residual_norm(*arrays, norm=kind, rng=3)
    assert found.norm == kind
    assert found.samples == 64
    assert found.failure_probability == 1e-9
    assert found.value <= found.upper_bound
    assert truth <= found.upper_bound
    if kind == "fro":
        # two-sided, 64 samples: outside of [1/2.32, 1.72] with probability 2e-12
        assert found.value / 1.72 <= truth <= 2.32 * found.value
        assert found.upper_bound <= 2.1 * found.value
    # more samples, a tighter bound; a smaller probability, a wider one
    more = lowrank.residual_norm(*arrays, norm=kind, rng=3, samples=512)
    surer = lowrank.residual_norm(*arrays, norm=kind, rng=3, failure_probability=1e-15)
    assert more.upper_bound / more.value < found.upper_bound / found.value
    assert found.upper_bound / found.value < surer.upper_bound / surer.value


def test_residual_norm_at_the_level_of_rounding(backend, dtype):
    A = gaussian((50, 5), dtype) @ gaussian((5, 40), dtype, seed=1)
    Q = backend.asarray(np.linalg.qr(A[:, :5])[0].astype(dtype))
    found = lowrank.residual_norm(backend.asarray(A), Q, rng=0)
    wide = backend.numpy(Q)
    truth = np.linalg.norm(residual(A.astype(wide.dtype), wide))
    assert truth <= found.upper_bound <= 100 * backend.eps(dtype) * np.linalg.norm(A)


def test_residual_norm_of_an_empty_basis(backend, dtype):
    A = gaussian((30, 20), dtype)
    found = lowrank.residual_norm(backend.asarray(A), backend.asarray(A[:, :0]), rng=0)
    assert np.linalg.norm(A) <= found.upper_bound


def test_residual_norm_rejects(backend):
    A, Q = gaussian((9, 7), "float32"), gaussian((9, 3), "float32")
    there = backend.asarray
    with pytest.raises(ValueError, match=r"`Q` must have 9 rows to match `A`, got shape \(3, 9\)"):
        lowrank.residual_norm(there(A), there(adjoint(Q)), there(adjoint(A)[:3]))
    with pytest.raises(TypeError, match=r"`A` is .*float32.*`Q` is .*complex64"):
        lowrank.residual_norm(there(A), there(Q.astype("complex64")))
    with pytest.raises(
        ValueError, match=r"`B` must have shape \(3, 7\) to match `Q` and `A`, got \(9, 3\)"
    ):
        lowrank.residual_norm(there(A), there(Q), there(Q))
    with pytest.raises(ValueError, match=r"`samples` must be at least 1, got 0"):
        lowrank.residual_norm(there(A), there(Q), samples=0)
    with pytest.raises(ValueError, match=r"`norm` must be"):
        lowrank.residual_norm(there(A), there(Q), norm="max")
    with pytest.raises(ValueError, match=r"must lie between 0 and 1"):
        lowrank.residual_norm(there(A), there(Q), failure_probability=1.0)
    for bad in range(3):
        arrays = [A.copy(), Q.copy(), adjoint(Q) @ A]
        arrays[bad][2, 2] = np.nan
        for kind in ("fro", "spectral"):
            with pytest.raises(ValueError, match=r"not finite: `A`, `Q` or `B` holds NaN"):
                lowrank.residual_norm(*map(there, arrays), norm=kind)


def test_norm_of_a_product_of_any_size(backend, dtype):
    """Powers that over- and underflow: ``‖FFF‖^{1/3}`` is ‖F‖ for a normal F."""
    for size in (1e-30, 1.0, 1e30):
        F = np.diag(np.asarray([3.0, 2.0, 0.5])) * size
        there = backend.asarray(F.astype(dtype))
        assert norm_of_product([there] * 3, backend.xp, 1 / 3) == pytest.approx(3 * size, rel=1e-5)
        assert float(spectral_norm(there, backend.xp)) == pytest.approx(3 * size, rel=1e-5)
    with np.errstate(divide="ignore"):
        assert norm_of_product([there * 0.0], backend.xp, 1.0) == 0.0


def test_norm_of_a_product_keeps_the_order(backend, dtype):
    factors = [gaussian(shape, dtype) for shape in ((4, 9), (5, 4), (3, 5))]
    there = [backend.asarray(factor) for factor in factors]
    product = factors[2] @ factors[1] @ factors[0]
    found = norm_of_product(there, backend.xp, 1.0)
    assert found == pytest.approx(np.linalg.norm(product, 2), rel=1e-4)


def test_residual_norm_never_promises_more_than_rounding(backend, dtype):
    A = backend.asarray(np.diag(np.linspace(1, 2, 5)).astype(dtype))
    found = lowrank.residual_norm(A, backend.asarray(np.eye(5, dtype=dtype)), rng=0)
    assert found.value == 0.0
    assert backend.eps(dtype) * np.linalg.norm(backend.numpy(A)) < found.upper_bound


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (64, 64)])
def test_residual_norm_of_few_columns_or_rows_is_exact(backend, dtype, shape, kind):
    """As many products as samples would take give all of the residual."""
    A = gaussian(shape, dtype)
    Q = np.linalg.qr(gaussian((shape[0], 7), dtype))[0]
    B = gaussian((7, shape[1]), dtype)
    for factor, E in ((None, residual(A, Q)), (B, A - Q @ B)):
        given = () if factor is None else (backend.asarray(factor),)
        found = lowrank.residual_norm(backend.asarray(A), backend.asarray(Q), *given, norm=kind)
        assert found.samples == min(shape)
        truth = norm(E, kind)
        assert found.value == pytest.approx(truth, rel=100 * backend.eps(dtype))
        assert truth <= found.upper_bound <= truth * (1 + 1000 * backend.eps(dtype))


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_residual_norm_where_samples_overflow(backend, dtype, kind):
    """A number near the largest one, times Gaussian ones, in a matrix that has a norm."""
    A = np.asarray(1e-4, dtype) * gaussian((100, 80), dtype)
    A[0], A[:, 0] = 0, 0
    A[0, 0] = 1.9
    Q, size = backend.asarray(np.eye(100, 1, dtype=dtype)), np.asarray(np.finfo(dtype).max / 2)
    unit = lowrank.residual_norm(backend.asarray(A), Q, norm=kind, rng=0)
    large = backend.asarray(A * size.astype(dtype))
    found = lowrank.residual_norm(large, Q, norm=kind, rng=0)
    for one, other in ((found.value, unit.value), (found.upper_bound, unit.upper_bound)):
        assert one / float(size) == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("samples", [16, 64, 79])
def test_residual_norm_is_normalized(backend, dtype, samples):
    A, Q = np.eye(80, dtype=dtype), np.eye(80, 20, dtype=dtype)
    A[0, 0] = 5
    for kind, least, most in (
        ("fro", 60**0.5, 60**0.5),
        ("spectral", 1.0, 1 + (60 / samples) ** 0.5),
    ):
        found = lowrank.residual_norm(
            backend.asarray(A), backend.asarray(Q), norm=kind, samples=samples, rng=0
        )
        assert 0.9 * least <= found.value <= 1.1 * most
    is_complex = np.dtype(dtype).kind == "c"
    x = (found.upper_bound / found.value) ** -2
    assert (x * np.exp(1 - x)) ** (samples * (1 if is_complex else 0.5)) == pytest.approx(
        1e-9, rel=0.05
    )
