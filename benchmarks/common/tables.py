"""Tables in Markdown, and the numbers in them."""

import argparse
import math
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks import ROOT

Row = dict[str, Any]
Key = tuple[Any, ...]


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def number(value: Any, digits: int = 2) -> str:
    """Two or three significant digits, as ratios need them."""
    if value is None:
        return "–"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value >= 100.0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10.0 else f"{value:.{digits}f}"


def small(value: Any) -> str:
    return "–" if value is None else f"{float(value):.0e}"


def duration(seconds: Any) -> str:
    if seconds is None:
        return "–"
    if seconds >= 1.0:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"


def size(shape: Any) -> str:
    return "×".join(map(str, shape))


def table(head: list[str], lines: list[list[str]], *, left: int = 1) -> list[str]:
    """A table whose first `left` columns hold words, the others numbers."""
    rule = [":---"] * left + ["---:"] * (len(head) - left)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)] + [""]


def write_page(page: Callable[[Path, Path], str], told: str, name: str, results: Path) -> None:
    """The command of a page: from a folder of results to one of documents."""
    parser = argparse.ArgumentParser(description=told.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(options.results, options.out)
    (options.out / name).write_text(text, "utf-8")
    print(f"{options.out / name} has {len(text.splitlines())} lines")


def print_table(rows: Iterator[Iterable[Any]], *, words: Container[str] | None = None) -> None:
    """The head, and each row as soon as it is known; the first column is words, or those named."""
    head = list(next(rows))
    words = head[:1] if words is None else words
    rule = [":---" if name in words else "---:" for name in head]
    for cells in chain((head, rule), rows):
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def crossed(
    rows: Iterable[Row],
    of: Callable[[Row], Key],
    by: Callable[[Row], Key],
    cell: Callable[[Row], str],
    title: str = "",
) -> list[str]:
    """A table of the rows `of` one thing `by` another; the last of each key is its name."""
    cells: dict[Key, dict[Key, str]] = {}
    columns: dict[Key, None] = {}
    for row in rows:
        cells.setdefault(of(row), {}).setdefault(by(row), cell(row))
        columns[by(row)] = None
    lines = [[name[-1], *(line.get(key, "–") for key in columns)] for name, line in cells.items()]
    return table([title, *(key[-1] for key in columns)], lines)
