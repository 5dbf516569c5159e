"""Cholesky factors, inverses and triangular systems: what the standard lacks, or would check."""

import importlib

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array


def inverse(X: Array) -> Array:
    """Inverse of a small, well-conditioned matrix, without a check that waits for the device."""
    xp = xa.array_namespace(X)
    return xp.linalg.inv_ex(X).inverse if xa.is_torch_namespace(xp) else xp.linalg.inv(X)


def lower_inverse(L: Array) -> Array:
    """Inverse of a lower triangular matrix or stack; NumPy has no routine for it."""
    xp, b = xa.array_namespace(L), L.shape[-1]
    if xa.is_torch_namespace(xp):
        return xp.linalg.solve_triangular(L, xa.eye(b, b, like=L), upper=False)
    if b <= 64:
        return np.linalg.inv(L)
    half = b // 2
    upper = lower_inverse(L[..., :half, :half])
    lower = lower_inverse(L[..., half:, half:])
    inverted = np.zeros_like(L)
    inverted[..., :half, :half], inverted[..., half:, half:] = upper, lower
    inverted[..., half:, :half] = -lower @ (L[..., half:, :half] @ upper)
    return inverted


def checked_cholesky(X: Array) -> Array | None:
    """Lower Cholesky factor of X; None if it does not exist. For arrays on a CPU."""
    xp = xa.array_namespace(X)
    if xa.is_torch_namespace(xp):
        factor = xp.linalg.cholesky_ex(X)
        return None if bool(xp.any(factor.info)) else factor.L
    try:
        return np.linalg.cholesky(X)
    except np.linalg.LinAlgError:
        return None


def unchecked_cholesky(X: Array) -> Array:
    """Lower Cholesky factor of X, without a check that waits for the device."""
    xp = xa.array_namespace(X)
    if xa.is_torch_namespace(xp):
        return xp.linalg.cholesky_ex(X).L
    with xa.loaded("cupyx").errstate(linalg="ignore"):
        return xp.linalg.cholesky(X)


def upper_solve(R: Array, X: Array, *, left: bool = True) -> Array:
    """``R⁻¹ X`` for an upper triangular R, or ``X R⁻¹`` (not `left`); R is not checked."""
    xp = xa.array_namespace(X)
    if xa.is_torch_namespace(xp):
        return xp.linalg.solve_triangular(R, X, upper=True, left=left)
    if left:
        return xp.linalg.solve(R, X)
    solve = importlib.import_module("cupyx.scipy.linalg").solve_triangular
    return xp.matrix_transpose(solve(R, xp.matrix_transpose(X), trans="T"))


def block_triangle(upper_left: Array, upper_right: Array, lower_right: Array) -> Array:
    xp = xa.array_namespace(upper_left)
    *batch, rows, _ = lower_right.shape
    lower_left = xa.zeros((*batch, rows, upper_left.shape[-1]), upper_left)
    upper = xp.concat([upper_left, upper_right], axis=-1)
    return xp.concat([upper, xp.concat([lower_left, lower_right], axis=-1)], axis=-2)
