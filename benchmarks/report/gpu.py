"""The part of the page that is of benchmarks/machines/gpu."""

import math
import re
from collections.abc import Callable

from benchmarks.common.tables import Key, Row, crossed, duration, number, size, small, table, unique
from benchmarks.report.comparisons import losses_section
from benchmarks.report.goals import goals_met, gpu_goals
from benchmarks.report.machine import machine
from benchmarks.report.optimizers import optimizer_sections
from benchmarks.report.rows import SECTIONS, by_code, by_method, measured, select
from benchmarks.report.texts import section


def gpu_page(content: Row) -> list[str]:
    rows = content["rows"]
    return [
        f"## On a GPU: {content['machine']['device']}",
        "",
        *machine(content),
        *older(rows),
        *tests_of(content),
        *goals_met("Goals on this GPU", gpu_goals(rows), ["goal", "worst case", ""]),
        *gpu_predictions(content),
        *gpu_published(rows),
        *gpu_tolerances(rows),
        *gpu_matrices(rows),
        *gpu_panels(rows),
        *gpu_small(rows),
        *gpu_functions(rows),
        *gpu_steps(rows),
        *optimizer_sections(rows),
        *losses_section(rows, " on this GPU"),
    ]


def older(rows: list[Row]) -> list[str]:
    """Which figures are older than the code."""
    found = measured(rows, older=True)
    kinds: dict[Key, list[str]] = {}
    for row in found:
        kinds.setdefault((SECTIONS[row["section"]], row["day"]), []).append(row["dtype"])
    named = [f"{of} ({', '.join(unique(dtypes))}; {day})" for (of, day), dtypes in kinds.items()]
    told = "all" if len(found) == len(measured(rows)) else "these"
    text = f"**Older than the code**: it has changed since {told} measurements: {', '.join(named)}."
    return [text, ""] if found else []


def tests_of(content: Row) -> list[str]:
    """What the tests said on this device, in each run that the page has figures of."""
    lines = ["### Tests on this GPU", ""]
    for run in content["runs"]:
        tests = run.get("tests") or {}
        told = "no tests were run"
        if "passed" in tests:
            kinds = ["passed", "failed", "skipped", *(["errors"] if tests.get("errors") else [])]
            told = ", ".join(f"{tests[key]:,} {key}" for key in kinds)
        if tests.get("status") == 124:
            told += f", when {tests['seconds']:.0f} s were over"
        lines.append(f"- `{run['file']}`, {run['date'][:10]}: {told}.")
        names = re.findall(r"^FAILED (\S+)", tests.get("output", ""), re.MULTILINE)
        lines += [f"  - failed: `{name}`" for name in names]
    return [*lines, ""]


def timed(row: Row) -> str:
    """A time, and in parentheses the one that the model predicts."""
    guess = row.get("predicted")
    return duration(row["seconds"]) + ("" if guess is None else f" ({duration(guess)})")


def by_matrix(row: Row) -> Key:
    return row["section"], row["dtype"], f"{size(row['shape'])}, k = {row['k']}, {row['spectrum']}"


def gpu_predictions(content: Row) -> list[str]:
    found = [row for row in measured(content["rows"]) if row.get("predicted")]
    near = sum(abs(math.log(row["predicted"] / row["seconds"])) < math.log(1.3) for row in found)
    fit = content.get("model") or {"rows": 0, "within_30_percent": 0}
    by = " or ".join(unique(row["predicted_by"] for row in found))
    return section(found, "Predictions", [], by=by, count=len(found), near=near, **fit)


def gpu_published(rows: list[Row]) -> list[str]:
    found = sorted(measured(rows, section="published"), key=lambda row: (row["shape"], row["k"]))
    both = [
        {**row, "method": name, "library": "theirs", "seconds": row[key], "predicted": None}
        for row in found
        for key, name in (("published", "with B"), ("published_fixed", "fixed rank"))
        if row[key] is not None
    ]
    both = sorted([*both, *found], key=lambda row: (row["shape"], row["k"]))

    lines = crossed(both, lambda row: by_matrix(row)[1:], by_method, timed)
    return section(found, "The published grid", lines)


def gpu_tolerances(rows: list[Row]) -> list[str]:
    found = measured(rows, section="tolerance")

    def matrix(row: Row) -> Key:
        case = size(row["shape"]), row["spectrum"], row["dtype"], small(row["rtol"])
        return (", ".join(case),)

    def cell(row: Row) -> str:
        error = small(row["error"]) + ("*" if row["converged"] is False else "")
        return f"{timed(row)}; {row['rank']}; {number(row['ratio'])}; {error}"

    lines = crossed(found, matrix, by_code, cell, "matrix, tolerance")
    return section(found, "To a tolerance on this GPU", lines)


def gpu_matrices(rows: list[Row]) -> list[str]:
    found = [row for row in measured(rows) if row["section"] in ("matrix", "full svd")]
    found = [row for row in found if row["ratio"] is not None and row["method"][:2] != "A@"]
    known = [row for row in found if row.get("predicted")]

    def tables(rows: list[Row], cell: Callable[[Row], str]) -> list[str]:
        lines = []
        for dtype in unique(row["dtype"] for row in rows):
            lines += crossed(select(rows, dtype=dtype), by_method, by_matrix, cell, dtype)
        return lines

    ratios = tables(found, lambda row: number(row["ratio"]))
    return [
        *section(found, "Time over the bare products", ratios),
        *section(known, "Times", tables(known, timed)),
    ]


def gpu_panels(rows: list[Row]) -> list[str]:
    found = measured(rows, section="panel")

    def sketch(row: Row) -> Key:
        return (f"{size(row['shape'])}, {row['spectrum']}, {row['dtype']}",)

    def cell(row: Row) -> str:
        figures = f"{number(row['ratio'])}; {small(row['orthogonality'])}"
        return f"{figures}; {timed(row)}" if row.get("predicted") else figures

    lines = crossed(found, sketch, by_code, cell, "sketch")
    return section(found, "Orthonormal columns of a sketch", lines)


def gpu_small(rows: list[Row]) -> list[str]:
    found = measured(rows, section="small svd")

    def cell(row: Row) -> str:
        lost = row["orthogonality"]
        return timed(row) + ("" if lost is None else f"; {small(lost)}")

    lines = crossed(found, by_method, lambda row: (f"k = {row['k']}",), cell)
    rates = [[row["method"], timed(row)] for row in measured(rows, section="rate")]
    lines += table(["rates", "time"], rates) if rates else []
    return section(found, "Small decompositions", lines)


def gpu_functions(rows: list[Row]) -> list[str]:
    found = select(rows, section="functions")
    bad = [row for row in found if row["skipped"] or row.get("note")]
    reasons: dict[Key, list[str]] = {}
    for row in bad:
        key = row["method"], row["arrays"], row["skipped"] or row["note"]
        reasons.setdefault(key, []).append(row["dtype"])

    def cell(row: Row) -> str:
        tried, failed = (
            select(of, arrays=row["arrays"], method=row["method"]) for of in (found, bad)
        )
        return f"{len(tried) - len(failed)} of {len(tried)}"

    shown = [row for row in found if row["method"] != "all"]
    lines = [f"- Not {of} of {on} ({', '.join(d)}): {why}" for (of, on, why), d in reasons.items()]
    tables = crossed(shown, by_code, lambda row: (row["arrays"],), cell)
    return section(found, "All functions", [*tables, *lines, ""])


def gpu_steps(rows: list[Row]) -> list[str]:
    found = measured(rows, section="llama step")
    lines = [
        [row["method"], timed(row), number(row["ratio"])]
        + ["–" if row.get(key) is None else str(row[key]) for key in ("operations", "host_reads")]
        for row in found
    ]
    head = ["step", "time", "over AdamW, fused", "operations", "numbers read by the host"]
    return section(found, "Steps of a Llama", table(head, lines))
