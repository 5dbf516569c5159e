"""Every cell of the two tables of what takes what, which the documentation and the README show."""

import dataclasses
import re
import runpy
import warnings
from pathlib import Path

import array_api_compat
import numpy as np
import pytest
from conftest import ABSENT, BACKENDS, COMPILING, DTYPES, NIGHTLY
from matrices import adjoint, with_spectrum

import lowrank
from lowrank import gallery

ROOT = Path(__file__).parents[2]
TABLES = runpy.run_path(str(ROOT / "docs" / "capabilities.py"))
DECLARED, kind_of = TABLES["DECLARED"], TABLES["kind_of"]
FUNCTIONS, LIBRARIES = DECLARED["functions"], DECLARED["libraries"]
INPUTS, REFUSED = list(DECLARED["inputs"]), tuple(LIBRARIES["refused"])
HALF = ("float16", "bfloat16")
REAL = {"complex64": "float32", "complex128": "float64"}
WITHOUT_RANK = ("residual_norm", "SketchedMatrix.update", "qr", "householder_qr")
# What an error has to say: of which argument, and what to do.
CLEAR = r"(?i)(`{}`|tolerance|single matrix).*(pass|cast|convert|must|give|loop)"
N = 24


def told(row):
    """What a row says in each column, and of each dtype."""
    cells = dict.fromkeys(REFUSED, "refused")
    for head, cell in zip(LIBRARIES["columns"], row, strict=True):
        cells |= dict.fromkeys(head.split(", "), cell)
    return cells


ROWS = {name: told(row) for name, row in LIBRARIES["rows"].items()}


def home_of(name):
    """Where the results of a row are, as conftest.py calls it."""
    return name.removeprefix(f"{kind_of(name)}:")


EVERY = [*BACKENDS, *COMPILING]


def row_of(backend):
    """The row of arrays that a backend belongs to: its own, or that of its library."""
    return backend.name if backend.name in ROWS else backend.name.partition(":")[0]


def backends_of(name):
    """Those of this machine that a row is tried on."""
    if kind_of(name) == "array":
        return [backend for backend in EVERY if row_of(backend) == name]
    return [backend for backend in EVERY if backend.name == home_of(name)]


class Products:
    def __init__(self, A):
        self.A, self.shape, self.dtype, self.device = A, A.shape, A.dtype, A.device

    def matmat(self, X):
        return self._in(X.dtype) @ X

    def rmatmat(self, Y):
        A = self._in(Y.dtype)
        xp = array_api_compat.array_namespace(A)
        return xp.conj(xp.matrix_transpose(A)) @ Y

    def _in(self, dtype):  # of float16 and float32 torch has no product
        return array_api_compat.array_namespace(self.A).astype(self.A, dtype)


def matrix(dtype):
    """Positive semidefinite, so that every function can do with it."""
    wide = "complex128" if dtype.startswith("complex") else "float64"
    A = with_spectrum(gallery.fast(N) ** 0.5, (N, N), wide)
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


def given(kind, backend, dtype, request):
    """The matrix as this kind of input; an AttributeError or ValueError if there is no such dtype.

    And four columns of the identity where results are, in their dtype.
    """
    xp = backend.xp
    wanted = getattr(xp, dtype)
    A = xp.astype(backend.asarray(matrix(dtype if hasattr(np, dtype) else "float32")), wanted)
    own = wanted if dtype in DTYPES else xp.float32
    Q = xp.eye(N, 4, dtype=own, device=backend.device)
    if kind == "operator":
        A = Products(A)
    elif kind == "stack":
        A = xp.stack([A, A])[None, ...]
    elif kind == "rows":
        A = lowrank.RowBlocks(A, rows=10)
    elif kind == "sparse" and backend.name.startswith("torch"):
        A = A.to_sparse()
    elif kind == "sparse" and backend.name == "cupy":
        A = pytest.importorskip("cupyx.scipy.sparse").csr_matrix(A)
    elif kind == "sparse":
        A = pytest.importorskip("scipy.sparse").csr_array(A)
    elif kind == "dask":
        A = pytest.importorskip("dask.array").from_array(A, chunks=(10, N))
    elif kind == "dtensor":
        mesh = request.getfixturevalue("mesh")
        tensor = pytest.importorskip("torch.distributed.tensor")
        A, Q = (tensor.distribute_tensor(X, mesh, [tensor.Shard(0)]) for X in (A, Q))
    return A, Q


def call(function, A, Q, rule):
    if function == "RangeFinder":
        finder = lowrank.RangeFinder(A, rng=0)
        return (finder.extend(4) if "rank" in rule else finder.reach(**rule)).result()
    if function == "residual_norm":
        return lowrank.residual_norm(A, Q, rng=1)
    if function == "SketchedMatrix.update":
        like = Q.to_local() if hasattr(Q, "to_local") else Q
        return lowrank.SketchedMatrix((N, N), 3, like=like, rng=0).update(A).svd()
    return getattr(lowrank, function)(A, **rule)


def rules(function, cell):
    """Ways to call a function, and whether it is to work so."""
    if function in WITHOUT_RANK:
        assert cell in ("yes", "no")
        return [({}, cell == "yes")]
    assert cell in (("rank", "no") if function == "nystrom" else ("both", "rank", "no"))
    ways = [({"rank": 4}, cell in ("both", "rank")), ({"rtol": 0.1}, cell == "both")]
    return ways[:1] if function == "nystrom" else ways


def results(function, kind, A, Q, *, refused=False):
    """What a function returns, by each rule that its cell has; what it should refuse, it does."""
    argument = "H" if function == "SketchedMatrix.update" else "A"
    returned = []
    for rule, works in rules(function, FUNCTIONS[function][INPUTS.index(kind)]):
        with warnings.catch_warnings():
            warnings.simplefilter("error", lowrank.ConvergenceWarning)
            if works and not refused:
                returned.append(call(function, A, Q, rule))
            else:
                with pytest.raises((TypeError, ValueError), match=CLEAR.format(argument)):
                    call(function, A, Q, rule)
    return returned


def exists(name, dtype, request):
    """Whether the library of a row has a dtype, on its devices that are here."""
    for backend in backends_of(name):
        try:
            given(kind_of(name), backend, dtype, request)
        except (AttributeError, ValueError) as error:
            if not re.search(rf"{dtype}|float64.* supported", str(error)):
                raise
            return False
    return True


@pytest.mark.parametrize("name", ROWS)
def test_row(request, name):
    """The devices of a library, the dtypes that it has there, and whether each run tries it."""
    row, backends = ROWS[name], backends_of(name)
    assert row["tested"].startswith("in every test run") == (row["device"] != "CUDA")
    assert {row[dtype] for dtype in DTYPES + HALF} <= {"yes", "float32", "refused", "none"}
    if not backends:
        pytest.skip(f"{name} is not here: {ABSENT[home_of(name)]}")
    devices, words = {str(b.device).lower() for b in backends}, row["device"].lower().split(", ")
    assert all(any(word in device for word in words) for device in devices)
    assert all(any(word in device for device in devices) for word in words)
    for dtype in DTYPES + HALF:
        assert exists(name, dtype, request) == (row[dtype] != "none")


OF_JAX = {("float32", name) for name in FUNCTIONS} - {
    ("float32", "cur"),
    ("float32", "interpolative"),
}
TRIED = [
    (name, dtype, function)
    for name in ROWS
    for dtype in DTYPES + HALF + REFUSED
    for function in FUNCTIONS
    if backends_of(name) and ROWS[name][dtype] != "none"
    # What is compiled for every shape takes long: every function in one dtype, one in every dtype.
    # For those that compile at each pivot see test_jax.py.
    if name != "jax" or NIGHTLY or function == "qb" or (dtype, function) in OF_JAX
]


@pytest.mark.parametrize(("name", "dtype", "function"), TRIED)
def test_library(request, name, dtype, function):
    """Results have the library, the device and the dtype that the row says."""
    row, kind = ROWS[name], kind_of(name)
    if name == "jax":
        request.getfixturevalue("forgets_compiled")
    if dtype in REFUSED and not exists(name, dtype, request):
        pytest.skip(f"{row['library']} has no {dtype}")
    column = "half" if kind == "array" and dtype in HALF else kind
    for backend in backends_of(name):
        A, Q = given(kind, backend, dtype, request)
        if row[dtype] == "refused":
            results(function, column, A, Q, refused=True)
        else:
            ours = dtype if row[dtype] == "yes" else row[dtype]
            check(results(function, column, A, Q), backend, row["factors"], ours)


@pytest.mark.parametrize("kind", ["stack", "rows"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_stacks_and_files(request, function, kind):
    for backend in BACKENDS if kind == "stack" else backends_of("numpy"):
        dtype = "complex128" if backend.has_float64 else "complex64"
        A, Q = given(kind, backend, dtype, request)
        factors = ROWS[row_of(backend)]["factors"]
        check(results(function, kind, A, Q), backend, factors, dtype)


def check(returned, backend, library, dtype):
    for found in returned:
        for part, X in arrays_of(found).items():
            assert library_of(X) == library
            local = X.to_local() if library == "DTensor" else X
            assert array_api_compat.device(local) == backend.device
            assert str(X.dtype).rpartition(".")[2] == dtype_of(part, dtype)


def library_of(X):
    if type(X).__name__ == "DTensor":
        return "DTensor"
    library = type(X).__module__.partition(".")[0]
    names = {"array_api_strict": "array-api-strict", "cupy": "CuPy", "numpy": "NumPy"}
    names |= {"jaxlib": "JAX"}
    return names.get(library, "PyTorch")


def arrays_of(found):
    """The arrays of a result by name; there are none in an ErrorEstimate."""
    if isinstance(found, lowrank.HouseholderQR):
        return {"Q": found.thin(), "R": found.R, "V": found.V}
    if hasattr(found, "_asdict"):
        return found._asdict()
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return {name: X for name, X in fields.items() if hasattr(X, "dtype")}


def dtype_of(part, dtype):
    if part in ("indices", "columns", "rows"):
        return "int64"
    return REAL.get(dtype, dtype) if part in ("S", "eigenvalues") else dtype


def test_every_backend_and_every_kind_of_input_is_tried():
    assert {row_of(backend) for backend in EVERY} <= ROWS.keys()
    assert set(INPUTS) == {kind_of(name) for name in ROWS} | {"half", "stack", "rows"}


def test_the_readme_shows_the_second_table():
    """``python docs/capabilities.py`` writes it there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert TABLES["IN_README"].findall(readme) == [f"\n{TABLES['libraries_table']()}\n"]


def test_every_public_function_is_declared():
    functions = {name.partition(".")[0] for name in FUNCTIONS}
    callables = {
        name
        for name in lowrank.__all__
        if callable(getattr(lowrank, name)) and not name.endswith(("Result", "Warning"))
    }
    rest = {"load", "ErrorEstimate", "HouseholderQR", "Look", "Progress", "RowBlocks", "Status"}
    assert functions == callables - rest
