"""Call one worker from the front, and find out whether it is alive.

A worker is lost when Ray reports its death, or when it does not answer in time: Ray's own check of nodes
takes tens of seconds. A lost worker gets no calls until it has announced itself again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayTaskError

from ..serving.event_log import log
from ..serving.futures import fail
from ..serving.sessions import FinishedFrames
from .placement import WorkerState
from .worker import Announcement, NotAnnounced

NO_DEADLINE = float("inf")  # for downloads


class WorkerLost(RuntimeError):
    """A worker has died or does not answer; the message says which."""


class StartFailed(ChildProcessError):
    """The process of a worker ended before it was ready; Ray starts another one."""

    def __init__(self, error: Exception) -> None:
        words = (str(error).splitlines() or [type(error).__name__])[-1].strip()  # the last line
        super().__init__(
            f"The process of a worker ended while it started: {words.rstrip('.')}. "
            "Its log is in /tmp/ray/session_latest/logs, on the worker's machine."
        )


class WorkerDied(StartFailed):
    """The process of a worker ended before it was ready, and Ray has given the worker up."""


@dataclass(frozen=True)
class Deadlines:
    """For how many seconds a worker may be silent while it owes an answer."""

    frame: float = 2.0
    compiling: float = 10.0  # while a stream opens, warms up or changes, or its node is busy
    alone: float = 30.0  # while there is no other worker


class RemoteWorker:
    """A worker, seen from the front. Thread-safe.

    Attributes:
        announced: its announcement; None while it starts, or after it was lost.
        failure: why its last start failed.
        is_draining: whether its streams move to others; it gets no new ones.
        streams: the ids of the streams that it has or is about to get, clips included.
        clips: the ids of the clips, which need no slot.
        weights: the weights that its streams use, or the last one used.
        finished: the frames that it finished lately.
    """

    def __init__(
        self,
        key: str,
        actor: Any,
        deadlines: Deadlines,
        clock: Callable[[], float],
        on_change: Callable[[RemoteWorker, str], None],
    ) -> None:
        self.key, self.actor, self.deadlines, self.clock = key, actor, deadlines, clock
        self.announced: Announcement | None = None
        self.failure: Exception | None = None
        self.is_draining = False
        self.streams: set[str] = set()
        self.clips: set[str] = set()
        self.weights: str | None = None
        self.finished = FinishedFrames(clock)
        self._on_change = on_change  # called with "" after an announcement, or the reason of a loss
        self._lock = threading.RLock()
        self._calls: dict[Future, float] = {}  # without an answer yet, with their deadlines in seconds
        self._heard = clock()  # when the last answer came, or the first of the calls was made
        self._asked_at: float | None = None  # when an unanswered ping or announcement was requested

    def call(self, deadline: float, method: str, *arguments: Any) -> Future:
        """Call a method of the actor; the future has its result, its error, or `WorkerLost`."""
        future: Future = Future()
        with self._lock:
            if self.announced is None:
                fail(future, WorkerLost("it was lost"))
                return future
            if not any(deadline < NO_DEADLINE for deadline in self._calls.values()):
                self._heard = self.clock()
            self._calls[future] = deadline
        answer = getattr(self.actor, method).remote(*arguments).future()
        answer.add_done_callback(partial(self._take_answer, future))
        return future

    def _take_answer(self, future: Future, answer: Future) -> None:
        """Resolve the future of a call, on one of Ray's threads."""
        error = answer.exception()
        with self._lock:
            self._heard = self.clock()
            if self._calls.pop(future, None) is None:
                return  # it has failed with WorkerLost
        if error is None:
            result, failure = answer.result()
            if isinstance(failure, NotAnnounced):
                token, failure = failure.token, WorkerLost("it was restarted")
                self._check_token(token)
            future.set_result(result) if failure is None else future.set_exception(failure)
        elif isinstance(error, RayTaskError):  # a bug in the worker, or an answer without a pickle
            log.error("a call of a worker failed", exc_info=error)
            fail(future, RuntimeError(f"{type(error.cause).__name__}: {error.cause}"))
        else:
            fail(future, WorkerLost("it died"))
            self.lose("it died")

    def lose(self, reason: str) -> None:
        """Treat it as lost until it announces itself again; calls without an answer fail."""
        with self._lock:
            if self.announced is None:
                return
            self.announced = self._asked_at = None
            calls, self._calls = self._calls, {}
            self.streams.clear()
            self.clips.clear()
        for future in calls:
            fail(future, WorkerLost(reason))
        self._on_change(self, reason)

    def silence(self) -> tuple[float, float]:
        """Return for how many seconds it has owed an answer, and the limit."""
        with self._lock:
            now, limits = self.clock(), [each for each in self._calls.values() if each < NO_DEADLINE]
            silent = now - self._heard if limits else 0.0
            if self._asked_at is not None:
                silent = max(silent, now - self._asked_at)
            return silent, max(limits, default=self.deadlines.frame)

    def watch(self, least: float = 0.0) -> None:
        """Ask whether it is ready or alive; kill it after too long a silence, and Ray starts it again.

        It may always be silent for `least` seconds.
        """
        with self._lock:
            asked, announced = self._asked_at, self.announced
            if asked is None:
                self._asked_at = self.clock()
        if announced is None:
            if asked is None:
                self.actor.announce.remote().future().add_done_callback(self._take_announcement)
            return
        silent, limit = self.silence()
        if silent > max(limit, least):
            self.lose(f"no answer for {silent:.1f} s")
            return ray.kill(self.actor, no_restart=False)
        if asked is None:
            self.actor.ping.remote().future().add_done_callback(partial(self._take_ping, announced))

    def _take_ping(self, announced: Announcement, answer: Future) -> None:
        error = answer.exception()
        with self._lock:
            if self.announced is not announced:
                return
            self._asked_at = None
        if error is not None:
            return self.lose("it died")
        token, is_leaving = answer.result()
        self._check_token(token)
        with self._lock:
            if self.announced is not None:
                self.announced = replace(self.announced, is_leaving=is_leaving)

    def _check_token(self, token: str) -> None:
        """Treat it as lost if its process is not the one that announced itself."""
        if self.announced is not None and self.announced.token != token:
            self.lose("it was restarted")

    def _take_announcement(self, answer: Future) -> None:
        error = answer.exception()
        with self._lock:
            self._asked_at, former, self.failure = None, self.failure, None  # asked again by the next `watch`
            if isinstance(error, RayTaskError):
                self.failure = RuntimeError(f"{type(error.cause).__name__}: {error.cause}")
            elif isinstance(error, ActorDiedError):
                self.failure = WorkerDied(error)
            elif isinstance(error, Exception):
                self.failure = StartFailed(error)
            else:
                self.announced, self.failure = answer.result()
        if self.announced is not None:
            self._on_change(self, "")
        elif str(self.failure) != str(former):
            log.warning("worker %s cannot start: %s", self.key, " ".join(str(self.failure).split()))

    @property
    def is_dead(self) -> bool:
        """Whether Ray has given it up."""
        return isinstance(self.failure, WorkerDied)

    @property
    def is_leaving(self) -> bool:
        """Whether its node is about to be stopped."""
        return self.announced is not None and self.announced.is_leaving

    @property
    def process(self) -> int | None:
        """The id of its process on its node; None unless it is ready."""
        return self.announced.process if self.announced else None

    def give_back(self, stream: str) -> None:
        """Give back the place of a stream that is freed, or was never opened."""
        self.streams.discard(stream)
        self.clips.discard(stream)

    def state(self, for_clip: bool = False) -> WorkerState:
        """Return the state for placing a live stream or a clip."""
        slots = self.announced.slots + len(self.clips) + for_clip if self.announced else 0
        silent, limit = self.silence()
        suspect = self.announced is None or silent > limit / 2
        return WorkerState(self.key, slots, len(self.streams), self.weights, self.is_draining, suspect)

    def stats(self) -> dict[str, Any]:
        """Return streams, slots, whether it drains or is suspect, frames per second, delays in seconds."""
        state = self.state()
        figures = {name: getattr(state, name) for name in ("streams", "slots", "suspect", "draining")}
        return figures | self.finished.rates()
