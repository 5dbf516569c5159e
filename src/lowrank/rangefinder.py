"""Randomized range finder: at a fixed rank, or grown until the error is small enough."""

from typing import Any, Unpack

from lowrank._array import Array
from lowrank._array.arithmetic import in_full_precision
from lowrank._linalg.sharded import Shards, operand
from lowrank._operators.checks import as_count
from lowrank._rangefinder import growth
from lowrank._rangefinder.found import Found, Side, find, problem_of, projection, reported
from lowrank._rangefinder.options import Options, Tolerances, shares_options, with_shared_text
from lowrank._rangefinder.state import State, StopRule, outcome_of
from lowrank.results import RangeFinderResult, fields_of

__all__ = ["RangeFinder", "range_finder"]


class RangeFinder:
    """A growing orthonormal basis of the range of A, kept as Householder reflectors.

    The basis can grow repeatedly: by a number of columns (:meth:`extend`), or to a smaller
    tolerance (:meth:`reach`). Earlier work is kept, and all estimates from samples share one
    failure probability.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n)
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Stacks
        only for :meth:`extend`; each matrix of a stack gets its own test matrix. Or a sparse matrix
        of SciPy, CuPy or PyTorch. Or an operator: any object with `shape`, `dtype`, ``matmat(X)``
        and ``rmatmat(Y)`` (or ``matvec(x)`` and ``rmatvec(y)``), which multiply by A and by its
        conjugate transpose. The first product decides the library, device and dtype of the result;
        the first test matrix is a NumPy array unless `dtype`, or an attribute `device`, belongs to
        torch or CuPy. ‖A‖_F of an operator is unknown: a lower bound is used instead, which makes
        `rtol` stricter.
    side : {"left", "right"}
        Basis of the range of A (left, m rows) or of its corange (right, n rows).
    norm : {"fro", "spectral"}
        Norm of every tolerance, error and bound.
    power_iterations : int, optional
        Number of products with ``E Eᴴ`` for each block, where E is the residual of the basis.
        Columns are orthonormalized after every product. Default for :meth:`extend`: 0. To a
        tolerance: 1 in the spectral norm; 0 if only samples measure the error, or if passes over A
        are expensive (files and processes); otherwise up to 2 for each block (1 on a GPU), if these
        save time. With `krylov`, 1. By default, factorizations of arrays on a CPU continue the
        Krylov space of the last block instead, if the certificate is exact, the norm that of
        Frobenius, and no test matrix is given.
    krylov : bool
        Keep each block as it was before its power iterations, too: a block Krylov space. It has
        ``power_iterations + 1`` times the columns, from the same products with A. Its error is
        never larger, and much smaller if singular values decay slowly. Meant for factorizations of
        a fixed rank, which truncate the basis; to a tolerance, growing without it takes fewer
        products. If more singular values are equal than a block has columns, only that many of
        them are found.
    block_size : int, optional
        Columns of a block of the growing basis. Not used if samples measure the error. Default: 32
        on a CPU and 128 elsewhere; if passes over A are expensive, first 128 and then doubling.
    test_matrix : array or callable, optional
        Test matrix to use instead of a random one, with n rows (m for the corange). The columns of
        an array are used from left to right. A callable ``(shape, dtype, device) -> array`` is
        called once per block. With a tolerance, it must be standard Gaussian (E|ω|² = 1 if complex)
        and independent of A; otherwise bounds may fail.
    rng : None, int, numpy.random.Generator, native generator or JAX key
        As in SPEC 7. With an integer, the same library on the same device model repeats the
        result. To approximate the rest of a matrix, after a projection by a basis of a fixed rank,
        pass a seed that differs from that of the basis, and no native generator in the same state.
    failure_probability : float
        Probability that any error bound of this object is too small, over all its samples. Bounds
        in the Frobenius norm from the residual itself or from ‖A‖² − ‖QᴴA‖² do not depend on it;
        only near rounding, a sample that measures the rounding may fail with probability 1e-12.
    certificate : {"exact", "energy", "sampled"}, optional
        How the error is known. ``"exact"``, the default for arrays in memory: the residual of the
        basis is kept as an array, and its norm is the error (in the spectral norm a bound from the
        block power method on it). ``"energy"``, the default if ‖A‖_F is available otherwise (sparse
        matrices, Dask, files, memory maps, DTensors, and arrays too large to be copied):
        ``‖A‖² − ‖QᴴA‖²``, in the Frobenius norm, until rounding cancels it (at 1e-6 ‖A‖ in double
        and 2e-2 ‖A‖ in single precision, for up to 4,096 rows). ``"sampled"``, for other operators
        and for smaller errors: products with a fresh random matrix.
    overwrite_a : bool
        Let an exact certificate use the memory of A, so that no copy is made. The entries of A are
        lost: its memory becomes ``HᴴA``, times a power of two, for the unitary H whose first
        columns are the basis. Without effect if a copy cannot be avoided (read-only and
        half-precision arrays, the corange of a complex one, interpolative and CUR decompositions).
    check : bool
        First test whether `rmatmat` of an operator or sparse matrix is the adjoint of `matmat`, by
        ``⟨y, A x⟩ = ⟨Aᴴ y, x⟩`` for four Gaussian x and y; raise a :exc:`ValueError` if it is not.
        This takes one pass with A and one with Aᴴ, which the results do not count.
    check_finite : bool
        At a fixed rank, read one flag from the device at the end. If numbers are not finite, raise
        an error if A contains NaN or Inf (or is an operator), else repeat with scaled products.
        With a tolerance this is always checked, by the norm of A or by each sample of an operator.
    callback : callable, optional
        Called with a :class:`~lowrank.results.Look` after each block. Raise :exc:`StopIteration` in
        it to end the work. The object also stays usable after any other exception, unless that
        interrupts an update of a matrix that is being overwritten.

    Attributes
    ----------
    Q : array, shape (m, rank)
        The basis, computed at each access (2m·rank² flops).
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
    decomposition, manuscript, 2026 (the object holds the state of their algorithm: blocks of
    reflectors, and the residual of A). More sources: :func:`range_finder`.

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
        self._problem, self._state = problem_of(A, side=side, **options)
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
        """The basis found so far, with the last estimate of its error."""
        outcome = outcome_of(self._problem, self._state)
        return RangeFinderResult(Q=self.Q, side=self._side, **fields_of(outcome))

    @in_full_precision
    def extend(self, columns: int, /) -> "RangeFinder":
        """Add `columns` columns (fewer if min(m, n) is reached) and return the object.

        This is one block: one product with A, two more for each power iteration, and no estimate of
        the error. (One more product after :meth:`reach`, unless the certificate is ``"sampled"``.)

        Raises
        ------
        ValueError
            If A contains NaN or Inf (checked only with `check_finite`), or the test matrix has too
            few columns left.
        """
        columns = as_count(columns, "columns")
        self._keep(growth.extend(self._problem, self._state, columns, self._keep))
        return self

    @in_full_precision
    def reach(
        self, *, rtol: float | None = None, atol: float | None = None, rank: int | None = None
    ) -> "RangeFinder":
        """Grow until the error bound is at most ``max(rtol · ‖A‖, atol)``, and return the object.

        Parameters
        ----------
        rtol, atol : float, optional
            At least one is required. `rtol` is relative to ‖A‖ in the chosen norm (in the spectral
            norm, and for operators, to a lower bound on it).
        rank : int, optional
            Largest rank allowed for the basis.

        Raises
        ------
        ValueError
            If A is a stack or contains NaN or Inf, or if the tolerances or the rank are not valid.
        RuntimeError
            If A was overwritten, and that work was interrupted.

        Warns
        -----
        ConvergenceWarning
            If the error bound is above the tolerance.
        """
        rule = StopRule.parse(self._state.A, rtol=rtol, atol=atol, rank=rank)
        self._keep(growth.reach(self._problem, self._state, rule, keep=self._keep))
        reported(outcome_of(self._problem, self._state))
        return self

    def _keep(self, state: State) -> None:
        self._state = state


RangeFinder.__doc__ = with_shared_text(RangeFinder.__doc__)


@shares_options
def range_finder(
    A: Array, /, rank: int | None = None, *, side: Side = "left", **options: Unpack[Tolerances]
) -> RangeFinderResult:
    """Orthonormal basis Q with ``A ≈ Q QᴴA``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        <matrix>; or a DTensor of PyTorch, see Notes.
    rank : int, optional
        Columns of Q, at most min(m, n). With a tolerance, the largest rank allowed.
    rtol, atol : float, optional
        Grow until the error bound is at most ``max(rtol · ‖A‖, atol)``, in the chosen norm. In the
        spectral norm, and for operators, a lower bound on ‖A‖ is used, which makes the tolerance
        stricter.
    side : {"left", "right"}
        Basis of the range of A (left, m rows) or of its corange (right, n rows).
    <options>

    Returns
    -------
    RangeFinderResult
        With `Q`, orthonormal to rounding for every A (also rank-deficient and zero matrices),
        `status`, `converged`, `error` and `error_bound`. The last three are None at a fixed rank;
        :func:`residual_norm` estimates the error.

    Raises
    ------
    <raises>
    ValueError
        If `rank`, `rtol` and `atol` are all missing, an option is out of range, or A contains NaN
        or Inf.

    Warns
    -----
    ConvergenceWarning
        If a tolerance was given and not met: because the largest rank allowed was reached, or
        because the tolerance is below the precision floor (about ``6 eps √rank ‖A‖``).

    Notes
    -----
    At a fixed rank k with q power iterations: 2q + 1 passes over A, of 2mnk flops each, and 4mk² to
    6mk² flops for an orthonormal basis after each (more for ill-conditioned samples on NumPy, and
    20mk² on CUDA). One flag is read from the device, at the end.

    To a tolerance, with an exact certificate: a block of b columns takes at most ``(3 + 2q)·2mnb``
    flops, fewer as the residual loses rows, and the host waits for the device twice. Memory beyond
    A: a copy of A (none with `overwrite_a`) and (2m + n)k + 10k² entries. If the errors of the
    blocks show that the singular value decomposition of A takes less time than further growth, it
    is computed instead, and Q holds leading left singular vectors. By energies: 2 + 2q passes per
    block. By samples: about k + 64 columns are multiplied, at least 64 per pass (32 if complex),
    one number is read for each sample, and memory beyond A is less than
    (3m + n)k + 4k² + (m + n)b entries, for samples of b columns.

    The basis is not truncated to the smallest rank; the results of :func:`qb` and :func:`svd` are.

    For a DTensor, the basis of the side that is not sharded is found, replicated on all processes.
    The basis of the other side takes one more pass: it is an orthonormal basis of A times the first
    one, sharded as A is. See :func:`svd`.

    With `krylov` and q power iterations, k columns come from products with k/(q + 1) columns, in
    the same 2q + 1 passes.

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
    shards, A = operand(A, options)
    found = find(A, rank, side=side if shards is None else "left", **options)
    if shards is not None:
        found, Q = _side_of_shards(shards, found, side)
    else:
        Q = found.basis.Q if found.fixed else found.basis.columns()
    return RangeFinderResult(Q=Q, side=side, **reported(found.outcome))


def _side_of_shards(shards: Shards, found: Found, side: str) -> tuple[Found, Any]:
    """The basis Q that was found, or a basis P of the other side.

    With P = orth(A Q), ``‖A − PPᴴA‖ ≤ ‖A − A QQᴴ‖``: the error bound of Q also holds for P.
    """
    if (side == "right") == shards.by_rows:
        return found, shards.rows.wrapped(found.basis.columns())
    found, C, _ = projection(found)
    return found, shards.rows.wrapped(shards.rows.orthonormalize(C).Q, 0)
