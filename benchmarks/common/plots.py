"""The look of all plots. Needs matplotlib where one is made, and not before."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

# Okabe and Ito's colors, which everybody can tell apart.
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#777777", "#222222"
GREEN = "#009E73"


def begin_plots(*, open_axes: bool = False) -> Any:
    """pyplot with the look of all plots, or with axes open at the top and the right.

    The same results give the same files.
    """
    mpl = import_module("matplotlib")
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "lowrank", "font.size": 10, "axes.edgecolor": GREY})
    if open_axes:
        mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    return pyplot()


def pyplot() -> Any:
    return import_module("matplotlib.pyplot")


def plain(ax: Any) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)


def write_beside(ax: Any, ends: list[tuple[float, str, float, str]]) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    there, back = (math.log, math.exp) if ax.get_yscale() == "log" else (float, float)
    low, high = map(there, ax.get_ylim())
    height, least = -math.inf, 0.07 * (high - low)
    for y, text, x, color in sorted(ends):
        height = max(there(y), height + least)
        style = {"va": "center", "color": color, "fontsize": 9, "annotation_clip": False}
        beside = {"xytext": (6, 0), "textcoords": "offset points"}
        ax.annotate(text, (x, back(height)), **beside, **style)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot().close(figure)
