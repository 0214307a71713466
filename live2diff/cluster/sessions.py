"""Serve viewers' streams on workers that may be lost or drained.

Everything of a session runs on its own thread, replies of workers included, so a stream needs no lock.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..config import WARMUP_FRAMES
from ..errors import EngineBusy, NonFiniteError, StreamClosed, StreamOutOfMemory
from ..serving.engine import Engine
from ..serving.event_log import log_event, log_id
from ..serving.futures import delivering, fail, resolved
from ..serving.sessions import FrameResult, QueuedFrame, Session
from ..streaming.images import check_frame_jpeg
from ..streaming.settings import StreamSettings
from .pool import OTHER_WEIGHTS, WorkerPool
from .remote_stream import MOST_MOVES, RemoteClip, RemoteStream
from .remote_worker import NO_DEADLINE, RemoteWorker, WorkerLost
from .worker import Reply

FRAMES_IN_FLIGHT = 4  # of one viewer, to a worker and back
CLIP_TRIES = 240  # to find a worker for a clip
CLIP_SECONDS = 0.5  # between two tries
MOST_COUNTS = 1000  # viewers for whom lost workers are counted
NO_WORKER = "The server has lost a GPU. You are the first in line for the next one."


@dataclass(eq=False, kw_only=True)
class ClusterSession(Session):
    """A session whose stream is on a worker."""

    # Runs everything that uses the stream; ends when the session is garbage-collected.
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    # The latest JPEGs that a worker has answered.
    recent: deque[bytes] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES))
    next_stream: RemoteStream | None = None  # has its place, while its style is downloaded
    successor: RemoteStream | None = None  # gets the same frames, and takes over with its first image


class ClusterSessions(Engine):
    """The part of `ClusterEngine` that serves the sessions."""

    takes_jpegs, owns_device = True, False
    session_kind = ClusterSession
    pool: WorkerPool

    def begin_sessions(self, capacity: int, idle_seconds: float, clock: Callable[[], float]) -> None:
        """Prepare as `Engine.begin_sessions`."""
        # Workers lost over a viewer's streams since the last image, by session key, latest last.
        self._losses: dict[str, int] = {}
        super().begin_sessions(capacity, idle_seconds, clock)

    def remove(self, session: Any, reason: str, error: BaseException | None = None) -> bool:
        """Remove a session as `Engine.remove`; forget the losses of a viewer who leaves."""
        if reason in ("closed", "silent", "stopped"):
            self._forget_losses(session)
        return super().remove(session, reason, error)

    def _count_loss(self, session: ClusterSession) -> None:
        """Count a worker that was lost over a session; later sessions of the key go on counting.

        Raises:
            RuntimeError: these are more than MOST_MOVES.
        """
        with self.registry.lock:
            losses = self._losses[session.key] = self._losses.pop(session.key, 0) + 1
            if len(self._losses) > MOST_COUNTS:
                del self._losses[next(iter(self._losses))]
        if losses > MOST_MOVES:
            raise RuntimeError(
                f"{losses} workers were lost over this stream. Start again with another style."
            )

    def _forget_losses(self, session: ClusterSession) -> None:
        with self.registry.lock:
            self._losses.pop(session.key, None)

    def streams_of(self, worker: RemoteWorker) -> list[tuple[Any, RemoteStream]]:
        """Return the live sessions on a worker, and their streams."""
        return [
            (session, stream)
            for session in self.registry.all()
            if isinstance(stream := session.stream, RemoteStream) and stream.worker is worker
        ]

    def weights_of(self, settings: StreamSettings) -> str | None:
        """Return a name for the weights that a stream uses; None for the model's own."""
        if (style := self.with_weights(settings.style)) is None:
            return None
        return json.dumps([style.base, [[name, scale * settings.lora_scale] for name, scale in style.loras]])

    def submit(self, session: ClusterSession, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run a function on the session's own thread."""
        return session.thread.submit(function, *arguments)

    # The methods below run on the session's thread.

    def new_stream(self, session: ClusterSession) -> Any:
        """Open a session's stream on a worker."""
        if session.is_clip:
            return RemoteClip(partial(self._connect_clip, session))
        return self._connect(session)

    def cache_bytes_of(self, session: ClusterSession, settings: StreamSettings) -> int:
        """Return 0: the worker's own engine checks its memory."""
        return 0

    def _take(self, session: ClusterSession, avoid: Collection[str] = ()) -> tuple[RemoteStream, Future]:
        """Take a place for a stream that is yet to be opened, and begin to download what its style needs."""
        stream_id, weights = secrets.token_hex(8), self.weights_of(session.settings)
        worker = self.pool.take(stream_id, weights, session.is_clip, avoid)
        fetched = resolved(None)
        if weights is not None:
            fetched = worker.call(NO_DEADLINE, "fetch", session.settings.style)
        return RemoteStream(worker, stream_id, session.settings), fetched

    def _open(self, session: ClusterSession, avoid: set[str]) -> RemoteStream:
        """Open a stream on a worker; if it fails, add the token of its process to `avoid`."""
        stream, fetched = self._take(session, avoid)
        fetched.exception()  # waits; `open` raises the error again
        try:
            stream.open_clip() if session.is_clip else stream.open(session.recent)
        except (WorkerLost, StreamClosed, StreamOutOfMemory):
            avoid.add(stream.token)
            raise
        return stream

    def _connect(self, session: ClusterSession, avoid: Collection[str] = ()) -> RemoteStream:
        """Open a stream on a worker, warmed up from the session's recent frames."""
        failure: RuntimeError = EngineBusy("No worker answers. Try again in a minute.")
        failed = {*avoid}
        for _ in range(MOST_MOVES):
            try:
                return self._open(session, failed)
            except (WorkerLost, StreamClosed):  # `_on_change` logs it
                self._count_loss(session)
            except StreamOutOfMemory as error:
                failure = error
        raise failure

    def _connect_clip(self, session: ClusterSession, avoid: Collection[str] = ()) -> RemoteStream:
        """Open the stream of a clip on a worker; wait for a worker if there is none."""
        failure: RuntimeError = WorkerLost("There is no worker")
        failed = {*avoid}
        for _ in range(CLIP_TRIES):
            if session.closed:
                raise session.closed_error()
            try:
                return self._open(session, failed)
            except (EngineBusy, WorkerLost, StreamClosed) as error:
                failure = error
            time.sleep(CLIP_SECONDS)
        raise failure

    def step(self, session: ClusterSession) -> None:
        """Push the waiting frame, unless too many are in flight; the next reply calls this again."""
        stream = session.stream
        if not isinstance(stream, RemoteStream) or len(stream.calls) >= FRAMES_IN_FLIGHT:
            return
        with self.registry.lock:
            queued = session.take_waiting()
        if queued is None:
            return
        with delivering(queued.result):
            check_frame_jpeg(queued.frame)
            for each in filter(None, (stream, session.successor)):
                arrived = partial(self._reply_arrived, session, each)
                each.send(queued).reply.add_done_callback(arrived)

    def _reply_arrived(self, session: ClusterSession, stream: RemoteStream, _: Future) -> None:
        taken = self.submit(session, self._take_replies, session, stream)
        taken.add_done_callback(Future.result)  # has an error logged, which nobody else would see

    def _take_replies(self, session: ClusterSession, stream: RemoteStream) -> None:
        """Deliver the replies that have arrived, in order."""
        while stream is session.stream and stream.calls and stream.calls[0].reply.done():
            queued, reply = stream.calls[0].queued, stream.calls[0].reply
            error = reply.exception()
            if isinstance(error, WorkerLost | StreamClosed | StreamOutOfMemory):
                return self.move(session, stream, str(error))
            stream.calls.popleft()
            if error is None:
                self._deliver(session, stream, queued, reply.result())
            else:
                fail(queued.result, error)
            if isinstance(error, NonFiniteError) and self.remove(session, "NonFiniteError", error):
                return self.free(session)
        self._hand_over(session)
        self.step(session)

    def _deliver(
        self, session: ClusterSession, stream: RemoteStream, queued: QueuedFrame, reply: Reply
    ) -> None:
        """Resolve the future of a frame, unless the former stream has done so."""
        if queued.result.done():
            stream.skip(queued, reply)
            return
        frames = stream.take_reply(reply)
        if reply.was_replaced:
            self.registry.dropped += 1
            queued.result.set_result(FrameResult([], None, stream.frames_in, stream.warm))
            return
        session.recent.append(queued.frame)
        if frames:
            self._forget_losses(session)
            stream.worker.finished.add(queued.arrived)
        self.finish(session, queued, frames)

    def move(self, session: ClusterSession, stream: RemoteStream, reason: str) -> None:
        """Go on at another worker, because the session's own was lost or has no memory for it."""
        if session.closed or session.stream is not stream:
            return
        began = self.registry.clock()
        self._drop_successor(session)
        session.stream = None
        stream.close()
        try:
            self._count_loss(session)
            self._switch(session, stream, self._connect(session, [stream.token]), began, reason)
        except (EngineBusy, WorkerLost, ValueError):
            self._end(session, stream, StreamClosed(NO_WORKER))
        except (OSError, RuntimeError) as error:
            self._end(session, stream, error)

    def _switch(
        self, session: ClusterSession, old: RemoteStream, new: RemoteStream, began: float, reason: str
    ) -> None:
        """Let a session go on with another stream; frames in flight in the old one get no image."""
        session.stream, session.in_flight = new, new.in_flight
        moved = {"from": old.worker.key, "to": new.worker.key}
        milliseconds = round(1000 * (self.registry.clock() - began))
        log_event("moved", id=log_id(session.key), **moved, milliseconds=milliseconds, reason=reason)
        while old.calls:
            lost = FrameResult([], None, new.frames_in, new.warm, moved=True)
            old.calls.popleft().queued.result.set_result(lost)
        self._take_replies(session, new)

    def _end(self, session: ClusterSession, stream: RemoteStream, error: Exception) -> None:
        """End a session that no worker can take; its viewer opens another, or waits in line."""
        log_event("moved", id=log_id(session.key), **{"from": stream.worker.key}, to="line")
        if self.remove(session, "no worker", error):
            self.free(session)
        while stream.calls:
            fail(stream.calls.popleft().queued.result, error)

    def begin_hand_over(self, session: ClusterSession, stream: RemoteStream) -> None:
        """Take a place for a second stream, which is opened once the worker has the style's files."""
        if session.stream is not stream or session.next_stream or session.successor:
            return
        try:
            session.next_stream, fetched = self._take(session)
        except (EngineBusy, ValueError):  # the next `watch` tries again
            return
        arguments = session, stream, session.next_stream
        fetched.add_done_callback(lambda _: self.submit(session, self._open_successor, *arguments))

    def _open_successor(self, session: ClusterSession, stream: RemoteStream, successor: RemoteStream) -> None:
        """Open the second stream, unless it was dropped; from now on it gets the same frames."""
        if session.next_stream is not successor:
            return
        session.next_stream, session.successor = None, successor
        recent = [*session.recent, *(call.queued.frame for call in stream.calls)][-WARMUP_FRAMES:]
        successor.began = self.registry.clock()
        successor.begin_open(recent).add_done_callback(partial(self._reply_arrived, session, successor))

    def _hand_over(self, session: ClusterSession) -> None:
        """Let the successor take over once it has an image of its own."""
        old, successor = session.stream, session.successor
        if successor is None or not isinstance(old, RemoteStream):
            return
        try:
            if successor.catch_up():
                session.successor = None
                old.calls.clear()  # the successor has them as well
                old.begin_close()
                self._switch(session, old, successor, successor.began, "drain")
        except (ValueError, OSError, RuntimeError):  # the next `watch` tries again
            self._drop_successor(session)

    def _drop_successor(self, session: ClusterSession) -> None:
        for stream in filter(None, (session.next_stream, session.successor)):
            stream.begin_close()
        session.next_stream = session.successor = None

    def call(self, session: Session, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of a session's stream, if necessary on another worker."""
        assert isinstance(session, ClusterSession)
        stream = session.stream
        if not isinstance(stream, RemoteStream):
            return super().call(session, name, *arguments, **options)
        self._drop_successor(session)
        if name == "update":
            weights = self.weights_of(arguments[0])
            if not self.pool.can_change(stream.stream_id, stream.worker, weights):
                return self._transfer(session, stream, arguments[0])
        try:
            return super().call(session, name, *arguments, **options)
        except (ValueError, OSError):  # refused: the weights stay as they were
            stream.worker.weights = self.weights_of(session.settings)
            raise
        except (WorkerLost, StreamClosed) as error:
            if session.closed:
                raise
            self.move(session, stream, str(error))
        return self.call(session, name, *arguments, **options)

    def _transfer(self, session: ClusterSession, stream: RemoteStream, settings: StreamSettings) -> None:
        """Go on at another worker, because this one's other streams need its present weights."""
        began, former = self.registry.clock(), session.settings
        session.settings = settings
        try:
            new = self._connect(session, [stream.token])
        except BaseException as error:
            session.settings = former
            raise ValueError(OTHER_WEIGHTS) if isinstance(error, EngineBusy) else error from None
        stream.begin_close()
        self._switch(session, stream, new, began, "style")

    def close_stream(self, session: ClusterSession, reason: str | None = None) -> None:
        """Free a session's stream, if it is open; the frames in flight get no result."""
        self._drop_successor(session)
        stream = session.stream
        super().close_stream(session, reason)
        while isinstance(stream, RemoteStream) and stream.calls:
            fail(stream.calls.popleft().queued.result, session.closed_error())
