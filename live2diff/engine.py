"""Who runs when: the one thread that owns the device, and the streams that take turns on it.

Everything that touches a model runs on one thread, because compiled graphs must be warmed up, captured and
replayed on the same one. Its line is short and fair: a live visitor has at most one frame in it, which a
newer frame replaces while it waits, and a clip has one frame in it as well. Nothing here knows of the page.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .places import Answer, ClipStream, EngineBusy, Places, StreamGone, Visitor

if TYPE_CHECKING:
    from .pipeline import Live2DiffPipeline
    from .stream import Stream

__all__ = ["Answer", "ClipStream", "Engine", "EngineBusy", "StreamGone"]


@dataclass(frozen=True)
class Mail:
    frame: np.ndarray
    tag: Any
    arrived: float


@dataclass(eq=False, kw_only=True)
class Viewer(Visitor):
    """One stream and its mailbox, which holds one frame: the newest."""

    stream: Stream | None = None  # None until the device thread has opened it, and once it has closed it
    mailbox: Mail | None = None
    answer: Future | None = None  # the answer to the frame in the mailbox, or to the last one taken from it
    inside: deque[Mail] = field(default_factory=deque)  # frames that went in and have not come out yet

    def is_busy(self) -> bool:
        return self.stream is None or (self.answer is not None and not self.answer.done())


class Engine(Places[Viewer]):
    """Streams by key, one for each visitor, on one device.

    `open`, `push`, `update`, `restart` and `close` may be called from any thread or event loop. They return
    a `Future` at once: `.result()` waits for it in a thread, `asyncio.wrap_future` in a coroutine. What fails
    in one visitor's stream is that visitor's exception and nobody else's.
    """

    def __init__(self, pipe: Live2DiffPipeline, capacity: int = 4, idle_seconds: float = 60.0) -> None:
        super().__init__(pipe, capacity, idle_seconds)
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")

    def open(self, key: str, **settings: Any) -> Future[str]:
        """Give `key` a stream with these settings, in place of one it has; `EngineBusy` if there is no room.

        The answer is the end of the prompt that is too long for the model, "" as a rule.
        """
        visitor = Viewer()
        former = self._give_place(key, visitor)
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

    @contextmanager
    def clip(self, key: str, frames: int | None = None, **settings: Any) -> Iterator[ClipStream]:
        """A stream for `video.translate`: it takes turns with the visitors' frames and is freed at the end.

        `close(key)` ends it early: the next `push` raises `StreamGone`. Clips do not count against the
        capacity; whoever runs them decides how many run at once. `frames`, how many it has as far as one
        knows, matters only where time on a device must be asked for.
        """
        self.close(key)
        visitor = Viewer(is_clip=True)
        with self._lock:
            self._visitors[key] = visitor
        try:
            ignored = self._device.submit(self._open, key, visitor, settings).result()
            yield ClipStream(ignored, lambda *call: self._device.submit(self._run, visitor, *call).result())
        finally:
            self._forget(key, visitor)
            self._device.submit(self._close, visitor)

    def shutdown(self) -> None:
        super().shutdown()
        self._device.shutdown(wait=True)

    # The next four run on the device thread.

    def _open(self, key: str, visitor: Viewer, settings: dict[str, Any]) -> str:
        try:
            visitor.stream = self._pipe.stream(**settings)
            visitor.last_seen = time.monotonic()
            return visitor.stream.ignored_words
        finally:
            if visitor.stream is None:
                self._forget(key, visitor)

    def _update(self, visitor: Viewer, settings: dict[str, Any]) -> str:
        self._run(visitor, "update", **settings)
        return visitor.stream.ignored_words

    def _step(self, visitor: Viewer) -> Answer:
        with self._lock:
            mail, visitor.mailbox = visitor.mailbox, None
        frames = self._run(visitor, "push", mail.frame)
        visitor.inside.append(mail)  # only now: a frame that was refused is not inside
        for _ in frames:
            shown = visitor.inside.popleft()
        if frames:
            self._note_shown(visitor.last_seen - shown.arrived)
        return Answer(frames, shown.tag if frames else None, visitor.stream.frames_in, visitor.stream.warm)

    def _run(self, visitor: Viewer, name: str, *arguments: Any, **settings: Any) -> Any:
        if visitor.closed or visitor.stream is None:
            raise StreamGone("This stream has ended. Start it again.")
        try:
            return getattr(visitor.stream, name)(*arguments, **settings)
        finally:
            visitor.last_seen = time.monotonic()

    def _close(self, visitor: Viewer | None) -> None:
        if visitor is not None and visitor.stream is not None:
            visitor.stream.close()
            visitor.stream = None
            visitor.inside.clear()
