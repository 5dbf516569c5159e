"""What a person is told in one line, instead of a traceback."""

import importlib
from typing import Any

__all__ = [
    "BAD_INPUT",
    "INTERRUPTED",
    "NOT_MET",
    "InputError",
    "printable",
    "reason",
    "required",
]

# Exit codes, beside 0. The first is that of argparse, the last that of shells.
BAD_INPUT = 2
NOT_MET = 3
INTERRUPTED = 130


class InputError(Exception):
    """Something that only the person at the command line can mend; the message says what."""


def reason(error: BaseException) -> str:
    """The first line of what an exception says, in a form that fits behind a file's name."""
    said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return said.splitlines()[0].rstrip(".")


def printable(text: str) -> str:
    """`text` without what would end the line or steer a terminal: names come from files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def required(package: str, purpose: str) -> Any:
    """Import an optional package, or say how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        top = package.partition(".")[0]
        message = f"{purpose} needs {top}, which cannot be imported; python -m pip install {top}"
        raise InputError(message) from error
