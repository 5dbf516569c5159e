"""Range finder and SVD on NumPy, beside the one product with A that none of them can do without.

Compare times within one run only: another run is another state of the machine.
"""

from functools import cache

import numpy as np

import lowrank
from lowrank import gallery

M, N = 1000, 500
RANK = 64
RTOL = 1e-2
SPECTRA = ("slow", "fast", "s_shaped")


def singular_values(name):
    return getattr(gallery, name)(N)


@cache  # `setup` runs again for each repetition
def matrix(name):
    return gallery.matrix(singular_values(name), (M, N), rng=0)


class RangeFinder:
    params = SPECTRA
    param_names = ("spectrum",)

    def setup(self, spectrum):
        self.A = matrix(spectrum)
        self.Omega = np.random.default_rng(1).standard_normal((N, RANK))

    def time_matmul(self, spectrum):
        self.A @ self.Omega

    def time_range_finder_fixed(self, spectrum):
        lowrank.range_finder(self.A, RANK, rng=2)

    def time_range_finder_adaptive(self, spectrum):
        lowrank.range_finder(self.A, rtol=RTOL, rng=2)

    def time_svd_fixed(self, spectrum):
        lowrank.svd(self.A, RANK, rng=2)

    def time_svd_adaptive(self, spectrum):
        lowrank.svd(self.A, rtol=RTOL, rng=2)

    def time_full_svd(self, spectrum):
        np.linalg.svd(self.A, full_matrices=False)

    def track_rank_of_svd(self, spectrum):
        found = lowrank.svd(self.A, rtol=RTOL, rng=2)
        return found.rank / gallery.best_rank(singular_values(spectrum), rtol=RTOL)

    track_rank_of_svd.unit = "times the best rank"

    def track_error_of_svd(self, spectrum):
        U, S, Vh = lowrank.svd(self.A, RANK, rng=2)
        error = np.linalg.norm(self.A - (U * S) @ Vh)
        return error / gallery.best_error(singular_values(spectrum), RANK)

    track_error_of_svd.unit = "times the best error"


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

    def setup(self, question):
        name, rtol = question.split()
        self.values, self.rtol = getattr(gallery, name)(8000), float(rtol)

    def track_rank(self, question):
        return lowrank.svd(Diagonal(self.values), rtol=self.rtol, rng=0).rank

    def track_best_rank(self, question):
        return gallery.best_rank(self.values, rtol=self.rtol)

    def track_products(self, question):
        return lowrank.svd(Diagonal(self.values), rtol=self.rtol, rng=0).products

    track_rank.unit = track_best_rank.unit = "columns"
    track_products.unit = "columns multiplied"


def timeraw_import_lowrank():
    return "import lowrank"
