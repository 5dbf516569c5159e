"""
Compress a map, and choose the tolerance
========================================

A table of numbers whose rows resemble each other can be stored as a product of two thin tables.
This script compresses a map of elevations in this way, and shows how to give the allowed error in
meters.
"""

# %%
# The map comes with the package: 344×403 heights around the Jacksboro fault in Tennessee, one every
# three seconds of arc, measured by the US Geological Survey. The library treats it as a matrix.

from importlib import resources

import matplotlib.pyplot as plt
import numpy as np

import lowrank

with (resources.files("lowrank") / "data" / "elevation.npz").open("rb") as file:
    A = np.load(file)["elevation"].astype(float)
m, n = A.shape
print(f"{m}×{n} heights from {A.min():.0f} m to {A.max():.0f} m")

# %%
# How it works
# ------------
#
# A *range finder* multiplies the matrix by a few random vectors. Each product is a random mixture
# of the columns of A, so it contains the directions that many columns share. The products are
# orthonormalized and form a basis Q; ``QQᵀA`` is the part of A that Q can express. The singular
# value decomposition of the small matrix ``QᵀA`` then sorts the directions by weight:
#
#     A ≈ U diag(S) Vh, with U of size m×r, Vh of size r×n, and the rank r.
#
# The number of directions follows from the error that you allow.
#
# From meters to a tolerance
# --------------------------
#
# The error is measured in the Frobenius norm, the root of the sum of the squares of all m·n
# entries. A root mean square error of 5 m is therefore a norm of
# ``5 √(m n)``. It is an absolute error, so pass it as ``atol``. (``rtol`` is relative to the norm
# of A. Heights are measured from sea level, so that norm is mostly the mean height, and one percent
# of it says little about the hills.)

approximations = {}
print("allowed  rank  certified   true     numbers stored")
for meters in (40, 10, 5, 2):
    U, S, Vh = found = lowrank.svd(A, atol=meters * np.sqrt(m * n), rng=0)
    B = (U * S) @ Vh
    certified = found.error_bound / np.sqrt(m * n)
    true = np.sqrt(np.mean((A - B) ** 2))
    stored = (U.size + S.size + Vh.size) / A.size
    print(f"{meters:5d} m {found.rank:5d} {certified:8.2f} m {true:7.2f} m {stored:10.0%}")
    assert true <= certified <= meters
    approximations[meters] = found.rank, B

# %%
# The rank was not given: each line shows the rank that its error needs. *Certified* is the bound of
# the library. A is an array in memory, so the library keeps the residual of the basis, and the
# bound is the error itself, up to rounding. The true error, computed by comparing all entries,
# agrees. The last column shows the price of detail. At 2 m the factors hold more than half as many
# numbers as the map: hills are rough, and roughness has no low rank.
#
# Look at the result
# ------------------
#
# A root mean square is an average and does not show where the errors are. A picture does: here they
# are everywhere, as a texture of short waves along rows and columns, because the approximation is a
# sum of products of whole rows and columns.

x, y = n * 0.0743, m * 0.0925  # kilometers: 3 seconds of arc at 36.6° N
fig, axes = plt.subplots(2, 2, figsize=(6.8, 6.2), sharex=True, sharey=True)
# sphinx_gallery_start_ignore
fig.set_label(
    "Four maps. The elevation as measured, its approximation with a root mean square error of 40 "
    "m, which is blurred and streaky, that with 10 m, which lacks only the finest valleys, and the "
    "difference of the first and the last: a fine texture all over the map, within 40 m nearly "
    "everywhere."
)
# sphinx_gallery_end_ignore
shades = {"extent": (0, x, 0, y), "vmin": A.min(), "vmax": A.max()}
pictures = {"as measured": A}
pictures |= {f"{k} m: rank {approximations[k][0]}": approximations[k][1] for k in (40, 10)}
for ax, (title, picture) in zip(axes.flat, pictures.items(), strict=False):
    heights = ax.imshow(picture, **shades)
    ax.set_title(title)
fig.colorbar(heights, ax=axes[0, :], label="elevation (m)")
limit = 40
left = axes[1, 1].imshow(
    A - approximations[10][1], cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, x, 0, y)
)
axes[1, 1].set_title("as measured, less the 10 m map")
fig.colorbar(left, ax=axes[1, :], label="difference (m)", extend="both")
fig.supxlabel("kilometers to the east", fontsize="medium")
fig.supylabel("kilometers to the north", fontsize="medium")

# %%
# What the best possible would be
# -------------------------------
#
# No matrix of rank r is closer to A than the one that the full singular value decomposition gives
# (Eckart and Young, 1936). For a matrix this small it can be computed. The four approximations are
# within 4 % of it.

s = np.linalg.svd(A, compute_uv=False)
ranks = np.arange(1, 200)
best = [lowrank.gallery.best_error(s, r) / np.sqrt(m * n) for r in ranks]

fig, ax = plt.subplots()
# sphinx_gallery_start_ignore
fig.set_label(
    "Root mean square error in meters, on a logarithmic axis, against the rank. The curve of the "
    "best possible falls from 80 m at rank 1 to 1 m at rank 200, and the four approximations lie "
    "on it."
)
# sphinx_gallery_end_ignore
ax.semilogy(ranks, best, color="0.6", label="best possible at this rank")
errors = {r: np.sqrt(np.mean((A - B) ** 2)) for r, B in approximations.values()}
ax.semilogy(list(errors), list(errors.values()), "o", label="lowrank.svd(A, atol=…)")
ax.set_xlabel("rank")
ax.set_ylabel("root mean square error (m)")
ax.set_yticks([1, 2, 5, 10, 20, 50], labels=["1", "2", "5", "10", "20", "50"])
ax.minorticks_off()
ax.legend()

for r, error in errors.items():
    assert error <= 1.04 * lowrank.gallery.best_error(s, r) / np.sqrt(m * n)

plt.show()
