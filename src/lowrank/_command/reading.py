"""Matrices from files: which there are, and each one when its turn comes."""

import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowrank._command.errors import InputError, reason, required

__all__ = ["Matrix", "Source", "as_numpy", "sources"]

INTEGER = re.compile(r"u?int\d+|bool")
# Dtypes of a checkpoint that NumPy has; the others are read with torch.
NUMPY_DTYPES = re.compile(r"BOOL|[UI](8|16|32|64)|F(16|32|64)|C64")


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix, ready for the library, and what the file takes for it."""

    array: Any  # NumPy, torch, or SciPy's sparse
    dtype: str  # in the file
    nbytes: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix that has not been read yet. `name` is empty where a file holds only one."""

    name: str
    shape: tuple[int, ...] | None  # where it is known without reading
    load: Callable[[], Matrix]


def sources(path: Path, name: str | None, skip_rows: int) -> list[Source]:
    """The matrices of a file: one, or the tensors of two dimensions of a checkpoint."""
    readers: dict[str, Callable[[], list[Source]]] = {
        ".npy": lambda: [Source("", None, lambda: _matrix(_npy(path)))],
        ".npz": lambda: [_archived(path, name)],
        ".mtx": lambda: [Source("", None, lambda: _matrix(_matrix_market(path)))],
        ".safetensors": lambda: _tensors(path, name),
    }
    for suffix in (".csv", ".tsv", ".txt"):
        readers[suffix] = lambda: [Source("", None, lambda: _matrix(_text(path, skip_rows)))]
    if path.suffix not in readers:
        message = f"{path}: unknown kind of file; known are {' '.join(sorted(readers))}"
        raise InputError(message)
    if name is not None and path.suffix not in (".npz", ".safetensors"):
        message = f"--name is for .npz and .safetensors, got {path}"
        raise InputError(message)
    if skip_rows and path.suffix not in (".csv", ".tsv", ".txt"):
        message = f"--skip-rows is for files of text, got {path}"
        raise InputError(message)
    return _guarded(path, readers[path.suffix])


def _guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns, its errors told in one line that names the file."""
    try:
        with path.open("rb"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read()
    except InputError as error:
        message = f"{path}: {error}"
        raise InputError(message) from error
    except MemoryError as error:
        message = f"{path}: does not fit in memory"
        raise InputError(message) from error
    # A damaged file makes the libraries that parse it raise anything.
    except Exception as error:
        message = f"{path}: cannot be read: {reason(error)}"
        raise InputError(message) from error
    if isinstance(found, list):
        return [
            Source(source.name, source.shape, partial(_guarded, path, source.load))
            for source in found
        ]
    return found


def as_numpy(X: Any) -> Any:
    """A NumPy array of what a file held or of what the library made of it."""
    if hasattr(X, "toarray"):
        return X.toarray()
    if hasattr(X, "detach"):  # torch, which reads only the real dtypes that NumPy lacks
        return (X.float() if "float16" in _dtype_name(X) else X).numpy()
    return np.asarray(X)


def _dtype_name(X: Any) -> str:
    """Name of the dtype, without byte order or library."""
    return str(getattr(X.dtype, "name", X.dtype)).removeprefix("torch.")


def _matrix(X: Any) -> Matrix:
    """`X` checked to be a matrix of numbers, in a dtype that the library takes."""
    if len(X.shape) != 2:
        dimensions = "1 dimension" if len(X.shape) == 1 else f"{len(X.shape)} dimensions"
        message = f"holds no matrix: {dimensions}, shape {tuple(X.shape)}"
        raise InputError(message)
    if 0 in X.shape:
        message = f"is empty: shape {tuple(X.shape)}"
        raise InputError(message)
    array = _floating(X)
    # Integers count as what they are read as, since their factors are not integers.
    stored = array if INTEGER.fullmatch(_dtype_name(X)) else X
    parts: tuple[Any, ...] = (stored,)
    if hasattr(array, "tocsr"):
        array = stored = array.tocsr()
        parts = (array.data, array.indices, array.indptr)
    nbytes = sum(int(part.nbytes) for part in parts)
    return Matrix(array, _dtype_name(X), nbytes, int(stored.dtype.itemsize))


def _floating(X: Any) -> Any:
    name = _dtype_name(X)
    if INTEGER.fullmatch(name):
        return X.double() if hasattr(X, "double") else X.astype(np.float64)
    if name in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128"):
        return X
    if name.startswith("float8"):
        return X.float()
    message = f"has dtype {name}, which is not supported; store it as float64 or complex128"
    raise InputError(message)


def _npy(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            message = "is not a .npy file"
            raise InputError(message)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _archived(path: Path, name: str | None) -> Source:
    if not zipfile.is_zipfile(path):
        message = "is not a .npz file"
        raise InputError(message)
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
    if {"format", "shape", "data"} <= set(names) and name is None:
        sparse = required("scipy.sparse", "a sparse .npz file")
        return Source("", None, lambda: _matrix(sparse.load_npz(path)))
    name = _chosen(name, names, "array")

    def load() -> Matrix:
        with np.load(path, allow_pickle=False) as archive:
            return _matrix(archive[name])

    return Source(name, None, load)


def _chosen(name: str | None, names: list[str], kind: str) -> str:
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        message = f"holds {len(names)} {kind}s; choose one with --name: {listed}"
        raise InputError(message)
    if name not in names:
        message = f"holds no {kind} called {name}; it has {listed}"
        raise InputError(message)
    return name


def _text(path: Path, skip_rows: int) -> Any:
    def load(dtype: type) -> Any:
        return np.loadtxt(
            path,
            dtype=dtype,
            delimiter=delimiter,
            skiprows=skip_rows,
            ndmin=2,
            encoding="utf-8-sig",
            quotechar='"',
        )

    try:
        delimiter = _delimiter(path, skip_rows)
        try:
            return load(float)
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            try:
                return load(complex)
            except ValueError:
                raise error from None
    except UnicodeDecodeError as error:
        message = "is not text in UTF-8"
        raise InputError(message) from error
    except ValueError as error:
        raise InputError(_where(error, skip_rows)) from error


def _delimiter(path: Path, skip_rows: int) -> str | None:
    """The first of semicolon, comma and tab that the first line of numbers has; or blanks."""
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream):
            content = line.partition("#")[0].strip()
            if number >= skip_rows and content:
                return next((mark for mark in ";,\t" if mark in content), None)
    message = "is empty"
    raise InputError(message)


def _where(error: ValueError, skip_rows: int) -> str:
    """NumPy's message about a text, in the words of someone who counts rows from one."""
    said = reason(error)
    if found := re.match(r"could not convert string (.*) to \w+ at row (\d+), column (\d+)", said):
        text, row, column = found[1], int(found[2]) + 1, found[3]
        hint = "; skip lines of names with --skip-rows" if row == 1 and not skip_rows else ""
        return f"row {row}, column {column}: {text} is not a number{hint}"
    if found := re.match(r"the number of columns changed from (\d+) to (\d+) at row (\d+)", said):
        return f"row {found[3]} has {found[2]} columns, those before it {found[1]}"
    return f"cannot be read: {said}"


def _matrix_market(path: Path) -> Any:
    return required("scipy.io", "a .mtx file").mmread(path)


def _tensors(path: Path, name: str | None) -> list[Source]:
    safetensors = required("safetensors", "a .safetensors file")
    with safetensors.safe_open(path, "numpy") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        dtypes = {key: file.get_slice(key).get_dtype() for key in shapes}
    names = [key for key, shape in shapes.items() if len(shape) == 2]
    if name is not None:
        names = [_chosen(name, list(shapes), "tensor")]
    if not names:
        message = f"holds no matrix: none of its {len(shapes)} tensors has two dimensions"
        raise InputError(message)

    def load(key: str) -> Matrix:
        library = "numpy"
        if not NUMPY_DTYPES.fullmatch(dtypes[key]):
            required("torch", f"the dtype {dtypes[key]} of {key}")
            library = "pt"
        with safetensors.safe_open(path, library) as file:
            return _named(key, lambda: _matrix(file.get_tensor(key)))

    return [Source(key, shapes[key], partial(load, key)) for key in names]


def _named(name: str, read: Callable[[], Matrix]) -> Matrix:
    try:
        return read()
    except InputError as error:
        message = f"{name}: {error}"
        raise InputError(message) from error
