"""What a call costs beside the bare products that it cannot do without, in the same process."""

from importlib import import_module

import numpy as np

import lowrank

from .common import KINDS, is_here, matrix, medians, moved

SHAPE, RANK, RTOL = (1000, 1000), 96, 1e-2


def drawing(A):
    """A function that draws a test matrix, in the way of the library of `A`."""
    shape = (A.shape[1], RANK)
    if isinstance(A, np.ndarray):
        rng = np.random.default_rng(0)
        return lambda: rng.standard_normal(shape, dtype=A.dtype)
    torch = import_module("torch")
    return lambda: torch.randn(shape, dtype=A.dtype, device=A.device)


def ratios(kind):
    A = moved(matrix("slow", SHAPE), kind)
    draw, Q = drawing(A), lowrank.range_finder(A, RANK, rng=0).Q
    rank = lowrank.range_finder(A, rtol=RTOL, rng=0).rank
    basis, one, qb, two, adaptive, fixed = medians(
        kind,
        lambda: lowrank.range_finder(A, RANK, rng=0),
        lambda: A @ draw(),
        lambda: lowrank.qb(A, RANK, rng=0),
        lambda: (A @ draw(), A.T @ Q),
        lambda: lowrank.range_finder(A, rtol=RTOL, rng=0),
        lambda: lowrank.range_finder(A, rank, rng=0),
    )
    return basis / one, qb / two, adaptive / fixed


class Ratios:
    params = ((*KINDS, "torch float64"),)
    param_names = ("kind",)

    def setup_cache(self):
        return {kind: ratios(kind) for kind in self.params[0] if is_here(kind)}

    def setup(self, found, kind):
        if kind not in found:
            raise NotImplementedError

    def track_range_finder(self, found, kind):
        return found[kind][0]

    def track_qb(self, found, kind):
        return found[kind][1]

    def track_tolerance(self, found, kind):
        return found[kind][2]

    track_range_finder.unit = "times the draw and one product"
    track_qb.unit = "times the draw and two products"
    track_tolerance.unit = "times the same rank asked for"
