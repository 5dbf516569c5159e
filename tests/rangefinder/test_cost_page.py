"""docs/explanation/cost.md: products, numbers read and memory are those of its tables."""

import math
import re
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matrices import gaussian, with_spectrum
from test_memory import peak

import lowrank
from lowrank import gallery
from lowrank._operators import as_operator

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "cost.md"
N, SAMPLES = 400, 50


def tables():
    """Rows of each table by their first cell, header first."""
    found = [{}]
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            found += [{}] if found[-1] else []
        elif not line.startswith("| :---"):
            first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found[-1][first] = cells
    return [table for table in found if table]


FIXED, ADAPTIVE, BESIDE = tables()[:3]
for _table, _head in ((FIXED, "call"), (ADAPTIVE, "certificate and norm"), (BESIDE, "call")):
    _table.pop(_head)


def value(formula, **names):
    """A formula of the page, such as ``(2q + 1)⌈k/(q + 1)⌉``, in numbers; l is its ℓ."""
    text = re.sub(r"(?<=[\w)²])(?=[a-zℓ(⌈])", "*", formula).replace("²", "**2")
    text = text.replace("⌈", "ceil(").replace("⌉", ")").replace("ℓ", "l")
    return eval(text, {"__builtins__": {}, "ceil": math.ceil}, names)


def test_formulas():
    assert value("(2q + 1)⌈k/(q + 1)⌉", q=1, k=5) == 9
    assert value("qg + 1", q=2, g=3) == 7
    assert value("(3m + 4n)ℓ + 10ℓ²", m=1, n=2, l=3) == 123
    assert value("16k + 69", k=2) == 101


class Counted:
    """A matrix that counts the columns of its products, and how often its norm is read."""

    def __init__(self, A):
        self.A = A
        self.matmats, self.rmatmats, self.norms = [], [], 0

    def products(self):
        return len(self.matmats), len(self.rmatmats), sum(self.matmats + self.rmatmats)


class AsArray(Counted):
    def __lowrank_operator__(self):
        A = as_operator(self.A)

        def matmat(X):
            self.matmats.append(X.shape[-1])
            return A.matmat(X)

        def rmatmat(Y):
            self.rmatmats.append(Y.shape[-1])
            return A.rmatmat(Y)

        def norm():
            self.norms += 1
            return A.norm()

        return replace(A, matmat=matmat, rmatmat=rmatmat, norm=norm)


class AsOperator(Counted):
    def __init__(self, A):
        super().__init__(A)
        self.shape, self.dtype = A.shape, A.dtype

    def matmat(self, X):
        self.matmats.append(X.shape[1])
        return self.A @ X

    def rmatmat(self, Y):
        self.rmatmats.append(Y.shape[1])
        return np.conj(self.A.T) @ Y


@cache
def semidefinite(dtype):
    V = np.linalg.qr(gaussian((N, N), dtype)).Q
    A = (V * gallery.slow(N)) @ np.conj(V.T)
    return (A + np.conj(A.T)) / 2


def at_rank(name, **fixed):
    def call(A, k, q):
        return getattr(lowrank, name)(A, k, power_iterations=q, rng=0, **fixed)

    return call


def extended(A, k, q):
    return lowrank.RangeFinder(A, power_iterations=q, rng=0).extend(k).result()


def sketch(A, k):
    return lowrank.SketchedMatrix(tuple(A.shape), k, like=A[:0], rng=0)


def updated(A, k, _):
    return sketch(getattr(A, "A", A), k).update(A)


def measured(A, k, _):
    Q = getattr(A, "A", A)[:, :k]
    return lowrank.residual_norm(A, Q, samples=SAMPLES, rng=0)


BOTH, REAL, COMPLEX = ("float64", "complex128"), ("float64",), ("complex128",)
EITHER = (AsArray, AsOperator)
# What each row of the first table calls, for which matrices, and the fewest power iterations.
CALLS = {
    "`range_finder`": (at_rank("range_finder"), EITHER, BOTH, 0),
    "`RangeFinder.extend`": (extended, EITHER, BOTH, 0),
    '`range_finder(side="right")`': (at_rank("range_finder", side="right"), EITHER, BOTH, 0),
    "`range_finder(krylov=True)`": (at_rank("range_finder", krylov=True), EITHER, BOTH, 1),
    "`qb`": (at_rank("qb"), EITHER, BOTH, 0),
    "`svd`": (at_rank("svd"), EITHER, BOTH, 0),
    "`svd(krylov=True)`": (at_rank("svd", krylov=True), EITHER, BOTH, 1),
    "`svd(center=True)` of an operator": (at_rank("svd", center=True), (AsOperator,), BOTH, 0),
    "`eigh`": (at_rank("eigh"), EITHER, BOTH, 0),
    "`nystrom`": (lambda A, k, _: lowrank.nystrom(A, k, rng=0), EITHER, BOTH, 0),
    "`interpolative`, of an array": (at_rank("interpolative"), (AsArray,), BOTH, 0),
    "`interpolative`, of an operator": (at_rank("interpolative"), (AsOperator,), BOTH, 0),
    "`cur`, of an array": (at_rank("cur"), (AsArray,), BOTH, 0),
    "`cur`, of an operator": (at_rank("cur"), (AsOperator,), BOTH, 0),
    "`residual_norm` with s samples": (measured, EITHER, BOTH, 0),
    "`SketchedMatrix.update`, real": (updated, EITHER, REAL, 0),
    "`SketchedMatrix.update`, complex": (updated, EITHER, COMPLEX, 0),
    "`SketchedMatrix.svd`": (lambda A, k, q: updated(A.A, k, q).svd(), EITHER, BOTH, 0),
}
CASES = [
    (name, kind, dtype, q)
    for name, (_, kinds, dtypes, least) in CALLS.items()
    for kind in kinds
    for dtype in dtypes
    for q in (0, 2)
    if q >= least
]
# What each row of the second table calls: functions, certificates, and how columns are read.
TOLERANT = {
    "exact, `range_finder`": (["range_finder"], ["exact"]),
    "energy, `range_finder`": (["range_finder"], ["energy"]),
    "exact or energy, `qb` and `svd`": (["qb", "svd"], ["exact", "energy"]),
    "exact or energy, `eigh`": (["eigh"], ["exact", "energy"]),
    "exact or energy, `interpolative` and `cur`": (["interpolative", "cur"], ["exact", "energy"]),
    "sampled, `range_finder`": (["range_finder"], ["sampled"]),
    "sampled, `svd`": (["svd"], ["sampled"]),
    'exact, `range_finder(norm="spectral")`': (["range_finder"], ["exact"]),
    'sampled, `range_finder(norm="spectral")`': (["range_finder"], ["sampled"]),
}
QUESTIONS = [
    (name, call, certificate)
    for name, (calls, certificates) in TOLERANT.items()
    for call in calls
    for certificate in certificates
]


def test_every_row_has_a_call():
    assert list(FIXED) == list(CALLS)
    assert list(ADAPTIVE) == list(TOLERANT)
    assert set(BESIDE) == {*MEMORY, "`residual_norm`", "`SketchedMatrix`", "`qr` of m ≥ n"}


@pytest.mark.parametrize(("name", "kind", "dtype", "q"), CASES)
@pytest.mark.parametrize("k", [20, 33])
def test_products_at_a_fixed_rank(name, kind, dtype, q, k):
    A = kind(semidefinite(dtype))
    found = CALLS[name][0](A, k, q)
    names = {"k": k, "l": k + 10, "q": q, "s": SAMPLES}
    assert A.products() == tuple(value(formula, **names) for formula in FIXED[name][:3])
    reads_norm = kind is AsArray and getattr(found, "certificate", None) == "energy"
    assert A.norms == reads_norm
    if hasattr(found, "passes") and "Sketched" not in name:
        *passes, columns = A.products()
        assert (found.passes, found.products) == (sum(passes) + reads_norm, columns)


def to_tolerance(name, call, certificate, A, rtol, q):
    options = {"norm": "spectral" if "spectral" in name else "fro", "certificate": certificate}
    return getattr(lowrank, call)(A, rtol=rtol, power_iterations=q, rng=0, **options)


def symbols(found, dtype, q):
    """What the formulas of the second table are made of."""
    k, least = found.history[-1].rank, 32 if dtype == "complex128" else 64
    return {"g": len(found.history) - 1, "k": k, "b": least * (1 + k // (8 * least)), "q": q}


@pytest.mark.parametrize(("name", "call", "certificate"), QUESTIONS)
@pytest.mark.parametrize(
    ("q", "rtol", "dtype"),
    [
        (0, 1e-1, "float64"),
        (0, 2e-3, "complex128"),
        (1, 1e-2, "complex128"),
        (1, 2e-3, "float64"),
        (2, 1e-1, "complex128"),
        (2, 1e-2, "float64"),
    ],
)
def test_products_to_a_tolerance(name, call, certificate, dtype, q, rtol):
    if "spectral" in name and q == 0:
        return  # a lower bound on the norm then takes a product of its own
    A = AsArray(semidefinite(dtype))
    found = to_tolerance(name, call, certificate, A, rtol, q)
    assert found.converged
    with_A, with_adjoint, columns = (
        value(formula, **symbols(found, dtype, q)) for formula in ADAPTIVE[name][:3]
    )
    # the columns of A that `interpolative` and `cur` hold are read, and not multiplied
    assert (found.passes, found.products) == (with_A + with_adjoint + 1, columns)
    assert A.norms == 1
    if certificate != "exact":  # where the residual is explicit, that is what is multiplied
        assert A.products() == (with_A, with_adjoint, columns)


@pytest.mark.parametrize("call", ["range_finder", "svd"])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("q", [0, 1])
def test_what_an_operator_takes_besides(call, kind, dtype, q):
    """One product with Aᴴ for the norm."""
    name = "sampled, `range_finder`" if call == "range_finder" else "sampled, `svd`"
    if kind == "spectral":
        name = 'sampled, `range_finder(norm="spectral")`'
    A = AsOperator(semidefinite(dtype))
    found = to_tolerance(name, call, None, A, 1e-2, q)
    names = symbols(found, dtype, q)
    with_A, with_adjoint, columns = (value(formula, **names) for formula in ADAPTIVE[name][:3])
    of_norm = int(kind == "fro" or q == 0)  # of which power iterations tell the spectral one
    of_factors = int(call == "svd" and kind == "spectral")
    # the first look is at no basis, where that of a matrix costs nothing
    assert A.products() == (
        with_A,
        with_adjoint + of_norm + of_factors,
        columns + of_norm * names["b"] + of_factors * names["k"],
    )


def test_the_basis_of_a_tolerance_is_larger_than_the_rank():
    found = lowrank.svd(semidefinite("float64"), rtol=1e-3, rng=0)
    assert (found.history[-1].rank, found.rank) == (88, 68)


def test_qr_reads_its_matrix_as_it_is():
    for call in (lowrank.qr, lowrank.householder_qr):
        with pytest.raises(TypeError):
            call(AsOperator(semidefinite("float64")))


@pytest.fixture
def device():
    pytest.importorskip("torch")
    import pretended  # noqa: PLC0415

    with pretended.pretending():
        yield pretended


@pytest.mark.parametrize("name", [name for name in CALLS if "operator" not in name])
@pytest.mark.parametrize("k", [20, 60])
def test_numbers_read_at_a_fixed_rank(name, k, device):
    call, _, (*_, dtype), q = CALLS[name]
    A, reads = device.from_numpy(semidefinite(dtype)), device.reads
    if name == "`SketchedMatrix.svd`":
        count, _ = reads(updated(A, k, q).svd)
    elif "Sketched" in name:
        sketched = sketch(A, k)
        count, _ = reads(lambda: sketched.update(A))
    else:
        count, _ = reads(lambda: call(A, k, q))
    least, _, most = FIXED[name][3].partition(" to ")
    names = {"k": k, "l": k + 10}
    assert value(least, **names) <= count <= value(most or least, **names)


@pytest.mark.parametrize("name", [name for name in TOLERANT if ADAPTIVE[name][3]])
@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("rtol", [1e-2, 2e-3])
def test_numbers_read_to_a_tolerance(name, dtype, rtol, device):
    A, q = device.from_numpy(semidefinite(dtype)), int("spectral" in name)
    (call,), (certificate,) = TOLERANT[name]
    count, found = device.reads(lambda: to_tolerance(name, call, certificate, A, rtol, q))
    assert count == value(ADAPTIVE[name][3], **symbols(found, dtype, q))


@pytest.mark.parametrize(
    ("call", "fewer"), [("range_finder", 1), ("qb", 1), ("svd", 1), ("eigh", 3), ("nystrom", 1)]
)
def test_numbers_read_without_a_check(call, fewer, device):
    A, function = device.from_numpy(semidefinite("float64")), getattr(lowrank, call)
    checked, unchecked = (
        device.reads(lambda check=check: function(A, 20, rng=0, check_finite=check))[0]
        for check in (True, False)
    )
    assert checked - unchecked == fewer


# -- memory ---------------------------------------------------------------------------------------

MEMORY = {
    "`range_finder`": lambda A, k: lowrank.range_finder(A, k, rng=0),
    "`qb`": lambda A, k: lowrank.qb(A, k, rng=0),
    "`svd`": lambda A, k: lowrank.svd(A, k, oversampling=0, rng=0),
    "`eigh`": lambda A, k: lowrank.eigh(A, k, oversampling=0, rng=0),
    "`nystrom`": lambda A, k: lowrank.nystrom(A, k, oversampling=0, rng=0),
    "`interpolative`": lambda A, k: lowrank.interpolative(A, k, oversampling=0, rng=0),
    "`cur`": lambda A, k: lowrank.cur(A, k, oversampling=0, rng=0),
}


SHAPES = [(2000, 300), (700, 700), (300, 2000)]


def shares(formula, shapes, call, more=0, **names):
    """Peaks of memory, as parts of what the page allows."""
    for m, n in shapes:
        A = with_spectrum(gallery.slow(min(m, n)), (m, n), "float64")
        A = A @ A.T if m == n else A
        longer = {"m": max(m, n)} if more else {}
        yield peak(lambda A=A: call(A))[0] / (
            value(formula, **{"m": m, "n": n, **longer}, **names) + more
        )


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize("k", [30, 120])
def test_memory(name, k):
    shapes = SHAPES[1:2] if name in ("`eigh`", "`nystrom`") else SHAPES
    found = [*shares(BESIDE[name][1], shapes, lambda A: MEMORY[name](A, k), k=k, l=k)]
    assert 0.6 < max(found) < 1


@pytest.mark.parametrize("name", ["range_finder", "qb"])
@pytest.mark.parametrize("k", [30, 120])
def test_memory_with_power_iterations(name, k):
    call = at_rank(name)
    more = 6 * k**2
    found = [*shares(BESIDE[f"`{name}`"][1], SHAPES, lambda A: call(A, k, 2), more, k=k)]
    assert 0.6 < max(found) < 1


@pytest.mark.parametrize("k", [30, 120])
def test_memory_of_a_measured_error(k):
    Q = np.eye(2000, k)
    (found,) = shares(
        BESIDE["`residual_norm`"][1],
        [(2000, 300)],
        lambda A: lowrank.residual_norm(A, Q, rng=0),
        k=k,
        s=64,
    )
    assert 0.6 < found < 1


@pytest.mark.parametrize("shape", [(2000, 50), (2000, 200), (700, 120)])
def test_memory_of_qr(shape):
    (found,) = shares(BESIDE["`qr` of m ≥ n"][1], [shape], lowrank.qr)
    assert 0.6 < found < 1


def test_memory_of_sketches():
    m, n, k = 900, 500, 6
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sketched = lowrank.SketchedMatrix((m, n), k, rng=0)
        held = (tracemalloc.get_traced_memory()[0] - before) / 8
    finally:
        tracemalloc.stop()
    assert sketched.rank == k
    assert held == pytest.approx(value(BESIDE["`SketchedMatrix`"][1], m=m, n=n, k=k), rel=0.01)
