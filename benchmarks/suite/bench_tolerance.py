"""A tolerance: what is multiplied for it, the rank that it finds, and its time over the SVD's."""

from importlib import import_module

import numpy as np

import lowrank
from lowrank import gallery

from .common import KINDS, is_here, medians, moved

SHAPE = (1000, 800)
QUESTIONS = {
    "exp(-j/7), 1e-3": ("fast", 1e-3),
    "1/j, 0.05": ("slower", 0.05),
    "decay and noise, 0.1": ("noisy", 0.1),
    "noise, 0.1": ("noise", 0.1),
}


def question(name):
    """A matrix and a tolerance."""
    n = SHAPE[1]
    spectrum, rtol = QUESTIONS[name]
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    if spectrum == "noise":
        return noise, rtol
    decays = {"fast": gallery.fast(n), "slower": 1 / np.arange(1, n + 1)}
    A = gallery.matrix(decays.get(spectrum, np.exp(-np.arange(n) / 12)), SHAPE, xp=np, rng=0)
    if spectrum == "noisy":
        A = A / np.linalg.norm(A) + 0.08 * noise / np.linalg.norm(noise)
    return A, rtol


class Tolerance:
    params = (tuple(QUESTIONS),)
    param_names = ("question",)

    def setup(self, name):
        self.A, self.rtol = question(name)
        self.found = lowrank.svd(self.A, rtol=self.rtol, rng=0)

    def track_products(self, name):
        return self.found.products

    def track_rank_over_the_best(self, name):
        s = np.linalg.svd(self.A, compute_uv=False)
        return self.found.rank / gallery.best_rank(s, rtol=self.rtol)

    track_products.unit = "columns multiplied"
    track_rank_over_the_best.unit = "times the best possible rank"


class OverTheSVD:
    params = (KINDS, tuple(QUESTIONS))
    param_names = ("kind", "question")

    def setup(self, kind, name):
        if not is_here(kind):
            raise NotImplementedError

    def track_time(self, kind, name):
        A, rtol = question(name)
        A = moved(A, kind)
        xp = np if isinstance(A, np.ndarray) else import_module("torch")
        ours, full = medians(
            kind,
            lambda: lowrank.svd(A, rtol=rtol, rng=0),
            lambda: xp.linalg.svd(A, full_matrices=False),
        )
        return ours / full

    track_time.unit = "times the singular value decomposition"
