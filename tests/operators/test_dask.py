"""Arrays of Dask, from zarr on disk, multiplied by its own schedulers."""

import threading

import numpy as np
import pytest
from matrices import adjoint, gaussian, norm, quietly, residual, with_spectrum

import lowrank
from lowrank import gallery

da = pytest.importorskip("dask.array")

DTYPES = ["float32", "float64", "complex64", "complex128"]


class Blocks:
    """An array of Dask that counts how often each of its blocks is computed."""

    def __init__(self, A, chunks):
        self.counts, lock = {}, threading.Lock()

        def count(block, block_info=None):
            with lock:
                where = block_info[None]["chunk-location"]
                self.counts[where] = self.counts.get(where, 0) + 1
            return block

        self.array = da.from_array(A, chunks=chunks).map_blocks(count, dtype=A.dtype, meta=A[:0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(150, 90), (90, 150)], ids=str)
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_from_zarr_to_a_tolerance(tmp_path, dtype, shape, kind):
    """Complex too, where Dask's own compressed SVD takes transposes for adjoints."""
    zarr = pytest.importorskip("zarr")
    A = with_spectrum(gallery.fast(90), shape, dtype)
    stored = zarr.create_array(tmp_path / "A.zarr", shape=shape, chunks=(40, 50), dtype=dtype)
    stored[:] = A
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(da.Array, "persist", None)
        found = lowrank.svd(da.from_zarr(tmp_path / "A.zarr"), rtol=1e-2, norm=kind, rng=0)
    assert found.converged
    assert {type(factor) for factor in found} == {np.ndarray}
    assert found.U.dtype == dtype
    error = norm(A.astype("complex128") - (found.U * found.S) @ found.Vh, kind)
    assert error <= found.error_bound <= 1e-2 * norm(A, kind) * (1 + 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_as_of_the_array(dtype):
    A = with_spectrum(gallery.slow(80), (120, 80), dtype)
    for options in ({"rank": 9}, {"rtol": 1e-2}, {"rank": 9, "center": True}):
        ours = lowrank.svd(da.from_array(A, chunks=(50, 30)), rng=0, **options)
        theirs = lowrank.svd(A, rng=0, **options)
        assert ours.rank == theirs.rank
        assert np.allclose(ours.S, theirs.S, rtol=1e3 * np.finfo(dtype).eps)
        if "rtol" in options:
            assert ours.norm_A == pytest.approx(theirs.norm_A, rel=1e-5)


@pytest.mark.parametrize(
    "options", [{"rank": 8}, {"rank": 8, "power_iterations": 0}, {"rtol": 1e-2}], ids=str
)
def test_each_pass_computes_each_block_once(options):
    A = with_spectrum(gallery.slow(60), (100, 60), "float64")
    blocks = Blocks(A, (30, 25))
    found = lowrank.svd(blocks.array, rng=0, **options)
    assert len(blocks.counts) == 4 * 3
    assert set(blocks.counts.values()) == {found.passes}


@pytest.mark.parametrize("name", ["range_finder", "qb", "eigh", "nystrom", "interpolative", "cur"])
def test_every_function(name):
    A = with_spectrum(gallery.fast(70), (70, 70), "complex128")
    A = adjoint(A) @ A
    plan = da.from_array(A, chunks=(30, 70))
    ours, theirs = (getattr(lowrank, name)(X, 12, rng=0) for X in (plan, A))
    assert ours.rank == theirs.rank == 12
    if name == "range_finder":
        assert norm(residual(theirs.Q, ours.Q), "fro") <= 1e-8
    Q = np.linalg.qr(A[:, :12]).Q
    estimates = [lowrank.residual_norm(X, Q, rng=0).value for X in (plan, A)]
    assert estimates[0] == pytest.approx(estimates[1], rel=1e-9)


def test_half_precision():
    A = with_spectrum(gallery.fast(40), (60, 40), "float32").astype("float16")
    found = lowrank.svd(da.from_array(A, chunks=(25, 40)), rtol=1e-2, rng=0)
    assert found.U.dtype == "float32"
    wide = A.astype("float64")
    assert norm(wide - (found.U * found.S) @ found.Vh, "fro") <= 1e-2 * norm(wide, "fro")


def test_on_workers_of_their_own():
    """The distributed scheduler, with products in its processes."""
    distributed = pytest.importorskip("distributed")
    A = with_spectrum(gallery.fast(80), (200, 80), "complex64")
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
    )
    with cluster, distributed.Client(cluster):
        found = lowrank.svd(da.from_array(A, chunks=(60, 80)), rtol=1e-2, rng=0)
    assert found.converged
    assert norm(A - (found.U * found.S) @ found.Vh, "fro") <= 1e-2 * norm(A, "fro")


def test_refused():
    A = gaussian((30, 20), "float64")
    with pytest.raises(TypeError, match="has dtype int64"):
        lowrank.svd(da.ones((5, 5), dtype="int64"), 2)
    with pytest.raises(ValueError, match="a matrix of known lengths"):
        lowrank.svd(da.ones((5, 5, 5)), 2)
    plan = da.from_array(A, chunks=(10, 20))
    with pytest.raises(ValueError, match="a matrix of known lengths"):
        lowrank.svd(plan[plan[:, 0] > 0], 2)
    A[3, 3] = np.nan
    for options in ({"rank": 3}, {"rtol": 0.1}):
        with pytest.raises(ValueError, match="holds NaN or Inf"):
            quietly(lowrank.svd, da.from_array(A, chunks=(10, 20)), rng=0, **options)
