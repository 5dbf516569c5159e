"""What a basis leaves of A, in three ways: explicit, by energies, and known by samples alone.

In the coordinates of the unitary H, whose first k columns are the basis, the residual is
``E = (HᴴA)[k:]``, and ``‖E‖ = ‖A − QQᴴA‖`` in both norms. Each kind multiplies by E and by Eᴴ, and
takes a panel of orthonormal columns into the basis; they differ in what they know of ‖E‖_F.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._operator import Operator
from lowrank._panel import defect
from lowrank._rangefinder.basis import Basis
from lowrank._small_svd import norm_of_samples


class Error(NamedTuple):
    """``‖E‖_F``: what was computed, and a bound that lacks the rounding of the projection only."""

    estimate: float
    bound: float


def energy_rounding(shape: tuple[int, ...], epsilon: float) -> float:
    """What ``1 − ‖B‖²/‖A‖²`` may lose to rounding.

    With ``QᴴQ = I + Δ``, ``‖A − QB‖² = ‖A‖² − ‖B‖² + ⟨B, ΔB⟩`` for ``B = QᴴA``. Δ, the rounding of
    B and that of the two sums are of order √m eps, and no more than m eps, which sums of equal
    numbers come near to.
    """
    return max(4096.0, *map(float, shape)) * epsilon


@dataclass(frozen=True, slots=True, eq=False)
class Explicit:
    """``HᴴA`` kept whole: its first k rows are the factor B of ``A ≈ QB``, those below are E.

    An append writes into that array; the object from before it must not be used any more. Methods
    and `certificate`, the name of how ‖E‖ is known, are those of the other residuals.
    """

    array: Array
    basis: Basis
    norm: float  # ‖E‖_F
    drift: float = 0.0  # what the reflectors change of norms, since they are not quite unitary
    certificate: str = "exact"
    sample: tuple[Array, ...] = ()  # Ω and AΩ, where the tolerance is next to rounding

    @classmethod
    def of(cls, array: Array, basis: Basis, norm: float) -> "Explicit":
        """The residual of a basis, from A itself, which is overwritten."""
        found = cls(array, basis, norm)
        if not basis.blocks:
            return found
        for block in basis.blocks:
            block.apply_adjoint(array)
        change = 2.0 * abs(xa.matrix_norm_by_rows(array) - norm)
        drift = max(change, float(xa.safe_norm(defect(basis.columns()))) * norm)
        return replace(found, norm=xa.matrix_norm_by_rows(found._lower), drift=drift)

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
        """The residual after the orthonormal columns Q, in rows k and on, have joined the basis.

        Its reflectors are as far from unitary as the columns of Q are from orthonormal, and their
        products, where sums over equal numbers are biased, change the norm of what they act on.
        Both ways, by H and by Hᴴ: ``‖A − H HᴴA‖`` is twice the change of the norm in ``HᴴA`` where
        ``H Hᴴ − I`` points along A.
        """
        basis = self.basis.append(Q)
        basis.blocks[-1].apply_adjoint(self.array)
        k, r = self.basis.rank, basis.rank
        left, taken = xa.norms(self.array[r:, :], self.array[k:r, :])
        change = 2.0 * abs(math.hypot(left, taken) - self.norm)
        drift = self.drift + max(basis.departure * self.norm, change)
        return replace(self, basis=basis, norm=left, drift=drift)

    def lost(self) -> float:
        """A bound on ``‖A − H (HᴴA)‖_F``, for what is kept as HᴴA; 0 without a sample of A."""
        if not self.sample:
            return 0.0
        return norm_of_samples(self.sample[1] - self.basis.rotate(self.array @ self.sample[0]))

    def error(self) -> Error:
        """``‖E‖_F``, or None where only samples tell."""
        return Error(self.norm, self.norm * (1.0 + 32.0 * xa.eps(self.array)) + self.drift)

    def projection(self) -> Array:
        """``Bᴴ = AᴴQ``, n×k."""
        return xa.adjoint(self.array[: self.basis.rank, :])


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The residual by products with A: ``E X = (HᴴA X)[k:]`` and ``EᴴY = Aᴴ(H [0; Y])``.

    Every product with A is deflated. Without that, power iterations would fall back into the
    directions already found, and what is sought would be lost in rounding at the level of
    ε^{1/(2q+1)}.
    """

    A: Operator
    basis: Basis
    known: Array | None = None  # the first columns of AᴴQ, where they were computed on the way
    certificate: str = "sampled"

    def matmat(self, X: Array) -> Array:
        return self.basis.deflate(self.A.matmat(X))

    def rmatmat(self, Y: Array) -> Array:
        return self.A.rmatmat(self.basis.embed(Y))

    def append(self, Q: Array) -> "Sampled":
        return replace(self, basis=self.basis.append(Q, self.A.agreed))

    def error(self) -> None:
        return None

    def projection(self) -> Array:
        known = 0 if self.known is None else int(self.known.shape[-1])
        if self.known is not None and known == self.basis.rank:
            return self.known
        rest = self.A.rmatmat(self.basis.columns(known))
        return rest if self.known is None else self.A.xp.concat([self.known, rest], axis=-1)


@dataclass(frozen=True, slots=True, eq=False)
class ByEnergies:
    """``‖E‖² = ‖A‖² − ‖B‖²``, where ``B = QᴴA`` is computed with each block.

    True while that is well above what the difference of two sums loses to rounding.
    """

    products: Sampled  # which knows AᴴQ whole
    norm_A: float
    captured: float = 0.0  # ‖B‖²/‖A‖²
    certificate: str = "energy"

    @property
    def basis(self) -> Basis:
        return self.products.basis

    def matmat(self, X: Array) -> Array:
        return self.products.matmat(X)

    def rmatmat(self, Y: Array) -> Array:
        return self.products.rmatmat(Y)

    def append(self, Q: Array) -> "ByEnergies":
        return self.completed(self.products.append(Q))

    def completed(self, products: Sampled) -> "ByEnergies":
        """The same with more columns in the basis, whose rows of B are computed here."""
        A, before = products.A, products.known
        known = products.projection()
        C = known if before is None else known[..., before.shape[-1] :]
        R = C if A.domain is None else A.domain.orthonormalize(C).R
        part = float(xa.safe_norm(R)) / self.norm_A
        captured = self.captured + part * part
        return replace(self, products=replace(products, known=known), captured=captured)

    @property
    def rounding(self) -> float:
        return energy_rounding(self.products.A.shape, xa.eps(self.basis.empty))

    @property
    def is_canceled(self) -> bool:
        """Whether rounding is as large as what is left."""
        return 1.0 - self.captured <= self.rounding

    def error(self) -> Error:
        left = max(0.0, 1.0 - self.captured)
        bound = self.norm_A * math.sqrt(left + self.rounding)
        return Error(self.norm_A * math.sqrt(left), bound)

    def projection(self) -> Array:
        return self.products.projection()


Residual = Explicit | Sampled | ByEnergies


@dataclass(frozen=True, slots=True, eq=False)
class Orthonormal:
    """A basis that is known by its columns."""

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
    """The SVD of A itself, of which the first `rank` left singular vectors are the basis."""

    U: Array
    S: Array
    Vh: Array
    tails: Array  # the errors of all ranks from 0 on, in the chosen norm
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
