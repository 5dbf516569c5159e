"""JAX: arrays that never change, keys, and functions under jit and vmap."""

import numpy as np
import pytest
from conftest import COMPILING
from matrices import adjoint, with_spectrum

import lowrank
from lowrank import gallery

jax = pytest.importorskip("jax")
BACKEND = COMPILING[0]
pytestmark = pytest.mark.usefixtures("forgets_compiled")
M, N, RANK = 40, 24, 4
FIXED = {"check_finite": False, "rng": 0}


def matrix(dtype="float32"):
    return with_spectrum(gallery.fast(N), (M, N), dtype)


def dense(found):
    return np.asarray(found.reconstruct() if hasattr(found, "reconstruct") else found.Q @ found.R)


def positive(A):
    return jax.numpy.conj(A.T) @ A


FUNCTIONS = {
    "qr": lowrank.qr,
    "qb": lambda A, rng=0: lowrank.qb(A, RANK, check_finite=False, rng=rng),
    "svd": lambda A, rng=0: lowrank.svd(A, RANK, check_finite=False, rng=rng),
    "centered": lambda A: lowrank.svd(A, RANK, center=True, **FIXED),
    "nystrom": lambda A: lowrank.nystrom(positive(A), RANK, **FIXED),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_traced_call_gives_what_the_call_gives(name):
    A = BACKEND.asarray(matrix())
    one, two = FUNCTIONS[name](A), jax.jit(FUNCTIONS[name])(A)
    assert type(one) is type(two)
    size = np.linalg.norm(dense(one))
    assert np.linalg.norm(dense(two) - dense(one)) <= 1e-4 * size
    assert getattr(two, "error", None) is getattr(two, "error_bound", None) is None
    both = jax.jit(jax.vmap(FUNCTIONS[name]))(jax.numpy.stack([A, 2.0 * A]))
    for k, factor in enumerate((1.0, 2.0)):
        found = jax.tree.map(lambda leaf, k=k: leaf[k], both)
        power = 2 if name == "nystrom" else 1
        assert np.linalg.norm(dense(found) - factor**power * dense(one)) <= 1e-3 * size


def test_a_traced_basis():
    A = BACKEND.asarray(matrix())
    found = jax.jit(lambda A: lowrank.range_finder(A, RANK, **FIXED))(A)
    assert isinstance(found, lowrank.RangeFinderResult)
    assert (found.rank, found.side, found.Q.shape) == (RANK, "left", (M, RANK))
    own = np.asarray(lowrank.range_finder(A, RANK, **FIXED).Q)
    Q = np.asarray(found.Q)
    assert np.linalg.norm(Q @ adjoint(Q) - own @ adjoint(own)) <= 1e-4


def test_a_tolerance_is_kept_and_nothing_is_modified():
    A = BACKEND.asarray(matrix("complex64"))
    before = np.asarray(A).copy()
    found = lowrank.qb(A, rtol=0.1, rng=0)
    error = np.linalg.norm(dense(found) - before)
    assert found.converged
    assert error <= found.error_bound * (1 + 1e-4)
    assert found.error_bound <= 0.1 * np.linalg.norm(before) * (1 + 1e-4)
    assert np.array_equal(np.asarray(A), before)


@pytest.mark.parametrize("function", [lowrank.interpolative, lowrank.cur])
def test_columns_of_a_matrix(function):
    """Of a small one: each pivot is compiled anew."""
    A = BACKEND.asarray(np.outer(np.arange(1.0, 8), np.arange(1.0, 6)).astype("float32"))
    found = function(A, 1, rng=0)
    assert np.linalg.norm(dense(found) - np.asarray(A)) <= 1e-5 * np.linalg.norm(np.asarray(A))


def test_keys():
    A = BACKEND.asarray(matrix())
    first, second, other = (jax.random.key(seed) for seed in (0, 0, 1))
    with_key = FUNCTIONS["qb"]
    assert np.array_equal(with_key(A, first).Q, with_key(A, second).Q)
    assert not np.array_equal(with_key(A, first).Q, with_key(A, other).Q)
    assert np.array_equal(with_key(A, jax.random.PRNGKey(1)).Q, with_key(A, other).Q)
    traced = jax.jit(with_key)(A, first)
    assert np.linalg.norm(dense(traced) - np.asarray(A)) <= 2.0 * gallery.best_error(
        gallery.fast(N), RANK
    )
    with pytest.raises(TypeError, match="generator of jax"):
        lowrank.qb(np.asarray(A), RANK, rng=first)


def test_a_key_gives_different_numbers_for_every_purpose():
    """Otherwise the sample that measures the error would be the sketch again."""
    A = BACKEND.asarray(np.eye(M, dtype="float32"))
    finder = lowrank.RangeFinder(A, rng=jax.random.key(0), certificate="sampled")
    finder.extend(RANK)
    Q = np.asarray(finder.Q)
    found = lowrank.residual_norm(A, finder.Q, rng=jax.random.key(0))
    true = np.linalg.norm(np.eye(M) - Q @ Q.T)
    assert found.upper_bound >= true * (1 - 1e-5)
    assert found.value >= 0.5 * true


@pytest.mark.parametrize(
    "call",
    [
        lambda A: lowrank.svd(A, rtol=0.1),
        lambda A: lowrank.svd(A, RANK),
        lambda A: lowrank.cur(A, RANK),
        lambda A: lowrank.interpolative(A, RANK),
        lambda A: lowrank.residual_norm(A, A).value,
    ],
    ids=["tolerance", "checked", "cur", "interpolative", "residual_norm"],
)
def test_what_decides_on_numbers_says_that_it_can_not_be_traced(call):
    with pytest.raises(TypeError, match="depends on the values"):
        jax.jit(call)(BACKEND.asarray(matrix()))


def test_without_double_precision():
    with jax.enable_x64(False):
        A = jax.numpy.asarray(matrix())
        found = lowrank.qb(A, rtol=0.1, rng=0)
        assert found.converged
        assert found.B.dtype == "float32"
