"""The autoscaler: what is requested when, and which worker drains, with a clock that the tests set."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from helpers.gpu_visits import Clock
from hypothesis import given
from hypothesis import strategies as st

from live2diff.cluster.autoscale import SCALE_SECONDS, SPARE_SECONDS, Autoscaler, ray_request
from live2diff.cluster.placement import WorkerState, wanted_workers
from live2diff.cluster.ray_session import WorkerResources
from live2diff.serving.admission import WaitingLine


def fleet(*streams: int, slots: int = 4) -> list[WorkerState]:
    return [WorkerState(f"w{index}", slots, count, None) for index, count in enumerate(streams)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def requests() -> list[int]:
    return []


@pytest.fixture
def autoscaler(clock: Clock, requests: list[int]) -> Autoscaler:
    return Autoscaler(requests.append, clock=clock)


def test_workers_for_all_and_one_to_spare_are_requested_once(autoscaler, requests):
    for _ in range(3):
        assert autoscaler.update(fleet(4, 1), waiting=0) is None
    assert requests == [3]
    autoscaler.update(fleet(4, 4), waiting=5)
    assert requests == [3, 5]
    autoscaler.update(fleet(0, 0), waiting=0)
    assert requests == [3, 5, 1]


def test_workers_are_requested_again_where_ray_did_not_answer(clock):
    answers, requests = [ConnectionError("GCS does not answer"), None], []

    def request(workers: int) -> None:
        requests.append(workers)
        if (error := answers.pop(0)) is not None:
            raise error

    autoscaler = Autoscaler(request, clock=clock)
    with pytest.raises(ConnectionError):
        autoscaler.update(fleet(4, 1), waiting=0)
    for _ in range(2):
        autoscaler.update(fleet(4, 1), waiting=0)
    assert requests == [3, 3] and autoscaler.requested == 3


def test_the_smallest_worker_decides_and_is_remembered(autoscaler, requests):
    autoscaler.update([*fleet(2, slots=8), *fleet(2, slots=2), *fleet(0, slots=0)], waiting=0)
    assert requests == [wanted_workers(4, 0, 2)]
    autoscaler.update([], waiting=4)  # all are lost
    assert requests == [3]


def test_a_worker_drains_after_ten_spare_minutes_and_one_at_a_time(autoscaler, clock):
    workers = fleet(1, 0, 2, 0)  # two are wanted
    for _ in range(60):
        assert autoscaler.update(workers, waiting=0) is None
        clock.now += SPARE_SECONDS / 60
    assert autoscaler.update(workers, waiting=0) == "w1"
    workers[1] = replace(workers[1], draining=True)
    assert autoscaler.update(workers, waiting=0) == "w3"
    workers[3] = replace(workers[3], draining=True)
    clock.now += SPARE_SECONDS
    assert autoscaler.update(workers, waiting=0) is None


def test_more_viewers_within_the_ten_minutes_keep_the_workers(autoscaler, clock, requests):
    workers = fleet(1, 0, 2, 0)
    autoscaler.update(workers, waiting=0)
    clock.now += SPARE_SECONDS - 1
    autoscaler.update(workers, waiting=9)  # four are wanted, for a moment
    clock.now += 1
    assert autoscaler.update(workers, waiting=0) is None
    clock.now += SPARE_SECONDS - 1
    assert autoscaler.update(workers, waiting=0) is None
    clock.now += 1
    assert autoscaler.update(workers, waiting=0) == "w1"
    assert requests == [2, 4, 2]


def test_streams_without_a_place_keep_their_worker(autoscaler, clock):
    workers = [WorkerState("a", 4, 1, "ghibli"), WorkerState("b", 4, 1, "arcane")]
    workers += [WorkerState("c", 4, 1, None)]
    autoscaler.update(workers, waiting=0)
    clock.now += SPARE_SECONDS
    assert autoscaler.update(workers, waiting=0) is None
    assert autoscaler.update([*workers, WorkerState("d", 4, 0, None)], waiting=0) == "d"


@given(st.lists(st.tuples(st.floats(0, 400), st.integers(0, 30)), min_size=1, max_size=30))
def test_never_below_what_was_wanted_in_the_last_ten_minutes(steps):
    clock, history, requested = Clock(), [], [0]
    autoscaler = Autoscaler(requested.append, clock=clock)
    present = 20
    for seconds, waiting in steps:
        clock.now += seconds
        history.append((clock.now, wanted_workers(0, waiting, 4)))
        present = max(present, wanted_workers(0, waiting, 4))  # they come as soon as they are requested
        present -= autoscaler.update(fleet(*[0] * present), waiting) is not None
        assert requested[-1] == wanted_workers(0, waiting, 4)
        recent = [wanted for when, wanted in history if when >= clock.now - SPARE_SECONDS]
        assert present >= max(recent)


@pytest.mark.parametrize(
    ("options", "bundle"),
    [({"num_gpus": 1}, {"GPU": 1}), ({"num_cpus": 0, "resources": {"live2diff": 1}}, {"live2diff": 1})],
)
def test_ray_is_asked_for_the_resources_of_so_many_workers(options, bundle, monkeypatch):
    sdk = pytest.importorskip("ray.autoscaler.sdk", reason="Ray is not installed")
    asked = []
    monkeypatch.setattr(sdk, "request_resources", lambda bundles: asked.append(bundles))
    ray_request(WorkerResources(options, 2))(3)
    assert asked == [[bundle] * 3]


class Worker:
    """A worker without a process, with room for four."""

    def __init__(self, key: str) -> None:
        self.key, self.streams = key, set()
        self.is_draining = self.is_leaving = False

    def state(self) -> WorkerState:
        return WorkerState(self.key, 4, len(self.streams), None, self.is_draining)


class Pool:
    """Workers that are ready at once."""

    def __init__(self, *_: object) -> None:
        self.workers: dict[str, Worker] = {}
        self.numbers = count(1)

    def grow(self, workers: int) -> None:
        while len(self.workers) < workers:
            key = f"w{next(self.numbers)}"
            self.workers[key] = Worker(key)

    def first(self) -> SimpleNamespace:
        return SimpleNamespace(styles={}, default_style="", about="", prompt_help=None, size=256)

    def capacity(self) -> int:
        return sum(4 for worker in self.workers.values() if not worker.is_draining)

    def watch(self) -> None: ...

    def retire(self, worker: Worker) -> None:
        del self.workers[worker.key]

    def close(self) -> None: ...


def test_the_engine_asks_for_workers_starts_them_and_drains_the_spare_ones(
    clock, autoscaler, requests, monkeypatch
):
    pytest.importorskip("ray", reason="Ray is not installed")
    from live2diff.cluster import engine as module

    def later(seconds: float) -> None:
        clock.now += seconds
        engine.watch()

    monkeypatch.setattr(module, "WorkerPool", Pool)
    room, never = [1], 1e6
    engine = module.ClusterEngine(
        lambda: None,
        WorkerResources({}, 1),
        lambda: room[0],
        autoscaler,
        idle_seconds=never,
        clock=clock,
        watch_seconds=never,
    )
    line = WaitingLine(engine, clock=clock)
    engine.capacity = 0  # nobody is let in
    for viewer in range(9):
        assert line.join(f"viewer {viewer}").position == viewer + 1
    engine.watch()
    assert requests == [4] and [*engine.pool.workers] == ["w1"], "there is no room for more yet"
    room[0] = 7
    later(SCALE_SECONDS / 3)
    assert requests == [4] and [*engine.pool.workers] == ["w1", "w2", "w3", "w4"]
    later(SCALE_SECONDS / 3)
    engine.pool.workers["w1"].streams.add("ann")
    for viewer in range(9):
        line.leave(f"viewer {viewer}")
    later(SCALE_SECONDS / 3 + 1)
    assert requests == [4, 2] and len(engine.pool.workers) == 4
    later(SPARE_SECONDS)
    assert [*engine.pool.workers] == ["w1", "w3", "w4"], "the emptiest goes, and none comes for the free GPU"
    later(SCALE_SECONDS)
    assert [*engine.pool.workers] == ["w1", "w4"] and engine.capacity == 8
    later(SPARE_SECONDS)
    assert [*engine.pool.workers] == ["w1", "w4"]
    engine.pool.workers["w4"].is_leaving = True
    later(1)
    assert engine.pool.workers["w4"].is_draining
    assert [*engine.pool.workers] == ["w1", "w4", "w5"], "it keeps its node, and another takes its place"
    assert engine.capacity == 8
    engine.shutdown()
