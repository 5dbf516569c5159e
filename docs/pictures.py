"""How the pictures of the gallery look, and what is read aloud in their place."""

import re
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from sphinx_gallery.scrapers import matplotlib_scraper

__all__ = ["scrape", "set_style"]

# Colours that stay apart for color-blind eyes (Okabe and Ito), on white in every theme.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLE = {
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.figsize": (7.2, 3.8),
    "font.size": 10,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}


def set_style(_conf: Any, _file: Any) -> None:
    """Before each script."""
    mpl.rcParams.update(STYLE)


def scrape(block: Any, variables: dict[str, Any], conf: Any) -> str:
    """The pictures of a block; the label of a figure is its alternative text."""
    texts = iter([plt.figure(number).get_label() for number in plt.get_fignums()])
    directives: str = matplotlib_scraper(block, variables, conf)
    return re.sub(r"(:alt:) .*", lambda found: f"{found[1]} {_said(next(texts))}", directives)


def _said(label: object) -> str:
    text = " ".join(str(label).split())
    if not text:
        message = "a figure of the gallery has no alternative text: call fig.set_label(...)."
        raise ValueError(message)
    return text
