"""The waiting line: order, time slices and reserved places, with a clock that the tests set."""

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.gpu_visits import Clock
from helpers.waiting import PATIENCE

from live2diff.errors import EngineBusy, StreamClosed
from live2diff.serving.admission import (
    HELD_SECONDS,
    NOTICE_SECONDS,
    RESERVED_SECONDS,
    SILENCE_SECONDS,
    QueuePosition,
    WaitingLine,
)
from live2diff.serving.engine import QUIET_SECONDS, Engine
from live2diff.streaming.settings import StreamSettings

SLICE = 100.0
FRAME = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def silence() -> Clock:
    """The engine's clock: it stands still for viewers who keep sending frames."""
    return Clock()


@pytest.fixture
def engine(tiny_pipeline, silence) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline, capacity=2, clock=silence)
    yield engine
    engine.shutdown()


@pytest.fixture
def line(engine, clock) -> WaitingLine:
    return WaitingLine(engine, slice_seconds=SLICE, clock=clock)


def enter(line: WaitingLine, engine: Engine, *keys: str) -> None:
    for key in keys:
        assert line.join(key) == QueuePosition(0, 0.0)
        engine.open(key, StreamSettings(style="pencil")).result(PATIENCE)


def positions(line: WaitingLine, *keys: str) -> list[int]:
    return [line.join(key).position for key in keys]


def pass_time(line: WaitingLine, clock: Clock, seconds: float, *asking: str) -> None:
    """While these go on asking once a second."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(end, clock.now + 1.0)
        positions(line, *asking)


def test_viewers_are_admitted_in_order_and_the_next_one_by_itself(line, engine):
    enter(line, engine, "ann", "bob")
    assert positions(line, "cid", "dee", "eve") == [1, 2, 3]
    assert positions(line, "eve", "cid", "dee") == [3, 1, 2]  # asking again changes nothing
    line.leave("ann")
    assert engine.session_keys() == {"bob"}
    assert positions(line, "eve", "dee", "cid") == [2, 1, 0]


def test_as_long_as_nobody_waits_everybody_stays(line, engine, clock):
    enter(line, engine, "ann", "bob")
    clock.now += 50 * SLICE
    assert line.time_left("ann") is None
    assert engine.push("ann", FRAME).result(PATIENCE).frames_in == 1


def test_a_used_up_slice_ends_when_somebody_waits_but_never_without_notice(line, engine, clock):
    enter(line, engine, "ann", "bob")
    clock.now += 2 * SLICE
    assert line.join("cid") == QueuePosition(1, NOTICE_SECONDS)
    assert line.time_left("ann") == NOTICE_SECONDS
    assert line.time_left("bob") is None, "one waits, and one must give way for them"
    pass_time(line, clock, NOTICE_SECONDS - 1, "cid")
    assert (line.time_left("ann"), engine.session_keys()) == (1.0, {"ann", "bob"})
    pass_time(line, clock, 1, "cid")
    assert engine.session_keys() == {"bob"}
    with pytest.raises(StreamClosed):
        engine.push("ann", FRAME)
    enter(line, engine, "cid")
    assert positions(line, "ann") == [1], "a viewer whose turn is over waits at the end of the line"
    assert line.time_left("bob") == NOTICE_SECONDS


def test_a_newcomer_has_a_whole_slice_from_admission_on(line, engine, clock):
    enter(line, engine, "ann")
    clock.now += 30
    enter(line, engine, "bob")
    positions(line, "cid", "dee")
    assert (line.time_left("ann"), line.time_left("bob")) == (SLICE - 30, SLICE)
    pass_time(line, clock, SLICE - 30, "cid", "dee")
    enter(line, engine, "cid")
    assert line.time_left("bob") == 30
    assert line.time_left("cid") is None
    positions(line, "ann")
    assert line.time_left("cid") == SLICE


def test_opening_again_while_inside_keeps_the_place_and_the_slice(line, engine, clock):
    enter(line, engine, "ann", "bob")
    positions(line, "cid")
    pass_time(line, clock, 60, "cid")
    engine.open("ann", StreamSettings(style="neon", steps=1)).result(PATIENCE)
    assert line.time_left("ann") == SLICE - 60
    assert positions(line, "ann", "bob", "cid") == [0, 0, 1]


def test_a_place_that_is_not_taken_up_goes_to_the_next(line, engine, clock):
    enter(line, engine, "ann", "bob")
    positions(line, "cid", "dee")
    line.leave("ann")
    assert positions(line, "cid", "dee") == [0, 1]
    pass_time(line, clock, RESERVED_SECONDS, "dee")
    assert positions(line, "dee") == [1]
    pass_time(line, clock, 1, "dee")
    assert positions(line, "dee", "cid") == [0, 1]


def test_nobody_is_admitted_past_the_line(line, engine, clock):
    enter(line, engine, "ann", "bob")
    positions(line, "cid")
    line.leave("ann")
    for _ in range(2):  # a place is kept for cid, and taken by cid
        with pytest.raises(EngineBusy, match="Wait in line"):
            engine.open("eve", StreamSettings(style="pencil"))
        engine.open("cid", StreamSettings(style="pencil")).result(PATIENCE)
    line.leave("cid")
    # Nobody waits, there is room: no need to ask first.
    engine.open("eve", StreamSettings(style="pencil")).result(PATIENCE)
    assert positions(line, "eve") == [0]


def test_leaving_from_the_middle_moves_up_those_behind(line, engine):
    enter(line, engine, "ann", "bob")
    positions(line, "cid", "dee", "eve")
    line.leave("dee")
    line.leave("dee")
    line.leave("nobody")
    assert positions(line, "cid", "eve", "dee") == [1, 2, 3]


def test_a_viewer_who_waits_in_silence_has_left_the_line(line, engine, clock):
    enter(line, engine, "ann", "bob")
    positions(line, "cid", "dee")
    pass_time(line, clock, SILENCE_SECONDS + 1, "dee")
    assert positions(line, "dee", "cid") == [1, 2]
    clock.now += SILENCE_SECONDS + 1
    assert len(line) == 0
    assert line.time_left("ann") is None, "nobody waits any more"


def test_place_and_position_are_held_for_the_grace_and_not_longer(line, engine, clock):
    enter(line, engine, "ann", "bob")
    positions(line, "cid", "dee")
    line.hold("ann")
    line.hold("cid")
    assert engine.session_keys() == {"bob"}, "the stream is closed at once"
    pass_time(line, clock, HELD_SECONDS, "dee")
    assert positions(line, "dee", "ann", "cid") == [2, 0, 1]
    engine.open("ann", StreamSettings(style="pencil")).result(PATIENCE)
    line.hold("ann")
    line.hold("cid")
    pass_time(line, clock, HELD_SECONDS + 1, "dee")
    assert positions(line, "dee", "ann", "cid") == [0, 1, 2]


def test_a_held_place_is_used_up_by_the_slice_and_given_up_by_leaving(line, engine, clock):
    enter(line, engine, "ann", "bob")
    positions(line, "cid")
    pass_time(line, clock, SLICE - 5, "cid")
    line.hold("ann")
    pass_time(line, clock, 5, "cid")
    assert positions(line, "cid", "ann") == [0, 1]
    line.hold("bob")
    line.leave("bob")
    assert positions(line, "ann") == [0]


def test_a_silent_viewer_makes_room_when_others_wait(line, engine, clock, silence):
    enter(line, engine, "ann", "bob")
    clock.now += RESERVED_SECONDS + 1
    engine.close("ann").result(PATIENCE)  # as the engine does after a silence
    assert positions(line, "cid") == [0]
    engine.open("cid", StreamSettings(style="pencil")).result(PATIENCE)
    silence.now += QUIET_SECONDS
    assert positions(line, "dee") == [1]
    engine.push("cid", FRAME).result(PATIENCE)
    silence.now += 1.0
    assert positions(line, "dee") == [0], "a silent viewer gives way at once"
    assert engine.session_keys() == {"cid"}


def test_a_stream_that_could_not_be_opened_leaves_time_to_try_another(line, engine):
    enter(line, engine, "ann")
    line.join("bob")
    positions(line, "cid")
    with pytest.raises(ValueError, match="no style"):
        engine.open("bob", StreamSettings(style="no such style")).result(PATIENCE)
    assert positions(line, "cid", "bob") == [1, 0]
    engine.open("bob", StreamSettings(style="pencil")).result(PATIENCE)


def test_the_expected_wait_follows_from_the_slices_ahead(line, engine, clock):
    enter(line, engine, "ann")
    clock.now += 10
    enter(line, engine, "bob")
    clock.now += 30
    waits = [line.join(key).seconds for key in ("cid", "dee", "eve", "fay")]
    assert waits == [60, 70, 160, 170]
    line.leave("bob")
    assert [line.join(key).seconds for key in ("dee", "eve", "fay")] == [60, 100, 160]


def test_where_there_is_no_place_yet_viewers_wait_in_line(line, engine):
    engine.capacity = 0  # of a cluster whose workers are not ready
    waits = [line.join(key) for key in ("ann", "bob")]
    assert waits == [QueuePosition(1, NOTICE_SECONDS), QueuePosition(2, NOTICE_SECONDS + SLICE)]
    engine.capacity = 1
    assert positions(line, "ann", "bob") == [0, 1]


def test_streams_opened_before_the_line_exists_are_admitted(engine, clock):
    engine.open("ann", StreamSettings(style="pencil")).result(PATIENCE)
    line = WaitingLine(engine, slice_seconds=SLICE, clock=clock)
    assert positions(line, "bob", "cid", "ann") == [0, 1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_viewers_do_nobody_jumps_the_line_and_nobody_starves(line, engine, clock, seed):
    """Two hundred random joins, openings, leavings and steps in time, with every rule checked after each."""
    random = np.random.default_rng(seed)
    people = [f"viewer {number}" for number in range(7)]
    waiting: dict[str, float] = {}  # those who wait, in order of arrival, and when they came
    for _ in range(200):
        action, who = random.choice(["join", "open", "leave", "time"]), str(random.choice(people))
        if action == "leave":
            line.leave(who)
            waiting.pop(who, None)
        elif action == "time":
            clock.now += float(random.uniform(0, 9))  # under SILENCE_SECONDS: everybody asks in time
        else:
            position = line.join(who).position
            if position:
                waiting.setdefault(who, clock.now)
            if action == "open" and position:
                with pytest.raises(EngineBusy):
                    engine.open(who, StreamSettings(style="pencil"))
            elif action == "open":
                engine.open(who, StreamSettings(style="pencil"))
        places = {key: line.join(key) for key in list(waiting)}
        admitted = [key for key, place in places.items() if place.position == 0]
        assert admitted == list(waiting)[: len(admitted)], "somebody was let in before others who came first"
        for key in admitted:
            assert clock.now - waiting.pop(key) <= len(people) * (SLICE + RESERVED_SECONDS + 9), "starved"
        assert [places[key].position for key in waiting] == list(range(1, len(waiting) + 1))
        waits = [places[key].seconds for key in waiting]
        assert waits == sorted(waits) and all(0 <= wait <= len(people) * SLICE for wait in waits)
        assert len(engine.session_keys()) <= engine.capacity


def test_viewers_who_lose_their_place_when_capacity_falls_are_first_in_line(line, engine):
    enter(line, engine, "ann", "bob")
    assert positions(line, "cid") == [1]
    engine.capacity = 1
    engine.close("ann").result(PATIENCE)  # its GPU is gone
    assert positions(line, "ann", "cid", "bob") == [1, 2, 0]
    engine.capacity = 2
    assert positions(line, "cid", "ann") == [1, 0]


def test_everybody_has_a_position_while_there_is_no_room_at_all(line, engine):
    enter(line, engine, "ann")
    engine.capacity = 0
    engine.close("ann").result(PATIENCE)
    assert line.join("bob") == QueuePosition(2, NOTICE_SECONDS + SLICE) and positions(line, "ann") == [1]
