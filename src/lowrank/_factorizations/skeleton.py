"""Approximations by columns of A itself: their errors, and the rank for a tolerance."""

import math
import sys
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lowrank._array import Array, adjoint, array_namespace, eps, max_abs
from lowrank._factorizations.truncate import distance, parts_of, with_bound
from lowrank._linalg.panel import orthonormalize
from lowrank._linalg.pivots import Pivoted, as_indices, norm_of, pivoted_qr, tails
from lowrank._linalg.small_svd import refuse_infinite
from lowrank._operators import Operator
from lowrank._rangefinder.found import Found, find, projection, refined
from lowrank._rangefinder.state import Work
from lowrank.results import Outcome

# The factor on the goals of growth at first, and the smallest after halving it.
SHARE, LEAST_SHARE = 0.7, 0.02
# Bases to try, and ranks to try for each of them.
ROUNDS, ATTEMPTS = 3, 6


class Columns:
    """Columns of A, each read once, with the library, dtype and device of `like`."""

    def __init__(self, A: Operator, like: Operator, work: Work) -> None:
        self._A = replace(A, xp=like.xp, dtype=like.dtype, device=like.device)
        self._place: dict[int, int] = {}  # of each column that was read, in `_block`
        self._block = self._A.empty(A.shape[0])
        self._work = work

    def __call__(self, indices: list[int]) -> Array:
        """``A[:, indices]``, a copy."""
        xp = self._A.xp
        missing = [j for j in indices if j not in self._place]
        if missing:
            fresh = self._A.columns(as_indices(missing, self._block))
            self._block = xp.concat([self._block, fresh], axis=1)
            self._place |= {j: len(self._place) + i for i, j in enumerate(missing)}
            if self._A.array is None:
                self._work.add(len(missing))
        places = as_indices([self._place[j] for j in indices], self._block)
        return xp.take(self._block, places, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """``A = Q B / scale + E`` with ``‖E‖ ≤ residual + floor``, and the pivots of B."""

    Q: Array
    B: Array
    scale: float
    pivoted: Pivoted
    columns: Columns
    rows: Columns  # of the adjoint
    norm: str
    residual: float
    estimate: float
    floor: float
    fixed: bool  # whether the rank is fixed
    array: Operator | None = None  # A, where it is an array and the error can be computed


@dataclass(frozen=True, slots=True)
class Built:
    """An approximation, and its error: `parallel` in the range of Q, and `across` it."""

    factors: tuple[Any, ...]
    rank: int
    parallel: float
    error: float
    bound: float
    # The parts of the bound that more columns do not change
    across: float
    floor: float


Build = Callable[[Sketch, int], Built]  # an approximation of this rank


def errors_of(
    sketch: Sketch, L: Array, G: Array, T: Array, *, lost: float, factors: tuple[Any, ...]
) -> Built:
    """Errors of ``A ≈ L T / scale``, for L with ``G = QᴴL``.

    With ``A = QB + E`` (scaled alike) and the ranges of Q and E orthogonal,

        A − L T = Q (B − G T) + (E − (L − QG) T),   ‖A − L T‖ ≤ hypot(‖B − G T‖, e + ‖(L − QG) T‖)

    in both norms. Everything but ``‖E‖ ≤ e`` is computed. For an array and the Frobenius norm,
    ``‖A − L T‖`` itself is computed. `lost` is the rounding error of the product.
    """
    parallel = norm_of(sketch.B - G @ T, sketch.norm) / sketch.scale
    floor = sketch.floor + lost / sketch.scale
    if sketch.array is not None:
        error = distance(sketch.array, L, T, sketch.scale)
        bound = error * (1.0 + 32.0 * eps(L)) + floor
        across = math.sqrt(max(0.0, error - parallel)) * math.sqrt(error + parallel)
    else:
        residual = orthonormalize(L - sketch.Q @ G).R @ T
        outside = norm_of(residual, sketch.norm) / sketch.scale
        across = sketch.residual + outside
        bound = math.hypot(parallel, across) + floor
        error = min(math.hypot(parallel, sketch.estimate, outside), bound)
    return Built(factors, L.shape[1], parallel, error, bound, across, floor)


def approximate(
    A: Operator, rank: int | None, build: Build, **options: Any
) -> tuple[Built, Outcome]:
    """The approximation that `build` makes from a sketch of A, of a fixed rank or to a tolerance.

    The basis is first certified to a part of the tolerance. If no rank meets the tolerance with
    this basis, it grows to a smaller part.
    """
    if A.is_stack:
        raise ValueError(
            f"`A` must be a single matrix, got a stack of shape {A.shape}; loop over its matrices."
        )
    options["overwrite_a"] = False  # columns of A are needed at the end
    found = find(A, rank, share=SHARE, powers=2, **options)
    # the products of an operator decide its library, device and dtype
    like, work = found.state.A, found.problem.work
    reads = Columns(A, like, work), Columns(A.adjoint(), like, work)
    if found.fixed:
        sketch, found = _sketch(found, *reads)
        outcome = found.outcome
        built = build(sketch, outcome.rank)
    else:
        built, outcome = _to_tolerance(found, rank, build, reads)
    return built, replace(outcome, passes=work.passes, products=work.products)


def _to_tolerance(
    found: Found, rank: int | None, build: Build, reads: tuple[Columns, Columns]
) -> tuple[Built, Outcome]:
    share = SHARE
    for _ in range(ROUNDS):
        sketch, found = _sketch(found, *reads)
        outcome = found.outcome
        before = found.basis.rank
        most = len(sketch.pivoted.indices)
        most = most if rank is None else min(most, rank)
        tolerance = outcome.tolerance
        assert tolerance is not None
        k, built = _smallest(sketch, build, tolerance, most)
        if outcome.error is None or built.bound <= tolerance or k == rank:
            break
        while found.basis.rank == before and share > LEAST_SHARE:
            share *= 0.5
            found = refined(found, share)
        if found.basis.rank == before:
            break
    if outcome.error is None:
        return built, replace(outcome, rank=built.rank)
    found = found._replace(outcome=outcome)
    return built, with_bound(found, built.rank, rank, built.error, built.bound)


def _sketch(found: Found, columns: Columns, rows: Columns) -> tuple[Sketch, Found]:
    Q = found.basis.Q if found.fixed else found.basis.columns()
    found, C, before = projection(found)
    refuse_infinite(C)
    outcome, norm = found.outcome, found.problem.norm
    largest = 2.0 ** (math.frexp(float(array_namespace(C).finfo(C.dtype).max))[1] - 2)
    unit = max(1.0 / largest / before, min(scale_of(C), largest / before))
    B = adjoint(C * unit)
    scale = before * unit
    residual = estimate = floor = 0.0
    if outcome.error is not None:
        residual, estimate = parts_of(found, lambda: norm_of(B, "fro") / scale)
        floor = found.floor
    sketch = Sketch(
        Q=Q, B=B, scale=scale, pivoted=pivoted_qr(B), columns=columns, rows=rows, norm=norm,
        residual=residual, estimate=estimate, floor=floor, fixed=found.fixed,
        array=found.state.A if norm == "fro" and outcome.certificate == "exact" else None,
    )  # fmt: skip
    return sketch, found


def lost_in(sizes: Array, T: Array, terms: int) -> float:
    """Rounding error of a product L T with sums of `terms` terms; `sizes` are column norms of L.

    ``½ eps √(terms + 8) ‖diag(sizes) T‖_F``. Measured on matrices of the gallery, with 2 to 190
    terms, over dtypes and libraries: at most a third of this for two terms, a quarter for more.
    """
    return 0.5 * eps(T) * math.sqrt(terms + 8) * norm_of(array_namespace(T).abs(T) * sizes, "fro")


def scale_of(X: Array) -> float:
    """A power of two, within the dtype, that scales the largest entry to about one."""
    limit = math.frexp(float(array_namespace(X).finfo(X.dtype).max))[1]
    exponent = math.frexp(max_abs(X))[1]
    return 2.0 ** max(-(limit - 2), min(-exponent, limit - 16))


def _smallest(sketch: Sketch, build: Build, tolerance: float, most: int) -> tuple[int, Built]:
    """The smallest rank, at most `most`, whose bound meets the tolerance, and its approximation.

    The tails of the pivoted QR predict, up to a factor, the part of the error that depends on the
    rank. Each try measures that factor, and the tries close in on the rank from both sides.
    """
    tail = tails(sketch.pivoted, sketch.norm)

    def predict(built: Built | None, k: int) -> int:
        factor, across, floor = 1.0, 1.25 * sketch.residual, sketch.floor
        if built is not None:
            factor = built.parallel / max(tail(k) / sketch.scale, sys.float_info.min)
            across, floor = built.across, built.floor
        rest = tolerance - floor
        if not across < rest:
            return most
        rest = math.sqrt(rest - across) * math.sqrt(rest + across)
        # the first k with a small tail, or `most`
        return bisect_left(range(most), True, key=lambda k: factor * tail(k) / sketch.scale <= rest)

    fails, k = -1, predict(None, 0)
    best: tuple[int, Built] | None = None
    for _ in range(ATTEMPTS):
        built = build(sketch, k)
        if built.bound <= tolerance:
            best = k, built
        else:
            fails = k
            if best is None and k == most:
                return k, built
        upper = most if best is None else best[0] - 1
        expected = predict(built, k)
        if upper <= fails or (best is not None and expected > upper):
            break
        k = min(max(expected, fails + 1), upper)
    if best is None:
        return most, build(sketch, most)
    return best
