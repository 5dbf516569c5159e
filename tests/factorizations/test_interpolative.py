"""Interpolative decompositions: columns of A, bounded coefficients, and a certified error."""

from bisect import bisect_left
from functools import cache

import numpy as np
import pytest
import scipy.linalg
from conftest import in_double, in_turn
from hypothesis import given
from hypothesis import strategies as st
from matrices import DRAWN, adjoint, gaussian, norm, quietly, with_spectrum
from test_operators import Operator

from lowrank import ConvergenceWarning, Status, gallery
from lowrank._factorizations.interpolative import _build, interpolative
from lowrank._factorizations.skeleton import Columns, Sketch, errors_of
from lowrank._linalg.pivots import Pivoted, interpolate, pivoted_qr
from lowrank._operators import as_operator
from lowrank._rangefinder.state import Work

KINDS = ("fro", "spectral")


def approximation(backend, A, found):
    """``A_J X``, after checks that every interpolative decomposition must pass."""
    J = [int(j) for j in found.indices]
    X, skeleton = backend.numpy(found.coefficients), backend.numpy(found.skeleton)
    A = A.astype(X.dtype)
    if found.select == "rows":
        A, X, skeleton = adjoint(A), adjoint(X), adjoint(skeleton)
    m, n = A.shape
    assert len(J) == len(set(J)) == found.rank
    assert all(0 <= j < n for j in J)
    assert (X.shape, skeleton.shape) == ((found.rank, n), (m, found.rank))
    assert np.array_equal(skeleton, A[:, J])
    assert np.array_equal(X[:, J], np.eye(found.rank))
    assert np.max(np.abs(X), initial=0.0) <= 2.0
    product = skeleton @ X
    return adjoint(product) if found.select == "rows" else product


@given(
    spectrum=st.sampled_from(sorted(gallery.SPECTRA)),
    m=st.integers(1, 100),
    n=st.integers(1, 100),
    exponent=st.floats(-15, -0.5),
    cap=st.one_of(st.none(), st.integers(0, 60)),
    kind=st.sampled_from(["fro", "spectral"]),
    select=st.sampled_from(["columns", "rows"]),
    seed=st.integers(0, 10_000),
)
def test_certificate_holds(backend, dtype, spectrum, m, n, exponent, cap, kind, select, seed):
    A = with_spectrum(gallery.SPECTRA[spectrum](min(m, n)), (m, n), dtype, seed)
    rtol = 10.0**exponent
    found = quietly(
        interpolative,
        backend.asarray(A),
        cap,
        rtol=rtol,
        norm=kind,
        select=select,
        rng=seed,
        failure_probability=DRAWN,
    )
    true = norm(A - approximation(backend, A, found), kind)
    assert true <= found.error_bound
    assert found.rank <= (min(m, n) if cap is None else cap)
    assert found.converged == (found.error_bound <= found.tolerance)
    assert (found.status is Status.CONVERGED) == found.converged
    if found.converged:
        assert true <= rtol * norm(A, kind)


@cache
def of_pivoted_qr(spectrum):
    """A matrix, and the triangle that LAPACK's pivoted QR makes of it."""
    A = with_spectrum(gallery.SPECTRA[spectrum](250), (300, 250), "float32")
    return A, scipy.linalg.qr(A.astype("float64"), mode="r", pivoting=True)[0]


@in_turn(
    "case",
    [f"{s}-{kind}" for s in ["slow", "fast", "s_shaped", "medium", "slower"] for kind in KINDS],
)
def test_rank_is_near_that_of_pivoted_qr(backend, case):
    """Within five per cent, or one, of the pivoted QR of A itself, for the same true error.

    A slow decay in the spectral norm, in which no energies tell the error of the basis, costs more.
    """
    spectrum, kind = case.split("-")
    A, R = of_pivoted_qr(spectrum)
    for rtol in (1e-1, 1e-2):
        # a part of a triangle has a norm no larger than that of the whole
        full = bisect_left(range(251), -rtol * norm(A, kind), key=lambda k: -norm(R[k:, k:], kind))
        found = interpolative(backend.asarray(A), rtol=rtol, norm=kind, rng=0)
        assert found.converged
        assert found.rank <= max(
            full + 1, (1.3 if (spectrum, kind) == ("slower", "spectral") else 1.05) * full
        )


@pytest.mark.parametrize("spectrum", sorted(gallery.SPECTRA))
def test_error_is_near_that_of_scipy(spectrum):
    """SciPy's pivoted QR reads all of A for each column; ten per cent more error is allowed."""
    import scipy.linalg.interpolative as reference  # noqa: PLC0415

    ratios = []
    for seed in range(7):
        A = with_spectrum(gallery.SPECTRA[spectrum](150), (150, 150), "float64", seed)
        k = 12 if spectrum == "low_rank" else 30
        order, rest = reference.interp_decomp(A, k)
        theirs = reference.reconstruct_matrix_from_id(A[:, order[:k]], order, rest)
        J, X = interpolative(A, k, rng=seed)
        rounding = 1e-13 * np.linalg.norm(A)
        ours = np.linalg.norm(A - A[:, J] @ X)
        ratios.append(ours / max(np.linalg.norm(A - theirs), rounding))
    assert np.median(ratios) <= 1.1


@pytest.mark.parametrize("shape", [(80, 50), (50, 80), (40, 40)], ids=str)
@pytest.mark.parametrize("select", ["columns", "rows"])
def test_fixed_rank(backend, dtype, shape, select):
    """The error is within the factor of strong rank-revealing QR of the best possible."""
    A = with_spectrum(gallery.fast(40), shape, dtype)
    for rank in (0, 1, 10, 100):
        found = interpolative(backend.asarray(A), rank, select=select, rng=0)
        k = min(rank, *shape)
        assert found.rank == k
        assert found.status is (Status.FULL_RANK if rank > k else Status.RANK_REACHED)
        assert (found.converged, found.error, found.error_bound) == (None, None, None)
        error = norm(A - approximation(backend, A, found), "spectral")
        n = shape[1] if select == "columns" else shape[0]
        best = gallery.best_error(gallery.fast(40), k, norm="spectral")
        assert error <= np.sqrt(1 + 4 * k * (n - k)) * best + 200 * backend.eps(dtype)


def test_rows_are_columns_of_the_adjoint(backend, dtype):
    A = with_spectrum(gallery.fast(50), (60, 50), dtype)
    for options in ({"rank": 9}, {"rtol": 1e-2}):
        rows = interpolative(backend.asarray(A), select="rows", rng=3, **options)
        columns = interpolative(backend.asarray(adjoint(A).copy()), rng=3, **options)
        assert [int(i) for i in rows.indices] == [int(j) for j in columns.indices]
        X, Y = backend.numpy(rows.coefficients), backend.numpy(columns.coefficients)
        assert np.allclose(X, adjoint(Y), atol=1e4 * backend.eps(dtype))


def test_bound_and_estimate_are_near_the_error(backend, dtype):
    A = with_spectrum(gallery.medium(200), (200, 200), dtype)
    found = interpolative(backend.asarray(A), rtol=1e-2, rng=0)
    true = np.linalg.norm(A - approximation(backend, A, found))
    assert found.error == pytest.approx(true, rel=0.02)
    assert true <= found.error_bound <= 1.2 * true


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_bound_at_the_precision_floor_is_near_the_error(dtype):
    A = with_spectrum(gallery.fast(100), (100, 100), dtype)
    with pytest.warns(ConvergenceWarning, match=r"PRECISION_FLOOR|FULL_RANK"):
        found = interpolative(A, rtol=1e-18, rng=0)
    assert found.error_bound <= 300 * np.finfo(dtype).eps * np.linalg.norm(A)


def test_cap(backend, dtype):
    A = with_spectrum(gallery.medium(100), (100, 110), dtype)
    with pytest.warns(ConvergenceWarning, match="RANK_REACHED"):
        found = interpolative(backend.asarray(A), 20, rtol=1e-2, rng=0)
    assert (found.rank, found.status, found.converged) == (20, Status.RANK_REACHED, False)
    true = np.linalg.norm(A - approximation(backend, A, found))
    assert true <= found.error_bound <= 1.1 * true


def test_greedy_pivots_are_those_of_lapack(backend, dtype):
    B = with_spectrum(gallery.fast(70), (70, 90), dtype)
    R, order = scipy.linalg.qr(B, mode="r", pivoting=True)
    pivoted = pivoted_qr(backend.asarray(B))
    assert pivoted.indices[:40] == list(order[:40])
    found = np.abs(backend.numpy(pivoted.R)[:, pivoted.indices])
    k = len(pivoted.indices)
    assert np.allclose(np.diagonal(found), np.abs(np.diagonal(R))[:k], atol=1e-6)
    assert pivoted.rest <= 200 * backend.eps(dtype)


@in_double
def test_pivots_of_columns_far_below_the_first(backend):
    """Norms of remainders lose their digits, and columns their orthogonality, within a block."""
    for values in (gallery.geometric(24, 1e12), gallery.drop(24, 6, 1e-11), [1.0, 1e-6, 1e-12]):
        B = with_spectrum(values, (24, 30), "float64")
        R = scipy.linalg.qr(B, mode="r", pivoting=True)[0]
        pivoted = pivoted_qr(backend.asarray(B))
        found = np.abs(backend.numpy(pivoted.R)[:, pivoted.indices])
        k = len(pivoted.indices)
        assert k >= len(values)
        assert np.allclose(np.diagonal(found), np.abs(np.diagonal(R))[:k], rtol=1e-4, atol=0)
        assert pivoted.rest <= 5e-15


def test_pivots_are_orthogonal_to_those_before(backend, dtype):
    """So R is triangular in their order, up to the rounding of one product of unit vectors.

    Remainders alone, kept for a block of columns, leave at least four times as much.
    """
    for condition in (backend.eps(dtype) ** -0.5, backend.eps(dtype) ** -0.7):
        B = with_spectrum(gallery.geometric(60, condition), (60, 90), dtype)
        pivoted = pivoted_qr(backend.asarray(B))
        assert len(pivoted.indices) == 60
        R = backend.numpy(pivoted.R)[:, pivoted.indices]
        assert np.max(np.abs(np.tril(R, -1))) <= backend.eps(dtype)


def test_coefficients_stay_bounded_where_the_basis_errs_in_one_direction(backend):
    """E_J is huge but along v, so the least-squares solution is v vᵀx, with an entry of 3."""
    v = np.asarray([0.85, 0.26, 0.26, 0.26, 0.26])
    v /= np.linalg.norm(v)
    x = np.full((5, 1), 1.9)
    B = np.hstack([np.eye(5), x]).astype("float32")
    E = np.hstack([1000 * (np.eye(5) - np.outer(v, v)), np.zeros((5, 1))])
    A = np.vstack([B, E]).astype("float32")
    assert np.max(np.linalg.lstsq(A[:, :5], np.vstack([x, 0 * x]), rcond=None)[0]) > 2.5
    there, Q = backend.asarray, backend.asarray(np.eye(10, 5, dtype="float32"))
    operator = as_operator(there(A))
    columns = Columns(operator, operator, Work())
    pivoted = Pivoted([0, 1, 2, 3, 4], there(B), 0.0)
    known = {"scale": 1.0, "norm": "fro", "residual": 0.0, "estimate": 0.0, "floor": 0.0}
    sketch = Sketch(
        Q=Q, B=there(B), pivoted=pivoted, columns=columns, rows=columns, fixed=True, **known
    )
    J, X, _ = _build(sketch, 5).factors
    assert [int(j) for j in J] == [0, 1, 2, 3, 4]
    assert np.max(np.abs(backend.numpy(X))) <= 2.0


def test_swaps_bound_what_greedy_pivots_leave_huge(backend):
    """Kahan's matrix: pivoting changes nothing, coefficients reach 10⁴, and the rest is large."""
    n, k = 40, 39
    A = gallery.kahan(n)
    assert np.max(np.abs(np.linalg.solve(A[:k, :k], A[:k, k:]))) > 1e4
    J, X = interpolate(backend.asarray(A.astype("float32")), list(range(k)))
    X = backend.numpy(X)
    assert len(set(J)) == k
    assert np.max(np.abs(X)) <= 2.0
    best = np.linalg.svd(A, compute_uv=False)[k]
    rest = np.linalg.norm(A - A[:, J] @ X, 2)
    assert rest <= np.sqrt(1 + 4 * k * (n - k)) * best + 100 * backend.eps("float32")
    approximation(backend, A.astype("float32"), interpolative(backend.asarray(A.astype("f4")), k))


def test_rank_beyond_the_numerical_one(backend, dtype):
    A = with_spectrum(gallery.low_rank(40, 5), (50, 40), dtype)
    A[:, 7] = 0
    A[:, 9] = A[:, 8]
    for rank in (5, 6, 30, 40):
        for select in ("columns", "rows"):
            found = interpolative(backend.asarray(A), rank, select=select, rng=0)
            error = np.linalg.norm(A - approximation(backend, A, found))
            assert found.rank == rank
            assert error <= 1000 * backend.eps(dtype)
    assert interpolative(backend.asarray(A), rtol=1e-3, rng=0).rank == 5


def test_zero_and_empty(backend, dtype):
    for shape in ((8, 6), (0, 0), (0, 3), (3, 0)):
        A = np.zeros(shape, dtype)
        for select in ("columns", "rows"):
            found = interpolative(backend.asarray(A), rtol=1e-3, select=select)
            assert (found.rank, found.converged, found.error_bound) == (0, True, 0.0)
            for rank in (0, 3):
                found = interpolative(backend.asarray(A), rank, select=select)
                assert np.all(approximation(backend, A, found) == 0)
                assert found.rank == min(rank, *shape)


@pytest.mark.parametrize("size", ["large", "small"])
def test_extreme_entries(backend, dtype, size):
    exponent = 119 if dtype in ("float32", "complex64") else 1000
    exponent = exponent if size == "large" else -exponent
    unit = with_spectrum(gallery.fast(60), (60, 60), dtype)
    A = unit * np.asarray(2.0**exponent, dtype)
    found = interpolative(backend.asarray(A), rtol=1e-3, rng=0)
    X = backend.numpy(found.coefficients)
    unit = A.astype(X.dtype) * 2.0**-exponent
    J = [int(j) for j in found.indices]
    true = np.linalg.norm(unit - unit[:, J] @ X)
    assert found.converged
    assert true <= found.error_bound * 2.0**-exponent <= 1e-3 * np.linalg.norm(unit)
    fixed = interpolative(backend.asarray(A), 20, rng=0)
    J, X = [int(j) for j in fixed.indices], backend.numpy(fixed.coefficients)
    assert np.linalg.norm(unit - unit[:, J] @ X) <= 3 * gallery.best_error(gallery.fast(60), 20)


@pytest.mark.parametrize("dtype", ["float64", "complex64"])
@pytest.mark.parametrize("select", ["columns", "rows"])
def test_operators_and_sparse_matrices(dtype, select):
    A = with_spectrum(gallery.fast(60), (70, 60), dtype)
    A[np.abs(A) < np.quantile(np.abs(A), 0.5)] = 0
    for coat in (Operator, scipy.sparse.csr_array):
        X = coat(A)
        for options in ({"rank": 10}, {"rtol": 0.3}):
            plain = interpolative(A, select=select, rng=0, **options)
            found = interpolative(X, select=select, rng=0, **options)
            J = found.indices
            expected = A[:, J] if select == "columns" else A[J, :]
            assert np.array_equal(found.skeleton, expected)
            assert found.passes >= plain.passes + 1
            product = (
                found.skeleton @ found.coefficients
                if select == "columns"
                else found.coefficients @ found.skeleton
            )
            if "rtol" in options:
                assert np.linalg.norm(A - product) <= found.error_bound <= found.tolerance
    counted = Operator(A)
    found = interpolative(counted, rtol=0.3, select=select, rng=0)
    assert (found.passes, found.products) == (len(counted.columns), sum(counted.columns))


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision(half):
    torch = pytest.importorskip("torch")
    A = torch.as_tensor(with_spectrum(gallery.fast(60), (70, 60), "float32")).to(
        getattr(torch, half)
    )
    for select in ("columns", "rows"):
        found = interpolative(A, rtol=1e-2, select=select, rng=0)
        assert found.coefficients.dtype == found.skeleton.dtype == torch.float32
        wide, J = A.to(torch.float32), found.indices
        expected = interpolative(wide, rtol=1e-2, select=select, rng=0)
        assert (found.passes, found.products) == (expected.passes, expected.products)
        assert bool((expected.indices == J).all())
        kept = wide[:, J] if select == "columns" else wide[J, :]
        assert bool((found.skeleton == kept).all())
        product = kept @ found.coefficients if select == "columns" else found.coefficients @ kept
        assert float((wide - product).norm()) <= found.error_bound <= found.tolerance


def test_results_are_copies(backend):
    """Also where all columns are chosen, in order."""
    A = backend.asarray(gaussian((5, 4), "float64" if backend.has_float64 else "float32"))
    if backend.readonly:
        A = A.copy()
    for select in ("columns", "rows"):
        found = interpolative(A, 4, select=select, rng=0)
        before = backend.numpy(found.skeleton).copy()
        A[:, :] = A + 1
        assert np.array_equal(backend.numpy(found.skeleton), before)


def test_cost_at_a_fixed_rank_is_as_documented(backend):
    A = backend.asarray(with_spectrum(gallery.fast(60), (80, 60), "float32"))
    for q in (0, 1, 2):
        found = interpolative(A, 10, power_iterations=q, rng=0)
        assert (found.passes, found.products) == (2 * q + 2, 20 * (2 * q + 2))
    assert interpolative(A, 10, rng=0).passes == 6


def test_what_is_refused(backend):
    A = gaussian((6, 5), "float32")
    with pytest.raises(ValueError, match=r"`select` must be 'columns' or 'rows', got 'both'"):
        interpolative(backend.asarray(A), 2, select="both")
    with pytest.raises(ValueError, match=r"got a stack of shape \(2, 6, 5\)"):
        interpolative(backend.asarray(np.stack([A, A])), 2)
    with pytest.raises(ValueError, match=r"no stopping criterion: give `rank`, `rtol` or `atol`"):
        interpolative(backend.asarray(A))
    with pytest.raises(ValueError, match=r"`oversampling` must be at least 0, got -1"):
        interpolative(backend.asarray(A), 2, oversampling=-1)
    A[3, 3] = np.nan
    for options in ({"rank": 2}, {"rank": 2, "check_finite": False}, {"rtol": 1e-2}):
        with pytest.raises(ValueError, match="holds NaN"):
            interpolative(backend.asarray(A), **options)


def test_no_swap_more_than_doubles_the_volume(dtype_of_numpy):
    """By determinants, from pivots that are none: all that the bound of Gu and Eisenstat needs."""
    k, n = 3, 9
    for seed in range(40):
        B = gaussian((6, n), dtype_of_numpy, seed) * 3.0 ** -np.arange(n)
        J, _ = interpolate(B, [8, 7, 6])
        assert len(J) == k

        def volume(columns, B=B):
            return np.prod(np.linalg.svd(B[:, columns], compute_uv=False))

        for i in range(k):
            for j in set(range(n)) - set(J):
                assert volume([*J[:i], j, *J[i + 1 :]]) <= 2.001 * volume(J)


@pytest.fixture(params=["float64", "complex128"])
def dtype_of_numpy(request):
    return request.param


def test_errors_outside_of_the_basis_add_up():
    """The error of the basis and that of the columns may point one way: (2 + 1) there, 0 inside."""
    Q, B = np.eye(3, 1), np.zeros((1, 2))
    sketch = Sketch(
        Q=Q, B=B, scale=1.0, pivoted=pivoted_qr(B), columns=None, rows=None, norm="fro",
        residual=2.0, estimate=2.0, floor=0.0, fixed=False,
    )  # fmt: skip
    A = np.asarray([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])  # 2 from the basis
    L, T = np.asarray([[0.0], [1.0], [0.0]]), np.asarray([[-1.0, 0.0]])
    built = errors_of(sketch, L, Q.T @ L, T, lost=0.0, factors=())
    assert norm(A - L @ T, "fro") <= built.bound == pytest.approx(3.0)
