"""Memory: of NumPy's arrays beside the documented limit, and of the process."""

import tracemalloc

import numpy as np

import lowrank

from .common import matrix

M, N = SHAPE = (1500, 600)
STOPS = {"rank": {"rank": 100}, "rtol": {"rtol": 1e-2}}
LOOK = 64  # columns


class OverLimit:
    """Elements at the peak, beyond A, over those that the documentation allows."""

    params = (tuple(STOPS),)
    param_names = ("stop",)

    def peak(self, call):
        call()  # what a first call leaves behind is not counted
        tracemalloc.start()
        found = call()
        _, size = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size / 8, found

    def track_range_finder(self, stop):
        A = matrix("slow", SHAPE)
        size, found = self.peak(lambda: lowrank.range_finder(A, **STOPS[stop], rng=0))
        k = found.rank
        if stop == "rtol":
            return size / (M * N + (2 * M + N) * k + 10 * k**2)
        return size / ((3 * M + N) * k + 4 * k**2 + (M + N) * LOOK)

    def track_svd(self, stop):
        """Where a tolerance cuts the basis, its columns count; and one copy of A."""
        A, cut = matrix("slow", SHAPE), stop == "rtol"
        size, found = self.peak(lambda: lowrank.svd(A, **STOPS[stop], oversampling=0, rng=0))
        k = found.history[-1].rank if cut else found.rank
        if cut:
            return size / (M * N + (2 * M + N) * k + 10 * k**2)
        return size / ((3 * M + 4 * N) * k + 10 * k**2)

    track_range_finder.unit = track_svd.unit = "times the limit"


class Process:
    """The high-water mark of the process: what it imports, A (32 MB), and the call.

    Compare with the bare product, for which BLAS already takes its own memory.
    """

    def setup_cache(self):
        np.save("A.npy", np.random.default_rng(0).standard_normal((4000, 1000)))

    def setup(self):
        self.A = np.load("A.npy")

    def peakmem_product(self):
        return self.A @ self.A[:200].T

    def peakmem_range_finder(self):
        return lowrank.range_finder(self.A, 200, rng=0)

    def peakmem_svd(self):
        return lowrank.svd(self.A, 200, rng=0)
