"""From checked options to the table, the files and the exit code."""

import math
from typing import Any, BinaryIO

import numpy as np

import lowrank
from lowrank._command.arguments import Options
from lowrank._command.errors import BAD_INPUT, NOT_MET, InputError, required
from lowrank._command.plotting import picture
from lowrank._command.reading import Matrix, Source, as_numpy, sources
from lowrank._command.reporting import Progress, Table, as_json, entry, missed_line
from lowrank._command.streams import complain, tell
from lowrank._command.working import Answer, answers
from lowrank._command.writing import check_target, write

__all__ = ["run"]


def run(options: Options) -> int:
    """Do the work and return the exit code."""
    matrices = sources(options.file, options.name, options.skip_rows)
    _check_targets(options, len(matrices))
    progress = Progress()
    table = Table(options, matrices)
    entries: list[dict[str, Any]] = []
    told: list[tuple[str, Answer]] = []
    failures = 0
    try:
        for position, source in enumerate(matrices, start=1):
            count = f" ({position}/{len(matrices)})" if len(matrices) > 1 else ""
            label = f"{options.file.name} {source.name}".rstrip() + count
            try:
                matrix, found = _solve(source, label, options, progress)
            except InputError as error:
                if len(matrices) == 1:
                    raise
                # The other tensors of a checkpoint are worth an answer all the same.
                progress.clear()
                complain(str(error))
                entries.append({"name": source.name, "error": str(error)})
                failures += 1
                continue
            _write_files(matrix, found[0], options, progress)
            progress.clear()
            entries.append(entry(source, matrix, found))
            told += [(source.name, answer) for answer in found]
            if not options.json:
                table.add(source, matrix, found)
    finally:
        progress.clear()
    if options.json:
        tell(as_json(options, entries))
    else:
        table.end()
    if any(answer.missed for _, answer in told):
        complain(f"{options.file}: {missed_line(told)}")
        return BAD_INPUT if failures else NOT_MET
    return BAD_INPUT if failures else 0


def _check_targets(options: Options, matrices: int) -> None:
    """Find out what would keep files from being written before the work, not after it."""
    for path, option in ((options.output, "--output"), (options.plot, "--plot")):
        if path is None:
            continue
        if matrices > 1:
            message = (
                f"{options.file}: has {matrices} matrices and {option} takes one; "
                "choose it with --name"
            )
            raise InputError(message)
        check_target(path, source=options.file, force=options.force)
    if options.plot is not None:
        required("matplotlib", "--plot")


def _solve(
    source: Source, label: str, options: Options, progress: Progress
) -> tuple[Matrix, list[Answer]]:
    progress.start(f"reading {label}")
    matrix = source.load()
    progress.start(label)
    try:
        return matrix, answers(matrix, options, progress.look)
    except InputError as error:
        where = f"{options.file}: {source.name}" if source.name else f"{options.file}"
        message = f"{where}: {error}"
        raise InputError(message) from error


def _write_files(matrix: Matrix, answer: Answer, options: Options, progress: Progress) -> None:
    if options.output is not None:
        progress.start(f"writing {options.output}")
        write(options.output, lambda stream: _save(stream, answer, options), force=options.force)
    if options.plot is not None:
        progress.start(f"drawing {options.plot}")
        drawn = picture(matrix, answer, options)
        write(options.plot, lambda stream: stream.write(drawn), force=options.force)


def _save(stream: BinaryIO, answer: Answer, options: Options) -> None:
    U, S, Vh = map(as_numpy, answer.factors)
    tolerance = math.nan if answer.factors.tolerance is None else answer.factors.tolerance
    np.savez(
        stream,
        U=U,
        S=S,
        Vh=Vh,
        tolerance=tolerance,
        bound=answer.bound,
        norm=options.norm,
        version=lowrank.__version__,
    )
