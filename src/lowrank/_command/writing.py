"""Files that appear complete or not at all, and replace another only where that was asked for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lowrank._command.errors import InputError, reason

__all__ = ["check_target", "write"]


def check_target(path: Path, *, source: Path, force: bool) -> None:
    """Say now, rather than after the work, what would keep `path` from being written."""
    folder = path.parent
    if not folder.is_dir():
        message = f"{path}: cannot be written: there is no folder {folder}"
        raise InputError(message)
    if path.is_dir():
        message = f"{path}: cannot be written: it is a folder"
        raise InputError(message)
    if not os.access(folder, os.W_OK):
        message = f"{path}: cannot be written: no permission for folder {folder}"
        raise InputError(message)
    if path.exists():
        if path.samefile(source):
            message = f"{path}: is the file that is read; choose another name"
            raise InputError(message)
        if not force:
            raise InputError(_exists(path))


def write(path: Path, fill: Callable[[BinaryIO], object], *, force: bool) -> None:
    """Let `fill` write a new file beside `path`, then give it that name in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with beside.open("xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
            _rename(beside, path, force=force)
        finally:
            beside.unlink(missing_ok=True)
    except FileExistsError as error:
        raise InputError(_exists(path)) from error
    except OSError as error:
        message = f"{path}: cannot be written: {reason(error)}"
        raise InputError(message) from error


def _rename(beside: Path, path: Path, *, force: bool) -> None:
    if force:
        beside.replace(path)
        return
    try:
        path.hardlink_to(beside)  # unlike a rename, never replaces what appeared meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(str(path)) from None
        beside.replace(path)


def _exists(path: Path) -> str:
    return f"{path}: exists; --force replaces it"
