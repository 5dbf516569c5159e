"""The error of a basis from a few Gaussian samples: an estimate, and a bound."""

import math
from functools import reduce
from operator import matmul
from typing import Any

from lowrank import _array as xa
from lowrank._array import Array, Namespace
from lowrank._array.arithmetic import in_full_precision
from lowrank._linalg.sharded import shards_of
from lowrank._operators import Operator, as_operator
from lowrank._operators.checks import as_count, as_failure_probability, as_norm
from lowrank._operators.factored import Factored
from lowrank._operators.sketch import gaussian_source
from lowrank.results import ErrorEstimate

# Rounding error of a projection onto k columns: FLOOR · eps · √(k + FLOOR_COLUMNS) · ‖A‖. Measured
# with bases of the full rank of A, over dtypes, shapes and libraries: at most 12 eps for 1 to 10
# columns, and 1.7 eps √k for 32 to 512.
FLOOR = 3.0
FLOOR_COLUMNS = 32


def safety_factor(samples: int, failure_probability: float, *, is_complex: bool) -> float:
    """The c for which ``‖E‖_F ≤ c · ‖EΩ‖_F/√samples``, except with the given probability.

    For a real Gaussian Ω of s columns and every E, ``P(‖EΩ‖²_F ≤ x s ‖E‖²_F) ≤ (x e^{1−x})^{s/2}``
    for 0 < x < 1; the exponent is s for complex Ω. c = x^{−1/2} for the x that makes the right
    side `failure_probability`. With t = ln x < 0 this is ``e^t − 1 − t = −ln(δ) · 2/s``: convex and
    decreasing, so Newton's method from the left of the root ascends to it.
    """
    return _chernoff_factor(-1, samples, failure_probability, is_complex)


def spread_factor(samples: int, failure_probability: float, *, is_complex: bool) -> float:
    """The c for which ``‖EΩ‖_F/√samples ≤ c · ‖E‖_F``, except with the given probability.

    ``P(‖EΩ‖²_F ≥ x s ‖E‖²_F) ≤ (x e^{1−x})^{s/2}`` for x > 1, and c = x^{1/2}. With t = ln x this
    is ``e^t − 1 − t = −ln(δ) · 2/s``. The left side is at least t²/2, so the start lies to the
    right of the root, and Newton's method descends to it.
    """
    return _chernoff_factor(1, samples, failure_probability, is_complex)


def _chernoff_factor(
    sign: int, samples: int, failure_probability: float, is_complex: bool
) -> float:
    """``e^{|t|/2}`` for the root t of this sign of ``e^t − 1 − t = −ln(δ) · 2/s``."""
    target = -math.log(failure_probability) / (samples if is_complex else samples / 2)
    t = -(target + 1.0) if sign < 0 else math.sqrt(2.0 * target)
    for _ in range(100):
        step = (math.expm1(t) - t - target) / math.expm1(t)
        t -= step
        if step / t <= 1e-15:
            break
    return math.exp(abs(t) / 2)


def rounding_floor(
    like: Array, shape: tuple[int, ...], rank: int, norm: float, factor: float = 1.0
) -> float:
    """A bound on the rounding error in the error of a basis of `rank` columns like `like`.

    Besides the part relative to ‖A‖ there is an absolute part: products of tiny numbers are rounded
    to multiples of the smallest number of the dtype. Where subnormal numbers are flushed to zero
    (see `flushes`), they are lost completely, even if the norm is zero because of that. A few
    samples may miss rounding errors by their safety `factor`: the constants allow for a factor of
    three, and 64 samples have two.
    """
    limits, is_flushed = xa.array_namespace(like).finfo(like.dtype), xa.flushes(like)
    if norm == 0.0 and not is_flushed:
        return 0.0
    columns = rank + FLOOR_COLUMNS
    quantum = float(limits.smallest_normal) * (1.0 if is_flushed else float(limits.eps))
    relative = FLOOR * float(limits.eps) * math.sqrt(columns) * norm
    floor = relative + quantum * math.sqrt(2.0 * columns * math.prod(shape))
    return floor * max(1.0, factor / 3.0)


def spectral_norm(X: Array, xp: Namespace) -> Array:
    """Largest singular value of a small matrix as a 0-d array; neither overflows nor underflows.

    NaN if `X` is not finite, on every library (their SVDs would raise different errors).
    """
    if 0 in X.shape:
        return xp.sum(xp.abs(X))
    unit, largest = xa.split_scale(X)
    unit = xp.where(xp.isfinite(unit), unit, xp.zeros_like(unit))
    if xa.is_of_a_gpu(X):
        # Jacobi rotations on a GPU leave errors of up to 200 eps in the values. The quotient of
        # norms for a singular vector has only the square of the vector's error.
        v = xp.conj(xp.linalg.svd(unit, full_matrices=False)[2][0, :])
        return largest * xp.linalg.vector_norm(unit @ v) / xp.linalg.vector_norm(v)
    return largest * xp.max(xp.linalg.svdvals(unit))


def norm_of_product(factors: list[Array], xp: Namespace, root: float) -> float:
    """``‖F_q ⋯ F₁ F₀‖₂`` to the power `root`; the product neither overflows nor underflows."""
    if any(0 in factor.shape for factor in factors):
        return 0.0
    product, log_size = factors[0], 0.0
    for position, factor in enumerate(factors):
        product = factor @ product if position else product
        product, largest = xa.split_scale(product)
        log_size = log_size + xp.log(largest)
    return math.exp(root * float(log_size + xp.log(spectral_norm(product, xp))))


@in_full_precision
def residual_norm(
    A: Array,
    Q: Array,
    /,
    B: Array | None = None,
    *,
    norm: str = "fro",
    samples: int = 64,
    rng: Any = None,
    failure_probability: float = 1e-9,
) -> ErrorEstimate:
    """Estimate and bound the error ``‖A − Q B‖``, or ``‖A − Q QᴴA‖`` without B, by random samples.

    Parameters
    ----------
    A : array, sparse matrix or operator, shape (m, n)
        Or a DTensor of PyTorch; Q and B are then DTensors too, sharded as the results of
        :func:`qb` are.
    Q : array, shape (m, k)
        Any basis, from this library or not. Without B it should be orthonormal; otherwise the error
        of ``Q QᴴA``, computed with this Q, is measured. Or the result of a factorization: then the
        error is ``‖A − found‖``.
    B : array, shape (k, n), optional
        The other factor; ``QᴴA`` by default.
    norm : {"fro", "spectral"}
        In the spectral norm the estimate may exceed the true error by a factor of up to about
        ``√(1 + stable rank of the residual / samples)``.
    samples : int
        Number of Gaussian vectors. More vectors make the bound tighter. If A has at most this many
        columns or rows, the identity is used instead, and the error is exact to rounding.
    rng : None, int, numpy.random.Generator or native generator
        As in SPEC 7. It must be independent of the random numbers that made Q. The integer seed
        that a function of this library used for Q is fine, because other numbers are drawn here; a
        native generator in the same state is not.
    failure_probability : float
        Probability that `upper_bound` is below the true error.

    Returns
    -------
    ErrorEstimate
        Absolute `value` and `upper_bound`, in the chosen norm.

    Raises
    ------
    TypeError
        If a dtype is not supported, or the arrays differ in library, device or dtype.
    ValueError
        If shapes do not match, an option is out of range, or the residual is not finite.

    Notes
    -----
    One pass over A with `samples` columns, and 4mk·samples flops. The bound is the Chernoff bound
    for a weighted sum of chi-squares, whose worst case over all residuals is a residual of rank
    one (F. Roosta-Khorasani, G. Székely and U. Ascher, Assessing stochastic algorithms for large
    scale nonlinear least squares problems using extremal probabilities of linear combinations of
    gamma random variables, 2015, doi:10.1137/14096311X), plus a term for rounding. Stacks are not
    supported.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> A = np.diag(0.5 ** np.arange(40))
    >>> Q = np.eye(40, 5)
    >>> estimate = lowrank.residual_norm(A, Q, rng=0)
    >>> bool(np.linalg.norm(A[:, 5:]) <= estimate.upper_bound)
    True
    """
    norm = as_norm(norm)
    delta = as_failure_probability(failure_probability)
    samples = as_count(samples, "samples", least=1)
    if isinstance(Q, Factored) and B is None:
        Q, *rest = Q.factors
        B = reduce(matmul, rest)
    shards = shards_of(A)
    total: Any
    if shards is None:
        operator, Q, B = _of_arrays(A, Q, B)
        m, n = operator.shape
        flipped, total = m < n and m <= samples, lambda X: X
        operator = operator.adjoint() if flipped else operator
    else:
        _check_shapes(shards.shape, Q, B)
        rng, (Q, B) = shards.seed(rng), shards.parts(Q, B)
        operator, flipped, total = shards.operator, shards.by_rows, shards.rows.sum

    product = xa.batched_adjoint_matmul  # other sums than those that made Q

    def sampled_residual(Omega: Array) -> tuple[Array, Array]:
        """``A Ω``, and the residual ``(A − Q B) Ω``; of the adjoint if `flipped`."""
        if flipped:
            inner, Y = total(product(Q, Omega)), operator.matmat(Omega)
            return Y, Y - (operator.matmat(Q @ inner) if B is None else product(B, inner))
        Y = operator.matmat(Omega)
        xa.same_place(Y, Q, names=("A.matmat(X)", "Q"))
        return Y, Y - Q @ (product(Q, Y) if B is None else total(B @ Omega))

    xp, shortest = xa.array_namespace(Q), min(operator.shape)
    if shards is None and shortest <= samples:  # the identity measures the whole residual
        samples, root, factor = shortest, 1.0, 1.0 + 32.0 * xa.eps(Q)
        Omega = xa.eye(samples, samples, like=Q)
    else:
        root = math.sqrt(samples)
        factor = safety_factor(samples, delta, is_complex=xa.is_complex(Q))
        draw = gaussian_source(rng, xp, xa.device_of(Q), purpose="residual")
        Omega = draw((operator.test_rows, samples), Q.dtype)
    _, exponent = math.frexp(float(xp.finfo(Q.dtype).max))
    for scale in (1.0, 2.0 ** (-exponent // 2)):  # the second is for products that overflow
        Y, Z = sampled_residual(Omega if scale == 1.0 else Omega * scale)
        measured = xa.safe_norm(Z) if norm == "fro" else spectral_norm(Z, xp)
        value, size = (float(number) / root / scale for number in (measured, xa.safe_norm(Y)))
        if math.isfinite(value) and math.isfinite(size):
            break
    else:
        raise ValueError(
            "the sampled residual is not finite: `A`, `Q` or `B` holds NaN or Inf, or the norm of "
            "`A` exceeds the largest float; check them, or divide `A` by a constant."
        )
    floor = rounding_floor(Q, operator.shape, int(Q.shape[1]), size, factor)
    return ErrorEstimate(value, value * factor + floor, norm, samples, delta)


def _of_arrays(A: Any, Q: Array, B: Array | None) -> tuple[Operator, Array, Array | None]:
    """The operator and the factors, checked; samples are drawn in the library and device of Q."""
    operator = as_operator(A)
    if operator.is_stack:
        raise ValueError(f"`A` must be a matrix (two dimensions), got shape {operator.shape}.")
    Q, _ = xa.as_matrix(Q, name="Q")
    if operator.norm is not None:  # an operator may return products elsewhere
        xa.same_place(operator.empty(0), Q, names=("A", "Q"))
    if B is not None:
        B, _ = xa.as_matrix(B, name="B")
        xa.same_place(Q, B, names=("Q", "B"))
    _check_shapes(operator.shape, Q, B)
    return operator, Q, B


def _check_shapes(shape: tuple[int, ...], Q: Any, B: Any) -> None:
    (m, n), k = shape, Q.shape[1]
    if Q.shape[0] != m:
        raise ValueError(f"`Q` must have {m} rows to match `A`, got shape {tuple(Q.shape)}.")
    if B is not None and tuple(B.shape) != (k, n):
        raise ValueError(
            f"`B` must have shape {(k, n)} to match `Q` and `A`, got {tuple(B.shape)}."
        )
