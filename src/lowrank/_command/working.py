"""The factorization of one matrix for each question of the command line."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowrank._command.arguments import Options
from lowrank._command.reading import Matrix
from lowrank._command.telling import reason, refuse
from lowrank._operator import as_operator
from lowrank.certificate import residual_norm
from lowrank.results import Look, SVDResult
from lowrank.svd import svd


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

    def relative(self, error: float) -> float:
        return error / self.norm_A if self.norm_A > 0 else 0.0


def answers(matrix: Matrix, options: Options, look: Callable[[Look], object]) -> list[Answer]:
    """One answer for each tolerance, or a single one for the rank."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was not met is told as a line of its own
            return [_answer(matrix, rtol, options, look) for rtol in options.rtols]
    except MemoryError:
        refuse("the work does not fit in memory")
    # NaN or Inf, which only the products bring to light; and what torch says of its own troubles
    except (ValueError, RuntimeError) as error:
        refuse(reason(error).replace("`A`", "the matrix"))


def _answer(
    matrix: Matrix, rtol: float | None, options: Options, look: Callable[[Look], object]
) -> Answer:
    A, norm, seed = matrix.array, options.norm, options.seed
    start = time.perf_counter()
    power = options.power_iterations
    found: Any = svd(
        A, options.rank, rtol=rtol, norm=norm, power_iterations=power, rng=seed, callback=look
    )
    seconds = time.perf_counter() - start
    if rtol is None:  # the error of a given rank is that of a fresh sample
        fresh = residual_norm(A, found.U, found.S[:, None] * found.Vh, norm=norm, rng=seed)
        error, bound = fresh.value, fresh.upper_bound
        frobenius = as_operator(A).norm if norm == "fro" else None
        norm_A = frobenius() if frobenius else float(found.S[0]) if found.rank else 0.0
    else:
        error, bound, norm_A = found.error, found.error_bound, found.norm_A
    nbytes = found.rank * (sum(A.shape) + 1) * matrix.itemsize  # of U, S and Vh
    return Answer(rtol, found, error, bound, norm_A, nbytes, seconds)
