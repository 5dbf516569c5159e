"""The part of the page that is of benchmarks/machines/cpu."""

from benchmarks.common.tables import Key, Row, crossed, duration, number, size, small, table, unique
from benchmarks.report.comparisons import losses_section
from benchmarks.report.goals import cpu_goals, goals_met
from benchmarks.report.machine import machine
from benchmarks.report.rows import ARRAYS, PRODUCT, PRODUCTS, by_method, measured, one, select
from benchmarks.report.texts import section

DTYPES = ("float32", "float64")
SPECTRA = ("flat", "fast", "slow")


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
    case = {"k": found[0]["k"], "shape": size(found[0]["shape"])}
    return section(found, "At a fixed rank", lines, **case)


def spread_of(rows: list[Row], method: str) -> str:
    seconds = [row["seconds"] for row in measured(rows, method=method)]
    return f"{duration(min(seconds))} to {duration(max(seconds))}" if seconds else "not measured"


def adaptive(rows: list[Row]) -> list[str]:
    lines = [
        [
            *(ARRAYS[row["arrays"]], by_case(row)[-1], small(row["rtol"])),
            *(str(row["rank"]), str(row["products"]), number(row["ratio"]), small(row["error"])),
        ]
        for row in measured(rows, section="adaptive", task="adaptive")
    ]
    head = ["arrays", "case", "tolerance", "rank found", "products", "time ratio", "true error"]
    return section(lines, "To a tolerance", table(head, lines, left=2))


def svds(rows: list[Row]) -> list[str]:
    found = select(rows, section="svd")
    if not found:
        return []
    lines: list[str] = []
    for arrays, title in ARRAYS.items():
        mine = select(found, arrays=arrays)
        body = []
        for library, method, label in unique(map(by_method, mine)):
            cells = []
            for dtype in DTYPES:
                row = one(mine, library=library, method=method, dtype=dtype)
                cells += ["–", "–"] if row is None else [number(row["ratio"]), excess(row)]
            body.append([label, *cells])
        times = [one(mine, library="lowrank", method="svd", dtype=dtype) for dtype in DTYPES]
        head = [title]
        for dtype, row in zip(DTYPES, times, strict=True):
            head += [f"{dtype}: time" + (f" ({duration(row['seconds'])})" if row else ""), "error"]
        lines += table(head, body)
    case = {"k": found[0]["k"], "shape": size(found[0]["shape"])}
    return section(found, "Truncated SVD", lines + skipped(found), **case)


def excess(row: Row) -> str:
    """How far the error is above the best possible one."""
    over = row.get("over_best")
    if over is None:
        return "–"
    above = over - 1.0
    return f"{above:.0e}" if above > 1e-9 else "0"


def skipped(rows: list[Row]) -> list[str]:
    reasons = unique(
        f"{by_method(row)[-1]} ({row['dtype']}): {row['skipped']}" for row in rows if row["skipped"]
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

    lost = "Loss of orthogonality ‖QᵀQ − I‖ and residual ‖A − QR‖/‖A‖, in the Frobenius norm:"
    times = crossed(found, case, method, time, "time")
    accuracies = crossed(found, case, method, accuracy, "accuracy")
    return section(found, "QR", [*times, lost, "", *accuracies])


def growth(content: Row, picture: str | None) -> list[str]:
    lines = [
        [
            f"`{fit['method']}`" if "," not in fit["method"] else "`range_finder`, adaptive",
            *(fit["axis"], f"{fit['sizes'][0]} to {fit['sizes'][-1]}"),
            *(number(fit[key]) for key in ("slope", "products_slope")),
        ]
        for fit in content["fits"]
    ]
    head = ["on NumPy, float64", "against", "sizes", "exponent of time", "of the products' flops"]
    pictures = [f"![Time against m, n and k]({picture})", ""] if picture else []
    return section(lines, "Growth", [*pictures, *table(head, lines, left=3)])


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
    head = ["shape", "rank", *(f"`{name}`" for name in methods)]
    return section(lines, "Memory", table(head, lines))


def cpu_page(content: Row, pictures: dict[str, str]) -> list[str]:
    rows = content["rows"]
    told = "Times relative to the bare products: a dot for each method, matrix and dtype"
    plot = [f"![{told}]({pictures['ratios']})", ""] if "ratios" in pictures else []
    head = ["goal", "measured", "worst case", ""]
    return [
        f"## On a CPU: {content['machine']['device']}",
        "",
        *machine(content),
        *goals_met("Goals", cpu_goals(rows), head),
        *plot,
        *fixed_rank(rows),
        *adaptive(rows),
        *svds(rows),
        *qrs(rows),
        *growth(content, pictures.get("growth")),
        *memory(content),
        *losses_section(rows),
        *failures(content),
    ]


def failures(content: Row) -> list[str]:
    found = content.get("failures")
    return ["Failed: " + "; ".join(found) + ".", ""] if found else []
