import numpy as np
import pytest
from matrices import adjoint, defect, gaussian, with_spectrum

from lowrank._linalg.panel import (
    SMALL,
    _checked_cholesky_qr,
    orthonormalize,
    reflectors,
    size_of_top,
    unitary_reflectors,
)
from lowrank._linalg.panel import defect as panel_defect

DTYPES = ["float32", "float64", "complex64", "complex128"]


def checked(P):
    return _checked_cholesky_qr(P, adjoint(P) @ P)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition", [1.0, 10.0, 300.0])
def test_cholesky_qr_is_taken_and_accurate(dtype, condition):
    """The fast path of NumPy: it falls back in silence, so a fault in it would not show."""
    P = with_spectrum(np.geomspace(1, 1 / condition, 16), (200, 16), dtype)
    factors = checked(P)
    assert factors is not None
    Q, R = (X.astype(np.result_type(dtype, "float64")) for X in factors)
    eps = np.finfo(dtype).eps
    assert defect(Q) < 20 * eps * 4
    assert np.all(np.tril(R, -1) == 0)
    assert np.linalg.norm(P - Q @ R) < 20 * eps * np.linalg.norm(P)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cholesky_qr_refuses_what_it_cannot_do(dtype):
    nearly_double = gaussian((300, 20), dtype)
    nearly_double[:, 1] = nearly_double[:, 0] * (1 + 100 * np.finfo(dtype).eps)
    for P in (
        np.zeros((30, 4), dtype),
        np.ones((30, 4), dtype),
        with_spectrum(np.geomspace(1, np.finfo(dtype).eps, 8), (30, 8), dtype),
        np.full((30, 4), np.nan, dtype),
        nearly_double,
    ):
        assert checked(P) is None
        easy = gaussian(P.shape, dtype, seed=1)
        assert checked(np.stack([easy, P])) is None


def _panel_of(shape, dtype, kind):
    """Orthonormal columns; in two parts, half of them are in the top block, half of them below.

    Every other column is turned around: those of LAPACK's Q suit LAPACK's signs.
    """
    (p, b), signs = shape, (-1.0) ** np.arange(shape[1]).astype(dtype)
    if kind == "random":
        return signs * np.linalg.qr(gaussian(shape, dtype))[0]
    Q, half = np.zeros(shape, dtype), b // 2
    Q[:half, :half] = np.linalg.qr(gaussian((half, half), dtype))[0]
    Q[min(b, p - half) :, half:] = np.linalg.qr(gaussian((p - min(b, p - half), half), dtype))[0]
    return signs * Q


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (200, 64), (1500, 64), (500, 8), (700, 300)])
@pytest.mark.parametrize("kind", ["random", "in two parts"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_reflectors_of_single_precision_are_unitary(library, kind, shape, dtype):
    """To 5 eps, since the small factors are computed in double precision on a CPU."""
    xp = pytest.importorskip(library)
    Q = xp.asarray(_panel_of(shape, dtype, kind))
    for is_plain in {False, float(size_of_top(Q)) <= SMALL}:
        given = unitary_reflectors(Q, panel_defect(Q, is_panel=True), is_plain=is_plain)
        V, T = (np.asarray(X).astype("complex128") for X in given)
        R = np.linalg.qr(V, mode="r")
        departure = R @ (adjoint(T) @ adjoint(V) @ V @ T - T - adjoint(T)) @ adjoint(R)
        assert np.linalg.norm(departure, 2) < 5 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [16, 100])
def test_cholesky_qr_of_a_stack(dtype, columns):
    """A second pass for all where one member needs it, and each as accurate as alone."""
    P = np.stack(
        [
            with_spectrum(np.geomspace(1, 1 / condition, columns), (300, columns), dtype, seed)
            for seed, condition in enumerate((1.0, 200.0, 10.0))
        ]
    ).reshape(3, 1, 300, columns)
    factors = checked(P)
    assert factors is not None
    eps, wide = np.finfo(dtype).eps, np.result_type(dtype, "float64")
    all_Q, all_R = (X[:, 0].astype(wide) for X in factors)
    for member, Q, R in zip(P[:, 0], all_Q, all_R, strict=True):
        assert defect(Q) < 20 * eps * columns**0.5
        assert np.all(np.tril(R, -1) == 0)
        assert np.linalg.norm(member - Q @ R) < 20 * eps * np.linalg.norm(member)


@pytest.mark.parametrize("columns", [5, 40, 90])
def test_stacks_of_easy_and_hard_members(backend, dtype, columns):
    """Zero, of rank one, graded and Gaussian members in one stack."""
    shape = (200, columns)
    members = [
        gaussian(shape, dtype),
        np.zeros(shape, dtype),
        np.ones(shape, dtype),
        with_spectrum(np.geomspace(1, backend.eps(dtype), columns), shape, dtype),
    ]
    P = np.stack(members)
    Q, R = (backend.numpy(X) for X in orthonormalize(backend.asarray(P)))
    for member, basis, factor in zip(P, Q, R, strict=True):
        assert defect(basis) < 100 * backend.eps(dtype) * columns**0.5
        error = np.linalg.norm(member - basis @ factor)
        assert error <= 100 * backend.eps(dtype) * np.linalg.norm(member)


def test_panel_identities(backend, dtype):
    """Q = (I − V T Vᴴ) [D; 0] and P = Q R, with D unitary and the phases as derived."""
    P = gaussian((40, 7), dtype)
    basis = orthonormalize(backend.asarray(P))
    Q, R, V, T, D = (backend.numpy(X) for X in (*basis, *reflectors(basis.Q)))
    unitary = np.eye(40) - V @ T @ adjoint(V)
    eps = backend.eps(dtype)
    assert defect(unitary) < 200 * eps
    assert defect(D) < 100 * eps
    assert np.linalg.norm(Q - unitary[:, :7] @ D) < 100 * eps
    assert np.linalg.norm(P - Q @ R) < 100 * eps * np.linalg.norm(P)
    # S = T⁻ᴴ = I + R₁: upper triangular, with a real diagonal between one and two
    S = adjoint(np.linalg.inv(T))
    assert np.linalg.norm(np.tril(S, -1)) < 100 * eps
    assert np.all(np.abs(np.diag(S).imag) < 100 * eps)
    assert np.all((np.diag(S).real > 1 - 100 * eps) & (np.diag(S).real < 2 + 100 * eps))


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_size_of_the_top_is_a_bound(backend, dtype, columns):
    """Of a Gaussian panel, and of a top block with one column, which is isotropic if complex."""
    column = np.exp(1j * np.pi * np.arange(columns) / columns)
    flat = np.zeros((12, columns), dtype)
    flat[:columns, 0] = column if np.dtype(dtype).kind == "c" else np.abs(column)
    for Q in (np.linalg.qr(gaussian((12, columns), dtype))[0], flat):
        truth = np.linalg.norm(Q[:columns], 2) ** 4
        found = float(size_of_top(backend.asarray(np.stack([0.5 * Q, Q]))))
        assert truth * (1 - 1e-5) <= found <= 1.01 * columns**0.5 * truth
