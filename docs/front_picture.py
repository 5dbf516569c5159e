"""The picture of the front page and the README: ``python docs/front_picture.py`` makes it anew."""

from importlib import resources
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from pictures import set_style

import lowrank
from lowrank import gallery

PICTURE = Path(__file__).parent / "_static" / "front.png"
METERS = 20


def main() -> None:
    with (resources.files("lowrank") / "data" / "elevation.npz").open("rb") as file:
        A = np.load(file)["elevation"].astype(float)
    m, n = A.shape
    unit = np.sqrt(m * n)
    found = lowrank.svd(A, atol=METERS * unit, rng=0)
    numbers = (m + n + 1) * found.rank / A.size

    set_style(None, None)
    fig, (measured, kept, errors) = plt.subplots(
        1, 3, figsize=(10, 3.4), dpi=120, width_ratios=(1, 1, 0.9)
    )
    limits = {"vmin": A.min(), "vmax": A.max(), "cmap": "gist_earth", "aspect": "auto"}
    measured.imshow(A, **limits)
    measured.set_title(f"a map of {m}×{n} heights")
    kept.imshow(found.reconstruct(), **limits)
    kept.set_title(f"within {METERS} m: rank {found.rank}, {numbers:.0%} of the numbers")
    for ax in (measured, kept):
        ax.set_xticks([])
        ax.set_yticks([])

    spectrum = np.linalg.svd(A, compute_uv=False)
    best = [gallery.best_error(spectrum, rank) / unit for rank in range(1, 81)]
    errors.semilogy(range(1, 81), best, color="black", label="best possible")
    for meters in (80, 60, 45, 35, 27, METERS, 15, 12):
        found = lowrank.svd(A, atol=meters * unit, rng=0)
        chosen = meters == METERS
        errors.plot(
            found.rank, found.error_bound / unit, "*" if chosen else "o", color="#d55e00",
            markersize=15 if chosen else 6, label="certified by svd" if chosen else None,
        )  # fmt: skip
    errors.axhline(METERS, color="gray", linewidth=1, linestyle="--")
    errors.set_xlabel("rank")
    errors.set_title("root mean square error in meters")
    errors.set_yticks([10, 20, 50, 100], ["10", "20", "50", "100"])
    errors.set_ylim(9, 130)
    errors.minorticks_off()
    errors.legend()
    fig.savefig(PICTURE, pil_kwargs={"optimize": True})


if __name__ == "__main__":
    main()
