"""The files of results: flat rows, and what they say about the machine and the code.

A script collects flat dictionaries in a `Results`, which rewrites its JSON file after each of them,
so that a run that is killed keeps what it has. Only the standard library is imported here.
"""

import ast
import json
import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import ROOT, SOURCE

# The keys that every row has, with None for what was not measured: `seconds` are the median, and
# `skipped` is the reason why nothing was measured.
COLUMNS: dict[str, Any] = dict.fromkeys(
    (
        *("section", "library", "dtype", "shape", "rank", "spectrum", "method"),
        *("seconds", "fastest", "repeats", "ratio", "error", "orthogonality"),
        *("peak_bytes", "kernels", "host_reads", "skipped"),
    )
) | {"repeats": 0}


class Results:
    """The rows measured so far, and the file, if any, that always holds them.

    With `resume`, what the file held before stays, under a new header; each `part` that begins
    takes the place of what it measured last time.
    """

    def __init__(self, path: str | Path | None, *, resume: bool = False, **header: Any) -> None:
        self.path = None if path is None else Path(path)
        self.header = header
        self.rows: list[dict[str, Any]] = []
        self.part: dict[str, Any] = {}
        self.tell: Callable[[dict[str, Any]], None] = lambda _: None
        if resume and self.path is not None and self.path.exists():
            before = json.loads(self.path.read_text("utf-8"))
            for key in ("machine", "quick"):
                if before[key] != header[key]:
                    sys.exit(f"{path} is of another run: {key} {before[key]}")
            self.rows = before.pop("rows")
            self.header = before | header
        self.save()

    def begin(self, part: str) -> dict[str, Any]:
        """Drop the rows of a part, name those to come, and say what code they are of."""
        self.part = {"part": part}
        self.rows = [row for row in self.rows if row.get("part") != part]
        told = {key: self.header[key] for key in ("commit", "date", "source")}
        self.header.setdefault("parts", {})[part] = told
        self.save()
        return told

    def add(self, **values: Any) -> dict[str, Any]:
        """Append a row, write the file, and return the row, which may be completed later."""
        row = COLUMNS | self.part | values
        self.rows.append(row)
        self.save()
        self.tell(row)
        return row

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, self.header | {"rows": self.rows})


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole at any time: a new one takes the place of the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    scratch.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n", "utf-8")
    scratch.replace(path)


def _finite(content: Any) -> Any:
    """`content` with the numbers that JSON has no name for as words."""
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


# -- the machine ----------------------------------------------------------------------------------


def header(kind: str, device: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """What a results file says about where its numbers come from."""
    return {
        "kind": kind,
        "machine": {"device": device, "cpu": cpu_name(), "cores": cores()},
        "versions": versions(packages),
        "commit": commit(),
        "source": sources(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    """Versions of the installed packages; None for the others."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The commit of the checkout, marked where files differ from it; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    options = {"cwd": ROOT, "stderr": subprocess.DEVNULL, "text": True, "timeout": 30}
    try:
        shown = subprocess.check_output(command, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.strip() or None


@cache
def sources() -> dict[str, str]:
    """Digests of the library's code: its optimizers, and the rest less the command line."""
    digests = {"core": sha256(), "optim": sha256()}
    for path in sorted((SOURCE / "lowrank").rglob("*.py")):
        if path.parent.name != "_cli":
            name = "optim" if path.parent.name == "optim" else "core"
            digests[name].update(code_of(path.read_text("utf-8")).encode())
    return {name: digest.hexdigest()[:16] for name, digest in digests.items()}


def code_of(text: str) -> str:
    """A program without its docstrings, whole lines of comments, and empty lines."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[line] = ""
    return "\n".join(line for line in lines if line.strip() and line.lstrip()[0] != "#")
