"""Matrices from files: which there are, and each one when its turn comes."""

import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lowrank._command.telling import InputError, reason, required

__all__ = ["Matrix", "Source", "as_numpy", "sources"]

TEXT = (".csv", ".tsv", ".txt")
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
    text = partial(_single, path, lambda: _text(path, skip_rows))
    readers: dict[str, Callable[[], list[Source]]] = {
        ".npy": partial(_single, path, lambda: _npy(path)),
        ".npz": lambda: [_archived(path, name)],
        ".mtx": partial(_single, path, lambda: _matrix_market(path)),
        ".safetensors": lambda: _tensors(path, name),
        **dict.fromkeys(TEXT, text),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        message = f"{path}: unknown kind of file; known are {' '.join(sorted(readers))}"
        raise InputError(message)
    if name is not None and suffix not in (".npz", ".safetensors"):
        message = f"--name is for .npz and .safetensors, got {path}"
        raise InputError(message)
    if skip_rows and suffix not in TEXT:
        message = f"--skip-rows is for files of text, got {path}"
        raise InputError(message)
    if path.exists() and not (path.is_file() or path.is_dir()):
        message = f"{path}: is no file; store what it gives in one first"
        raise InputError(message)
    found: list[Source] = _guarded(f"{path}", readers[suffix])
    return found


def _single(path: Path, read: Callable[[], Any]) -> list[Source]:
    path.open("rb").close()  # so that what cannot be opened is told before anything else is done
    return [_source(path, "", None, read)]


def _source(
    path: Path, name: str, shape: tuple[int, ...] | None, read: Callable[[], Any]
) -> Source:
    label = f"{path}: {name}" if shape else f"{path}"
    return Source(name, shape, partial(_guarded, label, lambda: _matrix(read())))


def _guarded(label: str, read: Callable[[], Any]) -> Any:
    """What `read` returns, its errors told in one line that begins with `label`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except InputError as error:
        message = f"{label}: {error}"
    except MemoryError:
        message = f"{label}: does not fit in memory"
    # A damaged file makes the libraries that parse it raise anything.
    except Exception as error:
        said = reason(error)
        if "pickle" in said.lower() or "Python objects" in said:
            said = "it holds Python objects, which are not read"
        message = f"{label}: cannot be read: {said}"
    raise InputError(message)


def as_numpy(X: Any) -> Any:
    """A NumPy array of what a file held or of what the library made of it."""
    return X.toarray() if hasattr(X, "toarray") else np.asarray(X)


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
    dtype = _dtype_name(X)
    array = _floating(X, dtype)
    parts: tuple[Any, ...] = (X,)
    if hasattr(array, "tocsr"):
        array = array.tocsr()
        parts = (array.data, array.indices, array.indptr)
    # The factors of integers are no integers.
    itemsize = (array if INTEGER.fullmatch(dtype) else X).dtype.itemsize
    return Matrix(array, dtype, sum(int(part.nbytes) for part in parts), int(itemsize))


def _floating(X: Any, dtype: str) -> Any:
    """`X` in a dtype of the library, converted once rather than at every call."""
    if INTEGER.fullmatch(dtype):
        return X.double() if hasattr(X, "double") else X.astype(np.float64)
    if dtype in ("float16", "bfloat16") or dtype.startswith("float8"):
        return X.float() if hasattr(X, "float") else X.astype(np.float32)
    if dtype in ("float32", "float64", "complex64", "complex128"):
        return X.astype(dtype) if not getattr(X.dtype, "isnative", True) else X
    message = f"has dtype {dtype}, which is not supported; store it as float64 or complex128"
    raise InputError(message)


def _npy(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            message = "is not a .npy file"
            raise InputError(message)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _archived(path: Path, name: str | None) -> Source:
    path.open("rb").close()
    if not zipfile.is_zipfile(path):
        message = "is not a .npz file"
        raise InputError(message)
    with zipfile.ZipFile(path) as archive:
        arrays = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
    if {"format", "shape", "data"} <= set(arrays) and name is None:
        sparse = required("scipy.sparse", "a sparse .npz file")
        return _source(path, "", None, lambda: _checked(sparse.load_npz(path)))
    name = _chosen(name, arrays, "array")

    def read() -> Any:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]

    return _source(path, name, None, read)


def _checked(X: Any) -> Any:
    """A sparse matrix whose indices point into it: compiled code trusts them."""
    if hasattr(X, "check_format"):
        X.check_format(full_check=True)
    return X


def _chosen(name: str | None, names: list[str], kind: str) -> str:
    if not names:
        message = f"holds no {kind}s"
        raise InputError(message)
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
        return load(float)
    except UnicodeDecodeError as error:
        message = "is not text in UTF-8"
        raise InputError(message) from error
    except ValueError as error:
        real = error
    try:
        return load(complex)
    except ValueError as error:
        # Where complex numbers are meant, the second attempt got further.
        cells = [_cell(real), _cell(error)]
        best = error if all(cells) and cells[0] < cells[1] else real
        raise InputError(_where(best, skip_rows)) from error


def _delimiter(path: Path, skip_rows: int) -> str | None:
    """The first of semicolon, comma and tab that the first line of numbers has; or blanks."""
    marks = "\t;," if path.suffix.lower() == ".tsv" else ";,\t"
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream):
            content = line.partition("#")[0].strip()
            if number >= skip_rows and content:
                return next((mark for mark in marks if mark in content), None)
    message = "is empty"
    raise InputError(message)


NOT_A_NUMBER = re.compile(r"could not convert string (.*) to \w+ at row (\d+), column (\d+)")


def _cell(error: ValueError) -> tuple[int, int]:
    found = NOT_A_NUMBER.match(reason(error))
    return (int(found[2]) + 1, int(found[3])) if found else (0, 0)


def _where(error: ValueError, skip_rows: int) -> str:
    """NumPy's message about a text, in the words of someone who counts rows of numbers from one."""
    said = reason(error)
    if found := NOT_A_NUMBER.match(said):
        text, (row, column) = found[1], _cell(error)
        hint = ""
        if row == 1 and not skip_rows and re.match(r"['\"]\W*[^\W\d]", text):
            hint = "; skip lines of names with --skip-rows"
        elif re.match(r"'\s*\d{1,4}([-/.])\d{1,2}\1\d{1,4}\b", text):
            hint = "; leave out columns of dates"
        elif re.fullmatch(r"'[-+]?\d+,\d+'", text):
            hint = "; commas are not read as decimal points"
        text = text if len(text) <= 60 else f"{text[:50]}…'"
        return f"row {row}, column {column}: {text} is not a number{hint}"
    if found := re.match(r"the number of columns changed from (\d+) to (\d+) at row (\d+)", said):
        return f"row {found[3]} has {found[2]} columns, those before it {found[1]}"
    return f"cannot be read: {said}"


def _matrix_market(path: Path) -> Any:
    read = required("scipy.io", "a .mtx file").mmread
    with path.open("rb") as stream:
        stream.seek(-min(1, path.stat().st_size), os.SEEK_END)
        ended = stream.read() == b"\n"
    # SciPy's parser reads past the end where the last line is not ended.
    return read(path if ended else io.BytesIO(path.read_bytes() + b"\n"))


def _tensors(path: Path, name: str | None) -> list[Source]:
    safetensors = required("safetensors", "a .safetensors file")
    # One opened file for each library, for all tensors: every opening parses the whole header.
    opened = {"numpy": safetensors.safe_open(path, "numpy")}
    shapes, dtypes = {}, {}
    for key in opened["numpy"].keys():  # noqa: SIM118 - no dictionary
        described = opened["numpy"].get_slice(key)
        shapes[key], dtypes[key] = tuple(described.get_shape()), described.get_dtype()
    names = [key for key, shape in shapes.items() if len(shape) == 2]
    if name is not None:
        names = [_chosen(name, list(shapes), "tensor")]
    if not names:
        message = f"holds no matrix: none of its {len(shapes)} tensors has two dimensions"
        raise InputError(message)

    foreign = [key for key in names if not NUMPY_DTYPES.fullmatch(dtypes[key])]
    if foreign:
        required("torch", f"dtype {dtypes[foreign[0]]} of {foreign[0]}")

    def read(key: str) -> Any:
        library = "pt" if key in foreign else "numpy"
        if library not in opened:
            opened[library] = safetensors.safe_open(path, library)
        return opened[library].get_tensor(key)

    return [_source(path, key, shapes[key], partial(read, key)) for key in names]
