"""Send live frames to a server and receive the results. ui/README.md describes the socket.

    with LiveClient("http://127.0.0.1:7860", style="comic", prompt="a cat") as client:
        for frame in frames:  # uint8 [height, width, 3] RGB, or the bytes of a JPEG
            client.send(frame)
            result = client.receive()
            if result.image is not None:  # the first frames warm the stream up
                show(result.image)

Neither torch nor Gradio is imported.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from .errors import LiveError
from .streaming.images import JPEG_QUALITY, LARGEST_FRAME, LONGEST_SIDE, check_frame, decode_jpeg, encode_jpeg
from .streaming.settings import BLEND_FRAMES, MESSAGE_FIELDS, StreamSettings
from .ui.live_protocol import FRAME, PATH, RESULT

KEEPING_ALIVE = {"alive", "resume"}  # messages for the page that are not about the stream
ANSWER_SECONDS = 60.0  # the first frame of a stream may compile the model


@dataclass(frozen=True)
class LiveResult:
    """A result from the server.

    Attributes:
        image: uint8 `[height, width, 3]` RGB; None while the stream warms up.
        number: number of the frame that the image shows; 0 without an image.
        newest: number of the newest frame that the model has received.
        delay: seconds from the arrival of that frame at the server to this result.
        work: seconds from that arrival, or from the previous result if it was later, to this result.
        collected: frames collected for the warmup; 0 once it is complete.
    """

    image: np.ndarray | None
    number: int
    newest: int
    delay: float
    work: float
    collected: int


def socket_address(address: str) -> str:
    """Return the address of the WebSocket of the page at `address`; raise `ValueError` for a bad one."""
    scheme, host, path, *_ = urlsplit(address)
    if scheme not in ("http", "https") or not host:
        raise ValueError(f"{address!r} is not the address of a page: give one like http://127.0.0.1:7860.")
    return urlunsplit((scheme.replace("http", "ws"), host, path.rstrip("/") + PATH, "", ""))


class LiveClient:
    """One live stream on a server. One thread may send while another receives.

    The server processes the newest frame; of frames sent faster than that, some get no result of their own.
    It disconnects a client that receives nothing for 10 seconds or sends nothing for five minutes.
    """

    def __init__(
        self,
        address: str,
        style: str,
        prompt: str = "",
        *,
        on_event: Callable[[dict[str, Any]], object] = lambda message: None,
        **settings: Any,
    ) -> None:
        """Connect and request a stream; `receive` waits for it.

        Args:
            address: URL of the page.
            style: a name that /styles lists.
            prompt: describes what the frames show.
            on_event: called by `receive` with each message of the server, like {"waiting": 2, "seconds": 40}.
            **settings: other fields in `MESSAGE_FIELDS`, such as `seed` and `steps`.

        Raises:
            ValueError: a bad address or setting.
            LiveError: the server refuses the connection.
            OSError: there is no server.
        """
        self.settings = StreamSettings(style=style, prompt=prompt, **settings)
        # Answers do not name their update, so only one is in flight, and the newest waits for its answer.
        self._accepted = self.settings
        self._unanswered: StreamSettings | None = self.settings
        self._waiting: dict[str, Any] | None = None  # `blend` and `refill` of the newest update
        self._lock = threading.Lock()
        self._on_event = on_event
        self._sent = self._answered = 0  # numbers of frames
        self._newest = b""
        self._is_open = False  # whether the server has a stream, as far as `receive` has read
        self._open = ExitStack()  # websockets wants `connect` as a context manager
        try:
            connection = connect(socket_address(address), compression=None, max_size=4 * LARGEST_FRAME)
            self._socket = self._open.enter_context(connection)
        except WebSocketException as error:
            raise LiveError(f"{address} refuses live streams: {error}.") from error
        self._send(json.dumps({"start": self._message()}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, frame: np.ndarray | bytes) -> int:
        """Send a frame; return its number, from 1 on. Until a stream is open, only the newest is kept.

        Args:
            frame: uint8 `[height, width, 3]` RGB or a JPEG, of at most 1280 pixels a side and 1 MB as a JPEG.

        Raises:
            ValueError: this is not such a frame.
            ConnectionError: the connection is lost; `receive` may raise the reason.
        """
        if not isinstance(frame, bytes):
            check_frame(frame)
            frame = encode_jpeg(frame, JPEG_QUALITY)
        self._sent += 1
        self._newest = FRAME.pack(self._sent) + frame
        if self._is_open:
            self._send(self._newest)
        return self._sent

    def receive(self, timeout: float | None = ANSWER_SECONDS) -> LiveResult:
        """Wait for the next result, and for a place on the server before that.

        Whenever the server opens a stream, at first or again, the newest frame is sent to it.

        Raises:
            LiveError: the server refused an update (the stream continues unchanged) or ended the stream; the
                message is the server's.
            TimeoutError: no message about the stream came for `timeout` seconds.
            ConnectionError: the connection is lost.
        """
        waited_from = time.monotonic()
        while True:
            left = None if timeout is None else max(0.0, waited_from + timeout - time.monotonic())
            try:
                data = self._socket.recv(left)
            except ConnectionClosed as error:
                raise ConnectionError("The connection to the server was lost.") from error
            if isinstance(data, bytes):
                number, newest, held, worked, collected = RESULT.unpack_from(data)
                self._answered = newest
                jpeg = data[RESULT.size :]
                image = decode_jpeg(jpeg, LONGEST_SIDE) if jpeg else None
                return LiveResult(image, number, newest, held / 1e6, worked / 1e6, collected)
            message = json.loads(data)
            if not message.keys() & KEEPING_ALIVE:
                waited_from = time.monotonic()
                self._handle(message)

    def update(self, *, blend: int = BLEND_FRAMES, refill: bool = False, **changes: Any) -> None:
        """Change the stream; `receive` raises if that is refused.

        Args:
            blend: number of frames over which a new prompt replaces the old one.
            refill: change at once, and fill the cache again.
            **changes: fields in `LIVE_FIELDS`, such as `style`, `prompt` and `strength`.

        Raises:
            ValueError: a bad setting, or one that cannot change while the stream runs.
        """
        settings = self.settings.updated(**changes)
        self.settings.check_update(settings)
        with self._lock:
            self.settings, self._waiting = settings, {"blend": blend, "refill": refill}
            self._send_update()

    def _send_update(self) -> None:
        """Send the newest update unless an earlier one is unanswered; call with the lock held."""
        if self._waiting is not None and (self._unanswered is None or not self._is_open):
            message, self._waiting = {"update": self._message(), **self._waiting}, None
            awaits_answer = self.settings != self._accepted or not self._is_open  # no answer without a change
            self._unanswered = self.settings if awaits_answer else None
            self._send(json.dumps(message))

    def restart(self) -> None:
        """Warm the stream up again, from its latest frames."""
        self._send(json.dumps({"restart": True}))

    def close(self) -> None:
        """Close the stream; may be called twice."""
        self._open.close()

    def _message(self) -> dict[str, Any]:
        return self.settings.model_dump(include=set(MESSAGE_FIELDS))

    def _handle(self, message: dict[str, Any]) -> None:
        """Pass a message of the server to `on_event`, and act on it."""
        self._on_event(message)
        if "refused" in message:
            with self._lock:
                self._unanswered = None
                if self._waiting is None:
                    self.settings = self._accepted.updated(style=message["style"])
                    raise LiveError(message["refused"])
                self._send_update()  # newer settings were chosen before these were refused
        if "error" in message:
            raise LiveError(message["error"])
        if message.get("gpu_session"):
            raise LiveError("This server lends its GPU to visitors of its page only, not to programs.")
        if message.keys() & {"started", "updated"}:
            with self._lock:
                self._accepted, self._unanswered = self._unanswered or self._accepted, None
                self._send_update()
        self._is_open = "started" in message or (self._is_open and not message.keys() & {"waiting", "over"})
        if "started" in message and self._sent > self._answered:
            self._send(self._newest)

    def _send(self, data: str | bytes) -> None:
        try:
            self._socket.send(data)
        except ConnectionClosed as error:
            raise ConnectionError("The connection to the server was lost.") from error
