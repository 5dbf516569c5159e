"""Randomized range finder: at a fixed rank, or grown until a certified error is small enough."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from lowrank._array import (
    Array,
    array_namespace,
    device_of,
    is_complex,
    is_finite,
    rows_below,
    safe_norm,
)
from lowrank._check import as_block_size, as_count, as_failure_probability, as_norm
from lowrank._dot_test import check_adjoint
from lowrank._operator import Operator, as_operator
from lowrank._panel import Basis, orthonormalise, reflectors
from lowrank._sharded import Shards, shards_of
from lowrank._sketch import TestMatrix
from lowrank._stoprule import StopRule
from lowrank.certificate import (
    norm_of_product,
    rounding_floor,
    safety_factor,
    spectral_norm,
    spread_factor,
)
from lowrank.householder import CompactWY, reflect
from lowrank.results import ConvergenceWarning, Look, RangeFinderResult, Status

__all__ = [
    "Iterated",
    "RangeFinder",
    "block_krylov",
    "find",
    "range_finder",
    "subspace_iteration",
    "warn_unless_converged",
]

Norm = Literal["fro", "spectral"]
NOT_FINITE = (
    "a product of `A` with the test matrix is not finite: it overflows, or one of them holds NaN "
    "or Inf."
)
# Part of a column of a Krylov space that must not lie in the span of the others.
LEAST_NEW = 0.01
Side = Literal["left", "right"]
Callback = Callable[[Look], object]
Product = Callable[[Array], Array]


class Iterated(NamedTuple):
    """A sample of the residual after power iterations."""

    block: Array  # what joins the basis
    last: Array  # the sample itself
    factors: list[Array]  # triangular factors that were divided out


class RangeFinder:
    """A growing orthonormal basis of the range of A, kept as Householder reflectors.

    The object can be asked again: for more columns (:meth:`extend`), or for a smaller tolerance
    (:meth:`reach`). What was computed is kept, also the last sample that was looked at, and all
    looks together share one failure probability.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n)
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Stacks
        only for :meth:`extend`; each member gets its own test matrix. Or a sparse matrix of SciPy,
        CuPy or PyTorch. Or an operator: any object with `shape`, `dtype`, ``matmat(X)`` and
        ``rmatmat(Y)``, which multiply by A and by its conjugate transpose. The first product tells
        the library, device and dtype of the result; the first test matrix is a NumPy array unless
        `dtype`, or an attribute `device`, belongs to torch or CuPy. ‖A‖_F of an operator is not
        known: a lower bound stands for it, which makes `rtol` the stricter.
    norm : {"fro", "spectral"}
        Norm of every tolerance, error and bound.
    power_iterations : int, optional
        Products with ``A Aᴴ`` that each block goes through, deflated and orthonormalised after
        every product. Default: 0 in the Frobenius norm and 1 in the spectral norm; with `krylov`,
        at least 1.
    krylov : bool
        Keep the block as it was before each of its power iterations too: a block Krylov space, of
        ``power_iterations + 1`` times the columns for the same products with A. Its error is never
        larger, and for slowly falling singular values much smaller. Meant for factorizations of a
        fixed rank, which cut the basis: to a tolerance it takes fewer products to let it grow. Of
        more equal singular values than a block has columns, only as many are found.
    block_size : int, optional
        Panel width of the Householder QR; by default 64 on a CPU and 128 elsewhere.
    side : {"left", "right"}
        Basis of the range of A (left, m rows) or of its corange (right, n rows).
    test_matrix : array or callable, optional
        Test matrix to use instead of a random one, with n rows (m for the corange). An array is
        used up from left to right. A callable ``(shape, dtype, device) -> array`` is asked once
        per block. With a tolerance the caller vouches that it is standard Gaussian
        (E|ω|² = 1 if complex) and independent of A.
    rng : None, int, numpy.random.Generator or native generator
        As in SPEC 7. With an integer, the same library on the same device model repeats the
        result. For a matrix that was projected by a basis found at a fixed rank, pass another seed
        than the basis was found with; and no native generator that was reset to the same state.
    failure_probability : float
        Probability, over all looks of this object, that any error bound is too small.
    check : bool
        Of an operator or a sparse matrix, test first whether `rmatmat` is the adjoint of `matmat`,
        by ``⟨y, A x⟩ = ⟨Aᴴ y, x⟩`` for four Gaussian x and y, and raise a :exc:`ValueError` if it
        is not. One pass with A and one with Aᴴ, which the results do not count.
    check_finite : bool
        At fixed rank, read one flag from the device at the end; if it tells of numbers that are
        not finite, raise if A holds them (or is an operator), else repeat with scaled products.
        With a tolerance the norm of A tells, or of an operator each sample, whatever is chosen.
    callback : callable, optional
        Called with a :class:`~lowrank.results.Look` after each look. Raising
        :exc:`StopIteration` ends the work cleanly; the object stays usable after any other
        exception too.

    Attributes
    ----------
    Q : array, shape (m, rank)
        The basis, formed at each request (2m·rank² flops).
    rank : int
        Columns of the basis.

    Raises
    ------
    TypeError
        If A is no array, sparse matrix or operator of floating dtype, or `rng` or `test_matrix`
        belongs elsewhere.
    ValueError
        If an option is out of range, or `check` finds that `rmatmat` is not the adjoint.

    Notes
    -----
    Cost, memory and sources are those of :func:`range_finder`. Does not support derivatives.

    Examples
    --------
    >>> import lowrank
    >>> from lowrank import gallery
    >>> A = gallery.matrix(gallery.fast(200), rng=0)
    >>> finder = lowrank.RangeFinder(A, rng=1)
    >>> loose = finder.reach(rtol=1e-2).result()
    >>> tight = finder.reach(rtol=1e-8).result()
    >>> loose.rank < tight.rank, tight.converged
    (True, True)
    """

    def __init__(
        self,
        A: Array,
        /,
        *,
        norm: Norm = "fro",
        power_iterations: int | None = None,
        krylov: bool = False,
        block_size: int | None = None,
        side: Side = "left",
        test_matrix: Any = None,
        rng: Any = None,
        failure_probability: float = 1e-9,
        check: bool = False,
        check_finite: bool = True,
        callback: Callback | None = None,
    ) -> None:
        if side not in ("left", "right"):
            message = f"`side` must be 'left' (range) or 'right' (corange), got {side!r}."
            raise ValueError(message)
        self._norm = as_norm(norm)
        self._delta = as_failure_probability(failure_probability)
        krylov = bool(krylov)
        if power_iterations is None:
            power_iterations = 1 if norm == "spectral" or krylov else 0
        self._power_iterations = as_count(power_iterations, "power_iterations")
        if krylov and power_iterations == 0:
            message = "`krylov` keeps the blocks of power iterations: give at least one of them."
            raise ValueError(message)
        # Columns of the basis for each column multiplied, and for each that waits to join it.
        self._depth = self._power_iterations + 1 if krylov else 1
        self._unfolded = self._depth if norm == "fro" else 1
        A = as_operator(A)
        if check:
            check_adjoint(A, rng)
        A = A if side == "left" else A.adjoint()
        self._side = side
        self._test_matrix = TestMatrix(A, test_matrix, rng)
        self._check_finite = check_finite
        self._callback = callback
        self._asked_block_size = block_size
        self._settle(A)
        self._scale = 1.0  # on all products; another power of two where they would overflow
        self._frobenius = math.nan  # until it is needed
        self._norm_A = math.nan
        self._norm_above = math.nan  # where ‖A‖_F is known from samples only
        self._rule: StopRule | None = None  # the last one that work has ended with
        self._probed = False
        self._status = Status.RANK_REACHED
        self._history: list[Look] = []
        self._sampled_looks = self._passes = self._products = 0

    def _settle(self, A: Operator) -> None:
        """Begin without columns, where the products of A live."""
        self._A = A
        empty = A.empty(A.shape[-2])
        self._block_size = as_block_size(self._asked_block_size, empty)
        # The basis of the first block, until its reflectors are needed.
        self._first: Array | None = None
        self._reflectors: tuple[CompactWY, tuple[Array, ...]] = CompactWY.identity(empty), ()
        # Columns drawn but not yet in the basis: rows `rank` and on of QᴴAΩ.
        self._pending = empty
        # Columns of AΩ that no look has been taken at, and whether Ω is complex.
        self._ahead = empty, self._A.is_complex
        self._limits = A.xp.finfo(A.dtype)
        self._epsilon = float(self._limits.eps)

    @property
    def rank(self) -> int:
        first, (wy, _) = self._first, self._reflectors
        return wy.columns if first is None else int(first.shape[-1])

    @property
    def Q(self) -> Array:
        first = self._first
        return self.basis() if first is None else self._A.xp.asarray(first, copy=True)

    def basis(self) -> Array:
        """:attr:`Q`, maybe shared with this object."""
        if self._first is not None:
            return self._first
        wy, D = self._reflectors
        return wy.thin(D)

    @property
    def _wy(self) -> CompactWY:
        if self._first is not None:
            V, T, D = reflectors(self._first)
            self._first, self._reflectors = None, (CompactWY(V, T), (D,))
        return self._reflectors[0]

    def __repr__(self) -> str:
        shape = "×".join(map(str, self._A.shape))
        return f"RangeFinder({shape}, rank={self.rank}, norm={self._norm!r}, {self._status.name})"

    def result(self) -> RangeFinderResult:
        """The basis found so far. Error and bound are those of the last look."""
        return RangeFinderResult(Q=self.Q, side=self._side, **self.outcome())

    def outcome(self) -> dict[str, Any]:
        """The fields that all results share, for the basis found so far."""
        last = self._history[-1] if self._history else None
        return {
            "status": Status.CONVERGED if self._is_converged() else self._status,
            "converged": self._is_converged(),
            "tolerance": self._tolerance,
            "error": None if last is None else last.estimate,
            "error_bound": None if last is None else last.bound,
            "norm_A": None if math.isnan(self._norm_A) else self._norm_A,
            "rank": self.rank,
            "passes": self._passes,
            "products": self._products,
            "history": tuple(self._history),
        }

    @property
    def _tolerance(self) -> float | None:
        return None if self._rule is None else self._rule.tolerance(self._norm_A)

    def _is_converged(self) -> bool | None:
        if self._tolerance is None:
            return None
        return bool(self._history) and self._history[-1].bound <= self._tolerance

    def agreed_rank(self, rank: int) -> int:
        """The rank that all processes cut to."""
        return int(self._A.agreed(float(rank)))

    def image(self, Q: Array) -> Array:
        """``AᴴQ`` (n×rank): the adjoint of B = QᴴA, in one pass."""
        self._passes += 1
        self._products += self.rank
        return self._A.rmatmat(Q)

    def extend(self, columns: int, /) -> "RangeFinder":
        """Add `columns` columns (fewer where min(m, n) ends them) and return the object.

        One block: one product with A, two more for each power iteration, no look at the error.

        Raises
        ------
        ValueError
            If A holds NaN or Inf (found only with `check_finite`), or the test matrix has too few
            columns left.
        """
        columns = as_count(columns, "columns")
        room = min(self._A.shape[-2:]) - self.rank
        status = Status.FULL_RANK if columns > room else Status.RANK_REACHED
        columns = min(columns, room)
        missing = columns - self._unfolded * self._pending.shape[-1]
        first = self.rank == 0 and self._pending.shape[-1] == 0
        with np.errstate(over="ignore", invalid="ignore"):
            if missing > 0:
                if first:
                    self._begin_with(missing)
                else:
                    self._extend_by(missing, columns)
            elif columns > 0:
                self._absorb(columns)
        self._status = status
        return self

    def _draw(self, columns: int) -> Array:
        Omega = self._test_matrix.draw(columns)
        if Omega.shape[-1] < columns:
            message = f"`test_matrix` has {columns - Omega.shape[-1]} columns too few."
            raise ValueError(message)
        return Omega

    def _begin_with(self, columns: int) -> None:
        # No name is given to a sketch or a test matrix, so that they are freed while Q is made.
        q, matmat, rmatmat = self._power_iterations, self._matmat, self._rmatmat
        width, iterate = -(-columns // self._depth), subspace_iteration  # `partial` would keep it
        if self._depth > 1:
            iterate = partial(block_krylov, columns=columns)
        if self._A.far is not None:
            iterate = partial(iterate, far_qr=self._A.far.orthonormalise)
        Q = iterate(matmat(self._draw(width)), matmat, rmatmat, q)
        # Read last, so that the host never waits before all of the work is under way.
        if self._check_finite and not self._is_finite(Q):
            self._measure()
            Omega = self._test_matrix.again(width)
            Q = self._rescued(Q, iterate(matmat(Omega), matmat, rmatmat, q))
        self._first = Q

    def _extend_by(self, missing: int, columns: int) -> None:
        missing = -(-missing // self._depth)
        block = self._block(self._draw(missing))
        before = self._reflectors, self._pending
        self._keep(block)
        self._absorb(columns)
        if not self._check_finite or self._is_finite(block):
            return
        self._reflectors, self._pending = before
        self._measure()
        self._keep(self._rescued(block, self._block(self._test_matrix.again(missing))))
        self._absorb(columns)

    def _rescued(self, block: Array, rescued: Array) -> Array:
        """`rescued`, from scaled products, where a member of the stack `block` is not finite.

        Members that were finite stay: the scale of the others may be too small there.
        """
        xp, matrix = self._A.xp, (-2, -1)
        was_finite = xp.all(xp.isfinite(block), axis=matrix, keepdims=True)
        block = xp.where(was_finite, block, rescued)
        if self._A.is_stack:
            self._scale = 1.0
        if not self._is_finite(block):
            raise ValueError(NOT_FINITE)
        return block

    def _is_finite(self, X: Array) -> bool:
        return bool(self._A.agreed(float(is_finite(X))))

    def reach(
        self, *, rtol: float | None = None, atol: float | None = None, rank: int | None = None
    ) -> "RangeFinder":
        """Grow until the error bound is below ``max(rtol · ‖A‖, atol)``, and return the object.

        Parameters
        ----------
        rtol, atol : float, optional
            At least one. `rtol` is relative to ‖A‖ in the chosen norm (in the spectral norm, and
            for operators, to a lower bound on it).
        rank : int, optional
            Cap on the rank of the basis.

        Raises
        ------
        ValueError
            If A is a stack, holds NaN or Inf, or the stop rule is not a valid one.

        Warns
        -----
        ConvergenceWarning
            If the tolerance could not be certified.
        """
        self.run(rtol=rtol, atol=atol, rank=rank)
        warn_unless_converged(self.outcome())
        return self

    def run(
        self, *, rtol: float | None, atol: float | None, rank: int | None, goal: float = 1.0
    ) -> None:
        """:meth:`reach` without the warning, aiming at `goal` times the tolerance.

        Where that goal is out of reach, the tolerance itself is enough to have converged.
        """
        rule = StopRule.parse(
            rtol=rtol, atol=atol, rank=rank, full=min(self._A.shape[-2:]), goal=goal
        )
        if self._A.is_stack:
            message = (
                f"a tolerance needs a single matrix, got a stack of shape {self._A.shape}; give a "
                "fixed rank, or loop over the matrices."
            )
            raise ValueError(message)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self._A.norm is not None and math.isnan(self._frobenius):
                self._measure()
            if 0 in self._A.shape:
                self._norm_A = self._norm_above = 0.0
            elif self._A.norm is None and not self._probed:
                self._probe()
            if self.rank == 0 and not self._history and not math.isnan(self._norm_A):
                # Without a basis the error is the norm itself; that look costs no sample.
                self._record(self._norm_A, self._norm_bound())
            self._rule, self._status = rule, self._grow(rule)

    @property
    def norm_is_exact(self) -> bool:
        """Whether ‖A‖ in the chosen norm is known, and not only a lower bound on it."""
        return self._norm == "fro" and self._A.norm is not None

    def learn_norm(self, C: Array) -> None:
        """‖A‖_F is at least that of ``C = AᴴQ``: a sharper bound than that of a sample."""
        if self._rule is not None and self._norm_is_sampled:
            lower = float(safe_norm(C)) * (1.0 - 32.0 * self._epsilon)
            self._norm_A = max(self._norm_A, lower)

    @property
    def _norm_is_sampled(self) -> bool:
        return self._norm == "fro" and self._A.norm is None

    def _grow(self, rule: StopRule) -> Status:
        while True:
            if self._history:
                last = self._history[-1]
                status = rule.decide(last, self.rank, self._norm_A, self.floor())
                if status is not None:
                    return status
                if last.rank == self.rank:
                    if self._pending.shape[-1] == 0:
                        self._keep(self._unseen_block(rule.full - self.rank))
                    if self._pending.shape[-1] == 0:
                        return Status.STOPPED
                    waiting = self._unfolded * self._pending.shape[-1]
                    self._absorb(min(waiting, rule.limit - self.rank), drop=self._depth > 1)
                    continue
            if self.rank == self._A.shape[-2]:  # the basis spans everything; nothing to sample
                if math.isnan(self._norm_A):
                    self._norm_A = self._bound_norm_below(self.Q)
                    self._norm_above = self._norm_A * (1.0 + 64.0 * self._epsilon)
                self._record(0.0, self.floor())
            else:
                width = self._look_width()
                sample, of_complex = self._fresh_sample(width, self._missing(rule, width))
                if sample.shape[-1] == 0:
                    return Status.STOPPED
                self._look(sample, of_complex)
            if self._is_stopped():
                return Status.STOPPED

    def _is_stopped(self) -> bool:
        """What the callback says; that of the first process, for all go on or none."""
        is_stopped = False
        try:
            if self._callback is not None:
                self._callback(self._history[-1])
        except StopIteration:
            is_stopped = True
        return bool(self._A.agreed(float(is_stopped)))

    def _look_width(self) -> int:
        # 64 real or 32 complex samples bound the error within a factor of 2.02 at 1e-9. Looks
        # widen with the basis, so that they stay few and the products wide.
        least = 32 if self._A.is_complex else 64
        return least * (1 + self.rank // (8 * least))

    def _unseen_block(self, most: int) -> Array:
        """Columns for the basis without a look at them, at most as many as are missing.

        In the Frobenius norm, whose first look may have no sample; in the spectral norm that of the
        last look waits. The sample of the next look is multiplied along with them: a product is the
        faster for being wide.
        """
        width = min(self._look_width(), -(-most // self._depth))
        seen = self._look_width() if width < self._A.shape[-2] - self.rank else 0
        Omega = self._test_matrix.draw(width + seen)
        Y = self._matmat(Omega)
        width = min(width, Y.shape[-1])  # a given test matrix may have run out
        self._ahead = Y[..., width:], is_complex(Omega)
        return self._deflated(Y[..., :width])

    def _fresh_sample(self, columns: int, missing: int) -> tuple[Array, bool]:
        """Rows `rank` and on of QᴴAΩ, for an Ω that nothing in the basis depends on.

        And whether Ω is complex: a complex operator may be given a real one to begin with. If
        columns have to be multiplied, then also the `missing` ones that are expected to join the
        basis before the end.
        """
        Y, of_complex = self._ahead
        if Y.shape[-1] == 0:
            Omega = self._test_matrix.draw(columns + missing)
            if Omega.shape[-1] == 0:
                return self._A.empty(self._A.shape[-2] - self.rank), of_complex
            Y, of_complex = self._matmat(Omega), is_complex(Omega)
        columns = min(columns, Y.shape[-1])  # a given test matrix may have run out
        # copied, so that the columns that are used up are freed
        self._ahead = self._A.xp.asarray(Y[..., columns:], copy=True), of_complex
        return self._deflated(Y[..., :columns]), of_complex

    def _missing(self, rule: StopRule, look: int) -> int:
        """Columns that the basis lacks, by the decay between the last two looks; whole looks.

        Geometric decay, which most spectra fall behind, so that few products are in vain; and no
        more than there are columns already.
        """
        if self._norm == "spectral" or len(self._history) < 2:
            return 0
        (before, last), goal = self._history[-2:], rule.goal * rule.tolerance(self._norm_A)
        # a bound is about twice the estimate
        if not 0.0 < goal < 2.0 * last.estimate < 2.0 * before.estimate or last.rank == before.rank:
            return 0
        decay = math.log(before.estimate / last.estimate) / (last.rank - before.rank)
        expected = last.rank + math.log(2.0 * last.estimate / goal) / decay - self.rank
        most = min(self.rank, rule.limit - self.rank)
        return look * int(max(0.0, min(expected, most)) // (look * self._unfolded))

    def _look(self, sample: Array, of_complex: bool) -> None:
        """Measure the error of the basis on a fresh sample, which then waits to join the basis.

        The sample ``E Ω``, with the residual E as rows `rank` and on of QᴴA, is independent of the
        basis. In the spectral norm ``‖(E Eᴴ)^q E Ω‖₂`` bounds the (2q+1)-th power of ‖E‖₂ just as
        ``‖E Ω‖₂`` bounds ‖E‖₂.
        """
        samples = sample.shape[-1]
        root = 1.0
        if self._norm == "fro":
            size = float(safe_norm(sample))
        else:
            if self._A.norm is None and not is_finite(sample):
                raise ValueError(NOT_FINITE)
            if math.isnan(self._norm_A):
                self._norm_A = self._bound_norm_below(sample)
            root = 1.0 / (2 * self._power_iterations + 1)
            iterated = self._iterate(sample)
            sample, factors = iterated.block, iterated.factors
            factors.append(orthonormalise(iterated.last).R)
            size = norm_of_product(factors, self._A.xp, root)
        size = self._A.agreed(size)
        if not math.isfinite(size):
            raise ValueError(NOT_FINITE)
        self._sampled_looks += 1
        # δ/(j(j+1)) for the j-th look: they sum to δ, however many looks there will be. A norm that
        # is sampled takes half of δ.
        delta = self._delta / (2.0 if self._norm_is_sampled else 1.0)
        delta /= self._sampled_looks * (self._sampled_looks + 1)
        factor = safety_factor(samples, delta, is_complex=of_complex)
        estimate = size / self._scale / math.sqrt(samples) ** root
        if self._norm_is_sampled and math.isnan(self._norm_A):
            self._sample_norm(sample, of_complex, estimate, estimate * factor)
        bound = estimate * factor**root + self.floor(factor)
        if self._norm == "fro" and not self._norm_is_sampled:
            bound = min(bound, self._norm_bound())
        self._keep(sample)
        self._record(min(estimate, bound), bound)

    def _sample_norm(self, sample: Array, of_complex: bool, estimate: float, bound: float) -> None:
        """Bounds on ‖A‖_F from below and above, of an operator that is known by its products."""
        spread = spread_factor(sample.shape[-1], self._delta / 2.0, is_complex=of_complex)
        found = self._bound_norm_below(sample)
        if self.rank == 0:
            self._norm_A, self._norm_above = max(estimate / spread, found), bound
        else:  # ‖A‖² = ‖QᴴA‖² + ‖E‖², and the sample is one of the residual E
            self._norm_A = math.hypot(found, estimate / spread)
            self._norm_above = math.hypot(found * (1.0 + 64.0 * self._epsilon), bound)

    def _record(self, estimate: float, bound: float) -> None:
        self._history.append(Look(self.rank, estimate, bound))

    def _norm_bound(self) -> float:
        """‖A‖_F, and what its own summation may have lost."""
        return self._norm_A * (1.0 + 32.0 * self._epsilon)

    def floor(self, factor: float = 1.0) -> float:
        """What rounding may add to the error of this basis, where samples carry this factor."""
        norm = self._norm_above if self._norm_is_sampled else self._norm_A
        norm += self._A.offset
        return rounding_floor(self._limits, self._A.shape, self.rank, norm, factor)

    def _bound_norm_below(self, sample: Array) -> float:
        """A lower bound on ‖A‖: ``‖AᴴY‖`` for orthonormal columns Y near the leading ones."""
        if self.rank == 0:
            Y = orthonormalise(sample).Q
        elif self._norm == "fro":
            Y = self.Q
        else:
            Y = self.Q[:, : min(self.rank, sample.shape[-1])]
        C = self._rmatmat(Y)
        if self._A.far is not None:
            C = self._A.far.orthonormalise(C).R
        if self._A.norm is None and not is_finite(C):
            raise ValueError(NOT_FINITE)
        if self._norm == "fro":
            return float(safe_norm(C)) * (1.0 - 32.0 * self._epsilon)
        lower = self._A.agreed(float(spectral_norm(C, self._A.xp))) / self._scale
        if self._A.norm is None:
            return lower
        return max(lower, self._frobenius / math.sqrt(min(self._A.shape)))

    # -- blocks ---------------------------------------------------------------------------------

    def _matmat(self, X: Array) -> Array:
        self._passes += 1
        self._products += X.shape[-1]
        Y = self._A.matmat(X if self._scale == 1.0 else X * self._scale)
        if self._A.norm is None and self.rank == 0 and self._pending.shape[-1] == 0:
            Y = self._adopt(Y)
        return Y

    def _adopt(self, Y: Array) -> Array:
        """Move to the library, device and dtype of the first product with an operator."""
        xp = array_namespace(Y)
        A = replace(self._A, xp=xp, dtype=Y.dtype, device=device_of(Y))
        if (xp, A.dtype, A.device) != (self._A.xp, self._A.dtype, self._A.device):
            self._test_matrix.move(A)
            self._settle(A)
        return Y

    def _rmatmat(self, X: Array) -> Array:
        self._passes += 1
        self._products += X.shape[-1]
        return self._A.rmatmat(X if self._scale == 1.0 else X * self._scale)

    def _deflated(self, Y: Array) -> Array:
        """Rows `rank` and on of QᴴY; of ``Y = AΩ`` they are a sample of the residual."""
        return self._wy.apply_adjoint(Y)[..., self.rank :, :]

    def _block(self, Omega: Array) -> Array:
        """A sample as it waits: after its power iterations in the spectral norm, whose look needs
        them, and before them in the Frobenius norm, whose look does not.
        """
        sample = self._deflated(self._matmat(Omega))
        return self._iterate(sample).block if self._norm == "spectral" else sample

    def _keep(self, block: Array) -> None:
        """Let `block` wait to join the basis."""
        if self._pending.shape[-1] == 0:
            self._pending = block
        else:
            self._pending = self._A.xp.concat([self._pending, block], axis=-1)

    def _iterate(self, sample: Array) -> Iterated:
        """Power iterations on a sample.

        Each product with A is deflated (the basis projected out of it); otherwise the block would
        fall back into the directions already found, and what is sought would be lost in rounding
        at the level of ε^{1/(2q+1)}.
        """
        factors, earlier = [], []
        for _ in range(self._power_iterations):
            left = orthonormalise(sample)
            Y = self._wy.apply(rows_below(left.Q, self.rank))
            right = self.far_qr(self._rmatmat(Y))
            sample = self._deflated(self._matmat(right.Q))
            factors += [left.R, right.R]
            earlier.append(left.Q)
        last = sample
        if self._depth > 1:  # the best first, since what comes last may be cut off
            sample = self._A.xp.concat([last, *reversed(earlier)], axis=-1)
        return Iterated(sample, last, factors)

    def far_qr(self, X: Array) -> Basis:
        """QR of a product with Aᴴ, of which each process may have some rows."""
        return orthonormalise(X) if self._A.far is None else self._A.far.orthonormalise(X)

    def _absorb(self, columns: int, *, drop: bool = False) -> None:
        """Let waiting columns join the basis, which grows by `columns`.

        Fewer if it may `drop` some of a Krylov space: those that are nearly dependent on others,
        as where a cluster of singular values is larger than the block. What is new in them is
        mostly rounding, and need not lie in the range of A.
        """
        waiting = -(-columns // self._unfolded)
        block, rest = self._pending[..., :waiting], self._pending[..., waiting:]
        if self._norm == "fro":
            block = self._iterate(block).block[..., :columns]
        elif self._depth > 1:
            # what is left of a Krylov space lies nearly in the part that joins
            rest = rest[..., :0]
        wy, (_, D) = self._wy, self._reflectors
        lower = reflect(block, self._block_size)
        if drop:
            xp, size = self._A.xp, self._A.xp.linalg.vector_norm(block, axis=-2)
            old = xp.abs(xp.linalg.diagonal(lower.R)) <= LEAST_NEW * size
            old = xp.astype(old, xp.int32)
            if self._A.far is not None:
                old = self._A.far.agree(old)
            kept = max(1, columns - int(xp.sum(old)))
            if kept < columns:
                columns, order = kept, xp.argsort(old, stable=True)
                lower = reflect(xp.take(block, order[:kept], axis=-1), self._block_size)
        rest = lower.wy.apply_adjoint(rest)[..., columns:, :]
        self._reflectors, self._pending = (wy.append(lower.wy, room=0.25), D + lower.D), rest

    def _probe(self) -> None:
        """Let the seed depend on an operator, whose norm is not known, through one product.

        A caller who deflates an operator and keeps the seed would otherwise multiply it by the
        very test matrix that it annihilates.
        """
        self._probed = True
        omega = self._test_matrix.probe()
        if omega is None:
            return
        salt = float(safe_norm(self._matmat(omega)))
        if not math.isfinite(salt):
            raise ValueError(NOT_FINITE)
        self._test_matrix.restart(salt)

    def _measure(self) -> None:
        """Read ‖A‖_F; reject NaN and Inf; scale the products if they could leave the range."""
        if self._A.norm is None:
            raise ValueError(NOT_FINITE)
        self._passes += 1
        norm = self._A.agreed(self._A.norm())
        if not math.isfinite(norm):
            if math.isfinite(self._A.max_abs()):
                message = "the norm of `A` exceeds the largest float; divide `A` by a constant."
            else:
                message = "`A` holds NaN or Inf; a range finder needs finite entries."
            raise ValueError(message)
        self._frobenius = norm
        self._test_matrix.restart(salt=norm)
        if self._norm == "fro" or norm == 0.0:
            self._norm_A = norm
        largest, smallest = float(self._limits.max), float(self._limits.smallest_normal)
        _, exponent = math.frexp(largest)  # 128 for float32, 1024 for float64
        if norm > largest * 2.0**-32:
            self._scale = 2.0 ** (-exponent // 2)
        elif 0.0 < norm < smallest / self._epsilon:
            # to a norm of about one, but no X to the range's end
            self._scale = 2.0 ** min(-math.frexp(norm)[1], exponent - 16)


def warn_unless_converged(outcome: dict[str, Any]) -> None:
    """Warn, in the name of the function that the user called, of a tolerance that was not met."""
    if outcome["converged"] in (True, None):
        return
    bound, error, status = outcome["error_bound"], outcome["error"], outcome["status"]
    reached = "no look was taken" if bound is None else f"bound {bound:.3g}, estimate {error:.3g}"
    message = (
        f"the tolerance {outcome['tolerance']:.3g} (absolute) was not certified: {reached} at rank "
        f"{outcome['rank']}. {status.name}: {status.value}"
    )
    warnings.warn(message, ConvergenceWarning, stacklevel=3)


def range_finder(
    A: Array,
    /,
    rank: int | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    norm: Norm = "fro",
    power_iterations: int | None = None,
    krylov: bool = False,
    block_size: int | None = None,
    side: Side = "left",
    test_matrix: Any = None,
    rng: Any = None,
    failure_probability: float = 1e-9,
    check: bool = False,
    check_finite: bool = True,
    callback: Callback | None = None,
) -> RangeFinderResult:
    """Orthonormal basis Q with ``A ≈ Q QᴴA``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Or a
        sparse matrix of SciPy, CuPy or PyTorch; or an operator, see :class:`RangeFinder`; or a
        DTensor of PyTorch, see Notes.
    rank : int, optional
        Columns of Q; more than min(m, n) count as min(m, n). With a tolerance, a cap.
    rtol, atol : float, optional
        Grow until the certified error is below ``max(rtol · ‖A‖, atol)``, in the chosen norm. In
        the spectral norm, and for operators, a lower bound stands for ‖A‖, which makes the
        tolerance the stricter.
    norm : {"fro", "spectral"}
        Norm of tolerance, error and bound.
    power_iterations : int, optional
        Default: 0 at a fixed rank and in the Frobenius norm, 1 for a spectral tolerance, and with
        `krylov`.
    krylov, block_size, side, test_matrix, rng, failure_probability, check, check_finite, callback
        As for :class:`RangeFinder`.

    Returns
    -------
    RangeFinderResult
        With `Q`, orthonormal to rounding for every A (rank-deficient and zero matrices too),
        `status`, `converged`, `error` and `error_bound`. The last three are None at a fixed rank;
        :func:`residual_norm` answers when asked.

    Raises
    ------
    TypeError
        If A is no array, sparse matrix or operator of floating dtype, or `rng` or `test_matrix`
        belongs elsewhere.
    ValueError
        If there is no stop rule, an option is out of range, or A holds NaN or Inf.

    Warns
    -----
    ConvergenceWarning
        If a tolerance was given and not certified: at the cap, or below the precision floor (about
        ``6 eps √rank ‖A‖``).

    Notes
    -----
    Fixed rank k with q power iterations: 2q + 1 passes over A, 2mnk flops each, and 4mk² to 6mk²
    flops for an orthonormal basis after each (more for ill-conditioned samples on NumPy, and 20mk²
    on CUDA); one flag is read from the device, at the end. With a tolerance and k columns found:
    about ``max(k + 64, 1.25k)`` columns are multiplied, 64 or more in a pass (32 if complex), and
    one number is read per look. The basis is not trimmed to the smallest rank; the results of
    :func:`qb` and :func:`svd` are.

    Memory beyond A: less than (3m + n)k + 4k² + (m + n)b entries, for looks of b columns; with
    power iterations at a fixed rank, the longer of m and n counts in place of m.

    Of a DTensor the basis along the side that is not sharded is found, replicated, on all processes
    alike; the other is an orthonormal basis of A times that one, sharded as A is, from one more
    pass. See :func:`svd`.

    With `krylov` and q power iterations, k columns come from k/(q + 1) that are multiplied, in the
    same 2q + 1 passes. With a tolerance, a second number is read per look: how many are new.

    Does not support derivatives, or stacks with a tolerance.

    References
    ----------
    N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with randomness, 2011,
    doi:10.1137/090771806, Algorithms 4.1 (fixed rank), 4.2 (tolerance), 4.4 (subspace iteration).
    C. Musco and C. Musco, Randomized block Krylov methods for stronger and faster approximate
    singular value decomposition, 2015, arXiv:1504.05477, Algorithm 2. J. A. Tropp and R. J. Webber,
    Randomized algorithms for low-rank matrix approximation: design, analysis, and applications,
    2023, arXiv:2306.12418.

    Examples
    --------
    >>> import lowrank
    >>> from lowrank import gallery
    >>> A = gallery.matrix(gallery.fast(300), rng=0)
    >>> found = lowrank.range_finder(A, rtol=1e-6, rng=1)
    >>> found.status.name, found.error_bound <= 1e-6 * found.norm_A
    ('CONVERGED', True)
    """
    shards, near = shards_of(A, test_matrix=test_matrix), side
    if shards is not None:
        A, rng, near = shards.operator, shards.seed(rng), "left"
    finder = find(
        A,
        rank,
        rtol=rtol,
        atol=atol,
        norm=norm,
        power_iterations=power_iterations,
        krylov=krylov,
        block_size=block_size,
        side=near,
        test_matrix=test_matrix,
        rng=rng,
        failure_probability=failure_probability,
        check=check,
        check_finite=check_finite,
        callback=callback,
    )
    Q = finder.basis()
    if shards is not None:
        Q = _side_of_shards(shards, finder, Q, side)
    outcome = finder.outcome()
    warn_unless_converged(outcome)
    return RangeFinderResult(Q=Q, side=side, **outcome)


def _side_of_shards(shards: Shards, finder: RangeFinder, Q: Array, side: str) -> Any:
    """The basis that was found, or one of the range of its image.

    With P = orth(A Q), ``‖A − PPᴴA‖ ≤ ‖A − A QQᴴ‖``: the certificate of Q is one of P.
    """
    if (side == "right") == shards.by_rows:
        return shards.replicated(Q)
    return shards.sharded(shards.orthonormalise(finder.image(Q)).Q)


def subspace_iteration(
    Y: Array,
    matmat: Product,
    rmatmat: Product,
    power_iterations: int,
    *,
    far_qr: Callable[[Array], Basis] = orthonormalise,
) -> Array:
    """Orthonormal basis of the range of ``(A Aᴴ)^q Y``, for a sketch Y of the range of A.

    A function of arrays that asks nothing of a device: torch compiles it without a graph break,
    and a CUDA graph captures it. (Halko, Martinsson & Tropp, Algorithm 4.4.)
    """
    Q = orthonormalise(Y).Q
    del Y
    for _ in range(power_iterations):
        Q = far_qr(rmatmat(Q)).Q
        Q = orthonormalise(matmat(Q)).Q
    return Q


def block_krylov(
    Y: Array,
    matmat: Product,
    rmatmat: Product,
    power_iterations: int,
    *,
    columns: int,
    far_qr: Callable[[Array], Basis] = orthonormalise,
) -> Array:
    """Orthonormal basis of `columns` columns of ``[(A Aᴴ)^q Y, …, A Aᴴ Y, Y]``, the best first.

    The blocks are orthonormal, but not to one another before the end. Where they are nearly
    dependent, the columns that the last QR takes for new are rounding errors; there power iteration
    alone has found what there is. (Musco & Musco, Algorithm 2. Tropp & Webber, Algorithm A.1,
    orthogonalise every block against the others, for the same errors on all spectra of the
    gallery.)
    """
    blocks = [orthonormalise(Y).Q]
    del Y
    for _ in range(power_iterations):
        Q = far_qr(rmatmat(blocks[0])).Q
        blocks.insert(0, orthonormalise(matmat(Q)).Q)
    xp = array_namespace(blocks[0])
    return orthonormalise(xp.concat(blocks, axis=-1)).Q[..., :columns]


def find(
    A: Array,
    rank: int | None,
    *,
    rtol: float | None,
    atol: float | None,
    power_iterations: int | None,
    krylov: bool = False,
    cuts: bool = False,
    oversampling: int = 0,
    margin: int = 0,
    goal: float = 1.0,
    **options: Any,
) -> RangeFinder:
    """The finder after its work: a basis of the rank, or for `goal` times the tolerance.

    At a fixed rank it has `oversampling` columns more. A caller that `cuts` it down to the rank is
    given two power iterations by default, and the whole of the Krylov space. With a tolerance, the
    basis may have `margin` columns more than the cap.
    """
    fixed = rtol is None and atol is None
    extra = as_count(oversampling, "oversampling")
    if rank is not None:
        rank = as_count(rank, "rank") + (extra if fixed else margin)
    if fixed:
        if rank is None:
            message = "no stop rule: give `rank`, `rtol` or `atol`."
            raise ValueError(message)
        power = 2 if cuts else 1 if krylov else 0
        if power_iterations is not None:
            power = as_count(power_iterations, "power_iterations")
        if krylov and cuts:
            rank *= power + 1
        return RangeFinder(A, power_iterations=power, krylov=krylov, **options).extend(rank)
    finder = RangeFinder(A, power_iterations=power_iterations, krylov=krylov, **options)
    finder.run(rtol=rtol, atol=atol, rank=rank, goal=goal)
    return finder
