"""Truncated singular value decomposition on a randomized range."""

from typing import Any

from lowrank._array import Array, adjoint, signed
from lowrank._centre import centred
from lowrank._operator import as_operator
from lowrank._sharded import shards_of
from lowrank._small_svd import small_svd
from lowrank._trim import GOAL, MARGIN, trim
from lowrank.rangefinder import Callback, Norm, find, warn_unless_converged
from lowrank.results import Status, SVDResult

__all__ = ["decompose", "svd"]


def svd(
    A: Array,
    /,
    rank: int | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    norm: Norm = "fro",
    center: bool = False,
    oversampling: int = 10,
    power_iterations: int | None = None,
    krylov: bool = False,
    block_size: int | None = None,
    test_matrix: Any = None,
    rng: Any = None,
    failure_probability: float = 1e-9,
    check: bool = False,
    check_finite: bool = True,
    callback: Callback | None = None,
) -> SVDResult:
    """Truncated SVD ``A ≈ U diag(S) Vh``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Or a
        sparse matrix of SciPy, CuPy or PyTorch; or an operator, see :class:`RangeFinder`; or a
        DTensor of PyTorch, see Notes.
    rank : int, optional
        Rank of the result; more than min(m, n) count as min(m, n). With a tolerance, a cap.
    rtol, atol : float, optional
        The certified error ``‖A − U diag(S) Vh‖`` is at most ``max(rtol · ‖A‖, atol)``.
    norm : {"fro", "spectral"}
        Norm of tolerance, error and bound.
    center : bool
        Decompose A less the mean of its rows, as in principal component analysis, without forming
        that: the rows of Vh are then the components, ``U * S`` the scores, and ``S**2 / (m − 1)``
        the variances. Norm, tolerance and error are those of the centred matrix. The rounding of a
        sparse matrix or operator stays relative to A itself.
    oversampling : int
        At a fixed rank, columns of the basis beyond `rank`, cut off in the end. (With a tolerance
        the basis grows beyond the rank, also beyond a cap, as the tolerance needs.)
    power_iterations : int, optional
        Default: 2 at a fixed rank; with a tolerance 0 in the Frobenius and 1 in the spectral norm,
        and with `krylov`.
    krylov, block_size, test_matrix, rng, failure_probability, check, check_finite, callback
        As for :class:`RangeFinder`.

    Returns
    -------
    SVDResult
        Unpacks as ``U, S, Vh``, and has the `mean` that was subtracted. With a tolerance, of the
        smallest rank that the certificate allows; near the best possible one. The largest entry of
        each row of Vh in absolute value is positive (real and positive), so that results of other
        seeds, libraries and methods have the same signs.

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
        If a tolerance was given and not certified.

    Notes
    -----
    Fixed rank k with p columns of oversampling and q power iterations: 2q + 2 passes over A of
    2mn(k + p) flops each. With a tolerance the basis grows until its certified error is at most
    half the tolerance, and the truncation spends the rest; see :func:`qb`.

    With `krylov` the basis at a fixed rank has (q + 1)(k + p) columns, from the same 2q + 1 passes
    over k + p columns; the last pass takes them all.

    Memory beyond A: less than (3m + 4n)k + 10k² entries for a basis of k columns at a fixed rank.

    Singular values and vectors are those of the projected matrix: S never exceeds the singular
    values of A beyond rounding. Does not support derivatives, or stacks with a tolerance.

    A DTensor, sharded by rows or by columns along one dimension of its mesh, is never gathered: U
    is sharded as its rows are, Vh as its columns are, and all else is replicated. With b columns at
    a time each process gives n·b numbers (m·b if sharded by columns) to a sum for every other pass,
    and b² to a gather. All processes stop at the same look, and raise the same errors; of the
    callbacks the one of the first process can stop them.

    With `center` one more pass over A finds the mean, of a sparse matrix or operator by a product
    of Aᴴ with up to 16 columns. Dense matrices are then centred by blocks of 512 rows (fewer where
    these have more than 2¹⁸ entries, but no less than a sixteenth of all) at each pass.

    References
    ----------
    N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with randomness, 2011,
    doi:10.1137/090771806, Algorithm 5.1. The signs: R. Bro, E. Acar and T. G. Kolda, Resolving the
    sign ambiguity in the singular value decomposition, 2008, doi:10.1002/cem.1122, discuss rules;
    the largest entry is the common one.

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> from lowrank import gallery
    >>> s = gallery.fast(300)
    >>> U, S, Vh = lowrank.svd(gallery.matrix(s, rng=0), rank=10, rng=1)
    >>> bool(np.allclose(S, s[:10]))
    True
    """
    mean, added, shards = None, 0, shards_of(A, test_matrix=test_matrix)
    if shards is not None:
        if center:
            message = "`center` takes no DTensor; subtract the mean first: A - A.mean(0)."
            raise ValueError(message)
        A, rng = shards.operator, shards.seed(rng)
    if center:
        A, mean, added = centred(as_operator(A))
    U, S, Vh, outcome = decompose(
        A,
        rank,
        rtol=rtol,
        atol=atol,
        norm=norm,
        fixed_signs=shards is None,
        oversampling=oversampling,
        power_iterations=power_iterations,
        krylov=krylov,
        block_size=block_size,
        test_matrix=test_matrix,
        rng=rng,
        failure_probability=failure_probability,
        check=check,
        check_finite=check_finite,
        callback=callback,
    )
    if center:
        outcome["passes"] += 1
        outcome["products"] += added
    warn_unless_converged(outcome)
    if shards is not None:
        U, S, Vh = shards.factors(U, S, Vh)
    return SVDResult(U=U, S=S, Vh=Vh, mean=mean, **outcome)


def decompose(
    A: Array,
    rank: int | None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    norm: Norm = "fro",
    fixed_signs: bool = False,
    oversampling: int = 10,
    **options: Any,
) -> tuple[Array, Array, Array, dict[str, Any]]:
    """:func:`svd` without a warning: U, S, Vh and what else the result holds."""
    fixed = rtol is None and atol is None
    finder = find(
        A,
        rank,
        rtol=rtol,
        atol=atol,
        cuts=True,
        oversampling=oversampling,
        margin=MARGIN,
        goal=GOAL,
        norm=norm,
        **options,
    )
    Q = finder.basis()
    C = finder.image(Q)
    small = small_svd(C, finder.far_qr)
    finder.learn_norm(C)
    del C
    outcome = finder.outcome()
    if not fixed:
        floor, exact = finder.floor(), finder.norm_is_exact
        outcome = trim(
            outcome,
            small.S,
            norm,
            rank,
            floor=floor,
            rounding=small.rounding(),
            norm_is_exact=exact,
        )
    elif rank is not None and rank <= finder.rank:
        outcome |= {"rank": rank, "status": Status.RANK_REACHED}
    r = outcome["rank"] = finder.agreed_rank(outcome["rank"])
    Vh = adjoint(small.P @ adjoint(small.W[..., :r, :]))
    U = small.U[..., :r]
    if fixed_signs:
        phase = signed(Vh)[..., :, None]
        U = U * adjoint(phase)
        Vh *= phase
    return Q @ U, small.S[..., :r], Vh, outcome
