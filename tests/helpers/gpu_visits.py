"""Run GPU visits of a ZeroGPU engine in tests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.browser import PATIENCE, wait_for

from live2diff.zerogpu.engine import ZeroGpuEngine


@contextmanager
def visiting(engine: ZeroGpuEngine, key: str) -> Iterator[threading.Event]:
    """Somebody has clicked: the visit runs until the block ends or by itself, which the event tells."""
    leave, over = threading.Event(), threading.Event()

    def visit() -> None:
        try:
            for _ in engine.gpu_session(key):
                if leave.is_set():
                    break
        finally:
            over.set()

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield over
    finally:
        leave.set()
        thread.join(PATIENCE)
        wait_for(lambda: key not in engine._visitors or engine._visitors[key].run is None)
