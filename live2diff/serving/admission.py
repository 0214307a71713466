"""Queue viewers for an engine's places, with a time slice for each.

First come, first served. A viewer stays as long as nobody waits; otherwise the one admitted longest ago must
leave once the slice is used up, and may queue again. There is no background thread: every call updates the
line, and a waiting page calls about once a second.
"""

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

from ..errors import EngineBusy
from .sessions import EngineProtocol

RESERVED_SECONDS = 8.0  # how long a place is kept for a viewer who was admitted and has not opened a stream
SILENCE_SECONDS = 10.0  # a waiting viewer who does not call `join` for this long has left the line
HELD_SECONDS = 15.0  # how long a viewer whose connection was cut keeps the place or the position
NOTICE_SECONDS = 20.0  # how long a viewer stays at least after another one begins to wait


@dataclass(frozen=True)
class QueuePosition:
    """A viewer's position: 0 is admitted, 1 is next; `seconds` is the expected wait."""

    position: int
    seconds: float


@dataclass
class Admitted:
    """A viewer with a stream or with a place that is kept for one."""

    since: float  # when the slice began
    opened: float  # when admitted, or when a stream was last opened


@dataclass
class Queued:
    """A viewer who waits."""

    since: float
    seen: float


class WaitingLine:
    """The queue for the places of an engine, whose `admission` it becomes. Thread-safe.

    A viewer may stay for `slice_seconds` while others wait.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        slice_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slice_seconds = slice_seconds
        self._notice = min(NOTICE_SECONDS, slice_seconds)
        self._engine = engine
        self.clock = clock
        self._lock = threading.Lock()  # lock order: this one first, then the engine's
        now = clock()
        self._admitted = {key: Admitted(now, now) for key in engine.session_keys()}  # longest ago first
        self._queue: dict[str, Queued] = {}  # first come first
        self._held: dict[str, float] = {}  # until when the place or position of a cut connection is kept
        engine.admission, engine.count_waiting = self._admission, self.__len__

    def __len__(self) -> int:
        """Return how many viewers wait."""
        with self._lock:
            self._advance(self.clock())
            return len(self._queue)

    def join(self, key: str) -> QueuePosition:
        """Join the line, or stay in it, and return the position.

        At position 0 a place is kept for RESERVED_SECONDS: call `engine.open` at once. A waiting viewer who
        does not call this for SILENCE_SECONDS loses the position.
        """
        with self._lock:
            now = self.clock()
            self._advance(now)
            if self._held.pop(key, None) is not None and key in self._admitted:
                self._admitted[key].opened = now  # a new stream follows at the kept place
            if key not in self._admitted:
                self._queue.setdefault(key, Queued(now, now)).seen = now
                self._advance(now)
            if key in self._admitted:
                return QueuePosition(0, 0.0)
            position = list(self._queue).index(key)
            return QueuePosition(position + 1, self._expected_wait(now, position))

    def hold(self, key: str) -> None:
        """Close the stream; keep the place or the position until `join`, for at most HELD_SECONDS.

        The slice keeps running.
        """
        with self._lock:
            now = self.clock()
            self._held[key] = now + HELD_SECONDS
            self._engine.close(key)
            self._advance(now)

    def leave(self, key: str) -> None:
        """Give up the place or the position, and close the stream."""
        with self._lock:
            self._held.pop(key, None)
            self._queue.pop(key, None)
            if self._admitted.pop(key, None) is not None:
                self._engine.close(key)
            self._advance(self.clock())

    def time_left(self, key: str) -> float | None:
        """Return the seconds until a viewer must leave or the engine ends the stream; None for never."""
        with self._lock:
            now = self.clock()
            self._advance(now)
            ends = [max(0.0, deadline - now) for other, deadline in self._deadlines() if other == key]
        left = self._engine.time_left(key)
        return min(ends if left is None else [*ends, left], default=None)

    @contextmanager
    def _admission(self, key: str) -> Iterator[None]:
        """Lock the line while `engine.open` gives a session its place."""
        with self._lock:
            now = self.clock()
            self._advance(now)
            if key not in self._admitted:
                if self._queue or len(self._admitted) >= self._engine.capacity:
                    raise EngineBusy(f"All {self._engine.capacity} places are taken. Wait in line for one.")
                self._admitted[key] = Admitted(now, now)
            self._admitted[key].opened = now
            yield

    def _advance(self, now: float) -> None:
        """Update the line: remove silent viewers, admit the next ones, end slices that are due."""
        self._held = {key: until for key, until in self._held.items() if now <= until}
        for key, queued in list(self._queue.items()):
            if now - queued.seen > SILENCE_SECONDS and key not in self._held:
                del self._queue[key]
        if self._queue and len(self._admitted) >= self._engine.capacity:
            self._engine.make_room()
        streams = self._engine.session_keys()
        if len(streams) < len(self._admitted):  # every stream belongs to an admitted viewer
            lost = [key for key in self._admitted if key not in streams]
            for key in reversed(lost[: max(0, len(self._admitted) - self._engine.capacity)]):
                del self._admitted[key]  # the engine has lost room: they are first in line
                self._queue = {key: Queued(now, now), **self._queue}
            for key in self._admitted.keys() - streams - self._held.keys():
                if now - self._admitted[key].opened > RESERVED_SECONDS:
                    del self._admitted[key]
        self._admit_next(now)
        for key, deadline in self._deadlines():
            if deadline <= now:
                del self._admitted[key]
                self._engine.close(key)
        self._admit_next(now)

    def _admit_next(self, now: float) -> None:
        while self._queue and len(self._admitted) < self._engine.capacity:
            key = next(iter(self._queue))
            del self._queue[key]
            self._admitted[key] = Admitted(now, now)

    def _deadlines(self) -> list[tuple[str, float]]:
        """Return who must leave and when: the one admitted longest ago for the first in line, and so on."""
        return [
            (key, max(admitted.since + self.slice_seconds, queued.since + self._notice))
            for (key, admitted), queued in zip(self._admitted.items(), self._queue.values(), strict=False)
        ]

    def _expected_wait(self, now: float, position: int) -> float:
        """Return the seconds that the viewer at a position, from 0, waits if everybody uses up the slice."""
        # Only the first `position + 1` slices to end matter. While no worker is ready there is no place at
        # all: one is expected now.
        first = islice(self._admitted.values(), position + 1)
        ends = [admitted.since + self.slice_seconds for admitted in first] or [now]
        heapq.heapify(ends)
        start = now
        for queued in islice(self._queue.values(), position + 1):
            start = max(heapq.heappop(ends), queued.since + self._notice, now)
            heapq.heappush(ends, start + self.slice_seconds)
        return start - now
