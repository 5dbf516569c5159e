"""Matrices and measures that the benchmarks share; asv collects nothing here.

Every benchmark and parameter has a process of its own, and torch takes longer to import than most
of them to run: only those that are about torch import it.
"""

import shutil
import time
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from statistics import median

import numpy as np

import lowrank
from lowrank import gallery

SPECTRA = ("slow", "fast", "s_shaped")
# NumPy, or torch on a processor, or torch on a GPU; and a dtype.
KINDS = ("numpy float64", "numpy float32", "torch float32", "cuda float32")


def is_here(kind):
    """Whether the library is installed and sees its device; the driver is asked before torch."""
    if kind.startswith("numpy"):
        return True
    if find_spec("torch") is None:
        return False
    if kind.startswith("torch"):
        return True
    return shutil.which("nvidia-smi") is not None and import_module("torch").cuda.is_available()


@cache  # `setup` runs again for each repetition
def matrix(spectrum, shape):
    if spectrum == "gaussian":
        return np.random.default_rng(0).standard_normal(shape)
    return gallery.matrix(getattr(gallery, spectrum)(min(shape)), shape, rng=0)


@cache
def hermitian(spectrum, n):
    """With the singular values of the gallery as eigenvalues."""
    V = lowrank.qr(matrix("gaussian", (n, n))).Q
    A = (V * getattr(gallery, spectrum)(n)) @ V.T
    return (A + A.T) / 2


def moved(A, kind):
    """The NumPy array `A` in that library and dtype; asv skips what raises NotImplementedError."""
    if not is_here(kind):
        raise NotImplementedError
    library, dtype = kind.split()
    A = A.astype(dtype)
    if library == "numpy":
        return A
    return import_module("torch").asarray(A, device="cpu" if library == "torch" else library)


class OnEachLibrary:
    params = (KINDS,)
    param_names = ("kind",)
    spectrum, shape = "slow", (1000, 500)

    def setup(self, kind):
        self.A = moved(matrix(self.spectrum, self.shape), kind)


def wait(kind):
    """Let the GPU finish: a call returns before its work is done."""
    if kind.startswith("cuda"):
        import_module("torch").cuda.synchronize()


def medians(kind, *calls, repeats=7):
    """Median seconds of calls that take turns, after one round that warms up."""
    seconds = [[] for _ in calls]
    for _ in range(repeats + 1):
        for kept, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            wait(kind)
            kept.append(time.perf_counter() - start)
    return [median(kept[1:]) for kept in seconds]
