"""
Data that are seen once, and data larger than memory
====================================================

A simulation produces a row at each step. Either the rows are not stored, or they go into a file
that is larger than memory. This script handles both cases: the first with a sketch that sees every
row once, the second by reading the file in blocks.
"""

# %%
# The simulation
# --------------
#
# A torch moves back and forth along a rod. Heat spreads, the ends are kept cold, and the rod loses
# heat to the air. 6000 steps at 1000 points make a matrix whose row i is the temperature at step i.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lowrank

steps, points, height = 6000, 1000, 200
x = np.linspace(0, 1, points)  # meters
seconds = 1e-3  # of a step
spread = 3e-4 * seconds / (x[1] - x[0]) ** 2


def blocks():
    """The rows, 200 at a time."""
    u, block = np.zeros(points), np.zeros((height, points))
    for step in range(steps):
        u[1:-1] += spread * (u[2:] - 2 * u[1:-1] + u[:-2])
        torch_at = 0.5 + 0.35 * np.sin(2 * np.pi * step * seconds / 2.3)
        u += seconds * (2000 * np.exp(-(((x - torch_at) / 0.03) ** 2)) - 0.5 * u)
        u[0] = u[-1] = 0
        block[step % height] = u
        if (step + 1) % height == 0:
            yield step + 1 - height, block.copy()


# %%
# One pass: a sketch
# ------------------
#
# A :class:`~lowrank.SketchedMatrix` stores products of the matrix with random matrices, from the
# left and from the right. They are linear: each block of rows adds its contribution and can then be
# discarded. In the end the products give an approximation, and some of them are reserved to measure
# its error.
#
# Here the rows are also written to a file, for the second half of this script and for the true
# error.

folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "temperatures.npy"
file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float64, shape=(steps, points))

sketch = lowrank.SketchedMatrix((steps, points), rank=15, rng=0)
for start, rows in blocks():
    sketch.update_rows(start, rows)
    file[start : start + height] = rows
file.flush()

U, S, Vh = found = sketch.svd()
print(f"estimated error {found.error / found.norm_A:.2%}")
print(f"error bound     {found.error_bound / found.norm_A:.2%}")

A = np.load(path)
true = np.linalg.norm(A - (U * S) @ Vh)
print(f"true error      {true / np.linalg.norm(A):.2%}")
assert true <= found.error_bound

fig, axes = plt.subplots(1, 3, figsize=(7.2, 4.2), sharey=True)
# sphinx_gallery_start_ignore
fig.set_label(
    "Temperature over place and time: a wave-shaped hot trace that swings between both ends of the "
    "rod. The approximation of rank 15 beside it looks the same; their difference is a faint "
    "pattern of ripples along the trace."
)
# sphinx_gallery_end_ignore
where = {"extent": (0, 1, steps * seconds, 0), "aspect": "auto"}
for ax, field, title in zip(
    axes, (A, (U * S) @ Vh), ("simulated", "seen once, rank 15"), strict=False
):
    heat = ax.imshow(field, cmap="inferno", vmin=0, vmax=A.max(), **where)
    ax.set_title(title)
fig.colorbar(heat, ax=axes[:2], label="temperature (K)", location="bottom", aspect=40)
limit = 0.05 * A.max()
rest = axes[2].imshow(A - (U * S) @ Vh, cmap="RdBu_r", vmin=-limit, vmax=limit, **where)
fig.colorbar(rest, ax=axes[2], label="difference (K)", location="bottom")
axes[2].set_title("difference")
axes[0].set_ylabel("time (s)")
for ax in axes:
    ax.set_xlabel("place (m)")
    ax.set_xticks([0, 0.5, 1], labels=["0", "0.5", "1"])

# %%
# You choose the size of the sketch, by a rank, before the data arrive. Afterwards you can ask for
# the error of other ranks too, as often as you like, without the data. The bound is about twice the
# estimate, and holds for all ranks at once. All estimates use the same 64 reserved random rows, so
# they tend to be off in the same direction.

ranks = np.arange(1, 31)
errors = [sketch.error(r) for r in ranks]
s = np.linalg.svd(A, compute_uv=False)
best = np.array([lowrank.gallery.best_error(s, r) for r in ranks]) / np.linalg.norm(A)
k, size, rows = sketch.sketch_size, sketch.core_size, sketch.error_rows
numbers = (steps + points) * (2 * k + size + rows) + size**2
print(f"at most {numbers:,} numbers in place of {A.size:,}")

fig, ax = plt.subplots()
# sphinx_gallery_start_ignore
fig.set_label(
    "Relative error on a logarithmic axis against the rank. The estimates follow the best possible "
    "curve from 0.3 at rank 1 to 0.0007 at rank 30, and the bounds run in parallel at twice the "
    "value."
)
# sphinx_gallery_end_ignore
ax.semilogy(ranks, [error.upper_bound / sketch.norm for error in errors], label="bound")
ax.semilogy(ranks, [error.value / sketch.norm for error in errors], "o", label="estimate")
ax.semilogy(ranks, best, color="0.6", label="best possible")
ax.set_xlabel("rank")
ax.set_ylabel("error relative to ‖A‖")
ax.legend()

# %%
# Several passes: a file, to a tolerance
# --------------------------------------
#
# Rows on disk can be read more than once, so you can give a tolerance instead of guessing the rank.
# ``RowBlocks`` turns a memory-mapped file, or an h5py or zarr dataset, into an operator that holds
# one block in memory at a time. It calls its ``callback`` after every block, for a progress bar or,
# as here, for a picture.

heard = []
mapped = np.load(path, mmap_mode="r")
matrix = lowrank.RowBlocks(mapped, block_bytes=2**22, callback=heard.append)
found = lowrank.svd(matrix, rtol=1e-3, rng=0)
print(f"{matrix.rows} rows in memory at a time, {found.passes} passes, rank {found.rank}")
assert found.converged

fig, ax = plt.subplots(figsize=(7.2, 2.8))
# sphinx_gallery_start_ignore
fig.set_label(
    "Rows read so far within a pass, against the blocks read in all: saw teeth, each from zero to "
    "6000. The first is the norm, the second the product with A, the third that with the transpose."
)
# sphinx_gallery_end_ignore
names = {"norm": "norm of A", "matmat": "A times random vectors", "rmatmat": "Aᵀ times the basis"}
for j, (product, name) in enumerate(names.items()):
    at = [i for i, progress in enumerate(heard, 1) if progress.product == product]
    ax.bar(at, [heard[i - 1].done for i in at], width=0.85, color=f"C{j}", label=name)
ax.set_xlabel("blocks read")
ax.set_ylabel("rows read in this pass")
ax.set_ylim(0, 1.35 * steps)
ax.legend(loc="upper center", ncols=3)

# %%
# Each tooth is one pass over the file: one for the norm, to which the tolerance is relative, and
# two for each block of the basis. One block was enough here. ``passes`` counts them, because
# reading often takes most of the time. The error takes no extra pass: by Pythagoras its square is
# ‖A‖² − ‖QᵀA‖², and QᵀA is the product with the transpose.

U, S, Vh = found
assert len(heard) == found.passes * -(-steps // matrix.rows)
assert np.linalg.norm(A - (U * S) @ Vh) <= found.error_bound <= 1e-3 * np.linalg.norm(A)
del matrix, mapped, file
folder.cleanup()

plt.show()
