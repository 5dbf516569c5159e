"""The results of all functions: frozen dataclasses, and how they are saved and loaded."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._array.arithmetic import in_full_precision
from lowrank._files import write_whole
from lowrank._operators import centered_product
from lowrank._operators.factored import Factored
from lowrank._outcome import Look, Outcome, Status, fields_of

__all__ = [
    "Approximation",
    "CURResult",
    "ConvergenceWarning",
    "EighResult",
    "ErrorEstimate",
    "IDResult",
    "Look",
    "Outcome",
    "QBResult",
    "QRResult",
    "RangeFinderResult",
    "SVDResult",
    "Status",
    "fields_of",
    "load",
    "size_of",
]

for _shared in (Look, Outcome, Status):
    _shared.__module__ = __name__  # the public name, for pickles and messages


class ConvergenceWarning(UserWarning):
    """The error bound of a result is above the tolerance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeFinderResult(Outcome):
    """Orthonormal basis of the range, ``A ≈ Q QᴴA`` (of the corange, ``A ≈ A Q Qᴴ``).

    Has the attributes of :class:`~lowrank.results.Outcome` too.

    Attributes
    ----------
    Q : array, shape (m, rank), or (n, rank) for the corange
    side : str
        ``"left"`` (range) or ``"right"`` (corange).
    """

    Q: Array = field(repr=False)
    side: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Approximation(Factored, Outcome):
    """A low-rank approximation of A, which can be used as a matrix.

    It can be multiplied from both sides (``found @ X``, ``X @ found``) by vectors, matrices and
    stacks of its library and device. The factors are multiplied one after the other: for rank r,
    shape m×n and p columns, 2pr(m + n) flops. Every function here that takes an operator accepts
    it, also :func:`~lowrank.residual_norm`, and so does SciPy's ``aslinearoperator``. With arrays
    of array-api-strict ``X @ found`` does not work: use ``found.adjoint() @ Xᴴ``.

    Has the attributes of :class:`~lowrank.results.Outcome` too.
    """

    _unpacked: ClassVar[tuple[str, ...]]  # names of the attributes that the result unpacks as

    def __iter__(self) -> Iterator[Array]:
        return (getattr(self, name) for name in self._unpacked)

    @property
    def factors(self) -> tuple[Array, ...]:
        """The factors, from left to right."""
        return tuple(self)

    def __repr__(self) -> str:
        xp, (arrays, _) = xa.array_namespace(self.factors[0]), self._parts()
        held = [X for X in arrays.values() if not xp.isdtype(X.dtype, "integral")]
        numbers = sum(math.prod(X.shape) for X in held)
        itemsize = xp.finfo(self.dtype).bits // 8 * (2 if xa.is_complex(self.factors[0]) else 1)
        said = f"{'×'.join(map(str, self.shape))} {self.dtype}, rank {self.rank}: "
        if self.error is not None:
            said += f"error {self.error:.2e}, at most {self.error_bound:.2e}"
            said += f" of {self.norm_A:.4g}; " if self.norm_A else "; "
        said += f"{size_of(numbers * itemsize)}, {numbers / max(1, math.prod(self.shape)):.2%} of A"
        return f"<{type(self).__name__} {said}; {self.status.name}>"

    def _parts(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """The arrays, and all other attributes."""
        rest = fields_of(self)
        names = [name for name, value in rest.items() if xa.is_array_api_obj(value)]
        return {name: rest.pop(name) for name in names}, rest

    def save(self, path: str | os.PathLike[str], /, *, replace: bool = True) -> None:
        """Write a file in NumPy's format npz, which :func:`lowrank.load` reads.

        The file has an entry for each array, named as the attribute, and an entry ``about`` with
        all other attributes, as JSON. Nothing is pickled. An existing file is replaced once the new
        one is complete; with ``replace=False`` it is kept, and a FileExistsError is raised.
        DTensors are gathered and written whole; all processes must call this method.
        """
        arrays, about = self._parts()
        about |= {"status": self.status.name, "kind": type(self).__name__}
        held = {name: xa.as_numpy(value) for name, value in arrays.items()}
        text = json.dumps(about)
        write_whole(path, lambda file: np.savez(file, about=text, **held), replace=replace)


def size_of(nbytes: int) -> str:
    """A readable number of bytes, such as "1.5 MiB"."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = min(max(nbytes.bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{nbytes / 2 ** (10 * power):.{0 if power == 0 else 1}f} {units[power]}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class QBResult(Approximation):
    """``A ≈ Q B`` with Q orthonormal and ``B = QᴴA``. Unpacks as ``Q, B``.

    Has the attributes of :class:`~lowrank.results.Approximation` too.

    Attributes
    ----------
    Q : array, shape (m, rank)
    B : array, shape (rank, n)
    """

    Q: Array
    B: Array

    _unpacked = ("Q", "B")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SVDResult(Approximation):
    """``A ≈ U diag(S) Vh``. Unpacks as ``U, S, Vh``.

    Has the attributes of :class:`~lowrank.results.Approximation` too.

    Attributes
    ----------
    U : array, shape (m, rank)
    S : array, shape (rank,)
        Singular values in descending order, real.
    Vh : array, shape (rank, n)
    mean : array, shape (n,), or None
        The mean of the rows, if ``center=True``: ``A − mean ≈ U diag(S) Vh``.
    """

    U: Array
    S: Array
    Vh: Array
    mean: Array | None = None

    _unpacked = ("U", "S", "Vh")

    @property
    def factors(self) -> tuple[Array, ...]:
        """``U diag(S)`` and Vh; a mean is added as one more column and row."""
        left, right = self.U * self.S[..., None, :], self.Vh
        if self.mean is not None:
            xp = xa.array_namespace(left)
            left = xp.concat([left, xa.ones((*left.shape[:-1], 1), left)], axis=-1)
            right = xp.concat([right, self.mean[..., None, :]], axis=-2)
        return left, right

    @property
    def explained_variance_ratio(self) -> Array:
        """``S² / ‖A‖_F²``, shape (rank,): share of each component, of ``A − mean`` if centered.

        For an operator, whose norm is a lower bound, it may be too large. Raises a ValueError if
        the norm is unknown, or the norm of the result is the spectral one.
        """
        if self.norm_A is None or self.norm != "fro":
            raise ValueError(
                "explained_variance_ratio needs the Frobenius norm of `A`: give norm='fro', and "
                "for an operator (also a centered sparse matrix) a tolerance."
            )
        return (self.S / self.norm_A) ** 2 if self.norm_A > 0.0 else self.S

    @in_full_precision
    def transform(self, X: Array, /) -> Array:
        """Coordinates ``(X − mean) Vhᴴ``, p×rank, of the p rows of an array or a sparse matrix."""
        V = xa.adjoint(self.Vh)
        return X @ V if self.mean is None else centered_product(X, self.mean[..., None, :], V)

    @in_full_precision
    def inverse_transform(self, Z: Array, /) -> Array:
        """The rows ``Z Vh + mean``, p×n, that have the coordinates Z, p×rank."""
        rows = Z @ self.Vh
        return rows if self.mean is None else rows + self.mean[..., None, :]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EighResult(Approximation):
    """``A ≈ V diag(w) Vᴴ`` for a Hermitian A. Unpacks as ``w, V``.

    Has the attributes of :class:`~lowrank.results.Approximation` too.

    Attributes
    ----------
    eigenvalues : array, shape (rank,)
        Real, the largest in absolute value first.
    eigenvectors : array, shape (n, rank)
        Orthonormal columns.
    """

    eigenvalues: Array
    eigenvectors: Array

    _unpacked = ("eigenvalues", "eigenvectors")

    @property
    def factors(self) -> tuple[Array, ...]:
        return self.eigenvectors * self.eigenvalues[..., None, :], xa.adjoint(self.eigenvectors)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IDResult(Approximation):
    """``A ≈ A[:, indices] @ coefficients``, or ``coefficients @ A[indices, :]`` of rows.

    Unpacks as ``indices, coefficients``. Has the attributes of
    :class:`~lowrank.results.Approximation` too.

    Attributes
    ----------
    indices : array of integers, shape (rank,)
        Indices of the chosen columns (rows) of A, all different.
    coefficients : array, shape (rank, n), or (m, rank) of rows
        The columns (rows) `indices` hold the identity.
    skeleton : array, shape (m, rank), or (rank, n) of rows
        The chosen columns (rows) of A.
    select : str
        ``"columns"`` or ``"rows"``.
    """

    indices: Array
    coefficients: Array
    skeleton: Array
    select: str

    _unpacked = ("indices", "coefficients")

    @property
    def factors(self) -> tuple[Array, ...]:
        pair = self.skeleton, self.coefficients
        return pair if self.select == "columns" else pair[::-1]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class CURResult(Approximation):
    """``A ≈ C U R`` with columns ``C = A[:, columns]`` and rows ``R = A[rows, :]`` of A.

    Unpacks as ``C, U, R``. Has the attributes of :class:`~lowrank.results.Approximation` too.

    Attributes
    ----------
    C : array, shape (m, rank)
    U : array, shape (rank, rank)
    R : array, shape (rank, n)
    columns, rows : array of integers, shape (rank,)
    """

    C: Array
    U: Array
    R: Array
    columns: Array
    rows: Array

    _unpacked = ("C", "U", "R")


def load(path: str | os.PathLike[str], /) -> Approximation:
    """Read a result that ``found.save(path)`` has written, with NumPy arrays.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    QBResult, SVDResult, EighResult, IDResult or CURResult
        With all attributes of the saved result.

    Raises
    ------
    ValueError
        If the file was not written by `save`.
    OSError
        If the file can't be read.

    Notes
    -----
    The format is NumPy's npz, without pickles: ``numpy.load`` reads it too. Arrays of other
    libraries are loaded as NumPy arrays.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import lowrank
    >>> found = lowrank.svd(lowrank.gallery.matrix([3.0, 2.0, 1.0], rng=0), 2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found.save(Path(folder) / "factors.npz")
    ...     lowrank.load(Path(folder) / "factors.npz").rank
    2
    """
    held: Any = {}
    with open(path, "rb") as stream, suppress(ValueError, AttributeError):
        held = dict(np.load(stream, allow_pickle=False).items())
    if "about" not in held:
        raise ValueError(f"{path} is not a file that the method `save` of a result has written.")
    about = json.loads(str(held.pop("about")))
    kinds: dict[str, Any] = {kind.__name__: kind for kind in Approximation.__subclasses__()}
    about["status"], kind = Status[about["status"]], kinds[about.pop("kind")]
    about["history"] = tuple(Look(*look) for look in about["history"])
    return kind(**about, **held)


@dataclass(frozen=True, slots=True)
class ErrorEstimate:
    """The norm of a residual, estimated from samples.

    Attributes
    ----------
    value : float
        The estimate; in the Frobenius norm its square is unbiased.
    upper_bound : float
        At least the true norm, except with probability `failure_probability`.
    norm : str
        ``"fro"`` or ``"spectral"``.
    samples : int
        Number of Gaussian vectors.
    failure_probability : float
        Probability that the true norm exceeds `upper_bound`.
    """

    value: float
    upper_bound: float
    norm: str
    samples: int
    failure_probability: float


class QRResult(NamedTuple):
    """``A = Q R``. Unpacks as ``Q, R``.

    Attributes
    ----------
    Q : array, shape (..., m, min(m, n)), or (..., m, m) if complete
        Orthonormal columns.
    R : array, shape (..., min(m, n), n), or (..., m, n) if complete
        Upper triangular, or trapezoidal.
    """

    Q: Array
    R: Array
