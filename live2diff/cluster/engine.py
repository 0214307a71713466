"""Run streams on the workers of a Ray cluster.

The front keeps each viewer's settings and last 8 JPEGs, from which a stream goes on at another worker when
its own dies or is drained.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..serving.engine import Engine
from ..serving.event_log import log, log_event
from ..serving.futures import resolved
from .autoscale import SCALE_SECONDS, Autoscaler
from .pool import WorkerPool
from .ray_session import WorkerResources
from .remote_worker import Deadlines, RemoteWorker
from .sessions import ClusterSessions

WATCH_SECONDS = 0.5  # between two checks of the workers


class ClusterEngine(ClusterSessions):
    """An `Engine` without a device: streams run on workers, and frames are JPEGs all the way.

    Args:
        make_engine: makes the engine of a worker, in its process; picklable.
        resources: what a worker takes of a node, and for how many workers the cluster has room now.
        count_workers: returns for how many workers the cluster has room at the time of the call.
        autoscaler: decides how many workers there are; None for as many as there is room for.
        deadlines: how long a worker may be silent.
        idle_seconds: a session silent for this long is closed.
        clock: returns seconds.
        watch_seconds: between two calls of `watch`.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        resources: WorkerResources,
        count_workers: Callable[[], int] | None = None,
        autoscaler: Autoscaler | None = None,
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
        idle_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        self.on_shutdown: Callable[[], None] = lambda: None
        self.begin_sessions(0, idle_seconds, clock)
        self.pool = WorkerPool(make_engine, resources.options, deadlines, clock, self._on_change)
        self.pool.grow(resources.workers)
        self._count_workers = count_workers or (lambda: resources.workers)
        self._autoscaler, self._scaled = autoscaler, float("-inf")
        self._ended = threading.Event()
        first = self.pool.first()
        self.styles, self.default_style = first.styles, first.default_style
        self.about, self.prompt_help, self.size = first.about, first.prompt_help, first.size
        threading.Thread(target=self._watch, args=[watch_seconds], name="watch", daemon=True).start()

    @property
    def room(self) -> str:
        """Return a sentence on how many viewers there is room for now."""
        ready = f"{len(self.pool.ready())} of {len(self.pool.workers)}"
        return f"Room for {self.capacity} viewers at once on {ready} workers."

    @property
    def device(self) -> str:
        """Return the names of the workers' devices."""
        return self.pool.device()

    def stats(self) -> dict[str, Any]:
        """Return the figures of `Engine.stats`, and those of each worker by its key."""
        workers = {worker.key: worker.stats() for worker in [*self.pool.workers.values()]}
        return {**super().stats(), "workers": workers}

    def fetch(self, style: str | None) -> Future[None]:
        """Download what a style needs, on all workers."""
        return self.downloads.submit(self.pool.fetch, style) if self.with_weights(style) else resolved(None)

    def release_devices(self) -> None:
        """End all workers and the connection to Ray."""
        self._ended.set()
        self.pool.close()
        self.on_shutdown()

    def _watch(self, seconds: float) -> None:
        while not self._ended.wait(seconds):
            try:
                self.watch()
            except Exception:  # of Ray, if its head does not answer; the next call may succeed
                log.exception("the workers cannot be watched")

    def watch(self) -> None:
        """Check the workers once: give up silent ones, start missing ones, continue draining."""
        self._scale()
        self.pool.watch()
        for worker in [*self.pool.workers.values()]:
            if worker.is_draining:
                self._drain(worker)
            elif worker.is_leaving:
                self.drain(worker.key, "its node is leaving")

    def _scale(self) -> None:
        """Start the workers for which there is room, or those of them that the autoscaler wants."""
        wanted = room = self._count_workers()
        if self._autoscaler is not None:
            if (now := self.registry.clock()) >= self._scaled + SCALE_SECONDS:
                self._scaled = now
                states = [worker.state() for worker in [*self.pool.workers.values()]]
                if (spare := self._autoscaler.update(states, self.count_waiting())) is not None:
                    self.drain(spare, "spare")
            leaving = sum(worker.is_leaving for worker in [*self.pool.workers.values()])
            wanted = self._autoscaler.requested + leaving
        self.pool.grow(min(wanted, room))

    def _on_change(self, worker: RemoteWorker, reason: str) -> None:
        """Log that a worker is ready, or that it was lost, and move its streams."""
        self.capacity = self.pool.capacity()
        if not reason:
            return log_event("ready", worker=worker.key, process=worker.process, capacity=self.capacity)
        log_event("lost", worker=worker.key, reason=reason, capacity=self.capacity)
        for session, stream in self.streams_of(worker):
            self.submit(session, self.move, session, stream, reason)

    def drain(self, key: str, reason: str = "drain") -> None:
        """Move the streams of a worker to others without a gap, then end it; it gets no new streams."""
        worker = self.pool.workers[key]
        worker.is_draining = True
        self.capacity = self.pool.capacity()
        log_event("draining", worker=key, reason=reason, capacity=self.capacity)
        self._drain(worker)

    def _drain(self, worker: RemoteWorker) -> None:
        for session, stream in self.streams_of(worker):
            self.submit(session, self.begin_hand_over, session, stream)
        if not worker.streams and not worker.is_leaving:  # a leaving one keeps its node until the node ends
            self.pool.retire(worker)
