"""What goes through the Live tab's socket, and what of it is believed.

From the page, texts in JSON: `{"start": settings}` opens a stream in place of the visitor's last one,
`{"update": settings}` changes style, prompt and LoRA weight, `{"restart": true}`, `{"stop": true}`; and
camera frames: `FRAME` and a JPEG. A newer frame replaces one that waits.

To the page: `{"waiting": place, "seconds": expected}`, `{"started": ignored words, "visit": null}` or the key
for which it is to click the visit button, `{"updated": style, "ignored": words}`, `{"refused": words,
"style": name}`, `{"time_left": seconds}`, at the end of a turn `{"over": words}` or, where a click goes on,
`{"visit_over": words}`, `{"error": words}` when the stream has ended; and pictures: `PICTURE` and a JPEG, or
none.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from PIL import Image
from starlette.datastructures import Headers

FRAME = struct.Struct("<I")  # the frame's number
# The number of the frame it shows, 0 without a picture; that of the newest frame taken in; microseconds from
# that frame's arrival to the answer; those of them in which nothing earlier was being done; frames gathered
# for the warmup, 0 when it is done.
PICTURE = struct.Struct("<5I")
LARGEST_FRAME = 1_000_000  # bytes; a 384-pixel frame has some 20,000
LONGEST_SIDE = 1280
JPEG_QUALITY = 85
LONGEST_TEXT = 20_000  # characters of a message


def read_message(text: str) -> dict[str, Any]:
    """A text message as an object; `ValueError` for anything else."""
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"The message has {len(text)} characters, the limit is {LONGEST_TEXT}.")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ValueError("The message is not a JSON object.")
    return message


def is_ours(headers: Headers, hosts: Iterable[str]) -> bool:
    """Whether the page that asks came from this server. Programs send no `Origin`, and could send any."""
    origin = headers.get("origin")
    if origin is None:
        return True
    forwarded = headers.get("x-forwarded-host", "").split(",")
    ours = {headers.get("host", ""), *(host.strip() for host in forwarded), *hosts} - {""}
    return urlsplit(origin).netloc in ours


def decode_frame(data: bytes) -> np.ndarray:
    """The picture in a JPEG as uint8 [height, width, 3] RGB; `ValueError` for anything else."""
    if len(data) > LARGEST_FRAME:
        raise ValueError(f"The camera frame has {len(data)} bytes, the limit is {LARGEST_FRAME}.")
    try:
        # The header is read first: a few bytes may promise a picture that does not fit into memory.
        width, height = Image.open(io.BytesIO(data), formats=["JPEG"]).size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError("The camera frame is not a readable JPEG.") from error
    if max(width, height) > LONGEST_SIDE:
        raise ValueError(f"The camera frame is {width}x{height}, the limit is {LONGEST_SIDE} pixels a side.")
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if frame is None:
        raise ValueError("The camera frame is not a readable JPEG.")
    return frame


def encode_frame(frame: np.ndarray) -> bytes:
    """A uint8 RGB picture as a JPEG."""
    pixels = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
