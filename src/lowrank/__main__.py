"""``lowrank`` or ``python -m lowrank``: compress the matrix in a file from the command line."""

import signal
import sys
from types import FrameType

from lowrank._cli.arguments import parse
from lowrank._cli.demonstration import demonstrate
from lowrank._cli.running import BAD_INPUT, run
from lowrank._cli.telling import InputError, complain, prepare_streams


def main(arguments: list[str]) -> int:
    """Run the command line with these arguments, and return the exit code."""
    prepare_streams()
    try:
        if arguments:
            return run(parse(arguments))
        demonstrate()
    except InputError as error:
        complain(str(error))
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("interrupted")
        return 130  # as shells do
    return 0


def _leave(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # an exception, so that half-written files are removed


def command() -> None:
    """The command ``lowrank``: run with the arguments of the process, and exit."""
    for name in {"SIGTERM", "SIGHUP"} & set(signal.Signals.__members__):
        signal.signal(signal.Signals[name], _leave)
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
