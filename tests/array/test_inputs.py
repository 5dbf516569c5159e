"""What every public function does with what the caller passes in."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import in_double
from matrices import adjoint, gaussian, residual, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._array import matrix_norm_by_rows, max_abs, phases, safe_norm

CALLS = {
    "qr": lowrank.qr,
    "householder_qr": lambda A: lowrank.householder_qr(A).thin(),
    "range_finder": lambda A: lowrank.range_finder(A, 3, rng=0).Q,
    "range_finder_rtol": lambda A: lowrank.range_finder(A, rtol=1e-2, rng=0).Q,
    "corange": lambda A: lowrank.range_finder(A, 3, side="right", power_iterations=1, rng=0).Q,
    "qb": lambda A: lowrank.qb(A, rtol=1e-2, rng=0),
    "svd": lambda A: lowrank.svd(A, 3, rng=0),
    "residual_norm": lambda A: lowrank.residual_norm(A, A[:, :3], rng=0),
}

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_nothing_is_modified(backend, dtype, call):
    A = gaussian((30, 20), dtype)
    there = backend.asarray(A)
    call(there)
    assert np.array_equal(backend.numpy(there), A)


@every_call
@pytest.mark.parametrize("kind", ["int64", "int8", "bool"])
def test_integers_are_refused(backend, call, kind):
    A = backend.asarray(np.ones((4, 3), kind))
    with pytest.raises(TypeError, match=r"`A` has dtype .*cast it to float32"):
        call(A)


@every_call
def test_lists_are_refused(call):
    if call is CALLS["residual_norm"]:
        with pytest.raises(TypeError, match=r"got list; convert it"):
            lowrank.residual_norm([[1.0]], np.ones((1, 1)))
        return
    with pytest.raises(TypeError, match=r"`A` must be an array of NumPy.*got list; convert it"):
        call([[1.0, 2.0], [3.0, 4.0]])


@every_call
@pytest.mark.parametrize("name", ["A.npy", Path("A.csv")])
def test_names_of_files_are_refused(call, name):
    if call is CALLS["residual_norm"]:
        pytest.skip("the call itself slices a matrix")
    with pytest.raises(TypeError, match=r"convert it, for instance with numpy\.load\(A\)"):
        call(name)


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_tolerances_are_numbers(name):
    with pytest.raises(TypeError, match=rf"`{name}` must be a number, got '1e-2'"):
        lowrank.svd(np.eye(4), **{name: "1e-2"})


@pytest.mark.parametrize("function", ["svd", "eigh", "nystrom", "interpolative", "cur"])
@pytest.mark.parametrize("wrong", [None, 2.5, "3"])
def test_oversampling_is_a_number(function, wrong):
    with pytest.raises(TypeError, match=f"`oversampling` must be an integer, got {wrong!r}"):
        getattr(lowrank, function)(np.eye(4), 2, oversampling=wrong)


@in_double
def test_integers_are_told_how_to_be_cast(backend):
    xp = backend.xp
    A = xp.ones((4, 3), dtype=xp.int64, device=backend.device)
    with pytest.raises(TypeError, match="int64") as raised:
        lowrank.svd(A, 2)
    assert lowrank.svd(as_advised(raised, A, xp=xp), 2).rank == 2


def as_advised(raised, A, **names):
    advice = str(raised.value).partition("for instance with ")[2].removesuffix(".")
    return eval(advice, {"A": A, "numpy": np, **names})


@pytest.mark.parametrize("dtype", ["numpy.clongdouble", "torch.complex32"])
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_no_advice_loses_imaginary_parts(dtype):
    library, name = dtype.split(".")
    if library == "numpy" and np.dtype(np.clongdouble) == np.complex128:
        pytest.skip("long numbers are of 64 bits here")
    xp = pytest.importorskip(library)
    A = xp.asarray(1j * np.ones((4, 3)))
    A = A.to(getattr(xp, name)) if library == "torch" else A.astype(getattr(xp, name))
    with pytest.raises(TypeError, match=r"complex\d+, which cannot be") as raised:
        lowrank.svd(A, 2)
    assert bool((as_advised(raised, A) == 1j).all())


def test_products_of_tensors_are_told_how_to_become_an_array():
    torch = pytest.importorskip("torch")
    A = torch.arange(12.0).reshape(4, 3)
    products = SimpleNamespace(shape=(4, 3), dtype=A.dtype, matmat=lambda X: A @ X)
    with pytest.raises(TypeError, match="must be an array") as raised:
        lowrank.qr(products)
    assert torch.equal(as_advised(raised, products, torch=torch), A)


@pytest.mark.parametrize("shape", [None, (), (3,), property])
def test_products_of_no_matrix_are_refused_as_others(shape):
    with pytest.raises(TypeError, match="must be an array"):
        lowrank.qr(SimpleNamespace(shape=shape, matmat=None))


@every_call
@pytest.mark.parametrize("kind", [np.matrix, np.ma.MaskedArray])
def test_matrix_and_masked_arrays_are_refused(call, kind):
    A = np.eye(4).view(kind)
    with pytest.raises(TypeError, match=r"`A` is a numpy (matrix|MaskedArray)"):
        call(A)


@every_call
def test_vectors_are_refused(backend, call):
    if call is CALLS["residual_norm"]:
        pytest.skip("the call itself slices a matrix")
    with pytest.raises(ValueError, match=r"`A` must be .*got shape \(5,\)"):
        call(backend.asarray(np.ones(5, "float32")))


def test_object_and_extended_dtypes_are_refused():
    for dtype in (object, np.longdouble):
        with pytest.raises(TypeError, match=r"which cannot be factorized"):
            lowrank.range_finder(np.ones((4, 3), dtype), 2)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "transposed": lambda A: np.ascontiguousarray(A.T).T,
    "strided": lambda A: np.repeat(np.repeat(A, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda A: np.ascontiguousarray(A[::-1, ::-1])[::-1, ::-1],
    "byte offset": lambda A: np.concatenate([A[:1], A])[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_memory_layout_does_not_matter(layout, dtype):
    A = with_spectrum(gallery.fast(40), (50, 40), dtype)
    for side in ("left", "right"):
        found = lowrank.range_finder(layout(A), rtol=1e-3, side=side, rng=0)
        truth = residual(A if side == "left" else adjoint(A), found.Q)
        assert found.converged
        assert np.linalg.norm(truth) <= found.error_bound


def test_memory_mapped_file(tmp_path):
    A = with_spectrum(gallery.fast(60), (80, 60), "float32")
    np.save(tmp_path / "A.npy", A)
    mapped = np.load(tmp_path / "A.npy", mmap_mode="r")
    found = lowrank.svd(mapped, rtol=1e-3, rng=0)
    assert type(found.U) is np.ndarray
    assert np.linalg.norm(A - (found.U * found.S) @ found.Vh) <= found.error_bound


def test_half_precision_is_computed_in_single():
    A = with_spectrum(gallery.fast(40), (50, 40), "float32")
    found = lowrank.range_finder(A.astype(np.float16), rtol=1e-2, rng=0)
    assert found.Q.dtype == np.float32
    torch = pytest.importorskip("torch")
    for half in (torch.float16, torch.bfloat16):
        given = torch.asarray(A).to(half)
        found = lowrank.svd(given, rtol=1e-2, rng=0)
        assert found.U.dtype == found.S.dtype == torch.float32
        error = torch.linalg.norm(given.float() - (found.U * found.S) @ found.Vh)
        assert float(error) <= found.error_bound


def test_torch_views_and_gradients():
    torch = pytest.importorskip("torch")
    A = torch.asarray(with_spectrum(gallery.fast(40), (50, 40), "complex64"))
    A.requires_grad_()
    conjugate = torch.conj(A)
    assert conjugate.is_conj()
    for given in (A, conjugate, A.mT):
        found = lowrank.range_finder(given, rtol=1e-3, rng=0)
        assert found.converged
        assert not found.Q.requires_grad
        with torch.no_grad():
            error = torch.linalg.norm(given - found.Q @ (found.Q.mH @ given))
        assert float(error) <= found.error_bound


@pytest.mark.parametrize("default", ["float32", "float64"])
def test_torch_default_dtype_does_not_matter(default):
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, default))
    try:
        for dtype in (torch.float32, torch.float64):
            A = torch.ones(6, 5, dtype=dtype)
            result = lowrank.svd(A, rtol=1e-4, rng=0)
            assert {X.dtype for X in result} == {dtype}
    finally:
        torch.set_default_dtype(before)


def test_results_do_not_alias_what_was_passed(backend, dtype):
    Omega = np.eye(12, 5, dtype=dtype)
    A = np.eye(12, dtype=dtype)
    there, sketch = backend.asarray(A), backend.asarray(Omega)
    Q = lowrank.range_finder(there, 5, test_matrix=sketch).Q
    finder = lowrank.RangeFinder(there, test_matrix=sketch)
    finder.extend(2)
    if not backend.readonly:
        there[:, :] = 7.0
        sketch[:, :] = 7.0
    assert np.allclose(np.abs(backend.numpy(Q)), np.eye(12, 5), atol=1e-5)
    assert np.allclose(np.abs(backend.numpy(finder.Q)), np.eye(12, 2), atol=1e-5)


def test_derivatives_of_a_callable_test_matrix_are_not_recorded():
    torch = pytest.importorskip("torch")

    def draw(shape, dtype, device):
        return torch.randn(shape, dtype=dtype, device=device, requires_grad=True)

    found = lowrank.range_finder(torch.eye(10), 3, test_matrix=draw)
    assert not found.Q.requires_grad


def test_foreign_byte_order():
    A = with_spectrum(gallery.fast(40), (50, 40), "float64")
    found = lowrank.range_finder(A.astype(">f8"), rtol=1e-3, rng=0)
    assert found.Q.dtype == np.dtype("float64")
    assert np.linalg.norm(residual(A, found.Q)) <= found.error_bound


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_qr_of_what_is_not_finite_warns_of_nothing(bad):
    A = np.ones((4, 3))
    A[1, 1] = bad
    assert np.isnan(lowrank.qr(A).Q).any()


# -- norms of large matrices -----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 70_000), (70_000, 3), (700, 500)], ids=str)
def test_norm_and_largest_entry_by_rows(backend, shape):
    A = gaussian(shape, "complex64")
    A[-1, -1] = 40.0  # in the last block
    there = backend.asarray(A)
    wide = A.astype("complex128")
    assert matrix_norm_by_rows(there) == pytest.approx(np.linalg.norm(wide), rel=1e-5)
    assert max_abs(there) == pytest.approx(40.0)
    assert float(safe_norm(there)) == pytest.approx(np.linalg.norm(wide), rel=1e-4)


@pytest.mark.parametrize("shape", [(2048, 1024), (2, 2**20)], ids=str)
def test_norm_of_equal_entries_keeps_its_digits(backend, shape):
    """Where a sum in sequence loses four digits."""
    A = np.full(shape, 0.7564102564102564, "float32")
    truth = float(A[0, 0]) * A.size**0.5
    assert matrix_norm_by_rows(backend.asarray(A)) == pytest.approx(truth, rel=4e-6)


@pytest.mark.parametrize(
    "layout", ["by rows", "by columns", "a part", "strided", "reversed", "conjugate"]
)
@pytest.mark.parametrize("different", [1, 3])
def test_norm_of_few_different_entries_keeps_its_digits(backend, dtype, layout, different):
    """Up to 32 eps, as bounds assume; sums of 4,096 terms in sequence lose 170."""
    few = gaussian((different, 1), dtype)[:, 0]
    few[0] = 0.7064481973648071
    A = few[np.random.default_rng(1).integers(different, size=(3, 11_250))]
    truth = float(np.sum(np.abs(A.astype(np.clongdouble)) ** 2) ** 0.5)
    there = backend.asarray(A)
    if layout == "by columns":
        there = backend.asarray(np.ascontiguousarray(A.T)).T
    elif layout == "a part":
        there = backend.asarray(np.concat([A, A], axis=1))[:, :11_250]
    elif layout == "reversed" and backend.name.startswith("numpy"):
        there = there[:, ::-1]
    elif layout == "strided":
        there = backend.asarray(np.repeat(A, 2, axis=1))[:, ::2]
    elif layout == "conjugate" and backend.name.startswith("torch"):
        there = there.conj()
    assert matrix_norm_by_rows(there) == pytest.approx(truth, rel=32 * backend.eps(dtype))


@pytest.mark.parametrize("exponent", [-44, -37, -20, 20, 37])
def test_norms_neither_overflow_nor_underflow(backend, exponent):
    A = np.full((300, 400), 10.0**exponent, "float32")
    truth = 10.0**exponent * 120_000**0.5
    with np.errstate(over="ignore"):
        assert matrix_norm_by_rows(backend.asarray(A)) == pytest.approx(truth, rel=0.1)
        if exponent < 36:
            assert float(safe_norm(backend.asarray(A))) == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_norms_tell_of_what_is_not_finite(backend, bad):
    A = np.ones((300, 400), "float32")
    A[299, 399] = bad
    assert not np.isfinite(matrix_norm_by_rows(backend.asarray(A)))
    assert not np.isfinite(max_abs(backend.asarray(A)))


def test_nan_anywhere_is_told_from_an_overflow():
    A = np.ones((400, 400))
    A[-1, -1] = np.nan
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        lowrank.range_finder(A, rtol=0.1)
    with pytest.raises(ValueError, match="exceeds the largest float"):
        lowrank.range_finder(np.full((400, 400), 1e307), rtol=0.1)


def test_phases(backend, dtype):
    tiny = float(np.finfo(dtype).tiny)
    turn = (
        np.exp(1j * np.arange(5)) if np.dtype(dtype).kind == "c" else np.asarray([1, -1, 1, 1, 1])
    )
    d = (turn * np.asarray([3.0, 2.0, 0.0, tiny, tiny / 100])).astype(dtype)
    found = backend.numpy(phases(backend.asarray(d)))
    assert np.allclose(found[:2], turn[:2])
    assert np.array_equal(found[2:], [1, 1, 1])
    assert np.array_equal(backend.numpy(phases(backend.asarray(d[3:]))), [1, 1])


def test_half_precision_is_told_from_the_rest(backend, dtype):
    from lowrank._array import is_half  # noqa: PLC0415

    X = backend.asarray(np.ones((2, 2), dtype))
    assert not is_half(X)
    if hasattr(backend.xp, "float16"):
        assert is_half(
            backend.xp.astype(X if np.dtype(dtype).kind == "f" else X.real, backend.xp.float16)
        )


def test_half_precision_goes_by_blocks_of_rows():
    """The same products, norm and largest entry as in single precision; a NaN in any block told."""
    from lowrank._operators import as_operator  # noqa: PLC0415

    A = np.random.default_rng(0).standard_normal((700, 90)).astype(np.float16)
    half, single = as_operator(A), as_operator(A.astype(np.float32))
    X, Y = np.ones((90, 3), np.float32), np.ones((700, 3), np.float32)
    assert np.allclose(half.matmat(X), single.matmat(X), atol=1e-4)
    assert np.allclose(half.rmatmat(Y), single.rmatmat(Y), atol=1e-3)
    assert half.norm() == pytest.approx(single.norm(), rel=1e-6)
    assert half.max_abs() == single.max_abs()
    stack = np.stack([A, -A])
    found, expected = (lowrank.svd(X, 3, rng=0) for X in (stack, stack.astype(np.float32)))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    A[1, 2] = np.nan
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        lowrank.range_finder(A, rtol=0.1)


def test_an_image_in_color_is_told_from_a_stack():
    image = gaussian((32, 40, 3), "float64")
    with pytest.warns(UserWarning, match=r"taken for a stack.*pass A\.reshape\(32, -1\)"):
        stack = lowrank.svd(image, 2, rng=0)
    assert stack.shape == image.shape
    assert lowrank.svd(image.reshape(32, -1), 2, rng=0).shape == (32, 120)
