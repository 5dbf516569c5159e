"""The results for the command line, as a table and as JSON."""

import json
import math
import time
import warnings
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

import lowrank
from lowrank._certificate import residual_norm
from lowrank._command.arguments import Options
from lowrank._command.reading import Matrix, Source
from lowrank._command.telling import Progress, printable, reason, refuse, tell
from lowrank.results import Look, size_of

NORMS = {"fro": "Frobenius norm", "spectral": "spectral norm at least"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The result for one tolerance, or for the rank alone. Errors are absolute."""

    rtol: float | None
    factors: Any  # an SVDResult, with error and norm
    nbytes: int
    seconds: float

    @property
    def missed(self) -> bool:
        return self.factors.converged is False

    @property
    def tolerance(self) -> str:
        tolerance = self.factors.tolerance
        return "-" if tolerance is None else f"{self.relative(tolerance):.3g}"

    def relative(self, error: float) -> float:
        norm_A = self.factors.norm_A
        return float(error / norm_A) if norm_A > 0 else 0.0


def answers(matrix: Matrix, options: Options, progress: Progress, about: str) -> list[Answer]:
    """One answer for each tolerance; error messages begin with `about`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missed tolerances get a line of their own
            return [_answer(matrix, rtol, options, progress) for rtol in options.rtols]
    except MemoryError:
        refuse(f"{about}: the work does not fit in memory")
    # NaN or Inf, which only products reveal; and errors of torch
    except (ValueError, RuntimeError) as error:
        said, where = reason(error).replace("`A`", "the matrix"), ""
        if "NaN" in said and isinstance(matrix.array, np.ndarray):
            place = np.unravel_index(np.argmin(np.isfinite(matrix.array)), matrix.array.shape)
            where = "; the first in row {}, column {}".format(*(k + 1 for k in place))
        refuse(f"{about}: {said}{where}")


def _answer(matrix: Matrix, rtol: float | None, options: Options, progress: Progress) -> Answer:
    A, norm, seed, atol = matrix.array, options.norm, options.seed, options.atol
    svd: Any = partial(lowrank.svd, A, center=options.center, rng=seed)

    def with_error(found: Any) -> Any:
        """Measured by a fresh sample, if it has none; and ‖A‖² = ‖A − A_r‖² + ‖A_r‖²."""
        if found.error_bound is not None:
            return found
        fresh, S = residual_norm(A, found, norm=norm, rng=seed), map(float, found.S)
        size = next(S) if norm == "spectral" else math.hypot(fresh.value, *S)
        sampled = {"error": fresh.value, "error_bound": fresh.upper_bound, "norm_A": size}
        return replace(found, certificate="sampled", **sampled)

    @cache
    def norm_A() -> float:
        """The norm of A, which a Look does not contain."""
        return with_error(svd(1, power_iterations=0, norm=norm)).norm_A or 1.0

    def state(look: Look) -> str:
        error, goal = look.bound / norm_A(), max(rtol or 0.0, (atol or 0.0) / norm_A())
        return f"rank {look.rank}, error at most {error:.2e}, goal {goal:.2e}"

    start = time.perf_counter()
    found = svd(
        options.rank, rtol=rtol, atol=atol, norm=norm, power_iterations=options.power_iterations,
        callback=lambda look: progress.show(partial(state, look)),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    numbers = found.rank * (sum(A.shape) + 1) + (A.shape[1] if options.center else 0)
    return Answer(rtol, with_error(found), numbers * matrix.itemsize, seconds)


def _memory(nbytes: int, whole: int) -> str:
    share = f"{nbytes / whole:.0%}" if nbytes < 10 * whole else f"×{nbytes / whole:.0f}"
    return f"{size_of(nbytes)} {share:>5}"


class Table:
    """The table, printed line by line; for the tensors of a checkpoint with totals."""

    def __init__(self, options: Options, count: int) -> None:
        self._options, self._count = options, count
        self._whole = 0  # bytes of all matrices, and of the smaller of matrix and factors
        self._least = [0] * len(options.rtols)

    def add(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        name, shape = printable(source.name), "×".join(map(str, matrix.array.shape))
        tensor = f"   {name} {shape}" if self._count > 1 else ""
        if not tensor:
            head = f"{printable(str(self._options.file))} {name}".rstrip()
            norm = f"{NORMS[self._options.norm]} {found[0].factors.norm_A:.4g}"
            tell(f"{head}: {shape}, {matrix.dtype}, {size_of(matrix.nbytes)}; {norm}\n")
        if not self._whole:
            title = "tolerance    rank  error bound  estimate           memory        time"
            tell(title + ("   tensor" if tensor else ""))
        self._whole += matrix.nbytes
        for k, answer in enumerate(found):
            rank = f"{answer.factors.rank}{'*' if answer.missed else ''}"
            factors = answer.factors
            bound, error = map(answer.relative, (factors.error_bound, factors.error))
            memory = _memory(answer.nbytes, matrix.nbytes)
            tell(
                f"{answer.tolerance:>9} {rank:>7} {bound:12.2e} {error:9.2e} {memory:>16} "
                f"{answer.seconds:9.2f} s{tensor}"
            )
            self._least[k] += min(answer.nbytes, matrix.nbytes)
        if not tensor and max(answer.nbytes for answer in found) > matrix.nbytes:
            tell("\nFactors of more than 100% take more memory than the matrix: keep it instead.")

    def end(self) -> None:
        for rtol, least in zip(self._options.rtols, self._least, strict=True):
            if self._count > 1 and self._whole:
                limit, memory = "-" if rtol is None else f"{rtol:g}", _memory(least, self._whole)
                rest = "total, with the tensor itself where its factors take more"
                tell(f"{limit:>9} {memory:>47}               {rest}")


def missed_line(answers: list[tuple[str, Answer]]) -> str:
    """One line about the tolerances that were not met: which or how many, and the worst."""
    missed = [(name, answer) for name, answer in answers if answer.missed]
    name, worst = max(missed, key=lambda pair: pair[1].relative(pair[1].factors.error_bound))
    bound, status = f"{worst.relative(worst.factors.error_bound):.3g}", worst.factors.status
    where = f"rank {worst.factors.rank}" + (f" of {name}" if name else "")
    which = f"tolerance {worst.tolerance} not met: error bound"
    if len(missed) > 1:
        which = f"{len(missed)} of {len(answers)} tolerances not met: largest error bound"
    return f"{which} {bound} at {where}. {status.name}: {status.value}"


def as_json(options: Options, entries: list[dict[str, Any]]) -> str:
    names = ("norm", "atol", "rank", "center", "power_iterations", "seed")
    head = {"lowrank": lowrank.__version__, "file": str(options.file)}
    head |= {name: getattr(options, name) for name in names}
    return json.dumps(head | {"matrices": entries}, indent=2, allow_nan=False)


def entry(source: Source, matrix: Matrix, found: list[Answer]) -> dict[str, Any]:
    """The JSON entry of one matrix."""
    head = {"name": source.name or None, "shape": list(matrix.array.shape), "dtype": matrix.dtype}
    return head | {"bytes": matrix.nbytes, "results": [_result(answer) for answer in found]}


def _result(answer: Answer) -> dict[str, Any]:
    names = ("converged", "rank", "passes", "error", "error_bound", "norm_A")
    tolerance = answer.factors.tolerance
    return {
        **{name: getattr(answer, name) for name in ("rtol", "seconds")},
        **{name: getattr(answer.factors, name) for name in names},
        # JSON has no infinity, for a tolerance that overflows.
        "tolerance": None if tolerance == math.inf else tolerance,
        "status": answer.factors.status.name,
        "bytes": answer.nbytes,
    }
