"""What goes to the terminal: the tables, JSON, and the line of progress."""

import json
import math
import shutil
import sys
import time
from typing import Any

import lowrank
from lowrank._command.arguments import Options
from lowrank._command.errors import printable
from lowrank._command.reading import Matrix, Source
from lowrank._command.streams import tell
from lowrank._command.working import Answer, relative
from lowrank.results import Look

__all__ = ["Progress", "Table", "as_json", "entry", "missed_line", "size"]

NORMS = {"fro": "Frobenius norm", "spectral": "spectral norm at least"}


class Progress:
    """One line on stderr that is written over, where that is a terminal; otherwise nothing."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._label = ""
        self._first: Look | None = None
        self._last = 0.0

    def start(self, label: str) -> None:
        self._label, self._first = label, None
        self._write(label)

    def look(self, look: Look) -> None:
        if self._first is None or look.rank <= self._first.rank:
            self._first = look
        now = time.monotonic()
        if now - self._last > 0.1:
            self._last = now
            text = f"rank {look.rank}, error at most {look.bound:.2e}"
            if look is not self._first:
                text += f" ({self._first.bound:.2e} at rank {self._first.rank})"
            self._write(f"{self._label}: {text}")

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{printable(text)[:width]}")
            sys.stderr.flush()


def size(nbytes: int) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = min(max(nbytes.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{nbytes / 2 ** (10 * power):.{0 if power == 0 else 1}f} {units[power]}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _asked(answer_rtol: float | None) -> str:
    return "-" if answer_rtol is None else f"{answer_rtol:g}"


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
        self._columns: tuple[float | None, ...] = options.rtols or (None,)
        self._total = 0
        self._saved = [0] * len(self._columns)
        self._headed = False

    def add(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        if self._many:
            self._add_tensor(source, matrix, found)
        else:
            self._add_single(source, matrix, found)

    def _add_single(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        name = f" {source.name}" if source.name else ""
        shape, norm = _shape(matrix.array.shape), NORMS[self._options.norm]
        head = printable(f"{self._options.file}{name}")
        about = f"{shape}, {matrix.dtype}, {size(matrix.nbytes)}; {norm} {found[0].norm_A:.4g}"
        tell(f"{head}: {about}\n")
        tell("tolerance    rank  error bound  estimate           memory        time")
        for answer in found:
            ratio = answer.nbytes / matrix.nbytes
            share = f"{ratio:.0%}" if ratio < 10 else f"×{ratio:.0f}"
            share = f"{size(answer.nbytes)} {share:>5}"
            tell(
                f"{_asked(answer.rtol):>9} {_rank(answer):>7} "
                f"{relative(answer.bound, answer.norm_A):12.2e} "
                f"{relative(answer.error, answer.norm_A):9.2e} {share:>16} "
                f"{answer.seconds:9.2f} s"
            )

    def _add_tensor(self, source: Source, matrix: Matrix, found: list[Answer]) -> None:
        if not self._headed:
            self._head()
        cells = [
            f"{printable(source.name):{self._label}}",
            f"{_shape(matrix.array.shape):>{self._shape}}",
        ]
        self._total += matrix.nbytes
        for column, answer in enumerate(found):
            saved = max(0, matrix.nbytes - answer.nbytes)
            self._saved[column] += saved
            if answer.rtol is None:
                cells.append(f"{relative(answer.bound, answer.norm_A):11.2e}")
            cells.append(f"{_rank(answer):>6} {size(saved) if saved else 'none':>11}")
        tell("  ".join(cells))

    def _head(self) -> None:
        self._headed = True
        blank = " " * (self._label + 2 + self._shape)
        above, below = [blank], [f"{'tensor':{self._label}}  {'shape':>{self._shape}}"]
        for rtol in self._columns:
            if rtol is None:
                below.append("error bound")
            above.append(f"{'' if rtol is None else f'within {rtol:g}':>18}")
            below.append(f"{'rank':>6} {'saved':>11}")
        if self._options.rtols:
            tell("  ".join(above))
        tell("  ".join(below))

    def end(self) -> None:
        if not self._headed:
            return
        width = self._label + 2 + self._shape + (0 if self._options.rtols else 13)
        cells = [f"{f'total {size(self._total)}':{width}}"]
        for saved in self._saved:
            share = saved / self._total
            cells.append(f"{f'{share:.0%}':>6} {size(saved) if saved else 'none':>11}")
        tell("  ".join(cells))


def _rank(answer: Answer) -> str:
    return f"{answer.factors.rank}{'*' if answer.missed else ''}"


def missed_line(answers: list[tuple[str, Answer]]) -> str:
    """One line on the tolerances that were not met: the only one, or how many and the worst."""
    missed = [(name, answer) for name, answer in answers if answer.missed]
    name, worst = max(missed, key=lambda pair: relative(pair[1].bound, pair[1].norm_A))
    bound = f"{relative(worst.bound, worst.norm_A):.3g}"
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


def _finite(value: float | None) -> float | None:
    """JSON has no number for a tolerance that overflows."""
    return value if value is not None and math.isfinite(value) else None


def as_json(options: Options, entries: list[dict[str, Any]]) -> str:
    head = {
        "lowrank": lowrank.__version__,
        "file": str(options.file),
        "norm": options.norm,
        "rank": options.rank,
        "power_iterations": options.power_iterations,
        "seed": options.seed,
        "matrices": entries,
    }
    return json.dumps(head, indent=2, allow_nan=False)


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
