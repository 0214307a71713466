"""Run a command line: messages for bad input, exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence

from .errors import DEVICE_LOST, DeviceLost, NonFiniteError

BAD_INPUT = 2  # exit codes
INTERRUPTED = 130


def run_main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments (by default those of this process), run, and return the exit code.

    It is 0 on success, 2 for bad input or a ValueError, OSError or NonFiniteError, 3 for DeviceLost, whose
    messages are printed behind the parser's `prog`, 130 when interrupted.
    """
    options = parser.parse_args(arguments)
    try:
        run(options)
    except (ValueError, OSError, NonFiniteError, DeviceLost) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return DEVICE_LOST if isinstance(error, DeviceLost) else BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
