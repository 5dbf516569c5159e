"""QB decomposition: an orthonormal basis Q and B = QᴴA."""

from typing import Any

from lowrank._array import Array, adjoint
from lowrank._sharded import shards_of
from lowrank._small_svd import small_svd
from lowrank._trim import GOAL, MARGIN, trim
from lowrank.rangefinder import Callback, Norm, find, warn_unless_converged
from lowrank.results import QBResult

__all__ = ["qb"]


def qb(
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
    test_matrix: Any = None,
    rng: Any = None,
    failure_probability: float = 1e-9,
    check: bool = False,
    check_finite: bool = True,
    callback: Callback | None = None,
) -> QBResult:
    """``A ≈ Q B`` with Q orthonormal and ``B = QᴴA``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Or a
        sparse matrix of SciPy, CuPy or PyTorch; or an operator, see :class:`RangeFinder`; or a
        DTensor of PyTorch, see Notes.
    rank : int, optional
        Rank of the result; more than min(m, n) count as min(m, n). With a tolerance, a cap.
    rtol, atol : float, optional
        The certified error is at most ``max(rtol · ‖A‖, atol)``, in the chosen norm.
    norm : {"fro", "spectral"}
        Norm of tolerance, error and bound.
    power_iterations : int, optional
        Default: 0 at a fixed rank and in the Frobenius norm, 1 for a spectral tolerance, and with
        `krylov`.
    krylov, block_size, test_matrix, rng, failure_probability, check, check_finite, callback
        As for :class:`RangeFinder`.

    Returns
    -------
    QBResult
        Unpacks as ``Q, B``.

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
    At a fixed rank: the basis of :func:`range_finder` and one more product. With a tolerance the
    basis grows until its certified error is at most half the tolerance; then Q and B are rotated
    by the singular vectors of B and cut to the smallest rank that the rest of the tolerance
    allows. That costs one more product with Aᴴ and about 6nk² flops for the k columns found. A
    DTensor gives Q sharded as its rows are, and B as its columns are; see :func:`svd`.

    Does not support derivatives, or stacks with a tolerance.

    References
    ----------
    P.-G. Martinsson and S. Voronin, A randomized blocked algorithm for efficiently computing
    rank-revealing factorizations of matrices, 2016, doi:10.1137/15M1026080.

    Examples
    --------
    >>> import lowrank
    >>> from lowrank import gallery
    >>> s = gallery.fast(300)
    >>> Q, B = lowrank.qb(gallery.matrix(s, rng=0), rtol=1e-3, rng=1)
    >>> Q.shape[1] <= gallery.best_rank(s, rtol=1e-3) + 1
    True
    """
    fixed = rtol is None and atol is None
    shards = shards_of(A, test_matrix=test_matrix)
    by_rows = shards is not None and shards.by_rows
    if shards is not None:
        A, rng = shards.operator, shards.seed(rng)
    finder = find(
        A,
        rank,
        rtol=rtol,
        atol=atol,
        power_iterations=power_iterations,
        krylov=krylov,
        margin=MARGIN,
        goal=GOAL,
        norm=norm,
        block_size=block_size,
        test_matrix=test_matrix,
        rng=rng,
        failure_probability=failure_probability,
        check=check,
        check_finite=check_finite,
        callback=callback,
    )
    Q = finder.basis()
    C = finder.image(Q)
    if fixed:
        B = adjoint(C)
        if by_rows:  # Q is the corange: A ≈ C Qᴴ
            P, R = finder.far_qr(C)
            Q, B = P, R @ adjoint(Q)
        Q, B = (Q, B) if shards is None else shards.pair(Q, B)
        return QBResult(Q=Q, B=B, **finder.outcome())
    small = small_svd(C, finder.far_qr)
    finder.learn_norm(C)
    outcome = trim(
        finder.outcome(),
        small.S,
        norm,
        rank,
        floor=finder.floor(),
        rounding=small.rounding(),
        norm_is_exact=finder.norm_is_exact,
    )
    warn_unless_converged(outcome)
    r = outcome["rank"] = finder.agreed_rank(outcome["rank"])
    U = small.U[:, :r]
    if by_rows:
        Q, B = small.P @ adjoint(small.W[:r, :]), adjoint(Q @ U * small.S[None, :r])
    else:
        Q, B = Q @ U, adjoint(C @ U)
    Q, B = (Q, B) if shards is None else shards.pair(Q, B)
    return QBResult(Q=Q, B=B, **outcome)
