"""Times of the QR of a tall panel, and of its reflectors: a table of householder.md.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.studies.panels \
        > docs/explanation/householder_table.md

CPU time of one thread, medians of interleaved repeats; takes half a minute.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common.measuring import in_turn
from benchmarks.common.results import cpu_name
from benchmarks.common.tables import print_table
from lowrank._linalg.panel import conditioned, defect, orthonormalize, unitary_reflectors

SIZES, REPEATS = [(2000, 32), (4096, 32), (4096, 64), (4096, 256)], 31


def panels(p: int, b: int, dtype: str) -> Iterator[tuple[str, Any, Any]]:
    """Panels of condition number 100, which need both passes of Cholesky QR."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((b, b))).Q for _ in range(2))
    P = (rng.standard_normal((p, b)) @ (left * np.logspace(0, -2, b)) @ right).astype(dtype)
    yield "NumPy", P, np.linalg.qr
    yield "torch", torch.from_numpy(P), torch.linalg.qr


def milliseconds(calls: dict[str, Callable[[], Any]]) -> list[str]:
    named = {name: lambda _, call=call: call() for name, call in calls.items()}
    times = in_turn(named, REPEATS, clock=time.process_time)
    return [f"{1e3 * median(taken):.2g}" for taken in times.values()]


def table() -> Iterator[tuple[Any, ...]]:
    yield (
        *("panel, dtype, library", "one pass", "two passes", "`linalg.qr`"),
        *("reflectors, W = I", "reflectors by a QR"),
    )
    for p, b in SIZES:
        for dtype in ("float32", "float64"):
            for library, P, native in panels(p, b, dtype):
                Q = orthonormalize(P).Q
                D = defect(Q, is_panel=True)
                calls = {
                    "one pass": partial(conditioned, P),
                    "two passes": partial(orthonormalize, P),
                    "native": partial(native, P),
                    "plain": partial(unitary_reflectors, Q, D, is_plain=True),
                    "by a QR": partial(unitary_reflectors, Q, D, is_plain=False),
                }
                yield (f"{p}×{b}, {dtype}, {library}", *milliseconds(calls))


def main() -> None:
    torch.set_num_threads(1)
    versions = f"NumPy {np.__version__}, torch {torch.__version__}"
    print(f"<!-- of benchmarks/studies/panels.py: {cpu_name()}, one thread, {versions} -->\n")
    print_table(table())


if __name__ == "__main__":
    main()
