"""Talk to the Live tab's socket as a program does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from websockets.sync.client import ClientConnection, connect

from live2diff.ui.live_protocol import FRAME, PICTURE

PATIENCE = 60.0
SETTINGS = {"style": "pencil", "prompt": "", "seed": 1, "steps": 1}
PICTURE_SENT = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
JPEG = cv2.imencode(".jpg", PICTURE_SENT)[1].tobytes()


def told(socket: ClientConnection, key: str) -> dict:
    """The next text with this key in it."""
    while True:
        message = socket.recv(PATIENCE)
        if isinstance(message, str) and key in json.loads(message):
            return json.loads(message)


@contextmanager
def started(address: str, **options: float) -> Iterator[ClientConnection]:
    with connect(address, **options) as socket:
        socket.send(json.dumps({"start": SETTINGS}))
        assert told(socket, "started") == {"started": "", "visit": None}
        yield socket


def answer(socket: ClientConnection, number: int, jpeg: bytes = JPEG) -> tuple[list[int], bytes]:
    """What comes back for a frame: the numbers of the header, and the JPEG."""
    socket.send(FRAME.pack(number) + jpeg)
    while isinstance(message := socket.recv(PATIENCE), str):
        assert "error" not in json.loads(message), message
    return list(PICTURE.unpack_from(message)), message[PICTURE.size :]
