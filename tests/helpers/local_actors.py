"""Ray as the cluster's front uses it, with actors on an event loop of this process, which the test ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from helpers.gpu_visits import Clock
from helpers.waiting import wait_for
from ray.exceptions import ActorDiedError, ActorUnavailableError

from live2diff.cluster import pool, remote_worker
from live2diff.cluster.engine import ClusterEngine
from live2diff.cluster.ray_session import WorkerResources
from live2diff.cluster.remote_worker import Deadlines
from live2diff.serving.engine import Engine
from live2diff.serving.futures import fail

NEVER = 1e6
CRASH = "end the process"  # an error with these words ends the worker that raises it


class LocalActor:
    """An actor whose process ends by `crash`; then it is another one, unless it was killed for good."""

    def __init__(self, kind: type, make: Callable[[], Any]) -> None:
        self._new = partial(kind, make)
        self.instance = self._new()
        self.is_dead = False
        self.running: set[Future] = set()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=partial(self._call, method))

    def _call(self, method: str, *arguments: Any) -> SimpleNamespace:
        future: Future = Future()
        if self.is_dead:
            fail(future, ActorDiedError())
        else:
            self.running.add(future)
            work = getattr(self.instance, method)(*arguments)
            done = asyncio.run_coroutine_threadsafe(work, self.loop)
            done.add_done_callback(partial(self._answer, future))
        return SimpleNamespace(future=lambda: future)

    def _answer(self, future: Future, done: Future) -> None:
        self.running.discard(future)
        result = done.result()
        if isinstance(result, tuple) and CRASH in str(result[-1]):
            self.crash()
            fail(future, ActorUnavailableError("it crashed", bytes(16)))
        elif not future.done():
            future.set_result(result)

    def crash(self, restart: bool = True) -> None:
        """End the process: calls without an answer fail."""
        self.instance, self.is_dead = self._new(), not restart
        for future in [*self.running]:
            fail(future, ActorUnavailableError("it crashed", bytes(16)) if restart else ActorDiedError())


class LocalRay:
    """What `cluster.pool` and `cluster.remote_worker` call of Ray."""

    def __init__(self) -> None:
        self.actors: list[LocalActor] = []

    def remote(self, kind: type) -> SimpleNamespace:
        def start(make: Callable[[], Any]) -> LocalActor:
            self.actors.append(LocalActor(kind, make))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=start))

    def kill(self, actor: LocalActor, no_restart: bool = True) -> None:
        actor.crash(restart=not no_restart)


@contextmanager
def local_ray(patch: pytest.MonkeyPatch) -> Iterator[LocalRay]:
    """Have the front use actors of this process."""
    actors = LocalRay()
    for module in (pool, remote_worker):
        patch.setattr(module, "ray", actors)
    patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    yield actors
    for actor in actors.actors:
        actor.loop.call_soon_threadsafe(actor.loop.stop)


@contextmanager
def local_cluster(
    make_engine: Callable[[], Engine], workers: int = 2, clock: Callable[[], float] | None = None
) -> Iterator[ClusterEngine]:
    """An engine in front of so many workers, which are looked after by the test alone; in `local_ray`."""
    engine = ClusterEngine(
        make_engine,
        WorkerResources({}, workers),
        deadlines=Deadlines(NEVER, NEVER, NEVER),
        idle_seconds=NEVER,
        clock=clock or Clock(),
        watch_seconds=NEVER,
    )
    wait_for_workers(engine, workers)
    yield engine
    engine.shutdown()


def wait_for_workers(engine: ClusterEngine, workers: int) -> None:
    """Wait until so many workers are ready."""

    def are_ready() -> bool:
        engine.watch()
        return len(engine.pool.ready()) == workers

    wait_for(are_ready)
