"""``lowrank FILE``: what it reads, says, writes and refuses."""

import bz2
import gzip
import importlib
import io
import json
import lzma
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matrices import gaussian, norm, with_spectrum

import lowrank
from lowrank import gallery
from lowrank.__main__ import main
from lowrank._cli import plotting, reading, running, telling
from lowrank._cli.answering import answers
from lowrank._cli.arguments import parse
from lowrank._cli.telling import Progress
from lowrank._files import write_whole

sparse = pytest.importorskip("scipy.sparse")
scipy_io = pytest.importorskip("scipy.io")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

SPECTRUM = 0.6 ** np.arange(30)
A = with_spectrum(SPECTRUM, (40, 30), "float64")


def factors(path):
    """What a file of factors holds; it is closed."""
    with np.load(path) as file:
        arrays = dict(file)
    return arrays | json.loads(str(arrays.pop("about")))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run the command: exit code, what went to stdout, and the lines on stderr."""

    def call(line):
        code = main(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


@pytest.fixture
def answer(run):
    """Run the command with --json: the only matrix and its only result."""

    def call(line):
        code, out, err = run(f"{line} --json")
        assert (code, err) == (0, [])
        (matrix,) = json.loads(out)["matrices"]
        (result,) = matrix.pop("results")
        return matrix, result

    return call


def write_text(name, matrix, separator):
    text = "\n".join(separator.join(f"{x:.17g}" for x in row) for row in matrix)
    Path(name).write_text(f"# a comment\n{text}\n", encoding="utf-8")


def write_packed(name, pack):
    Path(name).write_bytes(pack(Path("A.csv").read_bytes()))


def write_hdf5(name, transposed=False, **options):
    """A matrix and a vector beside it."""
    with pytest.importorskip("h5py").File(name, "w", **options) as file:
        file["group/A"] = A.T if transposed else A
        file["group/times"] = np.arange(40.0)
        file["#refs#/a"] = np.ones((3, 4))


def write_matlab_73(name):
    """What MATLAB calls version 7.3: HDF5 behind a header of its own, matrices by columns."""
    write_hdf5(name, transposed=True, userblock_size=512)
    with Path(name).open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


def checkpoint(**extra):
    tensors = {
        "a.weight": A.astype("float32"),
        "b.weight": A.T.astype("float32").copy(),
        "b.bias": np.ones(40, "float32"),
        "b.conv": np.ones((4, 3, 3), "float32"),
        "b.positions": np.arange(12).reshape(3, 4),
    }
    safetensors_numpy.save_file(tensors | extra, "model.safetensors")


# -- what it reads --------------------------------------------------------------------------------

WRITERS = {
    "A.npy": lambda name: np.save(name, A),
    "fortran.npy": lambda name: np.save(name, np.asfortranarray(A)),
    "bigendian.npy": lambda name: np.save(name, A.astype(">f8")),
    "only.npz": lambda name: np.savez(name, anything=A),
    "sparse.npz": lambda name: sparse.save_npz(name, sparse.coo_array(A)),
    "A.csv": lambda name: write_text(name, A, ","),
    "semicolons.csv": lambda name: write_text(name, A, "; "),
    "A.tsv": lambda name: write_text(name, A, "\t"),
    "A.txt": lambda name: write_text(name, A, "  "),
    "A.dat": lambda name: write_text(name, A, " "),
    "A.csv.gz": lambda name: write_packed(name, gzip.compress),
    "A.csv.bz2": lambda name: write_packed(name, bz2.compress),
    "A.csv.xz": lambda name: write_packed(name, lzma.compress),
    "A.h5": write_hdf5,
    "A.mat": lambda name: scipy_io.savemat(name, {"n": 3, "note": "text", "A": A}),
    "sparse.mat": lambda name: scipy_io.savemat(name, {"A": sparse.csc_array(A)}),
    "matlab73.mat": write_matlab_73,
    "sparse.mtx": lambda name: scipy_io.mmwrite(name, sparse.coo_array(A), precision=17),
    "dense.mtx": lambda name: scipy_io.mmwrite(name, A, precision=17),
    "only.safetensors": lambda name: safetensors_numpy.save_file({"w": A}, name),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_answer_of_the_array(answer, name):
    write_text("A.csv", A, ",")
    WRITERS[name](name)
    matrix, result = answer(f"{name} --rtol 1e-3")
    expected = lowrank.svd(A, rtol=1e-3, rng=0)
    assert (matrix["shape"], matrix["dtype"]) == ([40, 30], "float64")
    assert (result["rank"], result["converged"]) == (expected.rank, True)
    for key in ("error", "error_bound", "norm_A", "tolerance"):
        assert result[key] == pytest.approx(getattr(expected, key), rel=1e-6)
    assert result["bytes"] == expected.rank * (40 + 30 + 1) * 8


@pytest.mark.parametrize("end", ["", " ", "\t", "\r"])
def test_matrix_market_without_an_end_of_line(answer, end):
    text = "%%MatrixMarket matrix coordinate real general\n3 3 2\n1 1 1\n3 3 4"
    Path("t.mtx").write_text(text + end, encoding="utf-8")
    assert answer("t.mtx --rank 1")[1]["norm_A"] == pytest.approx(17**0.5)


def test_named_arrays(answer):
    np.savez("two.npz", a=np.eye(3), b=A)
    assert answer("two.npz --name a --rank 1")[0]["shape"] == [3, 3]
    assert answer("two.npz --name b --rank 1")[0]["shape"] == [40, 30]
    checkpoint()
    assert answer("model.safetensors --name b.weight --rank 1")[0]["shape"] == [30, 40]
    assert answer("model.safetensors:b.weight --rank 1")[0]["name"] == "b.weight"
    write_hdf5("A.h5")
    assert answer("A.h5:/group/A --rank 1")[0]["shape"] == [40, 30]
    np.save("A.h5:b.npy", A)
    assert answer("A.h5:b.npy --rank 1")[0]["shape"] == [40, 30]


def test_standard_input(answer, monkeypatch):
    text = io.TextIOWrapper(io.BytesIO(b"1;2;2\n2;4;4\n"))
    monkeypatch.setattr(sys, "stdin", text)
    matrix, result = answer("- --rtol 0.1")
    assert (matrix["shape"], result["norm_A"]) == ([2, 3], pytest.approx(45**0.5))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_named_pipes(answer):
    os.mkfifo("pipe.csv")
    writer = threading.Thread(target=Path("pipe.csv").write_text, args=("1,2,2\n2,4,4\n",))
    writer.start()
    assert answer("pipe.csv --rtol 0.1")[1]["norm_A"] == pytest.approx(45**0.5)
    writer.join()


@pytest.mark.parametrize(
    ("mode", "dtype", "said"),
    [("L", "uint8", []), ("RGB", "uint8", ["colors are converted to shades of gray"])],
)
def test_images(run, mode, dtype, said):
    image = pytest.importorskip("PIL.Image", reason="Pillow reads images")
    gray = np.random.default_rng(0).integers(0, 256, (12, 9)).astype(dtype)
    image.fromarray(gray).convert(mode).save("gray.png")
    code, out, err = run("gray.png --rtol 1e-2 --json")
    (matrix,) = json.loads(out)["matrices"]
    assert (code, err) == (0, [f"lowrank: gray.png: its {text}" for text in said])
    assert (matrix["shape"], matrix["dtype"], matrix["bytes"]) == ([12, 9], dtype, 12 * 9)
    assert matrix["results"][0]["norm_A"] == pytest.approx(norm(gray.astype(float), "fro"))


def test_sheets(run, answer):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl writes sheets")
    book = openpyxl.Workbook()
    rows = [("name", "first\n(m)", "second"), ("a", 1, 2.5), (None, None, None), ("b", 3, 4)]
    for row in rows:
        book.active.append(row)
    book.create_sheet("gaps").append((None, 1))
    book.save("book.xlsx")
    line = "lowrank: book.xlsx: choose one of 2 with --name: Sheet, gaps"
    assert run("book.xlsx") == (2, "", [line])
    line = f"lowrank: book.xlsx: gaps: line 1, column 1: the value is missing (''); {FILL}"
    assert run("book.xlsx:gaps") == (2, "", [line])
    matrix, result = answer("book.xlsx:Sheet --skip-rows 1 --skip-columns 1 --rtol 0.1")
    assert (matrix["shape"], result["norm_A"]) == ([2, 2], pytest.approx(32.25**0.5))
    assert run("book.xlsx:Sheet --skip-columns 1")[2] == [
        "lowrank: book.xlsx: line 1 is read as column names"
    ]


def test_parquet(answer):
    """Without the columns in which pandas stores an index."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    columns = {"name": ["a", "b"], "x": [1.0, 1.0], "y": [0, 1], "__index_level_0__": [7, 9]}
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), "t.parquet")
    matrix, result = answer("t.parquet --skip-columns 1 --rtol 0.01")
    assert (matrix["shape"], result["norm_A"]) == ([2, 2], pytest.approx(3**0.5))


@pytest.mark.parametrize(
    ("text", "options", "shape", "said"),
    [
        ("\ufeffone,two\n1,2\n3,4\n", "", [2, 2], ["line 1"]),
        ("# made by hand\n\ns0,s1\n1,2\n3,4\n", "", [2, 2], ["line 3"]),
        ("µm;m\n1;2\n3;4\n", "", [2, 2], ["line 1"]),
        ("x\t2020\n1\t2\n3\t4\n", "", [2, 2], ["line 1"]),
        ("title\none,two\n1,2\n3,4\n", "--skip-rows 1", [2, 2], ["line 2"]),
        ("one,two\n1,2\n3,4\n", "--skip-rows 1", [2, 2], []),
        ('"a","2020","2021"\n"Smith, J",1,2\n"Doe, J",3,4\n', "--skip-columns 1", [3, 2], []),
        (",2020,2021\nx,1,2\ny,3,4\n", "--skip-columns 1", [2, 2], ["line 1"]),
        (",a,b\n0,1,2\n1,3,4\n2,5,7\n", "--skip-columns 1", [3, 2], ["line 1"]),
        (",a,b\n0,1,2\n1,3,4\n2,5,7\n", "", [3, 3], ["line 1", "column 1"]),
        (",0,1,2\n0,1,2,2\n1,3,4,4\n2,5,7,7\n", "", [3, 4], ["line 1", "column 1"]),
        ("0,1,2\n2,3,5\n", "", [2, 3], ["columns"]),
        ("#\n1,2,3\n2,3,5\n", "--skip-columns 1", [2, 2], []),
        ('"","V1"\n"1",1.5\n"2",3\n"3",5', "", [3, 2], ["line 1", "column 1"]),
        ("a,b\n1,2\n  \n3,4\n", "", [2, 2], ["line 1"]),
        ('"a\n(m)",b\n1,2\n3,4\n', "", [2, 2], ["line 2"]),
        ("1,x\n2,y\n", "--skip-columns 2", None, []),
    ],
)
def test_names_of_columns_and_lines(run, text, options, shape, said):
    Path("names.csv").write_text(text, encoding="utf-8" if text[0] == "\ufeff" else "latin-1")
    code, out, err = run(f"names.csv --rank 1 --json {options}")
    if shape is None:
        assert (code, err) == (2, ["lowrank: names.csv: is empty: shape (2, 0)"])
        return
    assert json.loads(out)["matrices"][0]["shape"] == shape
    remedies = {
        "column 1": "column 1 looks like an index; --skip-columns 1 skips it",
        "columns": "line 1 looks like an index; --skip-rows 1 skips it",
    }
    expected = [remedies.get(at, f"{at} is read as column names") for at in said]
    assert (code, err) == (0, [f"lowrank: names.csv: {text}" for text in expected])


@pytest.mark.parametrize(("mark", "end"), [(";", "\r\n"), ("\t", "\n"), ("  ", "\n")])
def test_decimal_commas(run, mark, end):
    """As spreadsheets write it where commas are decimal, with a mark of byte order."""
    lines = [["Größe", "x"], ["1,5", "-2,5e1"], ["3", "4,25"]]
    text = end.join(mark.join(line) for line in lines)
    Path("excel.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    code, out, err = run("excel.csv --decimal , --rank 1 --json")
    assert (code, err) == (0, ["lowrank: excel.csv: line 1 is read as column names"])
    (matrix,) = json.loads(out)["matrices"]
    expected = norm(np.array([[1.5, -25], [3, 4.25]]), "fro")
    assert matrix["results"][0]["norm_A"] == pytest.approx(expected)


def test_one_row_and_one_column(answer):
    Path("row.csv").write_text("1,2,2\n", encoding="utf-8")
    Path("column.txt").write_text("1\n2\n2\n", encoding="utf-8")
    Path("mark.csv").write_text("\ufeff1,2,2\n", encoding="utf-8")  # as spreadsheets write it
    assert answer("mark.csv --rank 1")[0]["shape"] == [1, 3]
    for name, shape in (("row.csv", [1, 3]), ("column.txt", [3, 1])):
        matrix, result = answer(f"{name} --rtol 0.1")
        assert (matrix["shape"], result["rank"], result["norm_A"]) == (shape, 1, pytest.approx(3))


def test_npy_is_memory_mapped():
    np.save("A.npy", A)
    ((_, read),) = reading.sources(parse(["A.npy"]))
    matrix = reading.matrix_of(read, "A.npy")
    assert isinstance(matrix.array, np.memmap)
    assert not matrix.array.flags.writeable


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_dtypes_that_numpy_lacks_are_read_with_torch(answer, dtype):
    torch = pytest.importorskip("torch")
    save_file = importlib.import_module("safetensors.torch").save_file
    save_file({"w": torch.asarray(A).to(getattr(torch, dtype))}, "w.safetensors")
    matrix, result = answer("w.safetensors --rtol 0.2 --output F.npz --plot p.png")
    wide = torch.asarray(A).to(getattr(torch, dtype)).double().numpy()
    F = factors("F.npz")
    assert norm(wide - (F["U"] * F["S"]) @ F["Vh"], "fro") <= 0.2 * norm(wide, "fro")
    assert matrix["dtype"] == dtype
    itemsize = 2 if dtype == "bfloat16" else 1
    assert matrix["bytes"] == A.size * itemsize
    assert result["bytes"] == result["rank"] * (40 + 30 + 1) * itemsize


def test_complex_tensors(answer):
    X = with_spectrum(gallery.fast(9), (12, 9), "complex64")
    safetensors_numpy.save_file({"c": X}, "c.safetensors")
    answer("c.safetensors --rtol 0.05 --output F.npz")
    F = factors("F.npz")
    assert norm(X - (F["U"] * F["S"]) @ F["Vh"], "fro") <= 0.05 * norm(X, "fro")


# -- what it says ---------------------------------------------------------------------------------


def test_table(run):
    np.save("A.npy", A)
    code, out, err = run("A.npy --rtol 1e-1,1e-3 --seed 1")
    assert (code, err) == (0, [])
    head, blank, titles, *rows = out.splitlines()
    assert head == f"A.npy: 40×30, float64, 9.4 KiB; Frobenius norm {norm(A, 'fro'):.4g}"
    assert blank == ""
    assert titles.split() == ["tolerance", "rank", "error", "bound", "estimate", "memory", "time"]
    for row, rtol in zip(rows, (1e-1, 1e-3), strict=True):
        expected = lowrank.svd(A, rtol=rtol, rng=1)
        share = expected.rank * 71 / A.size
        told = row.split()
        assert told[:2] == [f"{rtol:g}", str(expected.rank)]
        assert float(told[2]) == pytest.approx(expected.error_bound / expected.norm_A, rel=1e-2)
        assert float(told[3]) == pytest.approx(expected.error / expected.norm_A, rel=1e-2)
        assert told[6] == f"{share:.0%}"


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("power", [None, 0, 3])
def test_a_rank_alone_is_told_with_its_error(answer, kind, power):
    np.save("A.npy", A)
    option = "" if power is None else f"--power-iterations {power}"
    _, result = answer(f"A.npy --rank 5 --norm {kind} {option} --seed 3 --output F.npz")
    U, S, Vh = lowrank.svd(A, 5, power_iterations=power, rng=3)
    F = factors("F.npz")
    assert (F["U"] * F["S"]) @ F["Vh"] == pytest.approx((U * S) @ Vh, abs=1e-12)
    expected = lowrank.residual_norm(A, U, S[:, None] * Vh, norm=kind, rng=3)
    assert result["error"] == pytest.approx(expected.value)
    assert result["error_bound"] == pytest.approx(expected.upper_bound)
    assert result["rtol"] is result["tolerance"] is result["converged"] is None
    assert (result["rank"], result["status"]) == (5, "RANK_REACHED")
    assert result["norm_A"] == pytest.approx(norm(A, kind), rel=0.05)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("power", [None, 0, 3])
def test_a_tolerance_is_asked_with_all_options(answer, kind, power):
    np.save("A.npy", A)
    option = "" if power is None else f"--power-iterations {power}"
    _, result = answer(f"A.npy --rtol 1e-3 --norm {kind} {option} --seed 3 --output F.npz")
    mapped = np.load("A.npy", mmap_mode="r")
    found = lowrank.svd(mapped, rtol=1e-3, norm=kind, power_iterations=power, rng=3)
    for key in ("rank", "error", "error_bound", "norm_A", "tolerance", "passes"):
        assert result[key] == pytest.approx(getattr(found, key))
    F = factors("F.npz")
    assert F["norm"] == kind
    assert (F["U"] * F["S"]) @ F["Vh"] == pytest.approx((found.U * found.S) @ found.Vh, abs=1e-12)


def test_same_seed_same_answer(run):
    np.save("A.npy", A)
    for seed in ("", "--seed 5"):
        first, second = (
            re.sub(r'"seconds".*', "", run(f"A.npy --rtol 1e-2 --json {seed}")[1]) for _ in "12"
        )
        assert first == second


def test_zero_matrix(run, answer):
    np.save("zero.npy", np.zeros((4, 3)))
    assert answer("zero.npy --rtol 0.1")[1]["rank"] == 0
    assert run("zero.npy --rank 2")[0] == 0


def test_checkpoint(run):
    checkpoint()
    code, out, err = run("model.safetensors --rtol 0.5,1e-2")
    assert (code, err) == (0, [])
    titles, *rows, first, second = out.splitlines()
    assert titles.split()[-2:] == ["time", "tensor"]
    assert [row.split()[-2:] for row in rows[::2]] == [["a.weight", "40×30"], ["b.weight", "30×40"]]
    ranks = [lowrank.svd(A.astype("float32"), rtol=rtol, rng=0).rank for rtol in (0.5, 1e-2)]
    assert [row.split()[:2] for row in rows[:2]] == [
        ["0.5", f"{ranks[0]}"],
        ["0.01", f"{ranks[1]}"],
    ]
    for total, rank in ((first, ranks[0]), (second, ranks[1])):
        assert total.split()[3:5] == [f"{rank * 71 / A.size:.0%}", "total,"]


def test_checkpoint_at_a_rank(run):
    """A rank at which the factors take more than the tensors, which are kept then."""
    checkpoint()
    code, out, err = run("model.safetensors --rank 25")
    assert (code, err) == (0, [])
    _, first, _, total = out.splitlines()
    assert first.split()[:2] == ["-", "25"]
    assert f"{25 * 71 / A.size:.0%}" in first.split()
    assert total.split()[:4] == ["-", "9.4", "KiB", "100%"]


@pytest.mark.parametrize("larger", [False, True])
def test_factors_that_are_larger_than_the_matrix_are_said_to_be(run, larger):
    np.save("A.npy", A)
    most = 40 * 30 // (40 + 30 + 1)
    out = run(f"A.npy --rank {most + larger}")[1]
    assert ("take more memory than the matrix" in out) == larger


def test_without_a_stop_rule_three_tolerances(run):
    np.save("A.npy", A)
    rows = run("A.npy")[1].splitlines()[3:]
    assert [row.split()[0] for row in rows if row] == ["0.1", "0.01", "0.001"]


@pytest.mark.parametrize("question", ["--rtol 1e-2", "--atol 0.02", "--rtol 1e-9 --atol 0.02"])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_an_absolute_tolerance_of_centered_rows(run, answer, question, kind):
    X = A + 3.0
    np.save("X.npy", X)
    options = f"X.npy --center --norm {kind} {question}"
    _, result = answer(f"{options} --plot p.png")
    given = parse(shlex.split(options))
    asked = {"rtol": given.rtols[0], "atol": given.atol, "norm": kind, "center": True}
    expected = lowrank.svd(np.load("X.npy", mmap_mode="r"), rng=0, **asked)
    for key in ("rank", "error", "error_bound", "norm_A", "tolerance"):
        assert result[key] == pytest.approx(getattr(expected, key))
    assert result["bytes"] == (expected.rank * (40 + 30 + 1) + 30) * 8
    row = run(options)[1].splitlines()[3].split()
    assert float(row[0]) == pytest.approx(expected.tolerance / expected.norm_A, rel=1e-2)


@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_a_rank_of_centered_rows(answer, kind):
    np.save("X.npy", A + 3.0)
    _, result = answer(f"X.npy --center --rank 5 --norm {kind}")
    centered = A - A.mean(axis=0)
    truth = np.linalg.svd(centered, compute_uv=False)
    truth = truth[5] if kind == "spectral" else norm(truth[5:], "fro")
    assert truth * (1 - 1e-9) <= result["error"] <= result["error_bound"] <= 1.1 * truth
    assert result["norm_A"] == pytest.approx(norm(centered, kind))


def test_a_bad_tensor_leaves_the_others_their_answers(run):
    bad = A.astype("float32")
    bad[3, 4] = np.nan
    checkpoint(nan=bad, none=np.ones((0, 3), "float32"))
    expected = [
        f"lowrank: model.safetensors: nan: {NAN}4, column 5",
        "lowrank: model.safetensors: none: is empty: shape (0, 3)",
    ]
    code, out, err = run("model.safetensors --rtol 0.1")
    assert (code, err) == (2, expected)
    assert [line.split()[-2] for line in out.splitlines()[1:-1]] == ["a.weight", "b.weight"]
    code, out, err = run("model.safetensors --rtol 0.1 --json")
    assert (code, err) == (2, expected)
    entries = {entry["name"]: entry for entry in json.loads(out)["matrices"]}
    assert entries["nan"]["error"] == expected[0].removeprefix("lowrank: ")
    assert entries["a.weight"]["results"][0]["converged"]


def test_json(run):
    np.save("A.npy", A)
    told = json.loads(run("A.npy --rtol 0.1 --rank 9 --seed 4 --json")[1])
    head = {key: value for key, value in told.items() if key != "matrices"}
    assert head == {
        "lowrank": lowrank.__version__,
        "file": "A.npy",
        "norm": "fro",
        "atol": None,
        "rank": 9,
        "center": False,
        "power_iterations": None,
        "seed": 4,
    }
    (matrix,) = told["matrices"]
    assert matrix["name"] is None
    assert set(matrix["results"][0]) == {
        *("rtol", "tolerance", "converged", "status", "rank", "error", "error_bound"),
        *("norm_A", "bytes", "passes", "seconds"),
    }


def test_json_has_no_infinities(run):
    np.save("A.npy", 100 * A)
    told = json.loads(run("A.npy --rtol 1e308 --json")[1])
    assert told["matrices"][0]["results"][0]["tolerance"] is None


def test_help_and_version(capsys):
    for option, start in (("--help", "usage: lowrank"), ("--version", "lowrank ")):
        with pytest.raises(SystemExit) as stopped:
            main([option])
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith(start)


def test_examples_of_the_help_work(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    _, _, examples = capsys.readouterr().out.partition("examples:\n")
    lines = [shlex.split(line) for line in examples.splitlines() if line.strip()]
    assert len(lines) == 8  # the last two need a model
    for program, *words in lines[:-2]:
        start = {"python": [], "lowrank": ["-m", "lowrank"]}[program]
        done = subprocess.run(
            [sys.executable, "-W", "error", *start, *words],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
    assert Path("factors.npz").is_file()


def test_the_command_that_is_installed(monkeypatch, capsys):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    module, _, name = project["project"]["scripts"]["lowrank"].partition(":")
    monkeypatch.setattr(sys, "argv", ["lowrank", "nowhere.npy"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as stopped:
            getattr(importlib.import_module(module), name)()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("lowrank: nowhere.npy: cannot be read")


# -- what it refuses ------------------------------------------------------------------------------


def _bad_files():
    np.save("A.npy", A)
    np.save("vector.npy", np.ones(5))
    np.save("cube.npy", np.ones((2, 3, 4)))
    np.save("empty.npy", np.ones((0, 5)))
    np.save("records.npy", np.zeros(4, dtype=[("x", "f8"), ("y", "f8")]))
    np.save("text.npy", np.array([["a", "b"]]))
    np.save("dates.npy", np.zeros((3, 4), "M8[s]"))
    np.save("object.npy", np.array([[None, 1]], dtype=object))
    np.save("nan.npy", np.where(np.eye(4) > 0, np.nan, 1.0))
    np.save("inf.npy", np.where(np.eye(4) > 0, np.inf, 1j))
    np.savez("two.npz", a=np.eye(3), b=np.eye(4))
    Path("cut.npy").write_bytes(Path("A.npy").read_bytes()[:600])
    Path("folder.npy").mkdir()
    checkpoint()
    Path("cut.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:50])
    safetensors_numpy.save_file({"bias": np.ones(3)}, "vectors.safetensors")
    np.savez("empty.npz")
    with zipfile.ZipFile("other.npz", "w") as archive:
        archive.writestr("a.txt", "text")
    np.savez("objects.npz", a=np.array([[None]], dtype=object))
    np.savez("\x1b[31m.npz", **{"a\nb": np.eye(2), "\x1b[2Jc": np.eye(3)})
    damaged = sparse.csr_array(A)
    damaged.indices[3] = 99
    np.savez(
        "damaged.npz",
        format=b"csr",
        shape=(40, 30),
        data=damaged.data,
        indices=damaged.indices,
        indptr=damaged.indptr,
    )
    for name, text in {
        "complex.csv": "1+2j,1\n2,x\n",
        "trailing.csv": "1,2,\n",
        "UPPER.CSV": "1,2\n3\n",
        "tabs.tsv": "1,5\t2\n",
        "garbage.npy": "not an array",
        "garbage.npz": "not an archive",
        "empty.csv": "",
        "comments.txt": "# nothing else\n",
        "names.csv": "one,two\n1,2\n",
        "text.csv": "1,2\n3,x\n",
        "missing.csv": "1,2\n3,\n",
        "decimals.csv": "1,5;2,5\n",
        "ragged.csv": "1,2\n3\n",
        "nan.csv": "1,2\nnan,3\n",
        "numbered.csv": "s0,s1\n1,2\n3,4\n",
        "letters.csv": "µm,m\n1,2\n3,4\n",
        "units.csv": "(m),(s)\n1,2\n3,4\n",
        "dates.csv": "2024-01-31,2\n2024-02-01,4\n",
        "thousands.csv": "1.000.000,2\n2.000.000,4\n",
        "months.csv": "2024_01,2\n2024_02,4\n",
        "A.rds": "1 2\n",
        "gaps.csv": "# five lines\na,b\n1,2\n\n3,NA\n",
        "alone.csv": "one,two\n",
        "index.csv": "name;x;y\nS0;1,5;2,5\n",
        "commas.csv": "1.000,5;2\n2;3\n",
        "long.csv": f"1,{'x' * 99}\n2,3\n3,x\n",
        "infinite.csv": "1,2\n1,-inf\n",
        "years.csv": ",0,1\n0,2,3\n",
        "garbage.mtx": "hello\n",
        "cut.mtx": "%%MatrixMarket matrix coordinate real general\n2 2 2\n1 1 1.0\n",
    }.items():
        Path(name).write_text(text, encoding="utf-8")
    Path("binary.csv").write_bytes(b"\xff\xfe\xfd,1\n")


KINDS = (
    ".csv .dat .tsv .txt .bmp .jpeg .jpg .png .tif .tiff .webp .mtx .npy .parquet .h5 .hdf5 .mat "
    ".npz .safetensors .xlsx, and text as .bz2 .gz .xz"
)
SKIP = "--skip-rows and --skip-columns skip the first lines and columns"
COMMA = f"{SKIP}, and --decimal , reads commas as decimal points"
FILL = "fill it in, or leave out its line or column"
NAN = "the matrix holds NaN or Inf; replace or remove these entries; the first in row "
REFUSED = {
    "nowhere.npy --rtol 0.1": "nowhere.npy: cannot be read: No such file or directory",
    "nowhere.csv --rtol 0.1": "nowhere.csv: cannot be read: No such file or directory",
    **{
        f"nowhere.{kind}": f"nowhere.{kind}: cannot be read: No such file or directory"
        for kind in ("h5", "mat", "mtx", "npz", "parquet", "png", "safetensors", "xlsx")
    },
    "dates.npy": (
        "dates.npy: has dtype datetime64[s], which is not supported; store it as float64 or "
        "complex128"
    ),
    "folder.npy --rtol 0.1": (
        "folder.npy: give --output DIR for factors, or --minus BASE and --lora DIR"
    ),
    "A.npy.gz --rtol 0.1": f"A.npy.gz: unknown kind of file; supported are {KINDS}",
    "A.rds --rtol 0.1": f"A.rds: unknown kind of file; supported are {KINDS}",
    "garbage.npy --rtol 0.1": (
        "garbage.npy: cannot be read: the magic string is not correct; expected b'\\x93NUMPY', got "
        "b'not an'"
    ),
    "garbage.npz --rtol 0.1": "garbage.npz: cannot be read: File is not a zip file",
    "cut.npy --rtol 0.1": "cut.npy: cannot be read: mmap length is greater than file size",
    "garbage.mtx --rtol 0.1": (
        "garbage.mtx: cannot be read: Line 1: Not a Matrix Market file. Missing banner"
    ),
    "cut.mtx --rtol 0.1": ("cut.mtx: cannot be read: Truncated file. Expected another 1 lines"),
    "empty.npz --rank 1": "empty.npz: holds no matrix",
    "other.npz --rank 1": "other.npz: holds no matrix",
    "objects.npz --rank 1": (
        "objects.npz: a: cannot be read: Object arrays cannot be loaded when allow_pickle=False"
    ),
    "'\x1b[31m.npz' --rank 1": ("\\x1b[31m.npz: choose one of 2 with --name: a\\nb, \\x1b[2Jc"),
    "damaged.npz --rank 1": "damaged.npz: cannot be read: indices must be < 30",
    "complex.csv --rank 1": f"complex.csv: line 2, column 2: 'x' is not a finite number; {SKIP}",
    "trailing.csv --rank 1": (f"trailing.csv: line 1, column 3: the value is missing (''); {FILL}"),
    "UPPER.CSV --rank 1": "UPPER.CSV: line 2 has 1 columns, the lines before it 2",
    "tabs.tsv --rank 1": (f"tabs.tsv: line 1, column 1: '1,5' is not a finite number; {COMMA}"),
    "vector.npy --rtol 0.1": "vector.npy: holds no matrix, only an array of shape (5,)",
    "cube.npy --rtol 0.1": (
        "cube.npy: holds no matrix, only an array of shape (2, 3, 4); store A[0], or "
        "A.reshape(-1, 4)"
    ),
    "records.npy": (
        "records.npy: holds no matrix, only the fields x, y; store "
        "numpy.lib.recfunctions.structured_to_unstructured(A)"
    ),
    "empty.npy --rtol 0.1": "empty.npy: is empty: shape (0, 5)",
    "empty.csv --rtol 0.1": "empty.csv: is empty",
    "comments.txt --rtol 0.1": "comments.txt: is empty",
    "nan.npy --rtol 0.1": f"nan.npy: {NAN}1, column 1",
    "nan.npy --rank 1": f"nan.npy: {NAN}1, column 1",
    "inf.npy --rtol 0.1 --norm spectral": f"inf.npy: {NAN}1, column 1",
    "nan.csv": f"nan.csv: line 2, column 1: the value is missing ('nan'); {FILL}",
    "infinite.csv": f"infinite.csv: line 2, column 2: '-inf' is not a finite number; {SKIP}",
    "gaps.csv": f"gaps.csv: line 5, column 2: the value is missing ('NA'); {FILL}",
    "years.csv": f"years.csv: line 1, column 1: the value is missing (''); {FILL}",
    "alone.csv": f"alone.csv: line 1, column 1: 'one' is not a finite number; {SKIP}",
    "index.csv": f"index.csv: line 2, column 1: 'S0' is not a finite number; {COMMA}",
    "index.csv --skip-columns 1": (
        f"index.csv: line 2, column 2: '1,5' is not a finite number; {COMMA}"
    ),
    "index.csv --skip-columns 9": "index.csv: is empty: shape (2, 0)",
    "commas.csv --decimal ,": (
        f"commas.csv: line 1, column 1: '1.000,5' is not a finite number; {SKIP}"
    ),
    "long.csv --skip-rows 1": f"long.csv: line 3, column 2: 'x' is not a finite number; {SKIP}",
    "names.csv --skip-rows 2": "names.csv: is empty",
    "text.npy --rtol 0.1": (
        "text.npy: has dtype str32, which is not supported; store it as float64 or complex128"
    ),
    "object.npy --rtol 0.1": (
        "object.npy: cannot be read: Array can't be memory-mapped: Python objects in dtype"
    ),
    "thousands.csv": (
        f"thousands.csv: line 1, column 1: '1.000.000' is not a finite number; {SKIP}"
    ),
    "months.csv": f"months.csv: line 1, column 1: '2024_01' is not a finite number; {SKIP}",
    "dates.csv": f"dates.csv: line 1, column 1: '2024-01-31' is not a finite number; {SKIP}",
    "text.csv": f"text.csv: line 2, column 2: 'x' is not a finite number; {SKIP}",
    "missing.csv": f"missing.csv: line 2, column 2: the value is missing (''); {FILL}",
    "decimals.csv": f"decimals.csv: line 1, column 1: '1,5' is not a finite number; {COMMA}",
    "ragged.csv --rtol 0.1": "ragged.csv: line 2 has 1 columns, the lines before it 2",
    "binary.csv": (
        f"binary.csv: line 1, column 1: '{3 * chr(0xFFFD)}' is not a finite number; {SKIP}"
    ),
    "two.npz --rtol 0.1": "two.npz: choose one of 2 with --name: a, b",
    "two.npz --rtol 0.1 --name c": "two.npz: holds no matrix called c; it has a, b",
    "model.safetensors --rank 1 --name b.bias": (
        "model.safetensors: holds no matrix called b.bias; it has a.weight, b.weight"
    ),
    "vectors.safetensors --rank 1": "vectors.safetensors: holds no matrix",
    "model.safetensors --rank 1 --output F.npz": (
        "--output writes one result, not 2; give one tolerance, rank or --name"
    ),
    "A.npy --rtol 0.1 --name a": (
        "--name applies to .h5 .hdf5 .mat .npz .safetensors .xlsx only, got A.npy"
    ),
    "A.npy --rtol 0.1 --skip-rows 1": (
        "--skip-rows applies to .csv .dat .tsv .txt .parquet .xlsx only, got A.npy"
    ),
    "A.npy --decimal ,": "--decimal applies to .csv .dat .tsv .txt only, got A.npy",
    "--rtol 0.1": "the following arguments are required: FILE",
    **{
        f"A.npy --{option}={text}": f"argument --{option}: must be a positive number, got '{bad}'"
        for option, text, bad in (
            *(("rtol", text, text) for text in ("0", "-1", "nan", "inf", "small", "")),
            ("rtol", "0.1,0", "0"),
            ("atol", "0", "0"),
        )
    },
    "A.npy --rank 0": "argument --rank: must be an integer of at least 1, got '0'",
    "A.npy --rank 1.5": "argument --rank: must be an integer of at least 1, got '1.5'",
    "A.npy --rank 1 --seed -1": "argument --seed: must be an integer of at least 0, got '-1'",
    "A.npy --rank 1 --power-iterations=-1": (
        "argument --power-iterations: must be an integer of at least 0, got '-1'"
    ),
    "A.npy --rto 0.1": "unrecognized arguments: --rto 0.1",
    "A.npy --rank 1 --what": "unrecognized arguments: --what",
    "A.npy --rank": "argument --rank: expected one argument",
    "A.npy --rank 1 --output F.zip": "--output must name a file of kind .npz, got F.zip",
    "A.npy --rank 1 --plot p.txt": "--plot must name a file of kind .png, .pdf, .svg, got p.txt",
    "A.npy --rtol 0.1,0.2 --output F.npz": (
        "--output writes one result, not 2; give one tolerance, rank or --name"
    ),
    "A.npy --rtol 0.1 --output two.npz": "two.npz: exists; --force replaces it",
    "A.npy --rtol 0.1 --output no/F.npz": (
        "no/F.npz: cannot be written: No such file or directory"
    ),
    "two.npz --name a --rank 1 --output ./two.npz --force": (
        "two.npz: is the file that is read; choose another name"
    ),
}


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input_ends_with_one_line_and_exit_code_2(run, line):
    _bad_files()
    before = sorted(Path().iterdir())
    assert run(line) == (2, "", [f"lowrank: {REFUSED[line]}"])
    assert sorted(Path().iterdir()) == before


def test_damaged_checkpoints(run):
    """The line is that of the parser, whose words are its own."""
    _bad_files()
    code, out, (line,) = run("cut.safetensors --rank 1")
    assert (code, out) == (2, "")
    assert line.startswith("lowrank: cut.safetensors: cannot be read: Error while deserializing")


@pytest.mark.parametrize(
    ("package", "line", "purpose"),
    [
        ("scipy.sparse", "sparse.npz --rank 1", "sparse.npz: a sparse .npz file"),
        ("matplotlib", "A.npy --rank 1 --plot p.png", "--plot"),
    ],
)
def test_missing_packages(run, monkeypatch, package, line, purpose):
    name = line.split()[0]
    WRITERS[name](name)
    monkeypatch.setitem(sys.modules, package, None)
    top = package.partition(".")[0]
    assert run(line) == (
        2,
        "",
        [f"lowrank: {purpose} needs {top}, which cannot be imported; python -m pip install {top}"],
    )


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("scipy.io", "A.mtx"),
        ("scipy.io", "A.mat"),
        ("h5py", "A.h5"),
        ("pyarrow.parquet", "A.parquet"),
        ("openpyxl", "A.xlsx"),
        ("PIL.Image", "A.jpg"),
        ("safetensors", "A.safetensors"),
    ],
)
def test_missing_readers(run, monkeypatch, package, name):
    Path(name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    top = package.partition(".")[0].replace("PIL", "pillow")
    code, out, err = run(name)
    assert (code, out) == (2, "")
    missing = f"a {Path(name).suffix} file needs {top}, which cannot be imported"
    instead = "or save the matrix as .csv or .npy where it comes from"
    assert err == [f"lowrank: {name}: {missing}; python -m pip install {top}, {instead}"]


def test_missing_torch_is_told_with_the_tensor(run, monkeypatch):
    torch = pytest.importorskip("torch")
    importlib.import_module("safetensors.torch").save_file(
        {"w": torch.ones(3, 3).bfloat16(), "x": torch.ones(3, 3).bfloat16(), "y": torch.eye(2)},
        "w.safetensors",
    )
    lowrank.svd(np.eye(2, dtype=np.float32), 1)  # array-api-compat asks what a type is only once
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, (line,) = run("w.safetensors --rank 1")
    assert (code, out) == (2, "")
    assert run("w.safetensors --rank 1 --name y")[0] == 0
    assert line == (
        "lowrank: w.safetensors: dtype BF16 of w needs torch, which cannot be imported; python -m "
        "pip install torch"
    )


def test_a_matrix_that_does_not_fit_in_memory(run, monkeypatch):
    np.save("A.npy", A)

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("lowrank.svd", full)
    assert run("A.npy --rank 1 --output F.npz") == (2, "", ["lowrank: A.npy: MemoryError"])
    monkeypatch.setattr("numpy.lib.format.open_memmap", full)
    line = "lowrank: A.npy: cannot be read: MemoryError"
    assert run("A.npy --rank 1") == (2, "", [line])


# -- what it writes -------------------------------------------------------------------------------


def test_factors(run):
    np.save("A.npy", A)
    assert run("A.npy --rtol 1e-4 --output F.npz")[0] == 0
    F = factors("F.npz")
    again = lowrank.load("F.npz")
    assert (again.rank, again.error_bound) == (F["S"].shape[0], F["error_bound"])
    assert norm(A - (F["U"] * F["S"]) @ F["Vh"], "fro") <= F["error_bound"] <= F["tolerance"]
    assert F["tolerance"] == pytest.approx(1e-4 * norm(A, "fro"))
    assert (F["norm"], F["kind"], F["certificate"]) == ("fro", "SVDResult", "energy")
    assert run("A.npy --rank 3 --output G.npz")[0] == 0
    G = factors("G.npz")
    assert G["S"].shape == (3,)
    assert G["tolerance"] is None
    assert norm(A - (G["U"] * G["S"]) @ G["Vh"], "fro") <= G["error_bound"]


def test_force_replaces(run):
    np.save("A.npy", A)
    Path("F.npz").write_text("mine", encoding="utf-8")
    assert run("A.npy --rank 3 --output F.npz")[0] == 2
    assert Path("F.npz").read_text(encoding="utf-8") == "mine"
    assert run("A.npy --rank 3 --output F.npz --force")[0] == 0
    assert factors("F.npz")["S"].shape == (3,)


def test_a_file_that_appears_during_the_work_is_not_replaced(run, monkeypatch):
    np.save("A.npy", A)
    save = np.savez

    def slow(stream, **arrays):
        Path("F.npz").write_text("another's", encoding="utf-8")
        save(stream, **arrays)

    monkeypatch.setattr("numpy.savez", slow)
    code, _, err = run("A.npy --rank 3 --output F.npz")
    line = "lowrank: F.npz: cannot be written: F.npz exists; choose another name"
    assert (code, err) == (2, [line])
    assert Path("F.npz").read_text(encoding="utf-8") == "another's"
    assert sorted(path.name for path in Path().iterdir()) == ["A.npy", "F.npz"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(28, "No space left on device"),
            2,
            "F.npz: cannot be written: No space left on device",
        ),
    ],
)
def test_nothing_half_written_stays(run, monkeypatch, error, code, line):
    np.save("A.npy", A)
    Path("F.npz").write_text("mine", encoding="utf-8")

    def broken(stream, **arrays):
        stream.write(b"half")
        raise error

    monkeypatch.setattr("numpy.savez", broken)
    assert run("A.npy --rank 3 --output F.npz --force")[::2] == (code, [f"lowrank: {line}"])
    assert sorted(path.name for path in Path().iterdir()) == ["A.npy", "F.npz"]
    assert Path("F.npz").read_text(encoding="utf-8") == "mine"


def test_file_systems_without_links(monkeypatch):
    def refuse(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_whole(Path("F"), lambda stream: stream.write(b"all"), replace=False)
    assert Path("F").read_bytes() == b"all"
    with pytest.raises(FileExistsError, match="F exists"):
        write_whole(Path("F"), lambda stream: stream.write(b"more"), replace=False)
    assert Path("F").read_bytes() == b"all"


def test_what_a_killed_run_left_behind_is_in_nobodys_way(run):
    np.save("A.npy", A)
    Path(".lowrank-left").write_text("behind", encoding="utf-8")
    Path(f".F.npz.{os.getpid()}.part").write_text("behind", encoding="utf-8")
    assert run("A.npy --rank 3 --output F.npz")[0] == 0
    assert len(list(Path().iterdir())) == 4


def test_links_stay_links_and_modes_stay(run):
    np.save("A.npy", A)
    Path("target.npz").write_text("old", encoding="utf-8")
    Path("target.npz").chmod(0o640)
    Path("link.npz").symlink_to("target.npz")
    Path("dangling.npz").symlink_to("nowhere.npz")
    line = "lowrank: dangling.npz: exists; --force replaces it"
    assert run("A.npy --rank 3 --output dangling.npz") == (2, "", [line])
    assert run("A.npy --rank 3 --output link.npz --force")[0] == 0
    assert Path("link.npz").is_symlink()
    assert factors("target.npz")["S"].shape == (3,)
    assert Path("target.npz").stat().st_mode & 0o777 == 0o640
    os.umask(umask := os.umask(0o022))
    run("A.npy --rank 3 --output new.npz")
    assert Path("new.npz").stat().st_mode & 0o777 == 0o666 & ~umask


def test_names_that_are_too_long(run):
    np.save("A.npy", A)
    name = "x" * 300 + ".npz"
    line = f"lowrank: {name}: cannot be written: File name too long"
    assert run(f"A.npy --rank 1 --output {name}") == (2, "", [line])
    just = "x" * 250 + ".npz"
    assert run(f"A.npy --rank 1 --output {just}")[0] == 0


def test_folders_without_permission(run, monkeypatch):
    np.save("A.npy", A)

    def denied(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    line = "lowrank: F.npz: cannot be written: Permission denied"
    assert run("A.npy --rank 1 --output F.npz") == (2, "", [line])


def test_a_tolerance_that_is_not_met(run):
    np.save("A.npy", A)
    code, out, (line,) = run("A.npy --rtol 1e-8 --rank 5 --output F.npz")
    F = factors("F.npz")
    assert F["S"].shape == (5,)
    assert norm(A - (F["U"] * F["S"]) @ F["Vh"], "fro") <= F["error_bound"]
    assert F["error_bound"] > F["tolerance"]
    assert code == 3
    assert out.splitlines()[-1].split()[:2] == ["1e-08", "5*"]
    bound = float(F["error_bound"]) / norm(A, "fro")
    assert line == (
        f"lowrank: A.npy: tolerance 1e-08 not met: error bound {bound:.3g} at rank 5. "
        "RANK_REACHED: The result has the requested rank, or the largest rank that was "
        "allowed."
    )


def test_tolerances_that_are_not_met(run):
    checkpoint(flat=np.eye(30, dtype="float32"))
    code, out, (line,) = run("model.safetensors --rtol 0.9,1e-3 --rank 4")
    assert code == 3
    assert re.fullmatch(
        r"lowrank: model.safetensors: 4 of 6 tolerances not met: largest error bound 0\.9\d+ at "
        r"rank 4 of flat. RANK_REACHED: .*",
        line,
    )
    assert [row.count(" 4*") for row in out.splitlines()] == [0, 0, 1, 0, 1, 1, 1, 0, 0]


def test_below_the_precision_floor(run):
    np.save("A.npy", A.astype("float32"))
    code, _, (line,) = run("A.npy --rtol 1e-9 --json")
    assert code == 3
    assert re.match(r"lowrank: A.npy: tolerance 1e-09 not met: error bound [\d.e-]+ at rank", line)
    assert "PRECISION_FLOOR" in line


# -- the picture ----------------------------------------------------------------------------------


def answer_and_curves(line):
    options = parse(shlex.split(line))
    ((_, read),) = reading.sources(options)
    matrix = reading.matrix_of(read, "a file")
    ((answer, _),) = answers(matrix, options, Progress(), "a file")
    return answer, plotting.curves(matrix.array, answer)


@pytest.mark.parametrize("question", ["--rtol 1e-3 --center", "--rank 6", "--rtol 1e-3 --rank 6"])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_curves(question, kind, dtype):
    X, spectrum = with_spectrum(SPECTRUM, (40, 30), dtype), SPECTRUM
    np.save("X.npy", X)
    if "center" in question:
        np.save("X.npy", X + 3.0)
        X = X - X.mean(axis=0)
        spectrum = np.linalg.svd(X, compute_uv=False)
    answer, found = answer_and_curves(f"X.npy {question} --norm {kind}")
    U, S, Vh = answer
    truth = [norm(X - (U[:, :r] * S[:r]) @ Vh[:r], kind) for r in range(len(S) + 1)]
    assert np.array_equal(found["truth"][0], range(len(S) + 1))
    assert found["truth"][1] == pytest.approx(truth, rel=1e-9)
    best = [gallery.best_error(spectrum, r, norm=kind) for r in range(len(S) + 1)]
    assert found["best"][1] == pytest.approx(best, rel=1e-9)
    assert (found["bound"][1] >= np.array(truth) * (1 - 1e-9)).all()
    assert (found["bound"][1] >= found["estimate"][1]).all()
    assert found["bound"][1][-1] == answer.error_bound
    if "rtol" in question:  # the axis ends where the answer does
        assert 0 <= max(found["looks"][0]) <= len(S) < answer.history[-1].rank


@pytest.mark.parametrize("size", [1e200, 1e-300])
@pytest.mark.parametrize("kind", ["fro", "spectral"])
def test_curves_of_any_size(size, kind):
    np.save("X.npy", A * size)
    (U, S, Vh), found = answer_and_curves(f"X.npy --rank 3 --norm {kind}")
    truth = [norm(A - (U[:, :r] * (S[:r] / size)) @ Vh[:r], kind) for r in range(4)]
    assert found["truth"][1] / size == pytest.approx(truth, rel=1e-9)


def test_curves_that_would_take_too_long_are_left_out(monkeypatch):
    monkeypatch.setattr(plotting, "TRUTH", 100)
    monkeypatch.setattr(plotting, "FULL_SVD", 100)
    np.save("A.npy", A)
    for kind in ("fro", "spectral"):
        _, found = answer_and_curves(f"A.npy --rank 3 --norm {kind}")
        assert set(found) == {"bound", "estimate"}


@pytest.mark.parametrize("name", ["x$_$y.npy", "漢\x07.npy"])
@pytest.mark.filterwarnings("error")
def test_titles_are_no_formulas(run, name):
    pytest.importorskip("matplotlib")
    np.save(name, A)
    assert run(f"'{name}' --rtol 2 --plot p.png")[::2] == (0, [])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("no LaTeX\nat all")])
def test_pictures_that_cannot_be_drawn(run, monkeypatch, error):
    np.save("A.npy", A)

    def fail(*_):
        raise error

    monkeypatch.setattr(running, "draw", fail)
    why = "MemoryError" if isinstance(error, MemoryError) else "no LaTeX"
    code, _, err = run("A.npy --rank 1 --plot p.png --output F.npz")
    assert (code, err) == (2, [f"lowrank: p.png: cannot be drawn: {why}"])
    assert Path("F.npz").is_file()


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plot(run, suffix):
    pytest.importorskip("matplotlib")
    sparse.save_npz("A.npz", sparse.csr_array(A))
    code, _, err = run(f"A.npz --rtol 1e-2 --plot p.{suffix}")
    assert (code, err) == (0, [])
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert Path(f"p.{suffix}").read_bytes().startswith(start)
    assert run(f"A.npz --rtol 1e-2 --plot p.{suffix}")[0] == 2


# -- at a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "goal"),
    [
        ("--rtol 1e-3", "1.00e-03"),
        ("--atol 5", "5.00e-02"),
        ("--norm spectral --atol 8", "1.00e-01"),
    ],
)
def test_progress_where_stderr_is_no_terminal(run, monkeypatch, question, goal):
    """A line every ten seconds, against the goal; and nothing where work is short."""
    np.save("A.npy", A * (100 / norm(A, "fro") if "spectral" not in question else 80))
    assert run(f"A.npy {question}")[2] == []
    clock = iter(range(0, 10**6, 11))
    monkeypatch.setattr(telling.time, "monotonic", lambda: next(clock))
    *_, line = run(f"A.npy {question}")[2]
    assert re.fullmatch(rf"A.npy: rank \d+, error at most \S+e-\d+, goal {goal}", line)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_progress_and_ctrl_c():
    """Work that would take long shows its progress, and ends at once, without a trace."""
    pty = importlib.import_module("pty")
    np.save("noise.npy", gaussian((3000, 3000), "float64"))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lowrank", "noise.npy", "--rtol", "1e-10"]
    # Where the tests run in the background of a shell it is ignored, and the child inherits that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "--output", "F.npz"], stdout=subprocess.PIPE, stderr=theirs
    )
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 60
    while b"goal" not in shown[:-12] and time.monotonic() < deadline:
        shown += os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    rest = os.read(ours, 10000)
    os.close(ours)
    process.stdout.close()
    assert b"reading noise.npy" in shown
    assert re.search(
        rb"\x1b\[Knoise.npy: rank \d+, error at most \d\.\d\de-\d\d, goal 1.00e-10", shown
    )
    assert rest.replace(b"\r\n", b"\n").endswith(b"\r\x1b[Klowrank: interrupted\n")
    assert [path.name for path in Path().iterdir()] == ["noise.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell with pipes")
def test_a_reader_that_stops_early():
    """More than fits in the buffers, to someone who has gone."""
    tensors = {f"{i}": np.eye(3, dtype="float32") for i in range(300)}
    safetensors_numpy.save_file(tensors, "many.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "lowrank", "many.safetensors", "--rank", "1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_reader_that_is_gone_costs_neither_output_nor_exit_code():
    np.save("A.npy", A)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "lowrank", "A.npy"),
            *("--rtol", "1e-9", "--rank", "2", "--output", "F.npz"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    process.stdout.close()
    assert process.wait(60) == 3
    assert process.stderr.read().startswith(b"lowrank: A.npy: tolerance 1e-09 not met")
    process.stderr.close()
    assert factors("F.npz")["S"].shape == (2,)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_at_stdout():
    np.save("A.npy", A)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lowrank", "A.npy", "--rank", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    line = "lowrank: cannot write to the standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
@pytest.mark.parametrize(("closed", "code"), [(">&-", 0), ("2>&-", 0), (">&- 2>&-", 0)])
def test_closed_streams(closed, code):
    np.save("A.npy", A)
    line = f"{shlex.quote(sys.executable)} -m lowrank A.npy --rank 1 --output F.npz {closed}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert Path("F.npz").is_file()
    line = f"{shlex.quote(sys.executable)} -m lowrank nowhere.npy --rank 1 {closed}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_sigterm_leaves_nothing_behind():
    np.save("A.npy", A)
    code = """
import os, signal, sys
import numpy
def slow(stream, **arrays):
    stream.write(b"half")
    os.kill(os.getpid(), signal.SIGTERM)
numpy.savez = slow
sys.argv = ["lowrank", "A.npy", "--rank", "1", "--output", "F.npz"]
import runpy
runpy.run_module("lowrank", run_name="__main__", alter_sys=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert [path.name for path in Path().iterdir()] == ["A.npy"]


def test_names_cannot_steer_the_terminal(run):
    name = "\x1b[2J\r\n\u202e"
    safetensors_numpy.save_file({name: A, "b": A}, "names.safetensors")
    for line in ("--rtol 0.1", "--rtol 1e-9 --rank 2"):
        _, out, err = run(f"names.safetensors {line}")
        for text in (out, *err):
            assert all(c.isprintable() or c == "\n" for c in text)
        assert "\\x1b[2J\\r\\n\\u202e" in out
        assert len(out.splitlines()) == 4


def test_terminals_without_unicode(monkeypatch):
    np.save("A.npy", A)
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding="ascii"))
    assert main(["A.npy", "--rank", "1"]) == 0
    assert stream.getvalue().startswith(b"A.npy: 40?30, float64")


@pytest.mark.parametrize("stop", ["--rank 3", "--rtol 0.5"])
def test_a_centered_sparse_matrix_has_the_norm_of_its_centered_rows(run, monkeypatch, stop):
    """Its products do not tell it, and progress asks for it too."""
    S = sparse.random(60, 40, density=0.2, random_state=0)
    scipy_io.mmwrite("S.mtx", S)
    states = []
    monkeypatch.setattr(Progress, "show", lambda _, state: states.append(state()))
    code, out, err = run(f"S.mtx --center {stop} --json")
    (result,) = json.loads(out)["matrices"][0]["results"]
    true = norm(S.toarray() - S.toarray().mean(axis=0), "fro")
    assert (code, err) == (0, [])
    assert result["norm_A"] == pytest.approx(true, rel=0.2)
    assert all("goal" in state for state in states)
    assert bool(states) == ("rtol" in stop)
