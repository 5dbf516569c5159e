"""Makes the page of the documentation with all measured figures, and its plots.

    python -m benchmarks.report [--results benchmarks/results] [--out docs]

Reads the newest file of each kind and device among the results of benchmarks/machines/cpu.py,
benchmarks/machines/gpu.py and benchmarks/machines/optimizer.py, and writes benchmarks.md and
_static/benchmarks-*.svg. Needs matplotlib.
Everything on the page follows from these files, and from the code that it is compared to: run it
again after every new one.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.common.measuring import sources

Row = dict[str, Any]
Key = tuple[Any, ...]
DTYPES = ("float32", "float64")
SPECTRA = ("flat", "fast", "slow")
ARRAYS = {"numpy": "NumPy", "torch": "PyTorch"}
NAMES = ARRAYS | {"scipy": "SciPy", "cupy": "CuPy"}
PRODUCT, PRODUCTS = "draw and A @ Omega", "draw and both products"
EPSILON = {"bfloat16": 2.0**-23, "float32": 2.0**-23, "float64": 2.0**-52}  # bfloat16 as float32
# Errors (relative to the norm of A) below this many epsilons are rounding, and count as equal.
ROUNDING = 32.0
# An error at most 1 % larger is no larger. Without power iterations all methods draw the same kind
# of basis, and which of two draws is the better is chance.
EQUAL, BY_CHANCE = 1.01, 1.5
# Okabe and Ito's colors, which everybody can tell apart.
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#777777", "#222222"
GREEN = "#009E73"
COMMAND = "python -m benchmarks.report"
# What older files call functions that have another name now.
RENAMED = {"orthonormalise": "orthonormalize", "_unasked_cholesky_qr": "_shifted_cholesky_qr"}
LOSSES = (
    "The table lists every peer that was faster than `lowrank` at the same task on the same "
    f"matrix, with an error at most {100 * (EQUAL - 1):.0f} % larger or below {ROUNDING:.0f} eps. "
    f"(Without power iterations the error may be {100 * (BY_CHANCE - 1):.0f} % larger, since two "
    "draws of one method differ that much by chance.) Errors are relative to the norm of A. The "
    "largest losses come first."
)


# The day on which the range finder was written anew, for files that don't say what code is theirs.
REBUILT = "2026-11-29"
OLDER = (
    "**Older than the code**: the range finder and everything that uses it were rewritten on "
    f"{REBUILT}. [What a tolerance costs](explanation/tolerance.md) has current times on a CPU."
)

OF_OPTIMIZERS = ("step", "training", "refresh", "counts", "llama step")
# What the sections of a GPU are of.
SECTIONS = {
    "matrix": "matrices", "full svd": "full SVDs", "cupy": "CuPy", "panel": "panels",
    "capture": "CUDA graphs", "compile": "compiled functions", "published": "the published grid",
    "tolerance": "tolerances", "functions": "all functions", "small svd": "small decompositions",
    "rate": "rates",
} | dict.fromkeys(OF_OPTIMIZERS, "optimizers")  # fmt: skip

# -- reading --------------------------------------------------------------------------------------


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


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


# -- writing --------------------------------------------------------------------------------------


def number(value: Any, digits: int = 2) -> str:
    """Two or three significant digits, as ratios need them."""
    if value is None:
        return "–"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value >= 100.0:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10.0 else f"{value:.{digits}f}"


def small(value: Any) -> str:
    return "–" if value is None else f"{float(value):.0e}"


def duration(seconds: Any) -> str:
    if seconds is None:
        return "–"
    if seconds >= 1.0:
        return f"{seconds:.1f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.1f} ms"


def size(shape: Any) -> str:
    return "×".join(map(str, shape))


def label(row: Row) -> str:
    """A method with the library that it belongs to."""
    if row["library"] == "lowrank":
        method, comma, rest = row["method"].partition(", ")
        return f"`lowrank.{method}`{comma}{rest}"
    if row["method"] in (PRODUCT, PRODUCTS):
        return row["method"]
    return f"{NAMES.get(row['library'], row['library'])} `{row['method']}`"


def table(head: list[str], lines: list[list[str]], *, left: int = 1) -> list[str]:
    """A table whose first `left` columns hold words, the others numbers."""
    rule = [":---"] * left + ["---:"] * (len(head) - left)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)] + [""]


def crossed(
    rows: Iterable[Row],
    of: Callable[[Row], Key],
    by: Callable[[Row], Key],
    cell: Callable[[Row], str],
    title: str = "",
) -> list[str]:
    """A table of the rows `of` one thing `by` another; the last of each key is its name."""
    cells: dict[Key, dict[Key, str]] = {}
    columns: dict[Key, None] = {}
    for row in rows:
        cells.setdefault(of(row), {}).setdefault(by(row), cell(row))
        columns[by(row)] = None
    lines = [[name[-1], *(line.get(key, "–") for key in columns)] for name, line in cells.items()]
    return table([title, *(key[-1] for key in columns)], lines)


def section(rows: Any, title: str, text: str, lines: Iterable[str]) -> list[str]:
    return [f"### {title}", "", text, "", *lines] if rows else []


def by_code(row: Row) -> Key:
    return (f"`{row['method']}`",)


def by_method(row: Row) -> Key:
    return row["library"], row["method"], label(row)


def in_words(count: int, one_of: str) -> str:
    return f"{count} {one_of}" + ("" if count == 1 else "s")


# -- goals ----------------------------------------------------------------------------------------


def ratios(rows: list[Row], method: str, arrays: str, **wanted: Any) -> dict[Key, float]:
    """Ratios of a row of lowrank, by spectrum and dtype, where goals were set for them."""
    found = measured(
        rows, section="fixed rank", library="lowrank", method=method, arrays=arrays, **wanted
    )
    return {
        (row["spectrum"], row["dtype"]): row["ratio"]
        for row in found
        if row["spectrum"] in ("flat", "fast") and row["ratio"] is not None
    }


def gains(
    rows: list[Row], theirs: Row, ours: Row, by: tuple[str, ...] = ("spectrum", "dtype")
) -> dict[Key, float]:
    """Their time over ours, case by case."""
    seconds = {tuple(str(row[key]) for key in by): row["seconds"] for row in measured(rows, **ours)}
    return {
        case: row["seconds"] / seconds[case]
        for row in measured(rows, **theirs)
        if (case := tuple(str(row[key]) for key in by)) in seconds
    }


def cpu_goals(rows: list[Row]) -> list[list[str]]:
    fixed = {"section": "fixed rank"}
    lines = []
    for arrays, limit in (("torch", 1.3), ("numpy", 1.4)):
        name = f"`range_finder` on {ARRAYS[arrays]}: at most {limit} × draw and product"
        lines.append(verdict(name, ratios(rows, "range_finder", arrays), limit, at_most=True))
    for arrays, title in ARRAYS.items():
        name = f"`qb` on {title}: at most 1.3 × draw and both products"
        lines.append(verdict(name, ratios(rows, "qb", arrays), 1.3, at_most=True))
    for arrays, method, name in (
        ("numpy", "randomized_range_finder", "scikit-learn's `randomized_range_finder`"),
        ("torch", "svd_lowrank", "`torch.svd_lowrank`, which goes on to an SVD"),
    ):
        ours = fixed | {"arrays": arrays, "library": "lowrank", "method": "range_finder"}
        theirs = fixed | {"arrays": arrays, "method": method}
        found = gains(rows, theirs, ours)
        found = {case: gain for case, gain in found.items() if case[0] in ("flat", "fast")}
        text = f"`range_finder`: at least 1.5 × as fast as {name}"
        lines.append(verdict(text, found, 1.5))
    for arrays, limit, name in (
        ("torch", 1.0, "at least as fast as `torch.linalg.qr`"),
        ("numpy", 4.0, "at least 4 × as fast as `numpy.linalg.qr`"),
    ):
        where = {"section": "qr", "arrays": arrays, "shape": [65536, 256]}
        theirs = where | {"library": arrays, "method": "linalg.qr"}
        found = gains(rows, theirs, where | {"library": "lowrank"})
        lines.append(verdict(f"`qr`, 65536×256: {name}", found, limit))
    for arrays, title in ARRAYS.items():
        found = {
            (row["spectrum"], row["dtype"]): row["ratio"]
            for row in measured(rows, section="adaptive", task="adaptive", arrays=arrays)
        }
        name = f"`range_finder` to a tolerance on {title}: at most 1.5 × the same rank at once"
        lines.append(verdict(name, found, 1.5, at_most=True))
    return lines


def verdict(
    name: str, found: dict[Key, float], limit: float, *, at_most: bool = False
) -> list[str]:
    """Best and worst of all cases; the worst decides."""
    if not found:
        return [name, "–", "–", "not measured"]
    worst_case = (max if at_most else min)(found, key=lambda case: found[case])
    misses = sum(value > limit if at_most else value < limit for value in found.values())
    told = f"**missed** in {misses} of {len(found)}" if misses else "met"
    spread = f"{number(min(found.values()))} to {number(max(found.values()))}"
    return [name, spread, ", ".join(map(str, worst_case)), told]


def goal(name: str, values: Iterable[float], limit: float, *, at_most: bool = False) -> list[str]:
    """The worst of all cases, which decides."""
    worst = (max if at_most else min)(values, default=None)
    if worst is None:
        return [name, "–", "not measured"]
    is_met = worst <= limit if at_most else worst >= limit
    return [name, number(worst), "met" if is_met else "**missed**"]


ELSEWHERE = "Goals that were missed are in [a section of their own](#missed-goals)."


def unless_missed(goals: list[list[str]]) -> list[list[str]]:
    return [line for line in goals if "missed" not in line[-1]]


def missed_goals(files: list[Row]) -> list[str]:
    """The goals that were missed, on every machine."""
    lines = []
    for content in files:
        rows, kind = content["rows"], content["kind"]
        goals = cpu_goals(rows) if kind == "cpu" else gpu_goals(rows) if kind == "gpu" else []
        goals += optimizer_goals(rows) if measured(rows, section="step") else []
        for name, found, *_, verdict_of in goals:
            if "missed" in verdict_of:
                cases = verdict_of.partition(" in ")[2] or "the worst case"
                lines.append([name, content["machine"]["device"], found, cases])
    text = "*Measured* is the worst case, or the smallest and the largest ratio of all cases."
    head = ["goal", "machine", "measured", "missed in"]
    return ["## Missed goals", "", text, "", *table(head, lines, left=2)] if lines else []


# -- is it faster? --------------------------------------------------------------------------------


def answer(files: list[Row]) -> list[str]:
    """Whether it is faster than what a reader uses."""
    cpu, gpu = ([row for x in select(files, kind=of) for row in x["rows"]] for of in ("cpu", "gpu"))

    def spread(values: Iterable[float]) -> str:
        found = sorted(value for value in values if value is not None)
        return " to ".join(unique(map(number, found[:1] + found[-1:]))) + " times"

    def peers(section: str, library: str, method: str, **wanted: Any) -> str:
        found = measured(cpu, section=section, library=library, method=method, **wanted)
        return spread(row["ratio"] for row in found)

    def gpus(case: Row) -> str:
        where = {key: case[key] for key in ("section", "dtype", "shape", "k")}
        theirs, ours = {"method": "svd_lowrank, niter=2"}, {"method": "svd, q=2"}
        return spread(gains(gpu, where | theirs, where | ours, ("spectrum",)).values())

    text = []
    if first := one(cpu, section="svd", library="lowrank", method="svd"):
        tall, square = {"shape": [65536, 256]}, {"shape": [2000, 2000]}
        text += [
            f"On a CPU with two threads, `lowrank.svd` of rank {first['k']}",
            f"of a {size(first['shape'])} matrix is",
            peers("svd", "scikit-learn", "randomized_svd, n_iter=2, QR"),
            "as fast as scikit-learn's `randomized_svd` with the same power iterations,",
            peers("svd", "numpy", "linalg.svd"),
            "as fast as the full SVD of NumPy, and",
            peers("svd", "torch", "linalg.svd"),
            "as fast as that of PyTorch; `lowrank.qr` of a 65536×256 matrix is",
            peers("qr", "numpy", "linalg.qr", **tall),
            "as fast as NumPy's. Compared with PyTorch's own routines, `lowrank.svd` is",
            peers("svd", "torch", "svd_lowrank, q=60"),
            "as fast as `svd_lowrank` with the same oversampling, and the tall `lowrank.qr`",
            peers("qr", "torch", "linalg.qr", **tall),
            "as fast as `linalg.qr`; of a square matrix it is",
            peers("qr", "numpy", "linalg.qr", **square),
            "as fast as NumPy's.",
        ]
    cases = select(gpu, section="matrix", dtype="float32", method="svd, q=2", spectrum="fast")
    if cases := sorted(cases, key=lambda row: min(row["shape"])):
        text += [
            f"On a GPU, `lowrank.svd` is {gpus(cases[-1])} as fast as `torch.svd_lowrank` for",
            f"a {size(cases[-1]['shape'])} matrix, and {gpus(cases[0])} as fast for a",
            f"{size(cases[0]['shape'])} matrix.",
        ]
    question, unit = "**Is it faster than what you use?**", "Below one, `lowrank` is slower."
    return [" ".join([question, *text, unit]), ""] if text else []


# -- where lowrank loses --------------------------------------------------------------------------


TASKS = {
    "linalg.qr": "panel", "orthonormalize": "panel",
    "product + linalg.qr": "basis", "range_finder, q=0": "basis",
    "svd, q=0": "svd, q=0", "svd_lowrank, niter=0": "svd, q=0",
    "svd, q=2": "svd, q=2", "svd_lowrank, niter=2": "svd, q=2",
    "randomized_svd, n_iter=2, QR": "svd, q=2",
}  # fmt: skip


def task_of(row: Row) -> str | None:
    """What a row computes and with how many power iterations; only the same can be compared."""
    if "task" in row:  # older files do not say
        return row["task"]
    if row["section"] == "full svd":
        return "svd" if "svd" in row["method"] else None
    return None if row["library"] == "cupy" else TASKS.get(row["method"])


def losses(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Every peer that beats lowrank, and the fastest row of lowrank that it beats.

    It beats a slower row of the same group if its own error is no larger, unless another row of
    lowrank (with fewer power iterations, say) is as fast as the peer and as accurate.
    """
    groups: dict[Key, list[Row]] = {}
    for row in measured(rows):
        task = task_of(row)
        if task not in (None, "product"):
            keys = ("section", "arrays", "dtype", "spectrum", "k")
            group = (*(row.get(key) for key in keys), size(row["shape"]), task)
            groups.setdefault(group, []).append(row)
    pairs = []
    for members in groups.values():
        ours = select(members, library="lowrank")
        for peer in members:
            if peer["library"] == "lowrank":
                continue
            if any(row["seconds"] <= peer["seconds"] and no_worse(row, peer) for row in ours):
                continue
            beaten = [
                row for row in ours if peer["seconds"] < row["seconds"] and no_worse(peer, row)
            ]
            if beaten:
                pairs.append((peer, min(beaten, key=lambda row: row["seconds"])))
    return sorted(pairs, key=lambda pair: pair[0]["seconds"] / pair[1]["seconds"])


def no_worse(row: Row, other: Row) -> bool:
    """Whether the error of `row` is no larger, up to rounding, or to chance where that decides."""
    errors = [as_number(of["error"]) for of in (row, other)]
    floor = ROUNDING * EPSILON.get(row["dtype"], 0.0)
    is_chance = row["section"] == "fixed rank" or task_of(row) in ("basis", "svd, q=0")
    return errors[0] <= (BY_CHANCE if is_chance else EQUAL) * max(errors[1], floor)


def as_number(value: Any) -> float:
    return math.nan if value is None else float(value)


def losses_table(rows: list[Row]) -> list[str]:
    pairs = losses(rows)
    if not pairs:
        return ["Nowhere in these measurements.", ""]
    lines = []
    for peer, ours in pairs:
        rank = "" if ours.get("k") is None or ours["section"] == "panel" else f", k = {ours['k']}"
        where = f"{size(ours['shape'])}{rank}, {ours['spectrum']}, {ours['dtype']}"
        gain = number(ours["seconds"] / peer["seconds"])
        errors = [f"{as_number(row['error']):.1e}" for row in (peer, ours)]
        arrays = NAMES.get(ours.get("arrays", ""), "")
        lines.append([label(ours), label(peer), arrays, where, gain, *errors])
    head = ["of lowrank", "faster", "arrays", "case", "times faster", "its error", "our error"]
    return table(head, lines, left=4)


# -- sections of the CPU --------------------------------------------------------------------------


def by_case(row: Row) -> Key:
    return SPECTRA.index(row["spectrum"]), row["dtype"], f"{row['spectrum']}, {row['dtype']}"


def error_cell(row: Row) -> str:
    if row["error"] is None:
        return "–"
    over = row["over_best"]
    return f"({small(row['error'])})" if over is None else number(over, 3)


def fixed_rank(rows: list[Row]) -> list[str]:
    found, lines = measured(rows, section="fixed rank"), []
    if not found:
        return []
    for arrays, title in ARRAYS.items():
        mine = sorted(select(found, arrays=arrays), key=by_case)
        lengths = {base: spread_of(mine, base) for base in (PRODUCT, PRODUCTS)}
        for tasks, base in ((("basis",), PRODUCT), (("qb", "svd"), PRODUCTS)):
            chosen = [row for row in mine if row["task"] in tasks]
            lines += [f"{title}, time relative to {base} ({lengths[base]}):", ""]
            lines += crossed(chosen, by_method, by_case, lambda row: number(row["ratio"]), title)
        chosen = [row for row in mine if row["task"] != "product"]
        lines += [f"{title}, error divided by the best possible:", ""]
        lines += crossed(chosen, by_method, by_case, error_cell, title)
    text = (
        f"All methods compute rank {found[0]['k']} of a {size(found[0]['shape'])} matrix, without "
        "power iterations or oversampling. The singular values of *flat* are all one, those of "
        "*fast* are exp(−j/7), and those of *slow* 1/j². Errors are divided by the best possible "
        "at that rank. If that is below rounding, they are relative to the norm of A and in "
        "parentheses. Without power iterations, no method is closer to the best."
    )
    return section(found, "At a fixed rank", text, lines)


def spread_of(rows: list[Row], method: str) -> str:
    seconds = [row["seconds"] for row in measured(rows, method=method)]
    return f"{duration(min(seconds))} to {duration(max(seconds))}" if seconds else "not measured"


def adaptive(rows: list[Row]) -> list[str]:
    lines = [
        [
            ARRAYS[row["arrays"]],
            f"{row['spectrum']}, {row['dtype']}",
            small(row["rtol"]),
            str(row["rank"]),
            str(row["products"]),
            number(row["ratio"]),
            small(row["error"]),
        ]
        for row in measured(rows, section="adaptive", task="adaptive")
    ]
    head = ["arrays", "case", "tolerance", "rank found", "products", "time ratio", "true error"]
    text = (
        "The table compares `lowrank.range_finder(A, rtol=…)`, on the same matrices, with "
        "`lowrank.range_finder(A, rank)` at the rank that it found. The search also computes the "
        "norm of A and the products that certify the error. *Products* counts the columns that "
        "were multiplied; tolerance and error are relative to the norm of A."
    )
    return section(lines, "To a tolerance", text, table(head, lines, left=2))


def svds(rows: list[Row]) -> list[str]:
    found = select(rows, section="svd")
    if not found:
        return []
    lines = [
        "### Truncated SVD",
        "",
        (
            f"Each method computes rank {found[0]['k']} of a {size(found[0]['shape'])} matrix with "
            "the singular values 1/j², with its defaults or with the options beside its name. "
            "Randomized methods make two power iterations unless stated otherwise (scikit-learn "
            "makes more by default). Times are relative to `lowrank.svd`: above 1, `lowrank.svd` "
            "is faster. Errors are divided by the best possible, minus 1."
        ),
        "",
    ]
    for arrays, title in ARRAYS.items():
        mine = select(found, arrays=arrays)
        body = []
        for library, method in unique((row["library"], row["method"]) for row in mine):
            cells = []
            for dtype in DTYPES:
                row = one(mine, library=library, method=method, dtype=dtype)
                cells += ["–", "–"] if row is None else [number(row["ratio"]), excess(row)]
            body.append([label({"library": library, "method": method}), *cells])
        times = [one(mine, library="lowrank", method="svd", dtype=dtype) for dtype in DTYPES]
        head = [title]
        for dtype, row in zip(DTYPES, times, strict=True):
            head += [f"{dtype}: time" + (f" ({duration(row['seconds'])})" if row else ""), "error"]
        lines += table(head, body)
    return lines + skipped(found)


def excess(row: Row) -> str:
    """How far the error is above the best possible one."""
    over = row.get("over_best")
    if over is None:
        return "–"
    above = over - 1.0
    return f"{above:.0e}" if above > 1e-9 else "0"


def skipped(rows: list[Row]) -> list[str]:
    reasons = unique(
        f"{label(row)} ({row['dtype']}): {row['skipped']}" for row in rows if row["skipped"]
    )
    return ["Not measured: " + "; ".join(reasons) + ".", ""] if reasons else []


def qrs(rows: list[Row]) -> list[str]:
    found = measured(rows, section="qr")

    def case(row: Row) -> Key:
        return (f"{size(row['shape'])}, {row['dtype']}",)

    def method(row: Row) -> Key:
        if row["library"] == "lowrank":
            return (f"`lowrank.qr` on {ARRAYS[row['arrays']]}",)
        return (f"`{row['library']}.{row['method']}`",)

    def time(row: Row) -> str:
        return duration(row["seconds"]) if row["library"] == "lowrank" else number(row["ratio"])

    def accuracy(row: Row) -> str:
        return f"{small(row['orthogonality'])}, {small(row['error'])}"

    text = (
        "The matrices are Gaussian. The table shows the time of `lowrank.qr`, and the times of the "
        "others relative to it on the same arrays: above 1, `lowrank.qr` is faster."
    )
    lost = "Loss of orthogonality ‖QᵀQ − I‖ and residual ‖A − QR‖/‖A‖, in the Frobenius norm:"
    times = crossed(found, case, method, time, "time")
    accuracies = crossed(found, case, method, accuracy, "accuracy")
    return section(found, "QR", text, [*times, lost, "", *accuracies])


def growth(content: Row, picture: str | None) -> list[str]:
    lines = [
        [
            f"`{fit['method']}`" if "," not in fit["method"] else "`range_finder`, adaptive",
            fit["axis"],
            f"{fit['sizes'][0]} to {fit['sizes'][-1]}",
            number(fit["slope"]),
            number(fit["products_slope"]),
        ]
        for fit in content["fits"]
    ]
    head = ["on NumPy, float64", "against", "sizes", "exponent of time", "of the products' flops"]
    pictures = [f"![Time against m, n and k]({picture})", ""] if picture else []
    text = (
        "Time grows as a power of each size. The exponents are least-squares slopes of the "
        "logarithms, with the other sizes fixed. The flops of the products are counted. The "
        "adaptive range finder multiplies the columns of one error estimate more than it keeps, "
        "which matters less at larger rank; hence its exponent below 1 in k."
    )
    return section(lines, "Growth", text, [*pictures, *table(head, lines, left=3)])


def memory(content: Row) -> list[str]:
    by_size: dict[Key, dict[str, float]] = {}
    for entry in content["memory"]:
        key = size(entry["shape"]), entry["k"]
        by_size.setdefault(key, {})[entry["method"]] = entry["fraction"]
    methods = unique(entry["method"] for entry in content["memory"])
    lines = [
        [shape, str(k), *(f"{100 * cells[method]:.0f} %" for method in methods)]
        for (shape, k), cells in by_size.items()
    ]
    text = (
        "The table shows the peak memory of NumPy beyond A, including the results, as a share of "
        "the documented limits: (3m + n)k + 4k² + (m + n)b entries for `range_finder`, with error "
        "estimates from b columns (64 at a fixed rank), and (3m + 4n)k + 10k² for `svd`, whose k "
        "includes the oversampling."
    )
    head = ["shape", "rank", *(f"`{name}`" for name in methods)]
    return section(lines, "Memory", text, table(head, lines))


def machine(content: Row) -> list[str]:
    versions = ", ".join(f"{key} {value}" for key, value in content["versions"].items() if value)
    where = content["machine"]
    device = where["device"]
    host = "" if device == where["cpu"] else f", beside {where['cpu']}"
    settings = content.get("settings", {})
    names = [key for key, value in settings.items() if key.isupper() and value]
    set_up = "".join(f", `{name}={settings[name]}`" for name in names)
    told = [
        (
            f"{device}{host}, {in_words(where['cores'], 'core')}{set_up}; {versions}. "
            f"Measured {content['date'][:10]} at commit `{str(content['commit'])[:12]}`"
            f"{' with changes' if str(content['commit']).endswith('dirty') else ''}; "
            f"all rows are in `benchmarks/results/{content['file']}`."
        ),
        "",
    ]
    source, of = content.get("source"), "core" if content["kind"] == "cpu" else "optim"
    if content["kind"] != "gpu" and source is not None and source[of] != sources()[of]:
        told += ["**Older than the code**: it has changed since the measurement.", ""]
    if content["kind"] in ("cpu", "llama") and source is None and content["date"] < REBUILT:
        told += [OLDER, ""]
    if content.get("quick"):
        told = ["**A quick trial on small matrices: no figure here means anything.**", "", *told]
    return told


def cpu_page(content: Row, pictures: dict[str, str]) -> list[str]:
    rows = content["rows"]
    told = "Times relative to the bare products: a dot for each method, matrix and dtype"
    plot = [f"![{told}]({pictures['ratios']})", ""] if "ratios" in pictures else []
    return [
        f"## On a CPU: {content['machine']['device']}",
        "",
        *machine(content),
        "### Goals",
        "",
        (
            "Each goal is a ratio of times. The table shows the smallest and the largest ratio "
            "over all dtypes and the matrices *flat* and *fast* (*slow* and *fast* for "
            f"tolerances; see below). The worst case decides. {ELSEWHERE}"
        ),
        "",
        *table(["goal", "measured", "worst case", ""], unless_missed(cpu_goals(rows))),
        *plot,
        *fixed_rank(rows),
        *adaptive(rows),
        *svds(rows),
        *qrs(rows),
        *growth(content, pictures.get("growth")),
        *memory(content),
        "### Where lowrank loses",
        "",
        LOSSES,
        "",
        *losses_table(rows),
        *failures(content),
    ]


def failures(content: Row) -> list[str]:
    found = content.get("failures")
    return ["Failed: " + "; ".join(found) + ".", ""] if found else []


# -- sections of a GPU ----------------------------------------------------------------------------


def llama_page(content: Row) -> list[str]:
    """Of benchmarks/machines/llama.py."""
    plan = content["protocol"]
    head = ["", "step, ms", "step() alone, ms", "mean of a cycle, ms", "first, ms", "state, MB"]
    head += ["peak, MB", "steps", "last loss"]
    body = []
    for row in measured(content["rows"]):
        seconds = ("step_seconds", "optimizer_seconds", "mean_seconds", "first")
        cells = ["–" if row[key] is None else f"{1e3 * row[key]:.1f}" for key in seconds]
        cells += [f"{row['state_bytes'] / 1e6:.0f}", f"{(row['peak_bytes'] or 0) / 1e6:.0f}"]
        body.append([row["method"], *cells, str(row["repeats"]), f"{row['losses'][-1]:.2f}"])
    return [
        f"## Training a Llama of {plan['size'].upper()} weights: {content['machine']['device']}",
        "",
        *machine(content),
        (
            f"The model is trained in bfloat16, with {plan['batch']}×{plan['length']} tokens per "
            "step. galore-torch refreshes all bases in the first step; LowRank spreads all "
            "refreshes but the first over the steps. "
            f"Each method ran for {plan['seconds']:g} s after the first step, so the losses belong "
            "to different numbers of steps and cannot be compared. "
            "`python -m benchmarks.machines.llama` repeats the measurement."
        ),
        "",
        *table(head, body),
    ]


def gpu_page(content: Row) -> list[str]:
    rows = content["rows"]
    return [
        f"## On a GPU: {content['machine']['device']}",
        "",
        *machine(content),
        *older(rows),
        *tests_of(content),
        "### Goals on this GPU",
        "",
        ELSEWHERE,
        "",
        *table(["goal", "worst case", ""], unless_missed(gpu_goals(rows))),
        *gpu_predictions(content),
        *gpu_published(rows),
        *gpu_tolerances(rows),
        *gpu_matrices(rows),
        *gpu_panels(rows),
        *gpu_small(rows),
        *gpu_functions(rows),
        *gpu_steps(rows),
        *optimizer_sections(rows),
        "### Where lowrank loses on this GPU",
        "",
        LOSSES,
        "",
        *losses_table(rows),
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


def gpu_goals(rows: list[Row]) -> list[list[str]]:
    """What the library is meant to reach, the worst case of what is measured, and the verdict."""
    lines, fixed = [], {"section": "matrix", "dtype": "float32"}
    ours = {**fixed, "method": "range_finder, q=0"}
    for n, limit in ((32768, 1.3), (8192, 2.2)):
        found = [row["ratio"] for row in measured(rows, **ours, shape=[n, n]) if row["ratio"]]
        name = f"range_finder, q=0, {n}×{n}: at most {limit} × the product"
        lines.append(goal(name, found, limit, at_most=True))
    theirs = {**fixed, "method": "product + linalg.qr"}
    faster = gains(rows, theirs, ours, ("shape", "k", "spectrum")).values()
    name = "range_finder, q=0: as fast as torch's product and linalg.qr, or more"
    lines.append(goal(name, faster, 1.0))
    for shape, k in unique((tuple(row["shape"]), row["k"]) for row in measured(rows, **fixed)):
        case = fixed | {"shape": list(shape), "k": k}
        limit = 2.0 if k >= 256 and max(shape) <= 11008 else 1.4
        for q in (0, 2):
            ours, theirs = {"method": f"svd, q={q}"}, {"method": f"svd_lowrank, niter={q}"}
            faster = gains(rows, case | theirs, case | ours, ("spectrum",)).values()
            name = f"svd, q={q}, {size(shape)}, k={k}: {limit} × as fast as torch.svd_lowrank"
            lines.append(goal(f"{name} or more", faster, limit))
    for k, limit in ((128, 9), (512, 22), (1024, 38), (4096, 130), (16384, 380)):
        case = {"section": "published", "task": "qb", "shape": [16384, 16384], "k": k}
        best = sorted(1e3 * row["seconds"] for row in measured(rows, **case))[:1]
        name = f"published grid, {k} columns of 16384×16384, with B: at most {limit} ms"
        lines.append(goal(name, best, limit, at_most=True))
    found = [row["ratio"] for row in measured(rows, section="tolerance", method="svd, rtol")]
    name = "svd to a tolerance: at most 1.5 × the rank it found"
    lines.append(goal(name, found, 1.5, at_most=True))
    found = [1e3 * row["seconds"] for row in measured(rows, section="llama step", method="LowRank")]
    name = "a step of LowRank on a Llama of 130M: at most 5 ms"
    return [*lines, goal(name, found, 5.0, at_most=True)]


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
    text = (
        "Times in parentheses are predictions by a model of what the host launches and the device "
        "computes (`benchmarks/machines/gpu_model.py`), with constants that were fitted to "
        f"{' or '.join(unique(row['predicted_by'] for row in found))}. Of {len(found)} predictions "
        f"{near} are within 30 % of the time, and of {fit['rows']} rows that the model was fitted "
        f"to afterwards {fit['within_30_percent']}."
    )
    return section(found, "Predictions", text, [])


def gpu_published(rows: list[Row]) -> list[str]:
    found = sorted(measured(rows, section="published"), key=lambda row: (row["shape"], row["k"]))
    text = (
        "The matrices are Gaussian, in float32; there are no power iterations. Beside our times "
        "are those of C. Penke and A. Herten (A GPU-accelerated blocked adaptive randomized range "
        "finder based on an implicit Householder QR decomposition, 2026), **measured on another "
        "machine**, probably a Grace Hopper. *With B* is their range finder, which grows by blocks "
        "and also computes B, as `lowrank.RangeFinder.reach` does, and `lowrank.qb` in one block. "
        "*Fixed rank* uses cuSOLVER and does not compute B, as `lowrank.range_finder`."
    )
    both = [
        {**row, "method": name, "library": "theirs", "seconds": row[key], "predicted": None}
        for row in found
        for key, name in (("published", "with B"), ("published_fixed", "fixed rank"))
        if row[key] is not None
    ]
    both = sorted([*both, *found], key=lambda row: (row["shape"], row["k"]))

    lines = crossed(both, lambda row: by_matrix(row)[1:], by_method, timed)
    return section(found, "The published grid", text, lines)


def gpu_tolerances(rows: list[Row]) -> list[str]:
    found = measured(rows, section="tolerance")

    def matrix(row: Row) -> Key:
        case = size(row["shape"]), row["spectrum"], row["dtype"], small(row["rtol"])
        return (", ".join(case),)

    def cell(row: Row) -> str:
        error = small(row["error"]) + ("*" if row["converged"] is False else "")
        return f"{timed(row)}; {row['rank']}; {number(row['ratio'])}; {error}"

    text = (
        "The table compares `lowrank.svd` to a tolerance with `lowrank.svd` at the rank that it "
        "found. Each cell shows the time, the rank, the time relative to the fixed rank, and the "
        "error (*: not certified)."
    )
    lines = crossed(found, matrix, by_code, cell, "matrix, tolerance")
    return section(found, "To a tolerance on this GPU", text, lines)


def gpu_matrices(rows: list[Row]) -> list[str]:
    found = [row for row in measured(rows) if row["section"] in ("matrix", "full svd")]
    found = [row for row in found if row["ratio"] is not None and row["method"][:2] != "A@"]
    known = [row for row in found if row.get("predicted")]

    def tables(rows: list[Row], cell: Callable[[Row], str]) -> list[str]:
        lines = []
        for dtype in unique(row["dtype"] for row in rows):
            lines += crossed(select(rows, dtype=dtype), by_method, by_matrix, cell, dtype)
        return lines

    text = "Times are relative to as many products with A as the method makes; those of full SVDs"
    text += " are relative to a single product."
    ratios = tables(found, lambda row: number(row["ratio"]))
    return [
        *section(found, "Time over the bare products", text, ratios),
        *section(known, "Times", "These are the times of the same calls.", tables(known, timed)),
    ]


def gpu_panels(rows: list[Row]) -> list[str]:
    found = measured(rows, section="panel")

    def sketch(row: Row) -> Key:
        return (f"{size(row['shape'])}, {row['spectrum']}, {row['dtype']}",)

    def cell(row: Row) -> str:
        figures = f"{number(row['ratio'])}; {small(row['orthogonality'])}"
        return f"{figures}; {timed(row)}" if row.get("predicted") else figures

    text = "Each cell shows the time relative to `torch.linalg.qr`, and the loss of orthogonality "
    text += "‖QᴴQ − I‖."
    lines = crossed(found, sketch, by_code, cell, "sketch")
    return section(found, "Orthonormal columns of a sketch", text, lines)


def gpu_small(rows: list[Row]) -> list[str]:
    found = measured(rows, section="small svd")

    def cell(row: Row) -> str:
        lost = row["orthogonality"]
        return timed(row) + ("" if lost is None else f"; {small(lost)}")

    text = "The matrices are Gram matrices of order k. Each cell shows the time, and the loss of "
    text += "orthogonality ‖QᴴQ − I‖."
    lines = crossed(found, by_method, lambda row: (f"k = {row['k']}",), cell)
    rates = [[row["method"], timed(row)] for row in measured(rows, section="rate")]
    lines += table(["rates", "time"], rates) if rates else []
    return section(found, "Small decompositions", text, lines)


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
    text = "Each cell counts the dtypes that work, of those in [the reference](reference.md)."
    tables = crossed(shown, by_code, lambda row: (row["arrays"],), cell)
    return section(found, "All functions", text, [*tables, *lines, ""])


def gpu_steps(rows: list[Row]) -> list[str]:
    found = measured(rows, section="llama step")
    lines = [
        [row["method"], timed(row), number(row["ratio"])]
        + ["–" if row.get(key) is None else str(row[key]) for key in ("operations", "host_reads")]
        for row in found
    ]
    head = ["step", "time", "over AdamW, fused", "operations", "numbers read by the host"]
    text = (
        "The weights are those of a Llama of 130M in bfloat16: 84 matrices, compressed to rank 192 "
        "unless another rank is named, and 27 other weights."
    )
    return section(found, "Steps of a Llama", text, table(head, lines))


# -- the optimizer --------------------------------------------------------------------------------

# What is measured, the method, and the limit.
STEP_GOALS = (
    ("step alone, without the residual, over AdamW (foreach)", "LowRank, no residual", 1.5),
    ("step alone, with the scaled residual, over AdamW (foreach)", "LowRank", 3.0),
)


def optimizer_page(content: Row) -> list[str]:
    rows = content["rows"]
    dtype = unique(row["dtype"] for row in select(rows, section="step"))
    return [
        f"## Training with low-rank optimizer state: {content['machine']['device']}",
        "",
        *machine(content),
        *optimizer_sections(rows),
        *([f"Weights and gradients in {dtype[0]}.", ""] if dtype else []),
    ]


def optimizer_sections(rows: list[Row]) -> list[str]:
    steps = measured(rows, section="step")
    if not steps:
        return []
    base = steps[0]
    products = one(steps, method="bare products")
    head = ["step alone", "mean", "over AdamW (foreach)", "over the bare products"]
    head += ["slowest", "first", "state, MiB", "of AdamW's"]
    if any(row["peak_bytes"] for row in steps):
        head.append("temporary, MiB")
    lines = [
        [
            row["method"],
            duration(row["seconds"]),
            number(row["ratio"]),
            "–" if products is None else number(row["seconds"] / products["seconds"]),
            duration(row["slowest"]),
            duration(row["first"]),
            megabytes(row["state_bytes"]),
            f"{100 * row['state_bytes'] / base['state_bytes']:.0f} %",
            megabytes(row["peak_bytes"]),
        ][: len(head)]
        for row in steps
    ]
    return [
        "### Goals of the optimizer",
        "",
        ELSEWHERE,
        "",
        *table(["goal", "measured", ""], unless_missed(optimizer_goals(rows))),
        (
            f"The model is one transformer block with {base['numbers']:,} weights. The rank is "
            f"{base['rank']} = k/8, and bases are refreshed every {base['repeats']} steps; times "
            "are means over such a cycle. The bare products are the two that low-rank state needs "
            "for every weight, QᵀG and QX. Arithmetic limits them, while memory limits AdamW, so "
            "their ratio depends on the machine."
        ),
        "",
        *table(head, lines),
        *training_table(measured(rows, section="training")),
        *refresh_table(measured(rows, section="refresh")),
        *counts_table(select(rows, section="counts")),
    ]


def megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f}"


def optimizer_goals(rows: list[Row]) -> list[list[str]]:
    lines = []
    for name, method, limit in STEP_GOALS:
        found = [row["ratio"] for row in measured(rows, section="step", method=method)]
        lines.append(goal(f"{name}, at most {limit}", found, limit, at_most=True))
    found = [row["ratio"] for row in measured(rows, section="training", method="LowRank")]
    name = "forward, backward and step over the same with AdamW (foreach), at most 1.15"
    lines.append(goal(name, found, 1.15, at_most=True))
    found = [
        1.0 / row["ratio"]
        for row in measured(rows, section="refresh", method="Subspace, half random")
        if row["captured"] >= 0.995
    ]
    name = (
        "a refresh as it is by default, where it has 0.995 of the energy, times faster than "
        "torch.linalg.svd, at least 20"
    )
    return [*lines, goal(name, found, 20.0)]


def training_table(rows: list[Row]) -> list[str]:
    def tokens(row: Row) -> Key:
        return (f"{row['tokens']:,} tokens, over AdamW",)

    title = "forward, backward and step"
    table = crossed(rows, by_name, tokens, lambda row: number(row["ratio"]), title)
    return table if rows else []


def by_name(row: Row) -> Key:
    return (row["method"],)


def refresh_table(rows: list[Row]) -> list[str]:
    if not rows:
        return []

    def cell(row: Row) -> str:
        return f"{number(1.0 / row['ratio'])} ×; {row['captured']:.3f}"

    text = (
        f"The table is for one basis of rank {rows[0]['rank']} of a {size(rows[0]['shape'])} "
        f"matrix in {rows[0]['dtype']}. Each cell shows how many times faster it is than "
        "`torch.linalg.svd`, and the energy that it captures, relative to that of the SVD."
    )
    table = crossed(rows, by_name, lambda row: (row["spectrum"],), cell, "singular values")
    return [text, "", *table]


def counts_table(rows: list[Row]) -> list[str]:
    lines = [
        [row["method"], number(row["kernels"]), number(row.get("together")), str(row["host_reads"])]
        for row in rows
        if row["host_reads"] is not None
    ]
    if not lines:
        return []
    head = ["a step without a refresh", "kernels per weight", "besides", "numbers read by the host"]
    kept = [place for place, column in enumerate(zip(*lines, strict=True)) if {*column} != {"–"}]
    return [
        *table([head[at] for at in kept], [[line[at] for at in kept] for line in lines]),
        (
            "The numbers read include AdamW's step counts, one for every parameter or proxy. AdamW "
            "keeps them on the host, so reading them does not wait for the device."
        ),
        "",
    ]


# -- plots ----------------------------------------------------------------------------------------


def begin_plots() -> None:
    """The look of all plots; and the same results give the same files."""
    mpl = import_module("matplotlib")
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "lowrank", "font.size": 10, "axes.edgecolor": GREY})


def pyplot() -> Any:
    return import_module("matplotlib.pyplot")


def plain(ax: Any) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)


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
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 3.4), sharex=True, layout="constrained")
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
                color = BLUE if is_ours else ORANGE
                face = {"color": color, "markerfacecolor": color if filled else "white"}
                ax.plot(x, y, marker="o", linestyle="", markersize=6, clip_on=False, **face)
        ax.axvline(1.0, color=GREY, linewidth=1.0, zorder=0)
        names = [f"{NAMES.get(name[1], name[1])} {name[2]}" for name in methods]
        ax.set_yticks(range(len(names)), names)
        for tick, name in zip(ax.get_yticklabels(), methods, strict=True):
            tick.set_color(BLUE if name[1] == "lowrank" else BLACK)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_title(f"{ARRAYS[arrays]} arrays", loc="left", fontsize=11)
        plain(ax)
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
    save(figure, path)
    return True


def plot_growth(content: Row, path: Path) -> bool:
    rows = measured(content["rows"], section="growth")
    if not rows:
        return False
    colors = {"range_finder": BLUE, "range_finder, adaptive": ORANGE, "qb": GREEN}
    slopes = {(fit["method"], fit["axis"]): fit["slope"] for fit in content["fits"]}
    figure, axes = pyplot().subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
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
        write_beside(ax, ends)
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
    save(figure, path)
    return True


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


def abscissa(row: Row, axis: str) -> int:
    m, n = row["shape"]
    return int({"m": m, "n": n, "k": row["k"]}[axis])


def fixed_sizes(row: Row, axis: str) -> str:
    return ", ".join(f"{name} = {abscissa(row, name)}" for name in ("m", "n", "k") if name != axis)


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot().close(figure)


def plots(content: Row, out: Path, suffix: str) -> dict[str, str]:
    """The plots that the file has rows for, by name."""
    made = {}
    for name, draw in (("ratios", plot_ratios), ("growth", plot_growth)):
        path = out / "_static" / f"benchmarks-{name}{suffix}.svg"
        if draw(content, path):
            made[name] = str(path.relative_to(out))
    return made


# -- the page -------------------------------------------------------------------------------------

NOTHING = (
    "There are no results yet. The first command measures, and the second writes the results into "
    "this page:"
)


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
        (
            f"`{COMMAND}` writes this page from the files in `benchmarks/results`; no figure is "
            "typed by hand. Times are medians of interleaved calls on one input. Most are shown as "
            "ratios, which can be compared between machines. Each section says how old its "
            "figures are and lists the losses; the [missed goals](#missed-goals) are at the end. "
            "[Over time](over_time.md) compares commits."
        ),
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
            lines += PAGES[kind](content, plots(content, out, suffix))
        if title is not None and not found:
            lines += [f"## {title}", "", NOTHING, "", *command(kind)]
    lines += missed_goals(files)
    return "\n".join(lines).rstrip() + "\n"


def command(kind: str) -> list[str]:
    run = f"python benchmarks/{kind}.py --out benchmarks/results/{kind}-NAME-DATE.json"
    return ["```sh", run, COMMAND, "```", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    begin_plots()
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(newest(options.results), options.out)
    (options.out / "benchmarks.md").write_text(text, "utf-8")
    print(f"{options.out / 'benchmarks.md'} has {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
