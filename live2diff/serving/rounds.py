"""Run frames of several sessions as batches on a GPU; launch the next while the last are computed."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..streaming import steps
from .device_loss import watched
from .futures import delivering
from .sessions import QueuedFrame, Session

if TYPE_CHECKING:
    from ..streaming.cache_pool import CachePools
    from .engine import Engine

Members = list[tuple[Session, QueuedFrame]]
Round = list[tuple[Members, Future[steps.LaunchedBatch]]]  # the batches that were launched together
MOST_ROUNDS = 2  # on the device at once: one is computed, the next one is queued


class Rounds:
    """The rounds of an engine, whose live streams have their caches in `pools`.

    All of it runs on the engine's thread, except for waiting until images are computed.
    """

    def __init__(self, engine: Engine, pools: CachePools) -> None:
        self._engine, self.pools = engine, pools
        self._launched: deque[Round] = deque()
        self._completing = False
        self._put_off: list[Session] = []  # sessions whose frames wait until a round is complete
        self._waiting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    def launch(self, session: Session) -> None:
        """Launch the waiting frame of a session, and all others that can share its batches."""
        if len(self._launched) == MOST_ROUNDS:
            self._put_off.append(session)
            return
        registry, batches = self._engine.registry, {}  # by their pools
        with registry.lock:
            # A frame must not overtake a change that was requested before it.
            others = [s for s in registry.all() if s is not session and s.stream and not s.changes]
            taken = [(member, member.take_waiting()) for member in (session, *others)]
        for member, queued in taken:
            if queued is not None:
                with delivering(queued.result):
                    stream = self._engine.stream_of(member)
                    pending = stream.receive(queued.frame)
                    batches.setdefault(stream.pool or member, []).append((member, queued, pending))
        if not batches:
            return
        launched: Round = []
        for batch in batches.values():
            outcome: Future[steps.LaunchedBatch] = Future()
            with delivering(outcome):
                outcome.set_result(watched(self._engine, steps.launch, [pending for *_, pending in batch]))
            launched.append(([(member, queued) for member, queued, _ in batch], outcome))
        self._launched.append(launched)
        self._waiting.submit(self._complete_when_done, launched)

    def settle(self) -> None:
        """Complete all launched rounds, before a call that changes a stream."""
        while self._launched and not self._completing:
            self._complete()

    def shutdown(self) -> None:
        """End the waiting thread; call this before the engine's thread ends."""
        self._waiting.shutdown(wait=True)

    def _complete_when_done(self, launched: Round) -> None:
        """Wait for the images of all batches, on the waiting thread."""
        try:
            for _, outcome in launched:
                if outcome.exception() is None:
                    outcome.result().wait()
        finally:  # an error is raised again where the round is completed
            self._engine.submit(None, self._complete_oldest, launched)

    def _complete_oldest(self, launched: Round) -> None:
        if self._launched and self._launched[0] is launched:
            self._complete()

    def _complete(self) -> None:
        """Resolve the futures of the oldest round, and schedule the sessions that were put off."""
        put_off, self._put_off = self._put_off, []
        for session in put_off:
            self._engine.schedule(session)
        self._completing = True  # closing a failed stream must not complete the next round
        try:
            for members, outcome in self._launched.popleft():
                self._deliver(members, outcome)
        finally:
            self._completing = False

    def _deliver(self, members: Members, outcome: Future[steps.LaunchedBatch]) -> None:
        results: Future[list[steps.StepResult]] = Future()
        with delivering(results):
            results.set_result(watched(self._engine, steps.complete, outcome.result()))
        for index, (member, queued) in enumerate(members):
            with delivering(queued.result):
                frames = results.result()[index]
                if member.stream is None:  # it has failed in the meantime
                    raise member.closed_error()
                if isinstance(frames, RuntimeError):
                    raise self._engine.drop(member, frames)
                self._engine.finish(member, queued, frames)
