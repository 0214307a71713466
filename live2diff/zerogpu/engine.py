"""Run streams on a GPU that the `spaces` package lends for one live session or clip at a time.

README.md says how a run works. Off a Space the same code runs without a fork, in a thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config import WARMUP_FRAMES
from ..errors import GpuSessionOver, StreamClosed
from ..serving.engine import Engine
from ..serving.event_log import log
from ..serving.futures import delivering, fail, follow, resolved
from ..serving.sessions import FrameResult, Session
from ..streaming.images import check_frame
from ..streaming.settings import BLEND_FRAMES, StreamSettings
from .channel import POLL_SECONDS, PipePool
from .fork import fork_one_at_a_time
from .quota import CLIP_FACTOR, FRAME_SECONDS, GPU_SECONDS, SHORTEST_RUN, seconds_left, seconds_of
from .remote_stream import RemoteStream, Run
from .worker import TIME_OVER, Job, serve

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

CLIP_MARGIN = 2.0  # seconds before a run ends from which on a clip's next frame goes to another run
REPORT_SECONDS = 0.5  # how often a live session reports the time left
CLIPS_AT_ONCE = 2

Task = Callable[[Job], Generator[str]]


def on_zero_gpu() -> bool:
    """Return whether this is a Space with ZeroGPU, as the `spaces` package sees it."""
    try:
        from spaces.config import Config
    except ImportError:  # installed on Spaces only
        return False
    return Config.zero_gpu


def wrap_gpu(task: Task, seconds: Callable[[Job], int]) -> Task:
    """Wrap a generator function to run on a lent GPU; off ZeroGPU return it unchanged."""
    if not on_zero_gpu():
        return task
    import spaces

    return spaces.GPU(duration=seconds)(task)


@dataclass(eq=False, kw_only=True)
class GpuSession(Session):
    """A session whose stream exists only while a run holds a GPU."""

    # Makes the blocking calls of the stream; ends when the session is garbage-collected.
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))
    # The latest frames, from which the next run warms up.
    recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES + 1))
    run: Run | None = None  # the present one, from the request of the GPU on
    over: Run | None = None  # the last one, until the stream is opened again or the next run is requested
    # Of the event that requests GPUs: `spaces` identifies the viewer by it.
    context: Context = field(default_factory=copy_context)

    def has_gpu(self) -> bool:
        """Return whether a run has begun."""
        return self.run is not None and self.run.ends is not None

    def is_busy(self) -> bool:
        """Return whether the session waits for a requested GPU, or for its stream."""
        return self.run is not None and super().is_busy()


class ZeroGpuEngine(Engine):
    """An `Engine` that processes the frames of a live session only while `gpu_session` runs for it.

    Until a GPU session begins, only the newest frame is kept. The session is a sequence of runs of
    `gpu_seconds` while the viewer stays, each warmed up from the last 8 frames. Afterwards `push` raises
    `GpuSessionOver`, until `open` or the next `gpu_session`, from which the stream goes on likewise.
    """

    needs_gpu_session, owns_device, session_kind = True, False, GpuSession

    def __init__(
        self,
        pipe: Live2DiffPipeline,
        capacity: int = 8,
        idle_seconds: float = 300.0,
        gpu_seconds: float = GPU_SECONDS,
        wrap: Callable[[Task, Callable[[Job], int]], Task] = wrap_gpu,
        clock: Callable[[], float] = time.monotonic,
        graphs: bool = False,
    ) -> None:
        fork_one_at_a_time()
        self.gpu_seconds, self.graphs = gpu_seconds, graphs
        self.frame_times = deque([FRAME_SECONDS], maxlen=64)  # seconds, of warm streams
        # Twice as many as can be in use: a run may outlive its session while `spaces` ends it.
        self.pipes = PipePool(2 * (capacity + CLIPS_AT_ONCE))
        super().__init__(pipe, capacity, idle_seconds, together=False, clock=clock)
        self._serve = wrap(self._on_gpu, seconds_of)

    @property
    def device(self) -> str:
        """Return the name of the device."""
        return "ZeroGPU" if on_zero_gpu() else super().device

    def _on_gpu(self, job: Job) -> Generator[str]:
        end, clock = self.pipes.ends[job.pipe][1], self.registry.clock
        with closing(serve(self.pipe, end, job, clock, os._exit if on_zero_gpu() else None)) as heartbeats:
            yield next(heartbeats)
            if self.graphs and self.pipe.unet.device.type == "cuda":
                from ..runtime.trial import accelerate, short_trial

                self.graphs = False  # this process keeps them for later runs
                # A short trial, as it counts against the viewer's quota.
                accelerate(self.pipe, report=log.warning, trial=short_trial(self.pipe))
            yield from heartbeats

    def open(self, key: str, settings: StreamSettings) -> Future[str]:
        """Open as `Engine.open`, at once outside a GPU session; a session of the key keeps place and GPU."""
        ignored_words = self.pipe.ignored_words(settings)
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
        """Push as `Engine.push`.

        Raises:
            StreamClosed: a GPU session has ended or was refused, and the next one has not been requested.
            ValueError: not a frame.
        """
        check_frame(frame)
        with self.registry.lock:
            session = self._session(key)
            if session.over is not None:
                raise session.over.over_error()
            session.recent.append(frame)
            return super().push(key, frame, tag)

    def update(self, key: str, settings: StreamSettings, blend: int = BLEND_FRAMES) -> Future[str]:
        """Update as `Engine.update`; outside a GPU session, at once and for the next one."""
        with self.registry.lock:
            session = self._session(key)
            if session.has_gpu():
                return super().update(key, settings, blend)
            ignored_words = self.pipe.ignored_words(settings)
            session.settings = session.settings.updated_live(settings)
        return resolved(ignored_words)

    def restart(self, key: str) -> Future[str]:
        """Restart as `Engine.restart`; outside a GPU session do nothing."""
        return super().restart(key) if self._session(key).has_gpu() else resolved("")

    def time_left(self, key: str) -> float | None:
        """Return the seconds left of the GPU session, 0 after it, None before it."""
        with self.registry.lock:
            session = self._session(key) if key in self.session_keys() else None
            if session is not None and session.run is not None and session.run.ends is not None:
                return max(0.0, session.run.ends - self.registry.clock())
            return 0.0 if session is not None and session.over else None

    def gpu_session(self, key: str) -> Iterator[float | None]:
        """Process the frames of a session on a lent GPU, within an event of the page, until closed.

        If a run is active already, return. When the time of a run is over, request another one, a shorter one
        if less is left of the viewer's quota.

        Yields:
            The seconds left of the present run, every REPORT_SECONDS; None before it begins.

        Raises:
            StreamClosed: there is no session of this key.
            Exception: of `spaces`, with a message for the viewer: no GPU is free, the quota is used up.
        """
        session = self._session(key)
        former = session.run
        if former is not None and former.stop.is_set():  # it is ending
            former.done.wait()
        session.context = copy_context()
        seconds: float | None = self.gpu_seconds
        while seconds is not None:
            with self.registry.lock:
                if session.run is not None or session.closed:
                    return
                run = self._begin(session, seconds)
            try:
                while not run.done.wait(REPORT_SECONDS):
                    yield self.time_left(key)
            finally:
                run.stop.set()
            seconds = run.next_seconds
            if seconds is None and run.error is not None:
                raise run.error

    def _session(self, key: str) -> GpuSession:
        session = self.registry.get(key)
        assert isinstance(session, GpuSession)
        return session

    def submit(self, session: GpuSession, function: Callable[..., Any], *arguments: Any) -> Future:
        """Run a function on the session's own thread."""
        return session.thread.submit(function, *arguments)

    def schedule(self, session: GpuSession) -> None:
        """Have the waiting frame processed, within a GPU session."""
        if session.has_gpu():
            self.submit(session, self.step, session)

    def open_clip(self, session: GpuSession, frames: int | None) -> Future[str]:
        """Open the stream of a clip on a GPU, requested for the time that its frames take by measurement."""
        needed = self.gpu_seconds if frames is None else frames * median(self.frame_times) * CLIP_FACTOR
        return self._begin(session, min(self.gpu_seconds, max(SHORTEST_RUN, needed + CLIP_MARGIN))).opened

    def remove(self, session: GpuSession, reason: str, error: BaseException | None = None) -> bool:
        """Remove a session as `Engine.remove`, and end its run."""
        if isinstance(error, StreamClosed):  # its run has ended while the stream was opened
            return False
        is_first, run = super().remove(session, reason, error), session.run
        if is_first and run is not None:
            run.stop.set()
            fail(run.opened, error or session.closed_error())
        return is_first

    def _begin(self, session: GpuSession, seconds: float, continues: bool = False) -> Run:
        """Request a GPU in a thread of its own."""
        number, pipe = self.pipes.take()
        run = Run(Job(number, pipe, seconds, session.is_clip), self.pipes.ends[pipe][0], continues=continues)
        session.run, session.over = run, None
        # Not an executor's thread: a process forked from it fails at its end, when it joins itself.
        context, arguments = session.context.copy(), (self._follow, session, run)
        threading.Thread(target=context.run, args=arguments, name="run", daemon=True).start()
        return run

    def _follow(self, session: GpuSession, run: Run) -> None:
        """Follow a run from the request of a GPU until it is given back."""
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
                            if not run.continues:
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
            if session.run is not run:  # a clip has gone on with another one
                return
            session.run = None
            if session.closed:  # its stream is closed with it
                return
            session.last_seen, waiting = self.registry.clock(), None
            run.next_seconds = self._next_seconds(session, run, reason)
            if run.next_seconds is None:
                session.over, waiting = run, session.take_waiting()
            stream_closed = self.submit(session, self._close_after, session, reason)
        if waiting is not None:
            fail(waiting.result, run.over_error())
        if not session.is_clip:  # whose thread may wait for the end of this run
            stream_closed.result()

    def _next_seconds(self, session: GpuSession, run: Run, reason: str) -> float | None:
        """Return the seconds of the run after one that is over, None for no other run."""
        if session.is_clip or run.stop.is_set():  # the page has gone
            return None
        if run.error is None:
            return self.gpu_seconds if reason == TIME_OVER else None
        left = seconds_left(run.error)
        return left if left is not None and SHORTEST_RUN <= left < run.job.seconds else None

    # The methods below run on the session's thread.

    def _close_after(self, session: GpuSession, reason: str) -> None:
        """Close the stream of a run that is over, unless another run has replaced it."""
        if session.run is None:
            self.close_stream(session, reason)

    def _open_first(self, session: GpuSession, run: Run) -> None:
        """Open the stream of a run that has begun, and process the frame that waited for it."""
        with delivering(run.opened):
            run.opened.set_result(self.open_stream(session))
        if session.stream is not None:
            self.step(session)

    def step(self, session: Any) -> None:
        """Push as `Engine.step`; a frame that meets the end of a run waits for the next run."""
        with self.registry.lock:
            if session.stream is None and session.over is None and not session.closed:  # between two runs
                return
            queued = session.take_waiting()
        if queued is None:
            return
        with delivering(queued.result):
            try:
                self.finish(session, queued, self.call(session, "push", queued.frame))
            except GpuSessionOver:
                with self.registry.lock:
                    if session.closed or session.over is not None:
                        raise
                    if session.waiting is None:
                        session.waiting = replace(queued, result=Future())
                    follow(session.waiting.result, queued.result)

    def call(self, session: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """Call as `Engine.call`; a clip changes to another run before the time of its present one is over."""
        if name != "push":
            return super().call(session, name, *arguments, **options)
        frames, clock = [], self.registry.clock
        run, stream = session.run, session.stream
        if session.is_clip and run is not None and run.ends is not None and run.ends - clock() < CLIP_MARGIN:
            frames = super().call(session, "flush")
            self._change_runs(session, run)
            stream = session.stream
        is_warm, began = stream is not None and stream.warm, clock()
        frames += super().call(session, name, *arguments, **options)
        if is_warm:
            self.frame_times.append(clock() - began)
        if session.is_clip:
            session.recent.append(arguments[0])
        return frames

    def _change_runs(self, session: GpuSession, former: Run) -> None:
        """Give a clip's GPU back and wait for another; open the stream again from the last frames."""
        self.close_stream(session, TIME_OVER)
        with self.registry.lock:
            session.run = None  # so that `_end` leaves the session alone
        former.stop.set()
        former.done.wait()
        with self.registry.lock:
            if session.closed:
                raise session.closed_error()
            run = self._begin(session, self.gpu_seconds, continues=True)
        while run.ends is None and not run.done.wait(POLL_SECONDS):
            pass
        if run.ends is None:
            raise run.over_error()
        with delivering(run.opened):
            run.opened.set_result(self.open_stream(session))
        run.opened.result()

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
        """Free as `Engine.free`, and wait until the GPU is given back."""
        run = session.run  # None after `_end`
        try:
            self.close_stream(session)
        finally:
            if run is not None and run.ends is not None:
                run.done.wait()
            super().free(session)
