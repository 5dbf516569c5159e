"""The dot test: whether `rmatmat` of an operator is the adjoint of its `matmat`."""

import math
from typing import Any

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._operators import Operator
from lowrank._operators.sketch import gaussian_source

# Vectors multiplied at once: the norm of 4 products estimates ‖A‖_F well, that of one may not.
COLUMNS = 4
# Constant of the tolerance, see `check_adjoint`.
CONSTANT = 64.0


def check_adjoint(A: Operator, rng: Any, *, hermitian: bool = False) -> None:
    """Raise a ValueError unless ``A.rmatmat`` is the adjoint of ``A.matmat``.

    If `hermitian`, unless ``A.matmat`` is its own adjoint.

    For Gaussian X (n×s) and Y (m×s), independent of each other, ``Yᴴ(A X)`` equals ``(AᴴY)ᴴX`` up
    to rounding. With another matrix B in place of Aᴴ the two differ by ``Yᴴ(A − Bᴴ)X``, a matrix
    of size ``s ‖A − Bᴴ‖_F``. Let P and Q be the computed ``A X`` and ``AᴴY``.

    Rounding: sums of n terms of random sign lose ``λ √n u`` of their size except with probability
    ``2 exp(−λ²/2)``, u = eps/2, so that P is off by E with ``‖E‖_F ≤ λ √n u ‖P‖_F``, where the
    square of ``‖P‖_F`` stands for its mean ``s ‖A‖_F²``. Y is independent of E, and so
    ``‖YᴴE‖_F ≤ (√s + 6) ‖E‖_F`` except with probability exp(−18), by concentration of a Lipschitz
    function of Gaussians; that is ``4 √s ‖E‖_F`` for s = 4. The error of Q likewise; the two small
    products add at most ``λ √m u √s ‖P‖_F`` and ``λ √n u √s ‖Q‖_F``. In all, with λ = 6, at most
    ``16 eps √(m+n) √s (‖P‖_F + ‖Q‖_F)``. Four times as much is allowed, for operators that
    multiply by several factors.

    Costs one product with A and one with its adjoint, of 4 columns each; and one more with A if the
    first has another library, device or dtype than the operator declares. Arrays are tested only
    with `hermitian`; stacks and sharded matrices never. If the products overflow, there is no test.

    N. J. Higham and T. Mary, A new approach to probabilistic rounding error analysis, 2019,
    doi:10.1137/18M1226312, and I. C. F. Ipsen and H. Zhou, Probabilistic error analysis for inner
    products, 2020, doi:10.1137/19M1270434 (the λ √n u).
    """
    has_adjoint = A.array is not None and not hermitian
    if has_adjoint or A.is_stack or A.domain is not None or 0 in A.shape:
        return
    m, n = A.shape
    X = gaussian_source(rng, A.xp, A.device, purpose="dot test x")((n, COLUMNS), A.dtype)
    P = A.matmat(X)
    xp, device = xa.array_namespace(P), xa.device_of(P)
    if (xp, device, P.dtype) != (A.xp, A.device, A.dtype):
        X = gaussian_source(rng, xp, device, purpose="dot test x")((n, COLUMNS), P.dtype)
        P = A.matmat(X)
    Y = gaussian_source(rng, xp, device, purpose="dot test y")((m, COLUMNS), P.dtype)
    Q = A.matmat(Y) if hermitian else A.rmatmat(Y)
    xa.same_place(P, Q, names=("A.matmat(X)", "A.rmatmat(Y)"))
    size = float(xa.safe_norm(P)) + float(xa.safe_norm(Q))
    eps = xa.eps(P)
    if not float(xp.finfo(P.dtype).smallest_normal) / eps <= size < math.inf:
        return
    # scaled to norm one, so that the products of both do not overflow
    P, Q = P / size, Q / size
    offset = 2.0 * COLUMNS**0.5 * A.offset / size
    tolerance = CONSTANT * eps * (COLUMNS * (m + n)) ** 0.5 * (1.0 + offset)
    left, right = xa.adjoint_matmul(Y, P), xa.adjoint_matmul(Q, X)
    if float(xa.safe_norm(left - right)) <= tolerance:
        return
    YP, QX = (xa.as_numpy(Z).astype(np.complex128) for Z in (left, right))
    place = np.unravel_index(np.argmax(np.abs(YP - QX)), YP.shape)
    a, b = (_number(Z[place] * size) for Z in (YP, QX))
    if hermitian:
        raise not_hermitian(f"for Gaussian x and y, ⟨y, A x⟩ = {a}, but ⟨A y, x⟩ = {b}")
    raise ValueError(
        f"`A.rmatmat` is not the adjoint of `A.matmat`: for Gaussian x and y, ⟨y, A x⟩ = {a}, but "
        f"⟨Aᴴ y, x⟩ = {b}. {_hint(X, Y, P, Q, YP, QX, tolerance)}"
    )


def not_hermitian(evidence: str) -> ValueError:
    """The error for a matrix that is not Hermitian, with the evidence."""
    return ValueError(f"`A` is not Hermitian: {evidence}. Pass (A + Aᴴ)/2, or use lowrank.svd.")


def _hint(
    X: Array, Y: Array, P: Array, Q: Array, YP: np.ndarray, QX: np.ndarray, tolerance: float
) -> str:
    xp = xa.array_namespace(P)
    of_complex = xp.isdtype(P.dtype, "complex floating")
    if of_complex:
        transposed = xp.matrix_transpose(Y) @ P - xp.matrix_transpose(Q) @ X
        if float(xa.safe_norm(transposed)) <= tolerance:
            return "`A.rmatmat` lacks a conjugate: it multiplies by the plain transpose."
    factor = np.vdot(YP, QX) / max(float(np.linalg.norm(YP)) ** 2, tolerance**2)
    if np.linalg.norm(QX - factor * YP) <= tolerance * max(1.0, abs(factor)):
        factor = factor.real if abs(factor.imag) <= tolerance * abs(factor) else factor
        return f"`A.rmatmat` is {_number(factor.conjugate())} times the adjoint."
    if of_complex:
        return "`A.rmatmat` must multiply by the conjugate transpose: is a conjugate missing?"
    same = " and not by A once more" if X.shape == Y.shape else ""
    return f"`A.rmatmat` must multiply by the transpose{same}."


def _number(z: complex) -> str:
    return f"{z.real:.6g}" if z.imag == 0.0 else f"{z:.6g}"
