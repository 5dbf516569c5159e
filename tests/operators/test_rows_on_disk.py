"""Matrices in files, read a block of rows at a time: the results are those of the array."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NIGHTLY
from matrices import adjoint, gaussian, norm, residual, with_spectrum

import lowrank
from lowrank import RowBlocks, gallery
from lowrank._operators import as_operator
from lowrank._operators.adjoints import check_adjoint


class Rows:
    """An array that only gives slices of its rows, and notes which."""

    def __init__(self, A, chunks=None):
        self.A, self.chunks = A, chunks
        self.shape, self.dtype = A.shape, A.dtype
        self.read = []

    def __getitem__(self, index):
        rows, columns = index
        assert columns == slice(None)
        if rows.stop > rows.start:
            self.read.append((rows.start, rows.stop))
        return self.A[index]


def mapped(A, folder):
    np.save(folder / "A.npy", A)
    return np.load(folder / "A.npy", mmap_mode="r")


def h5py(A, folder):
    file = pytest.importorskip("h5py").File(folder / "A.h5", "w")
    return file.create_dataset("A", data=A, chunks=(16, 60), compression="gzip")


def h5py_without_chunks(A, folder):
    return pytest.importorskip("h5py").File(folder / "A.h5", "w").create_dataset("A", data=A)


def zarr(A, folder):
    store = pytest.importorskip("zarr").create_array(
        folder / "A.zarr", shape=A.shape, chunks=(16, 20), dtype=A.dtype
    )
    store[:] = A
    return store


def dask(A, folder):
    return pytest.importorskip("dask.array").from_array(A, chunks=(16, 20))


STORES = {f.__name__: f for f in (mapped, h5py, h5py_without_chunks, zarr, dask)}


def product(found):
    return (found.U * found.S) @ found.Vh


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_a_file_is_factored_as_the_array_is(tmp_path, store, dtype):
    A = with_spectrum(gallery.fast(60), (100, 60), dtype)
    stored = STORES[store](A, tmp_path)
    eps = np.finfo(dtype).eps
    for options in ({"rtol": 1e-3}, {"rank": 9}, {"rtol": 1e-2, "norm": "spectral"}):
        found = lowrank.svd(RowBlocks(stored, block_bytes=2**14), rng=3, **options)
        expected = lowrank.svd(A, rng=3, certificate="energy", block_size=128, **options)
        assert (found.rank, found.passes) == (expected.rank, expected.passes)
        assert norm(product(found) - product(expected), "fro") <= 1e4 * eps
        if "rtol" in options:
            assert found.error_bound == pytest.approx(expected.error_bound, rel=1e-2)
    Q, B = lowrank.qb(RowBlocks(stored), 9, rng=3)
    assert norm(B - adjoint(Q) @ A, "fro") <= 100 * eps * norm(A, "fro")
    check_adjoint(as_operator(RowBlocks(stored, rows=7)), 0)


@pytest.mark.parametrize("store", ["h5py", "zarr"])
def test_the_error_on_a_file_itself_has_the_line_to_write(tmp_path, store):
    stored = STORES[store](gaussian((100, 60), "float64"), tmp_path)
    with pytest.raises(TypeError, match=r"pass lowrank.RowBlocks\(A\)"):
        lowrank.svd(stored, rtol=1e-3)


@pytest.mark.parametrize("shape", [(53, 20), (20, 53)])
def test_blocks_go_where_like_is(backend, dtype, shape):
    A = with_spectrum(gallery.fast(20), shape, dtype)
    stored = Rows(A)
    matrix = RowBlocks(stored, rows=7, like=backend.asarray(np.zeros(1, "float32")))
    found = lowrank.svd(matrix, rtol=1e-3, rng=0)
    U, S, Vh = map(backend.numpy, found)  # which checks where they live
    assert str(found.U.dtype).endswith(dtype)
    assert str(matrix.dtype).endswith(dtype)
    assert found.converged
    assert norm(A - (U * S) @ Vh, "fro") <= 1e-3 * norm(A, "fro")
    check_adjoint(as_operator(matrix), 0)
    X, Y = gaussian((shape[1], 3), dtype), gaussian((shape[0], 3), dtype, 1)
    left, right = matrix.matmat(backend.asarray(X)), matrix.rmatmat(backend.asarray(Y))
    eps = backend.eps(dtype)
    assert np.allclose(backend.numpy(left), A @ X, atol=100 * eps)
    assert np.allclose(backend.numpy(right), adjoint(A) @ Y, atol=100 * eps)


def test_a_file_that_must_not_be_written_to_goes_to_torch(tmp_path):
    """Without the warning of torch."""
    torch = pytest.importorskip("torch")
    A = with_spectrum(gallery.fast(20), (53, 20), "float32")
    matrix = RowBlocks(mapped(A, tmp_path), rows=7, like=torch.zeros(1))
    U, S, Vh = lowrank.svd(matrix, rtol=1e-3, rng=0)
    assert np.linalg.norm(A - ((U * S) @ Vh).numpy()) <= 1e-3 * norm(A, "fro")


def test_arrays_of_a_library_stay_there(backend, dtype):
    A = with_spectrum(gallery.fast(20), (53, 20), dtype)
    found = lowrank.svd(RowBlocks(Rows(backend.asarray(A)), rows=7), rtol=1e-3, rng=0)
    U, S, Vh = map(backend.numpy, found)
    assert norm(A - (U * S) @ Vh, "fro") <= 1e-3 * norm(A, "fro")


@pytest.mark.parametrize("m", [0, 1, 2, 6, 7, 8, 14, 15])
@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_any_height(m, rows, dtype):
    A = gaussian((m, 5), dtype)
    matrix = RowBlocks(Rows(A), rows=rows)
    X, Y = gaussian((5, 3), dtype, 1), gaussian((m, 3), dtype, 2)
    assert np.allclose(matrix.matmat(X), A @ X, atol=1e-5)
    assert np.allclose(matrix.rmatmat(Y), adjoint(A) @ Y, atol=1e-5)
    assert matrix.matmat(X).dtype == matrix.rmatmat(Y).dtype == dtype
    assert matrix.norm() == pytest.approx(norm(A, "fro"))
    found = lowrank.svd(matrix, rtol=1e-4, rng=0)
    assert found.converged
    assert norm(A - product(found), "fro") <= 1e-4 * norm(A, "fro")


def test_a_real_matrix_and_a_complex_array():
    A, X = gaussian((15, 5), "float64"), gaussian((5, 3), "complex128")
    matrix = RowBlocks(A, rows=7)
    assert np.allclose(matrix.matmat(X), A @ X)
    assert np.allclose(matrix.rmatmat(matrix.matmat(X)), A.T @ A @ X)


@pytest.mark.parametrize("shape", [(0, 0), (5, 0), (0, 5)])
def test_nothing_in_it(shape):
    found = lowrank.svd(RowBlocks(np.zeros(shape)), rtol=1e-3, rng=0)
    assert (found.rank, found.converged, found.norm_A) == (0, True, 0.0)


@pytest.mark.parametrize("stored", [">f4", "<f4", ">f8", ">c8", "<c16", "f2", ">f2"])
def test_any_byte_order_and_half_precision(tmp_path, stored):
    A = with_spectrum(gallery.fast(20), (53, 20), "complex128" if "c" in stored else "float64")
    A = (100 * A).astype(stored)
    found = lowrank.svd(RowBlocks(mapped(A, tmp_path), rows=7), rtol=1e-2, rng=0)
    size = np.dtype(stored).itemsize
    assert found.U.dtype == np.dtype(f"{np.dtype(stored).kind}{max(4, size)}")
    wide = A.astype("complex128")
    assert norm(wide - product(found), "fro") <= 1e-2 * norm(wide, "fro")


@pytest.mark.parametrize("stored", ["uint8", "int16", ">i4", "int64", "bool"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_integers_are_cast_where_a_dtype_is_told(stored, library):
    A = (100 * gaussian((53, 20), "float64")).astype(stored)
    like = None
    if library == "torch":
        like = pytest.importorskip("torch").zeros(1)
    for dtype in ("float32", np.float64, np.dtype("complex64")):
        found = lowrank.svd(RowBlocks(Rows(A), rows=7, dtype=dtype, like=like), rtol=1e-2, rng=0)
        assert str(found.U.dtype).endswith(np.dtype(dtype).name)
        left, S, right = (np.asarray(X) for X in found)
        wide = A.astype("float64")
        assert norm(wide - (left * S) @ right, "fro") <= 1e-2 * norm(wide, "fro")
    with pytest.raises(TypeError, match=r'dtype \S+; .* lowrank.RowBlocks\(A, dtype="float32"\)'):
        RowBlocks(A, like=like)


def test_a_dtype_of_torch():
    torch = pytest.importorskip("torch")
    A = gaussian((53, 20), "float64")
    matrix = RowBlocks(A, rows=7, dtype=torch.float32, like=torch.zeros(1))
    assert matrix.dtype is lowrank.qb(matrix, 5, rng=0).Q.dtype is torch.float32


@pytest.mark.parametrize(
    "options", [{"rtol": 1e-3}, {"rank": 8}, {"rtol": 0.1, "norm": "spectral"}]
)
@pytest.mark.parametrize("rows", [7, 100])
def test_each_pass_reads_each_row_once(options, rows):
    A = with_spectrum(gallery.fast(60), (100, 60), "float64")
    stored = Rows(A)
    found = lowrank.svd(RowBlocks(stored, rows=rows), rng=0, **options)
    once = [(i, min(i + rows, 100)) for i in range(0, 100, rows)]
    assert stored.read == once * found.passes
    if options == {"rtol": 1e-3}:
        # two passes for each block; the first look is the norm
        assert found.passes == 1 + 2 * (len(found.history) - 1)


@pytest.mark.parametrize(
    ("block_rows", "chunk", "expected"),
    [
        (40, None, 40),
        (40, (16, 60), 32),  # whole chunks
        (40, (40, 20), 40),
        (40, (41, 60), 41),  # one that is higher than a block
        (40, (160, 60), 160),
        (40, (161, 60), 40),  # and one that is far higher
        (40, ((30, 30, 30, 30, 30, 30, 20), (60,)), 30),  # as Dask tells
        (0.5, None, 1),
        (0.5, (2, 60), 2),
        (1e9, (16, 60), 200),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_blocks_are_whole_chunks(block_rows, chunk, expected, dtype):
    A = np.zeros((200, 60), dtype)
    size = int(block_rows * 60 * A.itemsize)
    assert RowBlocks(Rows(A, chunk), block_bytes=size).rows == expected


def test_a_block_has_the_size_of_what_is_computed_with():
    A = np.zeros((1000, 100), "uint8")
    assert RowBlocks(A, dtype="float64", block_bytes=8 * 100 * 30).rows == 30


def test_progress_is_told_after_each_block():
    told = []
    A = with_spectrum(gallery.fast(20), (25, 20), "float64")
    matrix = RowBlocks(A, rows=10, callback=told.append)
    matrix.matmat(np.eye(20))
    assert told == [("matmat", 10, 25), ("matmat", 20, 25), ("matmat", 25, 25)]
    told.clear()
    found = lowrank.svd(matrix, rtol=1e-3, rng=0)
    assert len(told) == 3 * found.passes
    assert [p.product for p in told[::3]][:2] == ["norm", "matmat"]
    assert told[-1].product == "rmatmat"
    assert told[-1].done == told[-1].total == 25


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopIteration, ValueError])
@pytest.mark.parametrize("block", range(1, 17, 3))
def test_an_exception_of_the_callback_ends_the_work_and_harms_nothing(error, block):
    A = with_spectrum(gallery.slower(200), (200, 200), "float64")
    count = 0

    def callback(progress):
        nonlocal count
        count += 1
        if count == block:
            raise error

    matrix = RowBlocks(A, rows=50, callback=callback)
    finder = lowrank.RangeFinder(matrix, rng=0)
    with pytest.raises(error):
        finder.reach(rtol=0.01)
    assert count == block
    found = finder.reach(rtol=0.01).result()
    assert found.converged
    assert norm(residual(A, found.Q), "fro") <= found.error_bound <= 0.01 * norm(A, "fro")
    assert np.allclose(matrix.matmat(np.eye(200)), A)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"rank": 3}, {"rtol": 0.1}])
def test_not_finite(bad, options):
    A = gaussian((30, 20), "float64")
    A[17, 5] = bad
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        lowrank.svd(RowBlocks(A, rows=7), rng=0, **options)


def test_a_norm_beyond_the_largest_float():
    with pytest.raises(ValueError, match="the norm of `A` exceeds the largest float"):
        lowrank.svd(RowBlocks(np.full((30, 20), 1e308), rows=7), rtol=0.1, rng=0)


@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e36])
def test_any_size(size):
    A = with_spectrum(gallery.fast(20), (53, 20), "float64")
    A = (size * A).astype("float32")
    found = lowrank.svd(RowBlocks(A, rows=7), rtol=1e-2, rng=0)
    S = found.S.astype("float64") / size
    wide = A.astype("float64") / size
    assert norm(wide - (found.U * S) @ found.Vh, "fro") <= 1e-2 * norm(wide, "fro")


def test_refused():
    A = gaussian((30, 20), "float64")
    with pytest.raises(TypeError, match="slices of rows, got list"):
        RowBlocks(A.tolist())
    with pytest.raises(TypeError, match="a sparse matrix to the functions directly"):
        RowBlocks(pytest.importorskip("scipy.sparse").csr_array(A))
    with pytest.raises(ValueError, match=r"two dimensions\), got shape \(600,\)"):
        RowBlocks(A.ravel())
    with pytest.raises(TypeError, match=r"`dtype` must be .*, got int32"):
        RowBlocks(A, dtype="int32")
    torch = pytest.importorskip("torch")
    for C in (A + 1j, torch.asarray(A + 1j)):
        with pytest.raises(TypeError, match=r"float32 would lose its imaginary part"):
            RowBlocks(C, dtype="float32")
    for options in ({"rows": 0}, {"block_bytes": 0}):
        with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
            RowBlocks(A, **options)
    assert repr(RowBlocks(A, rows=7)) == "RowBlocks(30×20, float64, 7 rows at a time)"


SCRIPT = """
import sys, threading
import numpy as np
import lowrank
from lowrank import gallery

path, how = sys.argv[1:]
peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("RssAnon"))
        peak = max(peak, int(line.split()[1]))

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
A = np.load(path, mmap_mode="r")
A = A if how == "array" else lowrank.RowBlocks(A)
found = lowrank.svd(A, rtol=1e-2, block_size=16, rng=0)
done.set()
watcher.join()
print(peak // 1024, found.rank, bool(found.converged), found.error_bound / found.norm_A)
"""


# Half a gigabyte of single-precision numbers, and two gigabytes in the nightly profile.
LARGE = (16384, 32768) if NIGHTLY else (8192, 16384)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A matrix of rank 24, on disk."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system has no /proc that tells the memory of a process")
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 2**32:
        pytest.skip("fewer than 4 GB are free on the disk")
    m, n = LARGE
    A = np.lib.format.open_memmap(folder / "A.npy", "w+", "float32", (m, n))
    left = gaussian((m, 24), "float32") * np.float32(0.5) ** np.arange(24, dtype="float32")
    right = gaussian((24, n), "float32", 1)
    for start in range(0, m, 1024):
        rows = slice(start, start + 1024)
        np.matmul(left[rows], right, out=A[rows])
    del A
    yield folder / "A.npy"
    shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["blocks", "array"])
def test_however_large_the_file_the_process_holds_little_of_it(large, how):
    """A few blocks, in both profiles: pages of the file belong to the system."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(large), how],
        capture_output=True,
        check=False,
        timeout=300,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    megabytes, rank, converged, error = done.stdout.split()
    assert int(megabytes) < 200
    assert 6 <= int(rank) <= 8
    assert converged == "True"
    assert float(error) <= 1e-2
