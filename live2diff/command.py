"""Run a command line: messages for bad input, exit codes."""

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .errors import DEVICE_LOST, DeviceLost, NonFiniteError, StreamOutOfMemory

BAD_INPUT = 2  # exit codes
INTERRUPTED = 130


def run_main(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse the arguments (by default those of this process), run, and return the exit code.

    It is 0 on success, 2 for bad input or a ValueError, OSError, NonFiniteError or StreamOutOfMemory, 3 for
    DeviceLost, whose messages are printed behind the parser's `prog`, 130 when interrupted, by SIGTERM too.
    """
    options = parser.parse_args(arguments)
    try:
        with interrupted_by_sigterm():
            run(options)
    except (ValueError, OSError, NonFiniteError, StreamOutOfMemory, DeviceLost) as error:
        print(f"{parser.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return DEVICE_LOST if isinstance(error, DeviceLost) else BAD_INPUT
    except KeyboardInterrupt:
        print(f"\n{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, so that files are closed and unfinished ones removed."""
    if threading.current_thread() is not threading.main_thread():  # only that one may set a handler
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
