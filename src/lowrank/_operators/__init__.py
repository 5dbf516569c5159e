"""A matrix as the range finder uses it: its products, norm, library, dtype and device."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array, Namespace

# The norms of a matrix of which only products are known.
UNKNOWN: dict[str, Any] = {"norm": None, "max_abs": lambda: math.nan}
# Entries of a matrix that are centered at a time, or a sixteenth of it if more.
ENTRIES = 2**18
# Entries of a half-precision matrix converted to float32 at a time; or a sixteenth of all, if more.
BLOCK = 2**14


@dataclass(frozen=True, slots=True)
class Operator:
    """A matrix (or stack) known by ``matmat(X) = A X`` and ``rmatmat(Y) = Aᴴ Y``."""

    xp: Namespace
    shape: tuple[int, ...]
    dtype: Any
    device: Any
    matmat: Callable[[Array], Array]
    rmatmat: Callable[[Array], Array]
    norm: Callable[[], float] | None  # ‖A‖_F; None where only products are known
    max_abs: Callable[[], float]
    # A itself if it is a dense array (Aᴴ if `is_adjoint`); half precision is not converted
    array: Array | None = None
    is_adjoint: bool = False
    # Norm of a term that the products subtract (the mean); their rounding is relative to it too.
    offset: float = 0.0
    # How the rows of the domain, so of test matrices, are sharded over processes: `_sharded.Rows`;
    # None if they are not.
    domain: Any = None
    # `explicit(flipped, own)`: A, or Aᴴ if flipped, as a writable array; if `own`, in A's memory
    # where possible, else a copy. None for a stack, and for a matrix that is not in memory.
    explicit: Any = None
    # A function that returns a slice of the rows of A, if there is one.
    block: Callable[[slice], Array] | None = None
    # Whether another pass over A costs more than a wider product: files, processes, Dask.
    costly_passes: bool = False

    @property
    def is_stack(self) -> bool:
        return len(self.shape) > 2

    @property
    def test_rows(self) -> int:
        """Rows of a test matrix on this process."""
        return self.shape[-1] if self.domain is None else self.domain.height

    def agreed(self, value: float) -> float:
        """The value of process 0 on all processes, so that all decide alike."""
        if self.domain is None:
            return value
        own = self.xp.asarray([value], dtype=self.xp.float64, device=self.device)
        return float(self.domain.broadcast(own)[0])

    def adjoint(self) -> "Operator":
        *batch, m, n = self.shape
        explicit = self.explicit
        return replace(
            self,
            shape=(*batch, n, m),
            matmat=self.rmatmat,
            rmatmat=self.matmat,
            is_adjoint=not self.is_adjoint,
            explicit=explicit and (lambda flipped, own: explicit(not flipped, own)),
        )

    def columns(self, indices: Array) -> Array:
        """``A[:, indices]`` of a matrix: a copy, or a product if A is not an array."""
        xp = self.xp
        if self.array is None:
            every = xp.arange(self.shape[-1], dtype=indices.dtype, device=self.device)
            return self.matmat(xp.astype(every[:, None] == indices[None, :], self.dtype))
        taken, _ = xa.as_matrix(xp.take(self.array, indices, axis=0 if self.is_adjoint else 1))
        return xa.adjoint(taken) if self.is_adjoint else taken

    def rows(self, part: slice) -> Array:
        """Rows of a matrix that is an array or has `block`, in the dtype of products."""
        A: Any = self.array
        if self.is_adjoint:
            return xa.adjoint(xa.as_matrix(A[:, part])[0])
        return xa.as_matrix(A[part, :])[0] if self.block is None else self.block(part)

    def empty(self, rows: int) -> Array:
        """A `rows`×0 array with the library, dtype and device of products of this operator."""
        return self.xp.zeros((*self.shape[:-2], rows, 0), dtype=self.dtype, device=self.device)


def as_operator(A: Any, /, *, hermitian: bool = False, name: str = "A") -> Operator:
    """The operator of an array, a sparse matrix, or an object with products.

    A `hermitian` object needs no product with its adjoint. `name` is used in error messages.
    """
    if isinstance(A, Operator):
        return A
    if hasattr(A, "__lowrank_operator__"):
        return A.__lowrank_operator__()
    if hasattr(A, "to_numpy"):  # data frames, and arrays of xarray: their products differ
        inside = "data" if hasattr(A, "data") else "to_numpy()"
        raise TypeError(f"`{name}` is a {type(A).__name__}; pass the array in it, {name}.{inside}.")
    if xa.is_torch_array(A) and str(A.layout).startswith("torch.sparse"):
        return _of_torch_sparse(A, name)
    if hasattr(A, "tocsr") or hasattr(A, "to_scipy_sparse"):
        return _of_sparse(A, name)  # first: PyData's sparse arrays are array-API objects too
    if hasattr(A, "__dask_graph__"):
        return _of_dask(A, name)
    if xa.is_array_api_obj(A) or isinstance(A, np.ndarray):  # numpy.matrix is only an ndarray
        return _of_array(A, name)
    if hasattr(A, "shape") and hasattr(A, "dtype"):
        if any(hasattr(A, method) for method in ("matmat", "rmatmat", "matvec", "__matmul__")):
            return _of_products(A, name, hermitian=hermitian)
        if hasattr(A, "__getitem__") and len(A.shape) == 2:
            raise TypeError(
                f"`{name}` is a {type(A).__name__}, which is not an array in memory; pass "
                f"lowrank.RowBlocks({name}), which reads a block of rows at a time."
            )
    return _of_array(A, name)  # raises an error that lists what is supported


def located(home: Array, shape: tuple[int, ...], **known: Any) -> Operator:
    """An operator whose products have the library, dtype and device of the array `home`.

    Norm and largest entry are those of `home`, unless others are given.
    """
    norms = {"norm": lambda: xa.matrix_norm_by_rows(home), "max_abs": lambda: xa.max_abs(home)}
    return Operator(
        xa.array_namespace(home), shape, home.dtype, xa.device_of(home), **{**norms, **known}
    )


def shape_of(A: Any, rule: str) -> tuple[int, int]:
    """The shape of a matrix. If there are not two dimensions, the error begins with `rule`."""
    if len(A.shape) != 2:
        raise ValueError(f"{rule}, got shape {tuple(A.shape)}.")
    return int(A.shape[0]), int(A.shape[1])


def _of_array(A: Array, name: str) -> Operator:
    if xa.is_array_api_obj(A) and A.ndim == 2 and xa.is_half(A):
        return _of_half(A, name)
    is_file = _is_memory_mapped(A)
    A, _ = xa.as_matrix(A, name=name, stacks=True)
    if A.ndim == 3 and A.shape[2] in (3, 4) and min(A.shape[:2]) > 16:  # an image in color
        kind = f"`{name}` of shape {tuple(A.shape)} is taken for a stack of matrices; if it is one"
        warnings.warn(f"{kind} image, pass {name}.reshape({A.shape[0]}, -1).", stacklevel=2)
    return located(
        A,
        tuple(int(length) for length in A.shape),
        matmat=lambda X: A @ X,
        rmatmat=lambda Y: xa.adjoint_matmul(A, Y),
        array=A,
        explicit=None if A.ndim > 2 or is_file else partial(_explicit, A),
        costly_passes=is_file,
    )


def _is_memory_mapped(A: Any) -> bool:
    while isinstance(A, np.ndarray) and not isinstance(A, np.memmap):
        A = A.base
    return isinstance(A, np.memmap)


def _explicit(A: Array, flipped: bool, own: bool) -> Array:
    """A, or Aᴴ if `flipped`, as a writable array: with `own` in its own memory, if possible."""
    matrix, xp = xa.as_matrix(A)
    conjugate = flipped and xa.is_complex(matrix)
    if flipped:
        matrix = xp.matrix_transpose(matrix)
    if conjugate and not xa.is_torch_array(A):  # torch's is a view
        return xp.conj(matrix)
    if not (xa.is_half(A) or (own and not conjugate and _is_writable(matrix))):
        matrix = xp.asarray(matrix, copy=True)
    return xp.conj(matrix) if conjugate else matrix


def _is_writable(A: Array) -> bool:
    """Whether the array may be written to, and no two entries share memory."""
    if xa.is_torch_array(A):
        return not A.is_inference() and _is_disjoint(A.shape, A.stride())
    if not xa.is_numpy_array(A):
        return True
    strides = [stride / A.itemsize for stride in A.strides]
    return bool(A.flags.writeable) and _is_disjoint(A.shape, strides)


def _is_disjoint(shape: Any, strides: Any) -> bool:
    """Whether sorted strides prove that no two entries share memory."""
    span = 1.0
    for stride, length in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride < span:
            return False
        span += stride * (length - 1)
    return True


def _of_half(A: Array, name: str) -> Operator:
    """A float16 or bfloat16 matrix, converted to float32 one block of rows at a time."""
    home, _ = xa.as_matrix(A[:0, :], name=name)
    m, n = (int(length) for length in A.shape)
    rows = max(1, max(BLOCK, m * n // 16) // max(1, n))
    blocks = of_row_blocks(lambda part: xa.as_matrix(A[part, :])[0], (m, n), rows, like=home)
    return replace(blocks, array=A, explicit=partial(_explicit, A))


def of_row_blocks(
    block: Callable[[slice], Array], shape: tuple[int, ...], rows: int, *, like: Array
) -> Operator:
    """A matrix or stack given by a function that returns `rows` rows at a time."""
    xp = xa.array_namespace(like)
    parts = xa.slices(shape[-2], rows) or [slice(0, 0)]

    def rmatmat(Y: Array) -> Array:
        product = xa.adjoint_matmul(block(parts[0]), Y[..., parts[0], :])
        for part in parts[1:]:
            product += xa.adjoint_matmul(block(part), Y[..., part, :])
        return product

    return located(
        like,
        shape,
        matmat=lambda X: xp.concat([block(part) @ X for part in parts], axis=-2),
        rmatmat=rmatmat,
        block=block,
        norm=lambda: float(xa.safe_norm(xp.stack([xa.safe_norm(block(part)) for part in parts]))),
        max_abs=lambda: float(xp.max(xp.stack([xp.max(xp.abs(block(part))) for part in parts]))),
    )


def centered_product(X: Any, mean: Array, V: Array) -> Array:
    """``(X − 1μᵀ) V`` of an array, by blocks of rows, or of a sparse matrix.

    ``XV − 1(μᵀV)`` loses digits if μ is large, but no sparse matrix is centered explicitly.
    """
    if not xa.is_array_api_obj(X):
        return X @ V - mean @ V
    X = X if X.ndim > 1 else X[None, :]
    rows = max(1, X.shape[-2] // 16, ENTRIES // max(1, X.shape[-1]))
    return of_row_blocks(lambda part: X[..., part, :] - mean, X.shape, rows, like=X).matmat(V)


def _of_dask(A: Any, name: str) -> Operator:
    """A Dask array, multiplied by Dask's current scheduler, where its blocks are.

    Each pass computes every block once; nothing is persisted. Factors and products are NumPy arrays
    on this process.
    """
    if len(A.shape) != 2 or any(math.isnan(length) for length in A.shape):
        raise ValueError(
            f"`{name}` must be a matrix of known lengths, got shape {tuple(A.shape)}; call "
            "compute_chunk_sizes on it if they are unknown."
        )
    home, _ = xa.as_matrix(np.empty((0, 0), dtype=A.dtype), name=name)
    A = A.astype(home.dtype)
    norms = A.map_blocks(_norm_of_block, chunks=(1, 1), dtype=np.float64)  # computed when asked for
    return located(
        home,
        tuple(int(length) for length in A.shape),
        matmat=lambda X: (A @ X).compute(),
        rmatmat=lambda Y: _by_transpose(A.T, Y).compute(),
        norm=lambda: float(xa.safe_norm(norms.compute())),
        max_abs=lambda: float(abs(A).max().compute()),
        costly_passes=True,
    )


def _norm_of_block(block: Any) -> Any:
    return np.full((1, 1), xa.matrix_norm_by_rows(block))


def _by_transpose(transpose: Any, Y: Array) -> Any:
    """``Aᴴ Y`` by a product with the transpose.

    The narrow Y is conjugated, and not A: that would copy A, and may report a wrong dtype.
    """
    xp = xa.array_namespace(Y)
    return xp.conj(transpose @ xp.conj(Y)) if xa.is_complex(Y) else transpose @ Y


def _of_sparse(A: Any, name: str) -> Operator:
    shape = shape_of(A, f"`{name}` must be a matrix (two dimensions)")
    csr = A.tocsr() if hasattr(A, "tocsr") else A.to_scipy_sparse().tocsr()
    if not csr.has_canonical_format:  # duplicate entries would count twice in the norm
        csr = csr.copy()
        csr.sum_duplicates()
    values, _ = xa.as_matrix(csr.data[None, : csr.nnz], name=name)  # the storage may be longer
    return located(values, shape, matmat=lambda X: csr @ X, rmatmat=partial(_by_transpose, csr.T))


def _of_torch_sparse(A: Array, name: str) -> Operator:
    shape = shape_of(A, f"a sparse `{name}` must be a matrix (two dimensions)")
    with xa.loaded("torch").no_grad():
        coo = A.detach().to_sparse_coo().coalesce()
    if coo.dense_dim():
        raise ValueError(
            f"a sparse `{name}` must not have dense dimensions; pass {name}.to_dense() or "
            f"{name}.to_sparse()."
        )
    values, _ = xa.as_matrix(coo.values()[None, :], name=name)
    coo = coo.to(values.dtype)
    # a new tensor: inference mode allows no transposed view
    flipped = coo.indices().flip(0), coo.values().conj_physical()
    conj = xa.loaded("torch").sparse_coo_tensor(*flipped, coo.shape[::-1], check_invariants=False)
    return located(values, shape, matmat=lambda X: coo @ X, rmatmat=lambda Y: conj @ Y)


def _of_products(A: Any, name: str, *, hermitian: bool) -> Operator:
    """An object with `shape`, `dtype` and products with it and with its adjoint.

    Its dtype (or `device`) decides the library and device of the first test matrix.
    """
    m, n = shape_of(A, f"`{name}` must be an operator of two dimensions")
    device: Any = getattr(A, "device", None)
    home: Array
    if type(A.dtype).__module__.partition(".")[0] == "torch":
        home = xa.loaded("torch").empty((1, 0), dtype=A.dtype, device=device)
    elif type(device).__module__.partition(".")[0] == "cupy":
        with device:
            home = xa.loaded("cupy").empty((1, 0), dtype=A.dtype)
    else:
        dtype = numpy_dtype(A.dtype)  # int8 is SciPy's for an unknown one
        home = np.empty((1, 0), dtype=np.float64 if dtype == np.int8 else dtype)
    home, _ = xa.as_matrix(home, name=name)
    matmat = _named(A, "mat") or (lambda X: A @ X)
    rmatmat = matmat if hermitian else _named(A, "rmat")
    rmatmat = rmatmat or _product_with_adjoint(A, name, xa.is_complex(home))
    return located(
        home,
        (m, n),
        matmat=lambda X: _product(matmat, X, m, f"{name}.matmat"),
        rmatmat=lambda Y: _product(rmatmat, Y, n, f"{name}.rmatmat"),
        **UNKNOWN,
    )


def _named(A: Any, product: str) -> Callable[[Array], Array] | None:
    """The method `matmat` (or `rmatmat`) of an object, or its `matvec` applied column by column."""
    if hasattr(A, f"{product}mat"):
        return getattr(A, f"{product}mat")
    if not hasattr(A, f"{product}vec"):
        return None

    def by_columns(X: Array) -> Array:
        columns = [getattr(A, f"{product}vec")(X[:, j]) for j in range(X.shape[1])]
        return xa.array_namespace(columns[0]).stack(columns, axis=-1)

    return by_columns


def _product_with_adjoint(A: Any, name: str, is_complex_: bool) -> Callable[[Array], Array]:
    """``Aᴴ Y`` for an object that offers its adjoint in one of the usual ways."""
    for spelled in ("H", "mH", "adjoint"):
        if hasattr(A, spelled):
            adjoint_of_A = A.adjoint() if spelled == "adjoint" else getattr(A, spelled)
            return lambda Y: adjoint_of_A @ Y
    # The `T` of a complex operator without `conj` may be the transpose or the adjoint.
    if hasattr(A, "T") and (hasattr(A, "conj") or not is_complex_):
        return partial(_by_transpose, A.T)
    alone = " (its `T` does not say whether it conjugates)" if hasattr(A, "T") else ""
    raise TypeError(
        f"`{name}` is a {type(A).__name__} without an adjoint{alone}: give it a method "
        "`rmatmat(Y)` that multiplies by the conjugate transpose, or an attribute `H` or a method "
        "`adjoint()` that is the conjugate transpose; `T` is enough for a real matrix."
    )


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """NumPy's dtype of the same name."""
    try:
        return np.dtype(dtype)
    except TypeError:  # a dtype of another library, with the standard's names
        return np.dtype(str(dtype).rpartition(".")[2])


def _product(multiply: Callable[[Array], Array], X: Array, rows: int, name: str) -> Array:
    if X.shape[-1] == 0:  # not every operator can multiply an empty array
        return xa.zeros((rows, 0), X)
    try:
        product = multiply(X)
    except (NotImplementedError, TypeError) as error:  # SciPy's operators without an adjoint
        raise TypeError(
            f"`{name}` failed: {error}. An operator needs products with A and its adjoint, such as "
            "scipy.sparse.linalg.LinearOperator(shape, matvec=…, rmatvec=…, dtype=float)."
        ) from error
    Y, _ = xa.as_matrix(product, name=f"{name}(X)")
    if tuple(Y.shape) != (rows, X.shape[1]):
        raise ValueError(
            f"`{name}` of an array of shape {tuple(X.shape)} must have shape "
            f"{(rows, X.shape[1])}, got {tuple(Y.shape)}."
        )
    return Y
