"""The Live tab: a component of our own, camera in and translated picture out, and the server's side of it.

The browser's side is `page/live.js`: it sends one camera frame as a JPEG data URL, waits for the answer,
shows it, and sends the frame that is the newest then. So nothing ever queues, no file is written, and a slow
server or a slow network lowers the rate and never adds delay.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import io
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from PIL import Image

from .engine import Engine, EngineBusy, StreamGone

PAGE = Path(__file__).parent / "page"
JPEG_PREFIX = "data:image/jpeg;base64,"
LONGEST_URL = 1_000_000  # characters; a 384-pixel frame has some 40,000
LONGEST_SIDE = 1280
LONGEST_PROMPT = 2000  # characters
JPEG_QUALITY = 85

log = logging.getLogger(__name__)
Reply = dict[str, Any]


def decode_frame(url: object) -> np.ndarray:
    """The picture in a JPEG data URL as uint8 [height, width, 3]; `ValueError` for anything else."""
    if not isinstance(url, str) or not url.startswith(JPEG_PREFIX):
        raise ValueError("The camera frame is not a JPEG data URL.")
    if len(url) > LONGEST_URL:
        raise ValueError(f"The camera frame has {len(url)} characters, the limit is {LONGEST_URL}.")
    try:
        data = base64.b64decode(url[len(JPEG_PREFIX) :], validate=True)
        # The header is read first: a few bytes may promise a picture that does not fit into memory.
        width, height = Image.open(io.BytesIO(data), formats=["JPEG"]).size
    except (binascii.Error, OSError, Image.DecompressionBombError) as error:
        raise ValueError("The camera frame is not a readable JPEG.") from error
    if max(width, height) > LONGEST_SIDE:
        raise ValueError(f"The camera frame is {width}x{height}, the limit is {LONGEST_SIDE} pixels a side.")
    frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if frame is None:
        raise ValueError("The camera frame is not a readable JPEG.")
    return frame


def encode_frame(frame: np.ndarray) -> str:
    """A uint8 RGB picture as a JPEG data URL."""
    data = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return JPEG_PREFIX + base64.b64encode(data).decode()


def checked_settings(data: Reply) -> dict[str, Any]:
    """Style, prompt and LoRA weight as the browser sent them, known to be two short texts and a number; the
    pipeline judges them."""
    settings = {name: data.get(name) for name in ("style", "prompt")}
    if not all(isinstance(value, str) and len(value) <= LONGEST_PROMPT for value in settings.values()):
        raise ValueError(f"Style and prompt are texts of at most {LONGEST_PROMPT} characters.")
    lora_scale = data.get("lora_scale", 1.0)
    if isinstance(lora_scale, bool) or not isinstance(lora_scale, int | float):
        raise ValueError("The LoRA weight must be a number.")
    return settings | {"lora_scale": lora_scale}


def answered(function: Callable[[Engine, str, Reply], Awaitable[Reply]]) -> Callable:
    """Make a server function of it: it finds out the visitor, and what fails becomes `{"error": words}`."""

    @functools.wraps(function)
    async def server_function(engine: Engine, data: object, request: gr.Request) -> Reply:
        try:
            # Gradio hands a server function the raw HTTP request, whose (already read) body names the
            # session: the same one that `demo.unload` names when the visitor leaves.
            if request.headers.get("content-type") != "application/json" or not isinstance(data, dict):
                raise ValueError("The request is not one that this page sends.")
            session = (await request.json())["session_hash"]
            return await function(engine, session, data)
        except StreamGone as error:
            return {"error": str(error), "gone": True}
        except (EngineBusy, ValueError, OSError) as error:
            return {"error": str(error)}
        except RuntimeError as error:  # what torch raises, out of memory included
            log.exception("a live frame failed")
            return {"error": f"The model failed on this frame: {str(error).splitlines()[0]}"}

    return server_function


@answered
async def live_start(engine: Engine, session: str, data: Reply) -> Reply:
    settings = checked_settings(data)
    await asyncio.wrap_future(engine.fetch(settings["style"]))
    return {"ignored": await asyncio.wrap_future(engine.open(session, **settings, seed=0))}


@answered
async def live_push(engine: Engine, session: str, data: Reply) -> Reply:
    number = data.get("number")
    if not isinstance(number, int):
        raise ValueError("The camera frame has no number.")
    frame = await asyncio.to_thread(decode_frame, data.get("frame"))
    answer = await asyncio.wrap_future(engine.push(session, frame, tag=number))
    picture = await asyncio.to_thread(encode_frame, answer.frames[-1]) if answer.frames else None
    return {"picture": picture, "number": answer.tag, "frames_in": answer.frames_in, "warm": answer.warm}


@answered
async def live_update(engine: Engine, session: str, data: Reply) -> Reply:
    settings = checked_settings(data)
    await asyncio.wrap_future(engine.fetch(settings["style"]))
    return {"ignored": await asyncio.wrap_future(engine.update(session, **settings))}


@answered
async def live_stop(engine: Engine, session: str, data: Reply) -> Reply:
    await asyncio.wrap_future(engine.close(session))
    return {}


def live_view(engine: Engine) -> gr.HTML:
    """The Live tab's content, bound to `engine`. Streams are keyed by the session's hash."""

    def bind(function: Callable) -> Callable:
        async def bound(data: object, request: gr.Request) -> Reply:
            return await function(engine, data, request)

        bound.__name__ = function.__name__
        return bound

    return gr.HTML(
        html_template=(PAGE / "live.html").read_text(),
        css_template=(PAGE / "live.css").read_text(),
        js_on_load=(PAGE / "live.js").read_text(),
        server_functions=[bind(function) for function in (live_start, live_push, live_update, live_stop)],
        styles=[
            {
                "name": name,
                "title": style.title,
                "loras": len(style.loras) or "",
                "checked": "checked" if name == engine.default_style else "",
            }
            for name, style in engine.styles.items()
        ],
        apply_default_css=False,
        elem_id="live",
    )
