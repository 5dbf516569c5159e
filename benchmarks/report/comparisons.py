"""Whether it is faster than what a reader uses, and every case in which it is not."""

import math
from collections.abc import Iterable
from typing import Any

from benchmarks.common.tables import Key, Row, number, size, table, unique
from benchmarks.report.goals import gains
from benchmarks.report.rows import NAMES, label, measured, one, select
from benchmarks.report.texts import text

EPSILON = {"bfloat16": 2.0**-23, "float32": 2.0**-23, "float64": 2.0**-52}  # bfloat16 as float32
# Errors (relative to the norm of A) below this many epsilons are rounding, and count as equal.
ROUNDING = 32.0
# An error at most 1 % larger is no larger. Without power iterations all methods draw the same kind
# of basis, and which of two draws is the better is chance.
EQUAL, BY_CHANCE = 1.01, 1.5


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

    found = []
    if first := one(cpu, section="svd", library="lowrank", method="svd"):
        tall, square = {"shape": [65536, 256]}, {"shape": [2000, 2000]}
        gain = {
            "sklearn": peers("svd", "scikit-learn", "randomized_svd, n_iter=2, QR"),
            "svd_numpy": peers("svd", "numpy", "linalg.svd"),
            "svd_torch": peers("svd", "torch", "linalg.svd"),
            "svd_lowrank": peers("svd", "torch", "svd_lowrank, q=60"),
            "tall_numpy": peers("qr", "numpy", "linalg.qr", **tall),
            "tall_torch": peers("qr", "torch", "linalg.qr", **tall),
            "square": peers("qr", "numpy", "linalg.qr", **square),
        }
        where = {"k": first["k"], "shape": size(first["shape"])}
        titles = "Is it faster, on a CPU", "Is the QR faster, on a CPU"
        found += [text(title, **where, **gain) for title in titles]
    cases = select(gpu, section="matrix", dtype="float32", method="svd, q=2", spectrum="fast")
    if cases := sorted(cases, key=lambda row: min(row["shape"])):
        small, *_, large = cases if len(cases) > 1 else 2 * cases
        gain = {"gain_large": gpus(large), "gain_small": gpus(small)}
        where = {"large": size(large["shape"]), "small": size(small["shape"])}
        found.append(text("Is it faster, on a GPU", **where, **gain))
    question, unit = "**Is it faster than what you use?**", "Below one, `lowrank` is slower."
    return [question, "", *(f"- {line}" for line in found), "", unit, ""] if found else []


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


def losses_section(rows: list[Row], where: str = "") -> list[str]:
    title = "Where lowrank loses"
    limits = {"equal": 100 * (EQUAL - 1), "by_chance": 100 * (BY_CHANCE - 1), "rounding": ROUNDING}
    return [f"### {title}{where}", "", text(title, **limits), "", *losses_table(rows)]


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
