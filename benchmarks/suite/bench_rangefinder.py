"""Bases: at a fixed rank, to a tolerance, and the estimate of their error.

Compare times within one run only: another run is another state of the machine.
"""

import numpy as np

import lowrank
from lowrank import gallery

from .common import SPECTRA, OnEachLibrary, matrix, wait

SHAPE, RANK, RTOL = OnEachLibrary.shape, 64, 1e-2


class RangeFinder(OnEachLibrary):
    def time_rank(self, kind):
        lowrank.range_finder(self.A, RANK, rng=0)
        wait(kind)

    def time_tolerance(self, kind):
        lowrank.range_finder(self.A, rtol=RTOL, rng=0)
        wait(kind)


class Residual(OnEachLibrary):
    def setup(self, kind):
        super().setup(kind)
        self.Q = lowrank.range_finder(self.A, RANK, rng=0).Q

    def time_residual_norm(self, kind):
        lowrank.residual_norm(self.A, self.Q, rng=1)
        wait(kind)


class Spectra:
    params = (SPECTRA,)
    param_names = ("spectrum",)

    def setup(self, spectrum):
        self.A = matrix(spectrum, SHAPE)

    def time_tolerance(self, spectrum):
        lowrank.range_finder(self.A, rtol=RTOL, rng=0)

    def track_error(self, spectrum):
        Q = lowrank.range_finder(self.A, RANK, rng=0).Q
        best = gallery.best_error(getattr(gallery, spectrum)(min(SHAPE)), RANK)
        return np.linalg.norm(self.A - Q @ (Q.T @ self.A)) / best

    track_error.unit = "times the best error"
