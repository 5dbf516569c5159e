"""The one import of array-api-compat, and the small linear algebra that the standard lacks."""

import math
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import (
    array_namespace,
    is_array_api_obj,
    is_cupy_namespace,
    is_numpy_array,
    is_numpy_namespace,
    is_torch_array,
    is_torch_namespace,
)
from array_api_compat import (
    device as device_of,
)

__all__ = [
    "Array",
    "Namespace",
    "adjoint",
    "adjoint_matmul",
    "array_namespace",
    "as_matrix",
    "device_of",
    "eps",
    "eye",
    "is_array_api_obj",
    "is_complex",
    "is_cupy_namespace",
    "is_numpy_namespace",
    "is_torch_namespace",
    "loaded",
    "matrix_norm_by_rows",
    "max_abs",
    "rows_below",
    "safe_norm",
    "same_place",
    "zeros",
]

# Static array types do not exist yet; the alias names the intent.
Array: TypeAlias = Any
Namespace: TypeAlias = ModuleType


def as_matrix(A: Array, /, *, name: str = "A", stacks: bool = False) -> tuple[Array, Namespace]:
    """`A`, checked to be a floating matrix (or stack), in its compute dtype; and its namespace.

    The array type and the device never change. The result may share memory with `A`, so callers
    must not write to it. float16 and bfloat16 have no factorization in any library and become
    float32.
    """
    if isinstance(A, np.matrix | np.ma.MaskedArray):
        message = (
            f"`{name}` is a numpy {type(A).__name__}, whose products are not an array's; "
            f"pass numpy.asarray({name}), filled first if it is masked."
        )
        raise TypeError(message)
    if not is_array_api_obj(A):
        message = (
            f"`{name}` must be an array of NumPy, PyTorch, CuPy or another array-API library, got "
            f"{type(A).__name__}; convert it, for instance with numpy.asarray({name}, dtype=float)."
        )
        raise TypeError(message)
    if is_numpy_array(A):
        A = A.view(np.ndarray)  # memory-mapped files: slices and products are plain arrays
    elif is_torch_array(A):
        A = A.detach()  # no derivatives are promised, and none shall be recorded
    xp = array_namespace(A)
    if A.ndim < 2 or (A.ndim > 2 and not stacks):
        kind = "a matrix or a stack of matrices" if stacks else "a matrix (two dimensions)"
        message = f"`{name}` must be {kind}, got shape {tuple(A.shape)}."
        raise ValueError(message)
    return _promote(A, xp, name), xp


def _promote(A: Array, xp: Namespace, name: str) -> Array:
    if any(
        A.dtype == getattr(xp, supported, None)
        for supported in ("float32", "float64", "complex64", "complex128")
    ):
        return A
    if any(A.dtype == getattr(xp, half, None) for half in ("float16", "bfloat16")):
        return xp.astype(A, xp.float32)
    message = (
        f"`{name}` has dtype {A.dtype}, which has no matrix factorization; cast it to float32, "
        f"float64, complex64 or complex128 first, for instance with xp.astype({name}, xp.float64)."
    )
    raise TypeError(message)


def same_place(X: Array, Y: Array, *, names: tuple[str, str]) -> None:
    """Raise a TypeError unless both arrays have one library, device and dtype."""
    homes = [(array_namespace(Z), device_of(Z), Z.dtype) for Z in (X, Y)]
    if homes[0] != homes[1]:
        told = [
            f"`{name}` is a {xp.__name__.rpartition('.')[2]} array of dtype {dtype} on {device}"
            for name, (xp, device, dtype) in zip(names, homes, strict=True)
        ]
        message = f"{told[0]}, but {told[1]}; convert one to the other."
        raise TypeError(message)


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
    """``Xᴴ Y``, conjugating the (narrow) `Y` and the result instead of the large `X`."""
    xp = array_namespace(X, Y)
    if is_complex(X):
        return xp.conj(xp.matmul(xp.matrix_transpose(X), xp.conj(Y)))
    return xp.matmul(xp.matrix_transpose(X), Y)


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    xp = array_namespace(like)
    return xp.zeros(shape, dtype=like.dtype, device=device_of(like))


def eye(rows: int, columns: int, like: Array) -> Array:
    xp = array_namespace(like)
    return xp.eye(rows, columns, dtype=like.dtype, device=device_of(like))


def rows_below(X: Array, rows: int) -> Array:
    """`X` with `rows` rows of zeros above it."""
    if rows == 0:
        return X
    xp = array_namespace(X)
    return xp.concat([zeros((*X.shape[:-2], rows, X.shape[-1]), X), X], axis=-2)


def max_abs(X: Array) -> float:
    """Largest absolute value of a matrix, by blocks of rows (no copy of `X`)."""
    xp = array_namespace(X)
    parts = [xp.max(xp.abs(block)) for block in _row_blocks(X)]
    return float(xp.max(xp.stack(parts))) if parts else 0.0


def safe_norm(X: Array) -> Array:
    """Frobenius norm as a 0-d array; neither overflows nor underflows. NaN if `X` is not finite."""
    xp = array_namespace(X)
    real = xp.abs(X)
    if 0 in X.shape:
        return xp.sum(real)
    largest = xp.max(real)
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    return largest * _norm(xp, real / scale)


def matrix_norm_by_rows(X: Array) -> float:
    """Frobenius norm of a large matrix without a copy of it. NaN or Inf if `X` is not finite."""
    xp = array_namespace(X)
    if 0 in X.shape:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(_norm(xp, xp.stack([_norm(xp, block) for block in _row_blocks(X)])))
        smallest = float(xp.finfo(X.dtype).smallest_normal)
        if norm < (smallest / eps(X)) ** 0.5 or norm == float("inf"):
            # Squares left the range of the dtype. The norm of a float32 matrix may, too: its size
            # is put back in Python's float.
            largest = max_abs(X)
            if 0.0 < largest < float("inf"):
                parts = [float(_norm(xp, xp.abs(block) / largest)) for block in _row_blocks(X)]
                norm = largest * math.hypot(*parts)
    return norm


def _norm(xp: Namespace, X: Array) -> Array:
    # numpy.linalg.vector_norm squares into a copy; numpy.linalg.norm of the whole is a dot product.
    return np.linalg.norm(X) if is_numpy_namespace(xp) else xp.linalg.vector_norm(X)


def _row_blocks(X: Array) -> list[Array]:
    m, n = X.shape
    if m == 0 or n == 0:
        return []
    rows = max(1, max(2**16, m * n // 64) // n)
    return [X[start : min(start + rows, m), :] for start in range(0, m, rows)]


def loaded(module: str) -> Any:
    """A module that the caller's arrays have already imported (torch, cupy)."""
    return sys.modules[module]
