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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowrank._cli.arguments import Options
from lowrank._cli.telling import InputError, complain, guarded, refuse, required

TEXT = (".csv", ".dat", ".tsv", ".txt")
PACKED = {".bz2": "bz2", ".gz": "gzip", ".xz": "lzma"}  # the modules that decompress
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
CHECKPOINT = ".safetensors"
FLOATING = re.compile(r"B?F\d|C64")  # the dtypes of a checkpoint that are taken
NUMPY_DTYPES = ("F16", "F32", "F64", "C64")  # others are read with torch
# Spellings of a missing value in text, in lower case.
MISSING = ("", "-", ".", "?", "n/a", "na", "nan", "nat", "none", "null")
# Decimal commas swap with points: points between thousands are then errors.
SWAPS = {".": {}, ",": str.maketrans(",.", ".,")}

# The name of a matrix, empty if a file can have only one, and a function that reads it.
Source = tuple[str, Callable[[], Any]]
# The names and (if known) shapes of arrays, and a function that reads one of them.
Arrays = tuple[dict[str, Any], Callable[[str], Any]]


class Matrix(NamedTuple):
    """A matrix, ready for the library, and its dtype and size in the file."""

    array: Any  # NumPy, or SciPy's sparse
    dtype: str  # in the file
    nbytes: int
    itemsize: int


def sources(options: Options) -> list[Source]:
    """The matrices of a file: one, or the floating tensors of two dimensions of a checkpoint."""
    path, kind, known = options.file, options.file.suffix.lower(), [*WHOLE, *NAMED]
    if kind in PACKED:
        kind, known = Path(path.stem).suffix.lower(), [*TEXT]
    if str(path) == "-":
        kind = ".txt"
    if kind not in known:
        packed = f"{' '.join([*WHOLE, *NAMED])}, and text as {' '.join(PACKED)}"
        refuse(f"{path}: unknown kind of file; supported are {packed}")
    taking: dict[str, Iterable[str]] = {"name": NAMED, "decimal": TEXT}
    taking |= dict.fromkeys(("skip_rows", "skip_columns"), (*TEXT, ".parquet", ".xlsx"))
    for option, kinds in taking.items():
        if getattr(options, option) not in (None, 0, ".") and kind not in kinds:
            refuse(f"--{option.replace('_', '-')} applies to {' '.join(kinds)} only, got {path}")
    if kind in WHOLE:
        return [("", partial(WHOLE[kind], options))]
    with guarded(path, "read"):
        path.stat()  # raises if there is no file
        shapes, load = NAMED[kind](options)
        if not shapes:
            refuse("holds no matrix")
        if kind != CHECKPOINT or options.name is not None:
            return [(name := _chosen(options.name, shapes), partial(load, name))]
    return [(name, partial(load, name)) for name in shapes]


def matrix_of(read: Callable[[], Any], label: str) -> Matrix:
    """What `read` reads, checked to be a matrix of numbers, in a dtype that the library takes."""
    with guarded(label, "read"):
        X = read()
        if fields := getattr(X.dtype, "names", None):
            remedy = "store numpy.lib.recfunctions.structured_to_unstructured(A)"
            refuse(f"holds no matrix, only the fields {', '.join(fields)}; {remedy}")
        if (order := len(X.shape)) != 2:
            remedy = f"; store A[0], or A.reshape(-1, {X.shape[-1]})" if order > 2 else ""
            refuse(f"holds no matrix, only an array of shape {tuple(X.shape)}{remedy}")
        if 0 in X.shape:
            refuse(f"is empty: shape {tuple(X.shape)}")
        if hasattr(X, "check_format"):
            X.check_format(full_check=True)  # wrong indices could crash compiled code
        # The name, without byte order or library.
        dtype = str(getattr(X.dtype, "name", X.dtype)).removeprefix("torch.")
        array = X.float().numpy() if hasattr(X, "float") else X
        is_integer = array.dtype.kind in "biu"
        wide = {"float16": "float32"}.get(array.dtype.name, array.dtype.name)
        if not is_integer and wide not in ("float32", "float64", "complex64", "complex128"):
            refuse(f"has dtype {dtype}, which is not supported; store it as float64 or complex128")
        array = array.astype("float64" if is_integer else wide, copy=False)
        parts = [X]
        if hasattr(array, "tocsr"):
            array = array.tocsr()
            parts = [array.data, array.indices, array.indptr]
        # Factors of an integer matrix are floating-point numbers.
        itemsize = (array if is_integer else X).dtype.itemsize
        return Matrix(array, dtype, sum(part.nbytes for part in parts), itemsize)


def _reader(package: str, kind: str) -> Any:
    instead = ", or save the matrix as .csv or .npy where it comes from"
    return required(package, f"a {kind} file", instead)


def _chosen(name: str | None, shapes: dict[str, Any]) -> str:
    """The array of that name; without a name, the only array or the only matrix."""
    names = list(shapes)
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if name is None:
        matrices = [key for key in names if len(shapes[key] or ()) == 2 and min(shapes[key]) > 1]
        for few in (names, matrices):
            if len(few) == 1:
                return few[0]
        refuse(f"choose one of {len(names)} with --name: {listed}")
    if (name := name.strip("/")) not in shapes:
        refuse(f"holds no matrix called {name}; it has {listed}")
    return name


# -- kinds of files --------------------------------------------------------------------------------


def _npy(options: Options) -> Any:
    return np.lib.format.open_memmap(options.file, mode="r")


def _archived(options: Options) -> Arrays:
    with zipfile.ZipFile(options.file) as archive:
        arrays = [m.removesuffix(".npy") for m in archive.namelist() if m.endswith(".npy")]
    if {"format", "shape", "data"} <= set(arrays):
        sparse = required("scipy.sparse", "a sparse .npz file")
        return {"": None}, lambda _: sparse.load_npz(options.file)
    return dict.fromkeys(arrays), lambda name: np.load(options.file, allow_pickle=False)[name]


def _matlab(options: Options) -> Arrays:
    with options.file.open("rb") as stream:
        if stream.read(10) == b"MATLAB 7.3":  # HDF5, transposed
            shapes, load = _hdf5(options)
            return shapes, lambda name: load(name).T
    read = _reader("scipy.io", ".mat")
    shapes = {key: shape for key, shape, _ in read.whosmat(options.file)}
    return shapes, lambda name: read.loadmat(options.file, variable_names=[name])[name]


def _hdf5(options: Options) -> Arrays:
    opening = partial(_reader("h5py", options.file.suffix.lower()).File, options.file, "r")
    shapes: dict[str, Any] = {}
    with opening() as file:
        file.visititems(lambda key, item: shapes.update({key: getattr(item, "shape", None)}))
    # Groups have no shape; internal names of MATLAB begin with #.
    shapes = {key: shape for key, shape in shapes.items() if shape and not key.startswith("#")}
    return shapes, lambda name: opening()[name][()]


def _sheets(options: Options) -> Arrays:
    book = _reader("openpyxl", ".xlsx").load_workbook(options.file, data_only=True)

    def load(name: str) -> Any:
        rows = (["" if cell is None else str(cell) for cell in row] for row in book[name].values)
        return _numbers(enumerate((row if any(row) else [] for row in rows), 1), options)

    return dict.fromkeys(book.sheetnames), load


def _tensors(options: Options) -> Arrays:
    """The floating matrices of a checkpoint."""
    opening = partial(_reader("safetensors", CHECKPOINT).safe_open, options.file)
    with opening("numpy") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
        dtypes = {key: part.get_dtype() for key, part in slices.items()}
        shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    matrices = [key for key in shapes if len(shapes[key]) == 2 and FLOATING.match(dtypes[key])]
    foreign = [key for key in matrices if dtypes[key] not in NUMPY_DTYPES]
    for key in foreign:
        if options.name in (None, key):
            required("torch", f"dtype {dtypes[key]} of {key}")
    shapes = {key: shapes[key] for key in matrices}
    return shapes, lambda name: opening("pt" if name in foreign else "numpy").get_tensor(name)


def _matrix_market(options: Options) -> Any:
    # SciPy's parser reads past the end if the last line has no newline.
    content = io.BytesIO(options.file.read_bytes() + b"\n")
    return _reader("scipy.io", ".mtx").mmread(content)


def _parquet(options: Options) -> Any:
    read = _reader("pyarrow.parquet", ".parquet").read_table
    table = read(io.BytesIO(options.file.read_bytes()))
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    return np.column_stack(table.select(names[options.skip_columns :]))[options.skip_rows :]


def _image(options: Options) -> Any:
    with _reader("PIL.Image", options.file.suffix.lower()).open(options.file) as picture:
        if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
            return np.asarray(picture)
        complain(f"{options.file}: its colors are converted to shades of gray")
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
    reader = csv.reader(lines, delimiter=mark, skipinitialspace=True)
    return _numbers(((reader.line_num, row) for row in reader), options)


def _numbers(rows: Iterable[tuple[int, list[str]]], options: Options) -> Any:
    """The numbers of a table, from its numbered lines; a first line of names is left out."""
    filled = ((k, row) for k, row in rows if row and k > options.skip_rows)
    head = [*islice(filled, 2)]
    if not head:
        refuse("is empty")
    top, first = head[0]
    is_word = map(_is_word, first[options.skip_columns :])
    # Or an empty cell above an index.
    is_index = options.skip_columns > 0 or _counts([*map(_value, first[1:])])
    if has_names := len(head) > 1 and (any(is_word) or (first[0] == "" and is_index)):
        del head[0]
    width = len(head[0][1])
    X = np.stack([_row(k, fields, width, options) for k, fields in chain(head, filled)])
    if has_names:
        complain(f"{options.file}: line {top} is read as column names")
    if options.skip_columns == 0 and width > 1 and _counts(X[:, 0]):
        complain(f"{options.file}: column 1 looks like an index; --skip-columns 1 skips it")
    if not has_names and len(X) > 1 and _counts(X[0]):
        complain(f"{options.file}: line {top} looks like an index; --skip-rows {top} skips it")
    return X


def _row(line: int, fields: list[str], width: int, options: Options) -> Any:
    """The numbers of a line; otherwise the first place without one, and a remedy."""
    if len(fields) != width:
        refuse(f"line {line} has {len(fields)} columns, the lines before it {width}")
    values = fields[options.skip_columns :]
    for dtype in (float, complex):
        with suppress(ValueError):
            row = [*map(dtype, values)]
            if all(map(cmath.isfinite, row)) and "_" not in "".join(values):
                return np.array(row)
    columns = islice(enumerate(fields, 1), options.skip_columns, None)
    column, field = next((k, f) for k, f in columns if not cmath.isfinite(_value(f)))
    where, shown = f"line {line}, column {column}", reprlib.repr(field)
    said = f"{shown.translate(SWAPS[options.decimal])} is not a finite number"
    remedy = "--skip-rows and --skip-columns skip the first lines and columns"
    if field.strip().lower() in MISSING:
        said = f"the value is missing ({shown})"
        remedy = "fill it in, or leave out its line or column"
    elif options.decimal == "." and any("," in field for field in fields):
        remedy += ", and --decimal , reads commas as decimal points"
    raise InputError(f"{where}: {said}; {remedy}")


def _value(field: str) -> complex:
    with suppress(ValueError):
        return complex(field.replace("_", "?"))  # 2024_01 is a number to Python only
    return cmath.nan


def _counts(values: Any) -> bool:
    return len(values) > 2 and values[0] in (0, 1) and not any(np.diff(values) != 1)


def _is_word(field: str) -> bool:
    is_known = field.strip().lower() in MISSING or not cmath.isnan(_value(field))
    return not is_known and any(map(str.isalpha, field))


# Readers of files that hold one matrix, and of those that may hold several.
WHOLE = dict.fromkeys(TEXT, _text) | dict.fromkeys(IMAGES, _image)
WHOLE |= {".mtx": _matrix_market, ".npy": _npy, ".parquet": _parquet}
NAMED = {".h5": _hdf5, ".hdf5": _hdf5, ".mat": _matlab, ".npz": _archived}
NAMED |= {CHECKPOINT: _tensors, ".xlsx": _sheets}
