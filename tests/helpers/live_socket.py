"""Use the Live tab's socket as a program does."""

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from live2diff.serving.sessions import EngineProtocol
from live2diff.ui.live_protocol import FRAME, PATH, RESULT

from .page import served_page
from .waiting import PATIENCE

SETTINGS = {"style": "pencil", "prompt": "", "seed": 1, "steps": 1}
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
JPEG = cv2.imencode(".jpg", IMAGE)[1].tobytes()


def socket_address(demo: Any) -> str:
    """Return the address of a launched page's socket."""
    return demo.local_url.rstrip("/").replace("http", "ws", 1) + PATH


@contextmanager
def served_socket(engine: EngineProtocol) -> Iterator[str]:
    """Serve the page on an engine, which ends with the block; yield the address of its socket."""
    with served_page(engine) as demo:
        yield socket_address(demo)


def cut(socket: ClientConnection) -> None:
    """Reset a connection."""
    socket.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close()


def send_json(socket: ClientConnection, **message: object) -> None:
    """Send a text message."""
    socket.send(json.dumps(message))


def send_frame(socket: ClientConnection, number: int, jpeg: bytes = JPEG) -> None:
    """Send a camera frame."""
    socket.send(FRAME.pack(number) + jpeg)


def receive(socket: ClientConnection, *keys: str) -> dict:
    """Wait for the next text message with one of these keys."""
    end = time.monotonic() + PATIENCE
    while (left := end - time.monotonic()) > 0:
        message = socket.recv(left)
        if isinstance(message, str) and json.loads(message).keys() & set(keys):
            return json.loads(message)
    raise TimeoutError(f"no message with {keys}")


@contextmanager
def started(address: str, **options: float) -> Iterator[ClientConnection]:
    """Open a socket with a stream."""
    with connect(address, **options) as socket:
        send_json(socket, start=SETTINGS)
        assert receive(socket, "started") == {"started": "", "gpu_session": None, "codecs": ["vp9"]}
        yield socket


def result(socket: ClientConnection) -> tuple[list[int], bytes]:
    """Wait for the next result: the numbers of its header, and the JPEG."""
    end = time.monotonic() + PATIENCE
    while isinstance(message := socket.recv(max(0.0, end - time.monotonic())), str):
        # A viewer silent for 10 s has lost its place, and the frame that shows it opens another stream.
        assert not {"error", "started"} & json.loads(message).keys(), message
    return list(RESULT.unpack_from(message)), message[RESULT.size :]


def answer(socket: ClientConnection, number: int, jpeg: bytes = JPEG) -> tuple[list[int], bytes]:
    """Send a frame and wait for its result."""
    send_frame(socket, number, jpeg)
    return result(socket)
