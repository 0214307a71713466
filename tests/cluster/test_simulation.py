"""The simulation: nobody is lost, same seed, same result, and it agrees with queueing theory."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live2diff.cluster import simulation
from live2diff.cluster.simulation import Result, Scenario, Simulation

ONE_STYLE = {None: 1.0}
BUSY = Scenario(3, hours=9.0, load=1.1, mtbf_hours=1.0, slots=4)
# Times are short against those of the line, so that a run of many visits takes a second.
PLAIN = Scenario(
    gpus=2,
    hours=100.0,
    cycle_hours=None,
    slots=4,
    load=0.75,
    visit_seconds=60.0,
    patience_seconds=math.inf,
    slice_seconds=math.inf,
    styles=ONE_STYLE,
    mtbf_hours=math.inf,
)


def run(scenario: Scenario) -> Result:
    return Simulation(scenario).run()


@pytest.mark.parametrize("autoscale", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_arrival_is_served_waits_or_left(autoscale: bool, seed: int):
    result = run(replace(BUSY, autoscale=autoscale, seed=seed))
    ended = result.finished + result.cut
    assert result.arrivals == ended + result.left + result.watching + result.waiting
    assert len(result.waits) == ended + result.watching
    assert min(result.finished, result.cut, result.left, result.moved_by_failure, result.stranded) > 0
    assert min(result.waits) >= 0


@given(
    st.integers(1, 4),
    st.floats(0.2, 2.0),
    st.sampled_from([0.2, math.inf]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_no_worker_ever_has_more_streams_than_slots_or_two_styles(gpus, load, mtbf, autoscale, seed):
    shared = Simulation(Scenario(gpus, 0.5, 0.5, 2, load, mtbf_hours=mtbf, autoscale=autoscale, seed=seed))
    count = shared.fleet._count

    def checked(key, streams, weights):
        count(key, streams, weights)
        for state in shared.fleet.states.values():
            mine = [stream for stream in shared.fleet.streams.values() if stream.worker == state.key]
            assert state.streams <= state.slots == 2
            assert {stream.weights for stream in mine} <= {state.weights}

    shared.fleet._count = checked
    shared.run()


def test_the_same_seed_gives_the_same_and_another_one_does_not():
    assert run(BUSY) == run(BUSY)
    assert run(BUSY) != run(replace(BUSY, seed=1))


def test_with_room_for_all_nobody_waits_moves_or_leaves():
    result = run(replace(PLAIN, gpus=4, hours=2.0, load=0.3))
    assert set(result.waits) == {0.0} and len(result.waits) == result.arrivals > 50
    assert (result.left, result.cut, result.moved_by_failure, result.restyled) == (0, 0, 0, 0)
    assert result.gpu_seconds == 4 * 2 * 3600


def test_the_mean_wait_matches_queueing_theory():
    """M/M/c: Poisson arrivals, exponential visits, c places; Erlang's C is the chance that one must wait."""
    result = run(PLAIN)
    places, offered = PLAIN.gpus * PLAIN.slots, PLAIN.load * PLAIN.gpus * PLAIN.slots
    terms = [offered**k / math.factorial(k) for k in range(places)]
    last = offered**places / math.factorial(places) / (1 - PLAIN.load)
    must_wait = last / (sum(terms) + last)
    expected = must_wait * PLAIN.visit_seconds / (places - offered)
    batches = [batch.mean() for batch in np.array_split(result.waits, 20)]
    error = np.std(batches, ddof=1) / math.sqrt(len(batches))
    assert error < 0.15 * expected, "too few visits to tell"
    assert abs(np.mean(result.waits) - expected) < 3 * error
    share = np.mean(np.array(result.waits) > 0)
    assert abs(share - must_wait) < 0.1 * must_wait


def test_autoscaling_follows_the_load_with_fewer_hours():
    scenario = replace(PLAIN, gpus=6, hours=12.0, cycle_hours=6.0, patience_seconds=300.0, load=0.6)
    fixed, needed = run(scenario), run(replace(scenario, autoscale=True))
    assert fixed.gpu_seconds == 6 * 12 * 3600
    assert needed.gpu_seconds < 0.9 * fixed.gpu_seconds
    assert needed.moved_by_drain > 0
    assert needed.left < 0.05 * needed.arrivals


def test_a_failure_moves_its_viewers_once_and_strands_those_without_room():
    shared = Simulation(replace(PLAIN, gpus=2, slots=2))
    for key in ("a", "b"):
        shared.fleet.add(key)
    for viewer in ("ann", "bob", "cid"):
        assert shared.line.join(viewer).position == 0
        assert shared.fleet.open(viewer, None)
    assert shared.fleet.remove("a") == (1, 1)
    assert shared.line.join("dee").position == 1, "who lost a worker comes first"
    shared.line.leave("bob")
    shared.fleet.place_stranded()
    assert shared.fleet.stranded == {} and shared.fleet.states["b"].streams == 2
    assert shared.line.join("dee").position == 1
    shared.fleet.add("c")
    assert shared.line.join("dee").position == 0


def test_the_table_has_a_row_for_each_run(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["simulation", "--gpus", "100"])
    monkeypatch.setattr(simulation, "Scenario", lambda gpus, hours, **more: Scenario(1, 1.0, **more))
    assert simulation.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| GPUs | run |")
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
