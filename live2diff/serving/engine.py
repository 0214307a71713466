"""Run streams by key, which take turns on one device.

The model runs on one thread: compiled graphs must be warmed up, captured and replayed on the same one. A
session has at most one frame in that thread's queue; a newer frame of a live session replaces it while it
waits. On a GPU, waiting frames go through the model as one batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DeviceLost, ServerStopping, StreamClosed, StreamOutOfMemory, is_out_of_memory
from ..streaming.settings import BLEND_FRAMES, StreamSettings
from .capacity import Room, measure_room
from .device_loss import is_stream_fault, watched
from .futures import SharedCalls, delivering, fail, resolved
from .sessions import ClipStream, FrameResult, PromptHelp, QueuedFrame, Session, SessionRegistry

if TYPE_CHECKING:
    import torch

    from ..pipeline import Live2DiffPipeline
    from ..streaming.stream import Stream
    from ..styles import Style
    from .rounds import Rounds

QUIET_SECONDS = 10.0  # a session silent for this long is closed when another needs its place
CLOSE_SECONDS = 30.0  # at most for `freed`: a clip may be garbage-collected on the device thread itself


class Engine:
    """Streams by key, one for each viewer, on one device; meets `sessions.EngineProtocol`.

    Calls may come from any thread or event loop; they return a future at once. An exception in one session's
    stream reaches the futures of that session alone.

    Args:
        pipe: the model.
        capacity: how many live sessions there may be; None for as many as the device has room for.
        idle_seconds: a session silent for this long is closed.
        together: whether waiting frames form batches (a result differs by a grey level); None for on a GPU.
        cache_dtype: of the streams' caches, as `Live2DiffPipeline.stream` takes it.
        clock: returns seconds.
    """

    needs_gpu_session = takes_jpegs = False
    session_kind: type[Session] = Session
    failure, owns_device = "", True  # False where streams run in other processes
    _rounds: Rounds | None = None  # where waiting frames form batches
    count_waiting = staticmethod(lambda: 0)  # replaced by a waiting line

    def __init__(
        self,
        pipe: Live2DiffPipeline,
        capacity: int | None = 4,
        idle_seconds: float = 60.0,
        together: bool | None = None,
        cache_dtype: torch.dtype | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        if capacity is None:
            self.room = self._thread.submit(measure_room, pipe, cache_dtype).result()
        else:
            self.room = Room(capacity, f"Room for {capacity} viewers at once, as set.")
        self.styles, self.about, self.size = pipe.styles, pipe.about, pipe.config.size  # pyright: ignore
        self.prompt_help = PromptHelp.of(pipe.config)
        self.default_style = pipe.default_style or next(iter(pipe.styles))
        self.pipe, self._cache_dtype = pipe, cache_dtype
        if pipe.unet.device.type == "cuda" if together is None else together:
            from .rounds import Rounds
            from .warm_start import open_pools

            pools = self._thread.submit(open_pools, pipe, self.room.viewers, cache_dtype).result()
            self._rounds = Rounds(self, pools)
        self.begin_sessions(self.room.viewers, idle_seconds, clock)

    def begin_sessions(self, capacity: int, idle_seconds: float, clock: Callable[[], float]) -> None:
        """Prepare for `capacity` live sessions, and begin to close silent ones."""
        self.admission: Callable[[str], AbstractContextManager] = nullcontext
        self.capacity, self.registry = capacity, SessionRegistry(clock)
        self.downloads = SharedCalls(threads=8, name="downloads")
        self._ending = threading.Event()
        threading.Thread(target=self._reap, args=(idle_seconds,), name="reaper", daemon=True).start()

    @property
    def device(self) -> str:
        """Return the name of the GPU, or the kind of another device."""
        if (device := self.pipe.unet.device).type != "cuda":
            return device.type
        from torch.cuda import get_device_name

        return get_device_name(device)

    def fetch(self, style: str | None) -> Future[None]:
        """Download what a style needs, beside the frames; call this before `open` or `update` with it."""
        return self.downloads.submit(self.pipe.fetch, style) if self.with_weights(style) else resolved(None)

    def with_weights(self, name: str | None) -> Style | None:
        """Return the style of this name (None: the default one) if it has weights of its own, else None."""
        style = self.styles.get(self.default_style if name is None else name)
        return style if style and style.has_weights else None

    def open(self, key: str, settings: StreamSettings) -> Future[str]:
        """Open a stream; the result is the part of the prompt that is too long for the model, usually "".

        Raises:
            EngineBusy: there is no room, or others come first.
            ServerStopping: the server ends.
        """
        session = self.session_kind(key=key, settings=settings, last_seen=self.registry.clock())
        self.admit(session)
        return self.submit(session, self.open_stream, session)

    def push(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        """Queue a frame; it replaces one that still waits, and takes over its future."""
        with self.registry.lock:
            session, now = self.registry.get(key), self.registry.clock()
            former, session.last_seen = session.waiting, now
            if former is not None and not former.result.cancelled():
                session.waiting = QueuedFrame(frame, tag, now, former.result)
                self.registry.dropped += 1
            else:
                session.waiting = QueuedFrame(frame, tag, now, Future())
                self.schedule(session)
            session.result = session.waiting.result
            return session.result

    def update(self, key: str, settings: StreamSettings, blend: int = BLEND_FRAMES) -> Future[str]:
        """Change settings (LIVE_FIELDS) from the next frame on; the result is as for `open`."""
        return self._change(key, "update", settings, blend)

    def restart(self, key: str) -> Future[str]:
        """Warm up again from the last frames; the result is as for `open`."""
        return self._change(key, "restart")

    def _change(self, key: str, *change: Any) -> Future[str]:
        with self.registry.lock:
            session = self.registry.get(key)
            session.changes += 1
            return self.submit(session, self.apply_change, session, *change)

    def close(self, key: str) -> Future[None]:
        """Free the stream of a key, if there is one, after the frame being processed."""
        try:
            session = self.registry.get(key)
        except StreamClosed:
            return resolved(None)
        return self.close_session(session)

    @contextmanager
    def clip(self, key: str, settings: StreamSettings, frames: int | None = None) -> Iterator[ClipStream]:
        """Open a stream for `video.translate`, which takes turns with live frames; the context closes it.

        `close(key)` ends it early: the next `push` raises `StreamClosed`. Clips do not count against the
        capacity. `frames` is how many the clip has, if known, for engines that request time on a device.
        """
        session = self.session_kind(key=key, settings=settings, last_seen=self.registry.clock(), is_clip=True)
        self.admit(session)
        try:
            ignored_words = self.open_clip(session, frames).result()
            submit = partial(self.submit, session, self.call, session)
            yield ClipStream(ignored_words, submit, ahead=self.needs_gpu_session)
        finally:
            wait([self.close_session(session)], CLOSE_SECONDS)

    def session_keys(self) -> set[str]:
        """Return the keys of the live sessions."""
        return self.registry.live_keys()

    def make_room(self) -> None:
        """Close live sessions that have been silent for a while, because others want their places."""
        self.close_idle(QUIET_SECONDS)

    def close_idle(self, seconds: float) -> None:
        """Close the live sessions that have been silent for longer."""
        limit = self.registry.clock() - seconds
        for session in self.registry.all():
            if session.last_seen < limit and not session.is_clip and not session.is_busy():
                self.close_session(session, "silent")

    def time_left(self, key: str) -> float | None:
        """Return the seconds until the stream ends by itself; None for never."""
        return None

    def stats(self) -> dict[str, Any]:
        """Return open streams and clips, capacity, frames dropped, frames per second, delays in seconds."""
        return {**self.registry.stats(), "capacity": self.capacity}

    def end(self, clips: bool = True) -> None:
        """Admit no more sessions, and close every stream, or with `clips=False` the live ones only."""
        self._ending.set()
        for session in self.registry.all():
            if clips or not session.is_clip:
                self.close_session(session, "stopped")

    def shutdown(self) -> None:
        """Close every stream and end all threads."""
        sessions = self.registry.all()
        self.end()
        wait([session.freed for session in sessions], CLOSE_SECONDS)
        self.downloads.shutdown()
        self.release_devices()

    def _reap(self, idle_seconds: float) -> None:
        while not self._ending.wait(min(idle_seconds / 4, 5.0)):
            self.close_idle(idle_seconds)

    def admit(self, session: Session) -> None:
        """Give a session its place, and close the former one of its key.

        Raises:
            EngineBusy: there is no room, or others come first.
            ServerStopping: the server ends.
        """
        with nullcontext() if session.is_clip else self.admission(session.key):
            if self._ending.is_set():
                raise DeviceLost if self.failure else ServerStopping
            if not session.is_clip and len(self.session_keys() - {session.key}) >= self.capacity:
                self.make_room()
            former = self.registry.add(session, self.capacity)
        if former is not None:
            self.close_session(former, "replaced")

    def close_session(self, session: Any, reason: str = "closed") -> Future[None]:
        """Remove a session; the future is done when its stream is freed."""
        if self.remove(session, reason):
            self.submit(session, self.free, session)
        return session.freed

    def remove(self, session: Any, reason: str, error: BaseException | None = None) -> bool:
        """Remove a session; its waiting frame fails with `error`, by default `StreamClosed`.

        Return whether it was still registered; if so, the caller must have its stream freed.
        """
        with self.registry.lock:
            if session.closed:
                return False
            session.closed, session.reason = True, reason
            self.registry.remove(session)
            waiting = session.take_waiting()
        if waiting is not None:
            fail(waiting.result, error or session.closed_error())
        return True

    # Overridden by engines with their own kind of session.

    def submit(self, session: Any, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run a function on the thread of a session's stream."""
        return self._thread.submit(function, *arguments)

    def schedule(self, session: Any) -> None:
        """Have a session's waiting frame processed; called with the lock held."""
        self.submit(session, self._rounds.launch if self._rounds else self.step, session)

    def open_clip(self, session: Any, frames: int | None) -> Future[str]:
        """Open the stream of a clip."""
        return self.submit(session, self.open_stream, session)

    def release_devices(self) -> None:
        """End the threads that use the device; every stream is closed."""
        if self._rounds:
            self._rounds.shutdown()
        self._thread.shutdown(wait=True)

    # The methods below run on the thread of the session's stream.

    def new_stream(self, session: Any) -> Stream:
        """Make the stream of a session.

        Raises:
            LimitReached: the caches of all live streams would not fit into the memory measured for them.
        """
        pools = self._rounds.pools if self._rounds and not session.is_clip else None
        session.cache_bytes = self.cache_bytes_of(session, session.settings)
        return self.pipe.stream(session.settings, pools=pools, cache_dtype=self._cache_dtype)

    def cache_bytes_of(self, session: Any, settings: StreamSettings) -> int:
        """Return the bytes of a session's cache with these settings; raise as `new_stream` does."""
        if session.is_clip:
            return 0
        taken = sum(other.cache_bytes for other in self.registry.all() if other is not session)
        return self.room.cache_bytes_of(self.pipe, settings, self._cache_dtype, taken)

    def open_stream(self, session: Any) -> str:
        """Open a session's stream; on failure, give its place back."""
        if session.closed:
            raise session.closed_error()
        try:
            stream = session.stream = self._guarded(session, self.new_stream, session)
        except BaseException as error:
            if self.remove(session, "failed", error):
                self.free(session)
            raise
        # After a warmup from earlier frames, some of them are in flight; they have no future.
        session.in_flight = deque([None] * (stream.frames_in - stream.frames_out))
        session.opened = session.last_seen = self.registry.clock()
        session.log("opened", **session.settings.model_dump(include={"style", "steps", "size"}))
        return stream.ignored_words

    def close_stream(self, session: Any, reason: str | None = None) -> None:
        """Free a session's stream, if it is open."""
        stream, session.stream = session.stream, None
        if stream is not None:
            counts = {"frames_in": stream.frames_in, "frames_out": stream.frames_out}
            counts["seconds"] = self.registry.clock() - session.opened
            session.log("closed", reason=reason or session.reason, **counts)
            stream.close()
            session.in_flight.clear()

    def free(self, session: Any) -> None:
        """Free a closed session's stream, and resolve `session.freed`."""
        with delivering(session.freed):
            self.close_stream(session)
            session.freed.set_result(None)

    def apply_change(self, session: Session, name: str, *arguments: Any) -> str:
        """Update or restart a stream."""
        try:
            if name == "update":
                settings = session.settings.updated_live(arguments[0])
                cache_bytes = self.cache_bytes_of(session, settings)
                self.call(session, "update", settings, blend=arguments[1])
                session.settings, session.cache_bytes = settings, cache_bytes
            else:
                self.call(session, name)
            return self.stream_of(session).ignored_words
        finally:
            with self.registry.lock:
                session.changes -= 1

    def step(self, session: Session) -> None:
        """Push the waiting frame of a session."""
        with self.registry.lock:
            queued = session.take_waiting()
        if queued is not None:
            with delivering(queued.result):
                self.finish(session, queued, self.call(session, "push", queued.frame))

    def call(self, session: Session, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of a session's stream."""
        try:
            return self._guarded(session, getattr(self.stream_of(session), name), *arguments, **options)
        finally:
            session.last_seen = self.registry.clock()

    def stream_of(self, session: Session) -> Any:
        """Return the stream of a session; raise StreamClosed unless it is open."""
        if session.closed or session.stream is None:
            raise session.closed_error()
        return session.stream

    def finish(self, session: Session, queued: QueuedFrame, frames: list[Any]) -> None:
        """Resolve the future of a pushed frame with the frames that it finished."""
        stream = session.stream
        assert stream is not None
        session.last_seen = self.registry.clock()
        session.in_flight.append(queued)  # not earlier: a refused frame is not in flight
        shown = [session.in_flight.popleft() for _ in frames]
        last = shown[-1] if shown else None
        if last is not None:
            self.registry.finished.add(last.arrived)
        queued.result.set_result(FrameResult(frames, last and last.tag, stream.frames_in, stream.warm))

    def _guarded(self, session: Session, function: Callable, *arguments: Any, **options: Any) -> Any:
        """Call a function; out of memory, NaN and infinity end the session."""
        if self._rounds:
            self._rounds.settle()
        try:
            return watched(self, function, *arguments, **options)
        except RuntimeError as error:
            if not is_stream_fault(error):
                raise
            failure = self.drop(session, error)
        raise failure  # outside `except`: the traceback of `error` keeps its tensors alive

    def drop(self, session: Session, error: RuntimeError) -> RuntimeError:
        """Close a failed stream and free its memory; return the error for the client."""
        from torch import cuda

        failure = StreamOutOfMemory() if is_out_of_memory(error) else error
        if self.remove(session, type(failure).__name__, failure):
            self.free(session)
        cuda.empty_cache()
        return failure
