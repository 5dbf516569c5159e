"""A plot of the error against the rank: estimate, bound and true error."""

import math
from typing import Any, BinaryIO

import numpy as np

from lowrank._array import safe_norm, slices
from lowrank._cli.arguments import Options
from lowrank._cli.telling import printable, required
from lowrank._linalg.small_svd import tails

Double = np.ndarray[Any, np.dtype[Any]]

# Full SVDs, for the best possible error and for true errors in the spectral norm, are computed up
# to a total m·n·min(m, n) of this: about half a minute on a slow machine.
FULL_SVD = 1e10
# The true error takes m·n·rank multiplications, also for a sparse matrix; this many take a minute.
TRUTH = 1e12


def curves(X: Any, found: Any) -> dict[str, tuple[Double, Double]]:
    """Ranks and absolute errors of each curve.

    Bound, estimate and truth are those of the factors truncated to r columns. The truncated part is
    orthogonal to the rest of the error, so that ``‖A − U_r S_r Vh_r‖`` follows from the error with
    all columns and the singular values. In the spectral norm only a bound follows, and the true
    error is measured.
    """
    (U, S, Vh), (m, n), norm = map(_double, found), X.shape, found.norm
    mean = 0.0 if found.mean is None else _double(found.mean)
    cut = _cut_off(S, norm)
    ranks = np.arange(cut.size)
    drawn = {"bound": (ranks, np.hypot(found.error_bound, cut))}
    drawn["estimate"] = ranks, np.hypot(found.error, cut)
    cost = m * n * min(m, n)
    if norm == "fro" and m * n * S.size <= TRUTH:
        blocks = slices(m, max(1, 2**24 // n))  # of about 16 million numbers
        parts = (safe_norm(_double(X[b]) - mean - (U[b] * S) @ Vh) for b in blocks)
        drawn["truth"] = ranks, np.hypot(math.hypot(*parts), cut)
    if cost <= FULL_SVD:
        A = _double(X) - mean
        best = _cut_off(np.linalg.svd(A, compute_uv=False), norm)
        drawn["best"] = ranks, best[: ranks.size]
        affordable = min(int(FULL_SVD / cost), 50)
        if norm == "spectral" and affordable >= 2:
            some = np.unique(np.linspace(0, S.size, affordable).astype(int))
            errors = [np.linalg.norm(A - (U[:, :r] * S[:r]) @ Vh[:r], 2) for r in some]
            drawn["truth"] = some, np.array(errors)
    if looks := [look for look in found.history if look.rank <= S.size]:
        seen, _, bounds = np.array(looks).T
        drawn["looks"] = seen, bounds
    return drawn


@np.errstate(all="ignore")
def draw(X: Any, found: Any, options: Options, stream: BinaryIO) -> None:
    """Write the plot in the file format of `options.plot`."""
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
    unit, drawn = found.norm_A or 1.0, curves(X, found)
    for name, style in styles.items():
        if name in drawn:
            ranks, errors = drawn[name]
            marker = {"marker": "o" if len(ranks) == 1 else ""}
            axes.plot(ranks, np.where(errors > 0, errors / unit, np.nan), **marker | style)
    if found.tolerance is not None:
        axes.axhline(found.tolerance / unit, color="C2", linestyle=":", label="tolerance")
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("rank")
    norm = "Frobenius" if options.norm == "fro" else "spectral"
    axes.set_ylabel(f"error, relative to the {norm} norm")
    name = f"{options.file.name} {options.name or ''}".rstrip()
    axes.set_title(f"{printable(name)}: rank {found.rank}", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(stream, format=options.plot.suffix[1:].lower(), dpi=150)


def _cut_off(values: Double, norm: str) -> Double:
    """The error of a truncation at each rank, without overflow."""
    largest = np.max(values, initial=0.0) or 1.0
    return largest * tails(values / largest, norm)


def _double(X: Any) -> Double:
    X = X.toarray() if hasattr(X, "toarray") else np.asarray(X)
    return X.astype(np.complex128 if X.dtype.kind == "c" else np.float64)
