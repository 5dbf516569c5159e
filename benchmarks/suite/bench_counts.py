"""What does not depend on the machine: passes, products, operations, reads, and rounding."""

from importlib import import_module

import numpy as np

import lowrank

from .common import is_here, matrix, moved

SHAPE, RANK, RTOL = (600, 400), 50, 1e-2
CALLS = {
    "range_finder, rank": lambda A: lowrank.range_finder(A, RANK, rng=0),
    "range_finder, rtol": lambda A: lowrank.range_finder(A, rtol=RTOL, rng=0),
    "svd, rank": lambda A: lowrank.svd(A, RANK, rng=0),
    "svd, rtol": lambda A: lowrank.svd(A, rtol=RTOL, rng=0),
}


def operations(call, A):
    """The operations of torch that `call` launches, in order."""
    launched = []

    class Record(import_module("torch.utils._python_dispatch").TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            launched.append(str(func))
            return func(*args, **(kwargs or {}))

    with Record():
        call(A)
    return launched


class Counts:
    params = (tuple(CALLS),)
    param_names = ("call",)

    def setup_cache(self):
        A = matrix("slow", SHAPE)
        return {
            name: (call(A), is_here("torch") and operations(call, moved(A, "torch float64")))
            for name, call in CALLS.items()
        }

    def track_passes(self, found, call):
        return found[call][0].passes

    def track_products(self, found, call):
        return found[call][0].products

    def track_operations(self, found, call):
        return len(found[call][1]) if found[call][1] else np.nan

    def track_reads(self, found, call):
        launched = found[call][1]
        return launched.count("aten._local_scalar_dense.default") if launched else np.nan

    track_passes.unit = "passes over A"
    track_products.unit = "columns multiplied"
    track_operations.unit = "operations of torch"
    track_reads.unit = "numbers read from the device"


class Rounding:
    params = (("float32", "float64"),)
    param_names = ("dtype",)

    def setup(self, dtype):
        self.A = matrix("fast", SHAPE).astype(dtype)
        self.eps = float(np.finfo(dtype).eps)

    def track_orthogonality(self, dtype):
        Q = lowrank.range_finder(self.A, RANK, rng=0).Q.astype("float64")
        return np.linalg.norm(Q.T @ Q - np.eye(RANK)) / self.eps

    def track_residual_of_qr(self, dtype):
        A, (Q, R) = self.A.astype("float64"), lowrank.qr(self.A)
        return np.linalg.norm(A - Q.astype("float64") @ R) / np.linalg.norm(A) / self.eps

    track_orthogonality.unit = track_residual_of_qr.unit = "eps"
