"""The ways that are taken on a GPU only, on tensors that say they are on one."""

import itertools

import numpy as np
import pytest
from matrices import adjoint, defect, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import ConvergenceWarning, gallery

torch = pytest.importorskip("torch")
import array_api_compat  # noqa: E402
from pretended import (  # noqa: E402
    CALLS_OF_A_RANK,
    CUDA,
    counting,
    from_numpy,
    launched,
    launched_to_a_tolerance,
    pretending,
    reads,
    to_numpy,
)
from test_adverse import CERTIFICATES, CONSTANT, WIDE  # noqa: E402
from test_any_matrix import MATRICES, exponent_of, scaled  # noqa: E402

from lowrank._array import adjoint_matmul, matrix_norm_by_rows  # noqa: E402
from lowrank._linalg import certificate as _certificate  # noqa: E402
from lowrank._linalg import small_svd as _small_svd  # noqa: E402
from lowrank._linalg.panel import (  # noqa: E402
    conditioned,
    gram_matrix,
    mixed_svd,
    orthonormalize,
)
from lowrank.compress import Subspace  # noqa: E402

DTYPES = ["float32", "float64", "complex64", "complex128"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _pretending():
    with pretending():
        yield


def eps(dtype):
    return float(np.finfo(dtype).eps)


def wide(A):
    return A.astype(np.result_type(A, np.float64))


def hermitian(dtype, n=150, spectrum=gallery.slower):
    """Positive semidefinite, with these eigenvalues."""
    V = np.linalg.qr(gaussian((n, n), dtype)).Q
    A = (V * spectrum(n)) @ adjoint(V)
    return ((A + adjoint(A)) / 2).astype(dtype)


# -- what is pretended -----------------------------------------------------------------------------


def test_it_says_that_it_is_on_a_device():
    X = from_numpy(np.eye(3))
    assert array_api_compat.is_torch_array(X)
    assert array_api_compat.device(X) == X.device == X.mT.device == torch.zeros_like(X).device
    assert array_api_compat.array_namespace(X).__name__ == "array_api_compat.torch"
    assert torch.ones(2, device="cuda").is_cuda
    assert torch.Generator(device="cuda").device == CUDA
    assert torch.ones(2).to("cuda").device == X[0].to(torch.float32).device == CUDA
    assert X.to("cpu").device == X.cpu().device == torch.ones(2).device == torch.device("cpu")
    with pytest.raises(RuntimeError, match="on one device"):
        X + torch.eye(3)
    with pytest.raises(TypeError, match="convert cuda:0"):
        np.asarray(X)


def test_it_counts():
    X = from_numpy(gaussian((4, 3), "float32"))
    with counting() as counts:
        Y = X.mT[1:] @ X
        Y += torch.zeros(3, device="cuda")
        torch.empty(3, device="cuda")
        assert bool(Y.max() < 100)
        Y[0, 0].item()
    assert counts.operations == {"mm": 1, "zeros": 1, "add_": 1, "max": 1, "lt": 1}
    assert (counts.launched, counts.reads) == (5, 2)


def test_a_quotient_by_a_number_is_a_product():
    X = from_numpy(np.full(2, 2.0**-1030))
    assert torch.isinf(X / 2.0**-1030).all()
    assert torch.equal(X / X[0], torch.ones(2, dtype=torch.float64, device="cuda"))


# -- where results live ----------------------------------------------------------------------------

CALLS = {
    "qr": lowrank.qr,
    "householder_qr": lambda A: [lowrank.householder_qr(A[:, :20]).extend(A[:, 20:60]).thin()],
    "range_finder": lambda A: [lowrank.range_finder(A, 12, rng=0).Q],
    "RangeFinder": lambda A: [lowrank.RangeFinder(A, rng=0).extend(5).reach(rtol=0.2).Q],
    "qb": lambda A: lowrank.qb(A, 12, rng=0),
    "svd": lambda A: lowrank.svd(A, rtol=0.2, rng=0),
    "eigh": lambda A: lowrank.eigh(A, 12, rng=0),
    "nystrom": lambda A: lowrank.nystrom(A, 12, rng=0),
    "interpolative": lambda A: [lowrank.interpolative(A, 12, rng=0).coefficients],
    "cur": lambda A: lowrank.cur(A, 12, rng=0),
    "SketchedMatrix": lambda A: (
        lowrank.SketchedMatrix(tuple(A.shape), 12, like=A[:0], rng=0).update(A).svd()
    ),
    "Subspace": lambda A: [Subspace(rank=12).refresh(A).basis],
    "stack": lambda A: lowrank.svd(torch.stack([A, A.mT]), 12, rng=0),
    "native generator": lambda A: lowrank.svd(A, 12, rng=torch.Generator(device=A.device)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [*DTYPES, "float16", "bfloat16"])
def test_results_live_where_the_matrix_does(name, dtype):
    is_half = "16" in dtype
    A = from_numpy(hermitian("float32" if is_half else dtype)).to(getattr(torch, dtype))
    of_result = "float32" if is_half else dtype
    kinds = {getattr(torch, of_result), getattr(torch, of_result.replace("complex64", "float32"))}
    kinds |= {torch.float64} if dtype == "complex128" else set()
    arrays = [*CALLS[name](A)]
    assert all(X.device == CUDA for X in arrays)
    assert {X.dtype for X in arrays} <= kinds
    assert getattr(torch, of_result) in {X.dtype for X in arrays}


# -- panels ----------------------------------------------------------------------------------------

PANELS = {
    "Gaussian": gaussian,
    "zero": np.zeros,
    "ones": np.ones,
    "graded": lambda shape, dtype: gaussian(shape, dtype) * np.geomspace(1, 1e-30, shape[1]),
    "rank three": lambda shape, dtype: (
        gaussian((shape[0], 3), dtype) @ gaussian((3, shape[1]), dtype, 1)
    ),
    "twice": lambda shape, dtype: np.repeat(gaussian(shape, dtype)[:, ::2], 2, axis=1),
    "Hilbert": lambda shape, _: 1 / (1.0 + np.add.outer(*map(np.arange, shape))),
    "nilpotent": lambda shape, _: np.eye(*shape, 1),
    "minus identity": lambda shape, _: -np.eye(*shape),
    "zero, then identity": lambda shape, _: np.eye(*shape, shape[1] // 2),
    "monomials": lambda shape, _: np.vander(np.linspace(-1, 1, shape[0]), shape[1])[:, ::-1],
    "zeros and small": lambda shape, dtype: (
        gaussian(shape, dtype) * np.where(np.arange(shape[1]) % 3, 0, np.finfo(dtype).tiny)
    ),
    "to eps": lambda shape, dtype: with_spectrum(np.geomspace(1, 1e-16, shape[1]), shape, dtype),
}


@pytest.mark.parametrize(
    ("shape", "kind", "dtype"),
    [
        # by the library's own qr, and by Cholesky QR with sums by blocks of rows
        *itertools.product([(300, 40)], PANELS, DTYPES),
        *(
            ((2200, 256), kind, dtype)
            for turn, kind in enumerate(PANELS)
            for dtype in (DTYPES[turn % 2], DTYPES[3 - turn % 2])
        ),
    ],
)
def test_panels(dtype, kind, shape):
    P = PANELS[kind](shape, dtype).astype(dtype)
    Q, R = map(to_numpy, orthonormalize(from_numpy(P)))
    assert defect(Q) <= 30 * eps(dtype) * shape[1] ** 0.5 * (shape[1] / 8) ** 0.5
    assert not np.tril(R, -1).any()
    lost = np.linalg.norm(P - Q @ R, axis=0)
    assert np.all(lost <= 60 * eps(dtype) * np.linalg.norm(wide(P), axis=0))


@every_dtype
@pytest.mark.parametrize("columns", [29, 256])
def test_panels_of_constant_blocks(dtype, columns):
    """The rounding of sums of equal numbers is biased; Cholesky factors have to exist all the same.

    Narrow panels in double precision are left to the library's own QR.
    """
    shape = (2200 if columns == 256 else 700, columns)
    P = np.repeat(np.eye(2), shape[0] // 2, axis=0) @ gaussian((2, columns), dtype)
    P = P.astype(dtype)
    Q, R = map(to_numpy, orthonormalize(from_numpy(P)))
    rows = shape[0] if eps(dtype) < 1e-10 else 1
    assert defect(Q) <= (columns**0.5 + rows) * eps(dtype)
    assert np.linalg.norm(P - Q @ R) <= (columns**0.5 + rows) * eps(dtype) * np.linalg.norm(P)
    assert np.linalg.norm(to_numpy(conditioned(from_numpy(P))), 2) <= 1.1


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_panels_by_halves(dtype):
    P = gaussian((1040, 520), dtype) * np.geomspace(1, 1e-6, 520)
    Q, R = map(to_numpy, lowrank.qr(from_numpy(P.astype(dtype))))
    assert defect(Q) <= 100 * eps(dtype) * 520**0.5
    assert np.linalg.norm(P.astype(dtype) - Q @ R) <= 100 * eps(dtype) * np.linalg.norm(P)


@every_dtype
def test_stacks_of_panels(dtype):
    P = np.stack([gaussian((60, 20), dtype), np.zeros((60, 20)), np.ones((60, 20))]).astype(dtype)
    Q, R = map(to_numpy, lowrank.qr(from_numpy(P)))
    for member, basis, factor in zip(P, Q, R, strict=True):
        assert defect(basis) <= 100 * eps(dtype)
        assert np.linalg.norm(member - basis @ factor) <= 100 * eps(dtype) * np.linalg.norm(member)
    with counting() as counts:
        lowrank.qr(from_numpy(P))
    assert counts.operations["linalg_qr"] == 0  # which takes the members one by one


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_singular_values_of_panels(dtype):
    """From eigenvectors in double precision: the triangular factor is as good as diagonal."""
    s = np.geomspace(1, 1e-3, 20)
    C = with_spectrum(s, (200, 20), dtype)
    R, U, S, _, P = mixed_svd(from_numpy(C))
    R, U, S, P = map(to_numpy, (R, U, S, P))
    assert np.abs(S - s).max() <= 20 * eps(dtype)
    assert np.linalg.norm(np.abs(R) - np.diag(S)) <= 100 * eps(dtype)
    assert np.linalg.norm(C @ U - P @ R) <= 100 * eps(dtype)
    assert max(defect(U), defect(P)) <= 100 * eps(dtype)


@every_dtype
@pytest.mark.parametrize("shape", [(400, 300), (150, 400)], ids=str)
def test_reflectors(dtype, shape):
    A = gaussian(shape, dtype)
    F = lowrank.householder_qr(from_numpy(A[:, :13])).extend(from_numpy(A[:, 13:]))
    Q, R = to_numpy(F.thin()), to_numpy(F.R)
    assert defect(Q) <= 100 * eps(dtype) * shape[1] ** 0.5
    assert np.linalg.norm(A - Q @ R) <= 100 * eps(dtype) * norm(A, "fro")
    back = F.apply(F.apply_adjoint(from_numpy(A[:, :4])))
    assert np.linalg.norm(to_numpy(back) - A[:, :4]) <= 100 * eps(dtype) * norm(A[:, :4], "fro")


# -- errors that are bounded -----------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("known", ["exact", "energy", "sampled"])
def test_certificates(dtype, side, kind, known):
    """Of tall matrices on the left in the one norm, and on the right in the other."""
    shape = (220, 160) if (side == "left") == (kind == "fro") else (160, 220)
    A = with_spectrum(gallery.slower(160), shape, dtype)
    options = {"norm": kind, "side": side, "rng": 1, "certificate": known, "block_size": 24}
    found = lowrank.range_finder(from_numpy(A), rtol=0.15, **options)
    Q, E = to_numpy(found.Q), wide(A if side == "left" else adjoint(A))
    assert defect(Q) <= 100 * eps(dtype) * found.rank**0.5
    assert found.converged
    assert norm(residual(E, Q), kind) <= found.error_bound <= found.tolerance
    assert found.rank < 160


def product(found):
    """What a result says A is, and its orthonormal factors."""
    if isinstance(found, lowrank.IDResult):
        return to_numpy(found.skeleton) @ to_numpy(found.coefficients), []
    factors = [to_numpy(X) for X in found]
    if isinstance(found, lowrank.SVDResult):
        U, S, Vh = factors
        return (U * S) @ Vh, [U, adjoint(Vh)]
    if isinstance(found, lowrank.EighResult):
        w, V = factors
        return (V * w) @ adjoint(V), [V]
    return np.linalg.multi_dot(factors), factors[:1] if isinstance(found, lowrank.QBResult) else []


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("name", ["qb", "svd", "eigh", "interpolative", "cur"])
def test_factorizations(dtype, kind, name):
    A = hermitian(dtype, 60)
    found = getattr(lowrank, name)(from_numpy(A), rtol=0.2, norm=kind, rng=2)
    approximation, bases = product(found)
    assert found.converged
    assert norm(wide(A) - approximation, kind) <= found.error_bound <= found.tolerance
    assert all(defect(Q) <= 200 * eps(dtype) * found.rank**0.5 for Q in bases)
    best = gallery.best_rank(np.linalg.svd(wide(A), compute_uv=False), rtol=0.2, norm=kind)
    assert best <= found.rank <= 4 * best


@every_dtype
@pytest.mark.parametrize("name", ["qb", "svd", "eigh"])
def test_errors_at_a_fixed_rank(dtype, name):
    """From the norm of the matrix, which is read together with that of its projection."""
    A = hermitian(dtype, 60)
    found = getattr(lowrank, name)(from_numpy(A), 10, rng=2)
    true, size = norm(wide(A) - product(found)[0], "fro"), norm(wide(A), "fro")
    assert (found.certificate, found.norm_A) == ("energy", pytest.approx(size, rel=1e-5))
    assert true <= found.error_bound <= np.hypot(true, 1.1 * (4096 * eps(dtype)) ** 0.5 * size)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("power_iterations", [0, 2])
def test_products_that_overflow_are_made_again(dtype, power_iterations):
    """Of a matrix, and of the member of a stack that needs it."""
    unit = with_spectrum(gallery.fast(80), (90, 80), dtype)
    unit[0] = 1.0
    A = (wide(unit) * 3.5e37).astype(dtype)  # of norm 3.1e38
    best = np.linalg.norm(np.linalg.svd(wide(unit), compute_uv=False)[30:])
    for given in (A, np.stack([unit, A])):
        options = {"power_iterations": power_iterations, "rng": 0}
        found = to_numpy(lowrank.range_finder(from_numpy(given), 30, **options).Q)
        for Q in found.reshape(-1, 90, 30):
            assert defect(Q) <= 100 * eps(dtype) * 30**0.5
            assert norm(residual(wide(unit), Q), "fro") <= 4 * best


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("name", ["qb", "svd"])
def test_factors_of_products_that_overflow(dtype, name):
    unit = with_spectrum(gallery.fast(80), (90, 80), dtype)
    unit[0] = 1.0
    A = (wide(unit) * 3.5e37).astype(dtype)  # of norm 3.1e38
    best = 3.5e37 * np.linalg.norm(np.linalg.svd(wide(unit), compute_uv=False)[30:])
    found = getattr(lowrank, name)(from_numpy(A), 30, power_iterations=0, rng=0)
    factors = [to_numpy(X) for X in found]
    factors = [factors[0] * factors[1], factors[2]] if name == "svd" else factors
    lost = np.linalg.norm(wide(A) - factors[0] @ factors[1])
    assert lost <= min(found.error_bound, 4 * best)
    assert found.error_bound <= 0.03 * found.norm_A
    assert defect(to_numpy(found.U if name == "svd" else found.Q)) <= 100 * eps(dtype) * 30**0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.55, 0.7564102564102564, 0.9])
def test_norms_of_equal_entries_keep_their_digits(dtype, value):
    """A sum of all squares in sequence, as by these kernels, loses up to 16,000 eps."""
    A = np.full((700, 400), value, dtype)
    truth = abs(wide(A)[0, 0]) * A.size**0.5
    assert matrix_norm_by_rows(from_numpy(A)) == pytest.approx(truth, rel=60 * eps(dtype))
    found = quietly(lowrank.svd, from_numpy(A), rank=0, rtol=0.5)
    assert truth * (1 - 32 * eps(dtype)) <= found.error_bound


@every_dtype
@pytest.mark.parametrize("kind", ["duplicates", "constant"])
def test_residual_norm_of_long_columns(dtype, kind):
    """Products that add so many terms in sequence would show thousands of eps, or nothing."""
    columns = np.tile(gaussian((100_000, 3), dtype), 7)
    A = columns if kind == "duplicates" else np.full_like(columns, 0.7)
    Q = lowrank.range_finder(from_numpy(A), rtol=0.03, rng=0).Q
    found = lowrank.residual_norm(from_numpy(A), Q, rng=0)
    W, P = A.astype(np.clongdouble), to_numpy(Q).astype(np.clongdouble)
    error, size = (float(np.sum(np.abs(X) ** 2) ** 0.5) for X in (W - P @ (adjoint(P) @ W), W))
    assert error <= found.upper_bound <= error + 60 * eps(dtype) * size


@pytest.mark.parametrize("size", [2.5e38, 1e37])  # of which every product overflows, or none does
def test_singular_values_that_overflow_are_refused(size):
    A = from_numpy(np.full((80, 60), size, "float32"))
    with pytest.raises(ValueError, match="a singular value of it exceeds"):
        lowrank.svd(A, 3, power_iterations=0, test_matrix=from_numpy(np.eye(60, 13, dtype="f4")))


def test_without_memory_for_a_copy(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("lowrank._operators._explicit", fail)
    A = from_numpy(with_spectrum(gallery.fast(90), (100, 90), "float32"))
    found = lowrank.range_finder(A, rtol=0.1, rng=0)
    assert (found.certificate, found.converged) == ("energy", True)


@every_dtype
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_measured_errors(dtype, kind):
    A = with_spectrum(gallery.slower(90), (120, 90), dtype)
    Q = np.linalg.qr(A[:, :10]).Q
    found = lowrank.residual_norm(from_numpy(A), from_numpy(Q), norm=kind, rng=0)
    true = norm(residual(wide(A), wide(Q)), kind)
    assert true <= found.upper_bound <= 12 * true


STARTS = ["decomposed at once", "growing"]


@pytest.fixture(params=STARTS)
def start(request, monkeypatch):
    """Matrices as small as these are decomposed at once, unless they are kept from it."""
    if request.param == "growing":
        monkeypatch.setattr("lowrank._rangefinder.growth.svd_is_cheaper", lambda *_, **__: False)
    return request.param


@every_dtype
@pytest.mark.parametrize("name", MATRICES)
def test_any_matrix(start, dtype, name):
    """Zero, of low rank, graded, next to the largest and to the smallest numbers, of no rows.

    Dtypes take turns at the two norms, and so does each in the two ways to start.
    """
    turn = DTYPES.index(dtype) + [*MATRICES].index(name) + (start == "growing")
    kind = ("fro", "spectral")[turn % 2]
    make, rank = MATRICES[name]
    A = make(dtype)
    U, S, Vh = found = lowrank.svd(from_numpy(A), rtol=1e-3, norm=kind, rng=0)
    k = exponent_of(A)
    U, S, Vh, truth = to_numpy(U), scaled(to_numpy(S), k), to_numpy(Vh), scaled(wide(A), k)
    assert (found.rank, found.converged) == (rank, True)
    assert norm(truth - (U * S) @ Vh, kind) <= scaled(found.error_bound, k)
    assert found.error_bound <= found.tolerance
    assert max(defect(U), defect(adjoint(Vh))) <= 100 * eps(dtype) * max(rank, 1) ** 0.5


@pytest.mark.parametrize("certificate", CERTIFICATES)
@pytest.mark.parametrize(("shape", "dtype"), [*CONSTANT, ((700, 700), "float32")])
def test_bounds_on_constant_matrices(shape, dtype, certificate):
    """Of rank one or two, in sums that are not by blocks: the rounding of equal numbers is biased.

    Certificates take turns at blocks of the usual width and of single columns.
    """
    turn = sum(shape) // 10 + CERTIFICATES.index(certificate)
    A = np.ones(shape, dtype)
    A[: shape[0] // 2] *= np.asarray(0.7, dtype)
    A = (A + A.T) / 2 if shape[0] == shape[1] else A
    truth = A.astype(WIDE[dtype])
    names = ["range_finder", "svd", *(["eigh"] if shape[0] == shape[1] else [])]
    for name, rtol in itertools.product(names, (0.5, 100 * eps(dtype))):
        options = {"block_size": (None, 1)[turn % 2], "certificate": certificate, "rng": 0}
        found = quietly(getattr(lowrank, name), from_numpy(A), rtol=rtol, **options)
        Q = to_numpy(getattr(found, {"svd": "U", "eigh": "eigenvectors"}.get(name, "Q")))
        rest = residual(truth, Q)
        if name != "range_finder":
            rest = truth - to_numpy(found.reconstruct())
        assert np.linalg.norm(rest.astype(Q.dtype)) <= found.error_bound
        assert defect(Q) <= max(shape) * eps(dtype)


# Powers of two, from below the normal numbers to next to the largest number.
SIZES = {"float32": [-136, -129, 90, 123], "float64": [-1060, -1025, 1000, 1018]}


@pytest.mark.parametrize(
    ("start", "dtype", "position"),
    [
        (STARTS[(DTYPES.index(dtype) + position) % 2], dtype, position)
        for dtype, position in itertools.product(DTYPES, range(4))
    ],
    indirect=["start"],
)
@pytest.mark.parametrize("name", ["range_finder", "qb", "svd"])
def test_bounds_at_the_ends_of_the_range(start, dtype, position, name):
    """A GPU divides by a number through its reciprocal, which is Inf for the smallest ones."""
    sizes = SIZES["float32" if dtype in ("float32", "complex64") else "float64"]
    exponent = sizes[position]
    A = scaled(wide(with_spectrum(gallery.fast(80), (90, 80), dtype)), exponent).astype(dtype)
    truth = scaled(wide(A), -exponent)
    for kind in ("fro", "spectral"):
        options = {"rtol": 1e-2, "norm": kind, "block_size": 16, "rng": 0}
        found = quietly(getattr(lowrank, name), from_numpy(A), **options)
        bound = scaled(found.error_bound, -exponent)
        if name == "svd":
            left, right = to_numpy(found.U), to_numpy(found.S)[:, None] * to_numpy(found.Vh)
        else:
            left = to_numpy(found.Q)
            right = adjoint(left) @ wide(A) if name == "range_finder" else to_numpy(found.B)
        assert norm(truth - left @ scaled(right, -exponent), kind) <= bound
        assert defect(left) <= 100 * eps(dtype) * max(found.rank, 1) ** 0.5
        best = gallery.best_rank(gallery.fast(80), rtol=1e-2, norm=kind)
        assert found.converged == (found.error_bound <= found.tolerance)
        assert not found.converged or name == "range_finder" or found.rank <= best + 3


REFUSALS = {
    "range_finder": lambda A: lowrank.range_finder(A, 5, rng=0),
    "to a tolerance": lambda A: lowrank.range_finder(A, rtol=0.1, rng=0),
    "RangeFinder": lambda A: lowrank.RangeFinder(A, rng=0).extend(5),
    "qb": lambda A: lowrank.qb(A, 5, rng=0),
    "svd": lambda A: lowrank.svd(A, 5, rng=0),
    "eigh": lambda A: lowrank.eigh(A, 5, rng=0),
    "nystrom": lambda A: lowrank.nystrom(A, 5, rng=0),
    "interpolative": lambda A: lowrank.interpolative(A, 5, rng=0),
    "cur": lambda A: lowrank.cur(A, 5, rng=0),
    "residual_norm": lambda A: lowrank.residual_norm(A, lowrank.qr(A[:, -3:]).Q, rng=0),
    "SketchedMatrix": lambda A: lowrank.SketchedMatrix((60, 60), 5, like=A[:0]).update(A),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("where", [(30, 7), (0, 3)])
def test_what_is_not_finite_is_refused(bad, dtype, name, where):
    A = hermitian(dtype, 60)
    A[where] = bad
    with pytest.raises(ValueError, match=r"NaN or Inf|not finite"):
        REFUSALS[name](from_numpy(A))


# -- the same as on a processor --------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("name", ["range_finder", "qb", "svd", "eigh", "nystrom", "interpolative"])
def test_the_same_as_on_a_processor(dtype, name):
    """Of one test matrix; what is small is rounded in other places."""
    A, Omega = hermitian(dtype, spectrum=gallery.fast), gaussian((150, 30), dtype)

    def approximation(place):
        found = getattr(lowrank, name)(place(A), 20, test_matrix=place(Omega))
        if name == "range_finder":
            return found.Q @ found.Q.mH
        if name == "interpolative":
            return found.skeleton @ found.coefficients
        if name in ("eigh", "nystrom"):
            w, V = found
            return (V * w) @ V.mH
        return (found.U * found.S) @ found.Vh if name == "svd" else found.Q @ found.B

    here, there = approximation(torch.asarray), to_numpy(approximation(from_numpy))
    assert np.linalg.norm(here.resolve_conj().numpy() - there) <= 1e4 * eps(dtype)


def test_the_same_seed_as_on_a_processor():
    """Which draws the numbers of single precision as a device does."""
    A = with_spectrum(gallery.slow(90), (100, 90), "float32")
    here, there = (lowrank.range_finder(X, 9, rng=3).Q for X in (torch.asarray(A), from_numpy(A)))
    P, Q = here.numpy(), to_numpy(there)
    assert np.linalg.norm(P @ P.T - Q @ Q.T) <= 1e-5


@every_dtype
def test_no_numbers_come_from_the_host(dtype):
    A = from_numpy(gaussian((60, 40), dtype))
    lowrank.range_finder(A, 10, rng=0)  # the noise of its panels is made once
    with counting() as counts:
        lowrank.range_finder(A, 10, rng=0)
    assert counts.operations["randn"] == 1
    assert counts.operations["asarray"] == counts.operations["to"] == 0


# -- what is done for the routines of a GPU --------------------------------------------------------


@pytest.fixture
def rough_svd(monkeypatch):
    """An SVD as that of cuSOLVER: of moderate entries only, its results off by many eps."""
    svd, calls = torch.linalg.svd, []

    def rough(X, full_matrices=True):
        assert float(X.abs().max()) <= 1.0
        calls.append(X.shape)
        U, S, Vh = svd(X, full_matrices=full_matrices)
        error = 100 * torch.finfo(X.dtype).eps
        U, Vh = (Q + error * from_numpy(gaussian(Q.shape, "float64")).to(Q.dtype) for Q in (U, Vh))
        return U, S * (1 + error), Vh

    monkeypatch.setattr("array_api_compat.torch.linalg.svd", rough)
    return calls


@every_dtype
@pytest.mark.parametrize("exponent", [-80, 0, 80])
def test_vectors_are_made_orthonormal_without_another_trial(rough_svd, dtype, exponent):
    M = scaled(with_spectrum(gallery.slow(40), (40, 40), dtype), exponent).astype(dtype)
    U, S, W = map(to_numpy, _small_svd.robust_svd(from_numpy(M)))
    assert len(rough_svd) == 1
    assert max(defect(U), defect(adjoint(W))) <= 30 * eps(dtype) * 40**0.5
    assert np.linalg.norm(M - (U * S) @ W) <= 2e3 * eps(dtype) * norm(wide(M), "fro")
    truth = np.linalg.svd(wide(M), compute_uv=False)
    assert np.abs(S - truth).max() <= 100 * eps(dtype) * truth[0]


@every_dtype
def test_spectral_norms_are_sharper_than_singular_values(rough_svd, dtype):
    X = with_spectrum(gallery.fast(20), (30, 20), dtype)
    found = float(_certificate.spectral_norm(from_numpy(X), array_api_compat.torch))
    assert found == pytest.approx(np.linalg.norm(wide(X), 2), rel=20 * eps(dtype))


# -- sums and products -----------------------------------------------------------------------------


@every_dtype
def test_products_with_the_adjoint(dtype):
    X, Y = gaussian((3, 50, 30), dtype), gaussian((3, 50, 7), dtype)
    with counting() as counts:
        found = adjoint_matmul(from_numpy(X), from_numpy(Y))
    assert np.linalg.norm(to_numpy(found) - adjoint(wide(X)) @ wide(Y)) <= 1e3 * eps(dtype)
    assert counts.operations["bmm"] == 1


@every_dtype
@pytest.mark.parametrize("rows", [100, 2200, 3101])
def test_gram_matrices(dtype, rows):
    """By blocks of rows, and what no whole block is left for."""
    X = gaussian((2, rows, 7), dtype)
    found, true = to_numpy(gram_matrix(from_numpy(X))), adjoint(wide(X)) @ wide(X)
    assert np.abs(found - true).max() <= 100 * eps(dtype) * rows


@every_dtype
@pytest.mark.parametrize("exponent", [-140, -130, -70, 0, 70, 120])
def test_norms(dtype, exponent):
    A = scaled(wide(gaussian((300, 400), dtype)), exponent).astype(dtype)
    truth = scaled(np.linalg.norm(scaled(wide(A), -exponent)), exponent)
    assert matrix_norm_by_rows(from_numpy(A)) == pytest.approx(truth, rel=1e-5)
    assert matrix_norm_by_rows(from_numpy(np.ones((2**18, 4), dtype))) == pytest.approx(2**10)


# -- what is launched, and waited for --------------------------------------------------------------

# Operations and reads in single precision. Whoever makes them fewer lowers what is written here.
BUDGETS = {
    "range_finder": (20, 1),
    "range_finder, q = 2": (60, 1),
    "range_finder, unchecked": (17, 0),
    "qb": (25, 1),
    "svd, q = 0": (59, 2),
    "svd": (99, 2),
    "qr": (17, 0),
    "qr, narrow": (17, 0),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_launched_at_a_fixed_rank(name):
    most, waits = BUDGETS[name]
    counts = launched(CALLS_OF_A_RANK[name])
    assert (counts.reads, counts.checks) == (waits, 0)
    assert counts.launched <= most


@pytest.mark.parametrize("name", CALLS)
def test_no_routine_waits_for_itself(name):
    """As torch's solve does, to tell of a singular matrix."""
    A = from_numpy(hermitian("float64"))
    with counting() as counts:
        CALLS[name](A)
    assert counts.checks == 0


def test_launched_to_a_tolerance():
    counts = launched_to_a_tolerance(4)
    assert counts.launched_per_block <= 62
    assert counts.reads_per_block == 2
    assert counts.launched - 4 * counts.launched_per_block <= 10


def test_a_tolerance_reads_two_numbers_per_block():
    A = from_numpy(with_spectrum(gallery.slower(300), (300, 300), "float32"))
    count, found = reads(lambda: lowrank.range_finder(A, rtol=0.1, block_size=16, rng=0))
    assert count == 2 * (len(found.history) - 1) + 1
    with pytest.warns(ConvergenceWarning):
        assert lowrank.range_finder(A, 20, rtol=1e-3, rng=0).rank == 20
