"""The answer to each question of the command line, as a table and as JSON."""

import json
import math
import time
import warnings
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import lowrank
from lowrank._array import array_namespace
from lowrank._command.arguments import Options
from lowrank._command.reading import Matrix, Source
from lowrank._command.telling import Progress, printable, reason, refuse, tell
from lowrank.certificate import residual_norm
from lowrank.results import Look, SVDResult

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

    @property
    def tolerance(self) -> str:
        tolerance = self.factors.tolerance
        return "-" if tolerance is None else f"{self.relative(tolerance):.3g}"

    def relative(self, error: float) -> float:
        return error / self.norm_A if self.norm_A > 0 else 0.0


def answers(matrix: Matrix, options: Options, progress: Progress, about: str) -> list[Answer]:
    """One answer for each question; errors begin with `about`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what was not met is told as a line of its own
            return [_answer(matrix, rtol, options, progress) for rtol in options.rtols]
    except MemoryError:
        refuse(f"{about}: the work does not fit in memory")
    # NaN or Inf, which only the products bring to light; and what torch says of its own troubles
    except (ValueError, RuntimeError) as error:
        refuse(f"{about}: {reason(error).replace('`A`', 'the matrix')}")


def _answer(matrix: Matrix, rtol: float | None, options: Options, progress: Progress) -> Answer:
    A, norm, seed, atol = matrix.array, options.norm, options.seed, options.atol
    svd = partial(lowrank.svd, A, center=options.center, rng=seed)

    @cache
    def goal() -> tuple[float, float]:
        """The norm of A, which looks do not tell, and the tolerance relative to it."""
        norm_A = _norm(svd(1, power_iterations=0), norm) or 1.0
        return norm_A, max(rtol or 0.0, (atol or 0.0) / norm_A)

    def state(look: Look) -> str:
        norm_A, tolerance = goal()
        return f"rank {look.rank}, error at most {look.bound / norm_A:.2e}, goal {tolerance:.2e}"

    start = time.perf_counter()
    found: Any = svd(
        options.rank,
        rtol=rtol,
        atol=atol,
        norm=norm,
        power_iterations=options.power_iterations,
        callback=lambda look: progress.show(partial(state, look)),
    )
    seconds = time.perf_counter() - start
    error, bound, norm_A = found.error, found.error_bound, found.norm_A
    if found.tolerance is None:  # the error of a given rank is that of a fresh sample
        xp = array_namespace(found.U)
        Q, B = found.U, found.S[:, None] * found.Vh
        if options.center:
            Q, B = xp.concat([Q, xp.ones_like(Q[:, :1])], 1), xp.concat([B, found.mean[None, :]], 0)
        fresh = residual_norm(A, Q, B, norm=norm, rng=seed)
        error, bound, norm_A = fresh.value, fresh.upper_bound, _norm(found, norm)
    numbers = found.rank * (sum(A.shape) + 1) + (A.shape[1] if options.center else 0)
    return Answer(rtol, found, error, bound, norm_A, numbers * matrix.itemsize, seconds)


def _norm(found: Any, norm: str) -> float:
    """‖A‖ as a fixed rank tells it."""
    return float(found.norm_A if norm == "fro" else found.S[0])


def size(nbytes: int) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = min(max(nbytes.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{nbytes / 2 ** (10 * power):.{0 if power == 0 else 1}f} {units[power]}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _rank(answer: Answer) -> str:
    return f"{answer.factors.rank}{'*' if answer.missed else ''}"


def _saving(rank: str, nbytes: int) -> str:
    return f"{rank:>6} {size(nbytes) if nbytes else 'none':>11}"


class Table:
    """The table, line by line as the answers come.

    For a file with one matrix a line for each tolerance; for a checkpoint a line for each tensor,
    with columns for each tolerance, and the sum at the end.
    """

    def __init__(self, options: Options, matrices: list[Source]) -> None:
        self._options = options
        self._many = len(matrices) > 1
        self._at_rank = options.rtols == (None,) and options.atol is None
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
        about = f"{shape}, {matrix.dtype}, {size(matrix.nbytes)}; {norm} {found[0].norm_A:.4g}"
        tell(f"{head}: {about}\n")
        tell("tolerance    rank  error bound  estimate           memory        time")
        for answer in found:
            ratio = answer.nbytes / matrix.nbytes
            share = f"{ratio:.0%}" if ratio < 10 else f"×{ratio:.0f}"
            share = f"{size(answer.nbytes)} {share:>5}"
            bound, error = answer.relative(answer.bound), answer.relative(answer.error)
            tell(
                f"{answer.tolerance:>9} {_rank(answer):>7} {bound:12.2e} {error:9.2e} {share:>16} "
                f"{answer.seconds:9.2f} s"
            )
        if max(answer.nbytes for answer in found) > matrix.nbytes:
            tell("\nFactors of more than 100% take more memory than the matrix: keep it instead.")

    def _add_tensor(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        rtols = self._options.rtols
        if not self._total:
            titles = [f"{'rank':>6} {'saved':>11}"] * len(rtols)
            if self._at_rank:
                titles.insert(0, "error bound")
            else:
                atol = self._options.atol and f"{self._options.atol:g} absolute"
                limits = [[rtol and f"{rtol:g}", atol] for rtol in rtols]
                within = [" or ".join(filter(None, limit)) for limit in limits]
                self._line("", "", [f"{f'within {limit}':>18}" for limit in within])
            self._line("tensor", "shape", titles)
        self._total += matrix.nbytes
        cells = []
        for column, answer in enumerate(found):
            saved = max(0, matrix.nbytes - answer.nbytes)
            self._saved[column] += saved
            if self._at_rank:
                cells.append(f"{answer.relative(answer.bound):11.2e}")
            cells.append(_saving(_rank(answer), saved))
        self._line(printable(source.name), _shape(matrix.array.shape), cells)

    def _line(self, label: str, shape: str, cells: list[str]) -> None:
        tell("  ".join([f"{label:{self._label}}", f"{shape:>{self._shape}}", *cells]))

    def end(self) -> None:
        if self._total:
            width = self._label + 2 + self._shape
            width += 13 if self._at_rank else 0
            cells = [_saving(f"{saved / self._total:.0%}", saved) for saved in self._saved]
            tell("  ".join([f"{f'total {size(self._total)}':{width}}", *cells]))


def missed_line(answers: list[tuple[str, Answer]]) -> str:
    """One line on the tolerances that were not met: the only one, or how many and the worst."""
    missed = [(name, answer) for name, answer in answers if answer.missed]
    name, worst = max(missed, key=lambda pair: pair[1].relative(pair[1].bound))
    bound = f"{worst.relative(worst.bound):.3g}"
    where = f"rank {worst.factors.rank}" + (f" of {name}" if name else "")
    if len(missed) == 1:
        status = worst.factors.status
        return (
            f"tolerance {worst.tolerance} not met: error bound {bound} at {where}. "
            f"{status.name}: {status.value}"
        )
    return (
        f"{len(missed)} of {len(answers)} tolerances not met (marked *); the largest error bound "
        f"is {bound}, at {where}"
    )


def as_json(options: Options, entries: list[dict[str, Any]]) -> str:
    names = ("norm", "atol", "rank", "center", "power_iterations", "seed")
    asked = {name: getattr(options, name) for name in names}
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
