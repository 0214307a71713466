"""What the main process knows of a visitor whose stream is in another process: everything but the stream."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ..config import WARMUP_FRAMES
from ..errors import EngineBusy, GpuSessionOver
from ..serving.sessions import FrameResult, Visitor
from ..streaming.settings import StreamSettings
from .channel import LARGEST_FRAME, LARGEST_WISHES, Slot
from .worker import ERRORS, FRAME_HEADER, Done, Event, Failure, Pictures, Run

WISHES_AT_ONCE = 16
ERRORS_BY_NAME = {error.__name__: error for error in ERRORS}


@dataclass
class Wish:
    """A call of the stream that the other process is to make, and where its result goes."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    result: Future = field(default_factory=Future)


@dataclass(frozen=True)
class Sent:
    tag: Any
    arrived: float
    shape: tuple[int, int]


@dataclass(eq=False, kw_only=True)
class Guest(Visitor):
    """One visitor, or one clip, with a slot. Its methods may be called from any thread.

    Attributes:
        run: the visit that is under way.
        stop: asks it to end.
        over: a visit was there and has ended, and the next has not been asked for.
        ends: when its time is over, once it has begun.
    """

    slot: Slot
    owner: int
    settings: StreamSettings
    note_shown: Callable[[float], None]  # told how long a picture took
    note_dropped: Callable[[], None]
    run: Future | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    over: bool = False
    ends: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=WARMUP_FRAMES + 1))
    _frames_before: int = 0  # the number of the last frame of earlier visits
    _counts: list[int] | None = None  # frames in and out, while there is a stream
    _sent: dict[int, Sent] = field(default_factory=dict)  # by number, until their pictures come
    _answers: deque[tuple[int, Future]] = field(default_factory=deque)  # and the number each waits for
    _wishes: list[Wish] = field(default_factory=list)
    _posted: list[Wish] = field(default_factory=list)  # those in the mailbox

    def is_busy(self) -> bool:
        return self.run is not None and self.ends is None  # waits for a GPU

    def begin(
        self, slot: int, seconds: float, submit: Callable[[Run], Future]
    ) -> tuple[Future, Future[str]] | None:
        """Start a run: its future, and that of the stream's opening. None if one is under way."""
        with self._lock:
            if self.run is not None:
                return None
            self.stop = threading.Event()
            self.over, self.ends, self.reason = False, None, "closed"
            recent = [] if self.is_clip else list(self._recent)
            if recent and self.slot.frames.newest > self._frames_before:
                recent.pop()  # it is in the mailbox
            recent = recent[-WARMUP_FRAMES:]
            run = Run(
                slot, self.owner, seconds, self.is_clip, recent, self._frames_before, self.slot.wishes.newest
            )
            opening = Wish("open", self.settings.model_dump())
            self._wishes.insert(0, opening)
            self._post()
            self.run = submit(run)  # which cannot end before the lock is let go
        return self.run, opening.result

    def end(self, reason: str) -> None:
        """The run is over, and why."""
        self._tell_closed(reason)
        with self._lock:
            self.run = self.ends = None
            self.over = True
            self.last_seen = time.monotonic()
            if not self.closed:
                self._frames_before = self.slot.frames.newest
            waiting = self._give_up()
        for future in waiting:
            settle(future, GpuSessionOver())

    def reopen(self, settings: StreamSettings) -> Future[str] | None:
        """Other settings from the beginning: in a visit a new stream, else what the next one begins with."""
        with self._lock:
            self.settings, self.over, self.last_seen = settings, False, time.monotonic()
            return None if self.run is None else self._ask(Wish("open", settings.model_dump()))

    def ask(self, name: str, **settings: Any) -> Future | None:
        """Have the stream do it, in turn. None if there is no visit: then an update is for the next.

        Raises:
            ValueError: too long.
            EngineBusy: too many at once.
            StreamClosed: closed.
        """
        with self._lock:
            if self.closed:
                raise self.gone()
            if self.run is not None:
                return self._ask(Wish(name, settings))
            if name == "update":
                self.settings = StreamSettings(**settings["settings"])
            return None

    def send(self, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        """Put a frame into the mailbox. One still waiting there is dropped: its answer is then this one's.

        Raises:
            ValueError: not a frame.
            StreamClosed: closed, or the visit is over.
        """
        letter, now = fitted(frame), time.monotonic()
        with self._lock:
            if self.closed:
                raise self.gone()
            if self.over:
                raise GpuSessionOver
            taken = self.slot.taken(self.owner)
            header = FRAME_HEADER.pack(*letter.shape[:2])
            number = self.slot.frames.write(self.owner, header, letter.reshape(-1).data)
            self.last_seen = now
            self._recent.append(letter)
            self._sent[number] = Sent(tag, now, frame.shape[:2])
            answer: Future[FrameResult] = Future()
            if self._answers and self._answers[-1][0] > taken:  # the frame before was dropped for this one
                dropped, former = self._answers.pop()
                self._sent.pop(dropped, None)
                self.note_dropped()
                answer = answer if former.cancelled() else former
            self._answers.append((number, answer))
            return answer

    def take(self, event: Event) -> None:
        """What came from the other process, to those who wait for it."""
        if isinstance(event, Pictures):
            self._show(event)
        elif isinstance(event, Done):
            self._fulfil(event)

    def fail(self, error: Exception) -> None:
        """Everybody who waits gets this exception."""
        with self._lock:
            waiting = self._give_up()
        for future in waiting:
            settle(future, error)

    def retire(self) -> bool:
        """Keep nothing of this visitor; a run that still goes on finds that the slot is not its own any more.
        False if that was done before."""
        with self._lock:
            if self.slot.owner != self.owner:
                return False
            self.closed = True
            self.stop.set()
            self.slot.hand_over(0)
            self._recent.clear()
            waiting = self._give_up()
        for future in waiting:
            settle(future, self.gone())
        return True

    # The next three are for who holds the lock.

    def _give_up(self) -> list[Future]:
        waiting = [future for _, future in self._answers]
        waiting += [wish.result for wish in self._posted + self._wishes]
        self._answers.clear()
        self._sent.clear()
        self._posted, self._wishes = [], []
        return waiting

    def _ask(self, wish: Wish) -> Future:
        """What still waits takes the newer wish in."""
        if len(json.dumps(wish.settings)) > LARGEST_WISHES // WISHES_AT_ONCE:
            raise ValueError("The settings are too long.")
        waiting = self._wishes[-1] if self._wishes else None
        if waiting and waiting.name == wish.name and not waiting.result.cancelled():
            waiting.settings = (waiting.settings if wish.name == "update" else {}) | wish.settings
            return waiting.result
        if len(self._wishes) >= WISHES_AT_ONCE:
            raise EngineBusy("Too many changes at once. Try again in a moment.")
        self._wishes.append(wish)
        self._post()
        return wish.result

    def _post(self) -> None:
        if self._wishes and not self._posted:
            self._posted, self._wishes = self._wishes, []
            calls = [(wish.name, wish.settings) for wish in self._posted]
            self.slot.wishes.write(self.owner, json.dumps(calls).encode())

    def _show(self, event: Pictures) -> None:
        pictures, jpeg = event.pictures, None
        if pictures and not self.is_clip:
            pictures, jpeg = [decoded(data) for data in event.pictures], event.pictures[-1]
        now = time.monotonic()
        with self._lock:
            shown = [self._sent.pop(number, None) for number in event.shown]
            if event.failure:
                self._sent.pop(event.number, None)
            waiting = []
            while self._answers and self._answers[0][0] <= event.number:
                waiting.append(self._answers.popleft()[1])
        self._count(not event.failure, len(pictures))
        last = shown[-1] if shown else None
        if last is not None:
            self.note_shown(now - last.arrived)
        frames = [
            of_shape(picture, sent.shape if sent else None)
            for picture, sent in zip(pictures, shown, strict=True)
        ]
        answer = FrameResult(frames, last and last.tag, event.frames_in, event.warm, jpeg)
        for future in waiting:
            settle(future, outcome(event.failure) if event.failure else answer)
        if event.failure and event.failure.ends_stream:
            self._break_off(event.failure)

    def _fulfil(self, event: Done) -> None:
        with self._lock:
            done, self._posted = self._posted, []
            for wish, result in zip(done, event.results, strict=True):
                if wish.name == "update" and not isinstance(result, Failure):
                    self.settings = StreamSettings(**wish.settings["settings"])
                elif wish.name == "flush" and not isinstance(result, Failure):
                    shapes = [sent.shape for sent in self._sent.values()]
                    result[:] = [of_shape(*pair) for pair in zip(result, shapes, strict=True)]
            self._post()
        for wish, result in zip(done, event.results, strict=True):
            failure = result if isinstance(result, Failure) else None
            if wish.name == "open" and not failure:
                self._tell_closed("replaced")
                self._counts = [0, 0]
                self.tell_opened(self.settings)
            elif wish.name == "flush" and not failure:
                self._count(0, len(result))
            settle(wish.result, outcome(result))
            if failure and (failure.ends_stream or wish.name == "open"):
                self._break_off(failure)

    def _break_off(self, failure: Failure) -> None:
        """There is no stream any more for the frames that wait."""
        self.reason = failure.kind
        self.stop.set()
        self.fail(outcome(failure))

    def _count(self, taken: int, given: int) -> None:
        if self._counts is not None:
            self._counts[0] += taken
            self._counts[1] += given

    def _tell_closed(self, reason: str) -> None:
        if self._counts is not None:
            self.tell_closed(reason, *self._counts)
        self._counts = None


def settle(future: Future, result: Any) -> None:
    """A result or an exception into a future that somebody may have cancelled."""
    if future.done() or not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def outcome(result: Any) -> Any:
    """What came from the other process; for a `Failure` the exception that it stands for."""
    return ERRORS_BY_NAME[result.kind](result.words) if isinstance(result, Failure) else result


def fitted(frame: np.ndarray) -> np.ndarray:
    """The frame, smaller if need be to go through the mailbox; the model works on fewer pixels still.

    Raises:
        ValueError: not uint8 [height, width, 3] with pixels.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(
            f"A frame must be a uint8 array [height, width, 3]; this is {frame.dtype} {list(frame.shape)}."
        )
    room = LARGEST_FRAME - FRAME_HEADER.size
    if frame.nbytes > room:
        scale = (room / frame.nbytes) ** 0.5
        height, width = (max(1, int(side * scale)) for side in frame.shape[:2])
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(frame)


def of_shape(picture: np.ndarray, shape: tuple[int, int] | None) -> np.ndarray:
    if shape is None or picture.shape[:2] == shape:
        return picture
    return cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_CUBIC)


def decoded(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
