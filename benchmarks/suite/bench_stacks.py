"""A stack of matrices beside one call for each of them, and beside the bare products."""

import numpy as np

import lowrank

from .common import KINDS, is_here, medians, moved

COUNT, SIZE, RANK = 32, 512, 32


def ratios(kind):
    rng = np.random.default_rng(0)
    A = moved(rng.standard_normal((COUNT, SIZE, SIZE), dtype=np.float32), kind)
    Omega = moved(rng.standard_normal((COUNT, SIZE, RANK), dtype=np.float32), kind)
    stack, calls, products = medians(
        kind,
        lambda: lowrank.range_finder(A, RANK, rng=0),
        lambda: [lowrank.range_finder(A[i], RANK, rng=0) for i in range(COUNT)],
        lambda: A @ Omega,
        repeats=3,
    )
    return stack / calls, stack / products


class Stacks:
    params = (KINDS,)
    param_names = ("kind",)

    def setup_cache(self):
        return {kind: ratios(kind) for kind in self.params[0] if is_here(kind)}

    def setup(self, found, kind):
        if kind not in found:
            raise NotImplementedError

    def track_of_calls(self, found, kind):
        return found[kind][0]

    def track_of_products(self, found, kind):
        return found[kind][1]

    track_of_calls.unit = "of the time of a call for each"
    track_of_products.unit = "times the bare products"
