"""What runs where the GPU is, in a process forked for it: the stream of one visit or one clip.

Everything here crosses between processes by pickle, so it is plain: frames and wishes come through a `Slot`,
what is yielded goes back.
"""

from __future__ import annotations

import json
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..errors import GONE, NonFiniteError, StreamClosed, StreamOutOfMemory
from ..streaming.settings import StreamSettings

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline
    from ..streaming.stream import Stream
    from .channel import Slot

FRAME_HEADER = struct.Struct("=II")  # height, width; the pixels follow
JPEG_QUALITY = 92
SILENCE_SECONDS = 10.0  # without a letter: whoever it was has gone, and the GPU is given back
BEAT_SECONDS = 0.25  # something is yielded at least this often, because a generator ends only where it yields
LOOK_SECONDS = 0.001  # how often an empty mailbox is looked into
ERRORS = (
    StreamOutOfMemory,
    NonFiniteError,
    ValueError,
    OSError,
    RuntimeError,
)  # of a stream
FATAL = (StreamOutOfMemory, NonFiniteError)  # and end it


@dataclass(frozen=True)
class Run:
    """What a run is told at its start."""

    slot: int
    owner: int
    seconds: float
    is_clip: bool = False  # then no picture may be lossy, and whoever waits is not gone
    recent: list[np.ndarray] = field(default_factory=list)  # frames to warm up from
    frames_before: int = 0  # numbers of letters of earlier runs
    wishes_before: int = 0


@dataclass(frozen=True)
class Beat:
    """Still there; the first one says that the run has begun."""


@dataclass(frozen=True)
class Failure:
    """An exception as it goes between processes."""

    kind: str
    words: str

    @property
    def ends_stream(self) -> bool:
        return self.kind in {error.__name__ for error in FATAL}


@dataclass(frozen=True)
class Done:
    """The answers to one letter of wishes, in order."""

    results: list[Any]


@dataclass(frozen=True)
class Pictures:
    """What the frame of this number gave: pictures, and the numbers of the frames that they show.

    A picture is a JPEG, for a clip uint8 [height, width, 3].
    """

    number: int
    pictures: list[bytes] | list[np.ndarray] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    frames_in: int = 0
    warm: bool = False
    failure: Failure | None = None


Event = Beat | Done | Pictures


class Session:
    """A stream and the numbers of the frames inside it."""

    def __init__(self, pipe: Live2DiffPipeline, run: Run) -> None:
        self._pipe, self._run = pipe, run
        self.stream: Stream | None = None
        self._inside: deque[int] = deque()

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()
        self.stream = None

    def open(self, **settings: Any) -> str:
        """Begin anew; the first time, warm up from the frames of the visit before."""
        recent = self._run.recent if self.stream is None else []
        self.close()
        self._inside.clear()
        self.stream = self._pipe.stream(StreamSettings(**settings))
        for frame in recent:
            self._inside.append(0)
            for _ in self.stream.push(frame):
                self._inside.popleft()
        return self.stream.ignored_words

    def update(self, settings: dict[str, Any], blend: int) -> str:
        stream = self._alive()
        stream.update(stream.settings.updated_live(StreamSettings(**settings)), blend=blend)
        return self.stream.ignored_words

    def restart(self) -> None:
        self._alive().restart()

    def flush(self) -> list[np.ndarray]:
        return self._alive().flush()

    def _alive(self) -> Stream:
        if self.stream is None:
            raise StreamClosed(GONE)
        return self.stream

    def answer(self, letter: bytes) -> Done:
        """Do what a letter of wishes asks for, each in turn; one that fails costs only itself, as a rule."""
        wishes = {"open": self.open, "update": self.update, "restart": self.restart, "flush": self.flush}
        results: list[Any] = []
        for name, settings in json.loads(letter):
            try:
                results.append(wishes[name](**settings))
            except (ValueError, OSError, RuntimeError) as error:
                results.append(self.failed(error))
        return Done(results)

    def push(self, number: int, letter: bytes) -> Pictures:
        """One frame through the stream."""
        height, width = FRAME_HEADER.unpack_from(letter)
        frame = np.frombuffer(letter, np.uint8, offset=FRAME_HEADER.size).reshape(height, width, 3)
        try:
            finished = self.stream.push(frame)
        except (ValueError, RuntimeError) as error:
            return Pictures(number, failure=self.failed(error))
        self._inside.append(number)
        shown = [self._inside.popleft() for _ in finished]
        pictures = finished if self._run.is_clip else [encoded(picture) for picture in finished]
        return Pictures(number, pictures, shown, self.stream.frames_in, self.stream.warm)

    def failed(self, error: Exception) -> Failure:
        """What to say of it. A stream over which the model failed is closed."""
        failure = failure_of(error)
        if failure.ends_stream:
            self.close()
        return failure


def encoded(picture: np.ndarray) -> bytes:
    """A uint8 RGB picture as a JPEG."""
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def failure_of(error: Exception) -> Failure:
    from torch import OutOfMemoryError  # here it is there; where this module is imported, maybe not

    if isinstance(error, OutOfMemoryError):
        error = StreamOutOfMemory()
    kind = next(kind for kind in ERRORS if isinstance(error, kind))
    return Failure(kind.__name__, str(error))


def serve(pipe: Live2DiffPipeline, slot: Slot, run: Run) -> Iterator[Event]:
    """One run: until its time is over, the slot is somebody else's, or nothing comes any more.

    The stream is closed when this generator ends, however it ends.
    """
    session = Session(pipe, run)
    frames, wishes = run.frames_before, run.wishes_before
    began = heard = told = time.monotonic()
    try:
        yield Beat()
        while (now := time.monotonic()) - began < run.seconds and slot.owner == run.owner:
            event: Event | None = None
            if letter := slot.wishes.read(run.owner, wishes):
                wishes = letter[0]
                event = session.answer(letter[1])
            elif session.stream is not None and (letter := slot.frames.read(run.owner, frames)):
                frames = letter[0]
                slot.note_taken(run.owner, frames)
                event = session.push(*letter)
            elif now - heard > SILENCE_SECONDS and not run.is_clip:
                return
            elif now - told > BEAT_SECONDS:
                event = Beat()
            if event is None:
                time.sleep(LOOK_SECONDS)
                continue
            told = time.monotonic()
            heard = heard if isinstance(event, Beat) else told
            yield event
    finally:
        session.close()
