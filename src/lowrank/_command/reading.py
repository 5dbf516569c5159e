"""Matrices from files: a list of the matrices of a file, each of which is read when needed."""

import cmath
import csv
import importlib
import io
import re
import reprlib
import sys
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from lowrank._command.arguments import Options
from lowrank._command.telling import InputError, complain, guarded, refuse, required

TEXT = (".csv", ".dat", ".tsv", ".txt")
PACKED = {".bz2": "bz2", ".gz": "gzip", ".xz": "lzma"}  # the modules that decompress
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
NAMED = (".h5", ".hdf5", ".mat", ".npz", ".safetensors", ".xlsx")
KINDS = (*TEXT, ".mtx", ".npy", ".parquet", *NAMED, *IMAGES)
# The kinds of files that each option is for.
TAKING = {"name": NAMED, "decimal": TEXT}
TAKING |= dict.fromkeys(("skip_rows", "skip_columns"), (*TEXT, ".parquet", ".xlsx"))
# Spellings of a missing value in text, in lower case.
MISSING = ("", "-", ".", "?", "n/a", "na", "nan", "nat", "none", "null")
# Decimal commas swap with points: points between thousands are then errors.
SWAPS = {".": {}, ",": str.maketrans(",.", ".,")}

INTEGER = re.compile(r"u?int\d+|bool")
# Dtypes of checkpoints that NumPy has (others are read with torch); and floating dtypes.
NUMPY_DTYPES = re.compile(r"BOOL|[UI](8|16|32|64)|F(16|32|64)|C64")
FLOATING = re.compile(r"B?F\d|C64")

# The names and (if known) shapes of arrays, and a function that reads one of them.
Arrays = tuple[dict[str, Any], Callable[[str], Any]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix, ready for the library, and its dtype and size in the file."""

    array: Any  # NumPy, torch, or SciPy's sparse
    dtype: str  # in the file
    nbytes: int
    itemsize: int


@dataclass(frozen=True, slots=True)
class Source:
    """A matrix that has not been read yet. `name` is empty if the file has only one matrix."""

    path: Path
    read: Callable[[], Any]
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.path}: {self.name}" if self.name else str(self.path)

    def load(self) -> Matrix:
        with guarded(self.label, "read"):
            return _matrix(self.read())


def sources(options: Options) -> list[Source]:
    """The matrices of a file: one, or the floating tensors of two dimensions of a checkpoint."""
    path, kind = options.file, options.file.suffix.lower()
    if is_packed := kind in PACKED:
        kind = Path(path.stem).suffix.lower()
    if is_piped := str(path) == "-":
        kind = ".txt"
    if kind not in (TEXT if is_packed else KINDS):
        packed = f"{' '.join(KINDS)}, and text as {' '.join(PACKED)}"
        refuse(f"{path}: unknown kind of file; known are {packed}")
    for option, kinds in TAKING.items():
        if getattr(options, option) not in (None, 0, ".") and kind not in kinds:
            refuse(f"--{option.replace('_', '-')} is for {' '.join(kinds)}, got {path}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        refuse(f"{path}: is not a file; read it as standard input: lowrank - < {path}")
    arrays = {".npz": _archived, ".mat": _matlab, ".h5": _hdf5, ".hdf5": _hdf5}
    readers = {".npy": _npy, ".mtx": _matrix_market, ".parquet": _parquet, ".xlsx": _sheet}
    with guarded(path, "read"):
        if not is_piped:
            path.open("rb").close()  # first: raises if the file cannot be opened
        if kind == ".safetensors":
            return _tensors(path, options.name)
        if kind in arrays:
            shapes, load = arrays[kind](path)
            name = _chosen(options.name, shapes, "array")
            return [Source(path, partial(load, name), name)]
    readers |= dict.fromkeys(IMAGES, _image) | dict.fromkeys(TEXT, _text)
    return [Source(path, partial(readers[kind], options), options.name or "")]


def _matrix(X: Any) -> Matrix:
    """`X` checked to be a matrix of numbers, in a dtype that the library takes."""
    if fields := getattr(X.dtype, "names", None):
        remedy = "store numpy.lib.recfunctions.structured_to_unstructured(A)"
        refuse(f"holds no matrix, but the fields {', '.join(fields)}; {remedy}")
    if (order := len(X.shape)) != 2:
        remedy = f"; store A[0], or A.reshape(-1, {X.shape[-1]})" if order > 2 else ""
        refuse(f"holds no matrix, but an array of shape {tuple(X.shape)}{remedy}")
    if 0 in X.shape:
        refuse(f"is empty: shape {tuple(X.shape)}")
    # The name, without byte order or library.
    dtype = str(getattr(X.dtype, "name", X.dtype)).removeprefix("torch.")
    if hasattr(X, "check_format"):
        X.check_format(full_check=True)  # wrong indices could crash compiled code
    array = _floating(X, dtype)
    parts: tuple[Any, ...] = (X,)
    if hasattr(array, "tocsr"):
        array = array.tocsr()
        parts = (array.data, array.indices, array.indptr)
    # Factors of an integer matrix are floating-point numbers.
    itemsize = (array if INTEGER.fullmatch(dtype) else X).dtype.itemsize
    return Matrix(array, dtype, sum(part.nbytes for part in parts), itemsize)


def _floating(X: Any, dtype: str) -> Any:
    """`X` in a supported dtype, converted once and not at every call."""
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


def _chosen(name: str | None, shapes: dict[str, Any], kind: str) -> str:
    """The array of that name; without a name, the only array or the only matrix."""
    if not shapes:
        refuse(f"holds no {kind}s")
    names = list(shapes)
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if name is None:
        matrices = [key for key in names if len(shapes[key] or ()) == 2 and min(shapes[key]) > 1]
        for few in (names, matrices):
            if len(few) == 1:
                return few[0]
        refuse(f"holds {len(names)} {kind}s; choose one with --name: {listed}")
    if (name := name.strip("/")) not in shapes:
        refuse(f"holds no {kind} called {name}; it has {listed}")
    return name


# -- kinds of files --------------------------------------------------------------------------------


def _npy(options: Options) -> Any:
    return np.lib.format.open_memmap(options.file, mode="r")


def _archived(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        arrays = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
    if {"format", "shape", "data"} <= set(arrays):
        sparse = required("scipy.sparse", "a sparse .npz file")
        return {"": None}, lambda _: sparse.load_npz(path)
    return dict.fromkeys(arrays), lambda name: np.load(path, allow_pickle=False)[name]


def _matlab(path: Path) -> Arrays:
    with path.open("rb") as stream:
        if stream.read(10) == b"MATLAB 7.3":  # HDF5, transposed
            shapes, load = _hdf5(path)
            return shapes, lambda name: load(name).T
    read = _reader("scipy.io", ".mat")
    shapes = {key: shape for key, shape, _ in read.whosmat(path)}
    return shapes, lambda name: read.loadmat(path, variable_names=[name])[name]


def _hdf5(path: Path) -> Arrays:
    opening = partial(_reader("h5py", path.suffix.lower()).File, path, "r")
    shapes: dict[str, Any] = {}
    with opening() as file:
        file.visititems(lambda key, item: shapes.update({key: getattr(item, "shape", None)}))
    # Groups have no shape; internal names of MATLAB begin with #.
    shapes = {key: shape for key, shape in shapes.items() if shape and not key.startswith("#")}
    return shapes, lambda name: opening()[name][()]


def _matrix_market(options: Options) -> Any:
    # SciPy's parser reads past the end if the last line has no newline.
    content = io.BytesIO(options.file.read_bytes() + b"\n")
    return _reader("scipy.io", ".mtx").mmread(content)


def _parquet(options: Options) -> Any:
    table = _reader("pyarrow.parquet", ".parquet").read_table(options.file)
    named = zip(table.column_names, table.columns, strict=True)
    columns = [X.to_numpy() for name, X in named if not name.startswith("__index_level_")]
    return np.column_stack(columns[options.skip_columns :])[options.skip_rows :]


def _sheet(options: Options) -> Any:
    book = _reader("openpyxl", ".xlsx").load_workbook(options.file, data_only=True)
    sheet = book[_chosen(options.name, dict.fromkeys(book.sheetnames), "sheet")]
    rows = (["" if cell is None else str(cell) for cell in row] for row in sheet.values)
    return _numbers((row if any(row) else [] for row in rows), options)


def _image(options: Options) -> Any:
    with _reader("PIL.Image", options.file.suffix.lower()).open(options.file) as picture:
        if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
            return np.asarray(picture)
        complain(f"{options.file}: its colors are taken as shades of gray")
        return np.asarray(picture.convert("L"))


# -- text ------------------------------------------------------------------------------------------


def _text(options: Options) -> Any:
    """Lines of fields, which are separated by the first mark that the second or first line has."""
    path, swaps = options.file, SWAPS[options.decimal]
    opened = importlib.import_module(PACKED.get(path.suffix.lower(), "io")).open
    stream = sys.stdin.buffer if str(path) == "-" else opened(path, "rb")
    with io.TextIOWrapper(stream, "utf-8-sig", "replace") as text:  # for names
        lines = [line.partition("#")[0].strip(" \r\n").translate(swaps) for line in text]
    filled = filter(None, lines[options.skip_rows :])
    head, marks = [*islice(filled, 2)], ";\t" if swaps else ";\t,"
    mark = next((m for line in reversed(head) for m in marks if m in line), " ")
    return _numbers(csv.reader(lines, delimiter=mark, skipinitialspace=True), options)


def _numbers(rows: Iterable[list[str]], options: Options) -> Any:
    """The numbers of a table; a first line of names is left out."""
    filled = ((k, row) for k, row in enumerate(rows, 1) if row and k > options.skip_rows)
    head = [*islice(filled, 2)]
    if not head:
        refuse("is empty")
    line, first = head[0]
    names = any(map(_is_word, first[options.skip_columns :]))
    if first[0] == "":  # an empty cell above an index
        names = names or options.skip_columns > 0 or _counts([*map(_value, first[1:])])
    if has_names := names and len(head) > 1:
        del head[0]
    width = len(head[0][1])
    X = np.stack([_row(k, fields, width, options) for k, fields in chain(head, filled)])
    if has_names:
        complain(f"{options.file}: line {line} is taken for names and left out")
    if options.skip_columns == 0 and width > 1 and _counts(X[:, 0]):
        complain(f"{options.file}: column 1 counts the lines; --skip-columns 1 leaves it out")
    if not has_names and len(X) > 1 and _counts(X[0]):
        remedy = f"--skip-rows {line} leaves it out"
        complain(f"{options.file}: line {line} counts the columns; {remedy}")
    return X


def _row(line: int, fields: list[str], width: int, options: Options) -> Any:
    """The numbers of a line; otherwise the first place without one, and a remedy."""
    if len(fields) != width:
        refuse(f"line {line} has {len(fields)} columns, those before it {width}")
    for dtype in (float, complex):
        with suppress(ValueError):
            row = np.array([*map(dtype, fields[options.skip_columns :])])
            if np.isfinite(row).all():
                return row
    columns = islice(enumerate(fields, 1), options.skip_columns, None)
    column, field = next((k, f) for k, f in columns if not cmath.isfinite(_value(f)))
    where, shown = f"line {line}, column {column}", reprlib.repr(field)
    said = f"{shown.translate(SWAPS[options.decimal])} is not a finite number"
    remedy = "--skip-rows and --skip-columns leave out the first lines and columns"
    if field.strip().lower() in MISSING:
        said = f"the value is missing ({shown})"
        remedy = "fill it in, or leave out its line or column"
    elif options.decimal == "." and any("," in field for field in fields):
        remedy += ", and --decimal , reads commas as decimal points"
    raise InputError(f"{where}: {said}; {remedy}")


def _value(field: str) -> complex:
    with suppress(ValueError):
        return complex(field)
    return cmath.nan


def _counts(values: Any) -> bool:
    return len(values) > 2 and values[0] in (0, 1) and not any(np.diff(values) != 1)


def _is_word(field: str) -> bool:
    is_number = not cmath.isnan(_value(field))
    is_missing = field.strip().lower() in MISSING
    return not (is_number or is_missing) and any(map(str.isalpha, field))


# -- checkpoints -----------------------------------------------------------------------------------


def _tensors(path: Path, name: str | None) -> list[Source]:
    opening = _reader("safetensors", ".safetensors").safe_open
    # One open file per library for all tensors: opening a file parses the whole header.
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
        return Source(path, partial(library.get_tensor, key), key)

    return [source(key) for key in names]
