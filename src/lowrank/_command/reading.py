"""Matrices from files: which there are, and each one when its turn comes."""

import cmath
import csv
import importlib
import io
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowrank._command.arguments import Options
from lowrank._command.telling import complain, guarded, refuse, required

Opened = Callable[[], BinaryIO]

TEXT = (".csv", ".dat", ".tsv", ".txt")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NAMED = (".h5", ".hdf5", ".mat", ".npz", ".safetensors", ".xlsx")
KINDS = (*TEXT, ".mtx", ".npy", ".parquet", *NAMED, *IMAGES)
# Modules that unpack what is read as a stream of bytes.
PACKED = {".bz2": "bz2", ".gz": "gzip", ".xz": "lzma"}
STREAMED = (*TEXT, ".mtx", ".npy")
NPY = b"\x93NUMPY"

# What stands in a text where a value is missing, in lower case.
MISSING = ("", "-", ".", "?", "n/a", "na", "nan", "nat", "none", "null")
# Points between thousands are no numbers then, rather than other numbers.
DECIMAL_COMMAS = str.maketrans(",.", ".,")

INTEGER = re.compile(r"u?int\d+|bool")
# Dtypes of a checkpoint that NumPy has, the others are read with torch; and those of weights.
NUMPY_DTYPES = re.compile(r"BOOL|[UI](8|16|32|64)|F(16|32|64)|C64")
FLOATING = re.compile(r"B?F\d|C64")


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
    shape: tuple[int, ...] | None = None  # of a tensor of a checkpoint

    def load(self) -> Matrix:
        with guarded(f"{self.path}: {self.name}" if self.shape else self.path, "read"):
            return _matrix(self.read())


def sources(options: Options) -> list[Source]:
    """The matrices of a file: one, or the floating tensors of two dimensions of a checkpoint."""
    path, name = options.file, options.name
    opened, kind, known = partial(path.open, "rb"), path.suffix.lower(), KINDS
    if str(path) == "-":
        opened = partial(io.BytesIO, content := sys.stdin.buffer.read())
        kind, known = ".npy" if content.startswith(NPY) else ".txt", STREAMED
    elif kind in PACKED:
        opened = partial(importlib.import_module(PACKED[kind]).open, path)
        kind, known = Path(path.stem).suffix.lower(), STREAMED
    if kind not in known:
        packed = f"; {' '.join(STREAMED)} also as {' '.join(PACKED)}"
        refuse(f"{path}: unknown kind of file; known are {' '.join(KINDS)}{packed}")
    for option, given, kinds in (
        ("--name", name, NAMED),
        ("--skip-rows", options.skip_rows, (*TEXT, ".xlsx")),
        ("--skip-columns", options.skip_columns, (*TEXT, ".parquet", ".xlsx")),
        ("--decimal", options.decimal == ",", TEXT),
    ):
        if given and kind not in kinds:
            refuse(f"{option} is for {' '.join(kinds)}, got {path}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        refuse(f"{path}: is no file; read it as standard input: lowrank - < {path}")
    with guarded(path, "read"):
        opened().close()  # what cannot be opened is told before anything else is done
        match kind:
            case ".safetensors":
                return _tensors(path, name)
            case ".npz":
                return [_archived(path, name)]
            case ".mat":
                return [_matlab(path, name)]
            case ".h5" | ".hdf5":
                return [_hdf5(path, name)]
            case ".npy":
                read = partial(_npy, opened, path if known is KINDS else None)
            case ".mtx":
                read = partial(_matrix_market, opened)
            case ".parquet":
                read = partial(_parquet, path, options.skip_columns)
            case ".xlsx":
                read = partial(_sheet, path, options)
            case _:
                read = partial(_image, path) if kind in IMAGES else partial(_text, opened, options)
    return [Source(path, read, name or "")]


def as_numpy(X: Any) -> Any:
    """A NumPy array of what a file held or of what the library made of it."""
    return X.toarray() if hasattr(X, "toarray") else np.asarray(X)


def _matrix(X: Any) -> Matrix:
    """`X` checked to be a matrix of numbers, in a dtype that the library takes."""
    if fields := getattr(X.dtype, "names", None):
        remedy = "store numpy.lib.recfunctions.structured_to_unstructured(A)"
        refuse(f"holds no matrix, but the fields {', '.join(fields)}; {remedy}")
    if (order := len(X.shape)) != 2:
        remedy = f"; store A[0], or A.reshape(-1, {X.shape[-1]})" if order > 2 else ""
        dimensions = "1 dimension" if order == 1 else f"{order} dimensions"
        refuse(f"holds no matrix: {dimensions}, shape {tuple(X.shape)}{remedy}")
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


def _reader(package: str, kind: str) -> Any:
    instead = ", or save the matrix as .csv or .npy where it comes from"
    return required(package, f"a {kind} file", instead)


def _chosen(name: str | None, shapes: Mapping[str, Any], kind: str = "array") -> str:
    """The array of that name; without one the only array, or the only one that is no vector."""
    if not shapes:
        refuse(f"holds no {kind}s")
    matrices = [
        key for key, shape in shapes.items() if shape and len(shape) == 2 and min(shape) > 1
    ]
    names = list(shapes)
    if name is None and 1 in (len(names), len(matrices)):
        return names[0] if len(names) == 1 else matrices[0]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if name is None:
        refuse(f"holds {len(names)} {kind}s; choose one with --name: {listed}")
    if name not in shapes:
        refuse(f"holds no {kind} called {name}; it has {listed}")
    return name


# -- one kind of file after the other --------------------------------------------------------------


def _npy(opened: Opened, path: Path | None) -> Any:
    """Memory-mapped, where there is a path."""
    with opened() as stream:
        if stream.read(6) != NPY:
            refuse("is not a .npy file")
    if path is not None:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with opened() as stream:
        return np.load(stream, allow_pickle=False)


def _archived(path: Path, name: str | None) -> Source:
    if not zipfile.is_zipfile(path):
        refuse("is not a .npz file")
    with zipfile.ZipFile(path) as archive:
        arrays = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
    if {"format", "shape", "data"} <= set(arrays) and name is None:
        sparse = required("scipy.sparse", "a sparse .npz file")
        return Source(path, partial(sparse.load_npz, path))
    name = _chosen(name, dict.fromkeys(arrays))

    def read() -> Any:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]

    return Source(path, read, name)


def _matlab(path: Path, name: str | None) -> Source:
    with path.open("rb") as stream:
        if stream.read(10) == b"MATLAB 7.3":
            return _hdf5(path, name, by_columns=True)
    scipy_io = _reader("scipy.io", ".mat")
    name = _chosen(name, {key: shape for key, shape, _ in scipy_io.whosmat(path)})
    return Source(path, lambda: scipy_io.loadmat(path, variable_names=[name])[name], name)


def _hdf5(path: Path, name: str | None, *, by_columns: bool = False) -> Source:
    opening = partial(_reader("h5py", path.suffix.lower()).File, path, "r")
    shapes: dict[str, Any] = {}

    def visit(key: str, item: Any) -> None:
        if getattr(item, "shape", None) and not key.startswith("#"):  # which MATLAB keeps to itself
            shapes[key] = item.shape

    with opening() as file:
        file.visititems(visit)
    name = _chosen(name and name.strip("/"), shapes, "dataset")

    def read() -> Any:
        with opening() as file:
            return file[name][()].T if by_columns else file[name][()]

    return Source(path, read, name)


def _matrix_market(opened: Opened) -> Any:
    read = _reader("scipy.io", ".mtx").mmread
    with opened() as stream:
        # SciPy's parser reads past the end where the last line is not ended.
        return read(io.BytesIO(stream.read() + b"\n"))


def _parquet(path: Path, skip_columns: int) -> Any:
    table = _reader("pyarrow.parquet", ".parquet").read_table(path)
    named = zip(table.column_names, table.columns, strict=True)
    columns = [X.to_numpy() for name, X in named if not name.startswith("__index_level_")]
    return np.column_stack(columns[skip_columns:])


def _sheet(path: Path, options: Options) -> Any:
    """A sheet as the text that a spreadsheet would export, with the same lines and columns."""
    book, text = _reader("openpyxl", ".xlsx").load_workbook(path, data_only=True), io.StringIO()
    for row in book[_chosen(options.name, dict.fromkeys(book.sheetnames), "sheet")].values:
        cells = ["" if cell is None else " ".join(str(cell).split()) for cell in row]
        csv.writer(text, delimiter=";").writerow(cells if any(cells) else ())
    return _text(partial(io.BytesIO, text.getvalue().encode()), options)


def _image(path: Path) -> Any:
    with _reader("PIL.Image", path.suffix.lower()).open(path) as picture:
        if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
            return np.asarray(picture)
        complain(f"{path}: its colors are taken as shades of gray")
        return np.asarray(picture.convert("L"))


# -- text ------------------------------------------------------------------------------------------


def _text(opened: Opened, options: Options) -> Any:
    """Numbers in lines and columns, without a first line of names."""
    skip_rows, skip_columns = options.skip_rows, options.skip_columns
    swapped = DECIMAL_COMMAS if options.decimal == "," else {}
    head = list(islice(_contents(opened, skip_rows), 2))
    if not head:
        refuse("is empty")
    mark = next((mark for mark in ";\t," if mark in head[-1][1] and mark != options.decimal), " ")
    first = _fields(head[0][1], mark)
    words = [field for field in first[skip_columns:] if _is_word(field.translate(swapped))]
    has_names = len(head) > 1 and bool(words or "" in first[:skip_columns])
    if has_names:
        skip_rows = head[0][0]
    X = None
    for dtype in (float, complex):
        with suppress(ValueError), _lines(opened) as lines:
            X = np.loadtxt(
                (line.translate(swapped) for line in lines),
                dtype,
                delimiter=None if mark == " " else mark,
                skiprows=skip_rows,
                ndmin=2,
                quotechar='"',
                converters=dict.fromkeys(range(min(skip_columns, len(first))), lambda _: 0.0),
            )
            break
    if X is None or not np.isfinite(X).all():
        refuse(_fault(_contents(opened, skip_rows), mark, swapped, skip_columns))
    if has_names:
        complain(f"{options.file}: line {skip_rows} is taken for names and left out")
    if not skip_columns and X.shape[1] > 1 and len(X) > 2 and X[0, 0] in (0, 1):
        if np.array_equal(X[:, 0] - X[0, 0], np.arange(len(X))):
            hint = "column 1 counts the lines; --skip-columns 1 leaves it out"
            complain(f"{options.file}: {hint}")
    return X[:, skip_columns:]


def _lines(opened: Opened) -> io.TextIOWrapper:
    """As text in UTF-8; other letters are only in names."""
    return io.TextIOWrapper(opened(), "utf-8-sig", "replace")


def _contents(opened: Opened, skip_rows: int) -> Iterator[tuple[int, str]]:
    """The lines that have a content, numbered from 1, without their comments."""
    with _lines(opened) as lines:
        for number, line in enumerate(lines, 1):
            content = line.partition("#")[0].strip(" \r\n")
            if content and number > skip_rows:
                yield number, content


def _fields(content: str, mark: str) -> list[str]:
    return next(csv.reader([content], delimiter=mark, skipinitialspace=True))


def _value(field: str) -> complex:
    with suppress(ValueError):
        return complex(field)
    return cmath.nan


def _is_word(field: str) -> bool:
    is_number = not cmath.isnan(_value(field)) or field.strip().lower() in MISSING
    return not is_number and any(map(str.isalpha, field))


def _fault(
    contents: Iterator[tuple[int, str]], mark: str, swapped: dict[int, int], skip_columns: int
) -> str:
    """The first place, counted in the file from 1, where there is no number; and what to do."""
    width = 0
    for number, content in contents:
        fields = _fields(content, mark)
        for column, field in enumerate(fields[skip_columns:], skip_columns + 1):
            if cmath.isfinite(_value(field.translate(swapped))):
                continue
            where, shown = f"line {number}, column {column}", ascii_(field)
            if field.strip().lower() in MISSING:
                remedy = "fill it in, for instance with the mean of its column"
                return f"{where}: the value is missing ({shown}); {remedy}, or leave out its line or column"
            remedy = "--skip-rows and --skip-columns leave out the first lines and columns"
            if not swapped and cmath.isfinite(_value(field.replace(",", "."))):
                remedy = "--decimal , reads commas as decimal points"
            return f"{where}: {shown} is not a finite number; {remedy}"
        width = width or len(fields)
        if len(fields) != width:
            return f"line {number} has {len(fields)} columns, the lines before it {width}"
    return "cannot be read as numbers"


# -- checkpoints -----------------------------------------------------------------------------------


def _tensors(path: Path, name: str | None) -> list[Source]:
    opening = _reader("safetensors", ".safetensors").safe_open
    # One opened file for each library, for all tensors: every opening parses the whole header.
    arrays = tensors = opening(path, "numpy")
    described = {key: arrays.get_slice(key) for key in arrays.keys()}  # noqa: SIM118 - no dictionary
    shapes = {key: tuple(about.get_shape()) for key, about in described.items()}
    dtypes = {key: about.get_dtype() for key, about in described.items()}
    names = [key for key in shapes if len(shapes[key]) == 2 and FLOATING.match(dtypes[key])]
    if name is not None:
        names = [_chosen(name, shapes, "tensor")]
    if not names:
        refuse(f"holds no matrix: none of its {len(shapes)} tensors is floating, of two dimensions")
    foreign = [key for key in names if not NUMPY_DTYPES.fullmatch(dtypes[key])]
    if foreign:
        required("torch", f"dtype {dtypes[foreign[0]]} of {foreign[0]}")
        tensors = opening(path, "pt")

    def source(key: str) -> Source:
        library = tensors if key in foreign else arrays
        return Source(path, partial(library.get_tensor, key), key, shapes[key])

    return [source(key) for key in names]
