"""From checked options to the table, the files and the exit code."""

import math
import os
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import lowrank
from lowrank._command.answering import Answer, Table, answers, as_json, entry, missed_line
from lowrank._command.arguments import Options
from lowrank._command.plotting import picture
from lowrank._command.reading import Matrix, as_numpy, sources
from lowrank._command.telling import InputError, Progress, complain, guarded, refuse, required, tell

# Exit codes, beside 0. The first is that of argparse.
BAD_INPUT = 2
NOT_MET = 3


def run(options: Options) -> int:
    """Do the work and return the exit code."""
    matrices = sources(options)
    _check_targets(options, len(matrices))
    progress = Progress()
    table = Table(options, len(matrices))
    entries: list[dict[str, Any]] = []
    told: list[tuple[str, Answer]] = []
    code = 0
    for position, source in enumerate(matrices, start=1):
        count = f" ({position}/{len(matrices)})" if len(matrices) > 1 else ""
        label = f"{options.file.name} {source.name}".rstrip() + count
        try:
            with closing(progress):
                progress.start(f"reading {label}")
                matrix = source.load()
                progress.start(label)
                found = answers(matrix, options, progress, source.label)
                _write_files(matrix, found[0], options, progress)
        except InputError as error:
            if len(matrices) == 1:
                raise
            # The other tensors of a checkpoint are worth an answer all the same.
            complain(str(error))
            entries.append({"name": source.name, "error": str(error)})
            code = BAD_INPUT
            continue
        entries.append(entry(source, matrix, found))
        told += [(source.name, answer) for answer in found]
        if not options.json:
            table.add(source, matrix, found)
    if options.json:
        tell(as_json(options, entries))
    else:
        table.end()
    if any(answer.missed for _, answer in told):
        complain(f"{options.file}: {missed_line(told)}")
        code = code or NOT_MET
    return code


def _check_targets(options: Options, matrices: int) -> None:
    """Find out what would keep files from being written before the work, not after it."""
    for path, option in ((options.output, "--output"), (options.plot, "--plot")):
        if path is None:
            continue
        if matrices > 1:
            has = f"{options.file}: has {matrices} matrices"
            refuse(f"{has} and {option} takes one; choose it with --name")
        with guarded(path, "written"):
            if not path.parent.is_dir():
                refuse(f"cannot be written: there is no folder {path.parent}")
            if not os.access(path.parent, os.W_OK | os.X_OK):
                refuse(f"cannot be written: no permission for folder {path.parent}")
            if path.is_dir():
                refuse("cannot be written: it is a folder")
            if path.exists() and options.file.exists() and path.samefile(options.file):
                refuse("is the file that is read; choose another name")
            if os.path.lexists(path) and not options.force:
                refuse("exists; --force replaces it")
    if options.plot is not None:
        required("matplotlib", "--plot")


def _write_files(matrix: Matrix, answer: Answer, options: Options, progress: Progress) -> None:
    if options.output is not None:
        progress.start(f"writing {options.output}")
        write(options.output, lambda stream: _save(stream, answer, options), force=options.force)
    if options.plot is not None:
        progress.start(f"drawing {options.plot}")
        with guarded(options.plot, "drawn", "cannot be drawn: not enough memory"):
            drawn = picture(matrix, answer, options)
        write(options.plot, lambda stream: stream.write(drawn), force=options.force)


def _save(stream: BinaryIO, answer: Answer, options: Options) -> None:
    U, S, Vh = map(as_numpy, answer.factors)
    tolerance = math.nan if answer.factors.tolerance is None else answer.factors.tolerance
    about = {"norm": options.norm, "version": lowrank.__version__}
    np.savez(stream, U=U, S=S, Vh=Vh, tolerance=tolerance, bound=answer.bound, **about)


def write(path: Path, fill: Callable[[BinaryIO], object], *, force: bool) -> None:
    """Let `fill` write a new file beside `path`, then give it that name in one step.

    So the file appears complete or not at all, and replaces another only with `force`.
    """
    with guarded(path, "written"):
        target = Path(os.path.realpath(path))  # a link stays one: what it points to is replaced
        beside = target.with_name(f".lowrank-{uuid.uuid4().hex}")
        try:
            with beside.open("xb") as stream:
                if target.exists():
                    beside.chmod(target.stat().st_mode & 0o777)
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            if not force:
                try:
                    target.hardlink_to(beside)  # unlike a rename, never replaces another file
                    return
                except OSError:  # the other file, or a file system without links
                    if target.exists():
                        refuse("exists; --force replaces it")
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
