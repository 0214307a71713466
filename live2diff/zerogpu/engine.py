"""ZeroGPU: an engine whose GPU is lent by the `spaces` package, for one visit or one clip at a time.

There the main process has no GPU. A call of a function decorated with `spaces.GPU` runs in a process forked
for it, for a time that was asked for, on behalf of whoever clicked. So a visit is one such call: a generator
in the other process (`borrowed.py`) holds the stream, reads the newest camera frame from a mailbox made
before the fork (`mailbox.py`), and yields encoded pictures; here (`guest.py`) they answer `push`. It ends
when its time is over, when the visitor leaves, and when no frame comes; the last frames are kept here, and
the next visit warms up from them. A clip is the same with every frame waited for.

Off a Space the same code runs without the fork, in a thread.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import closing, contextmanager
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cli import add_model_options, load_model, operator_options
from ..errors import EngineBusy, GpuSessionOver, ServerStopping
from ..serving.event_log import log_id
from ..serving.sessions import ClipStream, FrameResult, SessionManager
from ..streaming.settings import BLEND_FRAMES, StreamSettings
from .channel import make_slots
from .remote_stream import Guest
from .worker import BEAT_SECONDS, Event, Run, serve

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

VISIT_SECONDS = 60.0  # of a live visit; what is asked for counts against the visitor's quota
START_SECONDS = 15.0  # for the fork and the weights' way to the GPU, asked for on top
CLIP_SECONDS = 60.0  # for a clip of unknown length
SECONDS_PER_FRAME = 0.1  # of a clip, generously
SHORTEST_CLIP = 10.0  # seconds that are asked for at least
TELL_SECONDS = 0.5  # how often a visit tells the time left
CLIPS_AT_ONCE = 2

Task = Callable[[Run], Iterator[Event]]
Lender = Callable[[Task, Callable[[Run], int]], Task]


def on_zero_gpu() -> bool:
    """Whether this is a Space with ZeroGPU, as the `spaces` package sees it."""
    try:
        from spaces.config import Config
    except ImportError:  # it is there on Spaces only
        return False
    return Config.zero_gpu


def seconds_of(run: Run) -> int:
    """How long the GPU is asked for."""
    return round(run.seconds + START_SECONDS)


def lend(task: Task, seconds: Callable[[Run], int]) -> Task:
    """The generator function `task` on a GPU lent for so many seconds; as it is where none is lent."""
    if not on_zero_gpu():
        return task
    import spaces

    return spaces.GPU(duration=seconds)(task)


def space_engine() -> ZeroGpuEngine | None:
    """On ZeroGPU, the engine with the weights where `spaces` wants them at import; elsewhere None."""
    if not on_zero_gpu():
        return None
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    options, _ = parser.parse_known_args(operator_options())
    # Eager: there is no GPU in this process, and each visit would capture its graphs anew.
    return ZeroGpuEngine(load_model(options, device="cuda", eager=True))


class ZeroGpuEngine(SessionManager[Guest]):
    """An `Engine` whose frames are worked on only during a visit; see there for what is not said here.

    `visit` must run in an event of the page: the GPU is lent to the visitor who clicked. Until it has begun,
    frames wait, and only the newest is kept. After it, `push` raises `GpuSessionOver`; `open`, or the next
    visit, goes on with the last 8 frames as warmup.
    """

    needs_gpu_session = True

    def __init__(
        self,
        pipe: Live2DiffPipeline,
        capacity: int = 8,
        idle_seconds: float = 300.0,
        visit_seconds: float = VISIT_SECONDS,
        lender: Lender = lend,
    ) -> None:
        self.visit_seconds = visit_seconds
        self._slots = make_slots(capacity + CLIPS_AT_ONCE)
        self._free = deque(self._slots)
        self._owners = count(1)
        self._runs: set[Future[None]] = set()  # on their way, those of visitors who have gone included
        super().__init__(pipe, capacity, idle_seconds)
        self._serve = lender(self._on_gpu, seconds_of)

    @property
    def device(self) -> str:
        return "ZeroGPU" if on_zero_gpu() else super().device

    def _on_gpu(self, run: Run) -> Iterator[Event]:
        yield from serve(self._pipe, self._slots[run.slot], run)

    def open(self, key: str, settings: StreamSettings) -> Future[str]:
        """As `Engine.open`, at once where no visit is under way. Who has a stream keeps the place; in a visit
        it is begun anew, after one it is continued."""
        ignored = self._checked(settings)
        with self._lock:
            guest = self._visitors.get(key)
        if guest is not None:
            with self.admission(key):
                return guest.reopen(settings) or ignored
        guest = self._new_guest(key, settings)
        try:
            self._retire(self._give_place(key, guest))
        except EngineBusy:
            self._retire(guest)
            raise
        return ignored

    def push(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        """As `Engine.push`.

        Raises:
            GpuSessionOver: a visit has ended and the next one has not been asked for.
            ValueError: not a frame.
        """
        return self._guest(key).send(frame, tag)

    def update(self, key: str, settings: StreamSettings, blend: int = BLEND_FRAMES) -> Future[str]:
        guest = self._guest(key)
        settings = guest.settings.updated_live(settings)
        ignored = self._checked(settings)
        return guest.ask("update", settings=settings.model_dump(), blend=blend) or ignored

    def restart(self, key: str) -> Future[None]:
        return self._guest(key).ask("restart") or finished(None)

    def close(self, key: str) -> Future[None]:
        """Free the place at once and the stream as soon as the GPU is done with the frame at hand."""
        with self._lock:
            guest = self._take_out(key)
        run = guest and guest.run
        self._retire(guest)
        if run is None:
            return finished(None)
        done: Future[None] = Future()
        run.add_done_callback(lambda _: done.set_result(None))
        return done

    def time_left(self, key: str) -> float | None:
        """Seconds left of the visit, 0 after it, None before it."""
        with self._lock:
            guest = self._visitors.get(key)
        ends = guest and guest.ends
        if ends is None:
            return 0.0 if guest and guest.over else None
        return max(0.0, ends - time.monotonic())

    def gpu_session(self, key: str) -> Iterator[float | None]:
        """Borrow a GPU and work on the frames of `key`; yields the time left until it is over.

        Whoever closes this generator gives the GPU back. If a visit is under way already, nothing happens.

        Raises:
            StreamClosed: nobody has opened a stream by this key.
            Exception: what `spaces` raises, with words for the visitor: no GPU to be had, quota used up.
        """
        guest = self._guest(key)
        if guest.run is not None and guest.stop.is_set():  # on its way out
            wait_for([guest.run])
        begun = self._begin(guest, self.visit_seconds)
        if begun is None:
            return
        run, stop = begun[0], guest.stop
        try:
            while not run.done():
                wait_for([run], timeout=TELL_SECONDS)
                yield self.time_left(key)
            run.result()
        finally:
            stop.set()

    @contextmanager
    def clip(self, key: str, settings: StreamSettings, frames: int | None = None) -> Iterator[ClipStream]:
        """As `Engine.clip`, on a GPU that is asked for by the number of frames; in an event of the page.

        Raises:
            GpuSessionOver: the time asked for was not enough.
            Exception: as `visit`.
        """
        if self._ending:
            raise ServerStopping
        self.close(key)
        guest = self._new_guest(key, settings, is_clip=True)
        with self._lock:
            self._visitors[key] = guest
        try:
            seconds = CLIP_SECONDS if frames is None else max(SHORTEST_CLIP, frames * SECONDS_PER_FRAME)
            run, opened = self._begin(guest, seconds)
            yield ClipStream(result_of(opened, run), ClipCalls(guest, run))
        finally:
            self._forget(key, guest)
            self._retire(guest)

    def shutdown(self) -> None:
        super().shutdown()
        wait_for(list(self._runs))

    def _guest(self, key: str) -> Guest:
        with self._lock:
            return self._visitor(key)

    def _checked(self, settings: StreamSettings) -> Future[str]:
        """The words of the prompt that do not fit, known without a GPU; `ValueError` for a wrong style."""
        return finished(self._pipe.ignored_words(settings.style, settings.prompt))

    def _new_guest(self, key: str, settings: StreamSettings, is_clip: bool = False) -> Guest:
        with self._lock:
            if not self._free:
                raise EngineBusy("All places are taken. Try again in a minute.")
            slot, owner = self._free.popleft(), next(self._owners)
            slot.hand_over(owner)
        return Guest(
            is_clip=is_clip,
            name=log_id(key),
            slot=slot,
            owner=owner,
            settings=settings,
            note_shown=self._note_shown,
            note_dropped=self._note_dropped,
        )

    def _retire(self, guest: Guest | None) -> None:
        if guest is not None and guest.retire():
            with self._lock:
                self._free.append(guest.slot)

    def _begin(self, guest: Guest, seconds: float) -> tuple[Future[None], Future[str]] | None:
        """Ask for a GPU, in the context of the event, which knows the visitor."""
        context = copy_context()
        return guest.begin(
            self._slots.index(guest.slot),
            seconds,
            lambda run: self._noted(in_thread(partial(context.run, self._follow, guest, run))),
        )

    def _noted(self, run: Future[None]) -> Future[None]:
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        return run

    def _follow(self, guest: Guest, run: Run) -> None:
        """One run, from the asking for a GPU to its being given back."""
        stop, reason = guest.stop, "broken off"
        try:
            with closing(self._serve(run)) as events:
                for event in events:
                    guest.ends = guest.ends or time.monotonic() + run.seconds
                    if stop.is_set():
                        break
                    guest.take(event)
            in_time = time.monotonic() < (guest.ends or 0) - BEAT_SECONDS  # the run's own clock began earlier
            reason = guest.reason if stop.is_set() else "silent" if in_time else "time over"
        finally:
            guest.end(reason)


class ClipCalls:
    """`push` and `flush` of a clip, one frame ahead: while the caller encodes one picture, the GPU works on
    the next frame."""

    def __init__(self, guest: Guest, run: Future[None]) -> None:
        self._guest, self._run = guest, run
        self._newest: Future[FrameResult] | None = None

    def __call__(self, name: str, *frame: np.ndarray) -> list[np.ndarray]:
        frames = result_of(self._newest, self._run).frames if self._newest else []
        self._newest = self._guest.send(*frame) if name == "push" else None
        if name == "flush":
            frames = frames + result_of(self._guest.ask("flush"), self._run)
        return frames


def result_of(future: Future | None, run: Future[None]) -> Any:
    """What came of it; if the run ended first, what `spaces` says of that, if anything.

    Raises:
        GpuSessionOver: the run ended as it should, and too early.
    """
    try:
        if future is None:
            raise GpuSessionOver
        return future.result()
    except GpuSessionOver:
        run.result()
        raise


def in_thread(work: Callable[[], None]) -> Future[None]:
    """Do it in a thread of its own: a process forked from an executor's fails as it ends, joining itself."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # whoever waits will raise it
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="visit", daemon=True).start()
    return done


def finished(result: Any) -> Future:
    future: Future = Future()
    future.set_result(result)
    return future
