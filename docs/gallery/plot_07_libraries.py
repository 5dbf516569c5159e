"""
The same script on NumPy, PyTorch, CuPy and JAX
===============================================

Results have the library, the device and the dtype of the input. This script runs one function on
every array library that is installed.
"""

# %%
# The function below does not depend on the array library. ``xp`` is the module itself: in a script
# of yours, ``import numpy as xp`` or ``import torch as xp`` would be the only difference.

import importlib
import warnings

import matplotlib.pyplot as plt

import lowrank
from lowrank import gallery

TOLERANCES = [10.0**-j for j in range(1, 14)]
spectrum = gallery.fast(200)


def errors(xp, dtype, device=None):
    """For each tolerance: whether it was certified, bound and true error relative to ‖A‖."""
    A = gallery.matrix(spectrum, (300, 200), xp=xp, dtype=dtype, device=device, rng=0)
    norm_A = float(xp.linalg.norm(A))
    rows = []
    for rtol in TOLERANCES:
        U, S, Vh = found = lowrank.svd(A, rtol=rtol, rng=0)
        assert (type(U), U.dtype, U.device) == (type(A), A.dtype, A.device)
        true = float(xp.linalg.norm(A - (U * S) @ Vh))
        rows.append((found.converged, found.error_bound / norm_A, true / norm_A))
    return rows


# %%
# A library that is missing, or has no device, is skipped. If there is a GPU, PyTorch runs on it
# too: the matrix is created there, and all work is done there.


def places():
    yield "NumPy", importlib.import_module("numpy"), None
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("no PyTorch here")
    else:
        yield "PyTorch, CPU", torch, "cpu"
        if torch.cuda.is_available():
            yield "PyTorch, GPU", torch, "cuda"
    try:
        cupy = importlib.import_module("cupy")
        cupy.cuda.runtime.getDeviceCount()
    except Exception:
        print("no CuPy here, or no GPU for it")
    else:
        yield "CuPy, GPU", cupy, None
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        print("no JAX here")
    else:
        jax.config.update("jax_enable_x64", True)  # otherwise JAX has no float64
        yield f"JAX, {jax.default_backend().upper()}", jax.numpy, None


found = {}
with warnings.catch_warnings():
    # Some of these tolerances are out of reach, and that is shown below.
    warnings.simplefilter("ignore", lowrank.ConvergenceWarning)
    for name, xp, device in places():
        for bits in (32, 64):
            found[name, bits] = errors(xp, getattr(xp, f"float{bits}"), device)

print("smallest tolerance that was certified:")
for (name, bits), rows in found.items():
    certified = [rtol for rtol, row in zip(TOLERANCES, rows, strict=True) if row[0]]
    print(f"    {name:13} float{bits}  {min(certified):.0e}")

# %%
# Under ``jax.jit``
# -----------------
#
# At a fixed rank, ``range_finder``, ``qb``, ``svd``, ``nystrom`` and ``qr`` can be traced by JAX
# with ``check_finite=False``: the whole call becomes one compiled program, which also works on
# stacks by ``jax.vmap``. A tolerance depends on values, so it cannot be traced.

try:
    jax = importlib.import_module("jax")
except ImportError:
    print("no JAX here")
else:
    A = gallery.matrix(spectrum, (300, 200), xp=jax.numpy, dtype="float32", rng=0)

    @jax.jit
    def leading(A, key):
        return lowrank.svd(A, 10, check_finite=False, rng=key)

    traced = leading(A, jax.random.key(0))
    print("singular values:", traced.S)
    assert abs(traced.S - spectrum[:10]).max() < 1e-4 * spectrum[0]

# %%
# What may differ
# ---------------
#
# The libraries draw different random numbers from the same seed, so the factors differ a little,
# within the tolerance. But every certificate must hold. In the picture, the true errors of
# certified results lie below the diagonal, where error and tolerance are equal.

fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.8), sharex=True, sharey=True)
# sphinx_gallery_start_ignore
fig.set_label(
    "True error against tolerance, both logarithmic, in a panel for float32 and one for float64. "
    "All certified results, full markers, lie just below the diagonal, for each library alike. In "
    "float32 tolerances from 1e-6 on are not certified: empty markers, with errors of about 1e-6. "
    "In float64 all down to 1e-13 are."
)
# sphinx_gallery_end_ignore
for ax, bits in zip(axes, (32, 64), strict=True):
    ax.loglog([1e-14, 1], [1e-14, 1], color="0.6", linewidth=1)
    series = [(name, rows) for (name, b), rows in found.items() if b == bits]
    for j, (name, rows) in enumerate(series):
        shift = 1.7 ** (j - (len(series) - 1) / 2)
        for rtol, (converged, bound, true) in zip(TOLERANCES, rows, strict=True):
            ax.plot(rtol * shift, true, "osD^"[j], color=f"C{j}", ms=4.5,
                    mfc=f"C{j}" if converged else "none")  # fmt: skip
            assert not converged or true <= bound <= rtol
        ax.plot([], [], "osD^"[j], color=f"C{j}", label=name)
    ax.plot([], [], "o", color="0.4", mfc="none", label="not certified")
    ax.set_title(f"float{bits}")
    ax.set_xlabel("tolerance, relative to ‖A‖")
axes[0].set_ylabel("true error, relative to ‖A‖")
axes[0].set_xticks([1e-1, 1e-4, 1e-7, 1e-10, 1e-13])
axes[0].minorticks_off()
axes[0].invert_xaxis()
axes[1].legend(loc="lower left")

# %%
# In float32 no library can certify much less than 1e-5: entries are rounded to 6e-8, and the errors
# of many entries add up. The result says so (``converged`` is False, the status is
# ``PRECISION_FLOOR``), and a warning is raised. For a smaller error, pass the matrix in float64.

for rows in found.values():
    assert rows[3][0]  # 1e-4, in either precision

plt.show()
