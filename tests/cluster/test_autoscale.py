"""The autoscaler's glue: what is requested when, and which worker drains, by a clock that the tests move."""

from dataclasses import replace

import pytest
from helpers.gpu_visits import Clock
from hypothesis import given
from hypothesis import strategies as st

from live2diff.cluster.autoscale import SPARE_SECONDS, Autoscaler, ray_request
from live2diff.cluster.placement import WorkerState, wanted_workers
from live2diff.cluster.session import WorkerResources


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


def test_a_wish_for_more_within_the_ten_minutes_keeps_the_workers(autoscaler, clock, requests):
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
