"""Factorizations QB and SVD: their time, their error, and the rank that a tolerance takes."""

import numpy as np

import lowrank
from lowrank import gallery

from .common import SPECTRA, OnEachLibrary, matrix, wait

SHAPE, RANK, RTOL = OnEachLibrary.shape, 64, 1e-2


class Factorizations(OnEachLibrary):
    def time_qb(self, kind):
        lowrank.qb(self.A, RANK, rng=0)
        wait(kind)

    def time_svd(self, kind):
        lowrank.svd(self.A, RANK, rng=0)
        wait(kind)

    def time_svd_to_tolerance(self, kind):
        lowrank.svd(self.A, rtol=RTOL, rng=0)
        wait(kind)


class Spectra:
    params = (SPECTRA,)
    param_names = ("spectrum",)

    def track_error(self, spectrum):
        A = matrix(spectrum, SHAPE)
        U, S, Vh = lowrank.svd(A, RANK, rng=0)
        best = gallery.best_error(getattr(gallery, spectrum)(min(SHAPE)), RANK)
        return np.linalg.norm(A - (U * S) @ Vh) / best

    track_error.unit = "times the best error"


class Diagonal:
    """A diagonal matrix known by its products, of any size."""

    dtype = np.dtype("float64")

    def __init__(self, values):
        self.values = values
        self.shape = (values.size, values.size)

    def matmat(self, X):
        return self.values[:, None] * X

    rmatmat = matmat


class PublishedRanks:
    """Ranks that a tolerance takes on the published spectra, n = 8000; the best are known."""

    params = ("slow 1e-2", "slow 1e-4", "fast 1e-4", "fast 1e-5", "s_shaped 1e-2")
    param_names = ("question",)

    def track_rank(self, question):
        name, rtol = question.split()
        values = getattr(gallery, name)(8000)
        found = lowrank.svd(Diagonal(values), rtol=float(rtol), rng=0)
        return found.rank / gallery.best_rank(values, rtol=float(rtol))

    track_rank.unit = "times the best rank"
