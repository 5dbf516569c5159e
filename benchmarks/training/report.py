"""Tables in Markdown, and plots, made from the files of the runs and of nothing else."""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.common.plots import begin_plots, save
from benchmarks.training.methods import GROUPS, METHODS
from benchmarks.training.run import RESULTS, Protocol, Run, best_rate

# Okabe and Ito's colors, which everybody can tell apart, and a gray; with a dash for each.
COLORS = (
    "#222222", "#777777", "#E69F00", "#CC79A7", "#D55E00", "#009E73", "#0072B2", "#56B4E9",
    "#882255", "#882255",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.", "-", "--", "-", "--", "-", ":")
MARKERS = {"peers": "o", "muon": "^", "factors": "D", "ranks": "s", "options": "x", "trials": "+"}
OF_GROUP = {
    "peers": "#D55E00", "muon": "#CC79A7", "factors": "#009E73", "ranks": "#0072B2",
    "options": "#777777", "trials": "#777777",
}  # fmt: skip
TITLES = {
    "headers": "C++ headers of PyTorch (learning rates of the King James text)",
    "kjv": "King James text",
    "stdlib": "Sources of the Python standard library",
}
# Labels that would lie on the points of others, in points from their own.
ASIDE = {
    "adamw-0.1": (5, -9),
    "momentum-r8": (5, -9),
    "apollo-r8": (-6, -10),
    "lowrank-r8": (-6, 2),
}
TO_SEPARATE = 10_000  # from here on, thousands have a comma
NEEDED = 2  # methods, for a plot of several to say something


@dataclass(frozen=True)
class Line:
    """What is known of a method."""

    name: str
    sweep: dict[float, dict[str, Any]]  # by learning rate, with the first seed
    best: float
    seeds: list[dict[str, Any]]  # at the best learning rate

    @property
    def losses(self) -> list[float]:
        return [float(each["held_out"]) for each in self.seeds]

    def mean(self, key: str) -> float:
        return statistics.mean(float(each[key]) for each in self.seeds)

    def step_cpu(self) -> float:
        """CPU seconds of a step of the optimizer, but the first, in which some compile."""
        return statistics.mean(
            (each["optimizer_cpu_seconds"] - each["first_step_cpu_seconds"])
            / max(1, each["steps_taken"] - 1)
            for each in self.seeds
        )

    @property
    def at_edge(self) -> str:
        if METHODS[self.name].rate is not None or len(self.sweep) == 1:
            return "no other tried"
        if self.best == max(self.sweep):
            return "upper edge"
        return "lower edge" if self.best == min(self.sweep) else ""


def lines_of(protocol: Protocol, corpus: str) -> list[Line]:
    found = []
    for name in METHODS:
        rates = sorted({*protocol.rates, protocol.below, protocol.above} - {None})
        runs = {lr: Run(protocol, corpus, name, lr, protocol.seeds[0]).result() for lr in rates}
        sweep = {lr: result for lr, result in runs.items() if result}
        if not sweep:
            continue
        best = best_rate(sweep)
        seeds = [Run(protocol, corpus, name, best, seed).result() for seed in protocol.seeds]
        found.append(Line(name, sweep, best, [each for each in seeds if each]))
    texts = {result["corpus"]["sha256"] for line in found for result in line.sweep.values()}
    if len(texts) > 1:
        message = f"the runs on {corpus} had {len(texts)} different texts."
        raise SystemExit(message)
    return found


def warning(protocol: Protocol) -> str:
    return f"a trial of {protocol.steps} steps, not for comparison" if protocol.folder else ""


# -- tables ---------------------------------------------------------------------------------------


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A table; columns of numbers end at the right."""
    columns = list(zip(*rows, strict=True))
    numbers = [all(map(is_number, column)) for column in columns[1:]]
    rule = [":---", *["---:" if right else ":---" for right in numbers]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def is_number(cell: str) -> bool:
    return re.fullmatch(r"[-–×/\d.,e%*]*", cell) is not None


def loss(value: Any) -> str:
    return f"{float(value):.3f}"


def main_row(line: Line, adamw: float | None) -> list[str]:
    losses, held = line.losses, max(each["state_bytes"] for each in line.seeds)
    peak = max(each["peak_state_bytes"] for each in line.seeds)
    fate = ", ".join(part for part in (line.at_edge, diverged(line.seeds)) if part)
    return [
        f"`{line.name}`",
        loss(statistics.mean(losses)),
        f"{loss(min(losses))}–{loss(max(losses))}",
        str(len(losses)),
        f"{line.best:g}" + (f" ({fate})" if fate else ""),
        f"{held:,}" + (f" (peak {peak:,})" if peak > held else ""),
        "" if adamw is None else f"{held / adamw:.1%}",
        f"{1e3 * line.step_cpu():.1f}",
        f"{1e3 * line.mean('optimizer_seconds_per_step'):.1f}",
    ]


def diverged(seeds: list[dict[str, Any]]) -> str:
    count = sum(each["diverged"] for each in seeds)
    return f"{count} diverged" if count else ""


def write_table(protocol: Protocol, corpus: str) -> str:
    """The page of one corpus, written to a file and returned."""
    lines = lines_of(protocol, corpus)
    if not lines:
        return f"No runs on {corpus} yet."
    adamw = next((max(s["state_bytes"] for s in x.seeds) for x in lines if x.name == "adamw"), None)
    first = lines[0].seeds[0]
    machines = {f"{s['machine']['cpu']}, one thread" for line in lines for s in line.seeds}
    head = ["method", "mean", "min–max", "seeds", "best lr", "state, bytes", "of AdamW's"]
    head += ["step(), CPU ms", "step(), ms"]
    rates = sorted({lr for line in lines for lr in line.sweep})
    page = [f"# Held-out nats per byte, {TITLES[corpus]}"]
    if protocol.folder:
        page.append(f"**{warning(protocol).capitalize()}.**")
    page.append(
        f"{protocol.steps} steps of {protocol.batch}×{protocol.length} bytes; torch "
        f"{first['versions']['torch']}, transformers {first['versions']['transformers']}; "
        f"{'; '.join(sorted(machines))}. The table shows the mean and the range over seeds, at the "
        f"learning rate that is best for seed {protocol.seeds[0]}. Since that seed chose the rate, "
        "its loss is slightly too low for every method. *State* counts the matrices of attention "
        "and MLP. Times are means of step() of the optimizer, without the first, in which some "
        "methods compile. Other processes may have run on the machine; the CPU time is more "
        "reliable."
    )
    for group, title in GROUPS.items():
        rows = [main_row(x, adamw) for x in lines if METHODS[x.name].group == group]
        if rows:
            page += [f"## {title}", grid(head, rows)]
    swept = [
        [f"`{x.name}`", *[cell_of(x.sweep.get(lr), best=lr == x.best) for lr in rates]]
        for x in lines
    ]
    title = f"## Every learning rate, seed {protocol.seeds[0]}"
    page += [title, grid(["method", *[f"{lr:g}" for lr in rates]], swept)]
    page += experiment_pages(protocol, corpus)
    text = "\n\n".join(page) + "\n"
    (RESULTS / protocol.folder / f"{corpus}.md").write_text(text, "utf-8")
    return text


def cell_of(result: dict[str, Any] | None, *, best: bool) -> str:
    if result is None:
        return ""
    told = loss(result["held_out"]) + (" diverged" if result["diverged"] else "")
    return f"**{told}**" if best else told


def experiment_pages(protocol: Protocol, corpus: str) -> list[str]:
    page = []
    folder = RESULTS / protocol.folder / "experiments"
    for path in sorted(folder.glob("e*.json"), key=lambda path: int(path.stem[1:])):
        content = json.loads(path.read_text("utf-8"))
        if content["corpus"]["name"] != corpus:
            continue
        rows = content["rows"]
        head = list(dict.fromkeys(key for row in rows for key in row))
        page.append(f"## {content['experiment'].upper()}")
        page.append(" ".join(content["question"].split()))
        page.append(grid(head, [[plain(row.get(key)) for key in head] for row in rows]))
    return page


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and value >= TO_SEPARATE:
        return f"{value:,}"
    if isinstance(value, list):
        return "×".join(map(str, value))
    return "" if value is None else str(value).replace("|", "\\|")


# -- plots ----------------------------------------------------------------------------------------


def write_plots(protocol: Protocol, corpus: str) -> list[Path]:
    """The plots of one corpus, on white, so that they can be read on any page."""
    plt = begin_plots(open_axes=True)
    lines = [x for x in lines_of(protocol, corpus) if not all(s["diverged"] for s in x.seeds)]
    if len(lines) < NEEDED:
        return []
    folder = RESULTS / protocol.folder if protocol.folder else ROOT / "docs" / "_static"
    written = []
    for name, draw in {"bytes": by_bytes, "steps": by_steps, "time": by_time}.items():
        figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
        draw(axes, lines)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title(
            " – ".join(part for part in (TITLES[corpus], warning(protocol)) if part), loc="left"
        )
        path = folder / f"training-{corpus}-{name}.svg"
        save(figure, path)
        written.append(path)
    return written


def drawn(lines: list[Line]) -> list[tuple[str, Line, str, str]]:
    """The few methods that have a label, with a color and a dash each."""
    few = [line for line in lines if METHODS[line.name].drawn]
    styles = zip(few, COLORS, DASHES, strict=False)
    return [(str(METHODS[x.name].drawn), x, color, dash) for x, color, dash in styles]


def by_bytes(axes: Any, lines: list[Line]) -> None:
    for group, title in GROUPS.items():
        for place, line in enumerate(x for x in lines if METHODS[x.name].group == group):
            losses = line.losses
            middle = statistics.mean(losses)
            axes.errorbar(
                line.mean("peak_state_bytes"),
                middle,
                [[middle - min(losses)], [max(losses) - middle]],
                marker=MARKERS[group],
                color=OF_GROUP[group],
                linewidth=1,
                markersize=5,
                label=None if place else title,
            )
    for label, line, _, _ in drawn(lines):
        at = line.mean("peak_state_bytes"), statistics.mean(line.losses)
        aside = ASIDE.get(line.name, (5, 4))
        side = "left" if aside[0] > 0 else "right"
        axes.annotate(label, at, aside, textcoords="offset points", fontsize=8, ha=side)
    axes.margins(x=0.15)
    axes.set_xscale("log")
    axes.set_xlabel("state of the matrices, bytes (peak)")
    axes.set_ylabel("held-out nats per byte (mean, range of seeds)")
    # below the axes, where no method lies
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def by_steps(axes: Any, lines: list[Line]) -> None:
    for label, line, color, dash in drawn(lines):
        first = line.seeds[0]
        steps, values = zip(*first["train_curve"], strict=True)
        axes.plot(steps, values, dash, color=color, linewidth=1.4, label=label)
        steps, values = zip(*first["held_out_curve"], strict=True)
        axes.plot(steps, values, "o", color=color, markersize=4)
    last = [float(x.seeds[0]["train_curve"][-1][1]) for _, x, _, _ in drawn(lines)]
    axes.set_ylim(0.95 * min(last), 2.0 * min(last))
    axes.set_xlabel("step")
    axes.set_ylabel("nats per byte: training (lines), held out (dots)")
    axes.legend(frameon=False, fontsize=8)


def by_time(axes: Any, lines: list[Line]) -> None:
    few = drawn(lines)
    times = [1e3 * line.step_cpu() for _, line, _, _ in few]
    axes.plot(times, [label for label, *_ in few], "o", color="#0072B2")
    for place, value in enumerate(times):
        axes.annotate(f"{value:.1f}", (value, place), (7, -3), textcoords="offset points")
    axes.margins(x=0.1, y=0.1)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("step() of the optimizer, CPU ms on one thread")
