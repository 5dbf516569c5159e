"""Matrices from files: which there are, and each one when its turn comes."""

import io
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lowrank._command.telling import InputError, guarded, reason, refuse, required

TEXT = (".csv", ".tsv", ".txt")
KINDS = sorted((*TEXT, ".mtx", ".npy", ".npz", ".safetensors"))
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

    path: Path
    read: Callable[[], Any]
    name: str = ""
    shape: tuple[int, ...] | None = None  # where it is known without reading

    def load(self) -> Matrix:
        with guarded(f"{self.path}: {self.name}" if self.shape else self.path, "read"):
            return _matrix(self.read())


def sources(path: Path, name: str | None, skip_rows: int) -> list[Source]:
    """The matrices of a file: one, or the tensors of two dimensions of a checkpoint."""
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        refuse(f"{path}: unknown kind of file; known are {' '.join(KINDS)}")
    if name is not None and suffix not in (".npz", ".safetensors"):
        refuse(f"--name is for .npz and .safetensors, got {path}")
    if skip_rows and suffix not in TEXT:
        refuse(f"--skip-rows is for files of text, got {path}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        refuse(f"{path}: is no file; store what it gives in one first")
    with guarded(path, "read"):
        path.open("rb").close()  # what cannot be opened is told before anything else is done
        if suffix == ".safetensors":
            return _tensors(path, name)
        if suffix == ".npz":
            return [_archived(path, name)]
    readers = {".npy": _npy, ".mtx": _matrix_market}
    read = readers.get(suffix, partial(_text, skip_rows=skip_rows))
    return [Source(path, partial(read, path))]


def as_numpy(X: Any) -> Any:
    """A NumPy array of what a file held or of what the library made of it."""
    return X.toarray() if hasattr(X, "toarray") else np.asarray(X)


def _matrix(X: Any) -> Matrix:
    """`X` checked to be a matrix of numbers, in a dtype that the library takes."""
    if len(X.shape) != 2:
        dimensions = "1 dimension" if len(X.shape) == 1 else f"{len(X.shape)} dimensions"
        refuse(f"holds no matrix: {dimensions}, shape {tuple(X.shape)}")
    if 0 in X.shape:
        refuse(f"is empty: shape {tuple(X.shape)}")
    # By a name without byte order or library.
    dtype = str(getattr(X.dtype, "name", X.dtype)).removeprefix("torch.")
    if hasattr(X, "check_format"):
        X.check_format(full_check=True)  # compiled code trusts the indices of a sparse matrix
    array = _floating(X, dtype)
    parts: tuple[Any, ...] = (X,)
    if hasattr(array, "tocsr"):
        array = array.tocsr()
        parts = (array.data, array.indices, array.indptr)
    # The factors of integers are no integers.
    itemsize = (array if INTEGER.fullmatch(dtype) else X).dtype.itemsize
    return Matrix(array, dtype, sum(part.nbytes for part in parts), itemsize)


def _floating(X: Any, dtype: str) -> Any:
    """`X` in a dtype of the library, converted once rather than at every call."""
    if INTEGER.fullmatch(dtype):
        return X.double() if hasattr(X, "double") else X.astype(np.float64)
    if dtype in ("float16", "bfloat16") or dtype.startswith("float8"):
        return X.float() if hasattr(X, "float") else X.astype(np.float32)
    if dtype not in ("float32", "float64", "complex64", "complex128"):
        refuse(f"has dtype {dtype}, which is not supported; store it as float64 or complex128")
    return X if getattr(X.dtype, "isnative", True) else X.astype(dtype)


def _npy(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            refuse("is not a .npy file")
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _archived(path: Path, name: str | None) -> Source:
    if not zipfile.is_zipfile(path):
        refuse("is not a .npz file")
    with zipfile.ZipFile(path) as archive:
        arrays = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
    if {"format", "shape", "data"} <= set(arrays) and name is None:
        sparse = required("scipy.sparse", "a sparse .npz file")
        return Source(path, partial(sparse.load_npz, path))
    name = _chosen(name, arrays, "array")

    def read() -> Any:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]

    return Source(path, read, name)


def _chosen(name: str | None, names: list[str], kind: str) -> str:
    if not names:
        refuse(f"holds no {kind}s")
    if name is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if name is None:
        refuse(f"holds {len(names)} {kind}s; choose one with --name: {listed}")
    if name not in names:
        refuse(f"holds no {kind} called {name}; it has {listed}")
    return name


def _text(path: Path, skip_rows: int) -> Any:
    errors = []
    for dtype in (float, complex):
        try:
            return np.loadtxt(
                path,
                dtype,
                delimiter=_delimiter(path, skip_rows),
                skiprows=skip_rows,
                ndmin=2,
                encoding="utf-8-sig",
                quotechar='"',
            )
        except UnicodeDecodeError:
            refuse("is not text in UTF-8")
        except ValueError as error:
            errors.append(error)
    # Where complex numbers are meant, the second attempt got further.
    raise InputError(_where(max(errors, key=_cell), skip_rows))


def _delimiter(path: Path, skip_rows: int) -> str | None:
    """The first of semicolon, comma and tab that the first line of numbers has; or blanks."""
    marks = "\t;," if path.suffix.lower() == ".tsv" else ";,\t"
    with path.open(encoding="utf-8-sig") as stream:
        contents = (line.partition("#")[0].strip() for line in islice(stream, skip_rows, None))
        first = next(filter(None, contents), None)
    if first is None:
        refuse("is empty")
    return next((mark for mark in marks if mark in first), None)


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
    opening = required("safetensors", "a .safetensors file").safe_open
    # One opened file for each library, for all tensors: every opening parses the whole header.
    arrays = tensors = opening(path, "numpy")
    described = {key: arrays.get_slice(key) for key in arrays.keys()}  # noqa: SIM118 - no dictionary
    shapes = {key: tuple(about.get_shape()) for key, about in described.items()}
    names = [key for key, shape in shapes.items() if len(shape) == 2]
    if name is not None:
        names = [_chosen(name, list(shapes), "tensor")]
    if not names:
        refuse(f"holds no matrix: none of its {len(shapes)} tensors has two dimensions")

    foreign = [key for key in names if not NUMPY_DTYPES.fullmatch(described[key].get_dtype())]
    if foreign:
        required("torch", f"dtype {described[foreign[0]].get_dtype()} of {foreign[0]}")
        tensors = opening(path, "pt")

    def source(key: str) -> Source:
        library = tensors if key in foreign else arrays
        return Source(path, partial(library.get_tensor, key), key, shapes[key])

    return [source(key) for key in names]
