"""Every cell of the table of what takes what, which the documentation shows."""

import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from matrices import adjoint, with_spectrum

import lowrank
from lowrank import gallery

DECLARED = tomllib.loads(
    (Path(__file__).parent.parent / "docs" / "capabilities.toml").read_text(encoding="utf-8")
)
INPUTS, FUNCTIONS = list(DECLARED["inputs"]), DECLARED["functions"]
CELLS = [
    (function, kind, cell)
    for function, row in FUNCTIONS.items()
    for kind, cell in zip(INPUTS, row, strict=True)
]
N = 24


class Products:
    def __init__(self, A):
        self.A, self.shape, self.dtype = A, A.shape, A.dtype

    def matmat(self, X):
        return self.A @ X

    def rmatmat(self, Y):
        return adjoint(self.A) @ Y


def matrix(dtype="float64"):
    """Positive semidefinite, so that every function can do with it."""
    A = with_spectrum(gallery.fast(N) ** 0.5, (N, N), dtype)
    return (adjoint(A) @ A).astype(dtype)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process, which is its own mesh."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("torch.distributed.device_mesh")
    meeting = tmp_path_factory.mktemp("mesh") / "rendezvous"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
    )
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def made(kind, request):
    """Inputs of this kind, each of all that are here."""
    A = matrix()
    if kind == "array":
        return [A, matrix("float32"), matrix("complex64"), matrix("complex128")]
    if kind == "half":
        torch = pytest.importorskip("torch")
        return [A.astype("float16"), torch.asarray(A).bfloat16(), torch.asarray(A).half()]
    if kind == "stack":
        return [np.stack([A, A]), np.stack([A])[None]]
    if kind == "sparse":
        sparse, torch = pytest.importorskip("scipy.sparse"), pytest.importorskip("torch")
        return [sparse.csr_array(A), sparse.coo_matrix(A), torch.asarray(A).to_sparse()]
    if kind == "operator":
        linalg = pytest.importorskip("scipy.sparse.linalg")
        return [Products(A), linalg.aslinearoperator(A)]
    if kind == "rows":
        return [lowrank.RowBlocks(A, rows=10)]
    if kind == "dask":
        return [pytest.importorskip("dask.array").from_array(A, chunks=(10, N))]
    assert kind == "dtensor"
    mesh = request.getfixturevalue("mesh")
    torch = pytest.importorskip("torch")
    tensor = pytest.importorskip("torch.distributed.tensor")
    return [tensor.distribute_tensor(torch.asarray(A), mesh, [tensor.Shard(0)])]


def call(function, A, rule):
    if function == "RangeFinder":
        finder = lowrank.RangeFinder(A, rng=0)
        return finder.extend(4) if "rank" in rule else finder.reach(**rule)
    if function == "residual_norm":
        return lowrank.residual_norm(A, lowrank.range_finder(A, 4, rng=0).Q, rng=1)
    if function == "SketchedMatrix.update":
        like = A
        if not hasattr(A, "__array_namespace__") and type(A).__module__.split(".")[0] != "torch":
            like = matrix()
        dtype = str(A.dtype).rpartition(".")[2]
        dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
        library = type(like).__module__.partition(".")[0]
        home = pytest.importorskip(library) if library == "torch" else np
        like = home.zeros((1, 1), dtype=getattr(home, dtype))
        return lowrank.SketchedMatrix((N, N), 3, like=like, rng=0).update(A)
    return getattr(lowrank, function)(A, **rule)


@pytest.mark.parametrize(("function", "kind", "cell"), CELLS)
def test_cell(request, function, kind, cell):
    for A in made(kind, request):
        for rule, works in (
            ({"rank": 4}, cell in ("both", "rank")),
            ({"rtol": 0.1}, cell == "both"),
            ({}, cell == "yes"),
        ):
            has_rank = cell in ("both", "rank") or function in ("interpolative", "cur", "eigh")
            has_rank |= function in ("nystrom", "RangeFinder")
            if has_rank != bool(rule) or (function == "nystrom" and "rtol" in rule):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("error", lowrank.ConvergenceWarning)
                if works:
                    call(function, A, rule)
                else:
                    with pytest.raises((TypeError, ValueError), match=r"`\w+`|tolerance|matrix"):
                        call(function, A, rule)


def test_every_public_function_is_declared():
    functions = {name.partition(".")[0] for name in FUNCTIONS}
    callables = {
        name
        for name in lowrank.__all__
        if callable(getattr(lowrank, name)) and not name.endswith(("Result", "Warning"))
    }
    rest = {"ErrorEstimate", "HouseholderQR", "Look", "Progress", "RowBlocks", "Status"}
    assert functions == callables - rest
