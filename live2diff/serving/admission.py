"""Who may come in: a waiting line before the engine's places, with a fair slice of time for each visitor.

First come, first served. Whoever is inside may stay as long as nobody waits; once somebody does, the one who
has been inside longest gives way when the slice is used up, and then waits like everybody else. Nothing runs
in the background: the line moves on whenever somebody asks, and whoever waits asks about once a second.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import EngineBusy

if TYPE_CHECKING:
    from .sessions import SessionManager

RESERVED_SECONDS = 8.0  # how long a place is kept for somebody who was let in and has not opened a stream
SILENCE_SECONDS = 10.0  # whoever waits and does not ask for this long has left the line
NOTICE_SECONDS = 20.0  # what a visitor keeps, slice or not, from when somebody begins to wait for the place


@dataclass(frozen=True)
class Place:
    """Where one stands: position 0 is inside, 1 is next; `seconds` is the expected wait."""

    position: int
    seconds: float


@dataclass
class Guest:
    """Somebody inside, with a stream or with a place that is kept for one."""

    since: float  # when the slice began
    asked: float  # when last let in, or when a stream was last asked for


@dataclass
class Waiter:
    since: float
    seen: float


class WaitingLine:
    """The line before `engine`, whose `open` is from now on for those alone whom the line has let in.

    Thread-safe. Times are seconds on `clock`.
    """

    def __init__(
        self,
        engine: SessionManager,
        slice_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slice_seconds = slice_seconds
        self._notice = min(NOTICE_SECONDS, slice_seconds)
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()  # taken before the engine's own, never after it
        now = clock()
        self._inside = {key: Guest(now, now) for key in engine.session_keys()}  # longest inside first
        self._waiting: dict[str, Waiter] = {}  # first come first
        engine.admission = self._admission

    def __len__(self) -> int:
        """How many wait."""
        with self._lock:
            self._move(self._clock())
            return len(self._waiting)

    def join(self, key: str) -> Place:
        """Wait, or go on waiting, and learn where one stands; for whoever is inside, position 0.

        At position 0 a place is kept for RESERVED_SECONDS: call `engine.open` at once. Whoever does not ask
        for SILENCE_SECONDS has left the line and begins again at its end.
        """
        with self._lock:
            now = self._clock()
            self._move(now)
            if key in self._inside:
                return Place(0, 0.0)
            self._waiting.setdefault(key, Waiter(now, now)).seen = now
            self._move(now)
            if key in self._inside:
                return Place(0, 0.0)
            position = list(self._waiting).index(key)
            return Place(position + 1, self._waits(now)[position])

    def leave(self, key: str) -> None:
        """Give up the place, inside or in the line; a stream is closed. Does no harm if there is none."""
        with self._lock:
            self._waiting.pop(key, None)
            if self._inside.pop(key, None) is not None:
                self._engine.close(key)
            self._move(self._clock())

    def time_left(self, key: str) -> float | None:
        """Seconds until this visitor must give way; None while nobody waits for the place, or outside.

        Where the engine itself gives only so much time, it may be that which ends first.
        """
        with self._lock:
            now = self._clock()
            self._move(now)
            ends = [deadline - now for guest, deadline in self._deadlines() if guest == key]
        borrowed = self._engine.time_left(key)
        return min((max(0.0, left) for left in (*ends, borrowed) if left is not None), default=None)

    @contextmanager
    def _admission(self, key: str) -> Iterator[None]:
        """What `engine.open` goes through: nobody else is let in before the stream is in its place."""
        with self._lock:
            now = self._clock()
            self._move(now)
            guest = self._inside.get(key)
            if guest is None:
                if self._waiting or len(self._inside) >= self._engine.capacity:
                    raise EngineBusy(f"All {self._engine.capacity} places are taken. Wait in line for one.")
                guest = self._inside[key] = Guest(now, now)
            guest.asked = now
            yield

    def _move(self, now: float) -> None:
        """Bring the line up to date: who has left, who must give way, who comes in."""
        for key in [key for key, waiter in self._waiting.items() if now - waiter.seen > SILENCE_SECONDS]:
            del self._waiting[key]
        if self._waiting and len(self._inside) >= self._engine.capacity:
            self._engine.make_room()
        streams = self._engine.session_keys()
        for key, guest in list(self._inside.items()):
            if key not in streams and now - guest.asked > RESERVED_SECONDS:
                del self._inside[key]
        self._let_in(now)
        for key, deadline in self._deadlines():
            if deadline <= now:
                del self._inside[key]
                self._engine.close(key)
        self._let_in(now)

    def _let_in(self, now: float) -> None:
        while self._waiting and len(self._inside) < self._engine.capacity:
            key = next(iter(self._waiting))
            del self._waiting[key]
            self._inside[key] = Guest(now, now)

    def _deadlines(self) -> list[tuple[str, float]]:
        """Who must give way, and when, in that order: the one longest inside for the first who waits, ..."""
        pairs = zip(self._inside.items(), self._waiting.values(), strict=False)
        return [
            (key, max(guest.since + self.slice_seconds, waiter.since + self._notice))
            for (key, guest), waiter in pairs
        ]

    def _waits(self, now: float) -> list[float]:
        """How long each who waits will wait if everybody uses up the slice, from the first to the last."""
        ends = [guest.since + self.slice_seconds for guest in self._inside.values()]
        heapq.heapify(ends)
        waits = []
        for waiter in self._waiting.values():
            start = max(heapq.heappop(ends), waiter.since + self._notice, now)
            heapq.heappush(ends, start + self.slice_seconds)
            waits.append(start - now)
        return waits
