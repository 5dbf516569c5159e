"""What the files of results hold: rows, their names, and how old they are."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common.results import sources
from benchmarks.common.tables import Key, Row

ARRAYS = {"numpy": "NumPy", "torch": "PyTorch"}
NAMES = ARRAYS | {"scipy": "SciPy", "cupy": "CuPy"}
PRODUCT, PRODUCTS = "draw and A @ Omega", "draw and both products"
# What older files call functions that have another name now.
RENAMED = {"orthonormalise": "orthonormalize", "_unasked_cholesky_qr": "_shifted_cholesky_qr"}

OF_OPTIMIZERS = ("step", "training", "refresh", "counts", "llama step")
# What the sections of a GPU are of.
SECTIONS = {
    "matrix": "matrices", "full svd": "full SVDs", "cupy": "CuPy", "panel": "panels",
    "capture": "CUDA graphs", "compile": "compiled functions", "published": "the published grid",
    "tolerance": "tolerances", "functions": "all functions", "small svd": "small decompositions",
    "rate": "rates",
} | dict.fromkeys(OF_OPTIMIZERS, "optimizers")  # fmt: skip


def newest(folder: Path) -> list[Row]:
    """The latest file of each kind and device, by date.

    Of a GPU also what earlier files have measured and it has not: time there is short.
    """
    found: dict[Key, Row] = {}
    contents = [
        json.loads(path.read_text("utf-8")) | {"file": path.name} for path in folder.glob("*.json")
    ]
    for content in sorted(contents, key=lambda content: content["date"]):
        for row in content.get("rows", []):
            row["method"] = RENAMED.get(row["method"], row["method"])
        key = content["kind"], content["machine"].get("device")
        old = found.get(key)
        content["runs"] = [content | {"rows": None}]
        if key[0] == "gpu":
            for row in content["rows"]:
                row["older"] = is_older(row, content)
                row["day"] = content.get("parts", {}).get(row.get("part"), content)["date"][:10]
        if key[0] == "gpu" and old is not None:
            content["runs"] = [*old["runs"], *content["runs"]]
            tried = [row for row in content["rows"] if row["seconds"] or not row["skipped"]]
            there = {(row["section"], row["dtype"]) for row in tried}
            content["rows"] = [
                *(row for row in old["rows"] if (row["section"], row["dtype"]) not in there),
                *(row for row in content["rows"] if (row["section"], row["dtype"]) in there),
            ]
            content["file"] = f"{old['file']}` and `{content['file']}"
        found[key] = content
    return list(found.values())


def is_older(row: Row, content: Row) -> bool:
    """Whether the library's code has changed since a row was measured."""
    source = content.get("parts", {}).get(row.get("part"), {}).get("source")
    of = "optim" if row["section"] in OF_OPTIMIZERS else "core"
    return source is None or source[of] != sources()[of]


def select(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def measured(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    return [row for row in select(rows, **wanted) if row["seconds"] is not None]


def one(rows: Iterable[Row], **wanted: Any) -> Row | None:
    found = measured(rows, **wanted)
    return found[0] if found else None


def label(row: Row) -> str:
    """A method with the library that it belongs to."""
    if row["library"] == "lowrank":
        method, comma, rest = row["method"].partition(", ")
        return f"`lowrank.{method}`{comma}{rest}"
    if row["method"] in (PRODUCT, PRODUCTS):
        return row["method"]
    return f"{NAMES.get(row['library'], row['library'])} `{row['method']}`"


def by_code(row: Row) -> Key:
    return (f"`{row['method']}`",)


def by_method(row: Row) -> Key:
    return row["library"], row["method"], label(row)
