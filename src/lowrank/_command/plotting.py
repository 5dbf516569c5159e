"""A picture of the error against the rank: estimate, bound and truth."""

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from lowrank._array import safe_norm
from lowrank._command.arguments import Options
from lowrank._command.reading import Matrix, as_numpy
from lowrank._command.telling import InputError, printable, reason, required
from lowrank._command.working import Answer
from lowrank._small_svd import tails

__all__ = ["curves", "picture"]

Double = np.ndarray[Any, np.dtype[Any]]

# Full SVDs, for the best possible error and for true errors in the spectral norm, are taken up to
# this m·n·min(m, n) in all: about half a minute on a slow machine.
FULL_SVD = 1e10
# The true error needs m·n·rank multiplications, also of a sparse matrix; up to here about a minute.
TRUTH = 1e12


def picture(matrix: Matrix, answer: Answer, options: Options) -> bytes:
    """The picture as the content of a file of the kind that `options.plot` names."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of characters that the font lacks, and the like
        try:
            return _draw(curves(matrix, answer, options.norm), answer, options)
        except MemoryError as error:
            message = f"{options.plot}: cannot be drawn: not enough memory"
            raise InputError(message) from error
        # matplotlib has its own configuration, which may name what is not there.
        except Exception as error:
            message = f"{options.plot}: cannot be drawn: {reason(error)}"
            raise InputError(message) from error


def curves(matrix: Matrix, answer: Answer, norm: str) -> dict[str, tuple[Double, Double]]:
    """Ranks and absolute errors of each curve.

    Three of them are about the factors when only their leading columns are kept. What is cut off
    then is orthogonal to the rest of the error, so that ``‖A − U_r S_r Vh_r‖`` follows from the
    error of all columns and the singular values; in the spectral norm only a bound follows, and
    the truth is measured.
    """
    S = as_numpy(answer.factors.S).astype(np.float64)
    cut = _cut_off(S, norm)
    ranks = np.arange(cut.size)
    found = {
        "bound": (ranks, np.hypot(answer.bound, cut)),
        "estimate": (ranks, np.hypot(answer.error, cut)),
    }
    m, n = matrix.array.shape
    cost = m * n * min(m, n)
    if norm == "fro" and m * n * S.size <= TRUTH:
        found["truth"] = ranks, np.hypot(_residual_norm(matrix, answer), cut)
    if cost <= FULL_SVD:
        A = np.vstack([block for _, block in _blocks(matrix.array)])
        best = _cut_off(np.linalg.svd(A, compute_uv=False), norm)
        found["best"] = ranks, best[: ranks.size]
        affordable = min(int(FULL_SVD / cost), 50)
        if norm == "spectral" and affordable >= 2:
            some = np.unique(np.linspace(0, S.size, affordable).astype(int))
            found["truth"] = some, np.array([_cut_error(A, answer, int(rank)) for rank in some])
    history = answer.factors.history
    if history:
        looked = np.array([look.rank for look in history])
        found["looks"] = looked, np.array([look.bound for look in history])
    return found


def _draw(found: dict[str, Any], answer: Answer, options: Options) -> bytes:
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
    # No pyplot: it looks for a window system, and keeps every figure.
    figure = required("matplotlib.figure", "--plot").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    unit = answer.norm_A or 1.0
    for name, style in styles.items():
        if name in found:
            ranks, errors = found[name]
            marker = {"marker": "o"} if len(ranks) == 1 and name != "looks" else {}
            axes.plot(ranks, np.where(errors > 0, errors / unit, np.nan), **style, **marker)
    if answer.rtol is not None:
        axes.axhline(answer.rtol, color="C2", linewidth=1, linestyle=":", label="tolerance")
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("rank")
    norm = "Frobenius" if options.norm == "fro" else "spectral"
    axes.set_ylabel(f"error, relative to the {norm} norm")
    name = f"{options.file.name} {options.name or ''}".rstrip()
    axes.set_title(f"{printable(name)}: rank {answer.factors.rank}", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    stream = io.BytesIO()
    kind = str(options.plot).rpartition(".")[2].lower()
    figure.savefig(stream, format=kind, dpi=150)
    return stream.getvalue()


def _cut_off(values: Double, norm: str) -> Double:
    """Error of truncating at each rank, of singular values of any size."""
    largest = np.max(values, initial=0.0) or 1.0
    errors: Double = tails(values / largest, norm)
    return largest * errors


def _residual_norm(matrix: Matrix, answer: Answer) -> float:
    """‖A − U S Vh‖_F, in double precision by blocks of rows."""
    U, S, Vh = map(_double, answer.factors)
    parts = [safe_norm(A - (U[rows] * S) @ Vh) for rows, A in _blocks(matrix.array)]
    return float(safe_norm(np.array(parts)))


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
