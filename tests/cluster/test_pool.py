"""How long workers may be silent, by what the others do."""

from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from live2diff.cluster import pool as module
from live2diff.cluster.remote_worker import Deadlines


class Worker:
    """A worker without an actor; it notes how long it may be silent at least."""

    def __init__(self, key: str, *_: object) -> None:
        self.key, self.announced, self.least = key, None, None

    def watch(self, least: float) -> None:
        self.least = least


def test_workers_have_more_time_beside_one_that_loads_and_where_there_is_no_other(monkeypatch):
    options = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: None))
    monkeypatch.setattr(module, "ray", SimpleNamespace(remote=lambda _: options))
    monkeypatch.setattr(module, "RemoteWorker", Worker)
    pool = module.WorkerPool(lambda: None, {}, Deadlines(2.0, 10.0, 30.0), lambda: 0.0, lambda *_: None)

    def limits() -> list[float]:
        pool.watch()
        return [worker.least for worker in pool.workers.values() if worker.announced]

    pool.grow(3)
    first, second, third = pool.workers.values()
    for worker, node in ((first, "a"), (second, "a"), (third, "b")):
        worker.announced = SimpleNamespace(node=node)
    assert limits() == [0.0, 0.0, 0.0]
    first.announced = None
    assert limits() == [10.0, 0.0], "the other worker of the node is slower now"
    second.announced = None
    assert limits() == [30.0], "there is no other to move to"
    first.announced = second.announced = third.announced
    pool.grow(4)
    assert limits() == [10.0, 10.0, 10.0], "a new worker may load anywhere"
