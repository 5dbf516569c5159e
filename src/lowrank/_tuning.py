"""Measured defaults: how wide a block is, and how a panel is made orthonormal, by kind of array."""

from enum import Enum, auto
from functools import cache
from typing import NamedTuple

from lowrank._array import Array, is_cupy_array, is_numpy_array, is_torch_array, loaded


class Method(Enum):
    """How a panel is made orthonormal."""

    CHECKED_CHOLESKY = auto()
    SHIFTED_CHOLESKY = auto()
    NATIVE = auto()


class Tuning(NamedTuple):
    method: Method
    narrowest: int  # columns from which UNASKED_CHOLESKY takes a single panel
    widest: int  # columns that UNASKED_CHOLESKY takes at once
    block_size: int  # columns of a panel of a factorization that keeps its reflectors
    # To a tolerance, where the residual is explicit or columns are what costs:
    width: int = 32  # columns of a block of the growing basis
    power_iterations: int = 2  # for spectra that fall slowly
    # An SVD with vectors takes as long as products of this many flops, over the cube of the side
    svd_cost: tuple[float, float] = (30.0, 14.0)  # in single and in double precision
    block_cost: float = 4e7  # flops in the time that a block takes besides its products
    # Whether panels in single precision have Gram matrices in double: the time of few operations
    mixed: bool = False


NUMPY = Tuning(Method.CHECKED_CHOLESKY, 0, 0, 64)
TORCH_CPU = Tuning(Method.CHECKED_CHOLESKY, 0, 0, 64, 48, 2, (20.0, 10.0))
# An H200: LAPACK's way takes 1.3 ms for 8192×128 and 5.2 ms for 8192×512, Cholesky QR 2.6 and 3.5,
# nearly all of it, for narrow panels, the host's time for a hundred kernels. CuPy is not measured.
TORCH_CUDA = Tuning(Method.SHIFTED_CHOLESKY, 256, 512, 128, 128, 1, (1000.0, 1000.0), 0.0, True)
CUPY = Tuning(Method.SHIFTED_CHOLESKY, 0, 512, 128, 128, 1, (1000.0, 1000.0), 0.0, True)
# Compute capabilities of devices with half as many flops in double precision as in single, or more;
# others have a 32nd or a 64th of them.
OF_DOUBLES = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
OTHER = Tuning(Method.NATIVE, 0, 0, 64)


class Growth(NamedTuple):
    """How a basis grows to a tolerance: tried on every spectrum of the gallery, and on noise.

    Goals are the parts of a tolerance at which growth ends, where a truncation spends the rest.
    """

    goal: float = 0.88  # after power iterations
    goal_of_slow: float = 0.9  # of spectra that fall slowly, whose last columns are many
    goal_without_powers: float = 0.75
    goal_of_samples: float = 0.5  # whose bound is about twice the estimate
    # Errors within a block: power iterations do not pay where half of it divides the error by so
    # much, or where it leaves no more than this part of the goal; they do where it hardly falls.
    steep: float = 0.3
    steep_of_basis: float = 0.6  # where nothing is truncated, so that a few columns more stay
    enough: float = 0.35
    flat: float = 0.85
    # What is left of the energy, over what as many columns as there are would take at most.
    slow: float = 1.5
    margin: float = 1.25  # columns to multiply over those that seem to be missing
    wide: int = 128  # columns of the first block where a pass over A is what costs


GROWTH = Growth()


def tuning(X: Array) -> Tuning:
    if is_numpy_array(X):
        return NUMPY
    if is_cupy_array(X):
        major, minor = X.device.compute_capability[:-1], X.device.compute_capability[-1]
        return CUPY._replace(mixed=(int(major), int(minor)) in OF_DOUBLES)
    if is_torch_array(X) and X.is_cuda:
        return TORCH_CUDA._replace(mixed=_has_doubles(X.device.index or 0))
    return TORCH_CPU if is_torch_array(X) and X.device.type == "cpu" else OTHER


@cache
def _has_doubles(index: int) -> bool:
    cuda = loaded("torch").cuda
    return not cuda.is_available() or cuda.get_device_capability(index) in OF_DOUBLES
