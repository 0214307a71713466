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
    """Parse the arguments (by default `sys.argv[1:]`), call `run`, and return the exit code.

    0 is success, 2 a ValueError, OSError, NonFiniteError or StreamOutOfMemory, 3 DeviceLost, 130 an interrupt
    by Ctrl-C or SIGTERM. An error is printed as one line. argparse itself exits with 2 on bad arguments.
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
    """Raise KeyboardInterrupt on SIGTERM inside the block, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set a handler
        yield
        return
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
