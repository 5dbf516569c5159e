"""A plot of the error against the rank: estimate, bound and true error."""

import io
from typing import Any

import numpy as np

from lowrank._array import as_numpy, safe_norm
from lowrank._command.answering import Answer
from lowrank._command.arguments import Options
from lowrank._command.reading import Matrix
from lowrank._command.telling import printable, required
from lowrank._small_svd import tails

Double = np.ndarray[Any, np.dtype[Any]]

# Full SVDs, for the best possible error and for true errors in the spectral norm, are computed up
# to a total m·n·min(m, n) of this: about half a minute on a slow machine.
FULL_SVD = 1e10
# The true error takes m·n·rank multiplications, also for a sparse matrix; this many take a minute.
TRUTH = 1e12


def curves(matrix: Matrix, answer: Answer, norm: str) -> dict[str, tuple[Double, Double]]:
    """Ranks and absolute errors of each curve.

    Bound, estimate and truth are those of the factors truncated to r columns. The truncated part is
    orthogonal to the rest of the error, so that ``‖A − U_r S_r Vh_r‖`` follows from the error with
    all columns and the singular values. In the spectral norm only a bound follows, and the true
    error is measured.
    """
    U, S, Vh = map(_double, answer.factors)
    mean = 0.0 if answer.factors.mean is None else _double(answer.factors.mean)
    cut = _cut_off(S, norm)
    ranks = np.arange(cut.size)
    found = {
        "bound": (ranks, np.hypot(answer.factors.error_bound, cut)),
        "estimate": (ranks, np.hypot(answer.factors.error, cut)),
    }
    m, n = matrix.array.shape
    cost = m * n * min(m, n)
    if norm == "fro" and m * n * S.size <= TRUTH:
        step = max(1, 2**24 // n)  # blocks of rows of about 16 million numbers
        blocks = (slice(start, start + step) for start in range(0, m, step))
        parts = [safe_norm(_double(matrix.array[b]) - mean - (U[b] * S) @ Vh) for b in blocks]
        found["truth"] = ranks, np.hypot(float(safe_norm(np.array(parts))), cut)
    if cost <= FULL_SVD:
        A = _double(matrix.array) - mean
        best = _cut_off(np.linalg.svd(A, compute_uv=False), norm)
        found["best"] = ranks, best[: ranks.size]
        affordable = min(int(FULL_SVD / cost), 50)
        if norm == "spectral" and affordable >= 2:
            some = np.unique(np.linspace(0, S.size, affordable).astype(int))
            errors = [np.linalg.norm(A - (U[:, :r] * S[:r]) @ Vh[:r], 2) for r in some]
            found["truth"] = some, np.array(errors)
    if looks := [look for look in answer.factors.history if look.rank <= S.size]:
        seen, _, bounds = np.array(looks).T
        found["looks"] = seen, bounds
    return found


@np.errstate(all="ignore")
def picture(matrix: Matrix, answer: Answer, options: Options) -> bytes:
    """The plot as bytes, in the file format of `options.plot`."""
    found = curves(matrix, answer, options.norm)
    styles: dict[str, dict[str, Any]] = {
        "best": {"color": "0.8", "linewidth": 6, "label": "best possible (full SVD)"},
        "truth": {"color": "black", "linewidth": 2, "label": "true error"},
        "bound": {"color": "C0", "label": "certified bound"},
        "estimate": {"color": "C1", "linestyle": "--", "label": "estimate"},
        "looks": {"color": "C0", "linestyle": "", "marker": "v", "label": "bound, growing basis"},
    }
    # Not pyplot, which looks for a window system and keeps every figure.
    figure = required("matplotlib.figure", "--plot").Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    unit = answer.factors.norm_A or 1.0
    for name, style in styles.items():
        if name in found:
            ranks, errors = found[name]
            marker = {"marker": "o"} if len(ranks) == 1 and name != "looks" else {}
            axes.plot(ranks, np.where(errors > 0, errors / unit, np.nan), **style, **marker)
    if answer.factors.tolerance is not None:
        tolerance = answer.relative(answer.factors.tolerance)
        axes.axhline(tolerance, color="C2", linewidth=1, linestyle=":", label="tolerance")
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
    figure.savefig(stream, format=options.plot.suffix[1:].lower(), dpi=150)
    return stream.getvalue()


def _cut_off(values: Double, norm: str) -> Double:
    """The error of a truncation at each rank, without overflow."""
    largest = np.max(values, initial=0.0) or 1.0
    errors: Double = tails(values / largest, norm)
    return largest * errors


def _double(X: Any) -> Double:
    X = X.toarray() if hasattr(X, "toarray") else as_numpy(X)
    return X.astype(np.complex128 if X.dtype.kind == "c" else np.float64)
