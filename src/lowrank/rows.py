"""Matrices read one block of rows at a time, for files larger than memory."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._array.arithmetic import as_the_caller_set, in_full_precision
from lowrank._operators import Operator, located, numpy_dtype, shape_of
from lowrank._operators.checks import as_count

__all__ = ["Progress", "RowBlocks"]

# A chunk higher than a block is read whole, unless it is more than this many times as large.
WHOLE_CHUNK = 4


class Progress(NamedTuple):
    """The progress of a pass over a :class:`RowBlocks`.

    Attributes
    ----------
    product : str
        ``"matmat"``, ``"rmatmat"`` or ``"norm"``.
    done, total : int
        Number of rows read so far, and of all rows.
    """

    product: str
    done: int
    total: int


class RowBlocks:
    """A matrix with only one block of rows in memory at a time, as an operator.

    Every function that takes an operator accepts it. Each product reads the matrix once, from the
    first row to the last; so does the norm, which is needed with a tolerance.

    Parameters
    ----------
    A : object with `shape`, `dtype` and slices of rows, shape (m, n)
        ``A[i:j, :]`` must be an array, or become one in :func:`numpy.asarray`: a memory-mapped
        file, an h5py dataset, a zarr or Dask array, a tensor in host memory.
    block_bytes : int
        Size of a block in the dtype of the products. If A has an attribute `chunks`, the height of
        a block is rounded to a multiple of the chunks; a chunk higher than a block is read whole,
        unless it is more than four times as large.
    rows : int, optional
        Height of a block, instead of `block_bytes`.
    dtype : dtype or str, optional
        Compute in this dtype, for instance ``"float32"``. Required if A holds integers. Default:
        the dtype of A, but float32 for float16 and bfloat16. Any byte order can be read.
    like : array, optional
        Each block is moved to the library and device of this array; products are computed
        and returned there. Default: blocks stay where they are read, for files in NumPy.
    callback : callable, optional
        Called with a :class:`Progress` after each block. If it raises an exception, the work ends;
        this object, and a :class:`RangeFinder` that uses it, stay usable.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype of the products, in their library
    device : device of the products
    rows : int
        Number of rows of a block; the last block may have fewer.

    Raises
    ------
    TypeError
        If A cannot be sliced, or holds integers and no `dtype` is given, or holds complex numbers
        and `dtype` is real.
    ValueError
        If A does not have two dimensions, or an option is out of range.

    Notes
    -----
    A product with k columns reads m·n entries and takes 2mnk flops. Memory beyond A: one block
    (two while a block is converted to another dtype, library or device), and the (m + n)k entries
    of factor and product. Blocks of a memory-mapped NumPy file in its own dtype are views: their
    pages belong to the operating system, which frees them as needed.

    With a tolerance in the Frobenius norm: one pass for ‖A‖_F, which is exact, unlike that of other
    operators; and two passes for each block of the basis. The first block has 128 columns; later
    ones have as many as the basis, or as seem to be missing. The attribute `passes` of the results
    counts all passes.

    If a file is stored by columns (chunks of all rows), every block reads the whole file. Store its
    transpose instead, or give a larger `rows`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import lowrank
    >>> from lowrank import gallery
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "A.npy"
    ...     np.save(file, gallery.matrix(gallery.fast(300), rng=0))
    ...     A = np.load(file, mmap_mode="r")
    ...     found = lowrank.svd(lowrank.RowBlocks(A, rows=64), rtol=1e-3, rng=0)
    ...     del A
    >>> found.converged
    True
    """

    def __init__(
        self,
        A: Any,
        /,
        *,
        block_bytes: int = 2**26,
        rows: int | None = None,
        dtype: Any = None,
        like: Array | None = None,
        callback: Callable[[Progress], object] | None = None,
    ) -> None:
        sliced = all(hasattr(A, name) for name in ("shape", "dtype", "__getitem__"))
        if not sliced or hasattr(A, "tocsr"):
            raise TypeError(
                f"`A` must have `shape`, `dtype` and slices of rows, got {type(A).__name__}; pass "
                "an operator or a sparse matrix to the functions directly."
            )
        m, n = shape_of(A, "`A` must be a matrix (two dimensions)")
        self._A, self._callback = A, callback
        self._cast = None if dtype is None else numpy_dtype(dtype)
        if self._cast is not None and self._cast.name not in xa.FLOATING:
            raise TypeError(
                f"`dtype` must be float32, float64, complex64 or complex128, got {self._cast.name}."
            )
        home = self._stored(slice(0, 0)) if like is None else like
        self._xp, self.device = xa.array_namespace(home), xa.device_of(home)
        self._empty = self._block(slice(0, 0))
        self.shape, self.dtype = (m, n), self._empty.dtype
        if rows is None:
            width, chunk = n * numpy_dtype(self.dtype).itemsize, _chunk_of(A)
            fitting = as_count(block_bytes, "block_bytes", least=1) / max(1, width)
            unit = 1 if chunk > WHOLE_CHUNK * fitting else chunk
            rows = max(1, int(fitting // unit)) * unit
        self.rows = min(as_count(rows, "rows", least=1), max(1, m))

    def __repr__(self) -> str:
        m, n = self.shape
        return f"RowBlocks({m}×{n}, {self.dtype}, {self.rows} rows at a time)"

    @in_full_precision
    def matmat(self, X: Array) -> Array:
        """``A X``, of shape (m, k), for an array X of shape (n, k) in the library of products."""
        product = xa.zeros((self.shape[0], X.shape[-1]), self._empty @ X)
        for part in xa.slices(self.shape[0], self.rows):
            product = xa.put(product, (part, ...), self._block(part) @ X)
            self._report_progress("matmat", part)
        return product

    @in_full_precision
    def rmatmat(self, Y: Array) -> Array:
        """``Aᴴ Y``, of shape (n, k), for an array Y of shape (m, k) in the library of products."""
        product = xa.zeros((self.shape[1], Y.shape[-1]), xa.adjoint_matmul(self._empty, Y[:0, :]))
        for part in xa.slices(self.shape[0], self.rows):
            product += xa.adjoint_matmul(self._block(part), Y[part, :])
            self._report_progress("rmatmat", part)
        return product

    @in_full_precision
    def norm(self) -> float:
        """``‖A‖_F``, in one pass."""
        return math.hypot(*self._of_blocks(xa.matrix_norm_by_rows))

    def __lowrank_operator__(self) -> Operator:
        return located(
            self._empty,
            self.shape,
            matmat=self.matmat,
            rmatmat=self.rmatmat,
            norm=self.norm,
            max_abs=lambda: float(np.max(self._of_blocks(xa.max_abs), initial=0.0)),
            costly_passes=True,
        )

    def _of_blocks(self, measure: Callable[[Array], float]) -> list[float]:
        sizes = []
        for part in xa.slices(self.shape[0], self.rows):
            sizes.append(measure(self._block(part)))
            self._report_progress("norm", part)
        return sizes

    def _report_progress(self, product: str, part: slice) -> None:
        if self._callback is not None:
            with as_the_caller_set():
                self._callback(Progress(product, part.stop, self.shape[0]))

    def _stored(self, part: slice) -> Array:
        """Rows of A, read into memory and cast to the chosen dtype."""
        block = self._A[part, :]
        if isinstance(block, np.ma.MaskedArray) and not np.ma.is_masked(block):
            block = block.data  # netCDF4 returns masked arrays even if no value is missing
        # Dask arrays count as array-API objects, but are not computed yet
        if not xa.is_array_api_obj(block) or hasattr(block, "__dask_graph__"):
            block = np.asarray(block)
        xp = xa.array_namespace(block)
        if self._cast is not None:
            if xa.is_complex(block) and self._cast.kind != "c":
                raise TypeError(
                    f"`A` has dtype {block.dtype}, and `dtype` {self._cast.name} would lose its "
                    'imaginary part; give dtype="complex64" or "complex128".'
                )
            block = xp.astype(block, getattr(xp, self._cast.name), copy=False)
        elif xp.isdtype(block.dtype, ("bool", "integral")):
            raise TypeError(
                f"`A` has dtype {block.dtype}; give the dtype of the products, for instance "
                'lowrank.RowBlocks(A, dtype="float32").'
            )
        return xa.as_matrix(block)[0]

    def _block(self, part: slice) -> Array:
        """Rows of A, in the library and on the device of the products."""
        block, xp = self._stored(part), self._xp
        if (xa.array_namespace(block), xa.device_of(block)) == (xp, self.device):
            return block
        if xa.is_numpy_array(block) and not block.flags.writeable:
            block = block.copy()  # torch warns of read-only arrays
        return xp.asarray(block, device=self.device)


def _chunk_of(A: Any) -> int:
    """Rows of a chunk; 1 without chunks."""
    chunks = getattr(A, "chunks", None)
    first = chunks[0] if isinstance(chunks, tuple) and chunks else 1
    # Dask lists the height of each chunk
    return max(1, *first) if isinstance(first, tuple) else max(1, int(first))
