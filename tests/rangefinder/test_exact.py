"""Errors that are known: the residual as an array, energies, and the SVD of A itself."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import Status, gallery
from lowrank._array import tuning as _tuning
from lowrank._array.tuning import TORCH_CPU
from lowrank._operators import as_operator
from lowrank._rangefinder.basis import Block
from lowrank._rangefinder.residuals import Explicit

NEVER = "lowrank._rangefinder.growth.svd_is_cheaper"
FUNCTIONS = ["range_finder", "qb", "svd", "eigh", "interpolative", "cur"]


@pytest.fixture
def growing(monkeypatch):
    """No SVD of A itself, which small matrices are given at once."""
    monkeypatch.setattr(NEVER, lambda *_, **__: False)


@pytest.fixture
def costs_of_a_processor(monkeypatch):
    """By which small matrices are decomposed; on a GPU blocks are wide, and an SVD is dear."""
    costs = {name: getattr(TORCH_CPU, name) for name in ("width", "svd_cost", "block_cost")}
    for device in ("TORCH_CUDA", "CUPY"):
        tuning = getattr(_tuning, device)._replace(**costs)
        monkeypatch.setattr(f"lowrank._array.tuning.{device}", tuning)


def approximation(backend, name, A, found):
    """What a result says A is, in double precision."""
    if name == "range_finder":
        Q = backend.numpy(found.Q)
        return Q @ (adjoint(Q) @ A)
    if name == "interpolative":
        return backend.numpy(found.skeleton) @ backend.numpy(found.coefficients)
    factors = [backend.numpy(X) for X in found]
    if name == "svd":
        return (factors[0] * factors[1]) @ factors[2]
    if name == "eigh":
        return (factors[1] * factors[0]) @ adjoint(factors[1])
    return np.linalg.multi_dot(factors)


def hermitian(spectrum, n, dtype):
    A = with_spectrum(gallery.SPECTRA[spectrum](n), (n, n), dtype)
    return ((A + adjoint(A)) / 2).astype(dtype)


# -- the error is the error ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spectrum"), [*zip(FUNCTIONS, 2 * ["slow", "slower", "fast"], strict=True)]
)
def test_the_error_is_the_error(growing, backend, dtype, name, spectrum):
    A = hermitian(spectrum, 90, dtype)
    wide = A.astype(np.result_type(A, np.float64))
    for rtol in (0.2, 0.02):
        found = getattr(lowrank, name)(backend.asarray(A), rtol=rtol, block_size=32, rng=3)
        true = np.linalg.norm(wide - approximation(backend, name, wide, found))
        assert (found.certificate, found.converged) == ("exact", True)
        rounding = float(100 * backend.eps(dtype) * norm(A, "fro"))
        assert found.error == pytest.approx(true, abs=rounding)
        assert true <= found.error_bound <= found.tolerance
        assert found.error_bound <= true + 2 * rounding


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("certificate", ["exact", "energy", "sampled"])
def test_three_ways_to_know_it(growing, backend, dtype, side, kind, certificate):
    """Of tall matrices on the left in the one norm, and on the right in the other."""
    shape = (150, 90) if (side == "left") == (kind == "fro") else (90, 150)
    A = with_spectrum(gallery.slower(90), shape, dtype)
    options = {"norm": kind, "side": side, "rng": 1, "certificate": certificate}
    found = lowrank.range_finder(backend.asarray(A), rtol=0.15, **options)
    Q = backend.numpy(found.Q)
    wide = A.astype(Q.dtype) if side == "left" else adjoint(A).astype(Q.dtype)
    assert found.converged
    assert norm(residual(wide, Q), kind) <= found.error_bound <= found.tolerance
    rests_on = "sampled" if (certificate, kind) == ("energy", "spectral") else certificate
    assert found.certificate == rests_on
    assert defect(Q) <= 100 * backend.eps(dtype) * found.rank**0.5


def test_no_columns_are_spent_on_certainty(growing):
    """A tolerance costs no more products than the same basis of the same blocks would."""
    A = with_spectrum(gallery.slower(300), (300, 300), "float64")
    for q in (0, 1, 2):
        found = lowrank.range_finder(A, rtol=0.1, power_iterations=q, rng=0)
        assert found.products == (2 + 2 * q) * found.rank


@pytest.mark.parametrize("rtol", [1e-8, 1e-10, 1e-12])
@pytest.mark.parametrize("name", ["svd", "qb", "range_finder"])
def test_energies_give_way_to_samples_below_their_cancellation(rtol, name):
    A = with_spectrum(gallery.fast(200), (220, 200), "float64")
    found = getattr(lowrank, name)(A, rtol=rtol, rng=0, certificate="energy")
    Q = found.U if name == "svd" else found.Q
    assert found.converged
    assert found.certificate == "sampled"
    assert np.linalg.norm(residual(A, Q)) <= found.error_bound <= rtol * np.linalg.norm(A)


def test_energies_of_constant_matrices_carry_what_sums_lose():
    """Sums of equal numbers are biased: the energy of ones is off by up to m eps."""
    for shape in ((30_000, 60), (60, 30_000)):
        A = np.ones(shape, "float32")
        A[0, 0] = 2.0
        for rtol in (0.3, 0.1, 1e-2):
            found = quietly(lowrank.svd, A, rtol=rtol, rng=0, certificate="energy")
            product = (found.U.astype("float64") * found.S) @ found.Vh
            assert np.linalg.norm(A - product) <= found.error_bound


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize("shape", [(1500, 300), (300, 1500), (4000, 40)])
def test_reflectors_of_constant_matrices_drift_and_say_so(growing, dtype, shape):
    A = np.ones(shape, dtype)
    eps, wide = np.finfo(dtype).eps, np.longdouble
    for rtol in (100 * eps, 200 * eps, 1e-3):
        for block_size in (None, 1):
            if block_size == 1 and rtol < 1e-3 and shape[0] < 4000:
                continue
            options = {"rng": 0, "block_size": block_size}
            found = quietly(lowrank.svd, A, 40, rtol=rtol, **options)
            U, Vh = found.U, found.Vh
            if A.dtype.kind == "f":
                U, Vh = U.astype(wide), Vh.astype(wide)
            assert np.linalg.norm(A - (U * found.S) @ Vh) <= found.error_bound


@pytest.mark.parametrize("power_iterations", [None, 1, 2])
def test_bases_of_constant_matrices_by_single_columns(growing, backend, power_iterations):
    """The second column is next to parallel to what the first one left, and sums are biased."""
    dtype = "float64" if backend.has_float64 else "float32"
    A = np.ones((40, 3000), dtype)
    A[:20] *= 0.7
    options = {"side": "right", "block_size": 1, "power_iterations": power_iterations}
    for seed in range(3):
        rtol = 100 * backend.eps(dtype)
        found = quietly(lowrank.range_finder, backend.asarray(A), rtol=rtol, rng=seed, **options)
        Q = backend.numpy(found.Q).astype(np.longdouble)
        assert (
            norm(residual(A.T.astype(np.longdouble), Q).astype(float), "fro") <= found.error_bound
        )


@pytest.mark.parametrize("name", ["svd", "qb"])
def test_energies_sharpen_what_samples_say(name):
    """Samples alone bound it within a factor of two; where ‖A‖ is known, so is the error."""
    A = with_spectrum(gallery.slow(200), (210, 200), "float64")
    found = getattr(lowrank, name)(A, rtol=0.1, certificate="sampled", rng=0)
    product = (found.U * found.S) @ found.Vh if name == "svd" else found.Q @ found.B
    truth = np.linalg.norm(A - product)
    assert truth <= found.error_bound <= truth * (1 + 1e-9)


# -- which certificate ----------------------------------------------------------------------------


def test_the_certificate_follows_from_the_matrix(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = with_spectrum(gallery.slow(200), (210, 200), "float64")
    np.save(tmp_path / "A.npy", A)
    mapped = np.load(tmp_path / "A.npy", mmap_mode="r")
    csr = sparse.csr_array(A)
    for X, certificate in (
        (A, "exact"),
        (A[:, ::-1], "exact"),
        (mapped, "energy"),
        (mapped[5:], "energy"),
        (np.asarray(mapped), "energy"),
        (lowrank.RowBlocks(mapped), "energy"),
        (csr, "energy"),
        (linalg.aslinearoperator(A), "sampled"),
    ):
        found = lowrank.svd(X, rtol=0.1, rng=0)
        assert (found.converged, found.certificate) == (True, certificate)
    for X, certificate in ((A, "exact"), (csr, "sampled")):
        assert lowrank.svd(X, rtol=0.1, norm="spectral", rng=0).certificate == certificate
    assert lowrank.svd(A, rtol=0.1, center=True, rng=0).certificate == "exact"
    assert lowrank.range_finder(A, 3, rng=0).certificate is None


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("stop", [{"rank": 3}, {"rtol": 0.1}])
def test_certificates_that_a_matrix_does_not_allow(name, stop):
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    function, A = getattr(lowrank, name), np.eye(20)
    with pytest.raises(TypeError, match="'exact' needs an array in memory"):
        function(sparse.csr_array(A), certificate="exact", **stop)
    with pytest.raises(TypeError, match="'energy' needs the Frobenius norm"):
        function(linalg.aslinearoperator(A), certificate="energy", **stop)
    with pytest.raises(ValueError, match=r"`certificate` must be 'exact', .* got 'certain'"):
        function(A, certificate="certain", **stop)


def test_without_memory_for_a_copy_energies_tell(backend, dtype):
    A = with_spectrum(gallery.slow(200), (210, 200), dtype)

    def refuse(*_):
        raise MemoryError

    class Large:
        def __lowrank_operator__(self):
            from dataclasses import replace  # noqa: PLC0415

            return replace(as_operator(backend.asarray(A)), explicit=refuse)

    found = lowrank.svd(Large(), rtol=0.1, rng=0)
    assert (found.converged, found.certificate) == (True, "energy")
    U, S, Vh = (backend.numpy(X) for X in found)
    assert np.linalg.norm(A - (U * S) @ Vh) <= found.error_bound


# -- whose memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_nothing_is_modified_unless_allowed(backend, dtype, name, kind):
    A = hermitian("slower", 50, dtype)
    there = backend.asarray(A)
    for rtol in (0.3, 1e-3):
        quietly(getattr(lowrank, name), there, rtol=rtol, norm=kind, rng=0)
        assert np.array_equal(backend.numpy(there), A)


@pytest.mark.parametrize(
    ("shape", "rtol", "side"),
    [
        ((160, 150), 0.3, "left"),
        ((150, 160), 0.3, "right"),
        ((150, 160), 0.02, "left"),
        ((160, 150), 0.02, "right"),
        ((160, 150), 1e-4, "left"),
        ((160, 150), 1e-4, "right"),
    ],
)
def test_what_may_be_overwritten_gives_the_same(backend, dtype, shape, rtol, side):
    A = with_spectrum(gallery.slower(150), shape, dtype)
    options = {"rtol": rtol, "side": side, "rng": 0}
    found = lowrank.range_finder(backend.asarray(A.copy()), overwrite_a=True, **options)
    usual = lowrank.range_finder(backend.asarray(A), **options)
    Q, P = backend.numpy(found.Q), backend.numpy(usual.Q)
    wide = A.astype(Q.dtype) if side == "left" else adjoint(A).astype(Q.dtype)
    assert (found.rank, found.status) == (usual.rank, usual.status)
    assert norm(residual(wide, Q), "fro") <= found.error_bound
    if found.rank < 150:
        assert norm(residual(P, Q), "fro") <= 2e3 * backend.eps(dtype) * norm(wide, "fro") / rtol


def test_the_memory_of_a_is_used_where_it_may_be():
    A = with_spectrum(gallery.slower(200), (210, 200), "float64")
    X = A.copy()
    found = lowrank.svd(X, rtol=0.2, rng=0, overwrite_a=True)
    assert not np.allclose(X, A)
    # HᴴA: its first rows hold the factor, those below the residual
    k, scale = found.history[-1].rank, np.linalg.norm(X) / np.linalg.norm(A)
    assert np.linalg.norm(X[k:]) == pytest.approx(scale * found.history[-1].estimate)
    for kept in (A, np.broadcast_to(A[:1], (150, 200)), A.astype("float16")):
        before = kept.copy()
        kept.flags.writeable = False
        quietly(lowrank.svd, kept, rtol=0.2, rng=0, overwrite_a=True)
        assert np.array_equal(kept, before)


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("extends", [False, True])
def test_an_interruption_in_the_middle_of_an_update(growing, monkeypatch, extends, overwrites):
    """The residual is half written then; it is made anew, unless A itself was overwritten."""
    A = with_spectrum(gallery.slower(200), (210, 200), "float64")
    finder = lowrank.RangeFinder(A.copy(), rng=0, overwrite_a=overwrites).reach(rtol=0.3)
    usual = Block.apply_adjoint

    def interrupted(self, X):
        X[: X.shape[0] // 2] = 7.0
        raise KeyboardInterrupt

    monkeypatch.setattr(Block, "apply_adjoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finder.extend(20) if extends else finder.reach(rtol=0.05)
    monkeypatch.setattr(Block, "apply_adjoint", usual)
    if overwrites:
        for again in (lambda: finder.reach(rtol=0.05), lambda: finder.extend(3)):
            with pytest.raises(RuntimeError, match="`A` was overwritten with HᴴA"):
                again()
    else:
        found = finder.reach(rtol=0.05).result()
        assert found.converged
        assert norm(residual(A, found.Q), "fro") <= found.error_bound <= found.tolerance


@pytest.mark.parametrize("overwrites", [False, True])
def test_an_interruption_before_the_first_block(growing, monkeypatch, overwrites):
    """The memory of A may be scaled by then, so that the object can't be used any more."""
    scale = 2.0**600
    A = scale * with_spectrum(gallery.slower(200), (210, 200), "float64")
    finder = lowrank.RangeFinder(A.copy(), rng=0, overwrite_a=overwrites)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Explicit, "of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finder.reach(rtol=0.3)
    if overwrites:
        with pytest.raises(RuntimeError, match="`A` was overwritten with HᴴA"):
            finder.reach(rtol=0.3)
    else:
        found = finder.reach(rtol=0.3).result()
        error = norm(residual(A / scale, found.Q), "fro")
        assert error <= found.error_bound / scale <= found.tolerance / scale


# -- where the SVD is cheaper ----------------------------------------------------------------------


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 90),
    n=st.integers(1, 90),
    exponent=st.floats(-15, 0.1),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    kind=st.sampled_from(["fro", "spectral"]),
    overwrite_a=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_of_small_matrices_the_best(
    costs_of_a_processor, backend, dtype, spectrum, m, n, exponent, cap, kind, overwrite_a, seed
):
    """Leading singular vectors: no basis of that rank has a smaller error, nor is one smaller."""
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    rtol, eps = 10.0**exponent, backend.eps(dtype)
    options = {"rtol": rtol, "norm": kind, "overwrite_a": overwrite_a, "rng": seed}
    found = quietly(lowrank.range_finder, backend.asarray(A.copy()), cap, **options)
    Q = backend.numpy(found.Q)
    wide = A.astype(Q.dtype)
    s, true = np.linalg.svd(wide, compute_uv=False), norm(residual(wide, Q), kind)
    best = norm(np.diag(s[found.rank :]), kind)
    assert true <= found.error_bound
    assert true <= best + 300 * eps * norm(wide, kind)
    assert defect(Q) <= 200 * eps * max(found.rank, 1) ** 0.5
    assert found.converged == (found.error_bound <= found.tolerance)
    if found.converged and found.rank > 0 and rtol > 1e3 * eps:
        fewer = norm(np.diag(s[found.rank - 1 :]), kind)
        assert fewer > (rtol - 300 * eps) * norm(wide, kind)


@pytest.mark.parametrize("name", ["svd", "qb"])
@pytest.mark.parametrize("shape", [(300, 250), (250, 300), (600, 200), (200, 600)])
def test_noise_is_decomposed_whole(costs_of_a_processor, backend, name, shape):
    dtype = "float64" if backend.has_float64 else "float32"
    A = gaussian(shape, dtype)
    s = np.linalg.svd(A, compute_uv=False)
    for options in ({}, {"overwrite_a": True}):
        found = getattr(lowrank, name)(backend.asarray(A.copy()), rtol=1e-2, rng=0, **options)
        left = backend.numpy(found[0] if isinstance(found, tuple) else next(iter(found)))
        assert found.rank == gallery.best_rank(s, rtol=1e-2)
        assert found.certificate == "exact"
        error = np.linalg.norm(residual(A.astype(left.dtype), left))
        assert error <= found.error_bound <= found.tolerance
        # decided before much was multiplied: a tenth of the columns, a few times each
        assert found.products < 3 * min(shape)


def test_after_the_svd_the_object_goes_on():
    A = gaussian((220, 200), "float64")
    s = np.linalg.svd(A, compute_uv=False)
    finder = lowrank.RangeFinder(A, rng=0).reach(rtol=1e-2)
    products, rank = finder.result().products, finder.rank
    assert rank == gallery.best_rank(s, rtol=1e-2)
    finder.Q[:] = 7.0  # is the caller's
    tight = finder.reach(rtol=1e-4).result()
    assert (tight.converged, tight.products) == (True, products)
    assert np.linalg.norm(residual(A, tight.Q)) <= tight.error_bound
    assert tight.rank == gallery.best_rank(s, rtol=1e-4) >= rank
    finder = lowrank.RangeFinder(A, rng=0)
    quietly(finder.reach, rtol=1e-2, rank=150)
    assert finder.rank == 150
    found = finder.extend(1).extend(59).result()
    assert (found.rank, found.status) == (200, Status.FULL_RANK)
    assert defect(finder.Q) < 1e-12


def test_steps_are_not_taken_for_noise():
    """Equal singular values and then none: the blocks tell how many there are, exactly."""
    A = with_spectrum(np.repeat([1.0, 0.0], [150, 450]), (600, 600), "float64")
    found = lowrank.svd(A, rtol=1e-6, rng=0)
    assert found.rank == 150
    assert found.history[-1].rank < 300


# -- options, written once -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FUNCTIONS, "RangeFinder"])
def test_shared_options_are_in_the_signature_and_the_words(name):
    function = getattr(lowrank, name)
    parameters = inspect.signature(function).parameters
    tolerances = [] if name == "RangeFinder" else ["rtol", "atol"]
    for option in (*tolerances, "norm", "certificate", "overwrite_a", "callback", "rng"):
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert option in function.__doc__
    assert parameters["failure_probability"].default == 1e-9
    assert "<" not in function.__doc__.split("Notes")[0].replace("<=", "")
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'rtoll'"):
        function(np.eye(3), rtoll=0.1)


# -- found by use ----------------------------------------------------------------------------------


def test_norms_beyond_the_dtype_tell_no_false_error():
    """‖A‖_F may exceed the largest float32 number where no entry and no singular value does."""
    A = (gaussian((300, 300), "float64") * 1e37).astype("float32")
    wide = A.astype("float64")
    for options in ({"rtol": 0.5}, {"rank": 40}):
        for certificate in ("exact", "energy", "sampled"):
            found = lowrank.svd(A, rng=0, certificate=certificate, **options)
            product = (found.U.astype("float64") * found.S) @ found.Vh
            assert np.linalg.norm(wide - product) <= found.error_bound
    found = lowrank.eigh((A + A.T) / 2, 40, rng=0)
    w, V = found.eigenvalues.astype("float64"), found.eigenvectors.astype("float64")
    assert np.linalg.norm((wide + wide.T) / 2 - (V * w) @ V.T) <= found.error_bound


@pytest.mark.parametrize("certificate", ["exact", "energy", "sampled"])
def test_a_test_matrix_that_turns_nan_is_refused(growing, backend, certificate):
    A = backend.asarray(with_spectrum(gallery.slower(200), (210, 200), "float32"))
    blocks = []

    def draw(shape, dtype, device):
        blocks.append(gaussian(shape, "float32", len(blocks)))
        if len(blocks) == 2:
            blocks[-1][3, 3] = np.nan
        return backend.asarray(blocks[-1])

    with pytest.raises(ValueError, match="is not finite"):
        lowrank.svd(A, rtol=1e-2, test_matrix=draw, certificate=certificate)


def test_memory_that_entries_share_is_not_written_to():
    x = np.cumsum(gaussian(700, "float64"))
    windows = np.lib.stride_tricks.as_strided(x, (400, 300), (8, 8))
    A = windows.copy()
    found = lowrank.svd(windows, rtol=0.01, rng=0, overwrite_a=True)
    assert np.array_equal(windows, A)
    assert np.linalg.norm(A - (found.U * found.S) @ found.Vh) <= found.error_bound
    torch = pytest.importorskip("torch")
    windows = torch.from_numpy(x).unfold(0, 300, 1)[:400]
    lowrank.svd(windows, rtol=0.01, rng=0, overwrite_a=True)
    assert np.array_equal(windows.numpy(), A)


def test_a_tolerance_of_the_norm_ends():
    torch = pytest.importorskip("torch")
    for A in (torch.ones(3000, 30, dtype=torch.float64), np.ones((3000, 30)), np.eye(50)):
        assert quietly(lowrank.range_finder, A, rtol=1.0, rng=0).rank <= 1


def test_energies_that_differ_by_more_than_floats_can_tell():
    A = np.diag(np.r_[1.0, np.full(199, 1e-200)])
    assert quietly(lowrank.svd, A, atol=1e-250, rng=0).rank >= 1


def test_columns_without_a_look_drift_too(growing):
    A, eps = np.ones((3000, 100)), np.finfo(float).eps
    for columns in (8, 64):
        finder = lowrank.RangeFinder(A, rng=3).extend(columns)
        found = quietly(finder.reach, rtol=200 * eps, rank=columns + 6).result()
        Q = found.Q.astype(np.longdouble)
        assert np.linalg.norm(A - Q @ (Q.T @ A)) <= found.error_bound


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_interpolation_jumps_over_clusters(kind):
    """A basis that meets the smaller goal already grows to a still smaller one."""
    A = with_spectrum(10.0 ** -(np.arange(80) // 8).astype(float), (200, 80), "float64")
    for rtol in (0.361, 0.2, 0.04):
        for function in (lowrank.interpolative, lowrank.cur):
            assert function(A, rtol=rtol, norm=kind, rng=0).converged


def test_an_operator_that_breaks_in_the_spectral_norm():
    class Breaking:
        shape, dtype, asked = (180, 160), np.dtype("float64"), 0

        def matmat(self, X):
            return gaussian(self.shape, "float64") @ X

        def rmatmat(self, Y):
            self.asked += 1
            return gaussian(self.shape, "float64").T @ Y * (np.nan if self.asked == 2 else 1.0)

    with pytest.raises(ValueError, match="is not finite"):
        lowrank.range_finder(Breaking(), rtol=1e-3, norm="spectral", rng=0)


def test_factors_of_an_operator_are_the_callers():
    class Identity:
        shape, dtype = (30, 30), np.dtype("float64")

        def matmat(self, X):
            return X

        rmatmat = matmat

    Q, B = lowrank.qb(Identity(), 5, rng=0)
    assert not np.shares_memory(Q, B)


@pytest.mark.parametrize(("shape", "diagonal"), [((200, 257), True), ((300, 40), False)])
def test_left_singular_vectors_that_drift_are_part_of_the_bound(backend, shape, diagonal):
    """Next to rounding, of a centered matrix, whose reflectors add numbers of one sign."""
    A = np.eye(*shape, dtype="float32")
    if not diagonal:
        A += np.random.default_rng(93).standard_normal(shape).astype("float32")
    A *= np.logspace(0, -16, shape[0], dtype="float32")[:, None] if diagonal else 1
    found = quietly(lowrank.svd, backend.asarray(A), rtol=1e-8, center=True, rng=93)
    U, S, Vh, mean = (
        backend.numpy(X).astype(float) for X in (found.U, found.S, found.Vh, found.mean)
    )
    assert norm(A - mean - (U * S) @ Vh, "fro") <= found.error_bound


@pytest.mark.parametrize(
    ("kind", "spent", "center"),
    [
        ("fro", False, False),
        ("fro", True, True),
        ("spectral", False, True),
        ("spectral", True, False),
    ],
)
def test_long_sums_of_graded_matrices_are_part_of_the_bound(backend, kind, spent, center):
    """Hundreds of equal small terms are added to a large one, each rounded the same way."""
    for shape, decades in (((1000, 300), 16), ((255, 300), 24), ((257, 200), 8)):
        A, k = np.zeros(shape, "float32"), min(shape)
        A[np.arange(k), np.arange(k)] = np.logspace(0, -decades, k)
        options = {"rtol": 1e-8, "norm": kind, "overwrite_a": spent, "center": center, "rng": 0}
        found = quietly(lowrank.svd, backend.asarray(A.copy()), **options)
        U, S, Vh = (backend.numpy(X).astype(float) for X in found)
        mean = backend.numpy(found.mean).astype(float) if center else 0.0
        assert norm(A - mean - (U * S) @ Vh, kind) <= found.error_bound
