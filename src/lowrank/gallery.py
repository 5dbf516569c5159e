"""Test matrices with a known spectrum, and the best possible error of a rank-k approximation.

A spectrum is a function of the length `n` that returns a NumPy array in descending order; `SPECTRA`
is a dictionary of all of them by name. :func:`matrix` makes a matrix with a given spectrum and
random singular vectors, on any array library. Sources: Yu, Gu & Li, Efficient randomized algorithms
for the fixed-precision low-rank matrix approximation, 2018, doi:10.1137/17M1141977 (slow, fast,
s_shaped); Hallman, A block bidiagonalization method for fixed-accuracy low-rank matrix
approximation, 2022, doi:10.1137/21M1397866 (medium, slower, staircase); Epperly & Tropp, Efficient
error and variance estimation for randomized matrix computations, 2024, doi:10.1137/23M1558537
(plateau_polynomial, plateau_exponential, noisy); RandLAPACK's generators (steps, spiked, drop);
MATLAB's gallery("randsvd") (geometric).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lowrank._array import Array, adjoint, array_namespace, device_of
from lowrank._operators.checks import as_norm
from lowrank._operators.sketch import gaussian_source
from lowrank.householder import qr

__all__ = ["SPECTRA", "best_error", "best_rank", "kahan", "matrix", "noisy", "spiked"]
__all__ += ["fast", "geometric", "medium", "s_shaped", "slow", "slower", "staircase"]
__all__ += ["drop", "flat", "low_rank", "plateau_exponential", "plateau_polynomial", "steps"]

Spectrum = np.ndarray[Any, np.dtype[np.float64]]


def _index(n: int) -> Spectrum:
    return np.arange(1.0, n + 1.0)


def slow(n: int) -> Spectrum:
    """σ_j = j⁻² (Yu, Gu & Li's Matrix 1)."""
    return _index(n) ** -2.0


def fast(n: int) -> Spectrum:
    """σ_j = exp(−j/7) (Yu, Gu & Li's Matrix 2)."""
    return np.exp(-_index(n) / 7.0)


def s_shaped(n: int) -> Spectrum:
    """σ_j = 10⁻⁴ + 1/(1 + exp(j − 30)) (Yu, Gu & Li's Matrix 3): a cliff, then a flat tail."""
    return 1e-4 + 1.0 / (1.0 + np.exp(np.minimum(_index(n) - 30.0, 700.0)))


def medium(n: int) -> Spectrum:
    """σ_j = exp(−j/20) (Hallman's "fast decay")."""
    return np.exp(-_index(n) / 20.0)


def slower(n: int) -> Spectrum:
    """σ_j = 1/j (Hallman)."""
    return 1.0 / _index(n)


def staircase(n: int) -> Spectrum:
    """σ_j = 10^(−0.6 ⌊(j−1)/30⌋), the Devil's stairs (Hallman)."""
    return 10.0 ** (-0.6 * np.floor((_index(n) - 1.0) / 30.0))


def geometric(n: int, condition: float = 2.0**26) -> Spectrum:
    """σ_j = κ^(−(j−1)/(n−1)) with the `condition` κ, by default ε^(−1/2) (MATLAB's randsvd)."""
    return condition ** (-(_index(n) - 1.0) / max(n - 1, 1))


def plateau_polynomial(n: int, ones: int = 20, power: float = 2.0) -> Spectrum:
    """`ones` values of one, then ``(j + 1)^−power`` for j = 1, 2, … (Epperly & Tropp)."""
    return np.maximum(_index(n) - ones + 1.0, 1.0) ** -power


def plateau_exponential(n: int, ones: int = 20, rate: float = 0.25) -> Spectrum:
    """`ones` values of one, then ``10^(−rate·j)`` for j = 1, 2, … (Epperly & Tropp)."""
    return 10.0 ** (-rate * np.maximum(_index(n) - ones, 0.0))


def steps(n: int, condition: float = 1e10) -> Spectrum:
    """Four equally long steps at 1, 8/κ, 4/κ and 1/κ, with the `condition` κ (RandLAPACK)."""
    levels = np.asarray([1.0, 8.0 / condition, 4.0 / condition, 1.0 / condition])
    return levels[np.minimum(4 * np.arange(n) // max(n, 1), 3)]


def drop(n: int, ones: int = 10, level: float = 2.0**-26) -> Spectrum:
    """`ones` values of one, then `level`, √ε by default: Cholesky QR fails for it (RandLAPACK)."""
    return np.where(_index(n) <= ones, 1.0, level)


def low_rank(n: int, rank: int = 12) -> Spectrum:
    """`rank` values from 1 to 1/2, then exact zeros."""
    return np.where(_index(n) <= rank, 1.0 - 0.5 * (_index(n) - 1.0) / max(rank, 1), 0.0)


def flat(n: int) -> Spectrum:
    """σ_j = 1: cannot be compressed."""
    return np.ones(n)


# Spectra that decay everywhere, and spectra with a plateau.
_DECAYING = (slow, fast, s_shaped, medium, slower, staircase, geometric)
_LEVEL = (plateau_polynomial, plateau_exponential, steps, drop, low_rank, flat)
SPECTRA: Mapping[str, Callable[[int], Spectrum]] = MappingProxyType(
    {spectrum.__name__: spectrum for spectrum in _DECAYING + _LEVEL}
)


def matrix(
    singular_values: Any,
    shape: tuple[int, int] | None = None,
    *,
    xp: Any = np,
    dtype: Any = None,
    device: Any = None,
    rng: Any = None,
) -> Array:
    """``U diag(singular_values) Vᴴ`` with random orthonormal U and V.

    Parameters
    ----------
    singular_values : sequence of float
        At most min(shape) numbers; all other singular values are zero.
    shape : (int, int), optional
        Shape of the matrix. Default: square, of the number of singular values.
    xp : module
        Array library of the result: numpy, torch, cupy, …
    dtype : optional
        A floating dtype of `xp`, real or complex; float64 by default.
    device : optional
        Device of the result. Default: that of `xp`.
    rng : None, int, numpy.random.Generator or native generator
        As in SPEC 7.

    Returns
    -------
    array, shape (m, n)
        An array of the library `xp`.

    Raises
    ------
    ValueError
        If there are more singular values than min(shape).

    Notes
    -----
    For k singular values it takes :func:`~lowrank.qr` of an m×k and an n×k matrix, and 2mnk flops.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank import gallery
    >>> A = gallery.matrix(gallery.slow(4), (6, 4), rng=0)
    >>> bool(np.allclose(np.linalg.svd(A, compute_uv=False), gallery.slow(4)))
    True
    """
    values = np.asarray(singular_values, dtype=np.float64)
    k = len(values)
    m, n = (k, k) if shape is None else shape
    if values.ndim != 1 or k > min(m, n):
        raise ValueError(f"expected at most {min(m, n)} singular values, got shape {values.shape}.")
    xp = array_namespace(xp.empty(0))
    like = xp.empty(0, dtype=xp.float64 if dtype is None else dtype, device=device)
    draw = gaussian_source(rng, xp, device_of(like), purpose="gallery")
    U, V = (qr(draw((rows, k), like.dtype)).Q for rows in (m, n))
    return (U * xp.asarray(values.tolist(), dtype=like.dtype, device=device)) @ adjoint(V)


def best_error(singular_values: Any, rank: int, *, norm: str = "fro") -> float:
    """Error of the best approximation of that rank (Eckart & Young, 1936)."""
    tail = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1][rank:]
    if as_norm(norm) == "spectral":
        return float(tail[0]) if len(tail) else 0.0
    return math.hypot(*tail)


def best_rank(
    singular_values: Any, *, rtol: float = 0.0, atol: float = 0.0, norm: str = "fro"
) -> int:
    """Smallest rank with an error of at most ``max(rtol · ‖A‖, atol)`` (Eckart & Young, 1936).

    Examples
    --------
    >>> from lowrank import gallery
    >>> gallery.best_rank(gallery.slow(8000), rtol=1e-4)
    313
    """
    values = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1]
    tolerance = max(rtol * best_error(values, 0, norm=norm), atol)
    if as_norm(norm) == "spectral":
        return int(np.sum(values > tolerance))
    return int(np.sum(np.sqrt(np.cumsum(values[::-1] ** 2)) > tolerance))


def kahan(n: int, theta: float = 1.2) -> Array:
    """Kahan's upper triangular matrix: nearly singular, although its diagonal does not show it."""
    s, c = math.sin(theta), math.cos(theta)
    unit = np.eye(n) - c * np.triu(np.ones((n, n)), 1)
    return s ** np.arange(n)[:, None] * unit


def spiked(m: int, n: int, *, spikes: int = 10, height: float = 1e4, rng: Any = None) -> Array:
    """Orthonormal columns with a few rows made huge: a coherent matrix, hard for row sampling."""
    generator = np.random.default_rng(rng)
    A = qr(generator.standard_normal((m, n))).Q
    A[generator.choice(m, min(spikes, m), replace=False)] *= height
    return A


def noisy(n: int, *, ones: int = 20, noise: float = 1e-2, rng: Any = None) -> Array:
    """Positive semidefinite: `ones` unit eigenvalues plus (`noise`/n) G Gᵀ (Epperly & Tropp)."""
    G = np.random.default_rng(rng).standard_normal((n, n))
    return np.diag(np.where(_index(n) <= ones, 1.0, 0.0)) + noise / n * (G @ G.T)
