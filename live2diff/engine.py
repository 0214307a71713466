"""Who runs when: the one thread that owns the device, and the streams that take turns on it.

Everything that touches a model runs on one thread, because compiled graphs must be warmed up, captured and
replayed on the same one. Its line is short and fair: a live visitor has at most one frame in it, which a
newer frame replaces while it waits, and a clip has one frame in it as well. Nothing here knows of the page.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .pipeline import Live2DiffPipeline
    from .stream import Stream
    from .styles import Style

RATE_SECONDS = 5.0  # the frame rate in `stats` is that of the last so many seconds
QUIET_SECONDS = 10.0  # a visitor silent for this long gives way when another needs the place


class EngineBusy(RuntimeError):
    """Every place is taken by a visitor whose frames keep coming."""


class StreamGone(RuntimeError):
    """The stream was never opened, was closed, or was freed after a silence: open it again."""


@dataclass(frozen=True)
class Answer:
    """What one frame gave: the finished frames in order, and the tag of the frame that the last one shows."""

    frames: list[np.ndarray]  # each uint8 [height, width, 3]
    tag: Any
    frames_in: int
    warm: bool


@dataclass(frozen=True)
class Mail:
    frame: np.ndarray
    tag: Any
    arrived: float


@dataclass(eq=False)
class Visitor:
    """One stream and its mailbox, which holds one frame: the newest."""

    is_clip: bool = False
    stream: Stream | None = None  # None until the device thread has opened it, and once it has closed it
    mailbox: Mail | None = None
    answer: Future | None = None  # the answer to the frame in the mailbox, or to the last one taken from it
    inside: deque[Mail] = field(default_factory=deque)  # frames that went in and have not come out yet
    last_seen: float = field(default_factory=time.monotonic)
    closed: bool = False

    def is_idle(self, seconds: float) -> bool:
        """Silent for so long. A clip never is: whoever runs it closes it; nor is a stream not open yet."""
        working = self.stream is None or (self.answer is not None and not self.answer.done())
        return not (self.is_clip or working) and time.monotonic() - self.last_seen > seconds


class ClipStream:
    """A stream for a clip: `push` and `flush` wait for their turn on the device thread."""

    def __init__(self, ignored_words: str, run: Callable[..., list[np.ndarray]]) -> None:
        self.ignored_words = ignored_words  # the end of the prompt, if that is too long
        self._run = run

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        return self._run("push", frame)

    def flush(self) -> list[np.ndarray]:
        return self._run("flush")


class Engine:
    """Streams by key, one for each visitor, on one device.

    `open`, `push`, `update`, `restart` and `close` may be called from any thread or event loop. They return
    a `Future` at once: `.result()` waits for it in a thread, `asyncio.wrap_future` in a coroutine. What fails
    in one visitor's stream is that visitor's exception and nobody else's.
    """

    def __init__(self, pipe: Live2DiffPipeline, capacity: int = 4, idle_seconds: float = 60.0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, but the engine needs room for one stream at least.")
        self.capacity = capacity
        self.idle_seconds = idle_seconds
        # Entered while a stream is given its place; raises `EngineBusy` for who is not to have one.
        self.admission: Callable[[str], AbstractContextManager] = nullcontext
        self._pipe = pipe
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._downloads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="downloads")
        self._lock = threading.Lock()
        self._visitors: dict[str, Visitor] = {}
        self._finished: deque[tuple[float, float]] = deque(maxlen=512)  # (when, how long it took)
        self._dropped = 0
        self._stopped = threading.Event()
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    @property
    def styles(self) -> dict[str, Style]:
        """The presets that visitors can choose from."""
        return self._pipe.styles

    @property
    def default_style(self) -> str:
        """The one that is chosen at first."""
        return self._pipe.default_style or next(iter(self._pipe.styles))

    @property
    def about(self) -> str:
        """Which model this is, in a sentence."""
        return self._pipe.about

    @property
    def device(self) -> str:
        """Where the model runs: the name of the GPU, or `cpu`."""
        device = self._pipe.unet.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def fetch(self, style: str | None) -> Future[None]:
        """Download what a style needs, if anything, while frames go on; before `open` or `update` with it."""
        return self._downloads.submit(self._pipe.fetch, style)

    def open(self, key: str, **settings: Any) -> Future[str]:
        """Give `key` a stream with these settings, in place of one it has; `EngineBusy` if there is no room.

        The answer is the end of the prompt that is too long for the model, "" as a rule.
        """
        with self.admission(key):
            if len(self.visitors() - {key}) >= self.capacity:
                self.make_room()
            with self._lock:
                others = sum(not other.is_clip for name, other in self._visitors.items() if name != key)
                if others >= self.capacity:
                    raise EngineBusy(f"All {self.capacity} places are taken. Try again in a minute.")
                former = self._take_out(key)
                visitor = self._visitors[key] = Visitor()
        self._device.submit(self._close, former)
        return self._device.submit(self._open, key, visitor, settings)

    def push(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[Answer]:
        """Put `frame` into the mailbox. One still waiting there is dropped: its answer is then this one's."""
        with self._lock:
            visitor = self._visitor(key)
            waiting = visitor.mailbox is not None and not visitor.answer.cancelled()
            visitor.mailbox = Mail(frame, tag, time.monotonic())
            visitor.last_seen = visitor.mailbox.arrived
            if waiting:
                self._dropped += 1
            else:
                visitor.answer = self._device.submit(self._step, visitor)
            return visitor.answer

    def update(self, key: str, **settings: Any) -> Future[str]:
        """Change style or prompt at the next frame, the memory kept. The answer is that of `open`."""
        with self._lock:
            return self._device.submit(self._update, self._visitor(key), settings)

    def restart(self, key: str) -> Future[None]:
        """Warm up again from the last frames."""
        with self._lock:
            return self._device.submit(self._run, self._visitor(key), "restart")

    def close(self, key: str) -> Future[None]:
        """Free the stream of `key`, if it has one, as soon as the device is done with the frame at hand."""
        with self._lock:
            visitor = self._take_out(key)
        return self._device.submit(self._close, visitor)

    def visitors(self) -> set[str]:
        """Who has a live stream."""
        with self._lock:
            return {key for key, visitor in self._visitors.items() if not visitor.is_clip}

    def make_room(self) -> None:
        """Close the streams of those who have been silent for a while, because others want their places."""
        self._close_idle(QUIET_SECONDS)

    @contextmanager
    def clip(self, key: str, **settings: Any) -> Iterator[ClipStream]:
        """A stream for `video.translate`: it takes turns with the visitors' frames and is freed at the end.

        `close(key)` ends it early: the next `push` raises `StreamGone`. Clips do not count against the
        capacity; whoever runs them decides how many run at once.
        """
        self.close(key)
        visitor = Visitor(is_clip=True)
        with self._lock:
            self._visitors[key] = visitor
        try:
            ignored = self._device.submit(self._open, key, visitor, settings).result()
            yield ClipStream(ignored, lambda *call: self._device.submit(self._run, visitor, *call).result())
        finally:
            self._forget(key, visitor)
            self._device.submit(self._close, visitor)

    def stats(self) -> dict[str, float]:
        """Streams and clips open, capacity, frames a second, frames dropped, delay in here in seconds."""
        now = time.monotonic()
        with self._lock:
            clips = sum(visitor.is_clip for visitor in self._visitors.values())
            streams = len(self._visitors) - clips
            recent = [delay for when, delay in self._finished if now - when <= RATE_SECONDS]
            dropped = self._dropped
        p50, p95 = np.percentile(recent, [50, 95]).tolist() if recent else (0.0, 0.0)
        return {
            "streams": streams,
            "clips": clips,
            "capacity": self.capacity,
            "fps": len(recent) / RATE_SECONDS,
            "dropped": dropped,
            "delay_p50": p50,
            "delay_p95": p95,
        }

    def shutdown(self) -> None:
        """Close every stream and end both threads."""
        self._stopped.set()
        for key in list(self._visitors):
            self.close(key)
        self._device.shutdown(wait=True)
        self._downloads.shutdown(wait=False, cancel_futures=True)

    # The next four run on the device thread.

    def _open(self, key: str, visitor: Visitor, settings: dict[str, Any]) -> str:
        try:
            visitor.stream = self._pipe.stream(**settings)
            visitor.last_seen = time.monotonic()
            return visitor.stream.ignored_words
        finally:
            if visitor.stream is None:
                self._forget(key, visitor)

    def _update(self, visitor: Visitor, settings: dict[str, Any]) -> str:
        self._run(visitor, "update", **settings)
        return visitor.stream.ignored_words

    def _step(self, visitor: Visitor) -> Answer:
        with self._lock:
            mail, visitor.mailbox = visitor.mailbox, None
        frames = self._run(visitor, "push", mail.frame)
        visitor.inside.append(mail)  # only now: a frame that was refused is not inside
        for _ in frames:
            shown = visitor.inside.popleft()
        if frames:
            with self._lock:
                self._finished.append((visitor.last_seen, visitor.last_seen - shown.arrived))
        return Answer(frames, shown.tag if frames else None, visitor.stream.frames_in, visitor.stream.warm)

    def _run(self, visitor: Visitor, name: str, *arguments: Any, **settings: Any) -> Any:
        if visitor.closed or visitor.stream is None:
            raise StreamGone("This stream has ended. Start it again.")
        try:
            return getattr(visitor.stream, name)(*arguments, **settings)
        finally:
            visitor.last_seen = time.monotonic()

    def _close(self, visitor: Visitor | None) -> None:
        if visitor is not None and visitor.stream is not None:
            visitor.stream.close()
            visitor.stream = None
            visitor.inside.clear()

    def _visitor(self, key: str) -> Visitor:
        if key not in self._visitors:
            raise StreamGone("This stream has ended. Start it again.")
        return self._visitors[key]

    def _take_out(self, key: str) -> Visitor | None:
        visitor = self._visitors.pop(key, None)
        if visitor is not None:
            visitor.closed = True
        return visitor

    def _forget(self, key: str, visitor: Visitor) -> None:
        with self._lock:
            visitor.closed = True
            if self._visitors.get(key) is visitor:
                del self._visitors[key]

    def _close_idle(self, seconds: float) -> None:
        with self._lock:
            idle = [key for key, visitor in self._visitors.items() if visitor.is_idle(seconds)]
        for key in idle:
            self.close(key)

    def _reap(self) -> None:
        while not self._stopped.wait(min(self.idle_seconds / 4, 5.0)):
            self._close_idle(self.idle_seconds)
