"""
A matrix that is never formed: the solution of a differential equation
======================================================================

A range finder needs only products of a matrix with vectors. To multiply by the inverse of a
differential operator, solve the equation; the entries of the inverse are not needed. This script
finds how heat sources on the left of a plate affect the temperature on its right.
"""

# %%
# The equation
# ------------
#
# A square plate, its edge kept at temperature zero, is heated by a source f, and the temperature u
# obeys −Δu = f. On a grid of 120×120 points the Laplacian becomes a sparse matrix L. SciPy factors
# it once; after that each solution costs little.

# sphinx_gallery_thumbnail_number = 2
import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

import lowrank

n = 120
x = np.arange(1, n + 1) / (n + 1)
second = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n)) * (n + 1) ** 2
unit = sparse.eye_array(n)
laplacian = sparse.csc_array(sparse.kron(second, unit) + sparse.kron(unit, second))
factors = splu(laplacian)

# Sources are allowed on the left, and the temperature is measured on the right.
column = np.repeat(x[None, :], n, axis=0).ravel()
sources = np.flatnonzero(column < 0.35)
sensors = np.flatnonzero(column > 0.5)

# %%
# An operator with two methods
# ----------------------------
#
# The matrix A maps the sources at the points on the left to the temperatures at the points on the
# right: it consists of those rows and columns of the inverse of L. An object with a shape, a dtype
# and two products represents it. The second product is with the conjugate transpose; it solves the
# equation with Lᵀ.


class Response:
    """Temperature at the sensors, given the sources."""

    shape = sensors.size, sources.size
    dtype = np.dtype(np.float64)

    def matmat(self, X):
        f = np.zeros((n * n, X.shape[1]))
        f[sources] = X
        return factors.solve(f)[sensors]

    def rmatmat(self, Y):
        f = np.zeros((n * n, Y.shape[1]))
        f[sensors] = Y
        return factors.solve(f, trans="T")[sources]


U, S, Vh = found = lowrank.svd(Response(), rtol=1e-8, rng=0, check=True)
print("shape", Response.shape, "rank", found.rank)
print(f"{found.products} solutions, in {found.passes} blocks")
assert found.converged

# %%
# ``check=True`` compares the two products on random vectors first. The usual mistake is an
# ``rmatmat`` that is not the adjoint. Without the check it raises no error and gives wrong factors.
#
# To store A would take 7200·5040 numbers, and 5040 solutions. To a relative error of 1e-8 it has
# rank 28: whatever the sources are, the temperature on the right is a combination of 28 patterns,
# and the last ones are weak.

fig, ax = plt.subplots(figsize=(7.2, 3.2))
# sphinx_gallery_start_ignore
fig.set_label(
    "Singular values relative to the first, on a logarithmic axis, against their number: 28 points "
    "that fall from 1 to 1e-8, at first by a factor of four each, later by 1.6."
)
# sphinx_gallery_end_ignore
ax.semilogy(np.arange(1, S.size + 1), S / S[0], "o")
ax.set_xlabel("number of the singular value")
ax.set_ylabel("singular value over the first")
assert S[9] < 1e-3 * S[0]

# %%
# The rank is small because heat flow smooths. A pattern that varies over a short distance on the
# left is averaged out on its path to the right; the finer the pattern, the faster. The pictures
# show the first four pairs of singular vectors: on the left the sources (a row of Vh), on the right
# the temperature that they cause (a column of U), each relative to its largest value. The number
# above each is the singular value, relative to the first.

fig, axes = plt.subplots(1, 4, figsize=(7.2, 2.8), sharey=True)
# sphinx_gallery_start_ignore
fig.set_label(
    "Four maps of the plate. In the left third are source patterns with one, two, three and four "
    "stripes of alternating sign from bottom to top, strongest at the edge of the region that "
    "faces the sensors; in the right half the temperatures that they cause, with as many stripes."
)
# sphinx_gallery_end_ignore
for j, ax in enumerate(axes):
    plate = np.full(n * n, np.nan)
    sign = np.sign(U[np.argmax(np.abs(U[:, j])), j])
    plate[sources] = sign * Vh[j] / np.abs(Vh[j]).max()
    plate[sensors] = sign * U[:, j] / np.abs(U[:, j]).max()
    shades = ax.imshow(plate.reshape(n, n), cmap="RdBu_r", vmin=-1, vmax=1, origin="lower",
                       extent=(0, 1, 0, 1))  # fmt: skip
    ax.set_title(f"{j + 1}: {S[j] / S[0]:.2g}")
    ax.set(xlabel="x")
    ax.set_xticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    ax.set_yticks([0, 0.5, 1], labels=["0", "0.5", "1"])
axes[0].set_ylabel("y")
fig.colorbar(shades, ax=axes, label="relative value", location="bottom", shrink=0.5, aspect=30)

# %%
# Use it
# ------
#
# The factors replace the solver. For a new source, two hot spots, two thin products give the
# temperature.

X, Y = np.meshgrid(x, x)
spots = np.exp(-(((X - 0.1) ** 2 + (Y - 0.8) ** 2) / 0.003))
spots += 0.5 * np.exp(-(((X - 0.25) ** 2 + (Y - 0.3) ** 2) / 0.003))
f = spots.ravel()[sources]
quick = U @ (S * (Vh @ f))
exact = Response().matmat(f[:, None])[:, 0]
difference = np.linalg.norm(quick - exact) / np.linalg.norm(f)
print(f"‖difference‖ {difference:.1e} for a source of norm 1, certified {found.error_bound:.1e}")
assert difference <= found.error_bound

# %%
# Eigenvalues, of a symmetric operator
# ------------------------------------
#
# With sources and sensors everywhere the matrix is the whole inverse of L, which is symmetric and
# positive definite. Its eigenvectors are the modes in which the plate cools down, the slowest
# first. ``lowrank.eigh`` needs only products with A, and several passes over it;
# ``lowrank.nystrom`` needs one pass. With 128 solutions each, their eigenvalues have these relative
# errors (the true ones are known here).


class Inverse:
    """Temperature everywhere, given the sources everywhere."""

    shape = n * n, n * n
    dtype = np.dtype(np.float64)

    def matmat(self, X):
        return factors.solve(np.ascontiguousarray(X))


sines = (2 * (n + 1) * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1)))) ** 2
exact = np.sort(1 / (sines[:, None] + sines), axis=None)[::-1][:6]
two_sided = lowrank.eigh(Inverse(), 6, krylov=True, rng=0)
one_pass = lowrank.nystrom(Inverse(), 6, oversampling=122, rng=0)
print("exact    eigh      nystrom")
for value, eigh, nystrom in zip(exact, two_sided.eigenvalues, one_pass.eigenvalues, strict=True):
    print(f"{value:.5f}  {eigh / value - 1:8.1e}  {nystrom / value - 1:8.1e}")
print(f"{two_sided.products} and {one_pass.products} solutions")
assert np.allclose(two_sided.eigenvalues, exact, rtol=1e-6)
assert np.all(one_pass.eigenvalues < exact)

# %%
# One pass cannot match a Krylov space from several: for eigenvalues that decay as slowly as these,
# ``nystrom`` is too small by a tenth to a third. It is meant for kernel matrices, whose eigenvalues
# decay fast.

plt.show()
