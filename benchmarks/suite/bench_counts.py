"""What does not depend on the machine: passes, products, operations, reads, and rounding."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np

import lowrank

from .common import is_here, matrix, moved

TESTS = Path(__file__).parents[2] / "tests"

SHAPE, RANK, RTOL = (600, 400), 50, 1e-2
CALLS = {
    "range_finder, rank": lambda A: lowrank.range_finder(A, RANK, rng=0),
    "range_finder, rtol": lambda A: lowrank.range_finder(A, rtol=RTOL, rng=0),
    "svd, rank": lambda A: lowrank.svd(A, RANK, rng=0),
    "svd, rtol": lambda A: lowrank.svd(A, rtol=RTOL, rng=0),
}


RANKS = ("range_finder", "range_finder, q = 2", "qb", "svd, q = 0", "svd")


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


class OnAGpu:
    """Of 8192×8192 in single precision, counted on tensors that only say they are on a GPU."""

    BLOCK = "a block to a tolerance"
    params = ((*RANKS, BLOCK),)
    param_names = ("call",)

    def setup_cache(self):
        if not is_here("torch"):
            return {}
        sys.path.insert(0, str(TESTS))
        pretended = import_module("pretended")
        with pretended.pretending():
            found = {name: pretended.launched(pretended.CALLS_OF_A_RANK[name]) for name in RANKS}
            block = pretended.launched_to_a_tolerance(4)
        counts = {name: (one.launched, one.reads + one.checks) for name, one in found.items()}
        return counts | {self.BLOCK: (block.launched_per_block, block.reads_per_block)}

    def track_operations(self, found, call):
        return found.get(call, (np.nan, np.nan))[0]

    def track_reads(self, found, call):
        return found.get(call, (np.nan, np.nan))[1]

    track_operations.unit = "operations launched"
    track_reads.unit = "reads by the host"


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
