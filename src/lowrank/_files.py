"""Atomic writing of files: a file appears complete or not at all."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(
    path: str | os.PathLike[str], fill: Callable[[BinaryIO], object], *, replace: bool = True
) -> None:
    """Let `fill` write a temporary file next to `path`, then rename it in one step.

    So the file appears complete or not at all. Without `replace`, an existing file is kept, and a
    FileExistsError is raised.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: its target is replaced
    temporary = target.with_name(f".lowrank-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as stream:
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if not replace:
            try:
                target.hardlink_to(temporary)  # unlike a rename, never replaces another file
                return
            except OSError:  # the other file, or a file system without links
                if target.exists():
                    raise FileExistsError(f"{path} exists; choose another name.") from None
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
