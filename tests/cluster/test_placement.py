"""Placement: which worker takes a stream, how many are wanted, which one is given back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live2diff.cluster.placement import WorkerState, drain_candidate, place, wanted_workers

STYLES = st.sampled_from([None, "ghibli", "arcane"])


RARELY = st.sampled_from([False, False, False, True])
# Some have more streams than room: it may have shrunk.
STATES = st.tuples(st.sampled_from([0, 1, 2, 4]), st.sampled_from([0, 0, 1, 2, 5]), STYLES, RARELY, RARELY)
FLEETS = st.lists(STATES, max_size=6).map(
    lambda states: [WorkerState(f"w{index}", *state) for index, state in enumerate(states)]
)


def add(workers: list[WorkerState], key: str, weights: str | None) -> list[WorkerState]:
    return [replace(w, streams=w.streams + 1, weights=weights) if w.key == key else w for w in workers]


@given(FLEETS, STYLES)
def test_a_stream_goes_where_there_is_room_and_nobody_else_must_change_weights(workers, weights):
    key = place(workers, weights)
    fits = [
        worker.key
        for worker in workers
        if not worker.draining
        and not worker.suspect
        and worker.streams < worker.slots
        and (worker.streams == 0 or worker.weights == weights)
    ]
    assert key in fits if fits else key is None


@given(FLEETS, STYLES)
def test_active_weights_come_first_then_the_least_load(workers, weights):
    key = place(workers, weights)
    if key is not None:
        chosen = next(worker for worker in workers if worker.key == key)
        ready = [w for w in workers if w.room(weights) and w.weights == weights]
        assert chosen in ready or not ready
        others = ready or [w for w in workers if w.room(weights)]
        assert all(chosen.streams / chosen.slots <= w.streams / w.slots for w in others)


@given(FLEETS, st.permutations(range(6)), STYLES)
def test_the_order_of_the_workers_does_not_matter(workers, order, weights):
    shuffled = [workers[index] for index in order if index < len(workers)]
    assert place(shuffled, weights) == place(workers, weights)
    assert drain_candidate(shuffled) == drain_candidate(workers)


@given(FLEETS, st.lists(STYLES, max_size=30))
def test_no_worker_gets_more_than_its_room(workers, wanted):
    before = {worker.key: worker for worker in workers}
    for weights in wanted:
        if (key := place(workers, weights)) is not None:
            workers = add(workers, key, weights)
    for worker in workers:
        assert worker.streams <= max(worker.slots, before[worker.key].streams)


def test_two_styles_with_weights_of_their_own_run_side_by_side():
    workers = [WorkerState("a", 2, 0, None), WorkerState("b", 2, 0, None)]
    keys = []
    for weights in ("ghibli", "arcane", "ghibli", "arcane", "ghibli", "arcane"):
        keys.append(place(workers, weights))
        workers = add(workers, keys[-1], weights) if keys[-1] else workers
    assert keys == ["a", "b", "a", "b", None, None]
    assert place(workers, None) is None


@given(st.integers(0, 10_000), st.integers(0, 1_000), st.integers(1, 8))
def test_wanted_workers_have_room_for_all_and_less_than_two_to_spare(streams, waiting, slots):
    spare = wanted_workers(streams, waiting, slots) * slots - (streams + waiting)
    assert slots <= spare < 2 * slots


def test_a_worker_without_room_is_refused_by_name():
    with pytest.raises(ValueError, match="slots is 0"):
        wanted_workers(1, 0, 0)


@given(FLEETS)
def test_all_streams_of_a_drained_worker_find_a_place_and_one_worker_stays(workers):
    key = drain_candidate(workers)
    available = [worker for worker in workers if worker.is_available]
    for worker in available if key is None else [w for w in available if w.key == key]:
        others = [other for other in workers if other is not worker]
        moved = 0
        while moved < worker.streams and (target := place(others, worker.weights)) is not None:
            others, moved = add(others, target, worker.weights), moved + 1
        fits = moved == worker.streams and any(other.is_available for other in others)
        assert fits == (key is not None)


@given(FLEETS)
def test_no_emptier_worker_could_be_drained(workers):
    key = drain_candidate(workers)
    if key is not None:
        chosen = next(worker for worker in workers if worker.key == key)
        emptier = [w for w in workers if w.is_available and w.streams < chosen.streams]
        # Without the others, the emptiest of these and what could take its streams.
        for worker in emptier:
            room = sum(other.room(worker.weights) for other in workers if other is not worker)
            assert room < worker.streams
