"""SVD of the small matrix B, of which the libraries' own is only the first step."""

from typing import NamedTuple

import numpy as np

from lowrank._array import (
    Array,
    adjoint,
    array_namespace,
    device_of,
    eps,
    eye,
    is_torch_namespace,
    loaded,
    phases,
    safe_norm,
)
from lowrank._check import as_block_size
from lowrank._sketch import gaussian_source
from lowrank.householder import reflect

__all__ = ["SmallSVD", "small_svd"]

# Rotations to try where an SVD does not converge.
TURNS = 5


class SmallSVD(NamedTuple):
    """``B = Rᴴ Pᴴ`` with P (n×k) orthonormal, and ``Rᴴ = U diag(S) W``, all k×k."""

    R: Array
    U: Array
    S: Array
    W: Array
    P: Array


def small_svd(C: Array) -> SmallSVD:
    """SVD of ``B = Cᴴ`` through the QR of the tall n×k matrix C.

    LAPACK's gesdd, which NumPy and torch call, gives up on some finite matrices with clustered
    singular values (numpy issue 11887, OpenBLAS issue 3044), for others of that kind returns
    vectors that are orthonormal to 1e-6 only (the "steps" spectrum with κ = 1e10 does both), and
    may not return at all from infinite ones. So a matrix that fails is turned by a random
    rotation, which is backward stable, and tried again; vectors that are not orthonormal are made
    so; and what is not finite is refused.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        factor = reflect(C, as_block_size(None, C))
        M = adjoint(factor.R)
        _check_finite(M)
        U, S, W = _svd(M)
        _check_finite(S)
    if not _are_orthonormal(U, adjoint(W)):
        U, S, W = _polished(M, U)
    return SmallSVD(factor.R, U, S, W, factor.thin())


def _check_finite(X: Array) -> None:
    xp = array_namespace(X)
    if not bool(xp.all(xp.isfinite(X))):
        message = (
            "QᴴA is not finite: `A` holds NaN or Inf, or a singular value of it exceeds the "
            "largest number of its dtype; divide `A` by a constant."
        )
        raise ValueError(message)


def _svd(M: Array) -> tuple[Array, Array, Array]:
    xp = array_namespace(M)
    errors: tuple[type[Exception], ...] = (np.linalg.LinAlgError,)
    if is_torch_namespace(xp):
        errors += (loaded("torch").linalg.LinAlgError,)
    G = None
    for turn in range(TURNS + 1):
        try:
            U, S, W = xp.linalg.svd(M if G is None else M @ G, full_matrices=False)
        except errors:
            if turn == TURNS:
                raise
            draw = gaussian_source(turn, xp, device_of(M), purpose="rotation")
            G = reflect(draw(tuple(M.shape), M.dtype), as_block_size(None, M)).thin()
        else:
            return U, S, W if G is None else W @ adjoint(G)
    raise AssertionError  # the last turn returns or raises


def _are_orthonormal(*bases: Array) -> bool:
    departure = 0.0
    for Q in bases:
        k = Q.shape[-1]
        gram = adjoint(Q) @ Q - eye(k, k, like=Q)
        departure = departure + safe_norm(gram)
    return bool(departure <= 64.0 * eps(Q) * Q.shape[-1] ** 0.5)


def _polished(M: Array, U: Array) -> tuple[Array, Array, Array]:
    """SVD of M from left vectors that are nearly singular vectors, and nearly orthonormal.

    With U made orthonormal, the rows of UᴴM are orthogonal up to the inaccuracy of U, and the
    triangular factor of their QR is diagonal up to it.
    """
    xp = array_namespace(M)
    block_size = as_block_size(None, M)
    U = reflect(U, block_size).thin()
    rows = reflect(adjoint(adjoint(U) @ M), block_size)
    diagonal = xp.linalg.diagonal(rows.R)
    # Two values that the inaccuracy has put out of order differ by less than rounding.
    S = xp.sort(xp.abs(diagonal), axis=-1, descending=True)
    return U, S, adjoint(rows.thin() * phases(diagonal)[..., None, :])
