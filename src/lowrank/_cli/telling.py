"""Output on the terminal: results, progress, and one line instead of a traceback."""

import importlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn


class InputError(Exception):
    """An error that the user can correct; its message is shown in one line."""


def refuse(message: str) -> NoReturn:
    raise InputError(message)


@contextmanager
def guarded(label: object, done: str) -> Iterator[None]:
    """Turn any error into an InputError in one line: `label` cannot be `done`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError as error:
        refuse(f"{label}: {error}")
    # Libraries may raise any exception for damaged files.
    except Exception as error:
        refuse(f"{label}: cannot be {done}: {reason(error)}")


def reason(error: BaseException) -> str:
    """The first line of the message of an exception, without a final period."""
    said = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return said.splitlines()[0].rstrip(".")


def printable(text: str) -> str:
    """`text` with control characters escaped: names from files may contain them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def required(package: str, purpose: str, instead: str = "") -> Any:
    """Import an optional package; otherwise explain how to install it, or what to do `instead`."""
    try:
        return importlib.import_module(package)
    except ImportError:
        top = package.partition(".")[0].replace("PIL", "pillow")
        missing = f"{purpose} needs {top}, which cannot be imported"
        refuse(f"{missing}; python -m pip install {top}{instead}")


def prepare_streams() -> None:
    """Allow all characters in output, and ignore output to closed streams."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        stream.reconfigure(errors="replace")  # a terminal may lack × and Greek letters
        setattr(sys, name, stream)


def tell(text: str) -> None:
    """Print a part of the result."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Otherwise flushing the buffers would fail again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader of a pipe, such as head, may close it; the work goes on.
        if not isinstance(error, BrokenPipeError):
            refuse(f"cannot write to the standard output: {reason(error)}")


def complain(text: str, *, start: str = "lowrank: ", end: str = "\n") -> None:
    """Print one line on stderr, in place of a line of progress."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    with suppress(OSError):  # stderr may be closed
        print(f"{clear}{start}{printable(text)}", end=end, file=sys.stderr, flush=True)


class Progress:
    """Progress on stderr: on a terminal one line that is overwritten, else a line every 10 s."""

    def __init__(self) -> None:
        self._at_terminal = sys.stderr.isatty()
        self._label, self._last = "", time.monotonic()

    def start(self, label: str) -> None:
        """Show the label of new work, or clear the line."""
        self._label = label
        if self._at_terminal:
            self._write(label)

    def show(self, state: Callable[[], str]) -> None:
        if time.monotonic() - self._last >= (0.1 if self._at_terminal else 10.0):
            self._write(f"{self._label}: {state()}")
            self._last = time.monotonic()

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1 if self._at_terminal else None
        complain(printable(text)[:width], start="", end="" if self._at_terminal else "\n")
