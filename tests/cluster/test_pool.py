"""How long workers may be silent, by what the others do; how the first ones start."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed")

from ray.exceptions import ActorDiedError, ActorUnavailableError

from live2diff.cluster import pool as module
from live2diff.cluster.remote_worker import Deadlines, RemoteWorker
from live2diff.serving.futures import fail, resolved
from live2diff.serving.sessions import RATE_SECONDS


class Worker:
    """A worker without an actor; it notes how long it may be silent at least."""

    def __init__(self, key: str, *_: object) -> None:
        self.key, self.announced, self.least, self.is_dead = key, None, None, False

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


LOADING = "it loads"  # and answers no more
READY = SimpleNamespace(node="node", device="cpu", slots=2), None
WRONG_STYLE = None, ValueError("There is no style 'penci'.")


class Actor:
    """An actor whose announcements are given; the last one is repeated."""

    def __init__(self, *answers: Any) -> None:
        self._answers = [*answers]
        self.announce = SimpleNamespace(remote=self._announce)

    def _announce(self) -> SimpleNamespace:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        future: Future = resolved(answer)
        if answer is LOADING:
            future = Future()
        elif isinstance(answer, Exception):
            future = Future()
            fail(future, answer)
        return SimpleNamespace(future=lambda: future)


def seconds() -> Iterator[float]:
    """Ten more at each look, for an hour."""
    yield from map(float, range(0, 3600, 10))
    raise AssertionError("it waits for ever")


@pytest.fixture
def pool_of(monkeypatch) -> Callable[..., module.WorkerPool]:
    """A function that makes a pool of so many workers, from actors that are started one after the other."""
    monkeypatch.setattr(module, "START_SECONDS", 0.0)

    def make(workers: int, *actors: Actor) -> module.WorkerPool:
        left = iter(actors)
        options = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: next(left)))
        ray = SimpleNamespace(remote=lambda _: options, kill=lambda actor: None)
        monkeypatch.setattr(module, "ray", ray)
        pool = module.WorkerPool(lambda: None, {}, Deadlines(), seconds().__next__, lambda *_: None)
        pool.grow(workers)
        return pool

    return make


def test_a_start_fails_at_once_where_no_worker_can_load_the_model(pool_of):
    with pytest.raises(ValueError, match="no style 'penci'"):
        pool_of(2, Actor(WRONG_STYLE), Actor(WRONG_STYLE)).first()


def test_a_start_fails_after_a_while_where_the_other_workers_give_no_answer(pool_of, caplog):
    caplog.set_level("INFO", "live2diff")
    with pytest.raises(ValueError, match="no style 'penci'"):
        pool_of(2, Actor(WRONG_STYLE), Actor(LOADING)).first()
    failures = [line for line in caplog.messages if line.startswith("worker")]
    assert failures == ["worker w1 cannot start: There is no style 'penci'."], "said once"
    assert "waiting for the first of 2 workers; 1 could not start" in caplog.messages


def test_a_start_waits_for_workers_that_load_while_others_fail(pool_of):
    assert pool_of(2, Actor(WRONG_STYLE), Actor(READY)).first() is READY[0]
    killed = ActorUnavailableError("it was killed", bytes(16))
    assert pool_of(1, Actor(killed, killed, READY)).first() is READY[0]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ActorUnavailableError("it was killed", bytes(16)), "it was killed"),
        (ActorDiedError(), "died unexpectedly"),
    ],
)
def test_a_start_fails_after_a_while_where_processes_end(pool_of, error, words, caplog):
    with pytest.raises(OSError, match=f"ended while it started: .*{words}.*logs"):
        pool_of(1, *[Actor(error) for _ in range(100)]).first()
    assert "worker w1 cannot start: The process of a worker ended" in caplog.text


def test_another_worker_takes_the_place_of_one_that_ray_has_given_up(pool_of):
    pool = pool_of(1, Actor(ActorDiedError()), Actor(READY))
    assert pool.first() is READY[0] and [*pool.workers] == ["w2"]


def test_the_rate_of_a_fast_worker_is_counted_whole():
    now = [0.0]
    worker = RemoteWorker("w1", None, Deadlines(), lambda: now[0], lambda *_: None)
    for number in range(4000):
        now[0] = number / 400
        worker.finished.add(now[0] - 0.25)
    stats = worker.stats()
    assert stats["fps"] == pytest.approx(400, rel=0.01) and stats["delay_p50"] == pytest.approx(0.25)
    assert len(worker.finished) <= 400 * RATE_SECONDS + 1, "older ones are dropped"
