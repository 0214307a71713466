"""Start and end the workers of a cluster, and choose the one that takes a stream."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from itertools import count
from typing import Any

import ray

from ..errors import EngineBusy
from ..serving.event_log import log
from .placement import place
from .remote_worker import NO_DEADLINE, Deadlines, RemoteWorker, StartFailed, WorkerLost
from .worker import Announcement, Worker

START_SECONDS = 0.1  # between two checks whether the first worker is ready
FAILING_SECONDS = 300.0  # from the first failure until the start is given up; others may still be loading
REPLACE_SECONDS = 10.0  # between two replacements of workers that Ray has given up
WAIT_LOG_SECONDS = 30.0  # between two log lines while the front waits for the first worker
OTHER_WEIGHTS = (
    "Other viewers are using all GPUs in styles with other weights. Choose one of their styles, or try again "
    "when they have left."
)


class WorkerPool:
    """The workers by key: one for each GPU of the cluster, or for each CPU_WORKER resource.

    Args:
        make_engine: called in each worker's process.
        options: of the actors, as in `ray_session.WorkerResources`.
        deadlines: how long a worker may be silent.
        clock: returns seconds.
        on_change: called with a worker and "" when it is ready, or the reason why it was lost.
    """

    def __init__(
        self,
        make_engine: Callable[[], Any],
        options: dict[str, Any],
        deadlines: Deadlines,
        clock: Callable[[], float],
        on_change: Callable[[RemoteWorker, str], None],
    ) -> None:
        self.workers: dict[str, RemoteWorker] = {}
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._nodes: dict[str, str] = {}  # the node on which each worker was last
        self._clock, self._deadlines, self._on_change = clock, deadlines, on_change
        # No retries by Ray: a frame sent again would be out of order. The front handles what is lost.
        options = {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 1000, **options}
        self._options, self._make_engine = options, make_engine
        self._token = secrets.token_hex(4)  # in the actors' names, to tell the fronts of a cluster apart
        self._replaced = float("-inf")  # when dead workers were last replaced

    def grow(self, workers: int) -> None:
        """Start workers until there are `workers`, and replace those that Ray has given up."""
        dead = [worker for worker in self.workers.values() if worker.is_dead]
        if dead and (now := self._clock()) - self._replaced >= REPLACE_SECONDS:
            self._replaced = now
            for worker in dead:
                self.retire(worker)
        while len(self.workers) < workers:
            key = f"w{next(self._numbers)}"
            named = ray.remote(Worker).options(name=f"{key}-{self._token}", **self._options)  # for `drain`
            actor = named.remote(self._make_engine)
            self.workers[key] = RemoteWorker(key, actor, self._deadlines, self._clock, self._on_change)

    def watch(self) -> None:
        """Check each worker once."""
        workers = [*self.workers.values()]
        self._nodes |= {worker.key: announced.node for worker, announced in self.ready().items()}
        # A worker that loads a model slows others on its node, taken to be the node where it was last.
        loading = {self._nodes.get(worker.key) for worker in workers if worker.announced is None}
        for worker in workers:
            is_alone = all(each is worker or each.announced is None for each in workers)
            is_busy = loading & {None, self._nodes.get(worker.key)}
            limits = self._deadlines
            worker.watch(limits.alone if is_alone else limits.compiling if is_busy else 0.0)

    def ready(self) -> dict[RemoteWorker, Announcement]:
        """Return the workers that are ready, and their announcements."""
        workers = [*self.workers.values()]
        return {worker: announced for worker in workers if (announced := worker.announced) is not None}

    def first(self) -> Announcement:
        """Wait until a worker is ready; return its announcement.

        Raises:
            ValueError, OSError, RuntimeError: no worker can load its model, or some have failed and none was
                ready for FAILING_SECONDS.
        """
        wanted, logged = len(self.workers), self._clock()
        failing_since: float | None = None
        while True:
            self.watch()
            for announced in self.ready().values():
                return announced
            now = self._clock()
            failures = [each.failure for each in self.workers.values() if each.failure is not None]
            if failures:
                failing_since = now if failing_since is None else failing_since
                is_final = len(failures) == wanted and not any(isinstance(e, StartFailed) for e in failures)
                if is_final or now - failing_since >= FAILING_SECONDS:
                    self.close()
                    raise failures[0]
            if now - logged >= WAIT_LOG_SECONDS:
                logged = now
                log.info("waiting for the first of %d workers; %d could not start", wanted, len(failures))
            self.grow(wanted)
            time.sleep(START_SECONDS)

    def fetch(self, style: str | None) -> None:
        """Download what a style needs, on all workers.

        Raises:
            OSError: a file cannot be downloaded.
        """
        fetches = [worker.call(NO_DEADLINE, "fetch", style) for worker in self.ready()]
        for error in [fetch.exception() for fetch in fetches]:
            if error is not None and not isinstance(error, WorkerLost):
                raise error

    def device(self) -> str:
        """Return the names of the workers' devices."""
        names = Counter(announced.device for announced in self.ready().values())
        return ", ".join(f"{number} x {name}" for name, number in names.items()) or "no worker"

    def capacity(self) -> int:
        """Return for how many live streams the workers have room; those that drain do not count."""
        return sum(announced.slots for worker, announced in self.ready().items() if not worker.is_draining)

    def take(
        self, stream: str, weights: str | None, is_clip: bool = False, avoid: Collection[str] = ()
    ) -> RemoteWorker:
        """Choose the worker for a stream, and keep a place there until `give_back`.

        Worker processes whose tokens are in `avoid` are left out.

        Raises:
            EngineBusy: there is no room.
            ValueError: there is room only beside streams with other weights.
        """
        with self._lock:
            ready = self.ready().items()
            states = [worker.state(is_clip) for worker, announced in ready if announced.token not in avoid]
            key = place(states, weights)
            if key is None:
                if any(state.streams < state.slots for state in states if state.is_available):
                    raise ValueError(OTHER_WEIGHTS)
                raise EngineBusy("All places are taken. Try again in a minute.")
            worker = self.workers[key]
            worker.streams.add(stream)
            if is_clip:
                worker.clips.add(stream)
            worker.weights = weights
            return worker

    def can_change(self, stream_id: str, worker: RemoteWorker, weights: str | None) -> bool:
        """Return whether a stream can change to these weights on its worker; if so, record the weights."""
        with self._lock:
            if worker.weights != weights and worker.streams - {stream_id}:
                return False
            worker.weights = weights
            return True

    def retire(self, worker: RemoteWorker) -> None:
        """End a worker for good."""
        self.workers.pop(worker.key, None)
        self._nodes.pop(worker.key, None)
        worker.lose("retired")
        ray.kill(worker.actor)

    def close(self) -> None:
        """End all workers."""
        for worker in [*self.workers.values()]:
            self.retire(worker)
