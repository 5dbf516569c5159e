"""
Slow spectra, power iterations and Krylov spaces
================================================

A matrix has a good approximation of low rank only if its singular values fall. This script shows
three kinds of fall, and three ways to spend more products where the fall is slow.
"""

# %%
# Three matrices of 500×500: one whose singular values fall exponentially, one with ``1/j``, and one
# whose singular values are all equal, as those of a rotation are. A relative error of 10 % needs
# the following ranks, whatever the method, because the best approximation that exists needs them:

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np

import lowrank
from lowrank import gallery

spectra = {"exp(−j/7)": gallery.fast, "1/j": gallery.slower, "all equal": gallery.flat}
ranks = np.arange(501)

fig, ax = plt.subplots()
# sphinx_gallery_start_ignore
fig.set_label(
    "The best possible relative error against the rank, on a linear axis, for three spectra. The "
    "exponential one is below 10 % from rank 17 on, 1/j from rank 54 on, and the flat one only "
    "near the full rank of 500. Markers show that lowrank.svd finds these ranks."
)
# sphinx_gallery_end_ignore
for (name, spectrum), label_at in zip(
    spectra.items(), ((24, 0.03), (85, 0.13), (320, 0.63)), strict=True
):
    s = spectrum(500)
    curve = [gallery.best_error(s, r) / gallery.best_error(s, 0) for r in ranks]
    (line,) = ax.plot(ranks, curve, clip_on=False)
    found = lowrank.svd(gallery.matrix(s, rng=0), rtol=0.1, rng=0)
    ax.plot(found.rank, found.error / found.norm_A, "o", color=line.get_color())
    ax.text(*label_at, name, color=line.get_color())
    needed = gallery.best_rank(s, rtol=0.1)
    print(f"{name:>10}: rank {needed:3d} needed, {found.rank:3d} found, {found.status.name}")
    assert needed <= found.rank <= needed + 2
ax.axhline(0.1, color="0.3", linewidth=1, linestyle="--")
ax.set_xlim(0, 505)
ax.set_ylim(0, 1.03)
ax.set_xlabel("rank")
ax.set_ylabel("best possible error relative to ‖A‖")

# %%
# Nothing went wrong in the third case: the answer, certified, is that nearly all directions are
# needed. The library saw that after the first columns, and computed the full decomposition, which
# takes less time than to grow such a basis. Gaussian noise is nearly as bad. Such a matrix needs a
# different structure (sparse, Toeplitz, Kronecker).
#
# Slow fall, small rank
# ---------------------
#
# Between the extremes lies the case in which a rank of 20 is wanted, although what is cut off is
# large. Random mixtures of all columns then hold much of what is to be cut off, and tilt the basis.
# Three remedies cost products with A:
#
# - *oversampling*: more columns, and all but 20 of their combinations are thrown away in the end;
# - *power iterations*: each block is multiplied by ``A Aᵀ`` again, which cubes the ratios of the
#   singular values, so that the large ones win;
# - *block Krylov* (``krylov=True``): the same products, and the blocks from before each power
#   iteration stay in the basis. In their span is every polynomial of ``A Aᵀ`` times the first
#   block, not the highest power alone.
#
# They are compared at equal work. Every result tells in ``products`` how many columns were
# multiplied by A or its transpose.

s = gallery.slower(1000)
A = gallery.matrix(s, (1200, 1000), rng=0)
rank = 20
best = gallery.best_error(s, rank)


def excess(**options):
    """Columns multiplied, and the error of rank 20 beyond the best possible."""
    U, S, Vh = found = lowrank.svd(A, rank, rng=1, **options)
    return found.products, np.linalg.norm(A - (U * S) @ Vh) / best - 1


plain = [excess(oversampling=p, power_iterations=0) for p in (5, 10, 20, 40, 80, 120, 160)]
power = [excess(power_iterations=q) for q in range(6)]
krylov = [excess(power_iterations=q, krylov=True) for q in range(1, 4)]

fig, ax = plt.subplots()
# sphinx_gallery_start_ignore
fig.set_label(
    "Error beyond the best possible, on a logarithmic axis, against the columns multiplied by A or "
    "its transpose. Oversampling alone goes from 0.4 to 0.01 with 360 columns, power iterations "
    "reach 2e-6 with 360, and block Krylov 3e-9 with 330."
)
# sphinx_gallery_end_ignore
for points, name, marker in (
    (plain, "more oversampling", "s"),
    (power, "more power iterations", "o"),
    (krylov, "block Krylov", "D"),
):
    ax.semilogy(*zip(*points, strict=True), f"{marker}-", label=name)
ax.set_xlabel("columns multiplied by A or Aᵀ")
ax.set_ylabel("error over the best possible, less 1")
ax.legend()

# %%
# At 1e-2 all are good enough, and for many uses that is all one needs: the error that is inherent
# in rank 20 is a hundred times larger than what the method adds. For singular vectors as such, or
# the spectral norm, take power iterations; where products with A are what costs, take the Krylov
# space. It pays with memory and with orthogonalization, because its basis has as many times more
# columns as there are blocks.

products = {name: dict(points) for name, points in (("power", power), ("krylov", krylov))}
assert products["krylov"][240] < 0.3 * products["power"][240]
assert power[2][1] < 0.05 * plain[4][1]

plt.show()
