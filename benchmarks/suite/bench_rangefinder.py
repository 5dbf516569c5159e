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


def timeraw_import_lowrank():
    return "import lowrank"
