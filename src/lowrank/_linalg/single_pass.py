"""A matrix known by linear sketches; a low-rank approximation from them, and its error.

Test matrices, sketches, linear updates, approximation and error of J. A. Tropp, A. Yurtsever,
M. Udell and V. Cevher, Streaming low-rank matrix approximation with an application to scientific
simulation, 2019, doi:10.1137/18M1201068 (arXiv 1902.08651), in this order.
"""

import math
import numbers
from typing import Any, NamedTuple, Self

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._array.arithmetic import in_full_precision
from lowrank._linalg.certificate import rounding_floor, safety_factor
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.small_svd import robust_svd
from lowrank._linalg.triangular import upper_solve
from lowrank._operators import Operator
from lowrank._operators.checks import as_count, as_failure_probability
from lowrank._operators.sketch import gaussian_source
from lowrank.results import ErrorEstimate


class Factors(NamedTuple):
    """``Â = U diag(S) Vh`` with all k columns, and the error sketch of each column."""

    U: Array
    S: Array
    Vh: Array
    kept: Array  # column j of Θ(A − Â)V
    dropped: Array  # column j of ΘAV
    outside: float  # ‖ΘA(I − VVᴴ)‖_F


class Sketches:
    """The sketches of a matrix, which starts as zero: see :class:`lowrank.SketchedMatrix`.

    Test matrices are side by side, so that an update is multiplied once from each side. Those for
    products from the left, and their sketches, are stored as adjoints: all products are with tall
    matrices.
    """

    @in_full_precision
    def __init__(
        self,
        shape: tuple[int, int],
        rank: int,
        *,
        dtype: Any = None,
        like: Any = None,
        sketch_size: int | None = None,
        core_size: int | None = None,
        error_rows: int | None = None,
        rng: Any = None,
        failure_probability: float = 1e-9,
    ) -> None:
        home = _home(dtype, like)
        lengths: Any = shape
        if not isinstance(lengths, tuple | list) or len(lengths) != 2:
            raise ValueError(f"`shape` must be a pair of numbers, got {shape!r}.")
        m, n = (as_count(length, "shape") for length in lengths)
        self.shape, self.rank = (m, n), as_count(rank, "rank")
        alpha = 0 if xa.is_complex(home) else 1
        k = 4 * self.rank + alpha if sketch_size is None else as_count(sketch_size, "sketch_size")
        k = min(k, m, n)
        if k < min(self.rank, m, n):
            raise ValueError(f"`sketch_size` must be at least `rank`, {rank}, got {sketch_size}.")
        s = 2 * k + alpha if core_size is None else as_count(core_size, "core_size", least=k)
        q = 32 * (1 + alpha) if error_rows is None else as_count(error_rows, "error_rows", least=1)
        self.sketch_size, self.core_size, self.error_rows = k, s, q
        self._delta = as_failure_probability(failure_probability)

        xp, device = xa.array_namespace(home), xa.device_of(home)

        def draw(purpose: str, shape: tuple[int, int]) -> Array:
            return gaussian_source(rng, xp, device, purpose=f"stream: {purpose}")(shape, home.dtype)

        self._right = xp.concat([draw("range", (n, k)), draw("core, right", (n, s))], axis=1)
        self._left = xp.concat([draw("corange", (m, k)), draw("error", (m, q))], axis=1)
        self._core = draw("core, left", (m, s))
        self._Y = xa.zeros((m, k), home)  # A Ω
        self._XW = xa.zeros((n, k + q), home)  # Aᴴ [Υᴴ Θᴴ]
        self._Z = xa.zeros((s, s), home)  # Φ A Ψᴴ

        # `_added` is the sum of the norms of all updates and sums so far, to which rounding is
        # relative. The error sketch does not see some rounding errors, such as small pieces lost in
        # each sum, because it loses them too.
        self.norm = self._added = 0.0
        self._factors: Factors | None = None
        self._states = 0

    def _add(
        self, name: str, H: Operator, theta: complex, eta: complex, rows: slice = slice(None)
    ) -> Self:
        """``A ← θA + ηH`` for an H that is zero but for `rows`, which are given."""
        k = self.sketch_size
        theta, eta = _as_number(theta, "theta", self._Y), _as_number(eta, "eta", self._Y)
        of_rows, of_columns = H.matmat(self._right), H.rmatmat(self._left[rows, :])
        xa.same_place(self._Y, of_rows, names=("self", f"{name}.matmat(X)"))
        xa.same_place(self._Y, of_columns, names=("self", f"{name}.rmatmat(X)"))
        Z = xa.adjoint_matmul(self._core[rows, :], of_rows[:, k:])
        return self._combine(name, theta, eta, of_rows[:, :k], of_columns, Z, rows)

    def _combine(
        self, name: str, theta: complex, eta: complex, Y: Array, XW: Array, Z: Array, rows: slice
    ) -> Self:
        """``A ← θA + ηH`` by the sketches of H: they are linear. All must be finite."""
        xp, of_H, k = xa.array_namespace(Y), XW, self.sketch_size
        Y = theta * self._Y[rows, :] + eta * Y
        XW = theta.conjugate() * self._XW + eta.conjugate() * XW
        Z = theta * self._Z + eta * Z
        # ‖W‖_F/√q, of the new matrix and of H
        norm, added = (xa.safe_norm(X[:, k:]) / self.error_rows**0.5 for X in (XW, of_H))
        for X in (XW, Y, Z):
            norm = xp.where(xp.all(xp.isfinite(X)), norm, xp.full_like(norm, math.nan))
        norm, added = float(norm), float(added)
        if not (math.isfinite(norm) and math.isfinite(added)):
            raise ValueError(
                f"a product of `{name}` with the test matrices is not finite: it holds NaN or Inf, "
                "or a sketch overflows. The sketched matrix is unchanged."
            )
        self._Y = Y if Y.shape == self._Y.shape else xa.put(self._Y, (rows, ...), Y)
        self._XW, self._Z, self._factors = XW, Z, None
        self._added = abs(theta) * (self._added + self.norm) + abs(eta) * added
        self.norm = norm
        return self

    def _solved(self) -> Factors:
        """The approximation with all columns, and its error; computed once for each state."""
        if self._factors is None:
            self._factors = approximation(self)
            self._states += 1
        return self._factors


def approximation(A: Sketches) -> Factors:
    """``Â = Q C Pᴴ`` with bases Q of Y and P of Xᴴ, and C by least squares from both sides."""
    k = A.sketch_size
    Q, P = orthonormalize(A._Y).Q, orthonormalize(A._XW[:, :k]).Q
    left, right = xa.adjoint_matmul(A._core, Q), xa.adjoint_matmul(A._right[:, k:], P)
    # C = (ΦQ)⁺ Z ((ΨP)⁺)ᴴ
    C = xa.adjoint(_left_solve(right, xa.adjoint(_left_solve(left, A._Z))))
    U, S, V = robust_svd(C)
    U, V = Q @ U, P @ xa.adjoint(V)
    W = xa.adjoint(A._XW[:, k:])
    dropped = W @ V
    scale = xa.array_namespace(S).astype(S, U.dtype)
    kept = dropped - xa.adjoint_matmul(A._left[:, k:], U) * scale
    outside = float(xa.safe_norm(W - dropped @ xa.adjoint(V)))
    return Factors(U, S, xa.adjoint(V), kept, dropped, outside)


def _left_solve(M: Array, Z: Array) -> Array:
    """``M⁺ Z`` for a tall M of full rank."""
    Q, R = orthonormalize(M)
    return upper_solve(R, xa.adjoint_matmul(Q, Z))


def error(A: Sketches, found: Factors, rank: int) -> ErrorEstimate:
    """``‖Θ(A − Â)‖_F/√q`` for the leading `rank` columns of Â, and a bound on ``‖A − Â‖_F``."""
    k, q = A.sketch_size, A.error_rows
    # in the coordinates of the orthonormal V: no difference of large squares
    parts = xa.safe_norm(found.kept[:, :rank]), xa.safe_norm(found.dropped[:, rank:])
    value = math.hypot(found.outside, *map(float, parts)) / math.sqrt(q)
    # over k + 1 ranks and all states these sum to `failure_probability`
    delta = A._delta / (A._states * (A._states + 1) * (k + 1))
    factor = safety_factor(q, delta, is_complex=xa.is_complex(found.U))
    floor = rounding_floor(found.U, A.shape, k, A.norm, factor)
    bound = factor * (value + xa.eps(found.U) * A._added) + floor
    return ErrorEstimate(value, bound, "fro", q, A._delta)


def _as_number(value: Any, name: str, home: Array) -> complex:
    of_real = not xa.is_complex(home)
    if of_real and isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be real for real sketches, got {value!r}.")
    number = float(value) if of_real else complex(value)
    if not math.isfinite(abs(number)):
        raise ValueError(f"`{name}` must be finite, got {value!r}.")
    return number


def _home(dtype: Any, like: Any) -> Array:
    """An empty array of the library, device and dtype of the sketches."""
    of_numpy, like = like is None, np.empty(0) if like is None else like
    if not xa.is_array_api_obj(like):
        raise TypeError(f"`like` must be an array, got {type(like).__name__}.")
    dtype = like.dtype if dtype is None else dtype
    try:
        home = xa.array_namespace(like).empty((0, 0), dtype=dtype, device=xa.device_of(like))
    except TypeError:
        if not of_numpy:
            raise
        raise TypeError(
            f"`dtype` is not a NumPy dtype, got {dtype!r}; give `like`, an array of its library."
        ) from None
    return xa.as_matrix(home, name="like")[0]
