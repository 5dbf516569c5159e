"""Files that appear complete or not at all, and replace another only where that was asked for."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lowrank._command.errors import InputError, reason

__all__ = ["check_target", "write"]


def check_target(path: Path, *, source: Path, force: bool) -> None:
    """Say now, rather than after the work, what would keep `path` from being written."""
    try:
        problem = _problem(path, source, force=force)
    except OSError as error:
        problem = f"cannot be written: {reason(error)}"
    if problem is not None:
        message = f"{path}: {problem}"
        raise InputError(message)


def _problem(path: Path, source: Path, *, force: bool) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"cannot be written: there is no folder {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be written: no permission for folder {folder}"
    if path.is_dir():
        return "cannot be written: it is a folder"
    if path.exists() and path.samefile(source):
        return "is the file that is read; choose another name"
    if os.path.lexists(path) and not force:
        return "exists; --force replaces it"
    return None


def write(path: Path, fill: Callable[[BinaryIO], object], *, force: bool) -> None:
    """Let `fill` write a new file beside `path`, then give it that name in one step."""
    try:
        target = Path(os.path.realpath(path))  # a link stays one: what it points to is replaced
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        descriptor, name = tempfile.mkstemp(prefix=".lowrank-", dir=target.parent)
        beside = Path(name)
        try:
            with open(descriptor, "wb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(descriptor)
            beside.chmod(mode)
            _rename(beside, target, force=force)
        finally:
            beside.unlink(missing_ok=True)
    except FileExistsError as error:
        message = f"{path}: exists; --force replaces it"
        raise InputError(message) from error
    except OSError as error:
        message = f"{path}: cannot be written: {reason(error)}"
        raise InputError(message) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
