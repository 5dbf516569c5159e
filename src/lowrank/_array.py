"""The one import of array-api-compat, and the small linear algebra that the standard lacks.

Rooms that use much of it import it whole, as `xa`.
"""

import importlib
import math
import os
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import (
    array_namespace,
    is_array_api_obj,
    is_cupy_array,
    is_cupy_namespace,
    is_numpy_array,
    is_numpy_namespace,
    is_torch_array,
    is_torch_namespace,
    to_device,
)
from array_api_compat import device as device_of

FLOATING = ("float32", "float64", "complex64", "complex128")
# Rows of a block of a long sum.
LONG = 256
# Static array types do not exist yet; the alias names the intent.
Array: TypeAlias = Any
Namespace: TypeAlias = ModuleType


def as_matrix(A: Array, /, *, name: str = "A", stacks: bool = False) -> tuple[Array, Namespace]:
    """`A`, checked to be a floating matrix (or stack), in its compute dtype; and its namespace.

    The array type and the device never change. The result may share memory with `A`, so callers
    must not write to it. float16 and bfloat16 have no factorization in any library and become
    float32.
    """
    if is_sharded(A):
        raise TypeError(
            f"`{name}` is a DTensor, of which this process has a part; range_finder, qb, svd, qr "
            f"and residual_norm take one. Pass a local array, for instance {name}.full_tensor()."
        )
    if hasattr(A, "__dask_graph__"):
        raise TypeError(
            f"`{name}` is an array of Dask, and this needs all entries; pass {name}.compute()."
        )
    if isinstance(A, np.matrix | np.ma.MaskedArray):
        raise TypeError(
            f"`{name}` is a numpy {type(A).__name__}, whose products are not an array's; "
            f"pass numpy.asarray({name}), filled first if it is masked."
        )
    if not is_array_api_obj(A):
        convert, shape = f"numpy.asarray({name}, dtype=float)", getattr(A, "shape", None)
        if hasattr(A, "reconstruct"):
            convert = f"{name}.reconstruct()"
        elif hasattr(A, "toarray"):
            convert = f"{name}.toarray()"  # NumPy makes an array of one object of a sparse matrix
        elif hasattr(A, "matmat") and isinstance(shape, tuple) and len(shape) == 2:
            of_torch = str(getattr(A, "dtype", None)).startswith("torch.")
            unit = f"torch.eye({{}}, dtype={name}.dtype)" if of_torch else "numpy.eye({})"
            convert = f"{name}.matmat({unit.format(shape[1])})"
        elif isinstance(A, str | os.PathLike):
            convert = f"numpy.load({name}) or numpy.loadtxt({name})"
        raise TypeError(
            f"`{name}` must be an array of NumPy, PyTorch, CuPy or another array-API library, got "
            f"{type(A).__name__}; convert it, for instance with {convert}."
        )
    if is_numpy_array(A):
        A = A.view(np.ndarray)  # memory-mapped files: slices and products are plain arrays
        if not A.dtype.isnative:
            A = A.astype(A.dtype.newbyteorder("="))
    elif is_torch_array(A):
        if A.is_meta:
            raise ValueError(
                f"`{name}` is on the meta device, where arrays have a shape and no numbers."
            )
        if str(A.layout) != "torch.strided":
            raise TypeError(
                f"`{name}` is a sparse tensor ({A.layout}), and this needs all entries of it; pass "
                f"{name}.to_dense()."
            )
        A = A.detach()  # no derivatives are promised, and none shall be recorded
    xp = array_namespace(A)
    if A.ndim < 2 or (A.ndim > 2 and not stacks):
        kind = "a matrix or a stack of matrices" if stacks else "a matrix (two dimensions)"
        raise ValueError(f"`{name}` must be {kind}, got shape {tuple(A.shape)}.")
    return _promote(A, xp, name), xp


def is_sharded(A: Any) -> bool:
    """Whether A is a DTensor of torch."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(A, module.DTensor)


def _promote(A: Array, xp: Namespace, name: str) -> Array:
    if any(A.dtype == getattr(xp, supported, None) for supported in FLOATING):
        return A
    if is_half(A):
        return xp.astype(A, xp.float32)
    # as its users write it; some have complex numbers that are longer or shorter
    ways = {"astype": "astype(float)", "double": "double()"}
    if "complex" in str(A.dtype):
        ways = {"astype": "astype(complex)", "cdouble": "cdouble()"}
    own = [f"{name}.{way}" for method, way in ways.items() if hasattr(A, method)]
    cast = own[0] if own else f"xp.astype({name}, xp.float64)"
    raise TypeError(
        f"`{name}` has dtype {A.dtype}, which has no matrix factorization; cast it to float32, "
        f"float64, complex64 or complex128 first, for instance with {cast}."
    )


def same_place(X: Array, Y: Array, *, names: tuple[str, str]) -> None:
    """Raise a TypeError unless both arrays have one library, device and dtype."""
    homes = [(array_namespace(Z), device_of(Z), Z.dtype) for Z in (X, Y)]
    if homes[0] != homes[1]:
        told = [
            f"`{name}` is a {xp.__name__.rpartition('.')[2]} array of dtype {dtype} on {device}"
            for name, (xp, device, dtype) in zip(names, homes, strict=True)
        ]
        raise TypeError(f"{told[0]}, but {told[1]}; convert one to the other.")


def is_half(X: Array) -> bool:
    xp = array_namespace(X)
    # compared with None, a dtype of NumPy would be that of the default
    names = (name for name in ("float16", "bfloat16") if hasattr(xp, name))
    return any(X.dtype == getattr(xp, name) for name in names)


def is_complex(X: Array) -> bool:
    return bool(array_namespace(X).isdtype(X.dtype, "complex floating"))


def eps(X: Array) -> float:
    """Distance from 1 to the next number in the real dtype of `X`."""
    return float(array_namespace(X).finfo(X.dtype).eps)


def adjoint(X: Array) -> Array:
    """Conjugate transpose. NumPy copies for complex input: keep it for small matrices."""
    xp = array_namespace(X)
    Xt = xp.matrix_transpose(X)
    return xp.conj(Xt) if is_complex(X) else Xt


def adjoint_matmul(X: Array, Y: Array) -> Array:
    """``Xᴴ Y``, on a processor summed by blocks of rows.

    A product adds in sequence, and rounding is biased in long sums of numbers of one sign, by up
    to four tenths of an eps for each. Columns that are made orthonormal by such sums seem so by the
    same sums only, and what is projected out of a constant matrix stays. A GPU is left alone: its
    time goes with the number of operations.
    """
    m = X.shape[-2]
    if m < 2 * LONG or is_of_a_gpu(X) or is_traced(X):
        return _adjoint_matmul(X, Y)
    first, *others = slices(m, LONG)
    total = _adjoint_matmul(X[..., first, :], Y[..., first, :])
    for part in others:
        total += _adjoint_matmul(X[..., part, :], Y[..., part, :])
    return total


def _adjoint_matmul(X: Array, Y: Array) -> Array:
    """The same in one product, which conjugates the narrow one of X and Y."""
    xp = array_namespace(X, Y)
    if Y.shape[-1] > X.shape[-1]:
        return adjoint(X) @ Y
    if is_torch_namespace(xp) and not is_of_a_gpu(X):
        # its products with a transposed X are slow in double precision, up to seven times the time
        # of the transposed product where Y is stored by columns, and never faster
        return adjoint(adjoint(Y) @ X)
    if is_complex(X):
        return xp.conj(xp.matmul(xp.matrix_transpose(X), xp.conj(Y)))
    return xp.matmul(xp.matrix_transpose(X), Y)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    return array_namespace(like).zeros(shape, dtype=like.dtype, device=device_of(like))


def ones(shape: tuple[int, ...], like: Array) -> Array:
    return array_namespace(like).ones(shape, dtype=like.dtype, device=device_of(like))


def eye(rows: int, columns: int, like: Array) -> Array:
    return array_namespace(like).eye(rows, columns, dtype=like.dtype, device=device_of(like))


def slices(length: int, rows: int) -> list[slice]:
    """Which rows of a matrix come together, so many at a time."""
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


def block_triangle(upper_left: Array, upper_right: Array, lower_right: Array) -> Array:
    xp = array_namespace(upper_left)
    *batch, rows, _ = lower_right.shape
    lower_left = zeros((*batch, rows, upper_left.shape[-1]), upper_left)
    upper = xp.concat([upper_left, upper_right], axis=-1)
    return xp.concat([upper, xp.concat([lower_left, lower_right], axis=-1)], axis=-2)


def rows_below(X: Array, rows: int) -> Array:
    """`X` with `rows` rows of zeros above it."""
    if rows == 0:
        return X
    above = zeros((*X.shape[:-2], rows, X.shape[-1]), X)
    return array_namespace(X).concat([above, X], axis=-2)


def phases(d: Array) -> Array:
    """``d/|d|`` along the last axis, or one where |d| is too small for its phase to matter."""
    if d.shape[-1] == 0:
        return d
    xp = array_namespace(d)
    size, one = xp.abs(d), xp.ones_like(d)
    least = eps(d) * xp.max(size, axis=-1, keepdims=True)
    smallest = float(xp.finfo(d.dtype).smallest_normal) / eps(d)  # a quotient may overflow below
    counts = xp.logical_and(size > least, size > smallest)
    return xp.where(counts, d / xp.where(counts, xp.astype(size, d.dtype), one), one)


def signed(X: Array) -> Array:
    """Phases by which to multiply the rows of X, so that the largest entry of each is positive.

    Unique unless two entries are the largest.
    """
    xp = array_namespace(X)
    one = xp.ones(X.shape[:-1], dtype=X.dtype, device=device_of(X))
    if 0 in X.shape:
        return one
    if not is_complex(X):
        return xp.copysign(one, xp.max(X, axis=-1) + xp.min(X, axis=-1))
    where = xp.argmax(xp.abs(X), axis=-1, keepdims=True)
    return xp.conj(phases(xp.take_along_axis(X, where, axis=-1)[..., 0]))


def inverse(X: Array) -> Array:
    """Inverse of a small, well-conditioned matrix, without asking the device whether it exists."""
    xp = array_namespace(X)
    return xp.linalg.inv_ex(X).inverse if is_torch_namespace(xp) else xp.linalg.inv(X)


def lower_inverse(L: Array) -> Array:
    """Inverse of a lower triangular matrix or stack; NumPy has no routine for it."""
    xp, b = array_namespace(L), L.shape[-1]
    if is_torch_namespace(xp):
        return xp.linalg.solve_triangular(L, eye(b, b, like=L), upper=False)
    if b <= 64:
        return np.linalg.inv(L)
    half = b // 2
    upper = lower_inverse(L[..., :half, :half])
    lower = lower_inverse(L[..., half:, half:])
    inverted = np.zeros_like(L)
    inverted[..., :half, :half], inverted[..., half:, half:] = upper, lower
    inverted[..., half:, :half] = -lower @ (L[..., half:, :half] @ upper)
    return inverted


def checked_cholesky(X: Array) -> Array | None:
    """Lower Cholesky factor of X, None where it does not exist: for arrays of a CPU."""
    xp = array_namespace(X)
    if is_torch_namespace(xp):
        factor = xp.linalg.cholesky_ex(X)
        return None if bool(xp.any(factor.info)) else factor.L
    try:
        return np.linalg.cholesky(X)
    except np.linalg.LinAlgError:
        return None


def unchecked_cholesky(X: Array) -> Array:
    """Lower Cholesky factor of X, without asking the device whether it exists."""
    xp = array_namespace(X)
    if is_torch_namespace(xp):
        return xp.linalg.cholesky_ex(X).L
    with loaded("cupyx").errstate(linalg="ignore"):
        return xp.linalg.cholesky(X)


def subtract_product(Y: Array, V: Array, W: Array) -> None:
    """``Y ← Y − V W`` in the memory of Y, a matrix or stack with many rows."""
    xp = array_namespace(Y)
    if is_torch_namespace(xp) and Y.ndim == 2:
        Y.addmm_(V, W, alpha=-1)
        return
    # by blocks of rows, so that no product is as large as Y, and one of NumPy stays in the cache
    m, n = Y.shape[-2:]
    rows = max(1, max(2**16, 0 if is_numpy_namespace(xp) else m * n // 16) // max(1, n))
    for part in slices(m, rows):
        Y[..., part, :] -= V[..., part, :] @ W


def upper_solve(R: Array, X: Array, *, left: bool = True) -> Array:
    """``R⁻¹ X`` for an upper triangular R, or ``X R⁻¹``, without asking whether R is singular."""
    xp = array_namespace(X)
    if is_torch_namespace(xp):
        return xp.linalg.solve_triangular(R, X, upper=True, left=left)
    if left:
        return xp.linalg.solve(R, X)
    solve = importlib.import_module("cupyx.scipy.linalg").solve_triangular
    return xp.matrix_transpose(solve(R, xp.matrix_transpose(X), trans="T"))


def leading(X: Array, columns: int) -> Array:
    """The first columns of X, so many or all."""
    return X[..., : min(columns, X.shape[-1])]


def read(*numbers: Array) -> list[float]:
    """Real numbers of one dtype, for all of which the host waits for their device once."""
    if len(numbers) > 1 and is_of_a_gpu(numbers[0]):
        numbers = to_device(array_namespace(numbers[0]).stack(numbers), "cpu")
    return [float(number) for number in numbers]


def flag(X: Array) -> Array:
    """A real number that is not finite where an entry of X is not: a sum."""
    xp = array_namespace(X)
    return xp.sum(xp.real(X)) + xp.sum(xp.imag(X)) if is_complex(X) else xp.sum(X)


def is_finite(X: Array) -> bool:
    """Whether all entries are finite: one value read from the device."""
    xp = array_namespace(X)
    return bool(xp.all(xp.isfinite(X)))


def is_traced(X: Array) -> bool:
    """Whether there are no values, but the trace that torch compiles."""
    return is_torch_array(X) and bool(loaded("torch").compiler.is_compiling())


def is_of_a_gpu(X: Array) -> bool:
    xp = array_namespace(X)
    return is_cupy_namespace(xp) or (is_torch_namespace(xp) and X.device.type != "cpu")


def split_scale(X: Array) -> tuple[Array, Array]:
    """`X` divided by its largest absolute value, and that value (a 0-d array)."""
    scale = _scale_of(array_namespace(X).abs(X))
    return X / array_namespace(X).astype(scale, X.dtype), scale


def _scale_of(size: Array, **over: Any) -> Array:
    """The largest entry, but no less than the smallest normal number: quotients may overflow."""
    xp = array_namespace(size)
    largest = xp.max(size, **over)
    return xp.maximum(largest, xp.full_like(largest, xp.finfo(size.dtype).smallest_normal))


def largest_of_each(X: Array) -> Array:
    """Largest absolute value of a matrix (1×1), or of each of a stack; normal, to divide by."""
    return _scale_of(array_namespace(X).abs(X), axis=(-2, -1), keepdims=True)


def max_abs(X: Array) -> float:
    """Largest absolute value of a matrix or stack, by blocks of rows (no copy of `X`)."""
    return 0.0 if 0 in X.shape else float(_largest(X))


def _largest(X: Array) -> Array:
    xp = array_namespace(X)
    return xp.max(xp.stack([xp.max(xp.abs(block)) for block in _row_blocks(X)]))


def safe_norm(X: Array) -> Array:
    """Frobenius norm as a 0-d array; neither overflows nor underflows. NaN if `X` is not finite."""
    xp, size = array_namespace(X), _sizes(X)
    if 0 in X.shape:
        return xp.sum(size)
    largest = _scale_of(size)
    size /= largest  # in place: one array of the size of X, and no more
    size *= size
    return largest * xp.sqrt(xp.sum(size))


def flushes(xp: Namespace, dtype: Any) -> bool:
    """Whether numbers below the normal ones are taken for zero.

    CuPy compiles its kernels of single precision so, and a process may ask its processor for it
    (torch.set_flush_denormal), which the host's own numbers then show.
    """
    if is_cupy_namespace(xp):
        return dtype in (xp.float32, xp.complex64)
    return sys.float_info.min * 0.5 == 0.0


def squares(X: Array) -> Array:
    """``|X_ij|²``, real."""
    return array_namespace(X).real(X * array_namespace(X).conj(X)) if is_complex(X) else X * X


def _sizes(X: Array) -> Array:
    """Absolute values, of both parts of complex numbers: ``|a + ib|`` is rounded next to zero."""
    xp = array_namespace(X)
    return xp.abs(xp.concat([xp.real(X), xp.imag(X)], axis=-1) if is_complex(X) else X)


def matrix_norm_by_rows(X: Array) -> float:
    """Frobenius norm of a large matrix or stack without a copy of it; not finite if `X` is not.

    Sums of squares, because every library adds in pairs or trees there: a dot product, or torch's
    own norm on a processor, adds in sequence, and loses four digits in float32 over 2^20 equal
    entries.
    """
    return norms(X)[0]


def norms(*matrices: Array, also: Iterable[Array] = ()) -> list[float]:
    """The same of several matrices, and the real numbers beside them, all read at once."""
    xp, count = array_namespace(matrices[0]), len(matrices)
    if is_torch_namespace(xp) and is_of_a_gpu(matrices[0]):
        found = read(*map(xp.linalg.vector_norm, matrices), *also)  # each in one kernel
    else:
        found = [*(_sum_of_squares(X) ** 0.5 for X in matrices), *read(*also)]
    return [*map(_within_range, matrices, found), *found[count:]]


def _within_range(X: Array, norm: float) -> float:
    """The norm of X; computed anew where its square left the range of the dtype."""
    xp = array_namespace(X)
    smallest = float(xp.finfo(X.dtype).smallest_normal)
    if 0 not in X.shape and not (smallest / eps(X)) ** 0.5 <= norm < math.inf:
        # Squares left the range of the dtype (complex ones may be NaN). The norm of a float32
        # matrix may, too: its size is put back in Python's float.
        largest = _largest(X)  # an array: a GPU divides by a number through its reciprocal
        if 0.0 < float(largest) < math.inf:
            squares = [xp.sum((_sizes(block) / largest) ** 2) for block in _row_blocks(X)]
            norm = float(largest) * float(xp.sum(xp.stack(squares))) ** 0.5
    return norm


def _sum_of_squares(X: Array) -> float:
    """Row by row where that takes no array of the size of X, at most 4,096 numbers at a time."""
    xp, n = array_namespace(X), X.shape[-1]
    is_numpy = is_numpy_namespace(xp)
    by_rows = is_numpy or is_torch_namespace(xp)
    parts = (X[..., part] for part in slices(n, 4096)) if by_rows else iter(_row_blocks(X))
    if is_numpy:
        return sum(float(np.sum(np.real(np.vecdot(part, part)))) for part in parts)
    if is_complex(X):
        parts = (each(part) for part in parts for each in (xp.real, xp.imag))
    if by_rows:
        parts = (xp.linalg.vector_norm(part, axis=-1) for part in parts)
    squares = [xp.sum(part * part) for part in parts]
    return float(xp.sum(xp.stack(squares))) if squares else 0.0


def _row_blocks(X: Array) -> list[Array]:
    """Blocks of rows that are small against `X`, and few."""
    if 0 in X.shape:
        return []
    n = X.shape[-1]
    if X.ndim > 2:
        X = array_namespace(X).reshape(X, (-1, n))
    m = X.shape[0]
    rows = max(1, max(2**16, m * n // 64) // n)
    return [X[part, :] for part in slices(m, rows)]


def as_numpy(X: Array) -> Any:
    """A copy, or a view, on the host."""
    if is_torch_array(X):
        whole: Any = X
        return (whole.full_tensor() if is_sharded(X) else whole).numpy(force=True)
    if is_cupy_array(X):
        return X.get()
    return np.asarray(to_device(X, array_namespace(X).__array_namespace_info__().default_device()))


def loaded(module: str) -> Any:
    """A module that the caller's arrays have already imported (torch, cupy)."""
    return sys.modules[module]
