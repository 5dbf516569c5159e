"""The one import of array-api-compat, and the small linear algebra that the standard lacks.

Modules that use many of these functions import it as `xa`.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import (
    array_namespace,
    is_array_api_obj,
    is_cupy_array,
    is_cupy_namespace,
    is_jax_array,
    is_jax_namespace,
    is_numpy_array,
    is_numpy_namespace,
    is_torch_array,
    is_torch_namespace,
    to_device,
)
from array_api_compat import device as device_of

FLOATING = ("float32", "float64", "complex64", "complex128")
# Rows of a block of a long sum, and numbers of a sum along the memory.
LONG, LINE = 256, 1024
# There are no static types for arrays yet.
Array: TypeAlias = Any
Namespace: TypeAlias = ModuleType


def as_matrix(A: Array, /, *, name: str = "A", stacks: bool = False) -> tuple[Array, Namespace]:
    """Check that `A` is a floating matrix (or stack); return it and its namespace.

    float16 and bfloat16, which no library can factorize, become float32. The library and the device
    never change. The result may share memory with `A`, so callers must not write to it.
    """
    if is_sharded(A):
        raise TypeError(
            f"`{name}` is a DTensor, which only range_finder, qb, svd, qr and residual_norm take; "
            f"pass a local array, for instance {name}.full_tensor()."
        )
    if hasattr(A, "__dask_graph__"):
        raise TypeError(
            f"`{name}` is a Dask array, which is not supported here; pass {name}.compute()."
        )
    if isinstance(A, np.matrix | np.ma.MaskedArray):
        raise TypeError(
            f"`{name}` is a numpy {type(A).__name__}, whose products are not those of an array; "
            f"pass numpy.asarray({name}), filled first if it is masked."
        )
    if not is_array_api_obj(A):
        convert, shape = f"numpy.asarray({name}, dtype=float)", getattr(A, "shape", None)
        if hasattr(A, "reconstruct"):
            convert = f"{name}.reconstruct()"
        elif hasattr(A, "toarray"):
            convert = f"{name}.toarray()"  # numpy.asarray would make an array of one object
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
        A = A.astype(A.dtype.newbyteorder("="), copy=False)
    elif is_torch_array(A):
        if A.is_meta:
            raise ValueError(
                f"`{name}` is on the meta device, where arrays have a shape but no numbers."
            )
        if str(A.layout) != "torch.strided":
            raise TypeError(
                f"`{name}` is a sparse tensor ({A.layout}), which is not supported here; pass "
                f"{name}.to_dense()."
            )
        A = A.detach()  # derivatives are not supported, so none are recorded
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
    # as users of that library would write it
    ways = {"astype": "astype(float)", "double": "double()"}
    if "complex" in str(A.dtype):
        ways = {"astype": "astype(complex)", "cdouble": "cdouble()"}
    own = [f"{name}.{way}" for method, way in ways.items() if hasattr(A, method)]
    cast = own[0] if own else f"xp.astype({name}, xp.float64)"
    raise TypeError(
        f"`{name}` has dtype {A.dtype}, which cannot be factorized; cast it to float32, "
        f"float64, complex64 or complex128 first, for instance with {cast}."
    )


def same_place(X: Array, Y: Array, *, names: tuple[str, str]) -> None:
    """Raise a TypeError unless both arrays have one library, device and dtype."""
    homes = [(array_namespace(Z), device_of(Z), Z.dtype) for Z in (X, Y)]
    if homes[0] != homes[1] and not is_traced(X):  # then without a device
        places = [
            f"`{name}` is a {xp.__name__.rpartition('.')[2]} array of dtype {dtype} on {device}"
            for name, (xp, device, dtype) in zip(names, homes, strict=True)
        ]
        raise TypeError(f"{places[0]}, but {places[1]}; convert one to the other.")


def is_half(X: Array) -> bool:
    xp = array_namespace(X)
    # only existing names: NumPy's float64 equals None
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
    """``Xᴴ Y``, on a CPU summed by blocks of rows.

    A matrix product adds in sequence. In long sums of numbers of one sign rounding is biased, by up
    to 0.4 eps per term. Columns made orthonormal with such sums would look orthonormal in the same
    sums only, and a projection would not remove a constant matrix. On a GPU, whose time depends on
    the number of operations, one product is used.
    """
    m = X.shape[-2]
    if m < 2 * LONG or is_of_a_gpu(X) or is_traced(X):
        return _adjoint_matmul(X, Y)
    first, *others = slices(m, LONG)
    total = _adjoint_matmul(X[..., first, :], Y[..., first, :])
    for part in others:
        total += _adjoint_matmul(X[..., part, :], Y[..., part, :])
    return total


def batched_adjoint_matmul(X: Array, Y: Array, rows: int = LONG) -> Array:
    """``Xᴴ Y``, summed by blocks of at least so many rows; on a GPU in one batched product."""
    m, b = X.shape[-2:]
    count = m // max(rows, b, Y.shape[-1])
    if count < 2 or not (is_of_a_gpu(X) or is_traced(X)):
        return adjoint_matmul(X, Y)
    rows, xp = m // count, array_namespace(X, Y)
    used = count * rows
    blocks = [
        xp.reshape(Z[..., :used, :], (*Z.shape[:-2], count, rows, Z.shape[-1])) for Z in (X, Y)
    ]
    total = xp.sum(_adjoint_matmul(*blocks), axis=-3)
    return total + _adjoint_matmul(X[..., used:, :], Y[..., used:, :]) if used < m else total


def _adjoint_matmul(X: Array, Y: Array) -> Array:
    """``Xᴴ Y`` in one product, which conjugates the narrower of X and Y."""
    xp = array_namespace(X, Y)
    if Y.shape[-1] > X.shape[-1]:
        return adjoint(X) @ Y
    if is_torch_namespace(xp) and not is_of_a_gpu(X):
        # torch's products with a transposed X are never faster than the transposed product; in
        # double precision, with Y stored by columns, they take up to 7 times as long
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
    """Consecutive slices of `rows` rows each, the last one shorter."""
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


def rows_below(X: Array, rows: int) -> Array:
    """`X` with `rows` rows of zeros above it."""
    if rows == 0:
        return X
    return array_namespace(X).concat([zeros((*X.shape[:-2], rows, X.shape[-1]), X), X], axis=-2)


def phases(d: Array) -> Array:
    """``d/|d|``, entry by entry; one where |d| is below eps times the largest of the last axis."""
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

    Unique unless two entries share the largest absolute value.
    """
    xp = array_namespace(X)
    one = xp.ones(X.shape[:-1], dtype=X.dtype, device=device_of(X))
    if 0 in X.shape:
        return one
    if not is_complex(X):
        return xp.copysign(one, xp.max(X, axis=-1) + xp.min(X, axis=-1))
    where = xp.argmax(xp.abs(X), axis=-1, keepdims=True)
    return xp.conj(phases(xp.take_along_axis(X, where, axis=-1)[..., 0]))


def put(X: Array, index: Any, values: Array) -> Array:
    """X with ``X[index] = values``: in place, but for JAX, whose arrays are immutable."""
    if is_jax_array(X):
        return X.at[index].set(values)
    X[index] = values
    return X


def updated(X: Array, index: Any, update: Callable[[Array], Array]) -> Array:
    """X with ``update(X[index])`` in place of ``X[index]``; `update` writes where it can."""
    part = update(X[index])
    return X.at[index].set(part) if is_jax_array(X) else X


def leading(X: Array, columns: int) -> Array:
    """The first `columns` columns of X, or all if there are fewer."""
    return X[..., : min(columns, X.shape[-1])]


def read(*numbers: Array) -> list[float]:
    """Read real 0-d arrays of one dtype; the host waits for their device once."""
    if len(numbers) > 1 and is_of_a_gpu(numbers[0]):
        numbers = to_device(array_namespace(numbers[0]).stack(numbers), "cpu")
    return [float(number) for number in numbers]


def flag(X: Array) -> Array:
    """The sum of all parts of X: not finite if an entry is not."""
    xp = array_namespace(X)
    return xp.sum(xp.real(X)) + xp.sum(xp.imag(X)) if is_complex(X) else xp.sum(X)


def is_finite(X: Array) -> bool:
    """Whether all entries are finite: one value read from the device, two if some are not."""
    xp = array_namespace(X)
    if is_torch_namespace(xp) and bool(xp.isfinite(xp.sum(X))):
        return True  # found in a tenth of the time that torch's `isfinite` takes
    return bool(xp.all(xp.isfinite(X)))


def is_traced(X: Array) -> bool:
    """Whether torch.compile or JAX is tracing, so that X has no values."""
    if is_jax_array(X):
        return isinstance(X, loaded("jax").core.Tracer)
    return is_torch_array(X) and bool(loaded("torch").compiler.is_compiling())


def is_of_a_gpu(X: Array) -> bool:
    xp = array_namespace(X)
    return is_cupy_namespace(xp) or (is_torch_namespace(xp) and X.device.type != "cpu")


def split_scale(X: Array) -> tuple[Array, Array]:
    """`X` divided by its largest absolute value, and that value (a 0-d array)."""
    scale = _scale_of(array_namespace(X).abs(X))
    return X / array_namespace(X).astype(scale, X.dtype), scale


def _scale_of(size: Array, **over: Any) -> Array:
    """The largest entry, at least the smallest normal number: else quotients may overflow."""
    xp = array_namespace(size)
    largest = xp.max(size, **over)
    return xp.maximum(largest, xp.full_like(largest, xp.finfo(size.dtype).smallest_normal))


def largest_of_each(X: Array) -> Array:
    """Largest absolute value of each matrix of a stack (…×1×1), safe to divide by."""
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


def flushes(X: Array) -> bool:
    """Whether subnormal numbers are flushed to zero.

    CuPy's kernels do so in single precision. A process may switch it on for its CPU
    (torch.set_flush_denormal); Python's own floats then show it.
    """
    if is_cupy_array(X):
        return eps(X) > 1e-10
    return sys.float_info.min * 0.5 == 0.0


def squares(X: Array) -> Array:
    """``|X_ij|²``, real."""
    return array_namespace(X).real(X * array_namespace(X).conj(X)) if is_complex(X) else X * X


def _sizes(X: Array) -> Array:
    """Absolute values of all real and imaginary parts: ``|a + ib|`` is inaccurate near zero."""
    xp = array_namespace(X)
    return xp.abs(xp.concat([xp.real(X), xp.imag(X)], axis=-1) if is_complex(X) else X)


def matrix_norm_by_rows(X: Array) -> float:
    """Frobenius norm of a large matrix or stack without a copy of it; not finite if `X` is not.

    Sums of squares, because every library sums in pairs or trees. A dot product, or torch's norm on
    a CPU, adds in sequence, and loses four digits in float32 over 2^20 equal entries. On a GPU the
    norm of torch adds in sequence within each of its threads; so the norm of the norms of the rows,
    whose sums are short, is taken there.
    """
    return norms(X)[0]


def norms(*matrices: Array, also: Iterable[Array] = ()) -> list[float]:
    """Norms of several matrices, as `matrix_norm_by_rows`, and the numbers `also`, in one read."""
    xp, count = array_namespace(matrices[0]), len(matrices)
    if is_torch_namespace(xp) and is_of_a_gpu(matrices[0]):
        rows = [xp.linalg.vector_norm(X, axis=-1) for X in matrices]
        found = read(*map(xp.linalg.vector_norm, rows), *also)
    else:
        found = [*(_sum_of_squares(X) ** 0.5 for X in matrices), *read(*also)]
    return [*map(_within_range, matrices, found), *found[count:]]


def _within_range(X: Array, norm: float) -> float:
    """The norm of X; computed again with scaling if its square left the range of the dtype."""
    xp = array_namespace(X)
    smallest = float(xp.finfo(X.dtype).smallest_normal)
    if 0 not in X.shape and not (smallest / eps(X)) ** 0.5 <= norm < math.inf:
        # Squares left the range of the dtype (complex ones may be NaN). The norm of a float32
        # matrix may, too, so the scale is multiplied back as a Python float.
        largest = _largest(X)  # an array: a GPU divides by a Python number through its reciprocal
        if 0.0 < float(largest) < math.inf:
            squares = [xp.sum((_sizes(block) / largest) ** 2) for block in _row_blocks(X)]
            norm = float(largest) * float(xp.sum(xp.stack(squares))) ** 0.5
    return norm


def _sum_of_squares(X: Array) -> float:
    """``‖X‖_F²``, without an array of the size of X; sums in sequence have at most LINE terms."""
    xp = array_namespace(X)
    if is_numpy_namespace(xp):
        return sum(float(np.sum(np.vecdot(line, line))) for line in _lines(X))
    if is_torch_namespace(xp):
        parts = [xp.linalg.vector_norm(line, axis=-1) for line in _lines(X)]
    else:
        pairs = (each(X) for each in (xp.real, xp.imag)) if is_complex(X) else (X,)
        parts = [block for each in pairs for block in _row_blocks(each)]
    squares = [xp.sum(part * part) for part in parts]
    return float(xp.sum(xp.stack(squares))) if squares else 0.0


def _lines(X: Array) -> list[Array]:
    """The real numbers of X, of NumPy or torch, as views with rows of at most LINE numbers.

    Of numbers that are not adjacent the libraries' sums have one term at a time, not eight: there
    the rows are shorter.
    """
    is_numpy = is_numpy_array(X)

    def is_contiguous(Y: Array) -> bool:
        return bool(Y.flags.c_contiguous if is_numpy else Y.is_contiguous())

    X = X.mT if X.ndim > 1 and is_contiguous(X.mT) else X
    is_dense = X.strides[-1] == X.itemsize if is_numpy else X.stride(-1) == 1
    if is_complex(X):
        if not is_dense:
            return [line for part in (X.real, X.imag) for line in _lines(part)]
        X = X.conj() if not is_numpy and X.is_conj() else X  # a flag, which no view can have
        X = X.view(X.real.dtype) if is_numpy else loaded("torch").view_as_real(X).flatten(-2)
    if not is_contiguous(X):
        return [X[..., part] for part in slices(X.shape[-1], LINE if is_dense else LINE // 8)]
    flat = X.reshape(-1)
    whole = flat.shape[0] // LINE * LINE
    return [flat[:whole].reshape(-1, LINE), flat[whole:].reshape(1, -1)]


def _row_blocks(X: Array) -> list[Array]:
    """At most about 64 blocks of rows of X."""
    if 0 in X.shape:
        return []
    n = X.shape[-1]
    if X.ndim > 2:
        X = array_namespace(X).reshape(X, (-1, n))
    m = X.shape[0]
    return [X[part, :] for part in slices(m, max(1, max(2**16, m * n // 64) // n))]


def as_numpy(X: Array) -> Any:
    """The array as a NumPy array on the host: a copy or a view."""
    if is_torch_array(X):
        whole: Any = X
        return (whole.full_tensor() if is_sharded(X) else whole).numpy(force=True)
    if is_cupy_array(X):
        return X.get()
    return np.asarray(to_device(X, array_namespace(X).__array_namespace_info__().default_device()))


def loaded(module: str) -> Any:
    """A module that is already imported, because the caller has its arrays (torch, cupy)."""
    return sys.modules[module]
