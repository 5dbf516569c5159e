import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import adjoint, defect, gaussian, with_spectrum

import lowrank
from lowrank import gallery

# LAPACK's test programs call a ratio below 30 a pass.
PASS = 30.0
SHAPES = [(60, 40), (40, 60), (45, 45), (33, 1), (1, 5), (20, 7)]


def condition(number):
    def make(shape, dtype):
        k = min(shape)
        return with_spectrum(np.geomspace(1, 1 / number(np.finfo(dtype).eps), k), shape, dtype)

    return make


def near_underflow(shape, dtype):
    limits = np.finfo(dtype)
    return gaussian(shape, dtype) * limits.dtype.type(0.25 * limits.tiny / limits.eps)


def near_overflow(shape, dtype):
    limits = np.finfo(dtype)
    return gaussian(shape, dtype) * limits.dtype.type(limits.eps / (0.25 * limits.tiny))


def graded_columns(shape, dtype):
    return gaussian(shape, dtype) * np.geomspace(1, 1e-30, shape[1]).astype(dtype)


def graded_rows(shape, dtype):
    return gaussian(shape, dtype) * np.geomspace(1, 1e-30, shape[0]).astype(dtype)[:, None]


def duplicates(shape, dtype):
    A = gaussian(shape, dtype)
    A[:, 1::2] = A[:, : 2 * (shape[1] // 2) : 2]
    return A


def nearly_parallel(shape, dtype):
    A = gaussian(shape, dtype)
    A[:, 1::2] = A[:, : 2 * (shape[1] // 2) : 2] + 1e-5 * A[:, 1::2]
    return A


def leading_zeros(shape, dtype):
    A = gaussian(shape, dtype)
    A[:, : shape[1] // 2] = 0
    return A


# The eight families of LAPACK's xCHKQR, then those that break Gram-Schmidt and Cholesky QR.
FAMILIES = {
    "diagonal": lambda shape, dtype: np.eye(*shape, dtype=dtype) * np.linspace(1, 2, shape[1]),
    "upper": lambda shape, dtype: np.triu(gaussian(shape, dtype)),
    "lower": lambda shape, dtype: np.tril(gaussian(shape, dtype)),
    "condition 2": condition(lambda _: 2.0),
    "condition sqrt(0.1/eps)": condition(lambda eps: (0.1 / eps) ** 0.5),
    "condition 0.1/eps": condition(lambda eps: 0.1 / eps),
    "near underflow": near_underflow,
    "near overflow": near_overflow,
    "zero": np.zeros,
    "rank one": np.ones,
    "rank deficient": lambda shape, dtype: (
        gaussian((shape[0], 3), dtype) @ gaussian((3, shape[1]), dtype, seed=1)
    ),
    "graded columns": graded_columns,
    "graded rows": graded_rows,
    "duplicates": duplicates,
    "nearly parallel": nearly_parallel,
    "leading zeros": leading_zeros,
}


def unit(A):
    """Scale to a largest entry of one, so that the measures themselves cannot overflow."""
    largest = np.max(np.abs(A), initial=0.0)
    return largest if largest > 0 else 1.0


def ratio(X, m, eps, scale=1.0):
    return np.linalg.norm(X, 1) / (max(m, 1) * max(scale, np.finfo(float).tiny) * eps)


def is_upper(R):
    return bool(np.all(np.tril(R, -1) == 0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lapack_ratios(backend, dtype, family, shape):
    A = FAMILIES[family](shape, dtype).astype(dtype)
    # three panels of 16 columns at the least, in the larger shapes
    F = lowrank.householder_qr(backend.asarray(A), block_size=16)
    (m, n), k, eps = shape, min(shape), backend.eps(dtype)
    assert F.shape == shape
    assert F.rank == k
    scale = unit(A)
    R, Q = backend.numpy(F.R) / scale, backend.numpy(F.thin())
    full = backend.numpy(F.apply(backend.asarray(np.eye(m, dtype=dtype))))
    A = A.astype(full.dtype) / scale
    size = np.linalg.norm(A, 1)

    assert R.shape == (k, n)
    assert Q.shape == (m, k)
    assert is_upper(R)
    assert ratio(adjoint(full) @ full - np.eye(m), m, eps) < PASS
    assert ratio(Q - full[:, :k], m, eps) < PASS
    assert ratio(A - Q @ R, m, eps, size) < PASS
    assert ratio(adjoint(Q) @ A - R, m, eps, size) < PASS

    C = gaussian((m, 9), dtype, seed=2)
    C_there = backend.asarray(C)
    assert ratio(backend.numpy(F.apply(C_there)) - full @ C, m, eps, np.linalg.norm(C, 1)) < PASS
    back = backend.numpy(F.apply_adjoint(C_there)) - adjoint(full) @ C
    assert ratio(back, m, eps, np.linalg.norm(C, 1)) < PASS


@pytest.mark.parametrize("family", ["nearly parallel", "graded columns", "condition 2"])
def test_every_column_is_reproduced_to_rounding(backend, dtype, family):
    """Backward stability column by column: a small column may not suffer from a large one."""
    A = FAMILIES[family]((300, 64), dtype)
    Q, R = lowrank.qr(backend.asarray(A))
    Q, R, A = backend.numpy(Q), backend.numpy(R), A.astype(np.result_type(A, np.float64))
    error = np.linalg.norm(A - Q @ R, axis=0) / np.linalg.norm(A, axis=0)
    assert np.max(error) < 100 * backend.eps(dtype)


@pytest.mark.parametrize("spectrum", gallery.SPECTRA)
def test_orthonormal_for_every_spectrum_of_the_gallery(backend, dtype, spectrum):
    A = with_spectrum(gallery.SPECTRA[spectrum](70), (90, 70), dtype)
    Q, R = lowrank.qr(backend.asarray(A))
    Q, R = backend.numpy(Q), backend.numpy(R)
    assert defect(Q) < 100 * backend.eps(dtype) * 70**0.5
    assert np.linalg.norm(A - Q @ R) < 100 * backend.eps(dtype) * np.linalg.norm(A)


@given(
    m=st.integers(0, 40),
    widths=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    block_size=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_columns_appended_equal_columns_from_the_start(backend, dtype, m, widths, block_size, seed):
    A = gaussian((m, sum(widths)), dtype, seed)
    pieces = np.split(A, np.cumsum(widths)[:-1], axis=1)
    F = lowrank.householder_qr(backend.asarray(pieces[0]), block_size=block_size)
    for piece in pieces[1:]:
        assert F.extend(backend.asarray(piece)) is F
    assert F.shape == A.shape
    assert F.rank == min(A.shape)
    Q, R = backend.numpy(F.thin()), backend.numpy(F.R)
    eps = backend.eps(dtype)
    assert defect(Q) <= 100 * eps * max(F.rank, 1) ** 0.5
    assert is_upper(R)
    assert np.linalg.norm(A - Q @ R) <= 100 * eps * max(np.linalg.norm(A), 1.0)


def test_extend_leaves_the_object_as_it_was_when_it_fails(backend):
    A = gaussian((20, 6), "float32")
    F = lowrank.householder_qr(backend.asarray(A))
    before = backend.numpy(F.R)
    with pytest.raises(ValueError, match=r"expected 20 rows"):
        F.extend(backend.asarray(A[:-1]))
    assert F.shape == (20, 6)
    assert np.array_equal(backend.numpy(F.R), before)


def test_compact_wy_identities(backend, dtype):
    """V is zero above each block's first row, T is block upper triangular, D is unitary."""
    A = backend.asarray(gaussian((30, 20), dtype))
    F = lowrank.householder_qr(A, block_size=6)
    V, T = backend.numpy(F.V), backend.numpy(F.T)
    D = [backend.numpy(block) for block in F.D]
    assert [len(block) for block in D] == [6, 6, 6, 2]
    for start in (6, 12, 18):
        assert np.all(V[:start, start:] == 0)
        assert np.all(T[start:, :start] == 0)
    assert all(defect(block) < 100 * backend.eps(dtype) for block in D)
    # I − V T Vᴴ is unitary exactly when T⁻¹ + T⁻ᴴ = VᴴV
    inverse = np.linalg.inv(T)
    error = inverse + adjoint(inverse) - adjoint(V) @ V
    assert np.linalg.norm(error) < 200 * backend.eps(dtype)


@pytest.mark.parametrize("mode", ["reduced", "complete"])
@pytest.mark.parametrize("shape", [(3, 9, 5), (2, 2, 4, 7), (2, 6, 6), (0, 4, 3)], ids=str)
def test_stacks_equal_their_members(backend, dtype, shape, mode):
    A = gaussian(shape, dtype)
    Q, R = lowrank.qr(backend.asarray(A), mode=mode)
    *_, m, n = shape
    rows = m if mode == "complete" else min(m, n)
    assert tuple(Q.shape) == (*shape[:-1], rows)
    assert tuple(R.shape) == (*shape[:-2], rows, n)
    Q, R = backend.numpy(Q), backend.numpy(R)
    assert np.allclose(Q @ R, A, atol=100 * backend.eps(dtype))
    identity = np.broadcast_to(np.eye(rows), (*shape[:-2], rows, rows))
    assert np.allclose(adjoint(Q) @ Q, identity, atol=100 * backend.eps(dtype))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)], ids=str)
def test_empty(backend, dtype, shape):
    A = backend.asarray(np.zeros(shape, dtype))
    Q, R = lowrank.qr(A)
    assert tuple(Q.shape) == (shape[0], 0)
    assert tuple(R.shape) == (0, shape[1])
    Q, R = lowrank.qr(A, mode="complete")
    assert np.array_equal(backend.numpy(Q), np.eye(shape[0]))
    F = lowrank.householder_qr(A)
    X = backend.asarray(gaussian((shape[0], 2), dtype))
    assert np.array_equal(backend.numpy(F.apply(X)), backend.numpy(X))
    assert F.apply(X) is not X


def test_rejects_bad_arguments(backend):
    A = backend.asarray(gaussian((5, 3), "float32"))
    with pytest.raises(ValueError, match=r"`mode` must be 'reduced' or 'complete', got 'raw'"):
        lowrank.qr(A, mode="raw")
    with pytest.raises(ValueError, match=r"`block_size` must be at least 1, got 0"):
        lowrank.householder_qr(A, block_size=0)
    F = lowrank.householder_qr(A)
    with pytest.raises(TypeError, match=r"complex64.*convert one to the other"):
        F.apply(backend.asarray(gaussian((5, 3), "complex64")))


def test_repr():
    F = lowrank.householder_qr(gaussian((5, 3), "float64"))
    assert repr(F) == "HouseholderQR(5×3, rank=3, dtype=float64, device=cpu)"


@pytest.mark.parametrize("size", [0.5, 0.01, 1e-5])
def test_columns_of_denormal_numbers(backend, dtype, size):
    limits = np.finfo(dtype)
    A = gaussian((30, 6), "complex128" if np.dtype(dtype).kind == "c" else "float64")
    A[:, 2] *= size * float(limits.tiny)
    Q, R = lowrank.qr(backend.asarray(A.astype(dtype)))
    assert defect(backend.numpy(Q)) < 100 * backend.eps(dtype)
    assert np.all(np.isfinite(backend.numpy(R)))


def test_appended_columns_use_the_same_panels(backend):
    A = gaussian((30, 20), "float32")
    F = lowrank.householder_qr(backend.asarray(A[:, :8]), block_size=4)
    F.extend(backend.asarray(A[:, 8:]))
    assert [block.shape[-1] for block in F.D] == [4] * 5


def test_products_check_their_argument(backend):
    """Both of them: rows, and dtype."""
    F = lowrank.householder_qr(backend.asarray(gaussian((9, 4), "float32")))
    for product in (F.apply, F.apply_adjoint):
        with pytest.raises(ValueError, match="expected 9 rows"):
            product(backend.asarray(gaussian((8, 2), "float32")))
        with pytest.raises(TypeError, match="dtype"):
            product(backend.asarray(gaussian((9, 2), "complex64")))
