"""What the measuring scripts share: interleaved timing, accuracy, counts, the machine, the file.

A script collects flat dictionaries in a `Results`, which rewrites its JSON file after each of them,
so that a run that is killed keeps what it has.

Only the standard library is imported here; the functions that ask torch import it themselves.
"""

import ast
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ROOT, SOURCE

# The keys that every row has, with the value of what was not measured.
COLUMNS: dict[str, Any] = {
    "section": None,
    "library": None,
    "dtype": None,
    "shape": None,
    "rank": None,
    "spectrum": None,
    "method": None,
    "seconds": None,  # median
    "fastest": None,
    "repeats": 0,
    "ratio": None,
    "error": None,
    "orthogonality": None,
    "peak_bytes": None,
    "kernels": None,
    "host_reads": None,
    "skipped": None,  # or the reason why nothing was measured
}
# Repeats of a call: as many as the first, but no more than LEAST once they took ENOUGH seconds
# together, and no more at all once they took FAR_TOO_MUCH.
REPEATS, LEAST, ENOUGH, FAR_TOO_MUCH = 7, 3, 1.0, 4.0


class Budget:
    """A time to stop at."""

    def __init__(self, seconds: float) -> None:
        self._start = time.perf_counter()
        self.seconds = seconds

    def spent(self) -> float:
        return time.perf_counter() - self._start

    def left(self) -> float:
        return self.seconds - self.spent()

    def part(self, *, keeping: float = 0.0, at_most: float = math.inf) -> "Budget":
        """A budget of what is left, less `keeping` for later."""
        return Budget(min(self.left() - keeping, at_most))


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


def asked_device(name: str, trial: str = "--device cpu") -> tuple[Any, str]:
    """The torch device of this name, and what it is; ends the program where it is not there."""
    import torch  # noqa: PLC0415

    device = torch.device(name)
    if device.type != "cuda":
        return device, cpu_name()
    if not torch.cuda.is_available():
        sys.exit(f"torch sees no CUDA device; for a trial: {trial}")
    return device, torch.cuda.get_device_name(device)


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
        if path.parent.name != "_command":
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


def module_of(package: str, module: str) -> Any:
    """A module of a package, whose own `__init__`, which wants more packages, is not run."""
    if package not in sys.modules:
        spec = find_spec(package)
        if spec is None:
            message = f"{package} is not installed"
            raise ModuleNotFoundError(message)
        sys.modules[package] = module_from_spec(spec)
    return import_module(f"{package}.{module}")


# -- timing ---------------------------------------------------------------------------------------


@dataclass
class Timing:
    """Times of one call, what its last run returned, and why it failed if it did."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None
    failure: str | None = None

    def row(self) -> dict[str, Any]:
        """The columns of a row that follow from the times."""
        if not self.seconds:
            return {"skipped": self.failure or "not run"}
        return {
            "seconds": median(self.seconds),
            "fastest": min(self.seconds),
            "repeats": len(self.seconds),
            "skipped": self.failure,
        }


def interleaved(
    calls: Mapping[str, Callable[[int], Any]],
    synchronise: Callable[[], Any] = lambda: None,
    *,
    budget: Budget | None = None,
    repeats: int = REPEATS,
    once: frozenset[str] = frozenset(),
) -> dict[str, Timing]:
    """Time the calls in turn, so that what disturbs the machine disturbs all of them alike.

    The argument of a call is the number of its repeat, to be used as a seed. The first run of each
    warms up and does not count, except for the calls named in `once`, which run a single time. The
    clock is `time.perf_counter`, read after `synchronise()` before and after the call: what the
    user waits for, the work of the host included. A call that fails is not tried again; nor is one
    that would no longer fit into the budget.
    """
    timings = {name: Timing() for name in calls}
    expected = dict.fromkeys(calls, 0.0)
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            timing = timings[name]
            if timing.failure or _has_enough(timing.seconds) or (name in once and repeat):
                continue
            if budget is not None and budget.left() < expected[name]:
                if not timing.seconds:
                    timing.failure = "no time left"
                continue
            try:
                timing.result = None  # frees its memory before the call needs as much again
                duration, timing.result = timed(
                    lambda call=call, seed=repeat: call(seed), synchronise
                )
            except Exception as error:
                timing.failure = told(error)
                continue
            expected[name] = duration
            if repeat or name in once:
                timing.seconds.append(duration)
    return timings


def _has_enough(seconds: list[float]) -> bool:
    total = sum(seconds)
    return (len(seconds) >= LEAST and total > ENOUGH) or total > FAR_TOO_MUCH


def timed(call: Callable[[], Any], synchronise: Callable[[], Any]) -> tuple[float, Any]:
    synchronise()
    start = time.perf_counter()
    result = call()
    synchronise()
    return time.perf_counter() - start, result


def told(error: BaseException) -> str:
    """The kind of an error and the beginning of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


@dataclass(frozen=True)
class Call:
    """A method to measure; the argument of `run` is a seed.

    Rows with the same `task` can be compared. `base` is the name of the call that `ratio` is to.
    """

    library: str
    method: str
    task: str | None
    run: Callable[[int], Any]
    base: str | None = None
    products: float = 1.0  # of k columns with the matrix, where the result does not tell
    once: bool = False  # a few seconds each: runs a single time
    foreign: bool = False  # works in the threads of another BLAS than the others

    @property
    def name(self) -> str:
        return f"{self.library} {self.method}"


Judge = Callable[[Call, Any, Mapping[str, float]], dict[str, Any]]


def measure(
    results: Results,
    group: Mapping[str, Any],
    calls: list[Call],
    judge: Judge,
    synchronise: Callable[[], Any] = lambda: None,
    *,
    budget: Budget | None = None,
    repeats: int = REPEATS,
    rest: Callable[[int], Any] | None = None,
) -> None:
    """Time the calls of one group in turn, and record a row for each.

    The judge adds columns, from a result and the medians of all calls; where it fails, the row has
    a note, and no more. A foreign call is followed by a `rest`.
    """
    turns: dict[str, Callable[[int], Any]] = {}
    for call in calls:
        turns[call.name] = call.run
        if call.foreign and rest is not None:
            turns[f"rest after {call.name}"] = rest
    once = frozenset(call.name for call in calls if call.once)
    timings = interleaved(turns, synchronise, budget=budget, repeats=repeats, once=once)
    medians = {name: median(timing.seconds) for name, timing in timings.items() if timing.seconds}
    for call in calls:
        timing = timings[call.name]
        columns = timing.row()
        if timing.seconds:
            if call.base in medians:
                columns["ratio"] = columns["seconds"] / medians[call.base]
            try:
                columns |= judge(call, timing.result, medians)
            except Exception as error:
                columns["note"] = told(error)
        timing.result = None
        named = {"library": call.library, "method": call.method, "task": call.task}
        results.add(**{**group, **named, **columns})


# -- accuracy, on NumPy and torch -----------------------------------------------------------------


def parts(found: Any) -> tuple[Any, ...]:
    """``(Q,)``, ``(Q, B)``, ``(U, S, Vh)``, and so on, of a result, or the tuple it is."""
    if found is None or isinstance(found, tuple):
        return found or ()
    if hasattr(found, "eigenvectors"):
        return found.eigenvectors, found.eigenvalues, found.eigenvectors.conj().T
    if hasattr(found, "thin"):
        return found.thin(), found.R
    if hasattr(found, "C"):
        return found.C @ found.U, found.R
    every = (("U", "S", "Vh"), ("skeleton", "coefficients"), ("Q", "B"), ("Q",))
    names = next((names for names in every if hasattr(found, names[-1])), ())
    return tuple(getattr(found, name) for name in names)


def cut(factors: Any, k: int) -> tuple[Any, ...]:
    U, S, Vh = factors
    return U[:, :k], S[:k], Vh[:k]


def accuracy(A: Any, found: tuple[Any, ...]) -> dict[str, Any]:
    """Rank, error and loss of orthogonality of the factors that `parts` gives."""
    if not found:
        return {}
    Q, *rest = found
    left = Q * rest[0] if len(rest) == 2 else Q
    return {
        "rank": int(Q.shape[-1]),
        "error": relative_error(A, left, rest[-1] if rest else None),
        "orthogonality": orthogonality(Q),
    }


def relative_error(A: Any, left: Any, right: Any | None) -> float:
    """``‖A − left right‖/‖A‖``, with ``leftᴴ A`` where `right` is None; in float64, by blocks."""
    left = wide(left)
    if right is None:
        right = sum(left[rows].conj().mT @ wide(A[rows]) for rows in row_blocks(A))
    right = wide(right)
    squares, whole = 0.0, 0.0
    for rows in row_blocks(A):
        block = wide(A[rows])
        whole += float((abs(block) ** 2).sum())
        squares += float((abs(block - left[rows] @ right) ** 2).sum())
    return math.sqrt(squares / whole) if whole else math.sqrt(squares)


def orthogonality(Q: Any) -> float:
    """``‖QᴴQ − I‖_F``."""
    gram = sum(wide(Q[rows]).conj().mT @ wide(Q[rows]) for rows in row_blocks(Q))
    diagonal = list(range(Q.shape[1]))
    gram[diagonal, diagonal] -= 1.0
    return math.sqrt(float((abs(gram) ** 2).sum()))


def wide(X: Any) -> Any:
    """In double precision."""
    if hasattr(X, "double"):
        return X.cdouble() if X.is_complex() else X.double()
    return X.astype("complex128" if X.dtype.kind == "c" else "float64")


def row_blocks(A: Any) -> list[slice]:
    rows = max(1, 2**22 // max(1, A.shape[1]))
    return [slice(start, start + rows) for start in range(0, A.shape[0], rows)]


# -- counts on torch ------------------------------------------------------------------------------


def host_reads(call: Callable[[], Any]) -> int:
    """How often `call` reads a value of a torch tensor, and so waits for the device.

    Counted by the operation behind `item`, `float`, `bool` and `int` of a tensor. Waits inside
    one operation, such as the check of a factorization for convergence, are not seen.
    """
    import torch  # noqa: PLC0415
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as counter:
        call()
    return int(counter.count)


def peak_bytes(call: Callable[[], Any], device: Any) -> int | None:
    """Memory of torch's CUDA allocator that `call` needs beyond what was there, with its result.

    None on other devices, whose allocator keeps no count.
    """
    import torch  # noqa: PLC0415

    if torch.device(device).type != "cuda":
        call()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - base
    del result
    return int(peak)


def kernels(call: Callable[[], Any], device: Any) -> int | None:
    """Kernels that `call` launches on a CUDA device, by torch's profiler; None on other devices.

    Copies and fills of memory are not counted. Once a profiler has run, launches may be slower:
    count after all times have been taken.
    """
    import torch  # noqa: PLC0415
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
    activities = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
    with quiet(), profile(activities=activities) as found:
        call()
        if is_cuda:
            torch.cuda.synchronize(device)
    names = [event.name for event in found.events() or () if _is_on_device(event)]
    launched = [name for name in names if not name.lower().startswith(("memcpy", "memset"))]
    return len(launched) if is_cuda else None


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries write to the standard error, whatever language they are written in."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _is_on_device(event: Any) -> bool:
    from torch.autograd import DeviceType  # noqa: PLC0415

    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
