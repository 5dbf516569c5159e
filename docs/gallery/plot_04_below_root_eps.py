"""
Below the root of eps: a stopping criterion that reports false success
======================================================================

A popular stopping criterion costs nothing and needs no random numbers. It is right for large
tolerances, but for small ones it reports false success. This script implements the criterion and
shows when it fails.
"""

# %%
# Let Q be an orthonormal basis and ``B = QᵀA``. By Pythagoras, what the basis misses is
#
#     ‖A − Q B‖² = ‖A‖² − ‖B‖²,
#
# and B is needed anyway. So the criterion subtracts the squared norm of each block of B from a
# running total E, and stops when E is below the square of the tolerance. This is randQB_EI (W.
# Yu, Y. Gu and Y. Li, 2018, `doi:10.1137/17M1141977 <https://doi.org/10.1137/17M1141977>`__),
# written from the published formula:

import textwrap
import warnings

import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank import gallery


def qb_by_energies(A, tolerance, rng, block=16):
    """Basis, and E after each block."""
    Q = np.zeros((A.shape[0], 0), A.dtype)
    energies = [np.linalg.norm(A) ** 2]
    while energies[-1] >= tolerance**2 and Q.shape[1] < min(A.shape):
        Y = A @ rng.standard_normal((A.shape[1], block)).astype(A.dtype)
        for _ in range(2):  # once more, for rounding
            Y, _ = np.linalg.qr(Y - Q @ (Q.T @ Y))
        Q = np.hstack([Q, Y])
        energies.append(energies[-1] - np.linalg.norm(Y.T @ A) ** 2)
    return Q, np.array(energies)


# %%
# In exact arithmetic the criterion is correct. But E is the difference of two numbers of size ‖A‖²,
# each rounded to eps·‖A‖². Below eps·‖A‖², E is noise of either sign, so it cannot show errors
# below √eps·‖A‖: 3.5e-4·‖A‖ in float32, and 1.5e-8·‖A‖ in float64.
#
# A negative E is below the square of *any* tolerance.


def error(A, Q):
    """True error relative to ‖A‖, computed in float64."""
    A, Q = A.astype(np.float64), Q.astype(np.float64)
    return np.linalg.norm(A - Q @ (Q.T @ A)) / np.linalg.norm(A)


tolerances = {"float32": 5e-5, "float64": 1e-10}
runs = {}
for dtype, rtol in tolerances.items():
    A = gallery.matrix(gallery.medium(800), (900, 800), rng=0).astype(dtype)
    norm_A = np.linalg.norm(A)
    Q, energies = qb_by_energies(A, rtol * norm_A, np.random.default_rng(0))
    needed = gallery.best_rank(gallery.medium(800), rtol=rtol)
    found = lowrank.RangeFinder(A, rng=0).reach(rtol=rtol).result()
    print(f"{dtype}, tolerance {rtol:.0e}: {needed} columns are needed at least")
    for name, basis in (("energies", Q), ("lowrank ", found.Q)):
        verdict = "below it" if error(A, basis) <= rtol else "MISSED"
        print(
            f"    {name} end with {basis.shape[1]} columns, error {error(A, basis):.1e}: {verdict}"
        )
    assert error(A, found.Q) <= found.error_bound / norm_A <= rtol
    # By chance the criterion may add columns up to the last instead of ending too early.
    assert error(A, Q) > rtol or Q.shape[1] > 780
    runs[dtype] = A, Q, energies, found

# %%
# The criterion ended without reporting a problem. In the picture the root of E follows the true
# error down to the dotted line, √eps, and then departs from it. The errors that the library
# computes follow it further: the library keeps the residual as an array, and the norm of the
# residual has an error of eps·‖A‖, not of √eps·‖A‖.

fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.8))
# sphinx_gallery_start_ignore
fig.set_label(
    "Two panels, float32 and float64: errors on a logarithmic axis against the columns of the "
    "basis. The root of the energies follows the true error down to the root of eps and ends there "
    "with a negative energy, marked by a cross. The norms of the residual follow the truth below "
    "it, down to the tolerance."
)
# sphinx_gallery_end_ignore
for ax, (dtype, (A, Q, energies, found)) in zip(axes, runs.items(), strict=True):
    norm_A, eps = np.linalg.norm(A), np.finfo(dtype).eps
    basis = found.Q if found.rank > Q.shape[1] else Q
    ranks = np.arange(0, basis.shape[1] + 1, 8)
    ax.semilogy(ranks, [error(A, basis[:, :r]) for r in ranks], color="0.6", label="true error")
    claimed = np.sqrt(np.maximum(energies, 0)) / norm_A
    steps = 16 * np.arange(energies.size)
    seen = energies > 0
    ax.semilogy(steps[seen], claimed[seen], "s", color="C1", ms=4, label="root of the energy E")
    if energies[-1] <= 0:
        ax.plot(steps[-1], error(A, Q), "x", color="C1", ms=9, mew=2, label="E < 0: “success”")
    looks = [look for look in found.history if look.rank > 0]
    ax.semilogy([look.rank for look in looks], [look.estimate / norm_A for look in looks], "o",
                color="C0", ms=4, label="norm of the residual")  # fmt: skip
    for level, name, style in ((np.sqrt(eps), "√eps", ":"), (tolerances[dtype], "tolerance", "--")):
        ax.axhline(level, color="0.3", linewidth=1, linestyle=style)
        ax.annotate(name, (0, level), (0, 3), textcoords="offset points", color="0.3")
    ax.set_title(dtype)
    ax.set_xlabel("columns of the basis")
axes[0].set_ylabel("error relative to ‖A‖")
axes[1].legend(loc="upper right")

# %%
# Every certificate has a floor
# -----------------------------
#
# The norm of the residual has a floor as well, a small multiple of eps·‖A‖. But the library knows
# this floor and reports it:

A, *_ = runs["float32"]
with warnings.catch_warnings():
    warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
    found = lowrank.svd(A, rtol=1e-7, rng=0)
print(found.converged, found.status.name, f"bound {found.error_bound / found.norm_A:.1e}")
print(textwrap.fill(found.status.value, 88))
assert not found.converged

plt.show()
