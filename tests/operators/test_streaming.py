"""A matrix known by its sketches: linear, exact on low rank, and with an error that holds."""

import copy
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, defect, gaussian, with_spectrum

from lowrank import Status, gallery
from lowrank._linalg.certificate import safety_factor
from lowrank.streaming import SketchedMatrix


def wide(X):
    return X.astype("complex128" if X.dtype.kind == "c" else "float64")


def made(backend, dtype, shape, rank, **options):
    return SketchedMatrix(shape, rank, like=backend.asarray(np.zeros(1, dtype)), **options)


def product(backend, found):
    """The approximation, after checks that every result must pass."""
    U, S, Vh = (backend.numpy(factor) for factor in found)
    eps = float(np.finfo(str(found.S.dtype).rpartition(".")[2]).eps)
    assert U.shape[1] == S.shape[0] == Vh.shape[0] == found.rank
    assert S.dtype.kind == "f"
    assert np.all(S >= 0)
    assert np.all(np.diff(S) <= 0)
    for Q in (U, adjoint(Vh)):
        assert defect(Q) <= 200 * eps * max(found.rank, 1) ** 0.5
    return (U * S) @ Vh


def approximation(backend, sketch):
    """All that the sketches know."""
    return product(backend, sketch.svd(sketch.sketch_size))


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 120),
    n=st.integers(1, 120),
    rank=st.integers(0, 20),
    error_rows=st.sampled_from([None, 8, 200]),
    seed=st.integers(0, 10_000),
)
def test_bounds_hold_for_all_ranks(backend, dtype, spectrum, m, n, rank, error_rows, seed):
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    sketch = made(
        backend, dtype, (m, n), rank, error_rows=error_rows, rng=seed, failure_probability=DRAWN
    )
    half = m // 2
    sketch.update_rows(half, backend.asarray(A[half:]))
    sketch.update_rows(0, backend.asarray(A[:half]))
    for r in {0, rank, sketch.sketch_size // 2, sketch.sketch_size}:
        if r > sketch.sketch_size and r < min(m, n):
            continue
        found = sketch.svd(r)
        assert found.rank == min(r, m, n)
        assert found.status is (Status.FULL_RANK if r > min(m, n) else Status.RANK_REACHED)
        true = np.linalg.norm(wide(A) - product(backend, found))
        assert true <= found.error_bound
        estimate = sketch.error(r)
        assert (estimate.value, estimate.upper_bound) == (found.error, found.error_bound)
        assert found.error <= found.error_bound


@pytest.mark.parametrize("rank", [1, 5])
def test_exact_up_to_the_rank(backend, dtype, rank):
    A = with_spectrum(gallery.low_rank(90, rank), (90, 110), dtype)
    size = np.linalg.norm(A)
    found = made(backend, dtype, (90, 110), 5, rng=0).update(backend.asarray(A)).svd()
    assert np.linalg.norm(wide(A) - product(backend, found)) <= 50 * backend.eps(dtype) * size
    assert found.error_bound <= 300 * backend.eps(dtype) * size
    # rounding: eps of what was added, by a factor below 3, and 3 eps √(21 + 32)
    assert found.error_bound <= 3 * found.error + 25 * backend.eps(dtype) * found.norm_A


def test_any_matrix_is_known_by_a_full_sketch(backend, dtype):
    for shape in ((12, 30), (30, 12)):
        A = gaussian(shape, dtype)
        sketch = made(backend, dtype, shape, 12, rng=0).update(backend.asarray(A))
        difference = np.linalg.norm(wide(A) - product(backend, sketch.svd()))
        assert difference <= 300 * backend.eps(dtype) * np.linalg.norm(A)


@pytest.mark.parametrize("spectrum", ["slow", "s_shaped"])
def test_published_expectation(backend, dtype, spectrum):
    """Theorem for s ≥ 2k + α, before the cut, and the estimate is unbiased; 20 draws."""
    s, shape, draws = gallery.SPECTRA[spectrum](70), (70, 90), 20
    A = with_spectrum(s, shape, dtype)
    alpha = 0 if np.dtype(dtype).kind == "c" else 1
    squares, estimates = [], []
    for seed in range(draws):
        sketch = made(backend, dtype, shape, 3, rng=seed).update(backend.asarray(A))
        k, t = sketch.sketch_size, sketch.core_size
        assert (k, t) == (12 + alpha, 2 * (12 + alpha) + alpha)
        found = sketch.svd(k)
        squares.append(np.linalg.norm(wide(A) - product(backend, found)) ** 2)
        estimates.append(found.error**2)
    bound = min(
        (k + rho - alpha) / (k - rho - alpha) * gallery.best_error(s, rho) ** 2
        for rho in range(k - alpha)
    )
    assert np.mean(squares) <= (t - alpha) / (t - k - alpha) * bound
    assert np.mean(squares) >= gallery.best_error(s, k) ** 2
    # 20 draws of at least 32 rows: a relative deviation of 0.056, were the error of rank one
    assert np.mean(estimates) == pytest.approx(np.mean(squares), rel=0.25)


def test_error_of_a_cut(backend, dtype):
    """At most the best error of that rank, and twice the error before the cut."""
    s = gallery.medium(100)
    A = with_spectrum(s, (100, 120), dtype)
    sketch = made(backend, dtype, (100, 120), 10, rng=0).update(backend.asarray(A))
    before = np.linalg.norm(wide(A) - approximation(backend, sketch))
    for rank in (0, 3, 10):
        true = np.linalg.norm(wide(A) - product(backend, sketch.svd(rank)))
        assert true <= gallery.best_error(s, rank) + 2 * before
        assert sketch.error(rank).value == pytest.approx(true, rel=0.3)
    assert sketch.norm == pytest.approx(np.linalg.norm(s), rel=0.3)
    assert sketch.error(0).value == pytest.approx(sketch.norm, rel=1e-4)


def test_any_sequence_of_updates_is_one(backend, dtype):
    """The sketches are those of the final matrix, whatever was done and undone on the way."""
    of_complex = np.dtype(dtype).kind == "c"
    theta, eta = (0.5 - 0.25j, 2j) if of_complex else (-0.5, 2.0)
    shape = (60, 45)
    first, second = gaussian(shape, dtype, 1), gaussian(shape, dtype, 2)
    u, v = gaussian((60,), dtype, 3), gaussian((45,), dtype, 4)
    U, V = gaussian((60, 3), dtype, 5), gaussian((45, 3), dtype, 6)
    block = gaussian((7, 45), dtype, 7)
    there = backend.asarray
    sketch = made(backend, dtype, shape, 3, rng=0)
    sketch.update(there(first), eta=eta)
    sketch.update(there(second), theta=theta)
    sketch.update_rank_one(there(u), there(v), theta=theta, eta=eta)
    sketch.update_rank_one(there(U), there(V), eta=-1)
    sketch.update_rows(11, there(block), eta=eta)
    final = theta * (theta * (eta * wide(first)) + wide(second))
    final = final + eta * np.outer(wide(u), np.conj(wide(v))) - wide(U) @ adjoint(wide(V))
    final[11:18] += eta * wide(block)
    at_once = made(backend, dtype, shape, 3, rng=0).update(there(final.astype(dtype)))
    difference = approximation(backend, sketch) - approximation(backend, at_once)
    assert np.linalg.norm(difference) <= 300 * backend.eps(dtype) * np.linalg.norm(final)
    assert sketch.norm == pytest.approx(at_once.norm, rel=1e-4)
    # and the error is that of the final matrix: the error sketch was updated too
    assert sketch.error().value == pytest.approx(at_once.error().value, rel=1e-4)


def test_row_blocks_in_any_order(backend, dtype):
    A = gaussian((50, 40), dtype)
    starts = list(range(0, 50, 8))
    found = []
    for order in (starts, starts[::-1], starts[1::2] + starts[::2]):
        sketch = made(backend, dtype, (50, 40), 2, rng=0)
        for start in order:
            sketch.update_rows(start, backend.asarray(A[start : start + 8]))
        found.append(approximation(backend, sketch))
    at_once = made(backend, dtype, (50, 40), 2, rng=0).update(backend.asarray(A))
    for other in found:
        difference = np.linalg.norm(other - approximation(backend, at_once))
        assert difference <= 300 * backend.eps(dtype) * np.linalg.norm(A)


def test_theta_of_zero_clears(backend, dtype):
    sketch = made(backend, dtype, (30, 20), 2, rng=0)
    sketch.update(backend.asarray(gaussian((30, 20), dtype)))
    sketch.update(backend.asarray(np.zeros((30, 20), dtype)), theta=0)
    found = sketch.svd()
    assert np.all(product(backend, found) == 0)
    assert (found.error, found.error_bound, sketch.norm) == (0.0, 0.0, 0.0)


def test_bound_knows_of_what_was_canceled(backend, dtype):
    """What is left of a large matrix that was added and taken away is rounding, and is bounded."""
    shape = (60, 50)
    large = (1e4 * gaussian(shape, dtype, 1)).astype(dtype)
    small = with_spectrum(gallery.low_rank(50, 2), shape, dtype)
    sketch = made(backend, dtype, shape, 2, rng=0, failure_probability=DRAWN)
    for H, eta in ((large, 1), (small, 1), (large, -1)):
        sketch.update(backend.asarray(H), eta=eta)
    found = sketch.svd()
    true = np.linalg.norm(wide(small) - product(backend, found))
    assert true <= found.error_bound <= 1000 * backend.eps(dtype) * np.linalg.norm(large)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_bound_knows_of_pieces_too_small_to_add(dtype):
    """Each is lost in all sketches, also in that of the error."""
    eps, shape = float(np.finfo(dtype).eps), (30, 20)
    A = with_spectrum(gallery.low_rank(20, 2), shape, dtype)
    sketch = SketchedMatrix(shape, 4, dtype=dtype, rng=0, failure_probability=DRAWN).update(A)
    for _ in range(800):
        sketch.update(A, eta=0.1 * eps)
    found = sketch.svd()
    lost = 80 * eps * np.linalg.norm(A)
    assert np.linalg.norm(wide(A) - (wide(found.U) * found.S) @ found.Vh) <= 0.2 * lost
    assert found.error <= 0.2 * lost
    assert lost <= found.error_bound


def test_bound_knows_of_what_underflows_in_the_error_sketch(backend, dtype):
    """A direction that its one row all but misses, by 1/100, of a size of 40 smallest numbers."""
    backend.skip_if_flushed(dtype)
    quantum, up = float(np.finfo(dtype).smallest_subnormal), 2.0**600
    A = (np.diag([4096.0, 40.0]) * quantum).astype(dtype)
    options = {"sketch_size": 2, "error_rows": 1, "rng": 0, "failure_probability": 0.05}
    sketch = made(backend, dtype, (2, 2), 1, **options)
    sketch._left[0, 2:], sketch._left[1, 2:] = 0.02, 0.01
    sketch.update(backend.asarray(A))
    found = sketch.svd(1)
    assert found.error <= quantum
    true = np.linalg.norm(wide(A) * up - product(backend, found) * up)
    assert 39 * quantum * up < true <= found.error_bound * up


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_changes_nothing(backend, dtype, bad):
    shape = (30, 20)
    sketch = made(backend, dtype, shape, 3, rng=0)
    sketch.update(backend.asarray(gaussian(shape, dtype)))
    before = approximation(backend, sketch), sketch.norm, sketch.error()
    H, u, v = gaussian(shape, dtype, 1), gaussian((30,), dtype), gaussian((20,), dtype)
    H[4, 5] = u[3] = bad
    H, u, v = (backend.asarray(X) for X in (H, u, v))
    match = "holds NaN or Inf.*is unchanged"
    with pytest.raises(ValueError, match=match):
        sketch.update(H, theta=0.0)
    with pytest.raises(ValueError, match=match):
        sketch.update_rank_one(u, v)
    with pytest.raises(ValueError, match=match):
        sketch.update_rows(2, H[2:10, :])
    with pytest.raises(ValueError, match="`theta` must be finite"):
        sketch.update(backend.asarray(gaussian(shape, dtype)), theta=bad)
    assert np.array_equal(approximation(backend, sketch), before[0])
    assert (sketch.norm, sketch.error()) == before[1:]


def test_overflow_changes_nothing(backend, dtype):
    sketch = made(backend, dtype, (30, 20), 3, rng=0)
    A = backend.asarray(gaussian((30, 20), dtype))
    before = approximation(backend, sketch.update(A))
    with pytest.raises(ValueError, match="overflows"):
        sketch.update(A, eta=0.9 * float(np.finfo(dtype).max))
    assert np.array_equal(approximation(backend, sketch), before)
    # the core alone
    sketch = made(backend, dtype, (30, 20), 3, error_rows=1, rng=0)
    size = float(np.finfo(dtype).max) / 600**0.5 / 2
    with pytest.raises(ValueError, match="overflows"):
        sketch.update(backend.asarray(np.full((30, 20), size, dtype)))
    assert np.all(approximation(backend, sketch) == 0)


@pytest.mark.parametrize("extreme", [-1, 1])
def test_any_size(backend, dtype, extreme):
    """Entries of about 1e±300 (1e±34 in single precision)."""
    size = 10.0 ** (extreme * (34 if backend.eps(dtype) > 1e-10 else 300))
    A = with_spectrum(gallery.fast(50), (60, 50), dtype)
    sketch = made(backend, dtype, (60, 50), 4, rng=0)
    found = sketch.update(backend.asarray((A * size).astype(dtype))).svd()
    unit = made(backend, dtype, (60, 50), 4, rng=0).update(backend.asarray(A)).svd()
    assert np.allclose(backend.numpy(found.S) / size, backend.numpy(unit.S), rtol=1e-4)
    for field in ("error", "error_bound", "norm_A"):
        assert getattr(found, field) / size == pytest.approx(getattr(unit, field), rel=1e-3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (4, 6), (1, 1)], ids=str)
@pytest.mark.parametrize("rank", [0, 2, 30])
def test_empty_and_tiny(backend, dtype, shape, rank):
    sketch = made(backend, dtype, shape, rank, rng=0)
    sketch.update(backend.asarray(np.ones(shape, dtype)))
    sketch.update_rows(0, backend.asarray(np.ones((0, shape[1]), dtype)))
    assert sketch.sketch_size <= min(shape)
    found = sketch.svd()
    assert found.rank == min(rank, *shape)
    expected = np.ones(shape) if found.rank else np.zeros(shape)
    assert np.linalg.norm(product(backend, found) - expected) <= 100 * backend.eps(dtype)


def test_outcome(backend):
    A = backend.asarray(gaussian((40, 30), "float32"))
    sketch = made(backend, "float32", (40, 30), 2, rng=0).update(A)
    found = sketch.svd()
    assert (found.passes, found.products, found.history) == (1, 9 + 19 + 9 + 64, ())
    assert found.converged is found.tolerance is found.mean is None
    assert found.norm_A == sketch.norm
    again = made(backend, "float32", (40, 30), 2, rng=0).update(A).svd()
    assert np.array_equal(product(backend, found), product(backend, again))
    other = made(backend, "float32", (40, 30), 2, rng=1).update(A).svd()
    assert not np.array_equal(product(backend, found), product(backend, other))
    assert "40×30, rank=2" in repr(sketch)


def test_test_matrices_are_independent(backend, dtype):
    """A matrix with the rows of one test matrix is not special to another: all differ."""
    sketch = made(backend, dtype, (30, 30), 2, sketch_size=10, core_size=10, error_rows=10, rng=0)
    parts = [
        backend.numpy(X)
        for X in (
            sketch._right[:, :10],
            sketch._right[:, 10:],
            sketch._left[:, :10],
            sketch._left[:, 10:],
            sketch._core,
        )
    ]
    for i, X in enumerate(parts):
        for Y in parts[:i]:
            correlation = np.abs(np.vdot(X, Y)) / np.linalg.norm(X) / np.linalg.norm(Y)
            assert correlation < 0.3  # standard deviation: 300^−1/2


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("delta", [1e-9, 1e-2])
def test_looks_share_the_failure_probability(dtype, delta):
    """1/(j(j+1)) of it for the j-th state asked, shared by its ranks; not by its questions."""
    A, of_complex = gaussian((80, 70), dtype), dtype == "complex128"
    sketch = SketchedMatrix((80, 70), 3, dtype=dtype, rng=0, failure_probability=delta).update(A)
    ranks = sketch.sketch_size + 1
    for look in (1, 2, 3):
        for rank in (3, 1, 0, 3):
            found = sketch.error(rank)
            assert (found.failure_probability, found.norm) == (delta, "fro")
            assert found.samples == (32 if of_complex else 64)
            share = delta / (look * (look + 1) * ranks)
            factor = safety_factor(found.samples, share, is_complex=of_complex)
            assert found.upper_bound / found.value == pytest.approx(factor, rel=1e-9)
        sketch.update(A)


def test_results_stay(backend):
    """An update changes no result that was given out, and results share nothing with the object."""
    A = backend.asarray(gaussian((40, 30), "float32"))
    sketch = made(backend, "float32", (40, 30), 2, rng=0).update(A)
    found = sketch.svd()
    before = product(backend, found)
    sketch.update(A, theta=3.0)
    tripled = sketch.svd()
    four = backend.numpy(tripled.S)
    assert np.allclose(four, 4 * backend.numpy(found.S), rtol=1e-4)
    for factor in tripled:
        factor[...] = 0.0
    assert np.array_equal(backend.numpy(sketch.svd().S), four)
    assert np.linalg.norm(product(backend, sketch.svd())) > 0
    assert np.array_equal(product(backend, found), before)
    assert np.array_equal(backend.numpy(A), gaussian((40, 30), "float32"))


def test_merging_adds(backend, dtype):
    shape = (50, 40)
    A, B = gaussian(shape, dtype, 1), gaussian(shape, dtype, 2)
    parts = [made(backend, dtype, shape, 3, rng=7).update(backend.asarray(X)) for X in (A, B)]
    both = made(backend, dtype, shape, 3, rng=7).update(backend.asarray(A))
    both.update(backend.asarray(B))
    merged = parts[0].merge(parts[1])
    assert merged is parts[0]
    difference = approximation(backend, merged) - approximation(backend, both)
    assert np.linalg.norm(difference) <= 300 * backend.eps(dtype) * np.linalg.norm(A)
    assert merged.norm == pytest.approx(both.norm, rel=1e-5)
    assert merged.error().value == pytest.approx(both.error().value, rel=1e-4)
    assert np.linalg.norm(A + B - product(backend, merged.svd())) <= merged.svd().error_bound


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("into", ["the large", "the small"])
def test_bound_knows_of_what_merging_loses(dtype, into):
    """Parts too small to add to what is there, or to have it added to them, 800 of them."""
    eps, shape = float(np.finfo(dtype).eps), (30, 20)
    A = with_spectrum(gallery.low_rank(20, 2), shape, dtype)
    options = {"dtype": dtype, "rng": 0, "failure_probability": DRAWN}
    sketch = SketchedMatrix(shape, 4, **options).update(A)
    small = SketchedMatrix(shape, 4, **options).update(A, eta=0.1 * eps)
    for _ in range(800):
        sketch = sketch.merge(small) if into == "the large" else copy.deepcopy(small).merge(sketch)
    found = sketch.svd()
    lost = 80 * eps * np.linalg.norm(A)
    assert np.linalg.norm(wide(A) - (wide(found.U) * found.S) @ found.Vh) <= 0.2 * lost
    assert found.error <= 0.2 * lost
    # of each merge eps, ten times what is lost, times a factor below 3
    assert lost <= found.error_bound <= 40 * lost


def test_merging_counts_what_was_canceled_in_both(backend, dtype):
    """Rounding of parts is that of all that was added to them, whatever is left of it."""
    shape = (60, 50)
    large = (1e4 * gaussian(shape, dtype, 1)).astype(dtype)
    small = with_spectrum(gallery.low_rank(50, 2), shape, dtype)
    for of_mine in (True, False):
        parts = [made(backend, dtype, shape, 2, rng=0) for _ in range(2)]
        through = parts[0] if of_mine else parts[1]
        for H, eta in ((large, 1), (small, 1), (large, -1)):
            through.update(backend.asarray(H), eta=eta)
        alone = through.error().upper_bound
        merged = parts[0].merge(parts[1]).error().upper_bound
        assert merged >= alone


def test_only_the_same_sketches_are_merged(backend):
    def sketch(shape=(30, 20), rank=2, dtype="float32", **options):
        return made(backend, dtype, shape, rank, **options)

    mine = sketch(rng=0)
    for other in (
        sketch(rng=1),
        sketch(rng=0, rank=3),
        sketch(rng=0, shape=(30, 21)),
        sketch(rng=0, error_rows=10),
        sketch(rng=None),
    ):
        with pytest.raises(ValueError, match=r"same test matrices.*integer `rng`"):
            mine.merge(other)
    with pytest.raises(TypeError, match="convert one to the other"):
        mine.merge(sketch(rng=0, dtype="complex64"))
    with pytest.raises(TypeError, match="must be a SketchedMatrix, got int"):
        mine.merge(3)


def test_copies_and_pickles():
    A = gaussian((30, 20), "float64")
    sketch = SketchedMatrix((30, 20), 2, rng=0).update(A)
    for other in (copy.deepcopy(sketch), pickle.loads(pickle.dumps(sketch))):
        other.update(A).merge(sketch)
        assert np.allclose(other.svd().S, 3 * sketch.svd().S)
    # what is kept after `svd`, by its name in pickles of older versions
    assert pickle.loads(b"clowrank.streaming\n_Factors\n.") is type(sketch._solved())


class Coat:
    """An operator: one product from either side for each update."""

    def __init__(self, A):
        self.A, self.shape, self.dtype, self.calls = A, A.shape, A.dtype, []

    def matmat(self, X):
        self.calls.append("A")
        return self.A @ X

    def rmatmat(self, Y):
        self.calls.append("Aᴴ")
        return adjoint(self.A) @ Y


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_operators(dtype):
    A = gaussian((50, 40), dtype)
    coat = Coat(A)
    found = SketchedMatrix((50, 40), 3, dtype=dtype, rng=0).update(coat).svd()
    expected = SketchedMatrix((50, 40), 3, dtype=dtype, rng=0).update(A).svd()
    assert coat.calls == ["A", "Aᴴ"]
    assert np.allclose(found.S, expected.S, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_sparse_matrices_are_never_dense(dtype):
    sparse = pytest.importorskip("scipy.sparse")
    shape = (200_000, 150_000)  # 120 GB and more, were it dense
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(shape[0], size=40), rng.integers(3, size=40)
    values = gaussian((40,), dtype)
    H = sparse.coo_array((values, (rows, columns)), shape=shape)
    sketch = SketchedMatrix(shape, 1, dtype=dtype, sketch_size=3, core_size=7, error_rows=8, rng=0)
    sketch.update(H)
    wide_ = H.tocsc()[:, :3].toarray()
    found = sketch.svd(3)
    expected = np.linalg.svd(wide_, compute_uv=False)
    assert np.allclose(found.S, expected, rtol=1e-3)
    block = sparse.csr_array((values[:1], ([0], [5])), shape=(1, shape[1]))
    sketch.update_rows(shape[0] - 1, block, eta=0)
    assert np.allclose(sketch.svd(3).S, found.S)


def test_half_precision_pieces(backend):
    """Are computed in single precision, as everywhere."""
    if not backend.name.startswith(("numpy", "torch")):
        pytest.skip("no float16 in this library")
    H = backend.asarray(gaussian((20, 15), "float16"))
    sketch = SketchedMatrix((20, 15), 3, like=H, rng=0).update(H)
    assert sketch.svd().S.dtype == backend.asarray(np.zeros(1, "float32")).dtype


def test_rows_of_a_long_matrix_cost_their_own_size():
    """No array of m rows is made or touched by a block of rows."""
    sketch = SketchedMatrix((1000, 20), 2, rng=0)
    Y, test_matrices = sketch._Y, (sketch._right, sketch._left, sketch._core)
    for start in (0, 990):
        sketch.update_rows(start, gaussian((10, 20), "float64"))
    assert sketch._Y is Y
    assert (sketch._right, sketch._left, sketch._core) == test_matrices
    assert np.all(Y[10:990] == 0)
    assert np.all(Y[:10] != 0)


class NoAdjoint:
    shape, dtype = (30, 20), np.dtype("complex128")

    def matmat(self, X):
        return X


class WrongShape(NoAdjoint):
    dtype = np.dtype("float64")

    def rmatmat(self, Y):
        return Y


class Rows:
    shape, dtype = (30, 20), np.dtype("float64")

    def __getitem__(self, part):
        return np.ones((30, 20))[part]


def pieces_of_a_wrong_kind():
    import scipy.sparse  # noqa: PLC0415

    H = np.ones((30, 20))
    yield from ([[1.0]], None, H.astype(int), np.ma.array(H), H[0, :5], H[None])
    yield from (NoAdjoint(), WrongShape(), Rows(), scipy.sparse.csr_array(H.astype(int)))
    torch = pytest.importorskip("torch")
    there = torch.ones((30, 20, 3), dtype=torch.float64)
    yield from (there.to_sparse(), there.to_sparse(2), there[..., 0].to("meta"), there[..., 0])
    dask = pytest.importorskip("dask.array")
    yield from (dask.ones((30, 20), dtype=int), dask.ones((30, 20, 3)))


def test_errors_call_a_piece_by_its_name():
    sketch = SketchedMatrix((30, 20), 2, rng=0)
    calls = {
        "H": sketch.update,
        "block": lambda piece: sketch.update_rows(0, piece),
        "u": lambda piece: sketch.update_rank_one(piece, np.ones(20)),
        "v": lambda piece: sketch.update_rank_one(np.ones(30), piece),
        "other": sketch.merge,
    }
    for piece in pieces_of_a_wrong_kind():
        for name, call in calls.items():
            with pytest.raises((TypeError, ValueError)) as caught:
                call(piece)
            assert f"`{name}" in str(caught.value)
            assert not re.search(r"\bA\b", str(caught.value))
    assert sketch.norm == 0.0


def test_refused():
    sketch = SketchedMatrix((30, 20), 2, rng=0)
    H = np.ones((30, 20))
    with pytest.raises(ValueError, match=r"`H` must have shape \(30, 20\), got shape \(20, 30\)"):
        sketch.update(H.T)
    with pytest.raises(ValueError, match=r"`H` must have shape \(30, 20\), got shape \(1, 30"):
        sketch.update(H[None])
    with pytest.raises(ValueError, match=r"`block` must have two dimensions, got shape \(20,\)"):
        sketch.update_rows(2, H[0])
    with pytest.raises(TypeError, match=r"array of dtype float64.*`H` is a numpy array of dtype f"):
        sketch.update(H.astype("float32"))
    with pytest.raises(TypeError, match=r"`H` has dtype int64.*cast it to float32"):
        sketch.update(H.astype(int))
    with pytest.raises(TypeError, match="`eta` must be real for real sketches, got 1j"):
        sketch.update(H, eta=1j)
    with pytest.raises(TypeError, match="`theta` must be real for real sketches"):
        sketch.update(H, theta=np.complex128(1.0))
    with pytest.raises(ValueError, match=r"end within the 30 rows, got shape \(20, 20\) at row 15"):
        sketch.update_rows(15, H[:20])
    with pytest.raises(ValueError, match="`start` must be at least 0, got -1"):
        sketch.update_rows(-1, H[:20])
    with pytest.raises(ValueError, match=r"`u` and `v` must have 30 and 20 rows.*\(20, 1\)"):
        sketch.update_rank_one(np.ones(20), np.ones(30))
    for name in ("u", "v"):
        pair = {"u": H[:, 0], "v": H[0]}
        pair[name] = pair[name].astype("float32")
        with pytest.raises(TypeError, match=f"float64 on cpu, but `{name}` is .* float32"):
            sketch.update_rank_one(*pair.values())
    with pytest.raises(ValueError, match=r"as many columns, got shapes \(30, 2\) and \(20, 3\)"):
        sketch.update_rank_one(np.ones((30, 2)), np.ones((20, 3)))
    with pytest.raises(ValueError, match="at most the sketch size, 9, got 10"):
        sketch.svd(10)
    with pytest.raises(ValueError, match="`rank` must be at least 0, got -1"):
        sketch.error(-1)
    with pytest.raises(ValueError, match="`sketch_size` must be at least `rank`, 2, got 1"):
        SketchedMatrix((30, 20), 2, sketch_size=1)
    with pytest.raises(ValueError, match="`core_size` must be at least 9, got 8"):
        SketchedMatrix((30, 20), 2, core_size=8)
    for shape in (30, (30,), (30, 20, 2)):
        with pytest.raises(ValueError, match="`shape` must be a pair of numbers, got"):
            SketchedMatrix(shape, 2)
    with pytest.raises(ValueError, match="`error_rows` must be at least 1, got 0"):
        SketchedMatrix((30, 20), 2, error_rows=0)
    with pytest.raises(ValueError, match="`failure_probability` must lie between 0 and 1"):
        SketchedMatrix((30, 20), 2, failure_probability=1.0)
    with pytest.raises(TypeError, match="`like` must be an array, got list"):
        SketchedMatrix((30, 20), 2, like=[1.0])
    with pytest.raises(
        TypeError, match=r"`dtype` is not a NumPy dtype.*give `like`, an array of its lib"
    ):
        SketchedMatrix((30, 20), 2, dtype=object())
    with pytest.raises(TypeError, match="has dtype int64"):
        SketchedMatrix((30, 20), 2, dtype="int64")
    assert sketch.norm == 0.0


def test_a_merge_leaves_copies_as_they_were(backend, dtype):
    A, B = (gaussian((60, 3), dtype, k) @ gaussian((3, 40), dtype, k + 2) for k in range(2))
    first, other = (SketchedMatrix((60, 40), 3, like=backend.asarray(A), rng=0) for _ in range(2))
    first.update(backend.asarray(A))
    other.update(backend.asarray(B))
    before = np.array(backend.numpy(first._Y))
    copy.copy(first).merge(other)
    assert np.array_equal(backend.numpy(first._Y), before)
