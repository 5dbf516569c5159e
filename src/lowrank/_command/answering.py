"""The answer to each question of the command line, as a table and as JSON."""

import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import lowrank
from lowrank._command.arguments import Options
from lowrank._command.reading import Matrix, Source
from lowrank._command.telling import printable, reason, refuse, tell
from lowrank.certificate import residual_norm
from lowrank.results import Look, SVDResult, size_of

NORMS = {"fro": "Frobenius norm", "spectral": "spectral norm at least"}


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


def answers(
    matrix: Matrix, options: Options, look: Callable[[Look], object], about: str
) -> list[Answer]:
    """One answer for each tolerance, or a single one for the rank; errors begin with `about`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was not met is told as a line of its own
            return [_answer(matrix, rtol, options, look) for rtol in options.rtols]
    except MemoryError:
        refuse(f"{about}: the work does not fit in memory")
    # NaN or Inf, which only the products bring to light; and what torch says of its own troubles
    except (ValueError, RuntimeError) as error:
        refuse(f"{about}: {reason(error).replace('`A`', 'the matrix')}")


def _answer(
    matrix: Matrix, rtol: float | None, options: Options, look: Callable[[Look], object]
) -> Answer:
    A, norm, seed = matrix.array, options.norm, options.seed
    start = time.perf_counter()
    power = options.power_iterations
    found: Any = lowrank.svd(
        A, options.rank, rtol=rtol, norm=norm, power_iterations=power, rng=seed, callback=look
    )
    seconds = time.perf_counter() - start
    if found.error_bound is None:  # the spectral error of a given rank is that of a fresh sample
        fresh, size = residual_norm(A, found, norm=norm, rng=seed), float(found.S[0])
        found = replace(
            found, error=fresh.value, error_bound=fresh.upper_bound, norm_A=size,
            certificate="sampled",
        )  # fmt: skip
    nbytes = found.rank * (sum(A.shape) + 1) * matrix.itemsize  # of U, S and Vh
    return Answer(rtol, found, found.error, found.error_bound, found.norm_A, nbytes, seconds)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _rank(answer: Answer) -> str:
    return f"{answer.factors.rank}{'*' if answer.missed else ''}"


def _saving(rank: str, nbytes: int) -> str:
    return f"{rank:>6} {size_of(nbytes) if nbytes else 'none':>11}"


class Table:
    """The table, line by line as the answers come.

    For a file with one matrix a line for each tolerance; for a checkpoint a line for each tensor,
    with columns for each tolerance, and the sum at the end.
    """

    def __init__(self, options: Options, matrices: list[Source]) -> None:
        self._options = options
        self._many = len(matrices) > 1
        self._label = max([6, *(len(printable(source.name)) for source in matrices)])
        self._shape = max([5, *(len(_shape(source.shape or ())) for source in matrices)])
        self._total = 0  # bytes of what is in the table
        self._saved = [0] * len(options.rtols)

    def add(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        if self._many:
            self._add_tensor(source, matrix, found)
            return
        head = printable(f"{self._options.file}{f' {source.name}' if source.name else ''}")
        shape, norm = _shape(matrix.array.shape), NORMS[self._options.norm]
        about = f"{shape}, {matrix.dtype}, {size_of(matrix.nbytes)}; {norm} {found[0].norm_A:.4g}"
        tell(f"{head}: {about}\n")
        tell("tolerance    rank  error bound  estimate           memory        time")
        for answer in found:
            rtol = "-" if answer.rtol is None else f"{answer.rtol:g}"
            ratio = answer.nbytes / matrix.nbytes
            share = f"{ratio:.0%}" if ratio < 10 else f"×{ratio:.0f}"
            share = f"{size_of(answer.nbytes)} {share:>5}"
            bound, error = answer.relative(answer.bound), answer.relative(answer.error)
            tell(
                f"{rtol:>9} {_rank(answer):>7} {bound:12.2e} {error:9.2e} {share:>16} "
                f"{answer.seconds:9.2f} s"
            )

    def _add_tensor(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        rtols = self._options.rtols
        if not self._total:
            titles = [f"{'rank':>6} {'saved':>11}"] * len(rtols)
            if rtols == (None,):
                titles.insert(0, "error bound")
            else:
                self._line("", "", [f"{f'within {rtol:g}':>18}" for rtol in rtols])
            self._line("tensor", "shape", titles)
        self._total += matrix.nbytes
        cells = []
        for column, answer in enumerate(found):
            saved = max(0, matrix.nbytes - answer.nbytes)
            self._saved[column] += saved
            if answer.rtol is None:
                cells.append(f"{answer.relative(answer.bound):11.2e}")
            cells.append(_saving(_rank(answer), saved))
        self._line(printable(source.name), _shape(matrix.array.shape), cells)

    def _line(self, label: str, shape: str, cells: list[str]) -> None:
        tell("  ".join([f"{label:{self._label}}", f"{shape:>{self._shape}}", *cells]))

    def end(self) -> None:
        if self._total:
            width = self._label + 2 + self._shape
            width += 13 if self._options.rtols == (None,) else 0
            cells = [_saving(f"{saved / self._total:.0%}", saved) for saved in self._saved]
            tell("  ".join([f"{f'total {size_of(self._total)}':{width}}", *cells]))


def missed_line(answers: list[tuple[str, Answer]]) -> str:
    """One line on the tolerances that were not met: the only one, or how many and the worst."""
    missed = [(name, answer) for name, answer in answers if answer.missed]
    name, worst = max(missed, key=lambda pair: pair[1].relative(pair[1].bound))
    bound = f"{worst.relative(worst.bound):.3g}"
    where = f"rank {worst.factors.rank}" + (f" of {name}" if name else "")
    if len(missed) == 1:
        status = worst.factors.status
        return (
            f"tolerance {worst.rtol:g} not met: error bound {bound} at {where}. "
            f"{status.name}: {status.value}"
        )
    return (
        f"{len(missed)} of {len(answers)} tolerances not met (marked *); the largest error bound "
        f"is {bound}, at {where}"
    )


def as_json(options: Options, entries: list[dict[str, Any]]) -> str:
    asked = {key: getattr(options, key) for key in ("norm", "rank", "power_iterations", "seed")}
    head = {"lowrank": lowrank.__version__, "file": str(options.file), **asked}
    return json.dumps(head | {"matrices": entries}, indent=2, allow_nan=False)


def _finite(value: float | None) -> float | None:
    """JSON has no number for a tolerance that overflows."""
    return value if value is not None and math.isfinite(value) else None


def entry(source: Source, matrix: Matrix, found: list[Answer]) -> dict[str, Any]:
    """What JSON says of one matrix."""
    return {
        "name": source.name or None,
        "shape": list(matrix.array.shape),
        "dtype": matrix.dtype,
        "bytes": matrix.nbytes,
        "results": [
            {
                "rtol": answer.rtol,
                "tolerance": _finite(answer.factors.tolerance),
                "converged": answer.factors.converged,
                "status": answer.factors.status.name,
                "rank": answer.factors.rank,
                "error": answer.error,
                "error_bound": answer.bound,
                "norm_A": answer.norm_A,
                "bytes": answer.nbytes,
                "passes": answer.factors.passes,
                "seconds": answer.seconds,
            }
            for answer in found
        ],
    }
