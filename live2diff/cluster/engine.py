"""ClusterEngine: an engine whose streams are on the workers of a Ray cluster.

The front keeps each viewer's settings and last 8 JPEGs. With them a stream goes on at another worker when its
own dies, or before it is drained. All of a session runs on its own thread, replies of workers included.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..config import WARMUP_FRAMES
from ..errors import EngineBusy, NonFiniteError, StreamClosed, StreamOutOfMemory
from ..serving.engine import CLOSE_SECONDS, Engine
from ..serving.event_log import log_event, log_id
from ..serving.futures import delivering, fail, resolved
from ..serving.sessions import FrameResult, QueuedFrame, Session
from ..streaming.images import check_frame_jpeg
from ..streaming.settings import StreamSettings
from .pool import OTHER_WEIGHTS, WorkerPool
from .remote_stream import MOST_MOVES, RemoteClip, RemoteStream
from .remote_worker import NO_DEADLINE, Deadlines, RemoteWorker, WorkerLost
from .session import WorkerResources
from .worker import Reply

FRAMES_IN_FLIGHT = 4  # of one viewer, on their way to a worker and back
WATCH_SECONDS = 0.5  # between two looks at the workers
CLIP_TRIES = 240  # to find a worker for a clip, WATCH_SECONDS apart
NO_WORKER = "The server has lost a GPU. You are the first in line for the next one."


@dataclass(eq=False, kw_only=True)
class ClusterSession(Session):
    """A session whose stream is on a worker."""

    # Runs all that touches the stream; ends when the session is garbage.
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    recent: deque[bytes] = field(
        default_factory=lambda: deque(maxlen=WARMUP_FRAMES)
    )  # that a worker has answered
    successor: RemoteStream | None = None  # gets the same frames, and takes over with its first picture
    moves: int = 0  # since the last picture


class ClusterEngine(Engine):
    """An `Engine` without a device: streams are on workers, frames are JPEGs on the whole way.

    Args:
        make_engine: makes the engine of a worker, in its process; picklable, given by the operator.
        resources: what a worker takes of a node, and how many the cluster has room for now.
        count_workers: returns how many the cluster has room for, whenever it is called.
        deadlines: how long a worker may be silent.
        idle_seconds: a session silent for this long is closed.
        clock: returns seconds.
        watch_seconds: between two calls of `watch`.
    """

    takes_jpegs = True
    session_kind = ClusterSession

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        resources: WorkerResources,
        count_workers: Callable[[], int] | None = None,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
        idle_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        self.on_shutdown: Callable[[], None] = lambda: None
        self.begin_sessions(0, idle_seconds, clock)
        self.pool = WorkerPool(make_engine, resources.options, deadlines, clock, self._on_change)
        self.pool.grow(resources.workers)
        self._count_workers = count_workers
        self._fetches = ThreadPoolExecutor(max_workers=8, thread_name_prefix="fetch")
        self._ended = threading.Event()
        first = self.pool.first()
        self.styles, self.default_style = first.styles, first.default_style
        self.about, self.prompt_help, self.size = first.about, first.prompt_help, first.size
        threading.Thread(target=self._watch, args=[watch_seconds], name="watch", daemon=True).start()

    @property
    def room(self) -> str:
        """Say how many viewers there is room for now."""
        ready = f"{len(self.pool.ready())} of {len(self.pool.workers)}"
        return f"Room for {self.capacity} viewers at once on {ready} workers."

    @property
    def device(self) -> str:
        """Return the names of the workers' devices."""
        return self.pool.device()

    def stats(self) -> dict[str, Any]:
        """As `Engine.stats`, and those of each worker by its key."""
        workers = {worker.key: worker.stats() for worker in [*self.pool.workers.values()]}
        return {**super().stats(), "workers": workers}

    def fetch(self, style: str | None) -> Future[None]:
        """Download what a style needs, on all workers."""
        if not style or style not in self.styles or not self.styles[style].has_weights:
            return resolved(None)
        return self._fetches.submit(self.pool.fetch, style)

    def weights_of(self, settings: StreamSettings) -> str | None:
        """Return a name of the weights that a stream uses; None for the model's own."""
        style = self.styles.get(self.default_style if settings.style is None else settings.style)
        if style is None or not style.has_weights:
            return None
        return json.dumps([style.base, [[name, scale * settings.lora_scale] for name, scale in style.loras]])

    def shutdown(self) -> None:
        """Close every stream and end all workers."""
        sessions = self.registry.all()
        self.end()
        wait_for([session.freed for session in sessions], CLOSE_SECONDS)
        self._ended.set()
        self._fetches.shutdown(wait=False, cancel_futures=True)
        self.pool.close()
        self.on_shutdown()

    # The workers.

    def _watch(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            self.watch()

    def watch(self) -> None:
        """Look after the workers once: leave the silent, start missing ones, go on with those that drain."""
        if self._count_workers is not None:
            self.pool.grow(self._count_workers())
        self.pool.watch()
        for worker in [*self.pool.workers.values()]:
            if worker.is_draining:
                self._drain(worker)

    def _on_change(self, worker: RemoteWorker, reason: str) -> None:
        """Note that a worker is ready, or move its streams because it was lost."""
        self.capacity = self.pool.capacity()
        if not reason:
            return log_event("ready", worker=worker.key, process=worker.process, capacity=self.capacity)
        log_event("lost", worker=worker.key, reason=reason, capacity=self.capacity)
        for session, stream in self._streams_of(worker):
            self.submit(session, self._move, session, stream, reason)

    def _streams_of(self, worker: RemoteWorker) -> list[tuple[Any, RemoteStream]]:
        """Return the live sessions on a worker, and their streams."""
        return [
            (session, stream)
            for session in self.registry.all()
            if isinstance(stream := session.stream, RemoteStream) and stream.worker is worker
        ]

    def drain(self, key: str, reason: str = "drain") -> None:
        """Move the streams of a worker to others without a gap, then end it; it gets no new ones."""
        worker = self.pool.workers[key]
        worker.is_draining = True
        self.capacity = self.pool.capacity()
        log_event("draining", worker=key, reason=reason, capacity=self.capacity)
        self._drain(worker)

    def _drain(self, worker: RemoteWorker) -> None:
        for session, stream in self._streams_of(worker):
            self.submit(session, self._begin_hand_over, session, stream)
        if not worker.streams:
            self.pool.retire(worker)

    def submit(self, session: ClusterSession, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run a function on the session's own thread."""
        return session.thread.submit(function, *arguments)

    def schedule(self, session: ClusterSession) -> None:
        """Have the waiting frame pushed."""
        self.submit(session, self.step, session)

    # From here on all runs on the session's thread.

    def new_stream(self, session: ClusterSession) -> Any:
        """Open a session's stream on a worker."""
        if session.is_clip:
            return RemoteClip(partial(self._connect_clip, session))
        return self._connect(session)

    def cache_bytes_of(self, session: ClusterSession, settings: StreamSettings) -> int:
        """Return 0: the worker's engine looks after its memory."""
        return 0

    def _take(self, session: ClusterSession, avoid: Collection[RemoteWorker] = ()) -> RemoteStream:
        """Take a place on a worker for a session's stream, which is still to be opened."""
        stream_id, weights = secrets.token_hex(8), self.weights_of(session.settings)
        worker = self.pool.take(stream_id, weights, session.is_clip, avoid)
        if weights is not None:
            worker.call(NO_DEADLINE, "fetch", session.settings.style).exception()  # `open` says it again
        return RemoteStream(worker, stream_id, session.settings)

    def _connect(self, session: ClusterSession, avoid: Collection[RemoteWorker] = ()) -> RemoteStream:
        """Open a stream on a worker, warmed up from the session's recent frames."""
        failure: RuntimeError = EngineBusy("No worker answers. Try again in a minute.")
        for _ in range(MOST_MOVES):
            stream = self._take(session, avoid)
            try:
                stream.open(session.recent)
                return stream
            except (WorkerLost, StreamClosed):
                pass  # `_on_change` logs it
            except StreamOutOfMemory as error:
                avoid, failure = [*avoid, stream.worker], error
        raise failure

    def _connect_clip(self, session: ClusterSession) -> RemoteStream:
        """Open the stream of a clip on a worker; wait for one."""
        failure: RuntimeError = WorkerLost("There is no worker")
        for _ in range(CLIP_TRIES):
            if session.closed:
                raise session.closed_error()
            try:
                stream = self._take(session)
                stream.open_clip()
                return stream
            except (EngineBusy, WorkerLost) as error:
                failure = error
            time.sleep(WATCH_SECONDS)
        raise failure

    def step(self, session: ClusterSession) -> None:
        """Push the waiting frame, unless too many are on their way; the next reply comes here again."""
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
        self.submit(session, self._take_replies, session, stream)

    def _take_replies(self, session: ClusterSession, stream: RemoteStream) -> None:
        """Deliver the replies that have come, in order."""
        while stream is session.stream and stream.calls and stream.calls[0].reply.done():
            queued, reply = stream.calls[0].queued, stream.calls[0].reply
            error = reply.exception()
            if isinstance(error, WorkerLost | StreamClosed | StreamOutOfMemory):
                avoid = [stream.worker] if isinstance(error, StreamOutOfMemory) else []
                return self._move(session, stream, str(error), avoid)
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
        """Resolve the future of a frame."""
        frames = stream.take_reply(reply)
        if reply.was_replaced:
            self.registry.dropped += 1
            return queued.result.set_result(FrameResult([], None, stream.frames_in, stream.warm))
        session.recent.append(queued.frame)
        if frames:
            session.moves, now = 0, self.registry.clock()
            stream.worker.finished.append((now, now - queued.arrived))
        self.finish(session, queued, frames)

    def _move(
        self,
        session: ClusterSession,
        stream: RemoteStream,
        reason: str,
        avoid: Collection[RemoteWorker] = (),
    ) -> None:
        """Go on at another worker after the session's own was lost, or has no memory for it."""
        if session.closed or session.stream is not stream:
            return
        began = self.registry.clock()
        self._drop_successor(session)
        session.stream = None
        stream.close()
        session.moves += 1
        try:
            if session.moves > MOST_MOVES:
                raise RuntimeError(f"{session.moves} workers were lost over this stream.")
            self._switch(session, stream, self._connect(session, avoid), began, reason)
        except (EngineBusy, WorkerLost, ValueError):
            self._end(session, stream, StreamClosed(NO_WORKER))
        except (OSError, RuntimeError) as error:
            self._end(session, stream, error)

    def _switch(
        self, session: ClusterSession, old: RemoteStream, new: RemoteStream, began: float, reason: str
    ) -> None:
        """Let a session go on with another stream; frames on their way to the old one have no picture."""
        session.stream, session.in_flight = new, new.in_flight
        moved = {"from": old.worker.key, "to": new.worker.key}
        milliseconds = round(1000 * (self.registry.clock() - began))
        log_event("moved", id=log_id(session.key), **moved, milliseconds=milliseconds, reason=reason)
        while old.calls:
            lost = FrameResult([], None, new.frames_in, new.warm, moved=True)
            old.calls.popleft().queued.result.set_result(lost)
        self._take_replies(session, new)

    def _end(self, session: ClusterSession, stream: RemoteStream, error: Exception) -> None:
        """End a session that no worker can go on with; its viewer opens another, or waits in line."""
        log_event("moved", id=log_id(session.key), **{"from": stream.worker.key}, to="line")
        if self.remove(session, "no worker", error):
            self.free(session)
        while stream.calls:
            fail(stream.calls.popleft().queued.result, error)

    def _begin_hand_over(self, session: ClusterSession, stream: RemoteStream) -> None:
        """Open a second stream, which gets the same frames from now on."""
        if session.stream is not stream or session.successor is not None:
            return
        try:
            successor = session.successor = self._take(session)
        except (EngineBusy, ValueError):  # asked again by the next `watch`
            return
        recent = [*session.recent, *(call.queued.frame for call in stream.calls)][-WARMUP_FRAMES:]
        successor.began = self.registry.clock()
        successor.begin_open(recent).add_done_callback(partial(self._reply_arrived, session, successor))

    def _hand_over(self, session: ClusterSession) -> None:
        """Let the successor take over once it has a picture of the last frame that was delivered."""
        old, successor = session.stream, session.successor
        if successor is None or not isinstance(old, RemoteStream):
            return
        try:
            if successor.catch_up():
                session.successor = None
                old.calls.clear()  # the successor has them as well
                old.begin_close()
                self._switch(session, old, successor, successor.began, "drain")
        except (ValueError, OSError, RuntimeError):  # tried again by the next `watch`
            self._drop_successor(session)

    def _drop_successor(self, session: ClusterSession) -> None:
        if session.successor is not None:
            session.successor.begin_close()
            session.successor = None

    def call(self, session: Session, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of a session's stream, where need be on another worker."""
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
        except (ValueError, OSError):  # refused: the weights are as before
            stream.worker.weights = self.weights_of(session.settings)
            raise
        except (WorkerLost, StreamClosed) as error:
            if session.closed:
                raise
            self._move(session, stream, str(error))
        return self.call(session, name, *arguments, **options)

    def _transfer(self, session: ClusterSession, stream: RemoteStream, settings: StreamSettings) -> None:
        """Go on at another worker in a style with other weights, which others do not use here."""
        began, former = self.registry.clock(), session.settings
        session.settings = settings
        try:
            new = self._connect(session, [stream.worker])
        except BaseException as error:
            session.settings = former
            raise ValueError(OTHER_WEIGHTS) if isinstance(error, EngineBusy) else error from None
        stream.begin_close()
        self._switch(session, stream, new, began, "style")

    def close_stream(self, session: ClusterSession, reason: str | None = None) -> None:
        """Free a session's stream, if it is open; the frames on their way have no result."""
        self._drop_successor(session)
        stream = session.stream
        super().close_stream(session, reason)
        while isinstance(stream, RemoteStream) and stream.calls:
            fail(stream.calls.popleft().queued.result, session.closed_error())
