"""Wait for conditions; a limit only ends a test that would wait for ever."""

import time
from collections.abc import Callable

PATIENCE = 180.0  # seconds: how long a condition may take on a busy machine without a GPU


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)
