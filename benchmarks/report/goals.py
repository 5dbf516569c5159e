"""What the library is meant to reach, and whether it does."""

from collections.abc import Iterable
from typing import Any

from benchmarks.common.tables import Key, Row, number, size, table, unique
from benchmarks.report.rows import ARRAYS, measured
from benchmarks.report.texts import section, text

# What is measured, the method, and the limit.
STEP_GOALS = (
    ("step alone, without the residual, over AdamW (foreach)", "LowRank, no residual", 1.5),
    ("step alone, with the scaled residual, over AdamW (foreach)", "LowRank", 3.0),
)


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


def goals_met(title: str, goals: list[list[str]], head: list[str]) -> list[str]:
    """All goals but those that were missed."""
    return section(goals, title, table(head, [line for line in goals if "missed" not in line[-1]]))


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
    title, head = "Missed goals", ["goal", "machine", "measured", "missed in"]
    return [f"## {title}", "", text(title), "", *table(head, lines, left=2)] if lines else []


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
