"""Published bounds on the error of a range finder, as functions of the singular values.

The error is ``‖A − QQᴴA‖`` for a basis Q of ``(AAᴴ)^q A Ω``, with a standard Gaussian Ω of
``ℓ = rank + oversampling`` columns. k = rank splits the spectrum into leading values and a tail.
The bounds hold for every such split. They are proved for real test matrices; they also hold for
complex ones, whose sketches are better conditioned.

Theorem numbers refer to: N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with
randomness, 2011, doi:10.1137/090771806.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from lowrank._operators.checks import as_count, as_failure_probability, as_norm

__all__ = ["Deviation", "deviation", "deviation_simple", "expected", "given_sketch"]
__all__ += ["likely", "root_mean_square"]

Values = np.ndarray[Any, np.dtype[np.float64]]


class Deviation(NamedTuple):
    """A bound, and the probability that the error exceeds it.

    Attributes
    ----------
    bound : float
        Bound on the error, in the chosen norm.
    failure_probability : float
        At least the probability that the error exceeds `bound`.
    """

    bound: float
    failure_probability: float


def given_sketch(
    singular_values: Any, sketch: Any, rank: int, *, norm: str = "fro", power_iterations: int = 0
) -> float:
    """Bound on the error for a given test matrix Ω of any distribution; it holds with certainty.

    Parameters
    ----------
    singular_values : array_like, shape (n,)
        In descending order.
    sketch : array_like, shape (n, columns)
        ``VᴴΩ``, the test matrix in the coordinates of the right singular vectors.
    rank : int
        Split k of the spectrum, at most `columns`.
    norm : {"fro", "spectral"}
        Norm of the error.
    power_iterations : int
        The q of ``(AAᴴ)^q A Ω``.

    Returns
    -------
    float
        ``√(‖Σ₂‖² + ‖Σ₂^{2q+1} Ω₂ Ω₁⁺ Σ₁^{−2q}‖²)``, where Ω₁ and Ω₂ are the first k rows and the
        other rows of the sketch; infinite if Ω₁ does not have full rank.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Theorem 9.1; for q > 0 its proof, applied to the projection of A itself on the range of
    ``(AAᴴ)^q A Ω`` (M. Gu, Subspace iteration randomization and singular value problems, 2015,
    doi:10.1137/130938700). Only powers of ratios ``σ_j/σ_i ≤ 1`` are formed, so none overflows.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank import bounds
    >>> round(bounds.given_sketch([1.0, 0.1], np.asarray([[1.0], [2.0]]), 1), 4)
    0.2236
    """
    s, k, q = _split(singular_values, rank, power_iterations)
    norm = as_norm(norm)
    sketch = np.asarray(sketch)
    if sketch.ndim != 2 or sketch.shape[0] != s.size or sketch.shape[1] < k:
        raise ValueError(
            f"`sketch` must have {s.size} rows and at least {k} columns, got {sketch.shape}."
        )
    if not np.all(np.isfinite(sketch)):
        raise ValueError("`sketch` must be finite, but it holds NaN or Inf.")
    head, tail = s[:k], s[k:]
    if k and np.linalg.matrix_rank(sketch[:k]) < k:
        return math.inf
    transfer = sketch[k:] @ np.linalg.pinv(sketch[:k])
    smallest = np.finfo(np.float64).tiny
    transfer = transfer * (tail[:, None] / np.maximum(head, smallest)) ** (2 * q)
    left = np.linalg.svd(tail[:, None] * transfer, compute_uv=False)
    return math.hypot(_size(tail, norm), _size(left, norm))


def expected(
    singular_values: Any,
    rank: int,
    oversampling: int,
    *,
    norm: str = "fro",
    power_iterations: int = 0,
) -> float:
    """Bound on the expectation of the error.

    Parameters
    ----------
    singular_values : array_like, shape (n,)
        In descending order.
    rank, oversampling : int
        Columns of the test matrix, in two parts; `oversampling` at least 2.
    norm : {"fro", "spectral"}
        Norm of the error.
    power_iterations : int
        The q of ``(AAᴴ)^q A Ω``.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Frobenius norm: Theorem 10.5, ``√(1 + k/(p−1)) τ_k`` with the tail ``τ_k² = Σ_{j>k} σ_j²``; for
    q > 0 the second term carries ``(σ_{k+1}/σ_k)^{4q}``, as in :func:`given_sketch`. Spectral norm:
    Theorem 10.6, for q > 0 Corollary 10.10.

    Examples
    --------
    >>> from lowrank import bounds, gallery
    >>> s = gallery.fast(300)
    >>> bounds.expected(s, 20, 10) <= 2 * gallery.best_error(s, 20)
    True
    """
    s, k, q = _split(singular_values, rank, power_iterations)
    p = as_count(oversampling, "oversampling", least=2)
    if as_norm(norm) == "fro":
        return math.sqrt(1.0 + _gap(s, k) ** (4 * q) * k / (p - 1)) * _size(s[k:], "fro")
    return _with_power(1.0 + math.sqrt(k / (p - 1)), math.e * math.sqrt(k + p) / p, s[k:], q)


def root_mean_square(singular_values: Any, columns: int, *, norm: str = "fro") -> float:
    """Bound on the root mean square of the error with ℓ columns, for the best split.

    Parameters
    ----------
    singular_values : array_like, shape (n,)
        In descending order.
    columns : int
        Columns ℓ of the test matrix, at least 2.
    norm : {"fro", "spectral"}
        Norm of the error.

    Returns
    -------
    float
        Also a bound on the expected error, by Jensen's inequality.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Frobenius norm: ``min_k (1 + k/(ℓ−k−1)) τ_k²``, Theorem 10.5 in the form that its proof gives.
    Spectral norm: ``min_k (1 + 2k/(ℓ−k−1)) (σ_{k+1}² + e²/(ℓ−k) τ_k²)`` (from Lemma B.3 of
    J. A. Tropp and R. J. Webber, Randomized algorithms for low-rank matrix approximation, 2023,
    arXiv:2306.12418). The minimum is over k ≤ ℓ − 2. There are no power iterations.

    Examples
    --------
    >>> from lowrank import bounds, gallery
    >>> s = gallery.fast(300)
    >>> bounds.root_mean_square(s, 30) <= bounds.expected(s, 20, 10)
    True
    """
    s, *_ = _split(singular_values)
    columns = as_count(columns, "columns", least=2)
    norm = as_norm(norm)
    largest = _size(s, "spectral") or 1.0
    s = s / largest
    splits = np.arange(min(columns - 1, s.size + 1))
    tails = np.array([_size(s[k:], "fro") for k in splits])
    spare = columns - splits
    if norm == "fro":
        squares = (1.0 + splits / (spare - 1)) * tails**2
    else:
        first = np.append(s, 0.0)[splits]
        squares = (1.0 + 2.0 * splits / (spare - 1)) * (first**2 + math.e**2 / spare * tails**2)
    return largest * math.sqrt(float(np.min(squares)))


def deviation(
    singular_values: Any,
    rank: int,
    oversampling: int,
    *,
    t: float,
    u: float,
    norm: str = "fro",
    power_iterations: int = 0,
) -> Deviation:
    """Bound on the error that fails with probability at most ``2 t^{−p} + e^{−u²/2}``.

    Parameters
    ----------
    singular_values : array_like, shape (n,)
        In descending order.
    rank, oversampling : int
        Columns of the test matrix, in two parts; `oversampling` p at least 4.
    t, u : float
        Parameters of the bound, at least 1. Larger values give a larger bound that fails less
        often.
    norm : {"fro", "spectral"}
        Norm of the error.
    power_iterations : int
        The q of ``(AAᴴ)^q A Ω``.

    Returns
    -------
    Deviation

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Frobenius norm: Theorem 10.7; for q > 0 all but the first term carry ``(σ_{k+1}/σ_k)^{2q}``, as
    in :func:`given_sketch`. Spectral norm: Theorem 10.8; for q > 0 it is applied to ``σ_j^{2q+1}``,
    and the root is taken (Theorem 9.2).

    Examples
    --------
    >>> from lowrank import bounds, gallery
    >>> bounds.deviation(gallery.fast(300), 20, 20, t=4.3, u=7.6).failure_probability < 1e-12
    True
    """
    s, k, q = _split(singular_values, rank, power_iterations)
    p = as_count(oversampling, "oversampling", least=4)
    norm = as_norm(norm)
    if not (1.0 <= t < math.inf and 1.0 <= u < math.inf):
        raise ValueError(f"`t` and `u` must be finite and at least 1, got {t!r} and {u!r}.")
    frobenius = t * math.sqrt(3.0 * k / (p + 1))
    spectral = t * math.e * math.sqrt(k + p) / (p + 1)
    failure = min(1.0, 2.0 * t**-p + math.exp(-(u**2) / 2.0))
    if norm == "spectral":
        bound = _with_power(1.0 + frobenius + u * spectral, spectral, s[k:], q)
    else:
        tail, first = _size(s[k:], "fro"), _size(s[k:], "spectral")
        bound = tail + _gap(s, k) ** (2 * q) * (frobenius * tail + u * spectral * first)
    return Deviation(bound, failure)


def deviation_simple(
    singular_values: Any, rank: int, oversampling: int, *, power_iterations: int = 0
) -> Deviation:
    """Bound on the spectral error without parameters, which fails with probability ``3 e^{−p}``.

    Parameters
    ----------
    singular_values : array_like, shape (n,)
        In descending order.
    rank, oversampling : int
        Columns of the test matrix, in two parts; `oversampling` p at least 4.
    power_iterations : int
        The q of ``(AAᴴ)^q A Ω``.

    Returns
    -------
    Deviation

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    Corollary 10.9, ``(1 + 16 √(1 + k/(p+1))) σ_{k+1} + 8 √(k+p)/(p+1) τ_k``; for q > 0 it is
    applied to ``σ_j^{2q+1}``, and the root is taken (Theorem 9.2).

    Examples
    --------
    >>> from lowrank import bounds, gallery
    >>> bounds.deviation_simple(gallery.fast(300), 20, 30).failure_probability < 1e-12
    True
    """
    s, k, q = _split(singular_values, rank, power_iterations)
    p = as_count(oversampling, "oversampling", least=4)
    of_first, of_tail = 1.0 + 16.0 * math.sqrt(1.0 + k / (p + 1)), 8.0 * math.sqrt(k + p) / (p + 1)
    return Deviation(_with_power(of_first, of_tail, s[k:], q), min(1.0, 3.0 * math.exp(-p)))


def likely(
    singular_values: Any,
    columns: int,
    *,
    norm: str = "fro",
    power_iterations: int = 0,
    failure_probability: float = 1e-9,
) -> float:
    """Bound on the error with ℓ columns that fails with at most the given probability.

    Parameters
    ----------
    singular_values : array_like, shape (n,)
        In descending order.
    columns : int
        Columns ℓ of the test matrix, at least 4.
    norm : {"fro", "spectral"}
        Norm of the error.
    power_iterations : int
        The q of ``(AAᴴ)^q A Ω``.
    failure_probability : float
        Split equally between the two parts of the probability of :func:`deviation`; that gives t
        and u.

    Returns
    -------
    float
        The smallest :func:`deviation` over all splits, at most ``‖A‖``. The best split depends on
        the spectrum alone, so this bound fails no more often than any other.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Notes
    -----
    See :func:`deviation` for the theorems.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> from lowrank import bounds, gallery
    >>> s = gallery.fast(200)
    >>> A = gallery.matrix(s, rng=0)
    >>> Q = lowrank.range_finder(A, 50, rng=1).Q
    >>> bool(np.linalg.norm(A - Q @ (Q.T @ A)) <= bounds.likely(s, 50))
    True
    """
    s, *_ = _split(singular_values)
    columns = as_count(columns, "columns", least=4)
    delta = as_failure_probability(failure_probability)
    u = max(1.0, math.sqrt(2.0 * math.log(2.0 / delta)))
    smallest = _size(s, as_norm(norm))
    for k in range(min(columns - 4, s.size) + 1):
        p = columns - k
        t = max(1.0, (4.0 / delta) ** (1.0 / p))
        found = deviation(s, k, p, t=t, u=u, norm=norm, power_iterations=power_iterations)
        smallest = min(smallest, found.bound)
    return smallest


def _split(
    singular_values: Any, rank: int = 0, power_iterations: int = 0
) -> tuple[Values, int, int]:
    """Singular values, the index at which they are split, and the power iterations."""
    s = np.asarray(singular_values, dtype=np.float64)
    if s.ndim != 1 or not np.all(np.isfinite(s)) or np.any(s < 0) or np.any(np.diff(s) > 0):
        raise ValueError(
            "`singular_values` must be a vector of finite, non-negative numbers in descending "
            f"order, got an array of shape {s.shape}."
        )
    return s, min(as_count(rank, "rank"), s.size), as_count(power_iterations, "power_iterations")


def _size(values: Values, norm: str) -> float:
    """Norm of a diagonal matrix."""
    largest = float(values[0]) if values.size else 0.0
    if norm == "spectral" or largest == 0.0:
        return largest
    return largest * float(np.linalg.norm(values / largest))


def _gap(s: Values, k: int) -> float:
    """σ_{k+1}/σ_k; one if k is 0 or the last index."""
    if k == 0 or k >= s.size:
        return 1.0
    return float(s[k] / s[k - 1]) if s[k - 1] > 0 else 1.0


def _with_power(of_first: float, of_tail: float, values: Values, q: int) -> float:
    """The bound ``of_first σ_{k+1} + of_tail τ_k`` for ``(AAᴴ)^q A``, and then its root.

    `values` are the tail of the spectrum. In units of the first of them, powers do not overflow,
    and only negligible ones underflow.
    """
    first = _size(values, "spectral")
    if first == 0.0:
        return 0.0
    power = 2 * q + 1
    root: float = (of_first + of_tail * _size((values / first) ** power, "fro")) ** (1.0 / power)
    return first * root
