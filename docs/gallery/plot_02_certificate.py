"""
Read the certificate: estimate, bound and truth
===============================================

To grow a basis until its error is small enough, the library needs to know the error. For an array
in memory it computes the error. For a matrix that is known by its products only, it has an estimate
and a bound. This script shows all three, and how far each can be trusted.
"""

# %%
# The example matrix has known singular values, ``exp(−j/20)``, so the best error that any method
# can reach is known too. A :class:`~lowrank.RangeFinder` holds a basis that grows; ``reach`` lets
# it grow until the relative error is certified to be at most 1e-6.
#
# An array in memory: the error itself
# ------------------------------------
#
# The library keeps a copy of an array and projects each new block of the basis out of it. The norm
# of the remainder is the error. So both estimate and bound are the error, up to rounding, and the
# ``certificate`` of the result is "exact".

import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank import gallery

s = gallery.medium(500)
A = gallery.matrix(s, (600, 500), rng=0)
norm_A = np.linalg.norm(A)

exact = lowrank.RangeFinder(A, rng=0).reach(rtol=1e-6).result()


def error_at(rank, Q):
    Q = Q[:, :rank]
    return np.linalg.norm(A - Q @ (Q.T @ A))


print(exact.certificate, exact.status.value)
print("rank  bound     truth")
for look in exact.history[::2]:
    truth = error_at(look.rank, exact.Q)
    print(f"{look.rank:4d}  {look.bound / norm_A:.2e}  {truth / norm_A:.2e}")
    assert abs(look.bound - truth) < 1e-13 * norm_A

# %%
# Products only: estimate and bound
# ---------------------------------
#
# An operator, a matrix that is known by its products, cannot be copied. The error of its basis is
# measured by random samples. ``certificate="sampled"`` does the same for an array.
#
# New columns measure the basis before they join it. They are products of A with new random vectors,
# independent of the basis Q; their components outside of Q show how much of A is outside of Q. The
# *estimate* is the root of the mean of their squared lengths; the square is right on average. The
# *bound* is the estimate times a factor. The factor is so large that the bound is below the truth
# with probability 1e-9 at most, over all estimates of this object together. It is about two here,
# and does not depend on A or its size.
#
# For comparison, the true error is computed from all of A. The basis at each estimate consists of
# the first columns of Q.

found = lowrank.RangeFinder(A, certificate="sampled", rng=0).reach(rtol=1e-6).result()
print(found.certificate, found.status.value)
looks = found.history
ranks = np.array([look.rank for look in looks])
truth = np.array([error_at(rank, found.Q) for rank in ranks]) / norm_A
estimates = np.array([look.estimate for look in looks]) / norm_A
bounds = np.array([look.bound for look in looks]) / norm_A
best = np.array([gallery.best_error(s, rank) for rank in range(ranks[-1] + 1)]) / norm_A
assert np.all(truth <= bounds)

fig, ax = plt.subplots()
# sphinx_gallery_start_ignore
fig.set_label(
    "Relative error on a logarithmic axis against the rank. The bound is a step line that lies by "
    "a factor of two above the estimates; these lie on the curve of the true error, and that lies "
    "a little above the best possible. The last bound is below the dashed line of the tolerance, "
    "1e-6."
)
# sphinx_gallery_end_ignore
ax.semilogy(ranks, bounds, drawstyle="steps-post", label="bound")
ax.semilogy(ranks, estimates, "o", label="estimate")
ax.semilogy(ranks, truth, color="k", linewidth=1, label="truth")
ax.semilogy(best, color="0.6", linewidth=1, label="best possible")
ax.axhline(1e-6, color="0.3", linewidth=1, linestyle="--")
ax.annotate("tolerance", (0, 1e-6), (0, 3), textcoords="offset points", color="0.3")
ax.set_xlabel("columns of the basis")
ax.set_ylabel("error relative to ‖A‖")
ax.legend()

# %%
# Growth ends at the first estimate whose *bound* is below the tolerance. With the true error known,
# as with an exact certificate, it could have ended some columns earlier. With either certificate,
# ``lowrank.svd`` and ``lowrank.qb`` truncate the surplus from the final factors:

best_rank = gallery.best_rank(s, rtol=1e-6)
for basis, certificate in ((exact, "exact"), (found, "sampled")):
    cut = lowrank.svd(A, rtol=1e-6, certificate=certificate, rng=0)
    print(f"{certificate:7}: basis {basis.rank}, svd {cut.rank}, best possible {best_rank}")
    assert cut.rank <= best_rank + 3

# %%
# How often they are wrong
# ------------------------
#
# ``lowrank.residual_norm`` measures any approximation, also one from another library. Here it
# measures the same basis 400 times, each time with different random vectors. The estimates scatter
# around the truth by a few percent. They are good enough to plot, but half of them are too small.
# All bounds are above the truth.

Q = lowrank.range_finder(A, 128, rng=0).Q
true = np.linalg.norm(A - Q @ (Q.T @ A))
measured = [lowrank.residual_norm(A, Q, samples=64, rng=seed) for seed in range(400)]
estimates = np.array([one.value for one in measured]) / true
bounds = np.array([one.upper_bound for one in measured]) / true

fig, ax = plt.subplots(figsize=(7.2, 3))
# sphinx_gallery_start_ignore
fig.set_label(
    "Histograms of 400 estimates and of 400 bounds, each divided by the true error. The estimates "
    "lie between 0.9 and 1.1, around one; the bounds between 1.8 and 2.3, all to the right of one."
)
# sphinx_gallery_end_ignore
bins = np.linspace(0.75, 2.5, 106)
ax.hist(estimates, bins, color="C1", label="estimate")
ax.hist(bounds, bins, color="C0", label="bound")
ax.axvline(1, color="k", linewidth=1)
ax.annotate("truth", (1, 1), (-4, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="right", va="top")  # fmt: skip
ax.set_xlabel("measured error over true error")
ax.set_ylabel("of 400 measurements")
ax.legend()

assert 0.3 < np.mean(estimates < 1) < 0.7
assert bounds.min() > 1

plt.show()
