"""Run GPU sessions of a ZeroGPU engine in tests."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from helpers.browser import PATIENCE

from live2diff.zerogpu.engine import GpuSession, ZeroGpuEngine


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def visiting(engine: ZeroGpuEngine, key: str) -> Iterator[threading.Event]:
    """Run a GPU session until the block ends, or until it ends by itself, which sets the event."""
    leave, over = threading.Event(), threading.Event()
    session = engine.registry.get(key)
    assert isinstance(session, GpuSession)

    def visit() -> None:
        with closing(engine.gpu_session(key)) as seconds_left:
            for _ in seconds_left:
                if leave.is_set():
                    break
        if (run := session.run) is not None:
            run.done.wait(PATIENCE)
        over.set()

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield over
    finally:
        leave.set()
        thread.join(PATIENCE)
        assert over.is_set() and session.run is None
