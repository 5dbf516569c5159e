"""``python -m lowrank``: compress the matrix in a file from the command line."""

import signal
import sys
from types import FrameType

from lowrank._command.arguments import parse
from lowrank._command.demonstration import demonstrate
from lowrank._command.errors import BAD_INPUT, INTERRUPTED, InputError
from lowrank._command.running import run
from lowrank._command.streams import complain, prepare_streams

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    prepare_streams()
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options is not None:
            return run(options)
        demonstrate()
    except InputError as error:
        complain(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # on the way out, half-written files are removed


if __name__ == "__main__":
    for name in {"SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):
        signal.signal(signal.Signals[name], _leave)
    sys.exit(main())
