"""Matrices and measures that the benchmarks share; asv collects nothing here."""

import time
from functools import cache
from statistics import median

from lowrank import gallery

try:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:
    torch, TorchDispatchMode = None, object

LIBRARIES = ("numpy", "torch")


def singular_values(spectrum, n):
    return getattr(gallery, spectrum)(n)


@cache  # `setup` runs again for each repetition
def matrix(spectrum, shape=(1000, 500), dtype="float64", library="numpy"):
    A = gallery.matrix(singular_values(spectrum, min(shape)), shape, rng=0).astype(dtype)
    return A if library == "numpy" else torch.asarray(A)


def need(library):
    """Leave the benchmark out where the library is not installed."""
    if library == "torch" and torch is None:
        raise NotImplementedError


def medians(*calls, repeats=7):
    """Median seconds of calls that take turns, after one round that warms up."""
    seconds = [[] for _ in calls]
    for _ in range(repeats + 1):
        for kept, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    return [median(kept[1:]) for kept in seconds]


class Counted(TorchDispatchMode):
    """Counts operations of torch, and those that read a number from the device."""

    def __init__(self):
        super().__init__()
        self.operations = self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))
