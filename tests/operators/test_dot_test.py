"""The dot test tells operators whose two products belong to one matrix from all others."""

import re
from dataclasses import replace

import numpy as np
import pytest
from matrices import adjoint, gaussian, norm

import lowrank
from lowrank._operators import as_operator
from lowrank._operators.adjoints import check_adjoint

WRONG = {  # each in place of Aᴴ Y, and what the error says of it
    "no conjugate": (lambda A, Y: A.T @ Y, "lacks a conjugate"),
    "the product itself": (lambda A, Y: A @ Y, "is not the adjoint"),
    "another size": (lambda A, Y: 3.0 * adjoint(A) @ Y, "is 3 times the adjoint"),
    "another sign": (lambda A, Y: -(adjoint(A) @ Y), "is -1 times the adjoint"),
    "nothing": (lambda A, Y: 0.0 * (adjoint(A) @ Y), "is 0 times the adjoint"),
    "rows rolled": (lambda A, Y: np.roll(adjoint(A) @ Y, 1, axis=0), "is not the adjoint"),
    "columns swapped": (lambda A, Y: (adjoint(A) @ Y)[:, ::-1], "is not the adjoint"),
}


class Products:
    """Two products of NumPy, by default those of an array on `backend`."""

    def __init__(self, A, rmatmat=None, backend=None, dtype=None):
        self.A, self.backend, self.wrong = A, backend, rmatmat
        self.shape, self.dtype = A.shape, A.dtype if dtype is None else np.dtype(dtype)
        self.columns = []

    def there(self, X):
        X = X.astype(self.A.dtype)
        return X if self.backend is None else self.backend.asarray(X)

    def here(self, X):
        return X if isinstance(X, np.ndarray) else self.backend.numpy(X)

    def matmat(self, X):
        self.columns.append(X.shape[1])
        return self.there(self.A @ self.here(X))

    def rmatmat(self, Y):
        self.columns.append(Y.shape[1])
        multiply = self.wrong or (lambda A, Y: adjoint(A) @ Y)
        return self.there(multiply(self.A, self.here(Y)))


def check(operator, rng=0):
    check_adjoint(as_operator(operator), rng)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (1, 300), (300, 1), (1, 1), (0, 3), (3, 0)])
def test_the_adjoint_passes(backend, dtype, shape):
    """Whatever the library, which the first product alone tells."""
    for size in (1.0, 1e-25, 1e25):
        operator = Products((size * gaussian(shape, dtype)).astype(dtype), backend=backend)
        check(operator)
        assert set(operator.columns) <= {4}
        assert len(operator.columns) <= 3


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_any_spectrum_passes(dtype):
    """Also where two products miss the norm of A by far, and with entries of one sign."""
    rank_one = gaussian((300, 1), dtype) @ gaussian((1, 200), dtype, 1)
    graded = gaussian((300, 200), dtype) * (0.5 ** np.arange(200)).astype(dtype)
    for A in (rank_one, graded, np.abs(graded), np.zeros((300, 200), dtype), np.eye(300, 200)):
        for seed in range(30):
            check(Products(A.astype(dtype)), seed)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_entries_below_the_normal_numbers_are_not_judged(dtype):
    check(Products((1e-42 * gaussian((60, 40), dtype)).astype(dtype)))


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in WRONG
        for dtype in ("float32", "float64", "complex64", "complex128")
        if dtype.startswith("complex") or name != "no conjugate"
    ],
)
def test_another_matrix_is_found(name, size, dtype):
    multiply, told = WRONG[name]
    A = (size * gaussian((50, 50), dtype)).astype(dtype)
    for seed in range(10):
        with pytest.raises(ValueError, match=told):
            check(Products(A, multiply), seed)


def test_the_error_shows_both_numbers_and_a_remedy():
    A = gaussian((50, 50), "float64")
    message = r"⟨y, A x⟩ = (\S+), but ⟨Aᴴ y, x⟩ = (\S+)\. `A.rmatmat` is -2 times the adjoint\.$"
    with pytest.raises(ValueError, match=message) as caught:
        check(Products(A, lambda A, Y: -2.0 * A.T @ Y))
    a, b = map(float, re.search(message, str(caught.value)).groups())
    assert b == pytest.approx(-2.0 * a, rel=1e-5)
    with pytest.raises(ValueError, match="by the transpose and not by A once more"):
        check(Products(A, lambda A, Y: A @ Y))
    with pytest.raises(ValueError, match="is a conjugate missing"):
        check(Products(1j * A, lambda A, Y: A @ Y))


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (150, 170)], ids=str)
@pytest.mark.parametrize("offset", [False, True])
def test_what_is_allowed_is_four_times_the_rounding_of_a_product(backend, dtype, shape, offset):
    """An adjoint that is (1 + c) times the right one, c = 128 eps √(m + n) where the line is.

    The same of a matrix whose products subtract those of one 1,000 times as large.
    """
    A = gaussian(shape, dtype)
    line = 128 * backend.eps(dtype) * sum(shape) ** 0.5
    for seed in range(5):
        for c in (0.6 * line, -0.6 * line):
            check(scaled(backend, A, c, offset), seed)
        for c in (1.6 * line, -1.6 * line):
            with pytest.raises(ValueError, match="is not the adjoint"):
                check(scaled(backend, A, c, offset), seed)


def scaled(backend, A, c, offset):
    """A with an adjoint that is 1 + c times its own, or off by that much of the offset."""
    c = 1001 * c if offset else c
    multiply = lambda A, Y: (1 + c) * (adjoint(A) @ Y)  # noqa: E731
    operator = as_operator(Products(A, multiply, backend=backend))
    return replace(operator, offset=1000 * norm(A, "fro")) if offset else operator


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_one_wrong_entry_of_all_is_found(dtype):
    A = gaussian((200, 100), dtype)
    B = A.copy()
    B[17, 23] *= -1.0
    with pytest.raises(ValueError, match="is not the adjoint"):
        check(Products(A, lambda _, Y: adjoint(B) @ Y))


def test_a_complex_matrix_that_calls_itself_real():
    A = gaussian((60, 40), "complex128")
    check(Products(A, dtype="float64"))
    with pytest.raises(ValueError, match="lacks a conjugate"):
        check(Products(A, lambda A, Y: A.T @ Y, dtype="float64"))


def test_wrong_shapes_and_dtypes_are_found():
    A = gaussian((60, 40), "float64")
    for rmatmat in (lambda _, Y: Y, lambda A, Y: (A.T @ Y)[:, :2], lambda A, Y: (A.T @ Y).T):
        with pytest.raises(ValueError, match=r"`A.rmatmat` .* must have shape \(40, 4\), got"):
            check(Products(A, rmatmat))

    class Single(Products):
        def rmatmat(self, Y):
            return super().rmatmat(Y).astype("float32")

    with pytest.raises(TypeError, match=r"A\.matmat.*float64.*A\.rmatmat.*float32"):
        check(Single(A))


def test_products_that_overflow_are_left_to_their_users():
    A = np.full((60, 40), np.inf)
    with np.errstate(invalid="ignore"):
        check(Products(A))


def test_arrays_are_not_multiplied():
    def refuse(X):
        raise AssertionError

    for shape in ((60, 40), (4, 60, 40)):
        A = as_operator(gaussian(shape, "float64"))
        check_adjoint(replace(A, matmat=refuse, rmatmat=refuse), 0)


@pytest.mark.parametrize("rng", [None, 3, np.random.SeedSequence(3), np.random.default_rng(3)])
def test_any_seed(rng):
    check(Products(gaussian((60, 40), "float64")), rng)


@pytest.mark.parametrize("rule", [{"rank": 3}, {"rtol": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["range_finder", "qb", "svd", "eigh", "interpolative", "cur"])
def test_every_function_checks_if_asked(name, rule):
    """Twice the adjoint passes for one without the option; `eigh` asks `matmat` alone."""
    A = gaussian((40, 40), "float64")

    class Wrong:
        shape, dtype = A.shape, A.dtype

        def matmat(self, X):
            return A @ X

        def rmatmat(self, Y):
            return 2.0 * (A.T @ Y)

    told = "`A` is not Hermitian" if name == "eigh" else r"is not the adjoint of `A\.matmat`"
    with pytest.raises(ValueError, match=told):
        getattr(lowrank, name)(Wrong(), rng=0, check=True, **rule)
