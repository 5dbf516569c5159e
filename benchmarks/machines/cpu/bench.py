"""What the parts share: sizes, arrays of NumPy and torch, and how a group of rows is measured."""

import math
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.accuracy import accuracy, parts
from benchmarks.common.measuring import Call, Judge, measure
from benchmarks.common.results import Results
from lowrank import gallery

Shape = tuple[int, int]
Row = dict[str, Any]
DTYPES = ("float32", "float64")
SPECTRA = ("flat", "fast", "slow")
FIXED, ADAPTIVE = "range_finder", "range_finder, adaptive"
# Seconds: the threads of a second BLAS in the process go on spinning for a while after each call.
REST = 0.05


@dataclass(frozen=True)
class Sizes:
    n: int  # of the square matrix for "fixed rank" and "adaptive"
    k: int
    svd_n: int
    svd_k: int
    qr: tuple[Shape, ...]
    growth: tuple[int, ...]  # values of m and n
    growth_other: int  # n or m beside them
    growth_ranks: tuple[int, ...]
    growth_shape: Shape  # of the matrix for these ranks
    growth_k: int  # beside values of m and n
    memory: tuple[Shape, ...]
    memory_ranks: tuple[int, ...]


FULL = Sizes(
    n=4096,
    k=256,
    svd_n=2000,
    svd_k=50,
    qr=((65536, 256), (100_000, 64), (1_000_000, 32), (2000, 2000)),
    growth=(1024, 2048, 4096, 8192, 16384),
    growth_other=2048,
    growth_ranks=(64, 128, 256, 512, 1024),
    growth_shape=(4096, 4096),
    growth_k=128,
    memory=((20_000, 1000), (4000, 4000), (1000, 20_000)),
    memory_ranks=(64, 128, 256),
)
QUICK = Sizes(
    n=768,
    k=48,
    svd_n=300,
    svd_k=20,
    qr=((8192, 64), (20_000, 16), (300, 300)),
    growth=(256, 512, 1024, 2048, 4096),
    growth_other=512,
    growth_ranks=(64, 96, 128, 192, 256),
    growth_shape=(1024, 1024),
    growth_k=32,
    memory=((8000, 400), (1500, 1500), (400, 8000)),
    memory_ranks=(64, 128),
)


@dataclass(frozen=True)
class Bench:
    """A part: an array library, and what its sections need."""

    name: str  # numpy or torch
    results: Results
    folder: Path  # of the matrices
    sizes: Sizes

    @property
    def xp(self) -> Any:
        return import_module(self.name)

    def load(self, name: str, dtype: str) -> Any:
        return self.of(np.load(self.folder / f"{name}.npy").astype(dtype))

    def of(self, X: Any) -> Any:
        return X if self.name == "numpy" else self.xp.from_numpy(X)

    def draw(self, seed: int, shape: Shape, dtype: Any) -> Any:
        if self.name == "numpy":
            return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)
        return self.xp.randn(shape, dtype=dtype)

    def gaussian(self, shape: Shape, dtype: str) -> Any:
        """A matrix to factorize, the same for both libraries."""
        return self.of(np.random.default_rng(1).standard_normal(shape, dtype=np.dtype(dtype)))

    def group(self, section: str, A: Any, **more: Any) -> Row:
        dtype, shape = str(A.dtype).rpartition(".")[2], [int(size) for size in A.shape]
        return {"section": section, "arrays": self.name, "dtype": dtype, "shape": shape} | more

    def measure(
        self, section: str, A: Any, calls: list[Call], judge: Judge | None = None, **more: Any
    ) -> None:
        group = self.group(section, A, **more)
        judge = judge or (lambda _, result, __: accuracy(A, parts(result)))
        measure(self.results, group, calls, judge, rest=lambda _: rest(A))
        print(", ".join(f"{key} {value}" for key, value in group.items()), flush=True)


def rest(A: Any) -> None:
    """Let foreign threads fall asleep, and wake the own ones with an untimed product with A."""
    time.sleep(REST)
    _ = A.T @ A[:, :16]


def judged(A: Any, spectrum: Any, dtype: str) -> Judge:
    """Accuracy of bases and factorizations of a matrix with these singular values."""
    norm = gallery.best_error(spectrum, 0)

    def judge(_: Call, result: Any, __: Any) -> Row:
        found = accuracy(A, parts(result))
        if not found:
            return {}
        best = gallery.best_error(spectrum, found["rank"]) / norm
        is_visible = best > math.sqrt(found["rank"]) * float(np.finfo(dtype).eps)
        told_by = {key: getattr(result, key, None) for key in ("converged", "products")}
        return {**found, "over_best": found["error"] / best if is_visible else None, **told_by}

    return judge
