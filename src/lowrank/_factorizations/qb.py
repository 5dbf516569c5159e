"""QB decomposition: an orthonormal basis Q and B = QᴴA."""

from typing import Unpack

from lowrank._array import Array, adjoint, array_namespace
from lowrank._factorizations.svd import decompose
from lowrank._factorizations.truncate import at_fixed_rank
from lowrank._linalg.sharded import operand
from lowrank._linalg.small_svd import refuse_infinite
from lowrank._rangefinder.found import find, projection, reported
from lowrank._rangefinder.options import Tolerances, shares_options
from lowrank._rangefinder.sampling import domain_qr
from lowrank.results import QBResult

__all__ = ["qb"]


@shares_options
def qb(A: Array, /, rank: int | None = None, **options: Unpack[Tolerances]) -> QBResult:
    """``A ≈ Q B`` with Q orthonormal and ``B = QᴴA``, of a given rank or to a given tolerance.

    Parameters
    ----------
    A : array, shape (m, n), or (..., m, n) at a fixed rank
        <matrix>; or a
        DTensor of PyTorch, see Notes.
    rank : int, optional
        Rank of the result, at most min(m, n). With a tolerance, the largest rank allowed.
    rtol, atol : float, optional
        Find the smallest rank whose certified error bound is at most ``max(rtol · ‖A‖, atol)``, in
        the chosen norm.
    <options>

    Returns
    -------
    QBResult
        Unpacks as ``Q, B``.

    Raises
    ------
    <raises>
    ValueError
        If `rank`, `rtol` and `atol` are all missing, an option is out of range, or A contains NaN
        or Inf.

    Warns
    -----
    <warns>

    Notes
    -----
    At a fixed rank: the basis of :func:`range_finder` and one more product; in the Frobenius norm
    also the error, from ``‖A‖² − ‖B‖²``, if ‖A‖_F is available. With a tolerance the result is that
    of :func:`svd`, with ``Q = U`` and ``B = diag(S) Vh``. For a DTensor, Q is sharded like its
    rows, and B like its columns.

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
    shards, A = operand(A, options)
    by_rows = shards is not None and shards.by_rows  # then the basis is that of the corange
    if options.get("rtol") is not None or options.get("atol") is not None:
        U, S, Vh, outcome = decompose(A, rank, **options)
        weights = array_namespace(U).astype(S, U.dtype)
        Q, B = U, weights[:, None] * Vh
        if by_rows:
            Q, B = adjoint(Vh), adjoint(U * weights)
    else:
        found, C, scale = projection(find(A, rank, projects=True, **options))
        if scale != 1.0:
            C = C / scale
            refuse_infinite(C)
        outcome = at_fixed_rank(found, lambda _: found.norm_along(C))
        Q, B = found.basis.Q, adjoint(C)
        if found.state.A.norm is None:  # an operator may keep and reuse the array it returned
            B = array_namespace(B).asarray(B, copy=True)
        if by_rows:  # A ≈ C Qᴴ
            P, R = domain_qr(found.state.A)(C)
            Q, B = P, R @ adjoint(Q)
    Q, B = (Q, B) if shards is None else shards.pair(Q, B)
    return QBResult(Q=Q, B=B, **reported(outcome))
