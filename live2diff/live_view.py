"""The Live tab: a component of our own, camera in and translated picture out.

The browser's side is `page/*.js`; `live_socket` is the server's.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import cv2
import gradio as gr
import numpy as np
from PIL import Image

from .places import Places
from .styles import Style

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("camera.js", "screen.js", "recorder.js", "live.js")  # one scope, in this order
LARGEST_FRAME = 1_000_000  # bytes; a 384-pixel frame has some 20,000
LONGEST_SIDE = 1280
SMALLEST_SIDE = 384  # of what the browser sends, whatever little the model works with
JPEG_QUALITY = 85
THUMBNAIL = (160, 120)  # width and height


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


def thumbnail(name: str, style: Style) -> str:
    """What a style is chosen by, as a data URL: its own picture or `page/styles/NAME.jpg`; "" for none."""
    file = Path(style.thumbnail) if style.thumbnail else PAGE / "styles" / f"{Path(name).name}.jpg"
    if not file.is_file():
        return ""
    with Image.open(file) as picture:
        picture = picture.convert("RGB")
        if picture.size != THUMBNAIL:
            picture.thumbnail(THUMBNAIL)
        small = io.BytesIO()
        picture.save(small, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()


def page_script() -> str:
    """All the page's scripts as one; the worker's source comes in it as a text."""
    worker = (PAGE / "worker.js").read_text()
    scripts = [(PAGE / name).read_text() for name in SCRIPTS]
    return "\n".join([f"const WORKER_SOURCE = {json.dumps(worker)};", *scripts])


def live_view(engine: Places) -> gr.HTML:
    """The Live tab's content; `live_socket.connect` is what it talks to."""
    return gr.HTML(
        html_template=(PAGE / "live.html").read_text(),
        css_template=(PAGE / "live.css").read_text(),
        js_on_load=page_script(),
        styles=[
            {
                "name": name,
                "title": style.title,
                "thumbnail": thumbnail(name, style),
                "loras": len(style.loras) or "",
                "checked": "checked" if name == engine.default_style else "",
            }
            for name, style in engine.styles.items()
        ],
        side=max(SMALLEST_SIDE, round(1.5 * engine.size)),
        visit="yes" if engine.needs_visit else "",
        apply_default_css=False,
        elem_id="live",
    )
