"""Counts, which do not depend on the machine: passes, operations, reads, memory, and rounding."""

import tracemalloc

import numpy as np

import lowrank

from .common import Counted, matrix, need

SHAPE, RANK, RTOL = (600, 400), 50, 1e-2
CALLS = {
    "range_finder fixed": lambda A: lowrank.range_finder(A, RANK, rng=0),
    "range_finder adaptive": lambda A: lowrank.range_finder(A, rtol=RTOL, rng=0),
    "svd adaptive": lambda A: lowrank.svd(A, rtol=RTOL, rng=0),
}


class Counts:
    params = (tuple(CALLS),)
    param_names = ("call",)

    def setup(self, call):
        self.A = matrix("slow", SHAPE)

    def counted(self, call):
        need("torch")
        A = matrix("slow", SHAPE, "float64", "torch")
        with Counted() as counter:
            CALLS[call](A)
        return counter

    def track_passes(self, call):
        return CALLS[call](self.A).passes

    def track_products(self, call):
        return CALLS[call](self.A).products

    def track_operations(self, call):
        return self.counted(call).operations

    def track_reads(self, call):
        return self.counted(call).reads

    def track_memory(self, call):
        """Peak beyond A, over the documented limit for the columns of the basis."""
        found = CALLS[call](self.A)
        tracemalloc.start()
        CALLS[call](self.A)
        size = tracemalloc.get_traced_memory()[1] / 8
        tracemalloc.stop()
        (m, n), k = SHAPE, found.rank
        if "adaptive" in call:
            k = found.history[-1].rank
        if call.startswith("svd"):
            return size / ((3 * m + 4 * n) * (k + 10) + 10 * (k + 10) ** 2)
        return size / ((3 * m + n) * k + 4 * k**2 + (m + n) * 64)

    track_passes.unit = "passes over A"
    track_products.unit = "columns multiplied"
    track_operations.unit = "operations of torch"
    track_reads.unit = "numbers read from the device"
    track_memory.unit = "times the limit"


class Rounding:
    params = (("float32", "float64"), ("slow", "fast"))
    param_names = ("dtype", "spectrum")

    def setup(self, dtype, spectrum):
        self.A = matrix(spectrum, SHAPE, dtype)
        self.eps = float(np.finfo(dtype).eps)

    def track_orthogonality(self, dtype, spectrum):
        Q = lowrank.range_finder(self.A, RANK, rng=0).Q.astype("float64")
        return np.linalg.norm(Q.T @ Q - np.eye(RANK)) / self.eps

    def track_residual_of_qr(self, dtype, spectrum):
        Q, R = lowrank.qr(self.A)
        A = self.A.astype("float64")
        return np.linalg.norm(A - Q.astype("float64") @ R) / np.linalg.norm(A) / self.eps

    track_orthogonality.unit = track_residual_of_qr.unit = "eps"


class PeakMemory:
    """The high-water mark of the process: what it imports, A and the call."""

    def setup_cache(self):
        np.save("A.npy", matrix("slow", (4000, 1000)))

    def setup(self):
        self.A = np.load("A.npy")

    def peakmem_matrix_alone(self):
        return float(self.A[0, 0])

    def peakmem_range_finder(self):
        return lowrank.range_finder(self.A, 100, rng=0)

    def peakmem_svd(self):
        return lowrank.svd(self.A, 100, rng=0)
