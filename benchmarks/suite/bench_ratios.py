"""What a call costs beside the bare products that it cannot do without, in the same process."""

import numpy as np

import lowrank

from .common import LIBRARIES, matrix, medians, need, torch

SHAPE, RANK = (1000, 1000), 96


class Ratios:
    params = (LIBRARIES, ("float32", "float64"), ("slow", "fast"))
    param_names = ("library", "dtype", "spectrum")

    def setup(self, library, dtype, spectrum):
        need(library)
        self.A = matrix(spectrum, SHAPE, dtype, library)
        if library == "numpy":
            rng = np.random.default_rng(0)
            self.draw = lambda: rng.standard_normal((SHAPE[1], RANK), dtype=dtype)
        else:
            self.draw = lambda: torch.randn((SHAPE[1], RANK), dtype=self.A.dtype)
        self.Q = self.A @ self.draw()

    def track_range_finder(self, library, dtype, spectrum):
        found, bare = medians(
            lambda: lowrank.range_finder(self.A, RANK, rng=0), lambda: self.A @ self.draw()
        )
        return found / bare

    def track_qb(self, library, dtype, spectrum):
        found, bare = medians(
            lambda: lowrank.qb(self.A, RANK, rng=0),
            lambda: (self.A @ self.draw(), self.A.T @ self.Q),
        )
        return found / bare

    def track_adaptive(self, library, dtype, spectrum):
        rtol = 1e-2 if spectrum == "slow" else 1e-4
        rank = lowrank.range_finder(self.A, rtol=rtol, rng=0).rank
        adaptive, fixed = medians(
            lambda: lowrank.range_finder(self.A, rtol=rtol, rng=0),
            lambda: lowrank.range_finder(self.A, rank, rng=0),
        )
        return adaptive / fixed

    track_range_finder.unit = "times the draw and one product"
    track_qb.unit = "times the draw and two products"
    track_adaptive.unit = "times the fixed rank"
