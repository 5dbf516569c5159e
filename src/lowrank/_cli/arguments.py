"""Compress the matrix in FILE to a certified tolerance or to a given rank, and report rank, error,
memory and time. Without a tolerance or rank, for the tolerances 0.1, 0.01 and 0.001. Without any
argument: the same for a map of elevations that comes with the package.

files, with the packages that they need:
  .npy                an array, memory-mapped if its dtype needs no conversion
  .npz                one of its arrays; or a SciPy sparse matrix (SciPy)
  .csv .tsv .txt .dat numbers, separated by semicolons, tabs, commas or spaces; # starts a comment;
                      also compressed (.csv.gz .csv.bz2 .csv.xz)
  -                   text from the standard input
  .mtx                Matrix Market, sparse or dense (SciPy)
  .mat                a MATLAB array (SciPy; version 7.3: h5py)
  .h5 .hdf5           a dataset (h5py)
  .parquet            all columns (pyarrow)
  .xlsx               a sheet, read like text (openpyxl)
  .png .jpg .tif ...  an image as shades of gray (Pillow)
  .safetensors        every floating tensor of two dimensions (safetensors; bfloat16, float8: also
                      torch). With --output or --lora the checkpoint of a model, also as a
                      directory or an index (.json) of shards

  Choose one of several arrays, datasets, sheets or tensors as FILE:NAME or with --name. In text, a
  first line of column names is skipped, with a message; --skip-columns skips an index. Integers are
  read as float64.

output:
  FACTORS.npz contains U, S and Vh, with A = (U * S) @ Vh up to the error, and an entry `about` with
  tolerance, error and error_bound (absolute), norm and more, as JSON. lowrank.load reads the file.
  It appears when it is complete, or not at all.

  Tolerances and errors in the table are relative to the norm of the matrix (in the spectral norm,
  to a lower bound on it). With --json all values but rtol are absolute. In the spectral norm, and
  with --rank alone, estimate and bound may be several times the error. Memory is that of U, S and
  Vh (with --center, also of the mean), in the precision of the file (float64 for integers). The
  same file, options and seed give the same result.

  If the work takes long, its progress is written to the standard error: the error and its goal.

  OUT.safetensors has two factors in place of each weight where that takes less memory, and all
  other tensors as they are; DIR has the files of an adapter that PEFT loads. Both need torch. Their
  errors are bounds in the Frobenius norm, relative to the weight, or for an adapter to its change.

exit code:
  0 done; 2 bad input, explained in one line; 3 a tolerance was not met (the result is reported and
  written all the same); 130 interrupted

examples:
  python -c "import numpy as np; np.save('A.npy', np.vander(np.linspace(0, 1, 400)))"
  lowrank A.npy
  lowrank A.npy --rtol 1e-2,1e-4,1e-6 --norm spectral
  lowrank A.npy --atol 0.5 --center
  lowrank A.npy --rtol 1e-6 --rank 40 --output factors.npz
  lowrank A.npy --rank 10 --power-iterations 1 --json
  lowrank model.safetensors --rtol 0.3 --output small.safetensors
  lowrank TUNED --minus BASE --rtol 0.1 --lora adapter
"""

import argparse
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import lowrank
from lowrank._cli.telling import refuse

Options = argparse.Namespace  # of all options by their names, with `rtols` for --rtol

RTOLS = (0.1, 0.01, 0.001)  # by default


def _number(kind: type, least: float) -> Any:
    """A function that reads a finite number of at least `least`."""
    words = f"an integer of at least {least}" if kind is int else "a positive number"

    def read(text: str) -> Any:
        with suppress(ValueError):
            if least <= (value := kind(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")

    return read


_tolerance = _number(float, math.ulp(0.0))


def _tolerances(text: str) -> tuple[float, ...]:
    return tuple(map(_tolerance, text.split(",")))


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    shape = argparse.RawDescriptionHelpFormatter
    settings: dict[str, Any] = {"prog": "lowrank", "description": description, "epilog": details}
    parser = argparse.ArgumentParser(**settings, formatter_class=shape, allow_abbrev=False)
    parser.error = refuse  # type: ignore[method-assign]
    add = parser.add_argument
    count: dict[str, Any] = {"metavar": "N", "type": _number(int, 0), "default": 0}
    add("file", metavar="FILE", type=Path, help="file that holds the matrix; see below")
    help_rtol = "relative tolerance, such as 1e-2; or several, for a line each"
    add("--rtol", metavar="R[,R…]", dest="rtols", type=_tolerances, help=help_rtol)
    add("--atol", metavar="A", type=_tolerance, help="absolute tolerance; the larger applies")
    add("--rank", metavar="K", type=_number(int, 1), help="rank; with a tolerance, the largest")
    add("--center", action="store_true", help="subtract the mean of all rows from each")
    add("--norm", choices=("fro", "spectral"), default="fro", help="norm of all errors (fro)")
    help_powers = "0 with a tolerance, 1 in the spectral norm, 2 with --rank alone"
    add("--power-iterations", metavar="Q", type=_number(int, 0), help=help_powers)
    add("--seed", **count, help="seed of the random sketch (0)")
    add("--name", metavar="NAME", help="array, dataset, sheet or tensor of the file to take")
    add("--skip-rows", **count, help="lines of text to skip (0)")
    add("--skip-columns", **count, help="columns of text to skip (0)")
    help_decimal = "decimal mark of text, . or , (.)"
    add("--decimal", metavar="C", choices=(".", ","), default=".", help=help_decimal)
    add("--output", metavar="FACTORS.npz", type=Path, help="write the factors for one tolerance")
    checkpoints = parser.add_argument_group("checkpoints").add_argument
    help_minus = "checkpoint before; FILE is the one after"
    checkpoints("--minus", metavar="BASE", type=Path, help=help_minus)
    checkpoints("--lora", metavar="DIR", type=Path, help="write the difference as an adapter")
    help_budget = "largest size of the adapter in bytes, shared by all weights"
    checkpoints("--budget", metavar="BYTES", type=_number(int, 1), help=help_budget)
    help_rest = "the adapter also holds changed tensors without factors, in full"
    checkpoints("--save-rest", action="store_true", help=help_rest)
    help_transposed = "weights of the adapter are in×out, as in GPT-2"
    checkpoints("--transposed", action="store_true", help=help_transposed)
    help_names = "expression of names to leave without factors (embed|wte|wpe|lm_head)"
    checkpoints("--skip-names", metavar="REGEX", help=help_names)
    checkpoints("--device", metavar="D", default="cpu", help="where to compute (cpu)")
    help_plot = "plot estimate, bound and true error against rank, for one tolerance; matplotlib"
    add("--plot", metavar="FILE.png", type=Path, help=help_plot)
    add("--force", action="store_true", help="let --output and --plot replace a file")
    add("--json", action="store_true", help="JSON instead of the table")
    add("--version", action="version", version=f"lowrank {lowrank.__version__}")
    return parser


def parse(arguments: list[str]) -> Options:
    """The options, checked as far as possible without reading a file.

    With a rank or `atol` alone, `rtols` is ``(None,)``: one result, without a relative tolerance.
    """
    given = _parser().parse_args(arguments)
    if given.rtols is None:
        given.rtols = RTOLS if given.rank is given.atol is given.budget is None else (None,)
    file, mark, name = str(given.file).rpartition(":")
    if mark and Path(file).suffix and not given.file.exists():
        given.file, given.name = Path(file), given.name or name
    return given
