"""Factorizations of special matrices and to special factors: their time and their error.

Errors are over the best possible at that rank. Times are of one run each; compare them within it.
"""

import numpy as np

import lowrank
from lowrank import gallery

from .common import KINDS, OnEachLibrary, hermitian, matrix, moved, wait

SIZE, RANK, RTOL = 500, 32, 1e-2
# What each call gives, as one matrix.
CALLS = {
    "svd": lambda A: product(lowrank.svd(A, RANK, rng=0)),
    "svd, krylov": lambda A: product(lowrank.svd(A, RANK, krylov=True, rng=0)),
    "eigh": lambda A: of_eigen(lowrank.eigh(A, RANK, rng=0)),
    "nystrom": lambda A: of_eigen(lowrank.nystrom(A, RANK, rng=0)),
    "interpolative": lambda A: of_columns(A, lowrank.interpolative(A, RANK, rng=0)),
    "cur": lambda A: of_skeleton(lowrank.cur(A, RANK, rng=0)),
    "SketchedMatrix": lambda A: product(sketched(A).svd()),
}
SLOW = ("slow", "slower", "medium")


def product(found):
    U, S, Vh = found
    return (U * S) @ Vh


def of_eigen(found):
    w, V = found
    return (V * w) @ V.T


def of_columns(A, found):
    J, X = found
    return A[:, J] @ X


def of_skeleton(found):
    C, U, R = found
    return C @ U @ R


def sketched(A):
    return lowrank.SketchedMatrix(A.shape, RANK, rng=0).update(A)


class Hermitian:
    """Those that ask for such a matrix; its eigenvalues are positive."""

    params = (KINDS,)
    param_names = ("kind",)

    def setup(self, kind):
        self.A = moved(hermitian("slow", SIZE), kind)

    def time_eigh(self, kind):
        lowrank.eigh(self.A, RANK, rng=0)
        wait(kind)

    def time_nystrom(self, kind):
        lowrank.nystrom(self.A, RANK, rng=0)
        wait(kind)


class AnyMatrix(OnEachLibrary):
    def setup(self, kind):
        super().setup(kind)
        self.sketch = lowrank.SketchedMatrix(self.shape, RANK, like=self.A, rng=0)

    def time_interpolative(self, kind):
        lowrank.interpolative(self.A, RANK, rng=0)
        wait(kind)

    def time_cur(self, kind):
        lowrank.cur(self.A, RANK, rng=0)
        wait(kind)

    def time_svd_krylov(self, kind):
        lowrank.svd(self.A, RANK, krylov=True, rng=0)
        wait(kind)

    def time_svd_center(self, kind):
        lowrank.svd(self.A, RANK, center=True, rng=0)
        wait(kind)

    def time_update(self, kind):
        self.sketch.update(self.A)
        wait(kind)

    def time_update_rows(self, kind):
        self.sketch.update_rows(100, self.A[100:200])
        wait(kind)


class Errors:
    params = (tuple(CALLS), SLOW)
    param_names = ("call", "spectrum")

    def track_error(self, call, spectrum):
        A = hermitian(spectrum, SIZE)
        best = gallery.best_error(getattr(gallery, spectrum)(SIZE), RANK)
        return float(np.linalg.norm(A - CALLS[call](A))) / best

    track_error.unit = "times the best error"


class ToATolerance:
    """Ranks beside the best possible, and products beside those of power iterations."""

    params = (("qb", "svd", "eigh", "interpolative", "cur"), SLOW)
    param_names = ("call", "spectrum")

    def found(self, call, spectrum, **options):
        A = hermitian(spectrum, SIZE)
        return getattr(lowrank, call)(A, rtol=RTOL, rng=0, **options)

    def track_rank(self, call, spectrum):
        best = gallery.best_rank(getattr(gallery, spectrum)(SIZE), rtol=RTOL)
        return self.found(call, spectrum).rank / best

    def track_products_of_krylov(self, call, spectrum):
        power = self.found(call, spectrum, power_iterations=1)
        return self.found(call, spectrum, power_iterations=1, krylov=True).products / power.products

    track_rank.unit = "times the best rank"
    track_products_of_krylov.unit = "times those of power iterations"


class Rounding:
    """Of a matrix with a mean some thousand times as large as the rest, centered."""

    params = (("float32", "float64"),)
    param_names = ("dtype",)

    def track_center(self, dtype):
        A = (matrix("fast", (400, 300)) + 30.0).astype(dtype)
        found = lowrank.svd(A, 300, center=True, rng=0)
        A, mean, U, S, Vh = (X.astype("float64") for X in (A, found.mean, *found))
        A -= mean
        error = np.linalg.norm(A - (U * S) @ Vh) / np.linalg.norm(A)
        return error / float(np.finfo(dtype).eps)

    track_center.unit = "eps"
