"""Low-rank subspaces for the state of an optimizer: a basis of the short side of a matrix."""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._array.arithmetic import in_full_precision
from lowrank._factorizations.svd import decompose
from lowrank._linalg.panel import conditioned, orthonormalize
from lowrank._linalg.small_svd import robust_svd
from lowrank._operators import as_operator, shape_of
from lowrank._operators.checks import as_count, as_rank
from lowrank._operators.sketch import Source, gaussian_source

__all__ = ["Subspace", "keeps_sketch", "new_basis", "source", "transport_squares"]

# A direction with a singular value below this many eps of the largest counts as rounding error.
TRUSTED = 256.0
# An adaptive rank is a multiple of this.
STEP = 8


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis Q of the short side of a matrix, with the options to find it.

    Let k be the short side and M the long side of a matrix G. :meth:`project` compresses G to r×M
    coordinates ``QᴴG`` (``QᴴGᴴ`` if the rows are the long side), and :meth:`lift` maps coordinates
    back. The object never changes: :meth:`refresh` returns a new one. Its first call makes the
    first basis.

    Parameters
    ----------
    rank : int or float, optional
        Columns of the basis, or their fraction of k (a float below 1). Give either this or
        `energy`.
    energy : float, optional
        Fraction of ``‖G‖_F²`` to capture at each refresh, below 1. The rank is the smallest that
        is certified to capture it, rounded up to a multiple of 8, at most `max_rank`. It decreases
        only if it would decrease by more than an eighth.
    max_rank : int or float, optional
        Largest adaptive rank, or its fraction of k. Default: a quarter of k.
    random_fraction : float
        Fraction of the basis that is random, orthogonal to the rest, and new at each refresh.
    power_iterations, oversampling : int
        Options of the range finder at a fixed rank. If the oversampling is at most a quarter of
        the columns that are found, its columns stay in the basis and replace random ones: then no
        SVD is needed.
    warm_start : bool
        Start from the old basis and `oversampling` random vectors, instead of random vectors only.
        This replaces one power iteration.
    side : {"left", "right"}, optional
        For a G of shape (m, n), a basis with m (left) or n (right) rows. Default: the short side.
    seed, index : int
        They determine all random numbers, together with the `step` of a refresh: no generator has
        to be saved. Give each matrix of a training run its own index.
    basis : array, shape (k, r), optional
        A basis from an earlier refresh, to continue with.

    Notes
    -----
    The basis depends only on G, on seed, index and step, and with `warm_start` on the old basis.
    Directions of a rank-deficient G whose singular values are rounding errors (below 256 eps of the
    largest) are replaced by random ones. So replicas whose gradients differ by rounding get the
    same basis. If G is zero, the old basis is kept.

    Cost of a refresh at a fixed rank, with l = found columns + `oversampling` and q power
    iterations: 2q + 1 products of 2kMl flops, and orthonormalization. Does not support derivatives
    or stacks.

    References
    ----------
    J. Zhao et al., GaLore: memory-efficient LLM training by gradient low-rank projection, 2024,
    arXiv:2403.03507. N. Halko, P.-G. Martinsson and J. A. Tropp, Finding structure with
    randomness, 2011, doi:10.1137/090771806, Algorithm 4.4.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank.compress import Subspace
    >>> G = np.random.default_rng(0).standard_normal((60, 4)) @ np.ones((4, 200))
    >>> space = Subspace(rank=4).refresh(G)
    >>> R = space.project(G)
    >>> R.shape, bool(np.allclose(space.lift(R), G))
    ((4, 200), True)
    """

    rank: int | float | None = None
    _: KW_ONLY
    energy: float | None = None
    max_rank: int | float | None = None
    random_fraction: float = 0.0
    power_iterations: int = 1
    oversampling: int = 8
    warm_start: bool = False
    side: Literal["left", "right"] | None = None
    seed: int = 0
    index: int = 0
    basis: Array | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ValueError(f"give `rank` or `energy`, got {self.rank!r} and {self.energy!r}.")
        if self.energy is not None and not 0.0 < self.energy < 1.0:
            raise ValueError(f"`energy` must lie between 0 and 1, got {self.energy!r}.")
        if not 0.0 <= self.random_fraction <= 1.0:
            raise ValueError(
                f"`random_fraction` must lie between 0 and 1, got {self.random_fraction!r}."
            )
        if self.side not in (None, "left", "right"):
            raise ValueError(f"`side` must be 'left', 'right' or None, got {self.side!r}.")
        for name in ("rank", "max_rank"):
            if getattr(self, name) is not None:
                as_rank(getattr(self, name), 1, name)
        for name in ("power_iterations", "oversampling", "seed", "index"):
            as_count(getattr(self, name), name)

    def is_left(self, shape: tuple[int, ...]) -> bool:
        """Whether the basis for a matrix of shape (m, n) has m rows (not n)."""
        m, n = shape
        return self.side == "left" if self.side else m <= n

    def largest_rank(self, k: int) -> int:
        """The rank, or the largest adaptive rank, for a short side k."""
        cap = 0.25 if self.max_rank is None else self.max_rank
        return min(as_rank(cap if self.rank is None else self.rank, k, "rank"), k)

    @in_full_precision
    def project(self, G: Array, /) -> Array:
        """Coordinates of `G` (m×n) in the basis: ``QᴴG``, or ``QᴴGᴴ`` on the right (r×M).

        float16 and bfloat16 are computed in float32, in pieces.
        """
        Q = self._found("project")
        X = xa.adjoint(G) if not self.is_left(G.shape) else G
        if X.shape[0] != Q.shape[0]:
            raise ValueError(
                f"the basis has {Q.shape[0]} rows, which does not fit shape {G.shape}."
            )
        if X.dtype == Q.dtype:
            return xa.adjoint_matmul(Q, X)
        xp, width = xa.array_namespace(Q), max(1, -(-X.shape[1] // 16))
        parts = xa.slices(X.shape[1], width) or [slice(0, 0)]
        pieces = (xa.as_matrix(X[:, part], name="G")[0] for part in parts)
        return xp.concat([xa.adjoint_matmul(Q, piece) for piece in pieces], axis=-1)

    @in_full_precision
    def lift(self, X: Array, /) -> Array:
        """The m×n matrix with coordinates `X` (r×M): ``Q X``, or its adjoint on the right."""
        lifted = self._found("lift") @ X
        if self.side is None:
            raise ValueError("`lift` needs `side`, 'left' or 'right': give it with the `basis`.")
        return lifted if self.side == "left" else xa.adjoint(lifted)

    @in_full_precision
    def transport(self, new: "Subspace", /) -> Array:
        """``C = Q_newᴴ Q`` (r_new×r): coordinates X become ``C X`` in the new basis."""
        return xa.adjoint_matmul(new._found("transport"), self._found("transport"))

    @in_full_precision
    def refresh(self, G: Array, /, *, step: int = 0) -> "Subspace":
        """A Subspace with a new basis found from `G`, and with its `side` set.

        Parameters
        ----------
        G : array, shape (m, n)
            For instance a gradient. Or an operator, see :class:`lowrank.RangeFinder`. The basis of
            a float16 or bfloat16 matrix is float32.
        step : int
            Determines the random numbers, together with `seed` and `index`.

        Raises
        ------
        ValueError
            If G contains NaN or Inf, its products overflow, or it is not a matrix.
        """
        A = as_operator(G, name="G")
        shape_of(A, "`G` must be a matrix (two dimensions)")
        side: Literal["left", "right"] = "left" if self.is_left(A.shape) else "right"
        A = A if side == "left" else A.adjoint()
        if self.basis is not None:
            xa.same_place(A.empty(0), self.basis, names=("G", "basis"))
        Q = new_basis(self, A, as_count(step, "step"))
        return self if Q is None else replace(self, basis=Q, side=side)

    def _found(self, use: str) -> Array:
        if self.basis is None:
            raise ValueError(
                f"no basis to {use} with yet; use the Subspace that `refresh` returns."
            )
        return self.basis


def keeps_sketch(space: Subspace, k: int, M: int) -> bool:
    """Whether all columns of a sketch stay in the basis: then no SVD is needed.

    They do if the oversampling is small against the basis; it replaces random columns.
    """
    r = space.largest_rank(k)
    found = r - round(space.random_fraction * r)
    is_plain = space.energy is None and not (space.warm_start and space.basis is not None)
    return is_plain and 4 * space.oversampling <= found and found + space.oversampling <= min(r, M)


def source(space: Subspace, A: Any, step: int) -> Source:
    """The source of random numbers of a refresh."""
    numbers = np.random.SeedSequence([space.seed, step, space.index])
    return gaussian_source(numbers, A.xp, A.device, purpose="subspace")


def new_basis(space: Subspace, A: Any, step: int, draw: Source | None = None) -> Array | None:
    """A basis of the range of an operator; None if the old one stays.

    For a stack of matrices, with a `draw` for stacks, a stack of bases, if their sketches are kept
    whole. Then nothing is read from the device, and NaN or Inf is not noticed.
    """
    xp, (k, M), old = A.xp, A.shape[-2:], space.basis
    if keeps_sketch(space, k, M):
        Q, sizes = _of_whole_sketch(space, A, draw or source(space, A, step))
        if draw is None and not bool(xp.all(xp.isfinite(sizes))):
            raise ValueError("`G` holds NaN or Inf, or its products overflow; check or scale it.")
    else:
        draw = source(space, A, step)
        leading, sizes, r = _leading(space, A, draw, step)
        if old is not None and r < 1:
            return None
        Q = _completed(leading, sizes, r, lambda columns: draw((k, columns), A.dtype))
    if old is not None and old.shape == Q.shape and 0 not in sizes.shape:
        Q = xp.where(sizes[..., :1, None] > 0, Q, old)
    return Q


def _of_whole_sketch(space: Subspace, A: Any, draw: Source) -> tuple[Array, Array]:
    """A basis of all columns of a sketch and of random columns.

    Columns that are rounding errors are replaced by random ones. The diagonal of the triangular
    factor of a sketch shows its numerical rank.
    """
    xp, (*_, k, M) = A.xp, A.shape
    r = space.largest_rank(k)
    width = r - round(space.random_fraction * r) + space.oversampling
    numbers = draw((M * width + k * r,), A.dtype)
    Z = xp.reshape(numbers[..., : M * width], (*A.shape[:-2], M, width))
    more = xp.reshape(numbers[..., M * width :], (*A.shape[:-2], k, r))
    for _ in range(space.power_iterations):
        Y = A.matmat(Z)
        # scaled to size 1: the square of A may leave the range of its dtype
        Z = conditioned(A.rmatmat(Y / xa.largest_of_each(Y)))
    Q, R = orthonormalize(A.matmat(Z))
    d = xp.linalg.diagonal(R)
    sizes = xp.abs(d)
    trusted = sizes > TRUSTED * xa.eps(Q) * xp.max(sizes, axis=-1, keepdims=True)
    Q = xp.where(trusted[..., None, :], _signed(Q, d), more[..., :width])
    Q, R = orthonormalize(xp.concat([Q, more[..., width:]], axis=-1))
    return _signed(Q, xp.linalg.diagonal(R)), sizes


def _signed(Q: Array, d: Array) -> Array:
    """Q with columns multiplied by the phases of d, which fixes their signs."""
    xp = xa.array_namespace(Q)
    return Q * (xa.phases(d) if xa.is_complex(d) else xp.copysign(xp.ones_like(d), d))[..., None, :]


def _leading(space: Subspace, A: Any, draw: Source, step: int) -> tuple[Array, Array, int]:
    """Approximate leading left singular vectors and values of A, and the rank of the basis."""
    r = space.largest_rank(A.shape[-2])
    found = r - round(space.random_fraction * r)
    if space.energy is None:
        return *_of_fixed_rank(space, A, min(found, A.shape[-1]), draw), r
    rng = np.random.default_rng([space.seed, step, space.index])
    U, S, _, outcome = decompose(
        A, found, rtol=math.sqrt(1.0 - space.energy), power_iterations=None, rng=rng
    )
    before = 0 if space.basis is None else int(space.basis.shape[1])
    if outcome.rank == 0 and before:  # a zero G
        return U, S, 0
    needed = outcome.rank / max(1.0 - space.random_fraction, 1.0 / r)
    needed = max(1, math.ceil(needed / STEP)) * STEP
    if 7 * before <= 8 * needed <= 8 * before:
        needed = before
    return U, S, min(r, needed)


def _of_fixed_rank(space: Subspace, A: Any, found: int, draw: Source) -> tuple[Array, Array]:
    """Subspace iteration, cut to `found` leading directions by the SVD of the last R.

    Columns are orthonormalized once per iteration. In between, ``AAᴴ`` loses directions with
    singular values below √eps of the largest; these have less than eps of the energy.
    """
    xp, (k, M), iterations = A.xp, A.shape[-2:], space.power_iterations
    if found == 0:
        return A.empty(k), xp.sum(xp.abs(A.empty(k)), axis=0)
    if space.warm_start and space.basis is not None:
        old = min(int(space.basis.shape[1]), k)
        more = draw((M, min(space.oversampling, k - old)), A.dtype)
        Z = orthonormalize(xp.concat([A.rmatmat(space.basis), more], axis=-1)).Q
        iterations = max(0, iterations - 1)
    else:
        Z = draw((M, min(found + space.oversampling, k, M)), A.dtype)
    for _ in range(iterations):
        Y = A.matmat(Z)
        # scaled to size 1: the square of A may leave the range of its dtype
        Z = orthonormalize(A.rmatmat(Y / xa.largest_of_each(Y))).Q
    Q, R = orthonormalize(A.matmat(Z))
    U, S, _ = robust_svd(R)
    return Q @ U[:, :found], S[:found]


def _completed(leading: Array, sizes: Array, r: int, draw: Callable[[int], Array]) -> Array:
    """Orthonormal columns: those of `leading` that are not rounding errors, then random ones.

    The sign of each column is fixed, so that it depends on its direction only.
    """
    found, more = min(leading.shape[1], r), draw(1 if leading.shape[1] >= r else r)
    xp, leading, sizes = xa.array_namespace(more), leading[:, :found], sizes[:found]
    if found:
        leading = leading * xp.conj(xa.phases((xa.adjoint(more[:, :1]) @ leading)[0, :]))
        trusted = sizes > TRUSTED * xa.eps(more) * xp.max(sizes)
        if found == r:
            if bool(xp.all(trusted)):
                return leading
            more = draw(r)
        leading = xp.where(trusted, leading, more[:, :found])
    Q, R = orthonormalize(xp.concat([leading, more[:, found:]], axis=-1))
    return Q * xa.phases(xp.linalg.diagonal(R))


@in_full_precision
def transport_squares(C: Array, mean: Array, square: Array, outside: Array | None = None) -> Array:
    """Second moments in a new basis: ``|(C∘C̄)(square − |mean|²) + |C mean|²|``.

    Coordinates are modeled as uncorrelated random variables with this mean and mean square (T.
    Robert, M. Safaryan, I.-V. Modoranu and D. Alistarh, LDAdam: adaptive
    optimization from low-dimensional gradient statistics, 2024, arXiv:2410.16103, Algorithm 1).

    Parameters
    ----------
    C : array, shape (r_new, r)
        From :meth:`Subspace.transport`.
    mean, square : array, shape (r, M)
        Means of the coordinates and of their squares, corrected for the bias of a start from zero.
    outside : array, shape (M,), optional
        Mean square of a coordinate outside the old basis. Only the part ``Σ |C|²`` of a new
        direction lies in the old basis; this value is used for the rest. Without it the rest counts
        as zero, and an optimizer that divides by the root would take steps that are too large.

    Returns
    -------
    array, shape (r_new, M)
        Means of the squares of the new coordinates.

    Notes
    -----
    Two products of 2·r_new·r·M flops.

    Examples
    --------
    >>> import numpy as np
    >>> from lowrank.compress import transport_squares
    >>> C = np.asarray([[0.0, 1.0], [1.0, 0.0]])
    >>> transport_squares(C, np.zeros((2, 1)), np.asarray([[1.0], [4.0]])).tolist()
    [[4.0], [1.0]]
    """
    xp, weights = xa.array_namespace(C), xa.squares(C)
    moved = xp.abs(weights @ (square - xa.squares(mean)) + xa.squares(C @ mean))
    if outside is None:
        return moved
    rest = 1.0 - xp.sum(weights, axis=-1, keepdims=True)
    return moved + xp.maximum(rest, xp.zeros_like(rest)) * outside
