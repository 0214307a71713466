"""ZeroGpuEngine: an engine whose GPU is lent by the `spaces` package, for one live session or clip at a time.

README.md says how a run works. Off a Space the same code runs without a fork, in a thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import WARMUP_FRAMES
from ..errors import GpuSessionOver, StreamClosed
from ..serving.engine import Engine
from ..serving.futures import delivering, fail, resolved
from ..serving.sessions import FrameResult, Session
from ..streaming.settings import BLEND_FRAMES, StreamSettings
from .channel import PipePool
from .remote_stream import RemoteStream, Run
from .worker import Job, serve

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

GPU_SECONDS = 60.0  # of a live session; what is asked for counts against the viewer's quota
START_SECONDS = 15.0  # for the fork and the weights' way to the GPU, asked for on top
CLIP_SECONDS = 60.0  # for a clip of unknown length
SECONDS_PER_FRAME = 0.1  # of a clip, generously
SHORTEST_CLIP = 10.0  # seconds that are asked for at least
REPORT_SECONDS = 0.5  # how often a live session reports the time left
CLIPS_AT_ONCE = 2

Task = Callable[[Job], Generator[str]]


def on_zero_gpu() -> bool:
    """Return whether this is a Space with ZeroGPU, as the `spaces` package sees it."""
    try:
        from spaces.config import Config
    except ImportError:  # it is there on Spaces only
        return False
    return Config.zero_gpu


def seconds_of(job: Job) -> int:
    """Return how long the GPU is asked for."""
    return round(job.seconds + START_SECONDS)


def wrap_gpu(task: Task, seconds: Callable[[Job], int]) -> Task:
    """Wrap a generator function to run on a lent GPU; where none is lent, return it as it is."""
    if not on_zero_gpu():
        return task
    import spaces

    return spaces.GPU(duration=seconds)(task)


@dataclass(eq=False, kw_only=True)
class GpuSession(Session):
    """A session whose stream exists only while a run holds a GPU."""

    # Makes the blocking calls of the stream; ends when the session is garbage.
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    # The latest frames, from which the next run warms up.
    recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES + 1))
    run: Run | None = None  # the present one, from when the GPU is asked for
    over: Run | None = None  # the last one, until the stream is opened again or the next run is asked for

    def has_gpu(self) -> bool:
        """Return whether a run has begun."""
        return self.run is not None and self.run.ends is not None

    def is_busy(self) -> bool:
        """Return whether the session waits for a GPU that was asked for, or for its stream."""
        return self.run is not None and super().is_busy()


class ZeroGpuEngine(Engine):
    """An `Engine` that processes the frames of a live session only while `gpu_session` runs for it.

    Until a GPU session begins, frames wait, of which only the newest is kept. It lasts `gpu_seconds`. After
    it `push` raises `GpuSessionOver`; after `open`, or the next `gpu_session`, the stream goes on with the
    last 8 frames as warmup.
    """

    needs_gpu_session = True
    session_kind = GpuSession

    def __init__(
        self,
        pipe: Live2DiffPipeline,
        capacity: int = 8,
        idle_seconds: float = 300.0,
        gpu_seconds: float = GPU_SECONDS,
        wrap: Callable[[Task, Callable[[Job], int]], Task] = wrap_gpu,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gpu_seconds = gpu_seconds
        # Twice as many as can be in use: a run may outlive its session while `spaces` ends it.
        self.pipes = PipePool(2 * (capacity + CLIPS_AT_ONCE))
        super().__init__(pipe, capacity, idle_seconds, together=False, clock=clock)
        self._serve = wrap(self._on_gpu, seconds_of)

    @property
    def device(self) -> str:
        """Return the name of the device."""
        return "ZeroGPU" if on_zero_gpu() else super().device

    def _on_gpu(self, job: Job) -> Generator[str]:
        yield from serve(self.pipe, self.pipes.ends[job.pipe][1], job, self.registry.clock)

    def open(self, key: str, settings: StreamSettings) -> Future[str]:
        """As `Engine.open`, at once outside a GPU session; a session of this key keeps its place and GPU."""
        ignored_words = self.pipe.ignored_words(settings.style, settings.prompt)
        if key not in self.session_keys():
            self.admit(GpuSession(key=key, settings=settings, last_seen=self.registry.clock()))
            return resolved(ignored_words)
        with self.admission(key), self.registry.lock:
            session = self._session(key)
            session.over, session.last_seen = None, self.registry.clock()
            if session.has_gpu():
                return self.submit(session, self.reopen_stream, session, settings)
            session.settings = settings
        return resolved(ignored_words)

    def push(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        """As `Engine.push`.

        Raises:
            StreamClosed: a GPU session has ended or was refused, and the next one has not been asked for.
            ValueError: not a frame.
        """
        from ..streaming.images import check_frame  # not at import: torch takes seconds

        check_frame(frame)
        with self.registry.lock:
            session = self._session(key)
            if session.over is not None:
                raise session.over.over_error()
            session.recent.append(frame)
            return super().push(key, frame, tag)

    def update(self, key: str, settings: StreamSettings, blend: int = BLEND_FRAMES) -> Future[str]:
        """As `Engine.update`; outside a GPU session for the next one, at once."""
        with self.registry.lock:
            session = self._session(key)
            if session.has_gpu():
                return super().update(key, settings, blend)
            ignored_words = self.pipe.ignored_words(settings.style, settings.prompt)
            session.settings = session.settings.updated_live(settings)
        return resolved(ignored_words)

    def restart(self, key: str) -> Future[str]:
        """As `Engine.restart`; outside a GPU session there is nothing to do."""
        return super().restart(key) if self._session(key).has_gpu() else resolved("")

    def time_left(self, key: str) -> float | None:
        """Return the seconds left of the GPU session, 0 after it, None before it."""
        with self.registry.lock:
            session = self._session(key) if key in self.session_keys() else None
            if session is not None and session.run is not None and session.run.ends is not None:
                return max(0.0, session.run.ends - self.registry.clock())
            return 0.0 if session is not None and session.over else None

    def gpu_session(self, key: str) -> Iterator[float | None]:
        """Process the frames of a session on a lent GPU, in an event of the page; closing this ends it.

        If one runs already, nothing happens.

        Yields:
            The seconds left, now and then.

        Raises:
            StreamClosed: there is no session of this key.
            Exception: what `spaces` raises, with words for the viewer: no GPU is free, the quota is used up.
        """
        session = self._session(key)
        former = session.run
        if former is not None and former.stop.is_set():  # on its way out
            former.done.wait()
        with self.registry.lock:
            if session.run is not None or session.closed:
                return
            run = self._begin(session, self.gpu_seconds)
        try:
            while not run.done.wait(REPORT_SECONDS):
                yield self.time_left(key)
            if run.error is not None:
                raise run.error
        finally:
            run.stop.set()

    def _session(self, key: str) -> GpuSession:
        session = self.registry.get(key)
        assert isinstance(session, GpuSession)
        return session

    def submit(self, session: GpuSession, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run a function on the session's own thread."""
        return session.thread.submit(function, *arguments)

    def schedule(self, session: GpuSession) -> None:
        """Have the waiting frame processed; outside a GPU session it waits."""
        if session.has_gpu():
            self.submit(session, self.step, session)

    def open_clip(self, session: GpuSession, frames: int | None) -> Future[str]:
        """Open the stream of a clip on a GPU, asked for by the number of frames."""
        seconds = CLIP_SECONDS if frames is None else max(SHORTEST_CLIP, frames * SECONDS_PER_FRAME)
        return self._begin(session, seconds).opened

    def remove(self, session: GpuSession, reason: str, error: BaseException | None = None) -> bool:
        """As `Engine.remove`; its run ends as soon as it can."""
        if isinstance(error, StreamClosed):  # its run has ended while the stream was opened
            return False
        is_first, run = super().remove(session, reason, error), session.run
        if is_first and run is not None:
            run.stop.set()
            fail(run.opened, error or session.closed_error())
        return is_first

    def _begin(self, session: GpuSession, seconds: float) -> Run:
        """Ask for a GPU, in the context of the event, by which `spaces` knows the viewer."""
        number, pipe = self.pipes.take()
        run = Run(Job(number, pipe, seconds, session.is_clip), self.pipes.ends[pipe][0])
        session.run, session.over = run, None
        # A thread of its own: a process forked from an executor's fails as it ends, joining itself.
        context, arguments = copy_context(), (self._follow, session, run)
        threading.Thread(target=context.run, args=arguments, name="run", daemon=True).start()
        return run

    def _follow(self, session: GpuSession, run: Run) -> None:
        """Follow a run from asking for a GPU to giving it back."""
        reason = ""
        try:
            with closing(self._serve(run.job)) as heartbeats:
                for reason in heartbeats:
                    if run.stop.is_set():
                        reason = session.reason
                        break
                    if run.ends is None:
                        with self.registry.lock:
                            run.ends = self.registry.clock() + run.job.seconds
                            self.submit(session, self._open_first, session, run)
        except BaseException as error:  # raised by `gpu_session`
            run.error = error
        run.unreachable.set()
        with run.lock:
            self.pipes.give_back(run.job.pipe)
        self._end(session, run, reason or "broken off")
        run.done.set()

    def _end(self, session: GpuSession, run: Run, reason: str) -> None:
        """Close the stream of a run that is over; a live session keeps its place."""
        fail(run.opened, run.over_error())
        with self.registry.lock:
            session.run = None
            if session.closed:  # and its stream with it
                return
            session.over, session.last_seen = run, self.registry.clock()
            waiting = session.take_waiting()
            stream_closed = self.submit(session, self.close_stream, session, reason)
        if waiting is not None:
            fail(waiting.result, run.over_error())
        stream_closed.result()

    # From here on all runs on the session's thread.

    def _open_first(self, session: GpuSession, run: Run) -> None:
        """Open the stream of a run that has begun, and process the frame that waited for it."""
        with delivering(run.opened):
            run.opened.set_result(self.open_stream(session))
        if session.stream is not None:
            self.step(session)

    def new_stream(self, session: GpuSession) -> Any:
        """Open a stream in the run's process; the first one of a run warms up from the recent frames."""
        run, recent = session.run, []
        if run is None:
            raise GpuSessionOver
        if not run.opened.done():
            with self.registry.lock:
                waiting = session.waiting and session.waiting.frame
                recent = [frame for frame in session.recent if frame is not waiting][-WARMUP_FRAMES:]
        return RemoteStream(run, session.settings, recent)

    def reopen_stream(self, session: GpuSession, settings: StreamSettings) -> str:
        """Open a stream in place of another one in the same run."""
        self.close_stream(session, "replaced")
        session.settings = settings
        return self.open_stream(session)

    def free(self, session: GpuSession) -> None:
        """As `Engine.free`, and wait until the GPU is given back."""
        run = session.run  # None once `_end` has seen to this session
        try:
            self.close_stream(session)
        finally:
            if run is not None and run.ends is not None:
                run.done.wait()
            super().free(session)
