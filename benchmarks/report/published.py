"""Makes tables and pictures of the published experiments, from the newest file of their results.

    python -m benchmarks.report.published

Writes docs/explanation/published_tables.md and docs/_static/published-*.svg; needs matplotlib.
"""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.common.plots import BLACK, BLUE, GREEN, GREY, ORANGE, begin_plots, save
from benchmarks.common.tables import Row, table, unique
from benchmarks.report.rows import newest, select
from benchmarks.studies.published import AGAIN, ONCE

RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
# By C. Penke and A. Herten, from the data of the repository caropen/Reproduce-BARRF-Householder at
# 1264cd3, with one seed and norms in float32: orthogonality at 64, 512 and 1024 columns, and the
# residual in the spectral norm at 512 and 1024.
PUBLISHED = {
    "as published: Householder": (5.2e-7, 1.1e-6, 2.0e-6, 1.3e-6, 4.2e-7),
    f"as published: {AGAIN}": (3.7e-7, 5.6e-7, 1.6e-4, 1.3e-6, 2.3e-5),
    f"as published: {ONCE}": (3.7e-7, 4.0e-1, 1.0, 2.6e-1, 9.3e-1),
}
LIBRARIES = {"numpy": "NumPy", "torch": "PyTorch"}
OURS = [(library, f"q = {q}") for library in LIBRARIES for q in (0, 1)]


def at(row: Row, name: str, rank: int) -> float:
    return float(row[name][row["ranks"].index(rank)])


def spread(rows: list[Row], name: str, rank: int) -> str:
    """Least and largest of the seeds."""
    values = sorted(at(row, name, rank) for row in rows)
    low, high = f"{values[0]:.1e}", f"{values[-1]:.1e}"
    return low if low == high else f"{low} to {high}"


def stability_tables(rows: list[Row]) -> list[str]:
    (best,) = select(rows, library="best", method="best possible")
    n = best["shape"][0]
    half, first = n // 2, best["ranks"][0]
    asked = [("orthogonality", first), ("orthogonality", half), ("orthogonality", n)]
    asked += [("residual", half), ("residual", n)]
    named = [(f"`RangeFinder`, {q}, {LIBRARIES[of_]}", of_, q) for of_, q in OURS]
    named += [(name, "numpy", name) for name in (AGAIN, ONCE)]
    lines = []
    for title, library, method in named:
        mine = select(rows, library=library, method=method)
        lines.append([title, *(spread(mine, name, rank) for name, rank in asked)])
    lines += [[name, *(f"{value:.1e}" for value in values)] for name, values in PUBLISHED.items()]
    lines += [["best possible", "", "", "", f"{at(best, 'residual', half):.1e}", "0"]]
    head = [f"{name}, {rank} columns" for name, rank in asked]
    tables = ["<!-- stability -->", "", *table(["", *head], lines), "<!-- end -->", ""]
    ranks = best["ranks"][3::2]
    ranks = ranks if ranks[-1] == n else [*ranks, n]
    lines = []
    for q in (0, 1):
        mine = select(rows, library="numpy", method=f"q = {q}")
        for name, title in (
            ("error", "true error"),
            ("tracked", "norm of the residual"),
            ("bound", "`error_bound`"),
            ("energies", "root of the energies"),
        ):
            values = [median(at(row, name, rank) for row in mine) for rank in ranks]
            lines.append([f"q = {q}: {title}", *(f"{value:.1e}" for value in values)])
    head = [f"{rank} columns" for rank in ranks]
    return [*tables, "<!-- tracked -->", "", *table(["", *head], lines), "<!-- end -->", ""]


def speed_tables(rows: list[Row]) -> list[str]:
    lines = ["<!-- speed -->", ""]
    for library, title in LIBRARIES.items():
        mine = select(rows, library=library)
        cases = unique((row["shape"][0], row["k"]) for row in mine)
        found = {(row["shape"][0], row["k"], row["method"]): row["seconds"] for row in mine}
        cells = [
            [method, *(milliseconds(found.get((*case, method))) for case in cases)]
            for method in unique(row["method"] for row in mine)
        ]
        head = [f"{n}², {k}" for n, k in cases]
        lines += [f"{title}, milliseconds:", "", *table(["order, columns", *head], cells)]
    return [*lines, "<!-- end -->", ""]


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1e3 * seconds:.0f}" if seconds >= 1e-2 else f"{1e3 * seconds:.1f}"


def picture_of_stability(rows: list[Row], path: Path) -> None:
    """Medians over the seeds, of our bases on NumPy."""
    plt = begin_plots(open_axes=True)
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    (best,) = select(rows, library="best", method="best possible")
    ranks = best["ranks"]
    n = ranks[-1]

    def line(ax: Any, method: str, name: str, label: str, **style: Any) -> None:
        mine = select(rows, library="numpy", method=method)
        found = np.array([row[name] for row in mine], dtype=float)
        middle = np.median(found, axis=0)
        ax.semilogy(ranks, np.where(middle > 0.0, middle, np.nan), label=label, **style)

    styles = {
        "q = 0": {"color": BLUE, "label": "RangeFinder, q = 0"},
        "q = 1": {"color": GREEN, "label": "RangeFinder, q = 1"},
        AGAIN: {"color": ORANGE, "linestyle": "--", "label": AGAIN},
        ONCE: {"color": GREY, "linestyle": "--", "label": ONCE},
    }
    for ax, name in zip(axes, ("orthogonality", "residual"), strict=False):
        for method, style in styles.items():
            line(ax, method, name, **style)
    theirs = {"color": BLACK, "marker": "x", "linestyle": "", "label": "Householder, as published"}
    values = next(iter(PUBLISHED.values()))
    axes[0].plot([ranks[0], n // 2, n], values[:3], **theirs)
    axes[1].plot([n // 2, n], values[3:], **theirs)
    axes[1].semilogy(ranks[:-1], best["residual"][:-1], ":", color=BLACK, label="best possible")
    line(axes[2], "q = 1", "error", "true error", color=BLACK, linewidth=4, alpha=0.25)
    line(axes[2], "q = 1", "tracked", "norm of the residual", color=GREEN)
    line(axes[2], "q = 1", "bound", "error_bound", color=GREEN, linestyle=":")
    line(axes[2], "q = 1", "energies", "root of ‖A‖² − ‖B‖²", color=ORANGE)
    titles = ("orthogonality, spectral norm", "residual, spectral norm", "error, Frobenius norm")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc="left")
        ax.set_xlabel("columns of the basis")
        ax.set_xticks([0, n // 4, n // 2, 3 * n // 4, n])
        ax.yaxis.minorticks_off()
    axes[2].legend(loc="upper right", frameon=False)
    shown = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    shown |= dict(zip(*reversed(axes[1].get_legend_handles_labels()), strict=True))
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(shown.values(), shown.keys(), **place)
    save(figure, path)


def picture_of_speed(rows: list[Row], path: Path) -> None:
    """Times of PyTorch over those of the two bare products."""
    plt = begin_plots(open_axes=True)
    mine = select(rows, library="torch")
    found = {(row["shape"][0], row["k"], row["method"]): row["seconds"] for row in mine}
    cases = unique((row["shape"][0], row["k"]) for row in mine)
    blocks = next(name for _, _, name in reversed(found) if name.endswith("and Q"))
    styles = {
        "`linalg.qr(A)`": (GREY, "linalg.qr(A)"),
        "Q by `linalg.qr(A @ Ω)`": (ORANGE, "linalg.qr(A @ Ω), without B"),
        "`qb(A, k)`": (GREEN, "qb(A, k)"),
        blocks: (BLUE, f"RangeFinder, {blocks}"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    whole = [case for case in cases if case[0] == case[1]]
    part = [case for case in cases if case[0] != case[1]]
    for ax, some, title in (
        (axes[0], whole, "all columns"),
        (axes[1], part, f"columns of a matrix of order {part[0][0]}"),
    ):
        for method, (color, label) in styles.items():
            points = [
                (k, found[n, k, method] / found[n, k, "both products"])
                for n, k in some
                if (n, k, method) in found
            ]
            if points:
                ax.plot(*zip(*points, strict=True), "o-", color=color, label=label)
        ticks = [k for _, k in some]
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(k) for k in ticks])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("columns")
        ax.set_title(title, loc="left")
    axes[0].set_ylabel("time over A @ Ω and QᵀA")
    axes[0].set_ylim(bottom=0.0)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    save(figure, path)


def pages(content: Row) -> str:
    """The tables of what the file has measured."""
    machine = content["machine"]
    names = f"{machine['cpu']}, one thread, {content['file']}"
    lines = [f"<!-- of benchmarks/studies/published.py: {names} -->", ""]
    for section, made in (("stability", stability_tables), ("speed", speed_tables)):
        rows = select(content["rows"], section=section)
        lines += made(rows) if rows else []
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    (content,) = select(newest(RESULTS), kind="published")
    (DOCS / "explanation" / "published_tables.md").write_text(pages(content), "utf-8")
    for section, draw_it in (("stability", picture_of_stability), ("speed", picture_of_speed)):
        rows = select(content["rows"], section=section)
        if rows:
            draw_it(rows, DOCS / "_static" / f"published-{section}.svg")


if __name__ == "__main__":
    main()
