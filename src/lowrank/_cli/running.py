"""From checked options to the table, the files and the exit code."""

import json
import os
import tempfile
from functools import partial
from typing import Any

import lowrank
from lowrank._cli import models
from lowrank._cli.answering import TITLES, answers, missed_line, tell_matrix, tell_totals
from lowrank._cli.arguments import Options
from lowrank._cli.plotting import draw
from lowrank._cli.reading import matrix_of, sources
from lowrank._cli.telling import InputError, Progress, complain, guarded, refuse, required, tell
from lowrank._files import write_whole

# Exit codes other than 0. The first is that of argparse.
BAD_INPUT = 2
NOT_MET = 3


def run(options: Options) -> int:
    """Do the work and return the exit code."""
    if models.are_asked(options):
        return 0 if models.run(options) else NOT_MET
    matrices = sources(options)
    several = len(matrices) > 1
    _check_targets(options, len(matrices))
    if several and not options.json:
        tell(f"{TITLES}   tensor")
    progress, code = Progress(), 0
    entries: list[dict[str, Any]] = []  # of the JSON
    for position, (name, read) in enumerate(matrices, start=1):
        about = f"{options.file}: {name}" if name else str(options.file)
        label = f"{about} ({position}/{len(matrices)})" if several else about
        entries.append({"name": name or None})
        try:
            progress.start(f"reading {label}")
            matrix = matrix_of(read, about)
            progress.start(label)
            found = answers(matrix, options, progress, about)
            _write_files(matrix.array, found[0][0], options, progress)
        except InputError as error:
            if not several:
                raise
            # Go on with the other tensors of a checkpoint.
            complain(str(error))
            entries[-1]["error"], code = str(error), BAD_INPUT
            continue
        progress.start("")
        head = {"shape": matrix.array.shape, "dtype": matrix.dtype, "bytes": matrix.nbytes}
        entries[-1] |= head | {"results": [result for _, result in found]}
        if not options.json:
            tell_matrix(entries[-1], options, several=several)
    done = [entry for entry in entries if "results" in entry]
    if options.json:
        names = ("norm", "atol", "rank", "center", "power_iterations", "seed")
        head = {"lowrank": lowrank.__version__, "file": str(options.file)}
        head |= {name: getattr(options, name) for name in names}
        tell(json.dumps(head | {"matrices": entries}, indent=2, allow_nan=False))
    elif several and done:
        tell_totals(done, options)
    if line := missed_line([(e["name"], result) for e in done for result in e["results"]]):
        complain(f"{options.file}: {line}")
        code = code or NOT_MET
    return code


def _check_targets(options: Options, matrices: int) -> None:
    """Check that the output files can be written, before the work begins."""
    for name, kinds in (("output", (".npz",)), ("plot", (".png", ".pdf", ".svg"))):
        path = getattr(options, name)
        if path is None:
            continue
        if path.suffix.lower() not in kinds:
            refuse(f"--{name} must name a file of kind {', '.join(kinds)}, got {path}")
        if (results := matrices * len(options.rtols)) > 1:
            refuse(f"--{name} writes one result, not {results}; give one tolerance, rank or --name")
        with guarded(path, "written"):
            if path.exists() and options.file.exists() and path.samefile(options.file):
                refuse("is the file that is read; choose another name")
            if os.path.lexists(path) and not options.force:
                refuse("exists; --force replaces it")
            tempfile.TemporaryFile(dir=path.parent).close()
    if options.plot is not None:
        required("matplotlib", "--plot")


def _write_files(A: Any, found: Any, options: Options, progress: Progress) -> None:
    if options.output is not None:
        progress.start(f"writing {options.output}")
        with guarded(options.output, "written"):
            found.save(options.output, replace=options.force)
    if options.plot is not None:
        progress.start(f"drawing {options.plot}")
        with guarded(options.plot, "drawn"):
            write_whole(options.plot, partial(draw, A, found, options), replace=options.force)
