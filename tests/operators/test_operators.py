"""Objects with `shape`, `dtype`, `matmat` and `rmatmat`, whose norm nobody knows."""

import math

import numpy as np
import pytest
from conftest import BACKENDS
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._linalg.certificate import safety_factor, spread_factor

RANKS = {  # the rank asked for on the published diagonal spectra, n = 8000
    ("slow", 1e-2): 16,
    ("slow", 1e-4): 345,
    ("fast", 1e-4): 66,
    ("fast", 1e-5): 82,
    ("s_shaped", 1e-2): 33,
}


class Operator:
    """An array in a coat, which counts what is asked of it."""

    def __init__(self, A, dtype=None):
        self.A = A
        self.shape = tuple(A.shape)
        self.dtype = A.dtype if dtype is None else dtype
        self.columns = []

    def matmat(self, X):
        self.columns.append(X.shape[1])
        return self.A @ X

    def rmatmat(self, Y):
        self.columns.append(Y.shape[1])
        A = self.A.mT
        return (A.conj() if hasattr(A, "conj") else A) @ Y


class Diagonal:
    dtype = np.dtype("float64")

    def __init__(self, values):
        self.values = values
        self.shape = (values.size, values.size)

    def matmat(self, X):
        return self.values[:, None] * X

    rmatmat = matmat


def cast(backend, A):
    """The array as an operator of its library; array-api-strict has no method `conj`."""
    there = backend.asarray(A)

    class Coat(Operator):
        device = backend.device  # which a dtype alone does not tell

        def rmatmat(self, Y):
            self.columns.append(Y.shape[1])
            return backend.asarray(adjoint(A)) @ Y

    return Coat(there)


@pytest.mark.parametrize(("spectrum", "rtol"), RANKS)
@pytest.mark.parametrize("factorize", [lowrank.svd, lowrank.qb])
def test_published_ranks(spectrum, rtol, factorize):
    s = getattr(gallery, spectrum)(8000)
    found = factorize(Diagonal(s), rtol=rtol, rng=0)
    left, right = (found.Q, found.B) if factorize is lowrank.qb else (found.U * found.S, found.Vh)
    assert found.converged
    assert gallery.best_rank(s, rtol=rtol) <= found.rank <= RANKS[spectrum, rtol]
    # ‖D − LR‖² by parts, whose rounding is far below the square of the tolerance
    of_both = np.vdot(left.T @ left, right @ right.T)
    squares = s @ s - 2 * np.sum(s[:, None] * left * right.T) + of_both
    assert math.sqrt(squares) <= found.error_bound <= rtol * np.linalg.norm(s)
    assert found.norm_A == pytest.approx(np.linalg.norm(s), rel=1e-5)


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 150),
    n=st.integers(1, 150),
    rtol=st.sampled_from([0.5, 1e-1, 1e-2, 1e-4]),
    kind=st.sampled_from(["fro", "spectral"]),
    side=st.sampled_from(["left", "right"]),
    seed=st.integers(0, 10_000),
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_certificate_holds(dtype, spectrum, m, n, rtol, kind, side, seed):
    """With a failure probability that matrices.py accounts for."""
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    found = quietly(
        lowrank.range_finder,
        Operator(A),
        rtol=rtol,
        norm=kind,
        side=side,
        rng=seed,
        failure_probability=DRAWN,
    )
    wide = A.astype("complex128" if dtype == "complex128" else "float64")
    wide = adjoint(wide) if side == "right" else wide
    size, eps = norm(wide, kind), np.finfo(dtype).eps
    error = norm(residual(wide, found.Q), kind)
    assert error <= found.error_bound
    assert found.converged == (found.error_bound <= found.tolerance)
    # a square test matrix may be so ill-conditioned that rounding keeps a full basis from it
    assert found.converged or (found.rank == min(m, n) and rtol < 1000 * eps)
    assert found.tolerance == pytest.approx(rtol * found.norm_A)
    assert found.norm_A <= size * (1 + 10 * eps)
    # a flat spectrum is the worst: 64 samples know the norm to a factor of 1.8 at this probability
    assert found.norm_A >= size / 1.9 or kind == "spectral"
    assert defect(found.Q) <= 100 * eps * max(found.rank, 1) ** 0.5


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("factorize", [lowrank.svd, lowrank.qb])
def test_the_norm_is_at_least_that_of_what_was_found(factorize, kind):
    """Samples know the norm of a flat spectrum to a factor only; the factors tell more."""
    A = with_spectrum(np.ones(200), (220, 200), "float64")
    found = factorize(Operator(A), rtol=0.7, norm=kind, rng=0)
    captured = found.B if factorize is lowrank.qb else np.diag(found.S)
    least, exact = (1 - 1e-12) * norm(captured, kind), norm(A, kind)
    assert max(least, 0.7 * exact) <= found.norm_A <= (1 + 1e-12) * exact


def test_every_library(backend, dtype):
    A = with_spectrum(gallery.fast(60), (80, 60), dtype)
    if backend.name.startswith("strict"):
        pytest.skip("array-api-strict multiplies no NumPy array; the next test has it")
    operator = cast(backend, A)
    U, S, Vh = found = lowrank.svd(operator, rtol=1e-3, rng=0)
    wide = backend.numpy(operator.A)
    assert found.converged
    approximation = (backend.numpy(U) * backend.numpy(S)) @ backend.numpy(Vh)
    assert norm(wide - approximation, "fro") <= 1e-3 * norm(wide, "fro")
    assert (found.passes, found.products) == (len(operator.columns), sum(operator.columns))


def test_the_first_product_tells_library_and_dtype(backend, dtype):
    """The operator says NumPy and float64; what it returns decides, complex or not."""
    A = with_spectrum(gallery.slower(150), (200, 150), dtype)
    asked = []

    class Foreign:
        shape, dtype = A.shape, np.dtype("float64")

        def matmat(self, X):
            asked.append(X)
            X = X if len(asked) == 1 else backend.numpy(X)  # which checks where it lives
            return backend.asarray((A @ X).astype(A.dtype))

        def rmatmat(self, Y):
            return backend.asarray((adjoint(A) @ backend.numpy(Y)).astype(A.dtype))

    for call in ({"rtol": 0.3}, {"rank": 20}):
        asked.clear()
        found = lowrank.qb(Foreign(), rng=0, **call)
        assert type(asked[0]) is np.ndarray
        assert asked[0].dtype == "float64"
        assert {str(X.dtype).rpartition(".")[2] for X in asked[1:]} <= {dtype}
        Q, B = backend.numpy(found.Q), backend.numpy(found.B)
        assert str(found.B.dtype).endswith(dtype)
        assert norm(A - Q @ B, "fro") <= 4 * gallery.best_error(gallery.slower(150), found.rank)
        if found.converged is not None:
            assert len(asked) > 1
            assert norm(A - Q @ B, "fro") <= 0.3 * norm(A, "fro")


def test_an_unknown_norm_takes_half_of_the_failure_probability():
    """Of a complex operator that said float64, the first look is a real one."""
    A = gaussian((400, 400), "complex128")
    delta = 1e-6
    found = lowrank.range_finder(
        Operator(A, dtype=np.dtype("float64")), rtol=0.5, rng=0, failure_probability=delta
    )
    assert len(found.history) > 2
    for j, look in enumerate(found.history, start=1):
        samples, is_complex = (64, False) if j == 1 else (32 * (1 + look.rank // 256), True)
        factor = safety_factor(samples, delta / 2 / (j * (j + 1)), is_complex=is_complex)
        assert look.bound == pytest.approx(look.estimate * factor, rel=1e-9)


class Deflated(Operator):
    """``(I − QQᴴ)A``, as users deflate an operator."""

    def __init__(self, A, Q):
        super().__init__(A)
        self.Q = Q

    def matmat(self, X):
        return residual(super().matmat(X), self.Q)

    def rmatmat(self, Y):
        return super().rmatmat(residual(Y, self.Q))


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("how", [{"rtol": 0.2}, {"rank": 64}, {"rtol": 0.1, "rank": 60}])
def test_an_operator_deflated_with_the_same_seed(kind, how):
    """The seed alone would give the very test matrix that has nothing left."""
    A = with_spectrum(gallery.slower(300), (300, 300), "float64")
    nothing = np.zeros((300, 1))
    for first in (Deflated(A, nothing), A):
        Q = quietly(lowrank.range_finder, first, norm=kind, rng=0, **how).Q
        left = residual(A, Q)
        for tolerance in ({"atol": 1e-6}, {"rtol": 0.5}):
            found = quietly(lowrank.range_finder, Deflated(A, Q), norm=kind, rng=0, **tolerance)
            assert found.rank > 0
            truth = norm(residual(left, found.Q), kind)
            assert truth <= found.error_bound
            if found.converged:
                assert truth <= max(tolerance.get("rtol", 0) * norm(left, kind), 1e-6)


def test_norm_after_columns_without_a_look():
    """‖A‖² = ‖QᴴA‖² + ‖E‖², of which the second part is sampled."""
    norm_A = 20.0
    for columns in (1, 5, 100):
        finder = lowrank.RangeFinder(Operator(np.eye(400)), rng=0).extend(columns)
        found = finder.reach(rtol=0.6).result()
        assert found.converged
        assert norm_A / 1.8 <= found.norm_A <= norm_A
        assert norm(residual(np.eye(400), found.Q), "fro") <= found.error_bound


def test_products_of_torch_that_carry_gradients_or_half_precision():
    torch = pytest.importorskip("torch")
    A = torch.asarray(with_spectrum(gallery.fast(60), (80, 60), "float32"))

    class Layer:
        shape, dtype = (80, 60), torch.float32
        weight = torch.nn.Parameter(A)

        def matmat(self, X):
            return self.weight @ X

        def rmatmat(self, Y):
            return self.weight.mH @ Y

    Q, B = lowrank.qb(Layer(), rtol=1e-2, rng=0)
    assert not Q.requires_grad
    assert not B.requires_grad

    class Half(Layer):
        dtype = torch.bfloat16

        def matmat(self, X):
            return (A @ X.float()).bfloat16()

        def rmatmat(self, Y):
            return (A.mH @ Y.float()).bfloat16()

    Q, B = lowrank.qb(Half(), 20, rng=0)
    assert Q.dtype == B.dtype == torch.float32
    assert torch.linalg.norm(A - Q @ B) <= 4 * gallery.best_error(gallery.fast(60), 20)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("columns", [0, 5])
def test_products_that_vanish_certify_nothing(kind, columns):
    """The smallest number times less than a half is zero: ``AᴴY`` for orthonormal Y, here."""
    smallest = 5e-324
    for size, is_met in ((smallest, False), (0.0, True)):
        finder = lowrank.RangeFinder(Operator(np.eye(300) * size), norm=kind, rng=0)
        found = quietly(finder.extend(columns).reach, rtol=0.1).result()
        assert found.converged is is_met
        assert size <= found.error_bound <= 1e4 * size


def test_an_adjoint_product_that_overflows():
    A = np.zeros((2000, 3), "float32")
    A[:, 1] = 5e37
    with pytest.raises(ValueError, match="is not finite"):
        quietly(lowrank.range_finder, Operator(A), rtol=0.1, norm="spectral", rng=0)


def test_norms_of_flat_spectra():
    """The first columns see little of it; the sample sees all."""
    norm_A = 4000**0.5
    found = quietly(lowrank.range_finder, Diagonal(np.ones(4000)), 64, rtol=1e-3, rng=0)
    assert norm_A <= found.history[0].bound <= 2.2 * norm_A
    assert norm_A / 1.8 <= found.norm_A <= norm_A
    assert found.error_bound >= norm_A * (1 - 64 / 4000) ** 0.5


def test_scipy_operators():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = with_spectrum(gallery.fast(60), (80, 60), "complex128")
    Q, B = lowrank.qb(linalg.aslinearoperator(A), rtol=1e-6, rng=0)
    assert norm(A - Q @ B, "fro") <= 1e-6 * norm(A, "fro")


def test_ask_again():
    A = with_spectrum(gallery.slow(200), (300, 200), "float64")
    operator = Operator(A)
    finder = lowrank.RangeFinder(operator, rng=0).extend(10)
    assert operator.columns == [10]
    for rtol in (1e-1, 1e-2, 1e-3):
        found = finder.reach(rtol=rtol).result()
        assert found.converged
        assert norm(residual(A, found.Q), "fro") <= found.error_bound <= rtol * norm(A, "fro")
        assert found.norm_A <= norm(A, "fro")
    assert sum(operator.columns) == found.products
    full = lowrank.RangeFinder(Operator(A), rng=0).extend(200).reach(rtol=1e-6).result()
    assert full.converged
    assert full.norm_A == pytest.approx(norm(A, "fro"))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (7, 3)])
def test_nothing_in_it(shape):
    found = lowrank.svd(Operator(np.zeros(shape)), rtol=1e-3, rng=0)
    assert (found.rank, found.converged, found.norm_A, found.error_bound) == (0, True, 0.0, 0.0)


def test_residual_norm(backend, dtype):
    A = with_spectrum(gallery.slow(70), (80, 70), dtype)
    Q = np.linalg.qr(A[:, :9]).Q
    operator = cast(backend, A)
    found = lowrank.residual_norm(operator, backend.asarray(Q), rng=0)
    truth = norm(residual(A.astype("complex128"), Q), "fro")
    assert truth <= found.upper_bound <= 4 * truth
    assert operator.columns == [64]


@pytest.mark.parametrize("samples", [32, 64, 500])
@pytest.mark.parametrize("delta", [0.5, 0.05, 1e-9, 1e-100])
@pytest.mark.parametrize("is_complex", [False, True])
def test_spread_factor_solves_its_equation(samples, delta, is_complex):
    x = spread_factor(samples, delta, is_complex=is_complex) ** 2
    exponent = samples if is_complex else samples / 2
    assert x > 1
    assert exponent * (math.log(x) + 1 - x) == pytest.approx(math.log(delta), rel=1e-9)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 30])
def test_sampled_norms_exceed_the_truth_no_more_often_than_stated(is_complex, rank):
    draws, samples, delta = 2000, 16, 0.05
    sketch = gaussian((draws, rank, samples), "complex128" if is_complex else "float64")
    sizes = np.linalg.norm(sketch, axis=(1, 2)) / samples**0.5
    factor = spread_factor(samples, delta, is_complex=is_complex)
    assert np.sum(sizes / factor > rank**0.5) <= draws * delta + 4 * (draws * delta) ** 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"rank": 3}, {"rtol": 0.1}, {"rtol": 0.1, "norm": "spectral"}])
def test_not_finite(bad, options):
    A = gaussian((30, 20), "float64")
    A[5, 5] = bad
    with pytest.raises(ValueError, match="a product of `A` with the test matrix is not finite"):
        quietly(lowrank.svd, Operator(A), rng=0, **options)


@pytest.mark.parametrize("power_iterations", [0, 1, 2])
def test_not_finite_once(power_iterations):
    """An iterative solver, for one, may return zero for what is not finite."""
    A, products = gaussian((30, 20), "float64"), []

    class Solver(Operator):
        def matmat(self, X):
            products.append(X)
            return self.A @ X + (np.nan if len(products) == 1 else 0.0)

        def rmatmat(self, Y):
            return np.nan_to_num(self.A.T @ Y)

    with pytest.raises(ValueError, match="a product of `A` with the test matrix is not finite"):
        lowrank.svd(Solver(A), 3, power_iterations=power_iterations, rng=0)


def test_refused():
    A = gaussian((30, 20), "float64")
    with pytest.raises(TypeError, match=r"`A` has dtype int64.*cast it to float32"):
        lowrank.svd(Operator(A, dtype=np.dtype("int64")), rtol=0.1)
    with pytest.raises(ValueError, match=r"operator of two dimensions, got shape \(4, 30, 20\)"):
        lowrank.svd(Operator(np.stack([A] * 4)), rtol=0.1)
    wrong = Operator(A)
    wrong.shape = (20, 30)
    message = r"`A.matmat` of an array of shape .* must have shape \(20, 30\), got \(30, 30\)"
    wrong.matmat = lambda X: A @ X[:20]
    with pytest.raises(ValueError, match=message):
        lowrank.svd(wrong, rtol=0.1)
    with pytest.raises(TypeError, match=r"must be an array.*A\.matmat\(numpy\.eye\(20\)\)"):
        lowrank.qr(Operator(A))


def test_residual_norm_of_an_operator_and_factors(backend):
    """B may come with an operator; it must live where the products do, and be an array."""
    A = with_spectrum(gallery.fast(30), (40, 30), "float32")
    Q = np.linalg.qr(gaussian((40, 5), "float32"))[0]
    B = Q.T @ A
    there = [backend.asarray(X) for X in (Q, B)]
    found = lowrank.residual_norm(cast(backend, A), *there, rng=0)
    assert np.linalg.norm(A - Q @ B) <= found.upper_bound <= 5 * np.linalg.norm(A - Q @ B)
    with pytest.raises(TypeError, match="`B` must be an array"):
        lowrank.residual_norm(cast(backend, A), there[0], B.tolist())


def test_residual_norm_of_products_in_another_dtype():
    class Double(Operator):
        def matmat(self, X):
            return (self.A @ X).astype("float64")

    with pytest.raises(TypeError, match=r"A\.matmat\(X\).*float64.*`Q`.*float32"):
        lowrank.residual_norm(Double(np.ones((9, 8), "float32")), np.eye(9, 2, dtype="float32"))


def test_one_column_tells_operators_of_one_seed_apart():
    """Once for each object, however often it is asked again."""
    A = Operator(with_spectrum(gallery.slow(300), (300, 300), "float64"))
    finder = lowrank.RangeFinder(A, rng=0).reach(rtol=0.2).reach(rtol=0.1).reach(rtol=1e-2)
    assert A.columns.count(1) == 1
    assert finder.result().converged


@pytest.mark.parametrize("factorize", [lowrank.svd, lowrank.qb])
def test_the_norm_found_is_that_of_the_factors(factorize):
    """‖QᴴA‖_F is a lower bound on ‖A‖_F that is sharper than that of a sample."""
    A = with_spectrum(gallery.fast(150), (200, 150), "float64")
    found = factorize(Operator(A), rtol=1e-3, rng=0)
    assert found.norm_A == pytest.approx(np.linalg.norm(A), rel=1e-5)
    assert found.norm_A <= np.linalg.norm(A) * (1 + 1e-12)
    assert found.tolerance == pytest.approx(1e-3 * np.linalg.norm(A), rel=1e-5)


class Matrix:
    """An array that only multiplies from the left, and is no array of any library."""

    def __init__(self, A, backend):
        self.A, self.backend = A, backend
        self.shape, self.dtype, self.device = A.shape, A.dtype, backend.device
        if backend.name.startswith("torch"):
            self.dtype = getattr(backend.xp, str(A.dtype))

    def __matmul__(self, X):
        return self.backend.asarray(self.A) @ (
            self.backend.asarray(X) if type(X) is np.ndarray else X
        )

    def like(self, A):
        return Matrix(A, self.backend)


class WithH(Matrix):
    @property
    def H(self):
        return self.like(adjoint(self.A))


class WithMH(Matrix):
    @property
    def mH(self):
        return self.like(adjoint(self.A))


class WithAdjoint(Matrix):
    def adjoint(self):
        return self.like(adjoint(self.A))


class WithT(Matrix):
    @property
    def T(self):
        return self.like(self.A.T)


class WithConjAndT(WithT):
    def conj(self):
        raise AssertionError  # a copy


class WithRmatmat(WithT):
    """Whose own word on the adjoint counts."""

    @property
    def H(self):
        raise AssertionError

    def rmatmat(self, Y):
        return self.like(adjoint(self.A)) @ Y


class WithMatmat(WithH):
    def matmat(self, X):
        return Matrix.__matmul__(self, X)

    def __matmul__(self, X):
        raise AssertionError

    def like(self, A):
        return Matrix(A, self.backend)


@pytest.mark.parametrize("shape", [(80, 60), (60, 80)])
@pytest.mark.parametrize(
    "kind", [WithH, WithMH, WithAdjoint, WithT, WithConjAndT, WithRmatmat, WithMatmat]
)
def test_products_by_a_sign_and_an_adjoint(backend, dtype, kind, shape):
    A = with_spectrum(gallery.fast(60), shape, dtype)
    given = kind(A, backend)
    if kind is WithT and dtype.startswith("complex"):
        with pytest.raises(TypeError, match="`T` does not say whether it conjugates"):
            lowrank.qb(given, rtol=1e-3, rng=0)
        return
    found = lowrank.svd(given, rtol=1e-3, rng=0)
    U, S, Vh = map(backend.numpy, found)
    assert found.converged
    assert str(found.U.dtype).endswith(dtype)
    assert norm(A - (U * S) @ Vh, "fro") <= 1e-3 * norm(A, "fro")


def test_a_transpose_of_a_complex_matrix_that_calls_itself_real():
    """Conjugates around the transpose make it the adjoint."""
    A = with_spectrum(gallery.fast(60), (80, 60), "complex128")
    given = WithT(A, next(b for b in BACKENDS if b.name == "numpy"))
    given.dtype = np.dtype("float64")
    Q, B = lowrank.qb(given, rtol=1e-3, rng=0)
    assert norm(A - Q @ B, "fro") <= 1e-3 * norm(A, "fro")


def test_an_adjoint_is_missing():
    class OnlyMatmat:
        shape, dtype = (5, 4), np.dtype("float64")

        matmat = None

    message = r"`A` is a OnlyMatmat without an adjoint: .*`rmatmat\(Y\)`.*`H`.*`adjoint\(\)`"
    with pytest.raises(TypeError, match=message):
        lowrank.svd(OnlyMatmat(), 2)


def test_an_operator_is_not_asked_for_products_with_nothing():
    """Some cannot give them."""

    class Careful(Operator):
        def matmat(self, X):
            assert X.shape[1] > 0
            return super().matmat(X)

        def rmatmat(self, Y):
            assert Y.shape[1] > 0
            return super().rmatmat(Y)

    for A in (np.zeros((7, 3)), np.eye(7, 3)):
        for options in ({"rank": 0}, {"rtol": 2.0}, {"rtol": 1e-3}):
            found = lowrank.svd(Careful(A), oversampling=0, rng=0, **options)
            assert found.Vh.shape == (found.rank, 3)
