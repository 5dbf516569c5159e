"""From checked options to the table, the files and the exit code."""

import os
import tempfile
from contextlib import closing
from typing import Any

from lowrank._command import models
from lowrank._command.answering import Answer, Table, answers, as_json, entry, missed_line
from lowrank._command.arguments import Options
from lowrank._command.plotting import picture
from lowrank._command.reading import Matrix, sources
from lowrank._command.telling import InputError, Progress, complain, guarded, refuse, required, tell
from lowrank._files import write_whole

# Exit codes other than 0. The first is that of argparse.
BAD_INPUT = 2
NOT_MET = 3


def run(options: Options) -> int:
    """Do the work and return the exit code."""
    if options.is_model:
        return models.run(options)
    matrices = sources(options)
    _check_targets(options, len(matrices))
    progress = Progress()
    table = Table(options, len(matrices))
    entries: list[dict[str, Any]] = []
    reported: list[tuple[str, Answer]] = []
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
            # Go on with the other tensors of a checkpoint.
            complain(str(error))
            entries.append({"name": source.name, "error": str(error)})
            code = BAD_INPUT
            continue
        entries.append(entry(source, matrix, found))
        reported += [(source.name, answer) for answer in found]
        if not options.json:
            table.add(source, matrix, found)
    if options.json:
        tell(as_json(options, entries))
    else:
        table.end()
    if any(answer.missed for _, answer in reported):
        complain(f"{options.file}: {missed_line(reported)}")
        code = code or NOT_MET
    return code


def _check_targets(options: Options, matrices: int) -> None:
    """Check that the output files can be written, before the work begins."""
    for option, path in (("--output", options.output), ("--plot", options.plot)):
        if path is None:
            continue
        if matrices > 1:
            has = f"{options.file}: has {matrices} matrices"
            refuse(f"{has} and {option} takes one; choose it with --name")
        with guarded(path, "written"):
            if path.is_dir():
                refuse("cannot be written: it is a folder")
            if path.exists() and options.file.exists() and path.samefile(options.file):
                refuse("is the file that is read; choose another name")
            if os.path.lexists(path) and not options.force:
                refuse("exists; --force replaces it")
            tempfile.TemporaryFile(dir=path.parent).close()
    if options.plot is not None:
        required("matplotlib", "--plot")


def _write_files(matrix: Matrix, answer: Answer, options: Options, progress: Progress) -> None:
    if options.output is not None:
        progress.start(f"writing {options.output}")
        with guarded(options.output, "written"):
            answer.factors.save(options.output, replace=options.force)
    if options.plot is not None:
        progress.start(f"drawing {options.plot}")
        with guarded(options.plot, "drawn", "cannot be drawn: not enough memory"):
            drawn = picture(matrix, answer, options)
        with guarded(options.plot, "written"):
            write_whole(options.plot, lambda stream: stream.write(drawn), replace=options.force)
