"""What goes through the Live tab's socket, and what of it is believed.

From the page, texts in JSON: `{"start": settings}` opens a stream in place of the visitor's last one,
`{"update": settings}` changes style, prompt and LoRA weight, `{"restart": true}`, `{"stop": true}`; and
camera frames: `FRAME` and a JPEG. A newer frame replaces one that waits.

To the page: `{"waiting": place, "seconds": expected}`, `{"started": ignored words}`, `{"updated": style,
"ignored": words}`, `{"refused": words, "style": name}`, `{"time_left": seconds}`, `{"over": words}` at the
end of a turn, `{"error": words}` when the stream has ended; and pictures: `PICTURE` and a JPEG, or none.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

FRAME = struct.Struct("<I")  # the frame's number
# The number of the frame it shows, 0 without a picture; that of the newest frame taken in; microseconds from
# that frame's arrival to the answer; those of them in which nothing earlier was being done; frames gathered
# for the warmup, 0 when it is done.
PICTURE = struct.Struct("<5I")
LONGEST_TEXT = 20_000  # characters of a message
LONGEST_PROMPT = 2000


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


def checked_settings(data: object) -> dict[str, Any]:
    """What a stream is opened with, as the browser sent it, known to be texts of bounded size and numbers;
    the pipeline judges them."""
    if not isinstance(data, dict):
        raise ValueError("The settings are not an object.")
    texts = {name: data.get(name) for name in ("style", "prompt")}
    if not all(isinstance(value, str) and len(value) <= LONGEST_PROMPT for value in texts.values()):
        raise ValueError(f"Style and prompt are texts of at most {LONGEST_PROMPT} characters.")
    numbers = {name: data.get(name) for name in ("steps", "strength")}
    numbers |= {"lora_scale": data.get("lora_scale", 1.0), "seed": data.get("seed", 0)}
    for name, value in numbers.items():
        kinds = int if name in ("steps", "seed") else int | float
        may_lack = name in ("steps", "strength") and value is None
        if not may_lack and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(f"{name} is not such a number.")
    return texts | numbers


def is_ours(headers: Headers, hosts: Iterable[str]) -> bool:
    """Whether the page that asks came from this server. Programs send no `Origin`, and could send any."""
    origin = headers.get("origin")
    if origin is None:
        return True
    forwarded = headers.get("x-forwarded-host", "").split(",")
    ours = {headers.get("host", ""), *(host.strip() for host in forwarded), *hosts} - {""}
    return urlsplit(origin).netloc in ours
