"""The plots of what benchmarks/machines/cpu measured."""

from pathlib import Path

from benchmarks.common import plots
from benchmarks.common.tables import Row, unique
from benchmarks.report.rows import ARRAYS, NAMES, measured, select


def plot_ratios(content: Row, path: Path) -> bool:
    """A dot for each matrix and dtype; one line of dots for each method."""
    found = [
        row
        for row in measured(content["rows"], section="fixed rank")
        if row["task"] != "product" and row["ratio"] is not None
    ]
    if not found:
        return False
    columns = list(ARRAYS)
    subplots = plots.pyplot().subplots
    figure, axes = subplots(1, 2, figsize=(10, 3.4), sharex=True, layout="constrained")
    for ax, arrays in zip(axes, columns, strict=True):
        mine = select(found, arrays=arrays)
        order = {"basis": 0, "qb": 1, "svd": 2}
        methods = unique((row["task"], row["library"], row["method"]) for row in mine)
        methods.sort(key=lambda name: (order[name[0]], name[1] != "lowrank"))
        for place, (_, library, method) in enumerate(methods):
            is_ours = library == "lowrank"
            for dtype, filled in (("float32", False), ("float64", True)):
                x = [
                    row["ratio"]
                    for row in select(mine, library=library, method=method, dtype=dtype)
                ]
                y = [place + (0.13 if filled else -0.13)] * len(x)
                color = plots.BLUE if is_ours else plots.ORANGE
                face = {"color": color, "markerfacecolor": color if filled else "white"}
                ax.plot(x, y, marker="o", linestyle="", markersize=6, clip_on=False, **face)
        ax.axvline(1.0, color=plots.GREY, linewidth=1.0, zorder=0)
        names = [f"{NAMES.get(name[1], name[1])} {name[2]}" for name in methods]
        ax.set_yticks(range(len(names)), names)
        for tick, name in zip(ax.get_yticklabels(), methods, strict=True):
            tick.set_color(plots.BLUE if name[1] == "lowrank" else plots.BLACK)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_title(f"{ARRAYS[arrays]} arrays", loc="left", fontsize=11)
        plots.plain(ax)
        if arrays == columns[0]:
            ax.set_xlabel("time over the bare products (line: 1), logarithmic")
        else:
            ax.set_xlabel("open: float32; filled: float64")
    axes[0].set_xscale("log")
    high = max(row["ratio"] for row in found)
    low = min(1.0, *(row["ratio"] for row in found))
    marks = [mark for mark in (0.2, 0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if mark < 1.3 * high]
    marks = [mark for mark in marks if mark > 0.7 * low]
    axes[0].set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes[0].set_xticks([], minor=True)
    plots.save(figure, path)
    return True


def plot_growth(content: Row, path: Path) -> bool:
    rows = measured(content["rows"], section="growth")
    if not rows:
        return False
    colors = {"range_finder": plots.BLUE, "range_finder, adaptive": plots.ORANGE, "qb": plots.GREEN}
    slopes = {(fit["method"], fit["axis"]): fit["slope"] for fit in content["fits"]}
    subplots = plots.pyplot().subplots
    figure, axes = subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for ax, axis in zip(axes, ("m", "n", "k"), strict=True):
        mine = select(rows, axis=axis)
        ends = []
        for method, color in colors.items():
            points = sorted(
                (abscissa(row, axis), 1e3 * row["seconds"]) for row in select(mine, method=method)
            )
            x, y = zip(*points, strict=True)
            ax.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.5)
            slope = slopes[method, axis]
            name = method.rpartition(", ")[2]
            ends.append((y[-1], f"{name} $\\sim {axis}^{{{slope:.2f}}}$", x[-1], color))
        ax.set_xscale("log")
        ax.set_yscale("log")
        plots.write_beside(ax, ends)
        sizes = unique(sorted(abscissa(row, axis) for row in mine))
        # every second one, from the largest down: all would run into one another
        sizes = sizes[::-1][::2]
        ax.set_xticks(sizes, [str(value) for value in sizes])
        ax.set_xticks([], minor=True)
        ax.set_xlabel(f"{axis} ({fixed_sizes(mine[0], axis)})")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[0].set_ylabel("milliseconds")
    low, high = axes[0].get_ylim()
    steps = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    axes[0].set_yticks(inside, [f"{step:g}" for step in inside])
    axes[0].set_yticks([], minor=True)
    plots.save(figure, path)
    return True


def abscissa(row: Row, axis: str) -> int:
    m, n = row["shape"]
    return int({"m": m, "n": n, "k": row["k"]}[axis])


def fixed_sizes(row: Row, axis: str) -> str:
    return ", ".join(f"{name} = {abscissa(row, name)}" for name in ("m", "n", "k") if name != axis)


def pictures(content: Row, out: Path, suffix: str) -> dict[str, str]:
    """The plots that the file has rows for, by name."""
    made = {}
    for name, draw in (("ratios", plot_ratios), ("growth", plot_growth)):
        path = out / "_static" / f"benchmarks-{name}{suffix}.svg"
        if draw(content, path):
            made[name] = str(path.relative_to(out))
    return made
