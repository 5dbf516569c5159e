"""Operators of other libraries as they are."""

import re
from operator import attrgetter, methodcaller
from types import SimpleNamespace

import numpy as np
import pytest
from matrices import adjoint, gaussian, norm, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._operators import as_operator
from lowrank._operators.adjoints import check_adjoint


def dense(operator, dtype="float64"):
    return operator.matmat(np.eye(operator.shape[1], dtype=dtype))


def holds(operator, A, rtol=1e-6):
    """Every way to call keeps its promise, and the two products belong together."""
    check_adjoint(as_operator(operator), 0)
    found = lowrank.svd(operator, rtol=rtol, rng=0)
    assert found.converged
    assert norm(A - (found.U * found.S) @ found.Vh, "fro") <= rtol * norm(A, "fro")
    # what the certificate allows, and at most two ranks above the smallest
    assert found.rank <= gallery.best_rank(np.linalg.svd(A)[1], rtol=rtol) + 2
    Q, B = lowrank.qb(operator, 5, power_iterations=1, rng=0)
    assert norm(B - adjoint(Q) @ A, "fro") <= 1e-5 * norm(A, "fro")
    right = lowrank.range_finder(operator, rtol=rtol, side="right", norm="spectral", rng=0)
    assert right.converged
    assert norm(A - (A @ right.Q) @ adjoint(right.Q), "spectral") <= rtol * norm(A, "spectral")
    size = lowrank.residual_norm(operator, Q, rng=0)
    assert norm(A - Q @ B, "fro") <= size.upper_bound


def pylops_operators():
    pylops = pytest.importorskip("pylops")
    rows = np.arange(0, 40, 3)
    wide = with_spectrum(gallery.fast(20), (20, 30), "float64")
    kernel = np.array([1.0, 2.0, 0.5])
    return {
        "MatrixMult": pylops.MatrixMult(wide),
        "MatrixMult, tall": pylops.MatrixMult(wide.T.copy()),
        "MatrixMult, complex": pylops.MatrixMult(
            with_spectrum(gallery.fast(20), (20, 30), "complex128"), dtype="complex128"
        ),
        "Restriction": pylops.Restriction(40, rows),
        "FirstDerivative": pylops.FirstDerivative(40),
        "FirstDerivative of a plane": pylops.FirstDerivative((6, 5), axis=1),
        "Convolve1D": pylops.signalprocessing.Convolve1D(40, h=kernel, offset=1),
        "FFT": pylops.signalprocessing.FFT(32),
        "FFT, product, adjoint": (
            pylops.Restriction(32, rows[:9], dtype="complex128") @ pylops.signalprocessing.FFT(32)
        ).H,
        "product": pylops.Restriction(40, rows) @ pylops.FirstDerivative(40),
        "sum, scaled": 2.0 * pylops.Identity(40) + pylops.FirstDerivative(40),
        "stack": pylops.VStack([pylops.Identity(20), pylops.FirstDerivative(20)]),
        "Kronecker": pylops.Kronecker(
            pylops.MatrixMult(wide[:3, :5]), pylops.MatrixMult(wide[3:7])
        ),
        "zero": pylops.Zero(7, 5),
    }  # fmt: skip


PYLOPS = (
    "MatrixMult", "MatrixMult, tall", "MatrixMult, complex", "Restriction", "FirstDerivative",
    "FirstDerivative of a plane", "Convolve1D", "FFT", "FFT, product, adjoint", "product",
    "sum, scaled", "stack", "Kronecker", "zero",
)  # fmt: skip


@pytest.mark.parametrize("name", PYLOPS)
def test_pylops(name):
    operator = pylops_operators()[name]
    A = np.stack([operator.matvec(e) for e in np.eye(operator.shape[1])], axis=1)
    if name == "zero":
        found = lowrank.svd(operator, rtol=1e-6, rng=0)
        assert (found.rank, found.converged) == (0, True)
    else:
        holds(operator, A)


def test_pylops_is_all_here():
    assert set(PYLOPS) == set(pylops_operators())


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_scipy_operator_of_vectors_only(dtype):
    """SciPy itself makes products of matrices from those of vectors."""
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = with_spectrum(gallery.fast(30), (40, 30), dtype)

    class Vectors(linalg.LinearOperator):
        def __init__(self):
            super().__init__(A.dtype, A.shape)

        def _matvec(self, x):
            return A @ x

        def _rmatvec(self, y):
            return adjoint(A) @ y

    holds(Vectors(), A)
    holds(linalg.LinearOperator(A.shape, matvec=A.dot, rmatvec=adjoint(A).dot), A)
    holds(Vectors().H, adjoint(A))
    holds(2 * Vectors() @ linalg.aslinearoperator(np.diag(np.arange(30.0))), 2 * A * np.arange(30))


def test_an_object_with_products_of_vectors_only(backend, dtype):
    A = with_spectrum(gallery.fast(30), (40, 30), dtype)
    there, here = backend.asarray(A), backend.asarray(adjoint(A))
    strict = backend.name.startswith("strict")
    operator = SimpleNamespace(
        shape=A.shape, dtype=there.dtype, device=None if strict else there.device,
        matvec=lambda x: there @ backend.xp.asarray(x, device=backend.device),
        rmatvec=lambda y: here @ backend.xp.asarray(y, device=backend.device),
    )  # fmt: skip
    found = lowrank.svd(operator, rtol=1e-2, rng=0)
    assert found.converged
    assert norm(A - backend.numpy(found.reconstruct()), "fro") <= found.error_bound


def test_an_operator_made_without_a_dtype():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator = linalg.LinearOperator((9, 9), matvec=lambda x: x, rmatvec=lambda x: x)
    assert operator.dtype == np.int8
    found = lowrank.svd(operator, rtol=1e-6, rng=0)
    assert (found.rank, found.U.dtype) == (9, np.float64)


def test_an_operator_without_its_adjoint_is_told_what_it_lacks():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    operator = linalg.LinearOperator((9, 9), matvec=lambda x: x, dtype=float)
    with pytest.raises(TypeError, match=r"`A\.rmatmat` failed.*rmatvec=…"):
        lowrank.svd(operator, 2)
    found = lowrank.range_finder(operator, 2, power_iterations=0)  # which needs none
    assert found.Q.shape == (9, 2)


@pytest.mark.parametrize(
    ("package", "kind", "inside"),
    [
        ("pandas", "DataFrame", methodcaller("to_numpy")),
        ("xarray", "DataArray", attrgetter("data")),
    ],
)
def test_frames_are_told_which_array_to_pass(package, kind, inside):
    A = gaussian((20, 10), "float64")
    frame = getattr(pytest.importorskip(package), kind)(A)
    said = {"pandas": "A.to_numpy()", "xarray": "A.data"}[package]
    with pytest.raises(TypeError, match=re.escape(f"is a {kind}; pass the array in it, {said}")):
        lowrank.svd(frame, rtol=0.1)
    found = lowrank.svd(inside(frame), 3, rng=0)
    assert np.allclose(found.S, lowrank.svd(A, 3, rng=0).S)
    blocks = lowrank.RowBlocks(frame.to_numpy(), rows=7)
    assert np.allclose(lowrank.svd(blocks, 3, rng=0).S, found.S)


def test_variables_of_netcdf(tmp_path):
    netCDF4 = pytest.importorskip("netCDF4")
    A = gaussian((20, 10), "float64")
    with netCDF4.Dataset(tmp_path / "A.nc", "w") as file:
        for name, length in (("time", 20), ("place", 10)):
            file.createDimension(name, length)
        variable = file.createVariable("A", "f8", ("time", "place"))
        variable[:] = A
        with pytest.raises(TypeError, match=r"pass lowrank\.RowBlocks\(A\)"):
            lowrank.svd(variable, 3)
        found = lowrank.svd(lowrank.RowBlocks(variable, rows=7), rtol=0.5, rng=0)
        assert norm(A - found.reconstruct(), "fro") <= 0.5 * norm(A, "fro")
        variable[3, 4] = np.ma.masked
        with pytest.raises(TypeError, match="filled first if it is masked"):
            lowrank.svd(lowrank.RowBlocks(variable, rows=7), 3)


@pytest.mark.filterwarnings("ignore:Sparse CS")  # torch says on first use that these are young
@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_torch_sparse_is_never_made_dense(monkeypatch, layout, dtype):
    torch = pytest.importorskip("torch")
    A = gaussian((40, 30), dtype) * (np.arange(1200).reshape(40, 30) % 7 == 0)
    given = getattr(torch.asarray(A), f"to_sparse_{layout}")()

    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(torch.Tensor, "to_dense", refuse)
    U, S, Vh = lowrank.svd(given, rtol=1e-3, rng=0)
    assert torch.linalg.norm(torch.asarray(A) - (U * S) @ Vh) <= 1e-3 * norm(A, "fro")
    check_adjoint(as_operator(given), 0)


@pytest.mark.parametrize("kind", ["COO", "GCXS"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_sparse_of_pydata(monkeypatch, kind, dtype):
    sparse = pytest.importorskip("sparse", reason="PyData's sparse is not installed")
    A = gaussian((40, 30), dtype) * (np.arange(1200).reshape(40, 30) % 7 == 0)
    given = getattr(sparse, kind).from_numpy(A)

    def refuse(self):
        raise AssertionError

    monkeypatch.setattr(getattr(sparse, kind), "todense", refuse)
    found = lowrank.svd(given, rtol=1e-3, rng=0)
    assert type(found.U) is np.ndarray
    assert norm(A - (found.U * found.S) @ found.Vh, "fro") <= 1e-3 * norm(A, "fro")
    assert found.norm_A == pytest.approx(norm(A, "fro"))


class Compressed:
    """What such a class offers, where the library is not installed: an export to SciPy."""

    def __init__(self, A):
        self.inner, self.shape, self.dtype = A, A.shape, A.dtype

    def __array_namespace__(self, api_version=None):
        raise AssertionError

    def to_scipy_sparse(self):
        return self.inner


def test_a_sparse_matrix_that_calls_itself_an_array():
    sparse = pytest.importorskip("scipy.sparse")
    A = np.diag(0.5 ** np.arange(30.0))
    found = lowrank.svd(Compressed(sparse.csr_array(A)), rtol=1e-3, rng=0)
    assert norm(A - (found.U * found.S) @ found.Vh, "fro") <= 1e-3 * norm(A, "fro")
