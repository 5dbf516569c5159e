"""Measured defaults: how wide a block is, and how a panel is made orthonormal, by kind of array."""

from enum import Enum, auto
from typing import NamedTuple

from lowrank._array import Array, is_cupy_array, is_numpy_array, is_torch_array

__all__ = ["CUDA", "NUMPY", "OTHER", "Method", "Tuning", "tuning"]


class Method(Enum):
    """How a panel is made orthonormal."""

    ASKED_CHOLESKY = auto()
    UNASKED_CHOLESKY = auto()
    NATIVE = auto()


class Tuning(NamedTuple):
    method: Method
    widest: int  # columns that UNASKED_CHOLESKY takes at once
    block_size: int  # columns of a panel of a factorization that keeps its reflectors


NUMPY = Tuning(Method.ASKED_CHOLESKY, 0, 64)
CUDA = Tuning(Method.UNASKED_CHOLESKY, 512, 128)
OTHER = Tuning(Method.NATIVE, 0, 64)


def tuning(X: Array) -> Tuning:
    if is_numpy_array(X):
        return NUMPY
    if is_cupy_array(X) or (is_torch_array(X) and X.is_cuda):
        return CUDA
    return OTHER
