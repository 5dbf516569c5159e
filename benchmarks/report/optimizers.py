"""The parts of the page that are of benchmarks/machines/optimizer.py and llama.py."""

from benchmarks.common.tables import Key, Row, crossed, duration, number, size, table, unique
from benchmarks.report.goals import goals_met, optimizer_goals
from benchmarks.report.machine import machine
from benchmarks.report.rows import measured, one, select
from benchmarks.report.texts import text


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
        text("Llama", **plan),
        "",
        *table(head, body),
    ]


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
            *(row["method"], duration(row["seconds"]), number(row["ratio"])),
            "–" if products is None else number(row["seconds"] / products["seconds"]),
            *(duration(row[key]) for key in ("slowest", "first")),
            megabytes(row["state_bytes"]),
            f"{100 * row['state_bytes'] / base['state_bytes']:.0f} %",
            megabytes(row["peak_bytes"]),
        ][: len(head)]
        for row in steps
    ]
    return [
        *goals_met("Goals of the optimizer", optimizer_goals(rows), ["goal", "measured", ""]),
        text("Optimizer", **base),
        "",
        *table(head, lines),
        *training_table(measured(rows, section="training")),
        *refresh_table(measured(rows, section="refresh")),
        *counts_table(select(rows, section="counts")),
    ]


def megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:.1f}"


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

    table = crossed(rows, by_name, lambda row: (row["spectrum"],), cell, "singular values")
    return [text("Refresh", **rows[0] | {"shape": size(rows[0]["shape"])}), "", *table]


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
        text("Counts"),
        "",
    ]
