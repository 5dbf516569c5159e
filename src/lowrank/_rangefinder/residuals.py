"""The residual of a basis, in three forms: as an array, by energies, and by samples.

H is the unitary matrix whose first k columns are the basis Q. In its coordinates the residual is
``E = (HᴴA)[k:]``, and ``‖E‖ = ‖A − QQᴴA‖`` in both norms. Each form multiplies by E and by Eᴴ, and
appends a panel of orthonormal columns to the basis. They differ in how they know ‖E‖_F.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg.panel import defect
from lowrank._linalg.small_svd import norm_of_samples
from lowrank._operators import Operator
from lowrank._rangefinder.basis import Basis


class Error(NamedTuple):
    """``‖E‖_F`` as computed, and a bound on it, without the rounding floor of the projection."""

    estimate: float
    bound: float


def energy_error(A: Operator, norm: float, left: float) -> Error:
    """``√(‖A‖² − ‖B‖²)`` for ‖A‖ and ``left = 1 − ‖B‖²/‖A‖²``."""
    left = max(0.0, left)
    return Error(norm * math.sqrt(left), norm * math.sqrt(left + energy_rounding(A)))


def energy_rounding(A: Operator) -> float:
    """A bound on the rounding error of ``1 − ‖B‖²/‖A‖²``.

    With ``QᴴQ = I + Δ`` and ``B = QᴴA``, ``‖A − QB‖² = ‖A‖² − ‖B‖² + ⟨B, ΔB⟩``. Δ, and the rounding
    errors of B and of the two sums, are of order √m eps, and at most about m eps. Sums of equal
    numbers come near that.
    """
    return max(4096.0, *map(float, A.shape)) * xa.eps(A.empty(0))


@dataclass(frozen=True, slots=True, eq=False)
class Explicit:
    """``HᴴA`` as an array: its first k rows are the factor B of ``A ≈ QB``, the rows below are E.

    `append` writes into this array, so the old object must not be used after it. The methods,
    and `certificate` (the name of how ‖E‖ is known), are shared by all residuals.
    """

    array: Array
    basis: Basis
    norm: float  # ‖E‖_F
    drift: float = 0.0  # how much reflectors, not exactly unitary, may have changed the norm
    certificate: str = "exact"
    sample: tuple[Array, ...] = ()  # Ω and AΩ, if the tolerance is near rounding

    @classmethod
    def of(cls, array: Array, basis: Basis, norm: float) -> "Explicit":
        """The residual of a basis, made from an array of A, which is overwritten."""
        found = cls(array, basis, norm)
        if not basis.blocks:
            return found
        for block in basis.blocks:
            array = block.apply_adjoint(array)
        change = 2.0 * abs(xa.matrix_norm_by_rows(array) - norm)
        drift = max(change, float(xa.safe_norm(defect(basis.columns()))) * norm)
        found = replace(found, array=array, drift=drift)
        return replace(found, norm=xa.matrix_norm_by_rows(found._lower))

    @property
    def _lower(self) -> Array:
        return self.array[self.basis.rank :, :]

    def matmat(self, X: Array) -> Array:
        """``E X``."""
        return self._lower @ X

    def rmatmat(self, Y: Array) -> Array:
        """``Eᴴ Y``."""
        return xa.adjoint_matmul(self._lower, Y)

    def append(self, Q: Array) -> "Explicit":
        """The residual after the orthonormal columns Q (in rows k and below) joined the basis.

        The new reflectors are as far from unitary as the columns of Q are from orthonormal.
        Biased rounding, in sums of equal numbers, also changes the norm of the array they are
        applied to. The change counts twice: where ``H Hᴴ − I`` points along A, ``‖A − H HᴴA‖`` is
        twice the change of the norm in ``HᴴA``.
        """
        basis = self.basis.append(Q)
        array = basis.blocks[-1].apply_adjoint(self.array)
        k, r = self.basis.rank, basis.rank
        left, taken = xa.norms(array[r:, :], array[k:r, :])
        change = 2.0 * abs(math.hypot(left, taken) - self.norm)
        drift = self.drift + max(basis.departure * self.norm, change)
        return replace(self, array=array, basis=basis, norm=left, drift=drift)

    def lost(self) -> float:
        """A bound on ``‖A − H (HᴴA)‖_F``, for the stored HᴴA; 0 without a sample of A."""
        if not self.sample:
            return 0.0
        return norm_of_samples(self.sample[1] - self.basis.rotate(self.array @ self.sample[0]))

    def error(self) -> Error:
        """``‖E‖_F``; other residuals return None if only samples measure it."""
        return Error(self.norm, self.norm * (1.0 + 32.0 * xa.eps(self.array)) + self.drift)

    def projection(self) -> Array:
        """``Bᴴ = AᴴQ``, n×k."""
        return xa.adjoint(self.array[: self.basis.rank, :])

    def last_rows(self) -> Array:
        """``AᴴQ_j``, the rows of B that the last block Q_j of the basis added, as columns."""
        return xa.adjoint(self.array[self.basis.blocks[-1].start : self.basis.rank, :])


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """The residual by products with A: ``E X = (HᴴA X)[k:]`` and ``EᴴY = Aᴴ(H [0; Y])``.

    Every product with A is deflated. Otherwise power iterations would return to the directions
    already found, and new ones below ε^{1/(2q+1)} would be lost in rounding.
    """

    A: Operator
    basis: Basis
    known: Array | None = None  # the first columns of AᴴQ, as far as they are computed

    def matmat(self, X: Array) -> Array:
        return self.basis.deflate(self.A.matmat(X))

    def rmatmat(self, Y: Array) -> Array:
        return self.A.rmatmat(self.basis.embed(Y))

    def projection(self) -> Array:
        known = 0 if self.known is None else int(self.known.shape[-1])
        if self.known is not None and known == self.basis.rank:
            return self.known
        rest = self.A.rmatmat(self.basis.columns(known))
        return rest if self.known is None else self.A.xp.concat([self.known, rest], axis=-1)


@dataclass(frozen=True, slots=True, eq=False)
class Sampled(Products):
    """The residual by products, of a norm that only samples measure."""

    certificate: str = "sampled"

    def append(self, Q: Array) -> "Sampled":
        return replace(self, basis=self.basis.append(Q, self.A.agreed))

    def error(self) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByEnergies(Products):
    """``‖E‖² = ‖A‖² − ‖B‖²``, where ``B = QᴴA`` is extended with each block.

    Valid while the difference is well above its rounding error.
    """

    norm_A: float
    captured: float = 0.0  # ‖B‖²/‖A‖²
    certificate: str = "energy"

    def append(self, Q: Array) -> "ByEnergies":
        return replace(self, basis=self.basis.append(Q, self.A.agreed)).completed()

    def completed(self) -> "ByEnergies":
        """The residual with all rows of B: those that are not known yet are computed."""
        known, before, domain = self.projection(), self.known, self.A.domain
        C = known if before is None else known[..., before.shape[-1] :]
        R = C if domain is None else domain.orthonormalize(C).R
        part = float(xa.safe_norm(R)) / self.norm_A
        return replace(self, known=known, captured=self.captured + part * part)

    @property
    def is_canceled(self) -> bool:
        """Whether the rounding error is as large as the remaining energy."""
        return 1.0 - self.captured <= energy_rounding(self.A)

    def error(self) -> Error:
        return energy_error(self.A, self.norm_A, 1.0 - self.captured)


Residual = Explicit | Sampled | ByEnergies


@dataclass(frozen=True, slots=True, eq=False)
class Orthonormal:
    """A basis stored as its columns."""

    Q: Array

    @property
    def rank(self) -> int:
        return int(self.Q.shape[-1])

    def lift(self, X: Array) -> Array:
        return self.Q @ X

    def columns(self, start: int = 0) -> Array:
        return xa.array_namespace(self.Q).asarray(self.Q[..., start:], copy=True)


@dataclass(frozen=True, slots=True, eq=False)
class FullSVD:
    """The SVD of A itself; the basis is its first `rank` left singular vectors."""

    U: Array
    S: Array
    Vh: Array
    tails: Array  # the error of each rank 0, 1, …, in the chosen norm
    rounding: float
    rank: int
    certificate: str = "exact"

    @property
    def basis(self) -> Any:
        return Orthonormal(self.U[:, : self.rank])

    def error(self) -> Error:
        tail = float(self.tails[self.rank])
        return Error(tail, tail * (1.0 + 32.0 * xa.eps(self.S)) + self.rounding)

    def projection(self) -> Array:
        xp, r = xa.array_namespace(self.S), self.rank
        return xa.adjoint(xp.astype(self.S[:r], self.Vh.dtype)[:, None] * self.Vh[:r, :])
