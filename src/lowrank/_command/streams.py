"""Standard output and standard error, whatever is at their other end."""

import os
import sys
from contextlib import suppress

from lowrank._command.errors import InputError, printable, reason

__all__ = ["complain", "prepare_streams", "tell"]


def prepare_streams() -> None:
    """Let every character be written, and writing to a closed stream do nothing."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack × and Greek letters


def tell(text: str) -> None:
    """Print a part of the answer."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _discard()  # whoever read it has enough, as head does; the work goes on
    except OSError as error:
        _discard()
        message = f"cannot write to the standard output: {reason(error)}"
        raise InputError(message) from error


def complain(text: str) -> None:
    """One line on stderr."""
    with suppress(OSError):  # there may be nobody left to tell
        print(f"lowrank: {printable(text)}", file=sys.stderr, flush=True)


def _discard() -> None:
    # What is still in the buffers would fail once more when the interpreter ends.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
