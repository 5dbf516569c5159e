"""What the functions return: frozen dataclasses, and the Status enumeration with its messages."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from lowrank._array import Array

__all__ = [
    "CURResult",
    "ConvergenceWarning",
    "EighResult",
    "ErrorEstimate",
    "IDResult",
    "Look",
    "Outcome",
    "QBResult",
    "QRResult",
    "RangeFinderResult",
    "SVDResult",
    "Status",
    "fields_of",
]


class ConvergenceWarning(UserWarning):
    """A tolerance was asked for and could not be certified."""


class Status(Enum):
    """Why the work ended. The value of each member is a sentence for people."""

    CONVERGED = "The certified error bound is below the tolerance."
    RANK_REACHED = "The basis has the rank that was asked for, or the cap set beside a tolerance."
    FULL_RANK = "The basis has min(m, n) columns; there are no more to find."
    PRECISION_FLOOR = (
        "The error is down to rounding in this dtype, and the tolerance lies below what can be "
        "certified; ask for a larger tolerance, or pass the matrix in a wider dtype."
    )
    STOPPED = "The callback raised StopIteration, or the test matrix has no columns left."


class QRResult(NamedTuple):
    """``A = Q R``. Unpacks as ``Q, R``.

    Attributes
    ----------
    Q : array, shape (..., m, min(m, n)), or (..., m, m) if complete
        Orthonormal columns.
    R : array, shape (..., min(m, n), n), or (..., m, n) if complete
        Upper triangular, or trapezoidal.
    """

    Q: Array
    R: Array


class Look(NamedTuple):
    """One look at the error of a growing basis.

    Attributes
    ----------
    rank : int
        Columns in the basis that was looked at.
    estimate : float
        Estimate of the absolute error of that basis.
    bound : float
        Upper bound on it, which holds with the probability that this look was given.
    """

    rank: int
    estimate: float
    bound: float


@dataclass(frozen=True, slots=True)
class ErrorEstimate:
    """Sampled norm of a residual.

    Attributes
    ----------
    value : float
        The estimate; in the Frobenius norm its square is unbiased.
    upper_bound : float
        At least the true norm, except with probability `failure_probability`.
    norm : str
        ``"fro"`` or ``"spectral"``.
    samples : int
        Gaussian vectors used.
    failure_probability : float
        That of the bound.
    """

    value: float
    upper_bound: float
    norm: str
    samples: int
    failure_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What every result says about itself; all results have these attributes.

    Attributes
    ----------
    status : Status
        Why the work ended; ``status.value`` says it in words.
    converged : bool or None
        Whether the certificate holds for the tolerance asked; None without a tolerance.
    tolerance : float or None
        The tolerance as an absolute error.
    error, error_bound : float or None
        Absolute error ``‖A − approximation‖`` in the chosen norm: the estimate, and a bound that
        holds with probability ``1 − failure_probability`` (for certain in the Frobenius norm, where
        the certificate is exact or by energies). At a fixed rank, in the Frobenius norm, of `qb`,
        `svd` and `eigh` of a matrix whose norm can be had, and of
        :class:`~lowrank.SketchedMatrix`; else None without a tolerance.
    certificate : str or None
        What the bound rests on: ``"exact"`` (the residual itself, or the singular values of A),
        ``"energy"`` (``‖A‖² − ‖QᴴA‖²``) or ``"sampled"`` (products with random vectors). None
        without a bound.
    norm_A : float or None
        ``‖A‖`` in the chosen norm where it was needed; a lower bound in the spectral norm, and for
        operators; an estimate of :class:`~lowrank.SketchedMatrix`.
    rank : int
        Rank of the result.
    passes : int
        Times that A was read: products with A or Aᴴ, and its norm.
    products : int
        Columns multiplied by A or Aᴴ, all passes together.
    history : tuple of Look
        The looks at the error, in order.
    """

    status: Status
    converged: bool | None = None
    tolerance: float | None = None
    error: float | None = None
    error_bound: float | None = None
    certificate: str | None = None
    norm_A: float | None = None
    rank: int
    passes: int
    products: int
    history: tuple[Look, ...] = field(repr=False, default=())


def fields_of(outcome: Outcome) -> dict[str, Any]:
    """The attributes that all results share, by name, to make a result with."""
    return {name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeFinderResult(Outcome):
    """Orthonormal basis of the range, ``A ≈ Q QᴴA`` (of the corange, ``A ≈ A Q Qᴴ``).

    Has the attributes of :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    Q : array, shape (m, rank), or (n, rank) for the corange
    side : str
        ``"left"`` (range) or ``"right"`` (corange).
    """

    Q: Array = field(repr=False)
    side: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QBResult(Outcome):
    """``A ≈ Q B`` with Q orthonormal and ``B = QᴴA``. Unpacks as ``Q, B``.

    Has the attributes of :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    Q : array, shape (m, rank)
    B : array, shape (rank, n)
    """

    Q: Array = field(repr=False)
    B: Array = field(repr=False)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.Q, self.B))


@dataclass(frozen=True, slots=True, kw_only=True)
class SVDResult(Outcome):
    """``A ≈ U diag(S) Vh``. Unpacks as ``U, S, Vh``.

    Has the attributes of :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    U : array, shape (m, rank)
    S : array, shape (rank,)
        Singular values in descending order, real.
    Vh : array, shape (rank, n)
    mean : array, shape (n,), or None
        What was subtracted from each row with ``center=True``: ``A − mean ≈ U diag(S) Vh``.
    """

    U: Array = field(repr=False)
    S: Array = field(repr=False)
    Vh: Array = field(repr=False)
    mean: Array | None = field(repr=False, default=None)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.U, self.S, self.Vh))


@dataclass(frozen=True, slots=True, kw_only=True)
class EighResult(Outcome):
    """``A ≈ V diag(w) Vᴴ`` for a Hermitian A. Unpacks as ``w, V``.

    Has the attributes of :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    eigenvalues : array, shape (rank,)
        Real, the largest in absolute value first.
    eigenvectors : array, shape (n, rank)
        Orthonormal columns.
    """

    eigenvalues: Array = field(repr=False)
    eigenvectors: Array = field(repr=False)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.eigenvalues, self.eigenvectors))


@dataclass(frozen=True, slots=True, kw_only=True)
class IDResult(Outcome):
    """``A ≈ A[:, indices] @ coefficients``, or ``coefficients @ A[indices, :]`` of rows.

    Unpacks as ``indices, coefficients``. Has the attributes of
    :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    indices : array of integers, shape (rank,)
        Which columns (rows) of A, all different.
    coefficients : array, shape (rank, n), or (m, rank) of rows
        Holds the identity in the columns (rows) `indices`.
    skeleton : array, shape (m, rank), or (rank, n) of rows
        Those columns (rows) themselves.
    select : str
        ``"columns"`` or ``"rows"``.
    """

    indices: Array = field(repr=False)
    coefficients: Array = field(repr=False)
    skeleton: Array = field(repr=False)
    select: str

    def __iter__(self) -> Iterator[Array]:
        return iter((self.indices, self.coefficients))


@dataclass(frozen=True, slots=True, kw_only=True)
class CURResult(Outcome):
    """``A ≈ C U R`` with columns ``C = A[:, columns]`` and rows ``R = A[rows, :]`` of A.

    Unpacks as ``C, U, R``. Has the attributes of :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    C : array, shape (m, rank)
    U : array, shape (rank, rank)
    R : array, shape (rank, n)
    columns, rows : array of integers, shape (rank,)
    """

    C: Array = field(repr=False)
    U: Array = field(repr=False)
    R: Array = field(repr=False)
    columns: Array = field(repr=False)
    rows: Array = field(repr=False)

    def __iter__(self) -> Iterator[Array]:
        return iter((self.C, self.U, self.R))
