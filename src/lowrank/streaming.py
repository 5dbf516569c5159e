"""A matrix that is never stored: its linear sketches, a low-rank approximation, and the error."""

from typing import Any

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._array.arithmetic import in_full_precision
from lowrank._linalg import single_pass
from lowrank._operators import Operator, as_operator, located
from lowrank._operators.checks import as_count
from lowrank.results import ErrorEstimate, Status, SVDResult

__all__ = ["SketchedMatrix"]

_Factors = single_pass.Factors  # older pickles name it


class SketchedMatrix(single_pass.Sketches):
    """A matrix known by linear sketches: updated in pieces, approximated at the end.

    It starts as zero. Updates ``A ← θA + ηH`` may be whole matrices, low-rank terms or blocks of
    rows, in any order. Each piece is read once, when it is given, and not stored. :meth:`svd`
    returns an approximation with an estimate and a bound of its error. It does not change the
    object, so that updates can go on.

    Parameters
    ----------
    shape : (int, int)
        Shape m×n of the matrix.
    rank : int
        Rank of the approximation; the sketches are sized for it.
    dtype : dtype, optional
        A dtype of the library of `like`. Default: that of `like`, or float64.
    like : array, optional
        The sketches get the library and device of this array; NumPy by default.
    sketch_size : int, optional
        Columns k of the sketches of range and corange; 4·rank + 1 by default (4·rank if complex),
        and at most min(m, n).
    core_size : int, optional
        Rows and columns s of the core sketch, at least k; 2k + 1 by default (2k if complex).
    error_rows : int, optional
        Rows q of the sketch that measures the error; 64 by default (32 if complex), for a bound
        within a factor of 2.2. Ten are enough for the estimate, but the bound is then too loose.
    rng : None, int, numpy.random.Generator or native generator
        As in SPEC 7. To merge sketches, give all of them the same integer, library and device
        model.
    failure_probability : float
        Probability that any error bound of this object is too small; see Notes.

    Attributes
    ----------
    shape : (int, int)
    rank, sketch_size, core_size, error_rows : int
    norm : float
        Estimate of ‖A‖_F; its square is unbiased.

    Raises
    ------
    TypeError
        If `like` is not an array, or the dtype is not float32, float64, complex64 or complex128.
    ValueError
        If a size or the failure probability is out of range.

    Notes
    -----
    The sketches are ``Y = AΩ`` (m×k), ``X = ΥA`` (k×n), ``Z = ΦAΨᴴ`` (s×s) and ``W = ΘA`` (q×n),
    with independent Gaussian test matrices. With orthonormal bases Q of Y and P of Xᴴ,
    ``Â = Q C Pᴴ`` and ``C = (ΦQ)⁺ Z ((ΨP)⁺)ᴴ``, truncated to the rank. With α = 1 (0 if complex)
    and s ≥ 2k + α the expectation of ``‖A − Â‖²_F``, before the truncation, is at most
    ``(s − α)/(s − k − α) · (k + ρ − α)/(k − ρ − α)`` times the squared error of the best
    approximation of rank ρ, for every ρ < k − α. The truncation adds to the error at most the best
    error of its rank, and the error before the truncation once more.

    Memory: (m + n)(k + s) + qm entries of test matrices, which are stored, and (m + n)k + qn + s²
    of sketches. With the defaults for rank r that is about (16r + 69)(m + n) numbers (16r + 32 if
    complex): less than the matrix itself if m and n exceed twice that factor.

    The error is measured with Θ, which is independent of Â: the square of ``‖Θ(A − Â)‖_F/√q`` is
    unbiased, and for a single rank the bound is that of :func:`residual_norm`. So that a rank can
    be chosen by the bounds, all of them hold together: there are k + 1 ranks, and each gets one
    (k + 1)-th of the failure probability of a state. The j-th state of the matrix for which errors
    are computed gets 1/(j(j + 1)) of `failure_probability`; these sum to all of it. So you may ask
    for the error of any state and rank, in any order, and stop depending on the answer. But the
    updates, and the times when you ask, must not depend on earlier answers: if you subtract an
    approximation that this object returned, the matrix depends on Θ, and there is no bound.

    Bounds include a term for rounding, also of pieces that were added and canceled again, or are
    too small to change a sketch. It grows with each update, in float32 by about 3e-7 of the norm.

    Does not support derivatives or stacks. Objects can be deep-copied and pickled where arrays can.

    References
    ----------
    J. A. Tropp, A. Yurtsever, M. Udell and V. Cevher, Streaming low-rank matrix approximation with
    an application to scientific simulation, 2019, doi:10.1137/18M1201068 (arXiv 1902.08651).

    Examples
    --------
    >>> import numpy as np
    >>> import lowrank
    >>> rng = np.random.default_rng(0)
    >>> U, V = rng.standard_normal((2, 1000, 3))
    >>> sketch = lowrank.SketchedMatrix((1000, 1000), rank=3, rng=1)
    >>> for start in range(0, 1000, 100):
    ...     rows = U[start : start + 100] @ V.T
    ...     sketch = sketch.update_rows(start, rows)
    >>> found = sketch.svd()
    >>> bool(np.linalg.norm(U @ V.T - (found.U * found.S) @ found.Vh) <= found.error_bound)
    True
    >>> found.error_bound < 1e-10 * sketch.norm
    True
    """

    def __repr__(self) -> str:
        m, n = self.shape
        sizes = f"sketch_size={self.sketch_size}, core_size={self.core_size}"
        return f"SketchedMatrix({m}×{n}, rank={self.rank}, {sizes}, norm={self.norm:.3g})"

    @in_full_precision
    def update(self, H: Any, /, *, theta: complex = 1.0, eta: complex = 1.0) -> "SketchedMatrix":
        """``A ← theta·A + eta·H``, and return the object.

        Parameters
        ----------
        H : array, sparse matrix or operator, shape (m, n)
            With the library, device and dtype of the sketches (float16 and bfloat16 for float32).
            It is multiplied from the right and from the left: 2mn(2k + s + q) flops if dense, one
            call each of `matmat` and `rmatmat` for an operator.
        theta, eta : number
            Complex only if the sketches are.

        Raises
        ------
        TypeError
            If H has another library, device or dtype, or a number is complex and the sketches are
            real.
        ValueError
            If H has another shape, or H or a number is not finite. The object is then unchanged.

        Notes
        -----
        Every update reads two numbers from the device.
        """
        return self._add("H", _as_operator(H, "H", self._Y, self.shape), theta, eta)

    @in_full_precision
    def update_rank_one(
        self, u: Array, v: Array, /, *, theta: complex = 1.0, eta: complex = 1.0
    ) -> "SketchedMatrix":
        """``A ← theta·A + eta·u vᴴ``, and return the object; `u` and `v` may have several columns.

        Parameters
        ----------
        u, v : array, shapes (m,) and (n,), or (m, j) and (n, j)
        theta, eta : number
            Complex only if the sketches are.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`update`.

        Notes
        -----
        2j(m + n)(2k + s + q) flops, and 2m(s + k)·j for the core, for j columns.
        """
        u, v = (_as_columns(X, name, self._Y) for X, name in ((u, "u"), (v, "v")))
        (m, n), j = self.shape, u.shape[1]
        if (u.shape[0], v.shape[0], v.shape[1]) != (m, n, j):
            raise ValueError(
                f"`u` and `v` must have {m} and {n} rows, and as many columns, got shapes "
                f"{tuple(u.shape)} and {tuple(v.shape)}."
            )
        product = located(
            u,
            self.shape,
            matmat=lambda X: u @ xa.adjoint_matmul(v, X),
            rmatmat=lambda X: v @ xa.adjoint_matmul(u, X),
        )
        return self._add("u vᴴ", product, theta, eta)

    @in_full_precision
    def update_rows(self, start: int, block: Any, /, *, eta: complex = 1.0) -> "SketchedMatrix":
        """Add ``eta·block`` to the rows of A from `start` on, and return the object.

        Parameters
        ----------
        start : int
        block : array, sparse matrix or operator, shape (b, n)
        eta : number
            Complex only if the sketches are.

        Raises
        ------
        TypeError, ValueError
            As for :meth:`update`.

        Notes
        -----
        2bn(2k + s + q) + 2bs² flops and n(k + q) additions, independent of m. So blocks of many
        rows are cheaper than single rows.
        """
        start = as_count(start, "start")
        operator = _as_operator(block, "block", self._Y, None)
        end = start + operator.shape[0]
        if operator.shape[1] != self.shape[1] or end > self.shape[0]:
            raise ValueError(
                f"`block` must have {self.shape[1]} columns and end within the {self.shape[0]} "
                f"rows, got shape {operator.shape} at row {start}."
            )
        return self._add("block", operator, 1.0, eta, slice(start, end))

    @in_full_precision
    def merge(self, other: Any, /) -> "SketchedMatrix":
        """Add the matrix of another object to this one, and return this one.

        It combines sketches of parts of a matrix, made with the same seed and sizes, for instance
        by other processes.

        Raises
        ------
        TypeError
            If `other` is not a SketchedMatrix, or has another library, device or dtype.
        ValueError
            If its shape, sizes or test matrices differ; give both the same integer as `rng`.
        """
        if not isinstance(other, SketchedMatrix):
            raise TypeError(f"`other` must be a SketchedMatrix, got {type(other).__name__}.")
        xa.same_place(self._Y, other._Y, names=("self", "other"))
        xp, tests = xa.array_namespace(self._Y), ("_right", "_left", "_core")
        pairs = ((getattr(self, test), getattr(other, test)) for test in tests)
        if not all(X.shape == T.shape and bool(xp.all(X == T)) for X, T in pairs):
            raise ValueError(
                f"only sketches with the same test matrices can be merged, got {self} and {other}; "
                "make both with the same shape, sizes and integer `rng`."
            )
        lost = other._added
        self._combine("other", 1.0, 1.0, other._Y, other._XW, other._Z, slice(None))
        self._added += lost
        return self

    @in_full_precision
    def svd(self, rank: int | None = None) -> SVDResult:
        """Truncated SVD of the approximation, with its estimated error and a bound on it.

        Parameters
        ----------
        rank : int, optional
            By default the `rank` of the object; at most `sketch_size`. The result is the leading
            part of the approximation with all `sketch_size` columns.

        Returns
        -------
        SVDResult
            Unpacks as ``U, S, Vh``. `error` and `error_bound` are those of ‖A − U diag(S) Vh‖_F;
            `norm_A` is an estimate.

        Raises
        ------
        ValueError
            If the rank exceeds the sketch size.

        Notes
        -----
        About 10(m + n)k² + 2(m + n)ks + 4nkq flops after an update; almost none if there was no
        update since the last call.
        """
        estimate, wanted = self.error(rank), self.rank if rank is None else rank
        r = min(wanted, *self.shape)
        U, S, Vh, *_ = self._solved()
        return SVDResult(
            U=xa.array_namespace(U).asarray(U[:, :r], copy=True),
            S=xa.array_namespace(S).asarray(S[:r], copy=True),
            Vh=xa.array_namespace(Vh).asarray(Vh[:r, :], copy=True),
            status=Status.FULL_RANK if wanted > r else Status.RANK_REACHED,
            error=estimate.value, error_bound=estimate.upper_bound, certificate="sampled",
            norm_A=self.norm, rank=r, passes=1,
            products=self._right.shape[1] + self._left.shape[1],
        )  # fmt: skip

    @in_full_precision
    def error(self, rank: int | None = None) -> ErrorEstimate:
        """The error of :meth:`svd` for this rank, in the Frobenius norm.

        Parameters
        ----------
        rank : int, optional
            As for :meth:`svd`.

        Returns
        -------
        ErrorEstimate
            The bounds for all ranks hold together, so that you may choose a rank by them.

        Raises
        ------
        ValueError
            If the rank exceeds the sketch size.
        """
        r = min(as_count(self.rank if rank is None else rank, "rank"), *self.shape)
        if r > self.sketch_size:
            raise ValueError(
                f"`rank` must be at most the sketch size, {self.sketch_size}, got {r}; make the "
                "sketch for a larger `rank`."
            )
        return single_pass.error(self, self._solved(), r)


def _as_operator(A: Any, name: str, home: Array, shape: tuple[int, int] | None) -> Operator:
    operator = None if xa.is_array_api_obj(A) and A.ndim != 2 else as_operator(A, name=name)
    found = tuple(A.shape) if operator is None else operator.shape
    if operator is None or shape not in (None, found):
        expected = "two dimensions" if shape is None else f"shape {shape}"
        raise ValueError(f"`{name}` must have {expected}, got shape {found}.")
    xa.same_place(home, operator.empty(0), names=("self", name))
    return operator


def _as_columns(x: Any, name: str, home: Array) -> Array:
    x, _ = xa.as_matrix(x[:, None] if xa.is_array_api_obj(x) and x.ndim == 1 else x, name=name)
    xa.same_place(home, x, names=("self", name))
    return x
