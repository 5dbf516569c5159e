"""
Principal components to a tolerance
===================================

How many components do the data have? This script gives a tolerance, "at least 95 % of the
variance", and gets the number of components.
"""

# %%
# The data are 1797 images of handwritten digits, 8×8 pixels each, which come with scikit-learn.
# Each image is a row of 64 gray values from 0 to 16.

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import lowrank

images, digits = load_digits(return_X_y=True)
print(images.shape)

# %%
# A share of variance is an error
# -------------------------------
#
# Principal components are the singular vectors of the images minus their mean. ``center=True``
# subtracts the mean first. An array is copied for that; a sparse matrix is centered within the
# products and stays sparse.
#
# The total variance is the square of the Frobenius norm of the centered matrix, up to the factor m
# − 1, and the part that r components do not capture is the square of the error. To keep 95 % of the
# variance, the relative error must therefore be at most √0.05 ≈ 0.22.

share = 0.95
U, S, Vh = found = lowrank.svd(images, rtol=np.sqrt(1 - share), center=True, rng=0)
kept = np.sum(S**2) / found.norm_A**2
print(f"{found.rank} components hold {kept:.2%} of the variance; certified: at least "
      f"{1 - (found.error_bound / found.norm_A) ** 2:.2%}")  # fmt: skip
assert kept >= share

# %%
# The rows of ``Vh`` are the components, ``U * S`` the scores of the images, and ``S**2 / (m − 1)``
# the variances. The largest entry of every component is positive, so another seed gives the same
# pictures and not their negatives.

fig, axes = plt.subplots(2, 6, figsize=(7.2, 2.9))
# sphinx_gallery_start_ignore
fig.set_label(
    "The mean image, a blurred blob, and the first eleven components as images of 8 by 8 pixels "
    "with red and blue parts; the later ones have finer patterns."
)
# sphinx_gallery_end_ignore
axes[0, 0].imshow(found.mean.reshape(8, 8), cmap="gray_r")
axes[0, 0].set_title("mean")
for j, ax in enumerate(axes.flat[1:]):
    limit = np.abs(Vh[j]).max()
    ax.imshow(Vh[j].reshape(8, 8), cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_title(f"{j + 1}: {S[j] ** 2 / found.norm_A**2:.1%}")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)

# %%
# The number above each component is its share of the variance. The first two components place every
# image in a plane. The method does not know which digit an image shows, and still some digits form
# groups.

scores = U * S
fig, ax = plt.subplots(figsize=(7.2, 5))
# sphinx_gallery_start_ignore
fig.set_label(
    "The images in the plane of the first two components, each as a small colored digit. Zeros, "
    "threes, fours and sixes form groups at the rim; ones, fives and eights overlap in the middle."
)
# sphinx_gallery_end_ignore
colors = plt.get_cmap("tab10")
for digit in range(10):
    chosen = np.flatnonzero(digits == digit)[:60]
    ax.scatter(*scores[chosen, :2].T, marker=f"${digit}$", s=36, linewidths=0.3,
               color=colors(digit))  # fmt: skip
ax.set_xlabel("score of component 1 (gray values)")
ax.set_ylabel("score of component 2 (gray values)")

# %%
# Several tolerances
# ------------------
#
# More variance takes more components and reproduces more of an image. New images are treated in the
# same way: subtract ``mean``, multiply by ``Vh.T`` and by ``Vh``, and add ``mean``.

shares = (0.5, 0.8, 0.95, 0.99)
fig, axes = plt.subplots(5, 6, figsize=(7.2, 5.8))
# sphinx_gallery_start_ignore
fig.set_label(
    "Six digits in five rows. With half of the variance, by 5 components, most are smudges; with "
    "80 % and 13 components they are readable; with 95 % and 99 %, 29 and 41 components, they look "
    "nearly like the originals in the last row."
)
# sphinx_gallery_end_ignore
sample = [10, 11, 12, 13, 14, 16]
for row, share in zip(axes, (*shares, 1), strict=True):
    if share < 1:
        found = lowrank.svd(images, rtol=np.sqrt(1 - share), center=True, rng=0)
        shown = found.mean + (images[sample] - found.mean) @ found.Vh.T @ found.Vh
        row[0].set_ylabel(f"{share:.0%}\n{found.rank} components")
    else:
        shown = images[sample]
        row[0].set_ylabel("originals\n64 pixels")
    row[0].yaxis.label.set(rotation=0, ha="right", va="center")
    for ax, image in zip(row, shown, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)

# %%
# For a matrix of 64 columns a full decomposition takes milliseconds, and the library computes one
# here. ``sklearn.decomposition.PCA`` with ``n_components=0.95`` always does, because it needs all
# singular values to choose. A range finder needs only those that it returns, which matters for
# images of thousands of pixels.

everything = np.linalg.svd(images - images.mean(0), compute_uv=False)
variance = np.cumsum(everything**2) / np.sum(everything**2)
for share in shares:
    found = lowrank.svd(images, rtol=np.sqrt(1 - share), center=True, rng=0)
    least = int(np.searchsorted(variance, share)) + 1
    print(f"{share:.0%}: {found.rank} components, {least} with the full decomposition")
    assert least <= found.rank <= least + 1

plt.show()
