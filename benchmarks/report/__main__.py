"""Makes the page of the documentation with all measured figures, and its plots.

    python -m benchmarks.report [--results benchmarks/results] [--out docs]

Reads the newest file of each kind and device among the results of benchmarks/machines/cpu,
benchmarks/machines/gpu and benchmarks/machines/optimizer.py, and writes benchmarks.md and
_static/benchmarks-*.svg. Needs matplotlib.
Everything on the page follows from these files, and from the code that it is compared to: run it
again after every new one.
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks import ROOT
from benchmarks.common.plots import begin_plots
from benchmarks.common.tables import Row, write_page
from benchmarks.report.comparisons import answer
from benchmarks.report.cpu import cpu_page
from benchmarks.report.goals import missed_goals
from benchmarks.report.gpu import gpu_page
from benchmarks.report.optimizers import llama_page, optimizer_page
from benchmarks.report.pictures import pictures
from benchmarks.report.rows import newest, select
from benchmarks.report.texts import text

COMMAND = "python -m benchmarks.report"
PAGES: dict[str, Callable[[Row, dict[str, str]], list[str]]] = {
    "cpu": cpu_page,
    "gpu": lambda content, _: gpu_page(content),
    "llama": lambda content, _: llama_page(content),
    "optimizer": lambda content, _: optimizer_page(content),
}


def page(files: list[Row], out: Path) -> str:
    lines = [
        f"<!-- Written by {COMMAND}: change that, or the results it reads, not this page. -->",
        "",
        "# Benchmarks",
        "",
        *answer(files),
        text("Introduction", command=COMMAND),
        "",
        "```{toctree}",
        ":hidden:",
        "",
        "over_time",
        "```",
        "",
    ]
    for kind, title in (
        ("cpu", "On a CPU"),
        ("gpu", "On a GPU"),
        ("llama", None),
        ("optimizer", "Training with low-rank optimizer state"),
    ):
        found = select(files, kind=kind)
        for place, content in enumerate(found):
            suffix = f"-{place + 1}" if place else ""
            lines += PAGES[kind](content, pictures(content, out, suffix))
        if title is not None and not found:
            lines += [f"## {title}", "", text("Nothing"), "", *command(kind)]
    lines += missed_goals(files)
    return "\n".join(lines).rstrip() + "\n"


def command(kind: str) -> list[str]:
    run = f"python -m benchmarks.machines.{kind} --out benchmarks/results/{kind}-NAME-DATE.json"
    return ["```sh", run, COMMAND, "```", ""]


def main() -> None:
    begin_plots()
    results = ROOT / "benchmarks" / "results"
    write_page(lambda folder, out: page(newest(folder), out), __doc__, "benchmarks.md", results)


if __name__ == "__main__":
    main()
