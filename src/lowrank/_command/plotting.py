"""A picture of the error against the rank: estimate, bound and truth."""

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from lowrank._command.arguments import Options
from lowrank._command.errors import required
from lowrank._command.reading import Matrix, as_numpy
from lowrank._command.working import Answer

__all__ = ["check_plot", "curves", "picture"]

Double = np.ndarray[Any, np.dtype[Any]]

# Full SVDs, for the best possible error and for true errors in the spectral norm, are taken up to
# this m·n·min(m, n) in all: about half a minute on a slow machine.
FULL_SVD = 1e10


def check_plot() -> None:
    """Say before the work, rather than after it, that matplotlib is missing."""
    required("matplotlib", "--plot")


def picture(matrix: Matrix, answer: Answer, options: Options) -> Callable[[BinaryIO, str], object]:
    """A function that writes the picture to a stream, in a format such as "png"."""
    found = curves(matrix, answer, options.norm)
    return lambda stream, kind: _draw(stream, kind, found, answer, options)


def curves(matrix: Matrix, answer: Answer, norm: str) -> dict[str, tuple[Double, Double]]:
    """Ranks and absolute errors of each curve.

    Three of them are about the factors when only their leading columns are kept. What is cut off
    then is orthogonal to the rest of the error, so that ``‖A − U_r S_r Vh_r‖`` follows from the
    error of all columns and the singular values; in the spectral norm only a bound follows, and
    the truth is measured.
    """
    S = as_numpy(answer.factors.S).astype(np.float64)
    cut = np.append(S, 0.0) if norm == "spectral" else _tails(np.append(S, 0.0))
    ranks = np.arange(cut.size)
    found = {
        "bound": (ranks, np.hypot(answer.bound, cut)),
        "estimate": (ranks, np.hypot(answer.error, cut)),
    }
    if norm == "fro":
        found["truth"] = ranks, np.hypot(_residual_norm(matrix, answer), cut)
    m, n = matrix.array.shape
    if m * n * min(m, n) <= FULL_SVD:
        A = np.vstack([block for _, block in _blocks(matrix.array)])
        values = np.append(np.linalg.svd(A, compute_uv=False), 0.0)
        best = values if norm == "spectral" else _tails(values)
        found["best"] = ranks, best[: ranks.size]
        if norm == "spectral":
            affordable = max(2, int(FULL_SVD / (m * n * min(m, n))))
            some = np.unique(np.linspace(0, S.size, min(affordable, 50)).astype(int))
            found["truth"] = some, np.array([_cut_error(A, answer, int(rank)) for rank in some])
    history = answer.factors.history
    if history:
        looked = np.array([look.rank for look in history])
        found["looks"] = looked, np.array([look.bound for look in history])
    return found


def _draw(
    stream: BinaryIO, kind: str, found: dict[str, Any], answer: Answer, options: Options
) -> None:
    styles: dict[str, dict[str, Any]] = {
        "best": {"color": "0.8", "linewidth": 6, "label": "best possible (full SVD)"},
        "truth": {"color": "black", "linewidth": 2, "label": "true error"},
        "bound": {"color": "C0", "label": "certified bound"},
        "estimate": {"color": "C1", "linestyle": "--", "label": "estimate"},
        "looks": {
            "color": "C0",
            "linestyle": "none",
            "marker": "v",
            "label": "bound, growing basis",
        },
    }
    required("matplotlib", "--plot").use("Agg")
    figure, axes = required("matplotlib.pyplot", "--plot").subplots(
        figsize=(7, 4.5), layout="constrained"
    )
    unit = answer.norm_A or 1.0
    for name, style in styles.items():
        if name in found:
            ranks, errors = found[name]
            axes.plot(ranks, np.where(errors > 0, errors / unit, np.nan), **style)
    if answer.rtol is not None:
        axes.axhline(answer.rtol, color="C2", linewidth=1, linestyle=":", label="tolerance")
    axes.set_yscale("log")
    axes.set_xlabel("rank")
    norm = "Frobenius" if options.norm == "fro" else "spectral"
    axes.set_ylabel(f"error, relative to the {norm} norm")
    name = f" {options.name}" if options.name else ""
    axes.set_title(f"{options.file.name}{name}: rank {answer.factors.rank}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(stream, format=kind, dpi=150)


def _tails(values: Double) -> Double:
    """Norms of values[r:] for r = 0, 1, …"""
    largest = np.max(values) or 1.0
    return largest * np.sqrt(np.cumsum((values[::-1] / largest) ** 2)[::-1])


def _residual_norm(matrix: Matrix, answer: Answer) -> float:
    """‖A − U S Vh‖_F, in double precision by blocks of rows."""
    U, S, Vh = map(_double, answer.factors)
    return float(
        np.linalg.norm(
            [np.linalg.norm(A - (U[rows] * S) @ Vh) for rows, A in _blocks(matrix.array)]
        )
    )


def _cut_error(A: Double, answer: Answer, rank: int) -> float:
    U, S, Vh = map(_double, answer.factors)
    return float(np.linalg.norm(A - (U[:, :rank] * S[:rank]) @ Vh[:rank], 2))


def _blocks(A: Any) -> Iterator[tuple[slice, Double]]:
    """Blocks of rows in double precision, of about 16 million numbers."""
    step = max(1, 2**24 // A.shape[1])
    for start in range(0, A.shape[0], step):
        rows = slice(start, start + step)
        yield rows, _double(A[rows])


def _double(X: Any) -> Double:
    X = as_numpy(X)
    return X.astype(np.complex128 if X.dtype.kind == "c" else np.float64)
