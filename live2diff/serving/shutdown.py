"""Stop the server: clips get time to finish; those that do not finish keep the frames that are done."""

import os
import signal
import threading
import time
from typing import Any, Protocol

from ..errors import DeviceLost
from .event_log import log_event
from .sessions import EngineProtocol

GRACE_SECONDS = 10.0  # for clips to finish
CUT_SECONDS = 3.0  # for clips that are ended early, to save their frames
REPORT_SECONDS = 2.0  # for the page to receive their results
WATCH_SECONDS = 1.0  # between two checks whether the device is lost
CLOSE_SECONDS = 5.0  # to close connections; then the process is killed


class Page(Protocol):
    """The method of the page, a `gr.Blocks`, that is called here."""

    def close(self, verbose: bool = True) -> Any:
        """Close the server."""


def serve_until_stopped(page: Page, engine: EngineProtocol, grace: float = GRACE_SECONDS) -> None:
    """Wait for SIGTERM, Ctrl-C or a lost device, then end the clips, the page and the engine.

    A second signal kills the process. Afterwards the caller must return from `main`: Gradio's exit handler
    stops the tunnel of --share. If a thread keeps the interpreter from ending, a timer kills the process.

    Raises:
        DeviceLost: the device failed.
    """
    stopping = threading.Event()

    def stop(*_: object) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while not stopping.wait(WATCH_SECONDS):
        if engine.failure:
            stop()
    last = threading.Timer(
        grace + CUT_SECONDS + REPORT_SECONDS + CLOSE_SECONDS, os.kill, [os.getpid(), signal.SIGTERM]
    )
    last.daemon = True
    last.start()
    running = engine.stats()
    log_event("stopping", streams=running["streams"], clips=running["clips"])
    engine.end(clips=False)
    wait_for_clips(engine, grace)
    cut = engine.stats()["clips"]
    engine.end()
    wait_for_clips(engine, CUT_SECONDS)
    if running["clips"] or cut or engine.failure:
        time.sleep(REPORT_SECONDS)
    page.close(verbose=False)
    engine.shutdown()
    log_event("stopped", clips_cut=cut)
    if engine.failure:
        raise DeviceLost(engine.failure)


def wait_for_clips(engine: EngineProtocol, seconds: float) -> None:
    """Wait until no clip runs, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while engine.stats()["clips"] and time.monotonic() < deadline:
        time.sleep(0.1)
