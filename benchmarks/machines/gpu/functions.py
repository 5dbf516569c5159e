"""Parts that try everything: each function, kind of input and dtype, a CUDA graph, the tests."""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import lowrank
from benchmarks import ROOT, SOURCE
from benchmarks.common.measuring import Call
from benchmarks.common.results import cores
from benchmarks.machines.gpu.bench import Bench, Calls, cupy
from benchmarks.machines.gpu.matrices import SIZES

# Order and rank of the matrices of the part "functions".
OF_FUNCTIONS = {"full": (1024, 32), "small": (96, 8)}


class Products:
    """A matrix that can only be multiplied with."""

    def __init__(self, A: Any) -> None:
        self.A, self.shape, self.dtype, self.device = A, A.shape, A.dtype, A.device

    def cast(self, X: Any) -> Any:
        return (self.A.to if isinstance(X, torch.Tensor) else self.A.astype)(X.dtype)

    def matmat(self, X: Any) -> Any:
        return self.cast(X) @ X

    def rmatmat(self, Y: Any) -> Any:
        return self.cast(Y).conj().T @ Y


def call_of(function: str, A: Any, Q: Any, k: int, seed: int) -> Any:
    """At a fixed rank, and RangeFinder to a tolerance."""
    if function == "RangeFinder":
        return lowrank.RangeFinder(A, rng=seed).reach(rtol=0.1).result()
    if function == "residual_norm":
        return lowrank.residual_norm(A, Q, rng=seed)
    if function == "SketchedMatrix.update":
        return lowrank.SketchedMatrix(A.shape, k, like=Q, rng=seed).update(A).svd()
    if function in ("qr", "householder_qr"):
        return getattr(lowrank, function)(A)
    return getattr(lowrank, function)(A, k, rng=seed)


def functions(bench: Bench) -> None:
    """What the table of capabilities says of CUDA; then a CUDA graph."""
    n, k = OF_FUNCTIONS[bench.sizes]
    table = tomllib.loads((ROOT / "docs" / "capabilities.toml").read_text("utf-8"))
    inputs, heads = list(table["inputs"]), table["libraries"]["columns"][2:6]
    for name, (_, device, *cells) in table["libraries"]["rows"].items():
        kind = name.partition(":")[0]
        for head, cell in zip(heads, cells, strict=False):
            for dtype in head.split(", ") if device == "CUDA" and cell != "none" else ():
                column = kind if kind in inputs else "half" if cell != "yes" else "array"
                place = inputs.index(column)
                names = [of for of, row in table["functions"].items() if row[place] != "no"]
                calls_of = partial(function_calls, name, names, k)
                bench.measure("functions", calls_of, dtype, (n, n), k, "positive", arrays=name)
    shape, k = SIZES[bench.sizes][0]
    bench.measure("capture", partial(captured, k), "float32", shape, k, "fast")


def function_calls(name: str, names: list[str], k: int, A: Any) -> Calls:
    dtype = torch.float32 if A.element_size() == 2 else A.dtype
    Q = torch.eye(len(A), 4, dtype=dtype, device=A.device)
    if "cupy" in name:
        A, Q = (cupy().from_dlpack(X) for X in (A, Q))
    if name == "sparse:cupy":
        A = import_module("cupyx.scipy.sparse").csr_matrix(A)
    elif name.startswith("sparse"):
        A = A.to_sparse()
    elif name.startswith("operator"):
        A = Products(A)
    return [Call("lowrank", of, None, partial(call_of, of, A, Q, k)) for of in names]


def captured(k: int, A: torch.Tensor) -> Calls:
    """The range finder, and its replay as a CUDA graph on other numbers than it was captured on."""
    Omega = torch.randn(A.shape[1], k, device=A.device)

    def eager(_: int = 0) -> Any:
        return lowrank.range_finder(A, k, test_matrix=Omega, check_finite=False)

    # libraries choose kernels and allocate workspaces at their first calls, which no graph may hold
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = eager()
    Omega.normal_()

    def replay(_: int) -> Any:
        graph.replay()
        return found

    base, name = "lowrank range_finder, q=0", "range_finder, q=0"
    again = Call("lowrank", f"{name}, replayed CUDA graph", None, replay, base)
    return [Call("lowrank", name, None, eager, base), again]


# -- the test-suite -------------------------------------------------------------------------------

# Stands for array-api-strict where it is not installed: the tests build their backends from it, and
# those that would use it are not selected.
STRICT = """
class Device:
    def __init__(self, name):
        self.name = name
"""


def tests(bench: Bench) -> None:
    """Outcome of the tests that run on torch CUDA and CuPy."""
    missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
    if missing:
        bench.results.header["tests"] = {"skipped": f"not installed: {', '.join(missing)}"}
        return
    seconds = bench.budget.left() - 12.0
    with tempfile.TemporaryDirectory() as folder:
        if find_spec("array_api_strict") is None:
            Path(folder, "array_api_strict.py").write_text(STRICT, "utf-8")
        # only the plugins named here: others of the machine may warn, and warnings are errors
        options = ["-p", "no:cacheprovider", "--continue-on-collection-errors", "--tb=short"]
        workers = min(8, cores() // 2)
        if find_spec("xdist") and bench.device.type == "cuda" and workers > 1:
            options += ["-p", "xdist.plugin", "-n", str(workers)]
        command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or cupy", *options, "tests"]
        paths = os.pathsep.join(filter(None, [folder, str(SOURCE), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        environment.pop("SCIPY_ARRAY_API", None)
        # interrupted, it reports what it has; its own children end with it
        limit = ["timeout", "--signal=INT", "--kill-after=10", f"{seconds:.0f}"]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
        done = subprocess.run([*limit, *command], cwd=ROOT, env=environment, check=False, **output)
    found = {"status": done.returncode, "seconds": seconds, **counts(done.stdout)}
    bench.results.header["tests"] = {**found, "output": done.stdout[-6000:]}
    print(done.stdout[-2000:], flush=True)


def counts(shown: str) -> dict[str, int]:
    """Passed, failed and skipped tests, from the summary or else from the dots."""
    words = {"passed": ".", "failed": "F", "skipped": "s", "error": "E"}
    last = shown.strip().rpartition("\n")[2]
    found = {of: int(count) for count, of in re.findall(rf"(\d+) ({'|'.join(words)})", last)}
    if not found:
        dots = "".join(re.findall(r"^([.sFExX]+)(?: *\[ *\d+%\])?$", shown, re.MULTILINE))
        found = {word: dots.count(letter) for word, letter in words.items()}
    return {word.replace("error", "errors"): found.get(word, 0) for word in words}
