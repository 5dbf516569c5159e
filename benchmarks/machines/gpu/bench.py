"""What the parts share: matrices, and how a group of rows is measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.common import devices, measuring
from benchmarks.common.accuracy import accuracy, parts
from benchmarks.common.measuring import REPEATS, Budget, Call, told
from benchmarks.common.results import Results
from benchmarks.machines.gpu import model
from lowrank import gallery

Shape = tuple[int, int]
Calls = list[Call]
PRODUCT, PRODUCTS = "A@Omega", "A@Omega, then AᴴQ"
# The longest for one group of rows (seconds).
GROUP_SECONDS = 40.0


def decay(n: int, k: int) -> torch.Tensor:
    """Singular values that fall from 1 to 1e-4 over 2k of them."""
    return 10.0 ** (-4.0 * torch.arange(min(2 * k, n), dtype=torch.float64) / (2 * k))


# Singular values of n, by the rank k that is asked for, and the noise relative to their norm.
SPECTRA: dict[str, tuple[Callable[[int, int], torch.Tensor], float]] = {
    "fast": (decay, 1e-5),
    "panel, fast": (lambda n, _: 10.0 ** (-10.0 * torch.arange(n) / n), 0.0),
    "1/j": (lambda n, _: 1.0 / torch.arange(1, n + 1), 0.0),
    "1/j²": (lambda n, _: torch.arange(1, n + 1) ** -2.0, 0.0),
    "exp(−j/7)": (lambda n, _: torch.exp(-torch.arange(min(n, 200)) / 7.0), 0.0),
    "decay + 8 % noise": (lambda n, _: torch.exp(-torch.arange(min(n, 200)) / 12.0), 0.08),
}


@dataclass
class Bench:
    """What all parts of the run share."""

    device: torch.device
    sizes: str
    results: Results
    budget: Budget
    constants: dict[str, float]
    predicted_by: str

    def matrix(self, spectrum: str, shape: Shape, k: int, dtype: str) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(1)
        kind = getattr(torch, dtype)
        options = {"dtype": torch.float32 if kind.itemsize == 2 else kind, "device": self.device}
        if spectrum == "flat":
            return torch.randn(*shape, generator=generator, **options).to(kind)
        if spectrum == "Gram":
            C = self.matrix("flat", (4 * k, k), k, dtype)
            return C.mT @ C
        if spectrum == "positive":
            C = self.matrix("fast", shape, k, "complex128" if kind.is_complex else "float64")
            # and so much of the identity that it stays so when it is rounded to half precision
            return (C.mH @ C + 3e-3 * torch.eye(len(C), device=self.device)).to(kind)
        values, noise = SPECTRA[spectrum]
        s = values(min(shape), k)
        A = gallery.matrix(s.tolist(), shape, xp=torch, rng=generator, **options)
        scale = noise * float(torch.linalg.vector_norm(s)) / math.sqrt(A.numel())
        for block in A.split(2048) if noise else ():  # the noise need not be as large as A
            block.add_(torch.randn(*block.shape, generator=generator, **options), alpha=scale)
        return A.to(kind)

    def measure(
        self,
        section: str,
        calls_of: Callable[[Any], Calls],
        dtype: str,
        shape: Shape | None,
        k: int | None,
        spectrum: str | None,
        *,
        arrays: str = "torch",
        through: str | None = None,
        **columns: Any,
    ) -> None:
        """Rows of the calls on one matrix; a single one that says why, where that fails."""
        group = {"section": section, "arrays": arrays, "dtype": dtype, **columns}
        group |= {"shape": shape and list(shape), "k": k, "spectrum": spectrum}
        budget = self.budget.part(at_most=GROUP_SECONDS)
        A, calls = None, []
        try:
            if budget.left() < 1.0:
                raise TimeoutError("no time left")
            if shape is not None:
                special = f"{section}, {spectrum}"
                A = self.matrix(special if special in SPECTRA else spectrum, shape, k or 0, dtype)
            calls = calls_of(A)
            judge = partial(self.judge, A, group, through)
            how = {"budget": budget, "repeats": 2 if section == "functions" else REPEATS}
            synchronize = partial(devices.synchronize, self.device)
            measuring.measure(self.results, group, calls, judge, synchronize, **how)
        except Exception as error:  # out of memory, mostly
            self.results.add(**group, library="all", method="all", skipped=told(error))
        del A, calls
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def judge(
        self, A: Any, group: Any, through: str | None, call: Call, result: Any, medians: Any
    ) -> dict[str, Any]:
        """The columns of a row beside its times; what fails is noted, and costs no others."""
        columns: dict[str, Any] = {"converged": getattr(result, "converged", None)}
        if call.base == f"torch {PRODUCT}" and call.base in medians:
            products = getattr(result, "products", call.products * group["k"]) / group["k"]
            base, both = medians[call.base], medians.get(f"torch {PRODUCTS}", math.nan)
            base += (products - 1.0) * max(0.0, both - base) if products > 1.0 else 0.0
            ratio = medians[call.name] / base
            columns |= {"products": products, "ratio": None if math.isnan(ratio) else ratio}
        try:
            through = through or ("array API" if call.library == "lowrank" else "torch")
            if not call.once and "cupy" not in group["arrays"]:
                columns |= self.counts(call, through)
            if A is not None:
                columns |= accuracy(A, tuple(map(as_torch, parts(result))))
            if call.method in ("interpolative", "cur"):
                columns["orthogonality"] = None  # of columns of A
        except Exception as error:
            columns["note"] = told(error)
        return columns

    def counts(self, call: Call, through: str) -> dict[str, Any]:
        """What one more run launches, reads and allocates, and the prediction that follows."""
        found: dict[str, Any] = {}
        peak = devices.peak_bytes(
            lambda: found.update(model.counted(partial(call.run, 0), through)), self.device
        )
        predicted = model.predicted(found["work"], self.constants)
        by = self.predicted_by
        return {**found, "peak_bytes": peak, "predicted": predicted, "predicted_by": by}


def as_torch(X: Any) -> torch.Tensor:
    return X if isinstance(X, torch.Tensor) else torch.from_dlpack(cupy().ascontiguousarray(X))


def cupy() -> Any:
    import cupy  # noqa: PLC0415

    return cupy
