"""Results do not depend on what the process has set: NumPy's warnings, precision, autocast."""

import sys
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matrices import gaussian, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._array.arithmetic import FULL, as_the_caller_set, full_precision

SHAPE = (90, 70)


def grown(A, **options):
    finder = lowrank.RangeFinder(A, rng=0, **options)
    return finder.extend(5).reach(rtol=0.3).reach(rtol=1e-3).result().Q


def sketched(A, **_):
    sketch = lowrank.SketchedMatrix(A.shape, 5, dtype=A.dtype, rng=0).update(A)
    sketch.update_rows(3, A[:7])
    sketch.merge(lowrank.SketchedMatrix(A.shape, 5, dtype=A.dtype, rng=0).update(A))
    return sketch.svd(), sketch.error()


def compressed(A, **_):
    found = lowrank.compress.Subspace(rank=4).refresh(A)
    return found.lift(found.project(A)), found.transport(found.refresh(A, step=1))


def factored(A, **_):
    F = lowrank.householder_qr(A)
    return F.thin(), F.apply(A), F.apply_adjoint(A), F.extend(A)


FUNCTIONS = {
    "qr": lambda A, **_: lowrank.qr(A),
    "householder_qr": factored,
    "RangeFinder": grown,
    "SketchedMatrix": sketched,
    "Subspace": compressed,
    "residual_norm": lambda A, **_: lowrank.residual_norm(A, np.eye(*A.shape, dtype=A.dtype)),
    "residual_norm of a few columns": lambda A, **_: lowrank.residual_norm(A[:, :9], A[:, :3]),
    "eigh, rank": lambda A, **_: lowrank.eigh(A[:70], 5, rng=0),
    "eigh, rtol": lambda A, **_: lowrank.eigh(A[:70], rtol=1e-3, rng=0),
    "nystrom": lambda A, **_: lowrank.nystrom(A[:70], 5, rng=0),
    "svd, center": lambda A, **o: lowrank.svd(A, rtol=1e-3, center=True, rng=0, **o),
}
for _name in ("range_finder", "qb", "svd", "interpolative", "cur"):
    _function = getattr(lowrank, _name)
    FUNCTIONS[f"{_name}, rank"] = lambda A, f=_function, **o: f(A, 5, rng=0, **o)
    FUNCTIONS[f"{_name}, rtol"] = lambda A, f=_function, **o: f(A, rtol=1e-3, rng=0, **o)
OPTIONS = [{}, {"norm": "spectral"}, {"certificate": "energy"}, {"certificate": "sampled"}]
MATRICES = {
    "finite": 1.0,
    "NaN": np.nan,
    "Inf": np.inf,
    "overflow": 0.9,  # of the largest number
    "underflow": 1e-2,  # of the smallest normal one
    "zero": 0.0,
}


def case(kind, dtype):
    """Rows of a matrix whose upper part is positive semidefinite."""
    A, limits, number = gaussian(SHAPE, dtype), np.finfo(dtype), MATRICES[kind]
    A[:70] = A[:70] @ A[:70].conj().T
    A[:70] = (A[:70] + A[:70].conj().T) / 2
    if kind in ("NaN", "Inf"):
        A[3, 4] = A[4, 3] = number
        return A
    scale = {"overflow": limits.max / np.abs(A).max(), "underflow": limits.tiny}.get(kind, 1.0)
    return (A * np.asarray(number * scale, dtype)).astype(dtype)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.filterwarnings("ignore::lowrank.ConvergenceWarning")
def test_no_warning_of_numpy_escapes(name, kind, dtype):
    """Bad input is a ValueError; what leaves the range of the dtype on the way is handled."""
    with np.errstate(all="ignore"):
        A = case(kind, dtype)
    has_options = name.split(",")[0] in ("RangeFinder", "range_finder", "qb", "svd")
    for options in OPTIONS if has_options else OPTIONS[:1]:
        with np.errstate(all="raise"):
            try:
                FUNCTIONS[name](A, **options)
            except ValueError:
                assert kind not in ("finite", "zero")
            assert np.geterr()["over"] == "raise"


@pytest.mark.parametrize("name", ["range_finder, rank", "qb, rank", "svd, rank"])
@pytest.mark.parametrize("kind", MATRICES)
def test_no_warning_of_numpy_escapes_unchecked(name, kind):
    with np.errstate(all="ignore"):
        A = case(kind, "float64")
    with np.errstate(all="raise"):
        try:
            FUNCTIONS[name](A, check_finite=False)
        except ValueError:  # of the small SVD
            assert name == "svd, rank"
            assert kind in ("NaN", "Inf", "overflow")


# -- products in reduced precision -----------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=["medium", "high", "cuda", "mkldnn"])
def reduced(request, torch):
    """A process that lets products be computed in less, in one of the ways to say so."""
    switches = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [switch.fp32_precision for switch in switches]
    if request.param in ("medium", "high"):
        torch.set_float32_matmul_precision(request.param)
    else:
        switch = getattr(torch.backends, request.param).matmul
        switch.fp32_precision = "tf32" if request.param == "cuda" else "bf16"
    yield lambda: tuple(switch.fp32_precision for switch in switches)
    torch.set_float32_matmul_precision("highest")
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


class Watched:
    """An operator that notes the settings under which its products are asked for."""

    shape, is_autocast = SHAPE, False

    def __init__(self, torch, settings):
        self.array = torch.asarray(gaussian(SHAPE, "float32"))
        self.torch, self.settings, self.seen = torch, settings, []

    @property
    def dtype(self):
        return self.array.dtype

    def _product(self, A, X):
        self.seen.append(self.settings())
        self.is_autocast |= self.torch.is_autocast_enabled("cpu")
        return A @ X

    def matmat(self, X):
        return self._product(self.array, X)

    def rmatmat(self, Y):
        return self._product(self.array.mT, Y)


@pytest.mark.parametrize("name", ["svd", "qb", "range_finder", "interpolative", "cur"])
def test_products_are_in_full_precision(name, torch, reduced):
    A, before = Watched(torch, reduced), reduced()
    assert not set(before) <= set(FULL)
    getattr(lowrank, name)(A, rtol=0.5, rng=0)
    assert len(A.seen) >= 3
    assert all(set(seen) <= set(FULL) for seen in A.seen)
    assert reduced() == before
    getattr(lowrank, name)(A, 3, rng=0)
    assert all(set(seen) <= set(FULL) for seen in A.seen)
    assert reduced() == before


def test_settings_are_back_after_an_error(torch, reduced):
    before = reduced()
    for A in (torch.full((30, 20), torch.nan), "no matrix"):
        with pytest.raises((ValueError, TypeError)):
            lowrank.svd(A, rtol=0.1)
    assert reduced() == before


def test_a_callback_sees_and_sets_the_callers_settings(torch, reduced):
    before, seen = reduced(), []
    A = Watched(torch, reduced)

    def callback(_):
        seen.append(reduced())
        torch.set_float32_matmul_precision("medium")

    lowrank.range_finder(A, rtol=0.1, rng=0, callback=callback)
    assert len(seen) >= 2
    assert seen[0] == before
    assert all(set(settings) <= set(FULL) for settings in A.seen)
    assert torch.get_float32_matmul_precision() == "medium"


def test_threads_share_the_settings(torch, reduced):
    """The first that is done does not take full precision from those that are not."""
    inside, leave, before = threading.Event(), threading.Event(), reduced()

    def other():
        with full_precision():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    with full_precision():
        pass
    assert set(reduced()) <= set(FULL)
    with full_precision(), as_the_caller_set():
        assert set(reduced()) <= set(FULL)  # which are not its own while another one computes
    leave.set()
    thread.join()
    assert reduced() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_does_not_reach_inside(torch, dtype):
    A = Watched(torch, lambda: ())
    with torch.autocast("cpu", dtype=getattr(torch, dtype)):
        found = lowrank.svd(A, rtol=0.5, rng=0)
        assert lowrank.qr(A.array).Q.dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert not A.is_autocast
    again = lowrank.svd(A, rtol=0.5, rng=0)
    assert torch.equal(found.U, again.U)


def test_settings_of_older_torch(monkeypatch):
    """Before 2.9 there is one switch for all backends."""
    precision = ["high"]
    torch = SimpleNamespace(
        backends=SimpleNamespace(mkldnn=SimpleNamespace()),
        get_float32_matmul_precision=lambda: precision[0],
        set_float32_matmul_precision=lambda value: precision.__setitem__(0, value),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    with full_precision():
        assert precision == ["highest"]
    assert precision == ["high"]


def test_settings_of_cupy(monkeypatch):
    """TF32, which the variable CUPY_TF32 asks for, has the number 7; 1 is the default."""
    kind = [7]
    routines = SimpleNamespace(
        get_compute_type=lambda _: kind[0],
        set_compute_type=lambda _, value: kind.__setitem__(0, value),
    )
    monkeypatch.setitem(sys.modules, "cupy._core._routines_linalg", routines)
    with full_precision():
        assert kind == [1]
    assert kind == [7]


def test_what_another_thread_has_set_meanwhile_stays(torch, reduced):
    with full_precision():
        torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"


def test_a_certificate_under_reduced_precision(torch, reduced):
    """What shows only where the processor has products in bfloat16."""
    A = torch.asarray(with_spectrum(gallery.slow(250), (300, 250), "float32"))
    for matrix in (A, torch.ones(300, 250)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
            for certificate in ("exact", "energy", "sampled"):
                found = lowrank.svd(matrix, rtol=1e-3, rng=0, certificate=certificate)
                U, S, Vh = (X.double() for X in found)
                error = torch.linalg.norm(matrix.double() - (U * S) @ Vh)
                assert float(error) <= found.error_bound
                gram = U.mT @ U - torch.eye(found.rank, dtype=U.dtype)
                assert float(torch.linalg.norm(gram)) < 1e-4
