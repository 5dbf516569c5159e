"""
Choose sensors and survey lines: columns that stand for a matrix
================================================================

Singular vectors are mixtures of all columns. Sometimes you want columns themselves: pixels to
measure, lines to fly. This script chooses a few columns and reconstructs the rest.
"""

# %%
# Which pixels determine the image?
# ---------------------------------
#
# The 1797 images of digits that come with scikit-learn have 64 pixels. If a camera can measure only
# 20 of them, they should be those from which the others follow. An *interpolative decomposition*
# finds them: ``A ≈ A[:, J] X``, with columns J of A itself, and coefficients X that express all
# columns by these.
#
# The pixels are chosen on 1200 images and tested on the others.

# sphinx_gallery_thumbnail_number = 2
from importlib import resources

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import lowrank

images, _ = load_digits(return_X_y=True)
images = np.random.default_rng(0).permutation(images)
mean = images[:1200].mean(0)
known, new = images[:1200] - mean, images[1200:] - mean

chosen = lowrank.interpolative(known, rank=20, rng=0)
J, X = chosen
rebuilt = new[:, J] @ X


def relative(difference):
    return np.linalg.norm(difference) / np.linalg.norm(new)


# %%
# For comparison, 20 pixels are chosen at random, 100 times, each time with the best coefficients
# for them.


def error_of(pixels):
    coefficients = np.linalg.lstsq(known[:, pixels], known)[0]
    return relative(new - new[:, pixels] @ coefficients)


rng = np.random.default_rng(0)
by_chance = [error_of(rng.choice(64, 20, replace=False)) for _ in range(100)]
print(f"error with the chosen pixels {relative(new - rebuilt):.0%}")
print(
    f"with random pixels {np.mean(by_chance):.0%} on average, {min(by_chance):.0%} at best of 100"
)
assert relative(new - rebuilt) < min(by_chance)

fig, axes = plt.subplots(2, 7, figsize=(7.2, 2), width_ratios=[2.1] + 6 * [1])
# sphinx_gallery_start_ignore
fig.set_label(
    "On the left a map of how much each pixel varies, with the 20 chosen pixels marked: all in the "
    "middle columns, none at the edges. To the right six digits, above as they are and below as "
    "rebuilt from 20 pixels: softer, with the same strokes."
)
# sphinx_gallery_end_ignore
gs = axes[0, 0].get_gridspec()
for ax in axes[:, 0]:
    ax.remove()
ax = fig.add_subplot(gs[:, 0])
ax.imshow(known.std(0).reshape(8, 8), cmap="Greys", vmax=12)
ax.plot(J % 8, J // 8, "o", color="C1", ms=4)
ax.set_title("chosen")
for column, image, again in zip(axes[:, 1:].T, new + mean, rebuilt + mean, strict=False):
    for ax, picture in zip(column, (image, again), strict=True):
        ax.imshow(picture.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
axes[0, 1].set_ylabel("new")
axes[1, 1].set_ylabel("rebuilt")
for ax in fig.axes:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

# %%
# You could also choose the pixels that vary most, but neighbors that vary together carry the same
# information. An interpolative decomposition chooses columns for what the others do not contain.
#
# Which lines to survey?
# ----------------------
#
# A *CUR decomposition* chooses rows as well: ``A ≈ C U R``, with columns C and rows R of A, and a
# small matrix U that joins them. On the map of elevations of the
# :ref:`first script <sphx_glr_auto_gallery_plot_01_elevation.py>`, the columns are lines from north
# to south and the rows lines from west to east. From the heights along these lines, and U, you can
# reconstruct the map.

with (resources.files("lowrank") / "data" / "elevation.npz").open("rb") as file:
    A = np.load(file)["elevation"].astype(float)
m, n = A.shape

found = lowrank.cur(A, rank=40, rng=0)
C, U, R = found
assert np.array_equal(C, A[:, found.columns])
assert np.array_equal(R, A[found.rows, :])
meters = np.sqrt(np.mean((A - C @ U @ R) ** 2))
s = np.linalg.svd(A, compute_uv=False)
best = lowrank.gallery.best_error(s, 40) / np.sqrt(m * n)
print(f"root mean square error {meters:.1f} m; best possible of rank 40: {best:.1f} m")
assert best < meters < 2 * best

fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
# sphinx_gallery_start_ignore
fig.set_label(
    "Two maps of elevation. On the left the measured one with 40 vertical and 40 horizontal lines, "
    "spread unevenly; on the right the map rebuilt from these lines, which has the same ridges and "
    "valleys with some streaks."
)
# sphinx_gallery_end_ignore
x, y = n * 0.0743, m * 0.0925  # kilometers
shades = {"extent": (0, x, 0, y), "vmin": A.min(), "vmax": A.max()}
axes[0].imshow(A, **shades)
axes[0].vlines((found.columns + 0.5) * x / n, 0, y, color="w", linewidth=0.6)
axes[0].hlines(y - (found.rows + 0.5) * y / m, 0, x, color="w", linewidth=0.6)
axes[0].set_title("40 + 40 lines")
heights = axes[1].imshow(C @ U @ R, **shades)
axes[1].set_title(f"rebuilt from them, ± {meters:.0f} m")
axes[0].set_ylabel("kilometers to the north")
for ax in axes:
    ax.set_xlabel("kilometers to the east")
fig.colorbar(heights, ax=axes, label="elevation (m)")

# %%
# Real columns have a price: at the same rank the error is larger than with singular vectors. In
# return they have a meaning: a unit, a place, a sign, and zeros where the data have zeros. With
# ``rtol`` or ``atol`` in place of the rank, both functions choose as many columns as a certified
# error needs:

for meters in (40, 20):
    found = lowrank.cur(A, atol=meters * np.sqrt(m * n), rng=0)
    true = np.sqrt(np.mean((A - found.C @ found.U @ found.R) ** 2))
    print(f"{meters} m: {found.rank} + {found.rank} lines, true error {true:.1f} m")
    assert true <= found.error_bound / np.sqrt(m * n) <= meters

plt.show()
