"""Compress the matrix in FILE to a certified tolerance or to a given rank, and tell what it takes.
Without FILE: the same for a map of elevations that comes with the package.

files:
  .npy                the array, memory-mapped if its dtype is that of the work
  .npz                an array of it (--name); or a sparse matrix of SciPy, with SciPy
  .csv .tsv .txt      numbers, separated by semicolons, commas, tabs or blanks; # starts a comment
  .mtx                Matrix Market, sparse or dense, with SciPy
  .safetensors        every tensor of two dimensions, one line each, with safetensors; bfloat16 and
                      float8 also need torch
  Integers are read as float64. Names of columns have to be skipped (--skip-rows), and decimal
  commas are not read.

output:
  FACTORS.npz holds U, S and Vh, with A = (U * S) @ Vh up to the error, and about: tolerance, error
  and error_bound (absolute), norm and more, as JSON. lowrank.load reads all of it. The file appears
  when it is complete, or not at all.

  Errors in the table are relative to the norm of the matrix, or in the spectral norm to a lower
  bound on it; with --json they are absolute. In the spectral norm and with --rank alone, estimate
  and bound may be several times the error. Memory and bytes are those of U, S and Vh, in the
  precision of the file (float64 for integers). The same file, options and seed give the same
  result.

exit code:
  0 done; 2 bad input, told in one line; 3 a tolerance was not met (what was reached is told and
  written all the same); 130 interrupted

examples:
  python -c "import numpy as np; np.save('A.npy', np.vander(np.linspace(0, 1, 400)))"
  python -m lowrank A.npy --rtol 1e-2
  python -m lowrank A.npy --rtol 1e-2,1e-4,1e-6 --norm spectral
  python -m lowrank A.npy --rtol 1e-6 --rank 40 --output factors.npz
  python -m lowrank A.npy --rank 10 --power-iterations 1 --json
"""

import argparse
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import lowrank
from lowrank._command.telling import refuse

Options = argparse.Namespace  # of all options by their names, with `rtols` for --rtol

PLOTS = (".png", ".pdf", ".svg")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(message)


def _count(least: int) -> Any:
    def integer(text: str) -> int:
        with suppress(ValueError):
            if (value := int(text)) >= least:
                return value
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, got {text!r}")

    return integer


def _tolerances(text: str) -> tuple[float, ...]:
    with suppress(ValueError):
        values = tuple(map(float, text.split(",")))
        if all(0.0 < value < math.inf for value in values):
            return values
    raise argparse.ArgumentTypeError(
        f"must be a positive number, or several with commas between, got {text!r}"
    )


def _parser() -> argparse.ArgumentParser:
    description, _, details = (__doc__ or "").partition("\n\n")
    parser = _Parser(
        prog="python -m lowrank",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", metavar="FILE", nargs="?", type=Path, help="file that holds the matrix; see below")
    add(
        "--rtol",
        metavar="R[,R…]",
        dest="rtols",
        type=_tolerances,
        default=(None,),
        help="relative tolerance, such as 1e-2; several give a line each",
    )
    add("--rank", metavar="K", type=_count(1), help="rank; a cap on it where --rtol is given")
    add("--norm", choices=("fro", "spectral"), default="fro", help="norm of all errors (fro)")
    add(
        "--power-iterations",
        metavar="Q",
        type=_count(0),
        help="0 with --rtol, 1 in the spectral norm, 2 with --rank alone",
    )
    add("--seed", metavar="N", type=_count(0), default=0, help="seed of the random sketch (0)")
    add("--name", metavar="NAME", help="array or tensor of the file to take")
    add("--skip-rows", metavar="N", type=_count(0), default=0, help="lines of text to skip (0)")
    add("--output", metavar="FACTORS.npz", type=Path, help="write the factors, of one tolerance")
    add(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help="draw estimate, bound and true error against the rank, of one tolerance; matplotlib",
    )
    add("--force", action="store_true", help="let --output and --plot replace a file")
    add("--json", action="store_true", help="JSON instead of the table")
    add("--version", action="version", version=f"lowrank {lowrank.__version__}")
    return parser


def parse(arguments: list[str]) -> Options:
    """The options, checked as far as that goes without opening a file.

    With a rank alone, `rtols` is ``(None,)``: one question, without a tolerance.
    """
    given = _parser().parse_args(arguments)
    if given.file is None:
        refuse("FILE is missing; python -m lowrank --help shows examples")
    if given.rtols == (None,) and given.rank is None:
        refuse("no stop rule: give --rtol, for instance --rtol 1e-2, or --rank, or both")
    for path, option in ((given.output, "--output"), (given.plot, "--plot")):
        if path is not None and len(given.rtols) > 1:
            refuse(f"{option} takes one tolerance, got {len(given.rtols)}")
    if given.output is not None and given.output.suffix.lower() != ".npz":
        refuse(f"--output must name a .npz file, got {given.output}")
    if given.plot is not None and given.plot.suffix.lower() not in PLOTS:
        refuse(f"--plot must name a file of kind {', '.join(PLOTS)}, got {given.plot}")
    return given
