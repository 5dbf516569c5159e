"""Randomized range finder: at a fixed rank, or grown until the error is small enough."""

import math
import warnings
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Unpack

from lowrank._arithmetic import in_full_precision
from lowrank._array import Array, matrix_norm_by_rows, norms
from lowrank._check import as_block_size, as_certificate, as_count, as_failure_probability, as_norm
from lowrank._dot_test import check_adjoint
from lowrank._operator import Operator, as_operator
from lowrank._options import DEFAULTS, Options, Tolerances, shares_options, worded
from lowrank._rangefinder import growth
from lowrank._rangefinder.estimates import floor_of
from lowrank._rangefinder.residuals import FullSVD, Orthonormal
from lowrank._rangefinder.sampling import SampledPanel, measured, sampled_panel
from lowrank._rangefinder.state import Problem, State, StopRule, Work, outcome_of, start
from lowrank._sharded import Shards, shards_of
from lowrank._sketch import TestMatrix
from lowrank.results import ConvergenceWarning, Outcome, RangeFinderResult, Status, fields_of

__all__ = [
    "Found",
    "RangeFinder",
    "find",
    "projection",
    "range_finder",
    "refined",
    "warn_unless_converged",
]

Side = Literal["left", "right"]
# Columns of the basis beyond a cap, before the truncation.
MARGIN = 64


def _problem(
    A: Any, *, side: Side, adapts: bool, hermitian: bool = False, **given: Any
) -> tuple[Problem, State]:
    """The options, checked, and the state without a basis.

    Whether it `adapts` to a tolerance: then a number of power iterations that is not given is
    chosen by each block.
    """
    options = DEFAULTS | given
    if side not in ("left", "right"):
        raise ValueError(f"`side` must be 'left' (range) or 'right' (corange), got {side!r}.")
    norm, krylov = as_norm(options["norm"]), bool(options["krylov"])
    delta = as_failure_probability(options["failure_probability"])
    power_iterations, block_size = options["power_iterations"], options["block_size"]
    if power_iterations is None and (krylov or not adapts):
        power_iterations = int(krylov)
    if power_iterations is not None:
        power_iterations = as_count(power_iterations, "power_iterations")
        if krylov and power_iterations == 0:
            raise ValueError(
                "`krylov` keeps the blocks of power iterations: give at least one of them."
            )
    A = as_operator(A)
    if options["check"]:
        check_adjoint(A, options["rng"])
    A = A if side == "left" else A.adjoint()
    if block_size is not None:
        block_size = as_block_size(block_size, A.empty(0))
    problem = Problem(
        norm=norm, failure_probability=delta, power_iterations=power_iterations, krylov=krylov,
        block_size=block_size, certificate=as_certificate(options["certificate"], A),
        overwrite_a=bool(options["overwrite_a"]), hermitian=hermitian,
        check_finite=bool(options["check_finite"]), callback=options["callback"],
        source=TestMatrix(A, options["test_matrix"], options["rng"]), work=Work(),
    )  # fmt: skip
    return problem, start(A)


class RangeFinder:
    """A growing orthonormal basis of the range of A, kept as Householder reflectors.

    The object can be asked again: for more columns (:meth:`extend`), or for a smaller tolerance
    (:meth:`reach`). What was computed is kept, and all estimates from samples share one failure
    probability.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n)
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Stacks
        only for :meth:`extend`; each member gets its own test matrix. Or a sparse matrix of SciPy,
        CuPy or PyTorch. Or an operator: any object with `shape`, `dtype`, ``matmat(X)`` and
        ``rmatmat(Y)`` (or ``matvec(x)`` and ``rmatvec(y)``), which multiply by A and by its
        conjugate transpose. The first product tells
        the library, device and dtype of the result; the first test matrix is a NumPy array unless
        `dtype`, or an attribute `device`, belongs to torch or CuPy. ‖A‖_F of an operator is not
        known: a lower bound stands for it, which makes `rtol` the stricter.
    side : {"left", "right"}
        Basis of the range of A (left, m rows) or of its corange (right, n rows).
    norm : {"fro", "spectral"}
        Norm of every tolerance, error and bound.
    power_iterations : int, optional
        Products with ``A Aᴴ`` that each block goes through, of what the basis leaves of A, and
        orthonormalized after every product. Default: for :meth:`extend` none; to a tolerance 1 in
        the spectral norm, 0 where only samples tell the error or a pass over A is what costs (files
        and processes), and else up to 2, as each block shows that they pay (on a GPU 1). With
        `krylov`, 1.
    krylov : bool
        Keep the block as it was before each of its power iterations too: a block Krylov space, of
        ``power_iterations + 1`` times the columns for the same products with A. Its error is never
        larger, and for slowly falling singular values much smaller. Meant for factorizations of a
        fixed rank, which cut the basis: to a tolerance it takes fewer products to let it grow. Of
        more equal singular values than a block has columns, only as many are found.
    block_size : int, optional
        Columns of a block of the growing basis, where samples are not what tells the error.
        Default: 32 on a CPU, 128 elsewhere, and doubling from 128 on where a pass over A is what
        costs.
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
        Probability, over all samples of this object, that any error bound is too small. Bounds in
        the Frobenius norm that rest on the residual itself or on energies do not spend it; next to
        rounding, a sample that measures that may fail with 1e-12.
    certificate : {"exact", "energy", "sampled"}, optional
        How the error is known. ``"exact"``, the default for arrays in memory: what the basis leaves
        of A is kept as an array, and its norm is the error (in the spectral norm a bound from the
        block power method on it). ``"energy"``, the default where ‖A‖_F can be had (sparse
        matrices, Dask, files, memory maps, DTensors, and arrays for whose copy there is no memory):
        ``‖A‖² − ‖QᴴA‖²``, in the Frobenius norm and down to where rounding cancels it (1e-6 ‖A‖ in
        double and 2e-2 ‖A‖ in single precision, for up to 4,096 rows). ``"sampled"``, for other
        operators and below that: products with a fresh random matrix.
    overwrite_a : bool
        Whether A may be written to, with an exact certificate: its memory then becomes ``HᴴA``, up
        to a power of two, for the unitary H whose first columns are the basis, and no copy is made.
        Its entries are lost. Without effect where a copy cannot be avoided (read-only and
        half-precision arrays, the corange of a complex one, interpolative and CUR decompositions).
    check : bool
        Of an operator or a sparse matrix, test first whether `rmatmat` is the adjoint of `matmat`,
        by ``⟨y, A x⟩ = ⟨Aᴴ y, x⟩`` for four Gaussian x and y, and raise a :exc:`ValueError` if it
        is not. One pass with A and one with Aᴴ, which the results do not count.
    check_finite : bool
        At fixed rank, read one flag from the device at the end; if it tells of numbers that are
        not finite, raise if A holds them (or is an operator), else repeat with scaled products.
        With a tolerance the norm of A tells, or of an operator each sample, whatever is chosen.
    callback : callable, optional
        Called with a :class:`~lowrank.results.Look` after each block. Raising
        :exc:`StopIteration` ends the work cleanly; the object stays usable after any other
        exception too, but after one in the middle of an update of a matrix that is overwritten.

    Attributes
    ----------
    Q : array, shape (m, rank)
        The basis, formed at each request (2m·rank² flops).
    rank : int
        Columns of the basis.

    Raises
    ------
    <raises>
    ValueError
        If an option is out of range, or `check` finds that `rmatmat` is not the adjoint.

    Notes
    -----
    Cost and memory are those of :func:`range_finder`. Does not support derivatives.

    References
    ----------
    C. Penke, Efficient computation of low-rank representations to reduce memory requirements in
    deep learning, talk, 2024, FZJ-2024-06883, doi:10.34734/FZJ-2024-06883. C. Penke and A. Herten,
    A GPU-accelerated blocked adaptive randomized range finder based on an implicit Householder QR
    decomposition, manuscript, 2026 (the object is their state: blocks of reflectors, and what they
    leave of A). More sources: :func:`range_finder`.

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

    @shares_options
    def __init__(self, A: Array, /, *, side: Side = "left", **options: Unpack[Options]) -> None:
        self._problem, self._state = _problem(A, side=side, adapts=True, **options)
        self._side = side

    @property
    def rank(self) -> int:
        return self._state.rank

    @property
    @in_full_precision
    def Q(self) -> Array:
        return self._state.residual.basis.columns()

    def __repr__(self) -> str:
        state, norm = self._state, self._problem.norm
        shape = "×".join(map(str, state.A.shape))
        status = outcome_of(self._problem, state).status.name
        return f"RangeFinder({shape}, rank={self.rank}, norm={norm!r}, {status})"

    @in_full_precision
    def result(self) -> RangeFinderResult:
        """The basis found so far. Error and bound are those of the last look."""
        outcome = outcome_of(self._problem, self._state)
        return RangeFinderResult(Q=self.Q, side=self._side, **fields_of(outcome))

    @in_full_precision
    def extend(self, columns: int, /) -> "RangeFinder":
        """Add `columns` columns (fewer where min(m, n) ends them) and return the object.

        One block: one product with A, two more for each power iteration, no look at the error. (One
        more where the residual is explicit or known by energies, as after :meth:`reach`.)

        Raises
        ------
        ValueError
            If A holds NaN or Inf (found only with `check_finite`), or the test matrix has too few
            columns left.
        """
        columns = as_count(columns, "columns")
        self._keep(growth.extend(self._problem, self._state, columns, self._keep))
        return self

    @in_full_precision
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
        RuntimeError
            If A was overwritten, and the work on it interrupted.

        Warns
        -----
        ConvergenceWarning
            If the tolerance could not be certified.
        """
        rule = _rule(self._state.A, rtol=rtol, atol=atol, rank=rank)
        self._keep(growth.reach(self._problem, self._state, rule, keep=self._keep))
        warn_unless_converged(outcome_of(self._problem, self._state))
        return self

    def _keep(self, state: State) -> None:
        self._state = state


RangeFinder.__doc__ = worded(RangeFinder.__doc__)


def _rule(A: Operator, *, rtol: float | None, atol: float | None, rank: int | None) -> StopRule:
    rule = StopRule.parse(rtol=rtol, atol=atol, rank=rank, full=min(A.shape[-2:]))
    if A.is_stack:
        raise ValueError(
            f"a tolerance needs a single matrix, got a stack of shape {A.shape}; give a fixed "
            "rank, or loop over the matrices."
        )
    return rule


def warn_unless_converged(outcome: Outcome) -> None:
    """Warn, in the name of the function that the user called, of a tolerance that was not met."""
    if outcome.converged in (True, None):
        return
    bound, error, status = outcome.error_bound, outcome.error, outcome.status
    reached = "no look was taken" if bound is None else f"bound {bound:.3g}, estimate {error:.3g}"
    message = (
        f"the tolerance {outcome.tolerance:.3g} (absolute) was not certified: {reached} at rank "
        f"{outcome.rank}. {status.name}: {status.value}"
    )
    # the caller of a public function, and not what stands around all of them
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


class Found(NamedTuple):
    """A basis after the work on it, for the factorizations that are made of it."""

    problem: Problem
    state: State
    basis: Any
    outcome: Outcome
    floor: float  # the part of the error bound that stands for rounding
    fixed: bool  # whether a rank was asked for, and no tolerance
    unchecked: SampledPanel | None = None  # a basis of which nobody knows yet whether it is finite
    captured: float | None = None  # ‖QᴴA‖_F, where it was read

    @property
    def full_svd(self) -> FullSVD | None:
        """The SVD of A, where that was cheaper than to grow."""
        residual = self.state.residual
        return residual if isinstance(residual, FullSVD) else None

    @property
    def norm_is_exact(self) -> bool:
        """Whether ‖A‖ in the chosen norm is known, and not only a lower bound on it."""
        return self.problem.norm == "fro" and self.state.A.norm is not None

    def norm_along(self, X: Array) -> float:
        """The norm of such a product, of ``AᴴQ``."""
        if self.captured is not None:
            return self.captured
        domain = self.state.A.domain
        return matrix_norm_by_rows(X if domain is None else domain.orthonormalize(X).R)


def find(
    A: Array,
    rank: int | None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    side: Side = "left",
    share: float | None = None,
    powers: int = 0,
    oversampling: int = 0,
    hermitian: bool = False,
    projects: bool = False,
    **options: Any,
) -> Found:
    """A basis of the rank, or for a tolerance.

    At a fixed rank it has `oversampling` columns more, after so many `powers` by default. A caller
    that truncates gives its `share` of the goals of growth; with a tolerance the basis may then
    have MARGIN columns more than the cap, and at a fixed rank it is the whole of a Krylov space.
    One that `projects` A next reads then whether the basis is finite, where a device tells it.
    """
    fixed = rtol is None and atol is None
    extra = as_count(oversampling, "oversampling")
    if rank is not None:
        rank = as_count(rank, "rank")
        rank += extra if fixed else MARGIN if share is not None else 0
    if not fixed:
        problem, state = _problem(A, side=side, adapts=True, hermitian=hermitian, **options)
        return _grown(problem, state, _rule(state.A, rtol=rtol, atol=atol, rank=rank), share)
    if rank is None:
        raise ValueError("no stop rule: give `rank`, `rtol` or `atol`.")
    if options.get("power_iterations") is None and powers:
        options["power_iterations"] = powers
    problem, state = _problem(A, side=side, adapts=False, **options)
    if problem.krylov and share is not None:
        rank *= (problem.power_iterations or 0) + 1
    columns = min(rank, state.full)
    status = Status.FULL_RANK if rank > state.full else Status.RANK_REACHED
    Q, unchecked = state.residual.basis.empty, None
    if columns:
        panel = sampled_panel(problem, state, columns)
        unchecked = panel if projects and panel.is_costly_to_check else None
        state, Q = (panel.state, panel.Q) if unchecked else panel.checked()
    state = replace(state, status=status)
    outcome = replace(outcome_of(problem, state), rank=columns)
    return Found(problem, state, Orthonormal(Q), outcome, 0.0, fixed, unchecked)


def _grown(problem: Problem, state: State, rule: StopRule, share: float | None) -> Found:
    state = growth.reach(problem, state, rule, share=share)
    outcome = outcome_of(problem, state)
    return Found(problem, state, state.residual.basis, outcome, floor_of(state), fixed=False)


def refined(found: Found, rule: StopRule, *, share: float | None) -> Found:
    """The basis after more growth, to a smaller part of the tolerance."""
    return _grown(found.problem, found.state, rule, share)


def projection(found: Found, *, release: bool = False) -> tuple[Found, Array, float]:
    """``C = s AᴴQ``, n×k, and the scale s; a sampled norm of A becomes sharper by it.

    A caller that will not let the basis grow may `release` the residual.
    """
    problem, state = found.problem, found.state
    if found.fixed:
        found, C = _image(found)
        work, state = problem.work, found.state
        outcome = replace(found.outcome, passes=work.passes, products=work.products)
    else:
        state, C = growth.projected(problem, state)
        outcome = outcome_of(problem, state)
    state = growth.safe(state) if release else state
    return found._replace(state=state, outcome=outcome), C, found.state.measured_scale


def _image(found: Found) -> tuple[Found, Array]:
    """``s AᴴQ``, and the basis after a check that may have waited for it.

    That is one read then, with the norms of A and of the product.
    """
    problem, state, unchecked = found.problem, found.state, found.unchecked
    problem.work.add(found.basis.rank)
    C, A = state.A.rmatmat(found.basis.Q), state.A.array
    if unchecked is None:
        return found, C
    known = [A] if A is not None and (A.ndim, A.dtype, problem.norm) == (2, C.dtype, "fro") else []
    captured, *numbers = norms(C, *known, also=unchecked.sums)
    if not all(map(math.isfinite, [captured, *numbers[len(known) :]])):
        state, Q = unchecked.retried_with_scaling()
        return _image(found._replace(state=state, basis=Orthonormal(Q), unchecked=None))
    if known:
        state = replace(state, frobenius=measured(problem, state, numbers[0]).frobenius)
    return found._replace(state=state, unchecked=None, captured=captured), C


@shares_options
def range_finder(
    A: Array,
    /,
    rank: int | None = None,
    *,
    side: Side = "left",
    **options: Unpack[Tolerances],
) -> RangeFinderResult:
    """Orthonormal basis Q with ``A ≈ Q QᴴA``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        <matrix>; or a DTensor of PyTorch, see Notes.
    rank : int, optional
        Columns of Q; more than min(m, n) count as min(m, n). With a tolerance, a cap.
    rtol, atol : float, optional
        Grow until the error is below ``max(rtol · ‖A‖, atol)``, in the chosen norm. In the spectral
        norm, and for operators, a lower bound stands for ‖A‖, which makes the tolerance the
        stricter.
    side : {"left", "right"}
        Basis of the range of A (left, m rows) or of its corange (right, n rows).
    <options>

    Returns
    -------
    RangeFinderResult
        With `Q`, orthonormal to rounding for every A (rank-deficient and zero matrices too),
        `status`, `converged`, `error` and `error_bound`. The last three are None at a fixed rank;
        :func:`residual_norm` answers when asked.

    Raises
    ------
    <raises>
    ValueError
        If there is no stop rule, an option is out of range, or A holds NaN or Inf.

    Warns
    -----
    ConvergenceWarning
        If a tolerance was given and not met: at the cap, or below the precision floor (about
        ``6 eps √rank ‖A‖``).

    Notes
    -----
    Fixed rank k with q power iterations: 2q + 1 passes over A, 2mnk flops each, and 4mk² to 6mk²
    flops for an orthonormal basis after each (more for ill-conditioned samples on NumPy, and 20mk²
    on CUDA); one flag is read from the device, at the end.

    To a tolerance, with an exact certificate: a block of b columns takes ``(3 + 2q)·2mnb`` flops at
    most, less as the residual loses rows, and the host waits for the device twice. Memory beyond
    A: a copy of it (none with `overwrite_a`) and (2m + n)k + 10k² entries. Where the errors of the
    blocks show that the singular value decomposition of A takes less time than to grow on, that is
    computed, and Q holds leading left singular vectors. By energies: 2 + 2q passes for a block. By
    samples: about k + 64 columns are multiplied, 64 or more in a pass (32 if complex), one number
    is read for each, and memory beyond A is less than (3m + n)k + 4k² + (m + n)b entries, for looks
    of b columns.

    The basis is not trimmed to the smallest rank; the results of :func:`qb` and :func:`svd` are.

    Of a DTensor the basis along the side that is not sharded is found, replicated, on all processes
    alike; the other is an orthonormal basis of A times that one, sharded as A is, from one more
    pass. See :func:`svd`.

    With `krylov` and q power iterations, k columns come from k/(q + 1) that are multiplied, in the
    same 2q + 1 passes.

    Does not support derivatives, or stacks with a tolerance.

    References
    ----------
    To a tolerance: C. Penke, Efficient computation of low-rank representations to reduce memory
    requirements in deep learning, talk, 2024, FZJ-2024-06883, doi:10.34734/FZJ-2024-06883. C. Penke
    and A. Herten, A GPU-accelerated blocked adaptive randomized range finder based on an implicit
    Householder QR decomposition, manuscript, 2026. The rest: N. Halko, P.-G. Martinsson and J. A.
    Tropp, Finding structure with randomness, 2011, doi:10.1137/090771806, Algorithms 4.1 (fixed
    rank), 4.2 (tolerance), 4.4 (subspace iteration). C. Musco and C. Musco, Randomized block Krylov
    methods for stronger and faster approximate singular value decomposition, 2015,
    arXiv:1504.05477, Algorithm 2. J. A. Tropp and R. J. Webber, Randomized algorithms for low-rank
    matrix approximation: design, analysis, and applications, 2023, arXiv:2306.12418.

    Examples
    --------
    >>> import lowrank
    >>> from lowrank import gallery
    >>> A = gallery.matrix(gallery.fast(300), rng=0)
    >>> found = lowrank.range_finder(A, rtol=1e-6, rng=1)
    >>> found.status.name, found.error_bound <= 1e-6 * found.norm_A
    ('CONVERGED', True)
    """
    shards, near = shards_of(A, test_matrix=options.get("test_matrix")), side
    if shards is not None:
        A, near = shards.operator, "left"
        options["rng"] = shards.seed(options.get("rng"))
    found = find(A, rank, side=near, **options)
    if shards is not None:
        found, Q = _side_of_shards(shards, found, side)
    else:
        Q = found.basis.Q if found.fixed else found.basis.columns()
    outcome = found.outcome
    warn_unless_converged(outcome)
    return RangeFinderResult(Q=Q, side=side, **fields_of(outcome))


def _side_of_shards(shards: Shards, found: Found, side: str) -> tuple[Found, Any]:
    """The basis that was found, or one of the range of its image.

    With P = orth(A Q), ``‖A − PPᴴA‖ ≤ ‖A − A QQᴴ‖``: the certificate of Q is one of P.
    """
    if (side == "right") == shards.by_rows:
        return found, shards.rows.wrapped(found.basis.columns())
    found, C, _ = projection(found)
    return found, shards.rows.wrapped(shards.rows.orthonormalize(C).Q, 0)
