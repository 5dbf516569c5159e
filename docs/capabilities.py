"""The tables of supported inputs, made from capabilities.toml; the tests try every cell.

``python docs/capabilities.py`` writes the second one into the README.
"""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["DECLARED", "IN_README", "functions_table", "kind_of", "libraries_table"]

DOCS = Path(__file__).parent
DECLARED: dict[str, Any] = tomllib.loads((DOCS / "capabilities.toml").read_text(encoding="utf-8"))
IN_README = re.compile(r"(?<=<!-- of docs/capabilities.toml -->\n).*?(?=<!-- end -->\n)", re.DOTALL)


def functions_table() -> str:
    """Functions × kinds of input."""
    words = {"no": "–"}
    rows = (
        [f"`{name}`", *(words.get(cell, cell) for cell in row)]
        for name, row in DECLARED["functions"].items()
    )
    return _table(["", *DECLARED["inputs"].values()], rows, DECLARED["legend"])


def libraries_table(*, functions: bool = True) -> str:
    """Array libraries and their devices × dtypes; beside the first table, without `functions`."""
    *columns, tested = DECLARED["libraries"]["columns"]
    rows = (
        [*row[:-1], *([_functions_of(kind_of(name))] if functions else []), row[-1]]
        for name, row in DECLARED["libraries"]["rows"].items()
    )
    head = [*columns, *(["functions"] if functions else []), tested]
    return _table(head, rows, DECLARED["libraries"]["legend"])


def kind_of(name: str) -> str:
    """The kind of input that a row of the second table is about."""
    kind = name.partition(":")[0]
    return kind if kind in DECLARED["inputs"] else "array"


def _functions_of(kind: str) -> str:
    at = list(DECLARED["inputs"]).index(kind)
    taking = [f"`{name}`" for name, row in DECLARED["functions"].items() if row[at] != "no"]
    refusing = [f"`{name}`" for name, row in DECLARED["functions"].items() if row[at] == "no"]
    if not refusing:
        return "all"
    return ", ".join(taking) if len(taking) < len(refusing) else f"not {', '.join(refusing)}"


def _table(head: list[str], rows: Iterable[list[str]], legend: str) -> str:
    lines = [head, [":---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{legend}\n"


if __name__ == "__main__":
    readme = DOCS.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(
        IN_README.sub(lambda _: f"\n{libraries_table()}\n", text, count=1), encoding="utf-8"
    )
