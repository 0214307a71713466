"""Who runs when: the one thread that owns the device, and the streams that take turns on it.

Everything that touches a model runs on one thread, because compiled graphs must be warmed up, captured and
replayed on the same one. Its line is short and fair: a live visitor has at most one frame in it, which a
newer frame replaces while it waits, and a clip has one frame in it as well. On a GPU, the frames that wait go
through the model as one batch. Nothing here knows of the page.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..errors import NonFiniteError, ServerStopping, StreamOutOfMemory
from ..streaming.settings import BLEND_FRAMES, StreamSettings
from .event_log import log_id
from .sessions import ClipStream, FrameResult, SessionManager, Visitor

if TYPE_CHECKING:
    import torch

    from ..pipeline import Live2DiffPipeline
    from ..streaming.steps import PendingFrame
    from ..streaming.stream import Stream

Result = TypeVar("Result")


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
    answer: Future[FrameResult] | None = None  # to the frame in the mailbox, or to the last one taken from it
    changes: int = 0  # updates and restarts that the device thread has not come to
    inside: deque[Mail] = field(default_factory=deque)  # frames that went in and have not come out yet

    def is_busy(self) -> bool:
        return self.stream is None or (self.answer is not None and not self.answer.done())


@dataclass(frozen=True, eq=False)
class Work:
    """A visitor's frame on its way through the model."""

    viewer: Viewer
    mail: Mail
    answer: Future[FrameResult]
    arrival: PendingFrame


@contextmanager
def delivering(*answers: Future) -> Iterator[None]:
    """What is raised inside goes to those who wait for these answers, as an executor's futures do it."""
    try:
        yield
    except BaseException as error:
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)


class Engine(SessionManager[Viewer]):
    """Streams by key, one for each visitor, on one device.

    `open`, `push`, `update`, `restart` and `close` may be called from any thread or event loop. They return
    a `Future` at once: `.result()` waits for it in a thread, `asyncio.wrap_future` in a coroutine. What fails
    in one visitor's stream is that visitor's exception and nobody else's.

    Args:
        pipe: the model.
        capacity: how many live visitors there may be; None for as many as there is room for, which is
            measured.
        idle_seconds: a visitor silent for this long loses the stream.
        together: whether frames that wait at the same time are worked on as one batch; by default where the
            model is on a GPU. On a CPU each stream is worked on alone, so that its pictures are the same to
            the bit whoever else is there; together, they differ by a grey level.
        cache_dtype: of the streams' memory, as `Live2DiffPipeline.stream` takes it.

    Attributes:
        room: for how many visitors there is room and why, in a sentence.
    """

    def __init__(
        self,
        pipe: Live2DiffPipeline,
        capacity: int | None = 4,
        idle_seconds: float = 60.0,
        together: bool | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        from ..streaming.cache_pool import CachePools
        from .capacity import measure_room  # not before a model is there: torch takes seconds

        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self.room = f"Room for {capacity} viewers at once, as asked."
        if capacity is None:
            measured = self._device.submit(measure_room, pipe, cache_dtype).result()
            capacity, self.room = measured.viewers, measured.reason
        super().__init__(pipe, capacity, idle_seconds)
        self._together = pipe.unet.device.type == "cuda" if together is None else together
        self._pools = CachePools(capacity)
        self._cache_dtype = cache_dtype

    def open(self, key: str, settings: StreamSettings) -> Future[str]:
        """Give `key` a stream with these settings, in place of one it has; `EngineBusy` if there is no room.

        The answer is the end of the prompt that is too long for the model, "" as a rule.
        """
        visitor = Viewer(name=log_id(key))
        former = self._give_place(key, visitor)
        if former is not None:
            former.reason = "replaced"
        self._device.submit(self._close, former)
        return self._device.submit(self._open, key, visitor, settings)

    def push(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        """Put `frame` into the mailbox. One still waiting there is dropped: its answer is then this one's."""
        with self._lock:
            visitor = self._visitor(key)
            waiting = visitor.mailbox is not None and not visitor.answer.cancelled()
            visitor.mailbox = Mail(frame, tag, time.monotonic())
            visitor.last_seen = visitor.mailbox.arrived
            if waiting:
                self._dropped += 1
            else:
                visitor.answer = Future()
                self._device.submit(self._step_together if self._together else self._step, visitor)
            return visitor.answer

    def update(self, key: str, settings: StreamSettings, blend: int = BLEND_FRAMES) -> Future[str]:
        """Change style, prompt and LoRA scale to these at the next frame. The answer is that of `open`."""
        with self._lock:
            visitor = self._visitor(key)
            visitor.changes += 1
            return self._device.submit(self._change, visitor, "update", settings, blend=blend)

    def restart(self, key: str) -> Future[str]:
        """Warm up again from the last frames. The answer is that of `open`."""
        with self._lock:
            visitor = self._visitor(key)
            visitor.changes += 1
            return self._device.submit(self._change, visitor, "restart")

    def close(self, key: str) -> Future[None]:
        """Free the stream of `key`, if it has one, as soon as the device is done with the frame at hand."""
        with self._lock:
            visitor = self._take_out(key)
        return self._device.submit(self._close, visitor)

    @contextmanager
    def clip(self, key: str, settings: StreamSettings, frames: int | None = None) -> Iterator[ClipStream]:
        """A stream for `video.translate`: it takes turns with the visitors' frames and is freed at the end.

        `close(key)` ends it early: the next `push` raises `StreamClosed`. Clips do not count against the
        capacity; whoever runs them decides how many run at once. `frames`, how many it has as far as one
        knows, matters only where time on a device must be asked for.
        """
        if self._ending:
            raise ServerStopping
        self.close(key)
        visitor = Viewer(is_clip=True, name=log_id(key))
        with self._lock:
            self._visitors[key] = visitor
        try:
            ignored = self._device.submit(self._open, key, visitor, settings).result()
            yield ClipStream(ignored, lambda *call: self._device.submit(self._run, visitor, *call).result())
        finally:
            self._forget(key, visitor)
            if not self._stopped.is_set():  # else the device has seen to it
                self._device.submit(self._close, visitor)

    def shutdown(self) -> None:
        super().shutdown()
        self._device.shutdown(wait=True)

    # From here on all runs on the device thread.

    def _open(self, key: str, visitor: Viewer, settings: StreamSettings) -> str:
        try:
            return self._within_memory(visitor, self._open_stream, visitor, settings)
        finally:
            if visitor.stream is None:
                self._forget(key, visitor)

    def _open_stream(self, visitor: Viewer, settings: StreamSettings) -> str:
        shared = {} if visitor.is_clip or not self._together else {"pools": self._pools}
        visitor.stream = self._pipe.stream(settings, **shared, cache_dtype=self._cache_dtype)
        visitor.last_seen = time.monotonic()
        visitor.tell_opened(settings)
        return visitor.stream.ignored_words

    def _change(self, visitor: Viewer, name: str, *arguments: Any, **options: Any) -> str:
        try:
            if name == "update":
                arguments = (self._alive(visitor).settings.updated_live(*arguments),)
            self._run(visitor, name, *arguments, **options)
            return visitor.stream.ignored_words
        finally:
            with self._lock:
                visitor.changes -= 1

    def _step(self, visitor: Viewer) -> None:
        """The frame in this visitor's mailbox."""
        with self._lock:
            answer, mail = visitor.answer, self._take_mail(visitor)
        if mail is not None:
            with delivering(answer):
                frames = self._run(visitor, "push", mail.frame)
                answer.set_result(self._answer(visitor, mail, frames))

    def _step_together(self, visitor: Viewer) -> None:
        """The frame in this visitor's mailbox, and with it those in all others' that can go with it."""
        from ..streaming.steps import push_together  # as above

        with self._lock:
            others = [v for v in self._visitors.values() if v is not visitor and self._can_join(v)]
            ready = [
                (viewer, mail, viewer.answer)
                for viewer in (visitor, *others)
                if (mail := self._take_mail(viewer)) is not None
            ]
        groups: dict[object, list[Work]] = {}
        for viewer, mail, answer in ready:
            with delivering(answer):
                arrival = self._alive(viewer).receive(mail.frame)
                groups.setdefault(viewer.stream.pool or viewer, []).append(
                    Work(viewer, mail, answer, arrival)
                )
        for works in groups.values():
            with delivering(*(work.answer for work in works)):
                given = push_together([work.arrival for work in works])
                for work, frames in zip(works, given, strict=True):
                    if isinstance(frames, RuntimeError):
                        work.answer.set_exception(self._drop(work.viewer, frames))
                    else:
                        work.answer.set_result(self._answer(work.viewer, work.mail, frames))

    def _can_join(self, viewer: Viewer) -> bool:
        """Whether nothing that was asked for before the frame in the mailbox is still to be done."""
        return viewer.stream is not None and not viewer.changes

    def _take_mail(self, viewer: Viewer) -> Mail | None:
        """What is in a mailbox, if anybody waits for it still; for who holds the lock."""
        mail, viewer.mailbox = viewer.mailbox, None
        return mail if mail is not None and viewer.answer.set_running_or_notify_cancel() else None

    def _answer(self, viewer: Viewer, mail: Mail, frames: list[np.ndarray]) -> FrameResult:
        viewer.last_seen = time.monotonic()
        viewer.inside.append(mail)  # only now: a frame that was refused is not inside
        for _ in frames:
            shown = viewer.inside.popleft()
        if frames:
            self._note_shown(viewer.last_seen - shown.arrived)
        return FrameResult(frames, shown.tag if frames else None, viewer.stream.frames_in, viewer.stream.warm)

    def _alive(self, viewer: Viewer) -> Stream:
        if viewer.closed or viewer.stream is None:
            raise viewer.gone()
        return viewer.stream

    def _run(self, visitor: Viewer, name: str, *arguments: Any, **settings: Any) -> Any:
        stream = self._alive(visitor)
        try:
            return self._within_memory(visitor, partial(getattr(stream, name), *arguments, **settings))
        finally:
            visitor.last_seen = time.monotonic()

    def _within_memory(self, visitor: Viewer, work: Callable[..., Result], *arguments: Any) -> Result:
        from torch import OutOfMemoryError  # as above

        try:
            return work(*arguments)
        except (OutOfMemoryError, NonFiniteError) as error:
            failure = self._drop(visitor, error)
        raise failure  # out here: the other one's traceback holds what the memory was full of

    def _drop(self, visitor: Viewer, error: RuntimeError) -> RuntimeError:
        """End a stream over which the model failed, and give its place and its memory back; what to say."""
        from torch import OutOfMemoryError, cuda

        key = next((key for key, other in self._visitors.items() if other is visitor), "")
        self._forget(key, visitor)
        told = StreamOutOfMemory() if isinstance(error, OutOfMemoryError) else error
        visitor.reason = type(told).__name__
        self._close(visitor)
        if told is not error:
            cuda.empty_cache()
            if not visitor.is_clip:
                self.capacity = max(1, self.capacity - 1)
        return told

    def _close(self, visitor: Viewer | None) -> None:
        if visitor is not None and visitor.stream is not None:
            stream, visitor.stream = visitor.stream, None
            visitor.tell_closed(visitor.reason, stream.frames_in, stream.frames_out)
            stream.close()
            visitor.inside.clear()
