"""Run the app in a process of its own, for measurements."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.paths import ROOT
from helpers.waiting import wait_for
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect


def free_port() -> int:
    """Return a port that nothing listens to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def live_socket(address: str) -> str:
    """Return the URL of the live WebSocket of the page at `address`."""
    return address.replace("http", "ws", 1) + "live-socket"


@contextmanager
def served(folder: Path, *options: str, log: Path | None = None) -> Iterator[tuple[int, str]]:
    """Serve the nano model, with temporary files in `folder` and a log; yield process id and address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen(
        [sys.executable, ROOT / "app.py", "--model", "nano", "--size", "256", "--port", str(port), *options],
        stderr=log and log.open("w"),
        env=os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")},
    )

    def ready() -> bool:
        assert server.poll() is None, "app.py has ended"
        try:
            with connect(live_socket(address)):  # the last route to be ready
                return True
        except (OSError, InvalidStatus):
            return False

    try:
        wait_for(ready)
        yield server.pid, address
    finally:
        server.terminate()
        server.wait(60)
