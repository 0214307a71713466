"""The messages of the Live tab's socket; README.md describes them.

From the page: `Start` to `Echo` as JSON texts, and camera frames as `FRAME` and a JPEG or VP9 frame.
To the page: JSON texts, and results as `RESULT` and a JPEG or VP9 frame, empty while there is no image yet.
"""

import json
import struct
from collections.abc import Iterable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError
from starlette.datastructures import Headers

from ..streaming.settings import BLEND_FRAMES, Blend, StreamSettings

PATH = "/live-socket"
FRAME = struct.Struct("<I")  # number of the frame
EARLIER = 0  # number of all frames from before a cut
# Number of the frame shown, 0 without an image; number of the newest frame taken in; microseconds from that
# frame's arrival to this result; microseconds from the later of that arrival and the previous result; frames
# collected for the warmup, 0 when it is complete.
RESULT = struct.Struct("<5I")
LONGEST_TEXT = 20_000  # characters of a message

Settings = Annotated[StreamSettings, BeforeValidator(StreamSettings.from_message)]


class Start(BaseModel):
    """Open a stream in place of the viewer's last one."""

    start: Settings


class Update(BaseModel):
    """Change the running stream, over `blend` frames or, with `refill`, at once and in a new cache."""

    update: Settings
    blend: Blend = BLEND_FRAMES
    refill: bool = False


class Restart(BaseModel):
    """Warm up again from the last frames."""

    restart: Literal[True]


class Stop(BaseModel):
    """Close the stream and leave the waiting line."""

    stop: Literal[True]


class Codec(BaseModel):
    """Send the results in this codec from now on, as VP9 at `rate` bits a second."""

    codec: Literal["jpeg", "vp9"]
    rate: int = Field(1_000_000, ge=100_000, le=10_000_000)


class Echo(BaseModel):
    """Send this message back at once, for the page to measure the network."""

    echo: Annotated[float, Field(allow_inf_nan=False)]


Message = Start | Update | Restart | Stop | Codec | Echo
MESSAGES: TypeAdapter[Message] = TypeAdapter(Message)


def parse_message(text: str) -> Message:
    """Parse a text message from the page; nothing in it is trusted.

    Raises:
        ValueError: too long, not JSON, an unknown message, or a bad setting.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"The message has {len(text)} characters, the limit is {LONGEST_TEXT}.")
    try:
        # Not pydantic's own parser: it refuses unpaired surrogates, which a browser sends for half an emoji.
        return MESSAGES.validate_python(json.loads(text))
    except ValidationError as error:
        bad_settings = [each.get("ctx", {}).get("error") for each in error.errors()]
        raise next(filter(None, bad_settings), ValueError("The message is unknown.")) from None
    except (ValueError, RecursionError):
        raise ValueError("The message is not JSON.") from None


def parse_frame(data: bytes) -> tuple[int, bytes]:
    """Split a binary message into the frame's number and its JPEG or VP9 data.

    Raises:
        ValueError: the message has no frame data.
    """
    if len(data) <= FRAME.size:
        raise ValueError("The camera frame is empty.")
    (number,) = FRAME.unpack_from(data)
    return number, data[FRAME.size :]


def is_same_origin(headers: Headers, hosts: Iterable[str]) -> bool:
    """Return whether a request comes from a page of this server; programs send no `Origin`."""
    origin = headers.get("origin")
    if origin is None:
        return True
    forwarded = headers.get("x-forwarded-host", "").split(",")
    own = {headers.get("host", ""), *(host.strip() for host in forwarded), *hosts} - {""}
    return urlsplit(origin).netloc in own
