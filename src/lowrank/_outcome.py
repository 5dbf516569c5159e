"""How the work of a function ended: the attributes that all results share."""

import sys
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cache
from typing import Any, NamedTuple


class Status(Enum):
    """Why the work ended. The value of each member explains it in a sentence."""

    CONVERGED = "The certified error bound is at most the tolerance."
    RANK_REACHED = "The result has the requested rank, or the largest rank that was allowed."
    FULL_RANK = "The basis has min(m, n) columns, the most that it can have."
    PRECISION_FLOOR = (
        "The error is as small as rounding in this dtype allows, and the tolerance is below that; "
        "give a larger tolerance, or pass the matrix in a wider dtype."
    )
    STOPPED = "The callback raised StopIteration, or the test matrix has no columns left."


class Look(NamedTuple):
    """An estimate of the error of a growing basis, made after a block of columns.

    Attributes
    ----------
    rank : int
        Columns of the basis at that time.
    estimate : float
        Estimate of the absolute error of that basis.
    bound : float
        Upper bound on that error. All bounds of an object hold together, except with its
        `failure_probability`.
    """

    rank: int
    estimate: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The attributes that all results share.

    Attributes
    ----------
    status : Status
        Why the work ended; ``status.value`` explains it.
    converged : bool or None
        Whether `error_bound` is at most the tolerance; None without a tolerance.
    tolerance : float or None
        The tolerance, as an absolute error.
    norm : str
        ``"fro"`` or ``"spectral"``: the norm of `tolerance`, `error`, `error_bound` and `norm_A`.
    error, error_bound : float or None
        Estimate of the absolute error ``‖A − approximation‖``, and a bound on it that holds with
        probability ``1 − failure_probability`` (always, in the Frobenius norm, if the certificate
        is exact or by energies). Without a tolerance they are None, but for `qb`, `svd` and `eigh`
        in the Frobenius norm, if ‖A‖_F is available, and :class:`~lowrank.SketchedMatrix`.
    certificate : str or None
        How the bound was found: ``"exact"`` (from the residual itself, or the singular values of
        A), ``"energy"`` (from ``‖A‖² − ‖QᴴA‖²``) or ``"sampled"`` (from products with random
        vectors). None without a bound.
    norm_A : float or None
        ``‖A‖`` in the chosen norm, if it was needed: a lower bound in the spectral norm and for
        operators, and an estimate for :class:`~lowrank.SketchedMatrix`.
    rank : int
        Rank of the result.
    passes : int
        Number of passes over A: products with A or Aᴴ, and its norm.
    products : int
        Columns multiplied by A or Aᴴ, over all passes.
    history : tuple of Look
        The estimates of the error of the growing basis, in order.
    """

    status: Status
    converged: bool | None = None
    tolerance: float | None = None
    norm: str = "fro"
    error: float | None = None
    error_bound: float | None = None
    certificate: str | None = None
    norm_A: float | None = None
    rank: int
    passes: int
    products: int
    history: tuple[Look, ...] = field(repr=False, default=())

    def __post_init__(self) -> None:
        if "jax" in sys.modules:
            _as_pytree(type(self))  # type: ignore[arg-type]


@cache
def _as_pytree(result: Any) -> None:
    """Let results leave a function that JAX traces: their arrays are its leaves."""
    about = [*Outcome.__dataclass_fields__, *(["side"] if hasattr(result, "side") else [])]
    arrays = [field.name for field in fields(result) if field.name not in about]
    sys.modules["jax"].tree_util.register_dataclass(result, arrays, about)


def fields_of(outcome: Outcome) -> dict[str, Any]:
    """The attributes by name, as arguments of a result."""
    return {entry.name: getattr(outcome, entry.name) for entry in fields(outcome)}
