"""Measured defaults for each kind of array: the width of blocks, and the QR of a panel."""

from functools import cache
from typing import NamedTuple

from lowrank._array import Array, is_cupy_array, is_numpy_array, is_torch_array, loaded


class Tuning(NamedTuple):
    # How a panel is made orthonormal: by Cholesky QR if that can be checked without waiting for a
    # device; else, in double precision, by shifted Cholesky QR, which works for every rank; else
    # by the library's qr.
    is_checked: bool
    narrowest: int  # columns from which shifted Cholesky QR is used for a single panel
    widest: int  # columns that it takes at once; 0 if it is not used
    block_size: int  # columns of a panel of a factorization that keeps its reflectors
    # To a tolerance, if the residual is explicit or the cost is that of columns, not of passes:
    width: int = 32  # columns of a block of the growing basis
    power_iterations: int = 2  # for spectra that decay slowly
    # Time of an SVD with vectors: that of products with this many flops, times the cube of the side
    svd_cost: tuple[float, float] = (30.0, 14.0)  # in single and in double precision
    block_cost: float = 4e7  # flops in the time of a block, apart from its products
    # Whether Gram matrices of single-precision panels are in double: fewer operations to launch
    mixed: bool = False


NUMPY = Tuning(True, 0, 0, 64)
TORCH_CPU = Tuning(True, 0, 0, 64, 48, 2, (20.0, 10.0))
# On an H200 LAPACK's QR takes 1.3 ms for 8192×128 and 5.2 ms for 8192×512, shifted Cholesky QR 2.6
# and 3.5 ms. For narrow panels that is the host's time to launch 100 kernels. CuPy: not measured.
TORCH_CUDA = Tuning(False, 256, 512, 128, 128, 1, (1000.0, 1000.0), 0.0, True)
CUPY = Tuning(False, 0, 512, 128, 128, 1, (1000.0, 1000.0), 0.0, True)
# Compute capabilities of devices on which double precision is at least half as fast as single; on
# others it is 32 or 64 times slower.
OF_DOUBLES = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
OTHER = Tuning(False, 0, 0, 64)


class Growth(NamedTuple):
    """How a basis grows to a tolerance; tuned on every spectrum of the gallery, and on noise.

    A goal is the part of the tolerance at which growth ends, if a truncation spends the rest.
    """

    goal: float = 0.88  # after power iterations, or in a Krylov space
    goal_without_powers: float = 0.75
    goal_of_samples: float = 0.5  # the bound of a sample is about twice its estimate
    # The part of a block that is random, if it continues a Krylov space. It starts a new one if
    # random columns took `missed` times the energy of the others, or if the old one offers less
    # than `restart` times the energy of a random space.
    fresh: float = 0.0625
    missed: float = 2.0
    restart: float = 0.1
    # A block has no power iterations if its second half lowers the error to `steep` of it, or if it
    # leaves at most `enough` of the goal. The first block has the most, if above `flat`, and one,
    # if it lowers the error of no basis to `level` of it only: then the SVD mostly takes over.
    steep: float = 0.3
    steep_of_basis: float = 0.6  # if nothing is truncated: a few columns more would stay
    enough: float = 0.35
    flat: float = 0.85
    level: float = 0.97
    # A spectrum is slow if the remaining energy exceeds this many times what doubling can remove.
    slow: float = 1.5
    margin: float = 1.25  # columns to multiply, over the predicted number of missing ones
    wide: int = 128  # columns of the first block if passes over A are expensive


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
