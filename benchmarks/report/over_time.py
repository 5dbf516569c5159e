"""Makes the page of the documentation that compares commits, and its plot, of what asv measured.

    python -m benchmarks.report.over_time [--results benchmarks/results/asv] [--out docs]

asv writes its results there (`asv run`); this reads those of the first machine, in the order of the
commits. Needs matplotlib.
"""

import itertools
import json
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.common import plots
from benchmarks.common.tables import number, table, write_page
from benchmarks.report.texts import text

COMMAND = "python -m benchmarks.report.over_time"
Values = dict[tuple[str, str], float]
TIMES, RATIOS, COUNTS = "times", "ratios", "counts"
TITLES = {RATIOS: "Ratios", COUNTS: "Independent of the machine", TIMES: "Times"}
# What the plot shows, by name: all on NumPy in double precision.
SHOWN = {
    "bench_svd.Factorizations.time_svd": ("svd, rank", plots.BLUE),
    "bench_svd.Factorizations.time_svd_to_tolerance": ("svd, tolerance", plots.ORANGE),
    "bench_rangefinder.RangeFinder.time_rank": ("range finder, rank", plots.GREEN),
    "bench_rangefinder.RangeFinder.time_tolerance": ("range finder, tolerance", plots.BLACK),
    "bench_householder.Square.time_qr": ("qr", plots.GREY),
}


def read(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The machine, the results of its commits from the oldest on, and what each benchmark is."""
    units = json.loads((folder / "benchmarks.json").read_text("utf-8"))
    place = min(folder.glob("*/machine.json"))
    found = [
        json.loads(path.read_text("utf-8"))
        for path in place.parent.glob("*.json")
        if path.name != "machine.json"
    ]
    found.sort(key=lambda content: content["date"])
    return json.loads(place.read_text("utf-8")), found, units


def values(content: dict[str, Any]) -> Values:
    """What was measured: a number for each benchmark and choice of its parameters."""
    columns, kept = content["result_columns"], {}
    for name, fields in content["results"].items():
        row = dict(zip(columns, fields, strict=False))
        choices = [" ".join(choice) for choice in itertools.product(*row["params"])]
        for choice, value in zip(choices, row["result"] or (), strict=False):
            if value is not None and math.isfinite(value):
                kept[name, choice.replace("'", "")] = float(value)
    return kept


def kind(name: str, unit: str) -> str:
    if unit == "seconds":
        return TIMES
    of_time = ("bench_ratios", "bench_stacks", "bench_optim", "bench_memory")
    return RATIOS if name.startswith(of_time) else COUNTS


def cell(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "seconds":
        return f"{number(1e3 * value)} ms"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    is_count = not unit.startswith(("times", "of", "eps"))
    return str(int(value)) if is_count and value == int(value) else number(value)


def named(name: str, unit: str, *, alone: bool) -> str:
    """The subject of the benchmark, what it calls, and the unit where the numbers lack it.

    And its file, if another one has a subject that calls the same.
    """
    file, subject, call = name.split(".") if name.count(".") == 2 else ("", *name.split("."))
    where = "" if alone else f" of {file.removeprefix('bench_')}"
    call = call.partition("_")[2].replace("_", " ")
    told = f"{subject.removeprefix('bench_')}{where}: {call}"
    if unit.startswith(call):  # such as passes over A
        told = told.removesuffix(f" {call}")
        return f"{told} {unit}"
    return told if unit in ("seconds", "bytes") else f"{told}, {unit}"


def heading(content: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(content["date"] / 1e3, UTC)
    return f"`{content['commit_hash'][:8]}` {when:%d %b %H:%M}"


def tables(found: list[dict[str, Any]], units: dict[str, dict[str, Any]]) -> list[str]:
    measured = [values(content) for content in found]
    keys = sorted(key for key in measured[-1] if key[0] in units)
    calls = Counter(name.partition(".")[2] for name in {name for name, _ in keys})
    lines = []
    for group, title in TITLES.items():
        mine = [key for key in keys if kind(key[0], units[key[0]]["unit"]) == group]
        told = text("Times of commits" if group == TIMES else title)
        lines += [f"## {title}", "", told, ""]
        head = ["benchmark", "of", *map(heading, found)]
        rows = [
            [
                named(name, units[name]["unit"], alone=calls[name.partition(".")[2]] == 1),
                choice.replace(" ", "\N{NO-BREAK SPACE}"),
                *(cell(kept.get((name, choice)), units[name]["unit"]) for kept in measured),
            ]
            for name, choice in mine
        ]
        lines += table(head, rows, left=2)
    return lines


def plot(found: list[dict[str, Any]], path: Path) -> None:
    measured = [values(content) for content in found]
    figure, ax = plots.pyplot().subplots(figsize=(8, 3.6), layout="constrained")
    ends = []
    for name, (told, color) in SHOWN.items():
        key = (name, "numpy float64")
        points = [(x, kept[key]) for x, kept in enumerate(measured) if key in kept]
        x, y = zip(*points, strict=True)
        last = [1e3 * value for value in y]
        ax.plot(x, last, color=color, marker="o", markersize=5, linewidth=1.5)
        ends.append((last[-1], told, x[-1], color))
    ax.set_ylim(bottom=0.0)
    ax.set_xlim(right=len(found) - 1)
    plots.write_beside(ax, ends)
    ax.set_xticks(range(len(found)), [heading(content).replace("`", "") for content in found])
    ax.tick_params(axis="x", labelsize=8)
    ax.set_title("milliseconds, NumPy in double precision", loc="left", fontsize=10)
    plots.plain(ax)
    plots.save(figure, path)


def page(folder: Path, out: Path) -> str:
    machine, found, units = read(folder)
    picture = out / "_static" / "benchmarks-over-time.svg"
    plot(found, picture)
    needs = ", ".join(f"{key} {value}" for key, value in found[-1]["requirements"].items())
    commits = " ".join(content["commit_hash"][:8] for content in found)
    return "\n".join(
        [
            f"<!-- Written by {COMMAND}: change that, or the results it reads, not this page. -->",
            "",
            "# Over time",
            "",
            text("Over time"),
            "",
            text("Results of commits", python=found[-1]["python"], needs=needs, **machine),
            "",
            "```sh",
            f"printf '%s\\n' {commits} > commits",
            "asv run HASHFILE:commits",
            COMMAND,
            "```",
            "",
            (
                "![Milliseconds of five calls at each of the commits, one line for each; the table "
                f"of times below has them all.]({picture.relative_to(out)})"
            ),
            "",
            *tables(found, units),
        ]
    )


def main() -> None:
    plots.begin_plots()
    write_page(page, __doc__, "over_time.md", ROOT / "benchmarks" / "results" / "asv")


if __name__ == "__main__":
    main()
