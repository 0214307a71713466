"""A clean end: a server that is told to stop lets clips finish for a while; later ones say they were cut."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from .event_log import log, log_event

if TYPE_CHECKING:
    import gradio as gr

    from .sessions import SessionManager

GRACE_SECONDS = 10.0  # what clips have to finish
CUT_SECONDS = 3.0  # what those that are cut have to save what there is
TELL_SECONDS = 2.0  # what the page has to hear of it
CLOSE_SECONDS = 5.0  # what the server has to close its connections; beyond all these the process ends anyway


def serve_until_stopped(demo: gr.Blocks, engine: SessionManager, grace: float = GRACE_SECONDS) -> None:
    """Wait for SIGTERM or Ctrl-C, then end everything and the process; a second Ctrl-C ends it at once."""
    asked = threading.Event()

    def stop(number: int, _: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while not asked.wait(3600):  # without a limit, some systems do not hear of signals meanwhile
        pass
    last = threading.Timer(grace + CUT_SECONDS + TELL_SECONDS + CLOSE_SECONDS, os._exit, [1])
    last.daemon = True
    last.start()
    log_event("stopping", **{name: engine.stats()[name] for name in ("streams", "clips")})
    engine.end(clips=False)
    wait_for_clips(engine, grace)
    cut = engine.stats()["clips"]
    engine.end()
    wait_for_clips(engine, CUT_SECONDS)
    if cut:
        time.sleep(TELL_SECONDS)
    demo.close(verbose=False)
    engine.shutdown()
    log_event("stopped", clips_cut=cut)
    for handler in log.handlers:
        handler.flush()
    os._exit(0)  # not through what other threads still wait for


def wait_for_clips(engine: SessionManager, seconds: float) -> None:
    """Until none runs, or so long."""
    deadline = time.monotonic() + seconds
    while engine.stats()["clips"] and time.monotonic() < deadline:
        time.sleep(0.1)
