"""``python -m lowrank``: compress the matrix in a file from the command line."""

import os
import sys

from lowrank._command.arguments import parse
from lowrank._command.demonstration import demonstrate
from lowrank._command.errors import BAD_INPUT, INTERRUPTED, InputError
from lowrank._command.running import run

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack × and Greek letters
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        if options is not None:
            return run(options)
        demonstrate()
    except InputError as error:
        print(f"lowrank: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("lowrank: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the table has enough, as head does. The interpreter must not fail once more
        # when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
