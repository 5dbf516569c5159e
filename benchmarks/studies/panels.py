"""Times of the QR of a tall panel, and of its reflectors: a table of householder.md.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m benchmarks.studies.panels \
        > docs/explanation/householder_table.md

CPU time of one thread, medians of interleaved repeats; takes half a minute.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.common.results import cpu_name
from benchmarks.common.tables import print_table
from benchmarks.studies.tolerance import milliseconds
from lowrank._linalg.panel import conditioned, defect, orthonormalize, unitary_reflectors

SIZES, REPEATS = [(2000, 32), (4096, 32), (4096, 64), (4096, 256)], 31


def panels(p: int, b: int, dtype: str) -> Iterator[tuple[str, Any, Any]]:
    """Panels of condition number 100, which need both passes of Cholesky QR."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((b, b))).Q for _ in range(2))
    P = (rng.standard_normal((p, b)) @ (left * np.logspace(0, -2, b)) @ right).astype(dtype)
    yield "NumPy", P, np.linalg.qr
    yield "torch", torch.from_numpy(P), torch.linalg.qr


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
                times = milliseconds(
                    partial(conditioned, P),
                    partial(orthonormalize, P),
                    partial(native, P),
                    partial(unitary_reflectors, Q, D, is_plain=True),
                    partial(unitary_reflectors, Q, D, is_plain=False),
                    repeats=REPEATS,
                )
                yield (f"{p}×{b}, {dtype}, {library}", *(f"{each:.2g}" for each in times))


def main() -> None:
    torch.set_num_threads(1)
    versions = f"NumPy {np.__version__}, torch {torch.__version__}"
    print(f"<!-- of benchmarks/studies/panels.py: {cpu_name()}, one thread, {versions} -->\n")
    print_table(table())


if __name__ == "__main__":
    main()
