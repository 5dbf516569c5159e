"""The factorization of one matrix for each question of the command line."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowrank._array import Array
from lowrank._command.arguments import Options
from lowrank._command.errors import InputError, reason
from lowrank._command.reading import Matrix
from lowrank._operator import as_operator
from lowrank.certificate import residual_norm
from lowrank.results import Look, SVDResult
from lowrank.svd import svd

__all__ = ["Answer", "answers", "relative"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one tolerance, or the rank alone, takes. Errors are absolute."""

    rtol: float | None
    factors: SVDResult
    error: float
    bound: float
    norm_A: float
    nbytes: int
    seconds: float

    @property
    def missed(self) -> bool:
        return self.factors.converged is False


def relative(error: float, norm_A: float) -> float:
    return error / norm_A if norm_A > 0 else 0.0


def answers(matrix: Matrix, options: Options, look: Callable[[Look], object]) -> list[Answer]:
    """One answer for each tolerance, or a single one for the rank."""
    questions: tuple[float | None, ...] = options.rtols or (None,)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was not met is told as a line of its own
            return [_answer(matrix, rtol, options, look) for rtol in questions]
    except MemoryError as error:
        message = "the work does not fit in memory"
        raise InputError(message) from error
    # NaN or Inf, which only the products bring to light; and what torch says of its own troubles
    except (ValueError, RuntimeError) as error:
        raise InputError(reason(error).replace("`A`", "the matrix")) from error


def _answer(
    matrix: Matrix, rtol: float | None, options: Options, look: Callable[[Look], object]
) -> Answer:
    A = matrix.array
    start = time.perf_counter()
    found = svd(
        A,
        options.rank,
        rtol=rtol,
        norm=options.norm,
        power_iterations=options.power_iterations,
        rng=options.seed,
        callback=look,
    )
    seconds = time.perf_counter() - start
    if rtol is None:
        error, bound = _measured(A, found, options)
        norm_A = _norm(A, found, options.norm)
    else:
        error, bound, norm_A = map(_known, (found.error, found.error_bound, found.norm_A))
    nbytes = found.rank * (sum(A.shape) + 1) * matrix.itemsize  # of U, S and Vh
    return Answer(rtol, found, error, bound, norm_A, nbytes, seconds)


def _known(value: float | None) -> float:
    assert value is not None  # with a tolerance, all of them are
    return value


def _measured(A: Any, found: SVDResult, options: Options) -> tuple[float, float]:
    """Error of factors of a fixed rank, from a fresh sample."""
    weighted: Array = found.S[:, None] * found.Vh
    estimate = residual_norm(A, found.U, weighted, norm=options.norm, rng=options.seed)
    return estimate.value, estimate.upper_bound


def _norm(A: Any, found: SVDResult, norm: str) -> float:
    frobenius = as_operator(A).norm if norm == "fro" else None
    if frobenius is not None:
        return frobenius()
    return float(found.S[0]) if found.rank else 0.0
