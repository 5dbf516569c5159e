"""True errors of a range finder beside the published bounds on them: a table and a picture.

    python -m benchmarks.studies.bounds

Writes docs/explanation/bounds_table.md and, where Matplotlib is, docs/_static/bounds.svg; takes
half a minute on one thread. The matrices are diagonal: VᴴΩ is as Gaussian as Ω, so the errors of
UΣVᴴ and of Σ have one distribution.
"""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lowrank
from benchmarks import ROOT
from benchmarks.common.plots import BLACK, BLUE, GREEN, GREY, ORANGE, begin_plots, save
from benchmarks.common.tables import table
from lowrank import bounds, gallery

DOCS = ROOT / "docs"
N, RANK, OVERSAMPLING, DRAWS = 300, 20, 10, 200
COLUMNS = RANK + OVERSAMPLING
# Draws for which the bounds that differ from draw to draw are computed.
SHOWN = 20
SPECTRA = ("slow", "fast", "s_shaped")
POWERS = (0, 1)
NORMS = {"fro": "Frobenius norm", "spectral": "Spectral norm"}
DELTA = 1e-9


class Draws(NamedTuple):
    """Test matrices, bases of their sketches, and the true errors of these in both norms."""

    Omega: Any
    Q: Any
    errors: dict[str, Any]


def draws(s: Any, q: int, columns: int, count: int = DRAWS) -> Draws:
    """Of the range finder for ``diag(s)`` with q power iterations."""
    Omega = np.random.default_rng(0).standard_normal((count, s.size, columns))
    Q = np.linalg.qr((s[:, None] / s[0]) ** (2 * q + 1) * Omega).Q
    return Draws(Omega, Q, {kind: errors(s, Q, kind) for kind in NORMS})


def errors(s: Any, Q: Any, kind: str) -> Any:
    """``‖A − QQᴴA‖`` for every basis, the root of ``‖A(I − QQᴴ)A‖``.

    Squares lose half of the digits, of errors down to a thousandth of A here: ten are left.
    """
    B = Q.mT * s
    if kind == "fro":
        return np.sqrt(np.sum(s**2) - np.sum(B**2, axis=(1, 2)))
    return np.sqrt(np.linalg.eigvalsh(np.diag(s**2) - B.mT @ B)[:, -1])


def column(s: Any, q: int, kind: str, drawn: Draws) -> list[tuple[str, float | None]]:
    """All that is known of one spectrum and power, over the best error of so many columns."""
    options: dict[str, Any] = {"norm": kind, "power_iterations": q}
    best, true = gallery.best_error(s, COLUMNS, norm=kind), drawn.errors[kind]
    splits = range(COLUMNS - 1)
    known = [
        [bounds.given_sketch(s, Omega, k, **options) for k in range(COLUMNS + 1)]
        for Omega in drawn.Omega[:SHOWN]
    ]
    t, u = (4 / DELTA) ** (1 / OVERSAMPLING), math.sqrt(2 * math.log(2 / DELTA))
    simple = bounds.deviation_simple(s, RANK, OVERSAMPLING, power_iterations=q).bound
    certified = [
        lowrank.residual_norm(np.diag(s), Q, norm=kind, rng=seed).upper_bound
        for seed, Q in enumerate(drawn.Q[:SHOWN])
    ]
    rows = {
        "true error, median": np.median(true),
        "true error, root mean square": np.sqrt(np.mean(true**2)),
        "true error, largest": np.max(true),
        "certificate (`residual_norm`), median": np.median(certified),
        "`given_sketch`, k = 20, median": np.median([each[RANK] for each in known]),
        "`given_sketch`, best k, median": np.median([min(each) for each in known]),
        "`root_mean_square`": None if q else bounds.root_mean_square(s, COLUMNS, norm=kind),
        "`expected`, k = 20": bounds.expected(s, RANK, OVERSAMPLING, **options),
        "`expected`, best k": min(bounds.expected(s, k, COLUMNS - k, **options) for k in splits),
        "`deviation_simple`, k = 20": None if kind == "fro" else simple,
        "`deviation`, k = 20, 1e-9": bounds.deviation(
            s, RANK, OVERSAMPLING, t=t, u=u, **options
        ).bound,
        "`likely`, 1e-2": bounds.likely(s, COLUMNS, failure_probability=1e-2, **options),
        "`likely`, 1e-9": bounds.likely(s, COLUMNS, failure_probability=DELTA, **options),
        "best possible with 20 columns": gallery.best_error(s, RANK, norm=kind),
        "norm of A": gallery.best_error(s, 0, norm=kind),
    }
    return [(name, None if value is None else float(value / best)) for name, value in rows.items()]


def figures() -> dict[str, dict[str, list[float | None]]]:
    """For each norm the rows of its table, each with a number for every spectrum and power."""
    found: dict[str, dict[str, list[float | None]]] = {kind: {} for kind in NORMS}
    for spectrum in SPECTRA:
        s = gallery.SPECTRA[spectrum](N)
        for q in POWERS:
            drawn = draws(s, q, COLUMNS)
            for kind, rows in found.items():
                for name, value in column(s, q, kind, drawn):
                    rows.setdefault(name, []).append(value)
    return found


def page(found: dict[str, dict[str, list[float | None]]]) -> str:
    head = [f"*{spectrum}*, q&nbsp;=&nbsp;{q}" for spectrum in SPECTRA for q in POWERS]
    lines = []
    for kind, title in NORMS.items():
        cells = [
            [name, *("–" if value is None else f"{value:.3g}" for value in values)]
            for name, values in found[kind].items()
            if any(value is not None for value in values)
        ]
        lines += table([title, *head], cells)
    return "\n".join(lines)


def picture(path: Path) -> None:
    """True errors and bounds over the number of columns, for *slow* and q = 0."""
    plt = begin_plots(open_axes=True)
    s, counts = gallery.slow(N), range(4, 64, 4)
    drawn = draws(s, 0, counts[-1], DRAWS // 2)
    figure, panels = plt.subplots(1, 2, figsize=(8, 4.4), sharey=True, layout="constrained")
    for axes, (kind, title) in zip(panels, NORMS.items(), strict=True):
        best = np.array([gallery.best_error(s, count, norm=kind) for count in counts])
        # the first columns of Q are a basis of the first columns of the sketch
        true = np.array([errors(s, drawn.Q[..., :count], kind) for count in counts]) / best[:, None]
        certified = [
            lowrank.residual_norm(np.diag(s), drawn.Q[0, :, :count], norm=kind, rng=0).upper_bound
            for count in counts
        ]
        likely, mean = (
            np.array([bound(s, count, norm=kind) for count in counts]) / best
            for bound in (bounds.likely, bounds.root_mean_square)
        )
        axes.semilogy(counts, likely, color=ORANGE, label="likely, 1e-9")
        axes.semilogy(counts, mean, color=BLUE, label="root_mean_square")
        dots = {"markersize": 4, "color": GREEN, "label": "certificate of one draw"}
        axes.semilogy(counts, certified / best, "o", **dots)
        low, high = true.min(axis=1), true.max(axis=1)
        axes.fill_between(counts, low, high, color="#BBBBBB", label="true errors of 100 draws")
        axes.semilogy(counts, np.median(true, axis=1), color=BLACK, label="their median")
        axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
        axes.annotate("best possible", (60, 1.05), ha="right", color="#555555")
        axes.set_title(title, loc="left")
        axes.set_xlabel("columns of the basis")
    panels[0].set_ylabel("error over the best possible")
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def main() -> None:
    (DOCS / "explanation" / "bounds_table.md").write_text(page(figures()), encoding="utf-8")
    if find_spec("matplotlib") is not None:
        picture(DOCS / "_static" / "bounds.svg")


if __name__ == "__main__":
    main()
