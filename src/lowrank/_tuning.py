"""Measured defaults: how wide a block is, and how a panel is made orthonormal, by kind of array."""

from enum import Enum, auto
from typing import NamedTuple

from lowrank._array import Array, is_cupy_array, is_numpy_array, is_torch_array

__all__ = ["CUPY", "NUMPY", "OTHER", "TORCH_CUDA", "Method", "Tuning", "tuning"]


class Method(Enum):
    """How a panel is made orthonormal."""

    ASKED_CHOLESKY = auto()
    UNASKED_CHOLESKY = auto()
    NATIVE = auto()


class Tuning(NamedTuple):
    method: Method
    narrowest: int  # columns from which UNASKED_CHOLESKY takes a single panel
    widest: int  # columns that UNASKED_CHOLESKY takes at once
    block_size: int  # columns of a panel of a factorization that keeps its reflectors


NUMPY = Tuning(Method.ASKED_CHOLESKY, 0, 0, 64)
# An H200: LAPACK's way takes 1.3 ms for 8192×128 and 5.2 ms for 8192×512, Cholesky QR 2.6 and 3.5,
# nearly all of it, for narrow panels, the host's time for a hundred kernels. CuPy is not measured.
TORCH_CUDA = Tuning(Method.UNASKED_CHOLESKY, 256, 512, 128)
CUPY = Tuning(Method.UNASKED_CHOLESKY, 0, 512, 128)
OTHER = Tuning(Method.NATIVE, 0, 0, 64)


def tuning(X: Array) -> Tuning:
    if is_numpy_array(X):
        return NUMPY
    if is_cupy_array(X):
        return CUPY
    if is_torch_array(X) and X.is_cuda:
        return TORCH_CUDA
    return OTHER
