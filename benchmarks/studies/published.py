"""The experiments of Penke and Herten (2026) with this library, on a processor: stability, speed.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.studies.published \
        --out benchmarks/results/published-NAME-DATE.json [--part stability speed] [--quick]
    python -m benchmarks.studies.published --draw

The first call measures, on one thread: the stability in three minutes, the speed in about twenty,
when nothing else should run. A part takes the place of what it measured last time. The second makes
docs/explanation/published_tables.md and the pictures beside it from the newest file.

- stability: the matrix of their figure 4, of order 1024 in float32 with singular values from 1 to
  1e-14 (below 1e-7 they drown in the rounding of its entries), and blocks of 64. A row has lists
  over the columns of the basis: `ranks`; `orthogonality`, ‖QᵀQ − I‖₂; `residual` and `error`,
  ‖A − QQᵀA‖ in the spectral and the Frobenius norm; all of these in float64. `tracked` is the error
  in the Frobenius norm that the method itself knows of, `bound` what `RangeFinder` certifies, and
  `energies` the root of ‖A‖² − ‖QᵀA‖². Block Gram–Schmidt is that of Martinsson and Voronin (2016)
  in our words, on NumPy, whose `qr` computes in double precision.
- speed: Gaussian matrices in float32, without power iterations: all columns of some, and up to so
  many of a larger one. `seconds` are medians of CPU times of calls that take turns.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import lowrank
from benchmarks import ROOT
from benchmarks.common.plots import BLACK, BLUE, GREEN, GREY, ORANGE, begin_plots, save
from benchmarks.common.results import Results, cpu_name, header
from benchmarks.common.tables import table, unique
from benchmarks.report.rows import newest, select

Row = dict[str, Any]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
PACKAGES = ("numpy", "torch", "array-api-compat")
SEEDS = 5
# Order, columns of a block.
STABILITY = {"full": (1024, 64), "quick": (128, 16)}
# Orders of matrices of which all columns are found; a larger one, and columns of it.
SPEED = {
    "full": ((1024, 2048, 4096), 8192, (128, 256, 512, 1024, 2048)),
    "quick": ((128, 256), 512, (32, 64)),
}
WIDTHS = (64, 128, 256)
AGAIN = "block Gram–Schmidt, twice"
ONCE = "block Gram–Schmidt"
# By C. Penke and A. Herten, from the data of the repository caropen/Reproduce-BARRF-Householder at
# 1264cd3, with one seed and norms in float32: orthogonality at 64, 512 and 1024 columns, and the
# residual in the spectral norm at 512 and 1024.
PUBLISHED = {
    "as published: Householder": (5.2e-7, 1.1e-6, 2.0e-6, 1.3e-6, 4.2e-7),
    f"as published: {AGAIN}": (3.7e-7, 5.6e-7, 1.6e-4, 1.3e-6, 2.3e-5),
    f"as published: {ONCE}": (3.7e-7, 4.0e-1, 1.0, 2.6e-1, 9.3e-1),
}


# -- stability ------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A basis, the error that the method believes it has, and a bound on that where there is one.

    Both in the Frobenius norm.
    """

    Q: Any
    tracked: float
    bound: float | None = None


def graded(n: int) -> Any:
    """Orthonormal factors of Gaussian draws in float32, and singular values from 1 to 1e-14."""
    rng = np.random.default_rng(1)
    U, V = (np.linalg.qr(draw(rng, n, n)).Q for _ in range(2))
    return U * np.logspace(0, -14, n, dtype=np.float32) @ V.T


def draw(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def householder(A: Any, width: int, *, seed: int, power_iterations: int) -> Iterator[Step]:
    """Ours, block by block, on an explicit residual."""
    finder = lowrank.RangeFinder(A, rng=seed, power_iterations=power_iterations)
    loose = {"rtol": 2.0}  # which no columns meet: a look at the error, and no growth
    finder.reach(**loose)
    while finder.rank < min(A.shape):
        found = finder.extend(width).reach(**loose).result()
        yield Step(found.Q, found.error, found.error_bound)


def gram_schmidt(A: Any, width: int, *, seed: int, again: bool) -> Iterator[Step]:
    """A panel of the residual is orthonormalized, `again` against the basis, and projected out."""
    rng, Q, E = np.random.default_rng(seed), A[:, :0], A.copy()
    while Q.shape[1] < min(A.shape):
        P = np.linalg.qr(E @ draw(rng, A.shape[1], width)).Q
        if again:
            P = np.linalg.qr(P - Q @ (Q.T @ P)).Q
        E -= P @ (P.T @ E)
        Q = np.hstack([Q, P])
        yield Step(Q, float(np.linalg.norm(E)))


def energies(A: Any, Q: Any) -> float:
    """The root of ``‖A‖² − ‖QᵀA‖²``: products in the dtype of A, sums in float64; 0 of less."""
    left = np.sum(A.astype(np.float64) ** 2) - np.sum((Q.T @ A).astype(np.float64) ** 2)
    return float(np.sqrt(max(0.0, left)))


def truths(A: Any, Q: Any) -> dict[str, float]:
    """Orthogonality and residual of a basis, in float64."""
    A, Q = A.astype(np.float64), Q.astype(np.float64)
    E = A - Q @ (Q.T @ A)
    return {
        "orthogonality": float(np.max(np.abs(np.linalg.eigvalsh(Q.T @ Q - np.eye(Q.shape[1]))))),
        "residual": float(np.sqrt(max(0.0, np.linalg.eigvalsh(E.T @ E)[-1]))),
        "error": float(np.linalg.norm(E)),
    }


def followed(A: Any, steps: Iterator[Step]) -> Row:
    """The figures of all steps, as lists; three digits of each."""
    found: dict[str, list[Any]] = {"ranks": []}
    for step in steps:
        Q = np.asarray(step.Q)
        told = {"tracked": step.tracked, "bound": step.bound, "energies": energies(A, Q)}
        found["ranks"].append(int(Q.shape[1]))
        for name, value in (truths(A, Q) | told).items():
            found.setdefault(name, []).append(None if value is None else float(f"{value:.2e}"))
    return found


def stability(results: Results, size: str) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    n, width = STABILITY[size]
    A = graded(n)
    of = {"numpy": A, "torch": torch.from_numpy(A)}
    shared = {"section": "stability", "dtype": "float32", "shape": list(A.shape)}
    for seed in range(SEEDS):
        runs = [
            (library, f"q = {q}", householder(X, width, seed=seed, power_iterations=q))
            for library, X in of.items()
            for q in (0, 1)
        ]
        runs += [
            ("numpy", name, gram_schmidt(A, width, seed=seed, again=name == AGAIN))
            for name in (ONCE, AGAIN)
        ]
        for library, method, steps in runs:
            more = followed(A, steps)
            results.add(**shared, library=library, method=method, seed=seed, width=width, **more)
    values = np.linalg.svd(A.astype(np.float64), compute_uv=False)
    best = [float(f"{value:.2e}") for value in (*values[width::width], 0.0)]
    ranks = list(range(width, n + 1, width))
    results.add(**shared, library="best", method="best possible", ranks=ranks, residual=best)


# -- speed ----------------------------------------------------------------------------------------


def calls_of(X: Any, k: int, xp: Any) -> dict[str, Callable[[int], Any]]:
    """Methods that find k columns, by the names of their rows; the argument is a seed."""

    def omega(seed: int) -> Any:
        if xp is np:
            return np.random.default_rng(seed).standard_normal((X.shape[1], k), dtype=X.dtype)
        return xp.randn(X.shape[1], k, generator=xp.Generator().manual_seed(seed))

    def both(seed: int) -> Any:
        Y = X @ omega(seed)
        return Y.T @ X

    def by_blocks(width: int) -> Callable[[int], Any]:
        def run(seed: int) -> Any:
            finder = lowrank.RangeFinder(X, rng=seed, power_iterations=0).reach(rtol=2.0)
            while finder.rank < k:
                finder.extend(min(width, k - finder.rank))
            return finder

        return run

    calls: dict[str, Callable[[int], Any]] = {
        "A @ Ω": lambda seed: X @ omega(seed),
        "both products": both,
        "Q by `linalg.qr(A @ Ω)`": lambda seed: xp.linalg.qr(X @ omega(seed)),
        "`range_finder(A, k)`": lambda seed: lowrank.range_finder(X, k, rng=seed),
        "`qb(A, k)`": lambda seed: lowrank.qb(X, k, rng=seed),
    }
    if k == min(X.shape):
        calls["`linalg.qr(A)`"] = lambda _: xp.linalg.qr(X)
    calls |= {f"blocks of {width}": by_blocks(width) for width in WIDTHS if width <= k}
    width = min(k, WIDTHS[1])
    calls[f"blocks of {width}, and Q"] = lambda seed: by_blocks(width)(seed).Q
    return calls


def cpu_seconds(calls: dict[str, Callable[[int], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU times of calls that take turns, after a first one of each that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call(repeat)
            times[name] += [time.process_time() - start] if repeat else []
    return times


def speed(results: Results, size: str) -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    orders, larger, columns = SPEED[size]
    for n, k in [(n, n) for n in orders] + [(larger, k) for k in columns]:
        A = draw(np.random.default_rng(n), n, n)
        for library, X, xp in (("numpy", A, np), ("torch", torch.from_numpy(A), torch)):
            group = {"section": "speed", "library": library, "dtype": "float32"}
            group |= {"shape": [n, n], "k": k}
            times = cpu_seconds(calls_of(X, k, xp), repeats=5 if n * k < 2**22 else 3)
            for method, taken in times.items():
                shown = {"seconds": median(taken), "fastest": min(taken), "repeats": len(taken)}
                results.add(**group, method=method, **shown)


PARTS: dict[str, Callable[[Results, str], None]] = {"stability": stability, "speed": speed}


# -- tables and pictures --------------------------------------------------------------------------

LIBRARIES = {"numpy": "NumPy", "torch": "PyTorch"}
OURS = [(library, f"q = {q}") for library in LIBRARIES for q in (0, 1)]


def at(row: Row, name: str, rank: int) -> float:
    return float(row[name][row["ranks"].index(rank)])


def spread(rows: list[Row], name: str, rank: int) -> str:
    """Least and largest of the seeds."""
    values = sorted(at(row, name, rank) for row in rows)
    low, high = f"{values[0]:.1e}", f"{values[-1]:.1e}"
    return low if low == high else f"{low} to {high}"


def of(rows: list[Row], library: str, method: str) -> list[Row]:
    return [row for row in rows if (row["library"], row["method"]) == (library, method)]


def stability_tables(rows: list[Row]) -> list[str]:
    (best,) = of(rows, "best", "best possible")
    n = best["shape"][0]
    half, first = n // 2, best["ranks"][0]
    asked = [("orthogonality", first), ("orthogonality", half), ("orthogonality", n)]
    asked += [("residual", half), ("residual", n)]
    named = [(f"`RangeFinder`, {q}, {LIBRARIES[of_]}", of_, q) for of_, q in OURS]
    named += [(name, "numpy", name) for name in (AGAIN, ONCE)]
    lines = [
        [title, *(spread(of(rows, library, method), name, rank) for name, rank in asked)]
        for title, library, method in named
    ]
    lines += [[name, *(f"{value:.1e}" for value in values)] for name, values in PUBLISHED.items()]
    lines += [["best possible", "", "", "", f"{at(best, 'residual', half):.1e}", "0"]]
    head = [f"{name}, {rank} columns" for name, rank in asked]
    tables = ["<!-- stability -->", "", *table(["", *head], lines), "<!-- end -->", ""]
    ranks = best["ranks"][3::2]
    ranks = ranks if ranks[-1] == n else [*ranks, n]
    lines = []
    for q in (0, 1):
        mine = of(rows, "numpy", f"q = {q}")
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
        mine = [row for row in rows if row["library"] == library]
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
    (best,) = of(rows, "best", "best possible")
    ranks = best["ranks"]
    n = ranks[-1]

    def line(ax: Any, method: str, name: str, label: str, **style: Any) -> None:
        found = np.array([row[name] for row in of(rows, "numpy", method)], dtype=float)
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
    mine = [row for row in rows if row["library"] == "torch"]
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
        rows = [row for row in content["rows"] if row["section"] == section]
        lines += made(rows) if rows else []
    return "\n".join(lines).rstrip() + "\n"


def drawn() -> None:
    (content,) = select(newest(RESULTS), kind="published")
    (DOCS / "explanation" / "published_tables.md").write_text(pages(content), "utf-8")
    for section, draw_it in (("stability", picture_of_stability), ("speed", picture_of_speed)):
        rows = select(content["rows"], section=section)
        if rows:
            draw_it(rows, DOCS / "_static" / f"published-{section}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small matrices, for a trial")
    parser.add_argument("--draw", action="store_true", help="tables and pictures of the newest")
    options = parser.parse_args()
    if options.draw:
        drawn()
        return
    if options.out is None:
        parser.error("--out, or --draw")
    about = header("published", cpu_name(), PACKAGES)
    results = Results(options.out, resume=True, **about, quick=options.quick, threads=1)
    for part in options.part:
        results.begin(part)
        PARTS[part](results, "quick" if options.quick else "full")


if __name__ == "__main__":
    main()
