"""Visits whose connection is cut, seen from a program: what is kept, for whom, and how long."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers.browser import Identity
from helpers.gpu_visits import Clock
from helpers.live_socket import (
    SETTINGS,
    answer,
    cut,
    receive,
    send_frame,
    send_json,
    served_socket,
    socket_address,
    started,
)
from helpers.page import served_page
from helpers.waiting import wait_for
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import app
from live2diff.serving.admission import HELD_SECONDS, WaitingLine
from live2diff.serving.engine import Engine
from live2diff.serving.limits import VisitorLimits
from live2diff.ui.live_protocol import EARLIER
from live2diff.ui.live_tab import RESUME


@pytest.fixture(scope="module")
def clock() -> Clock:
    """The clock of the line; that of the engine stands still, as for viewers who keep sending frames."""
    return Clock()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Identity(), capacity=1, clock=Clock())


@pytest.fixture(scope="module")
def page_address(engine, clock) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "WaitingLine", lambda engine, seconds: WaitingLine(engine, seconds, clock))
        with served_page(engine, VisitorLimits(visits=1)) as demo:
            yield socket_address(demo)


@pytest.fixture
def address(page_address, engine, clock, monkeypatch) -> Iterator[str]:
    """The address of the socket; after each test nothing is left of its visits."""
    monkeypatch.setenv("SPACE_ID", "somebody/live2diff")  # addresses are those that the tests name
    yield page_address
    wait_for(lambda: engine.stats()["streams"] == engine.count_waiting() == 0)
    clock.now += HELD_SECONDS + 1


@contextmanager
def visiting(address: str, token: str = "", **headers: str) -> Iterator[tuple[ClientConnection, str]]:
    """Start or resume a visit; yield the socket and the token for the next one."""
    protocols = [RESUME, token] if token else None
    with connect(address, subprotocols=protocols, additional_headers=headers) as socket:
        send_json(socket, start=SETTINGS)
        yield socket, receive(socket, "resume")["resume"]


def assert_waits(socket: ClientConnection, position: int) -> None:
    """Check the position in line that the server sends from now on."""
    send_json(socket, echo=1)
    receive(socket, "echo")
    assert receive(socket, "waiting")["waiting"] == position


@pytest.mark.parametrize("part", [cut, lambda socket: socket.close(4000)], ids=["reset", "page"])
def test_a_cut_visit_frees_its_stream_at_once_and_keeps_its_place(engine, address, clock, part):
    with visiting(address) as (first, token), visiting(address) as (second, _):
        receive(first, "started")
        receive(second, "waiting")
        part(first)
        wait_for(lambda: engine.stats()["streams"] == 0)
        clock.now += HELD_SECONDS
        assert_waits(second, 1)
        with visiting(address, token) as (again, _):
            receive(again, "started")
            assert answer(again, 1)[0][4] == 1
            assert_waits(second, 1)


def test_after_the_grace_the_next_viewer_gets_the_place(engine, address, clock):
    with visiting(address) as (first, token), visiting(address) as (second, _):
        receive(first, "started")
        receive(second, "waiting")
        cut(first)
        wait_for(lambda: engine.stats()["streams"] == 0)
        clock.now += HELD_SECONDS + 0.1
        receive(second, "started")
        with visiting(address, token) as (again, _):
            assert receive(again, "waiting")["waiting"] == 1
            answer(second, 1)


def test_a_cut_viewer_keeps_the_position_in_line(address, clock):
    with visiting(address) as (first, _), visiting(address) as (second, token):
        receive(first, "started")
        receive(second, "waiting")
        with visiting(address) as (third, _):
            assert receive(third, "waiting")["waiting"] == 2
            cut(second)
            clock.now += HELD_SECONDS
            assert_waits(third, 2)
            with visiting(address, token) as (again, _):
                assert receive(again, "waiting")["waiting"] == 1
                assert_waits(third, 2)


@pytest.mark.parametrize("leave", ["stop", "close", "error"])
def test_who_leaves_deliberately_keeps_nothing(engine, address, leave):
    with visiting(address) as (first, token), visiting(address) as (second, _):
        receive(first, "started")
        receive(second, "waiting")
        if leave == "stop":
            send_json(first, stop=True)
        elif leave == "close":
            first.close()
        else:
            first.send("not JSON")
        receive(second, "started")
        with visiting(address, token) as (again, _):
            assert receive(again, "waiting")["waiting"] == 1
            answer(second, 1)


def test_a_used_or_wrong_token_takes_over_nothing(engine, address):
    with visiting(address) as (first, used):
        receive(first, "started")
        cut(first)
        wait_for(lambda: engine.stats()["streams"] == 0)
        with visiting(address, used) as (again, token):
            receive(again, "started")
            assert token != used
            for wrong in (used, token[:-1], token + "x", "live"):
                with visiting(address, wrong) as (thief, own):
                    assert receive(thief, "waiting")["waiting"] == 1
                    assert own not in (token, used)
                    answer(again, 1)


def test_each_start_has_another_token_and_the_last_one_counts(engine, address):
    with visiting(address) as (first, old):
        receive(first, "started")
        send_json(first, start=SETTINGS)
        new = receive(first, "resume")["resume"]
        receive(first, "started")
        with visiting(address, old) as (other, _):
            receive(other, "waiting")
            answer(first, 1)
        with visiting(address, new) as (again, _):
            receive(again, "started")


def test_a_connection_that_is_not_known_to_be_dead_is_dropped(engine, address):
    with visiting(address) as (first, token):
        receive(first, "started")
        with visiting(address, token) as (again, _):
            with pytest.raises(ConnectionClosed):
                receive(first, "anything")
            receive(again, "started")
            assert answer(again, 1)[0][4] == 1
            assert engine.stats()["streams"] == 1


def test_a_cut_visit_stays_counted_for_its_address_and_can_go_on_from_another(engine, address, clock):
    home, cafe = {"x-forwarded-for": "8.8.8.8"}, {"x-forwarded-for": "9.9.9.9"}
    with visiting(address, **home) as (first, token):
        receive(first, "started")
        cut(first)
        wait_for(lambda: engine.stats()["streams"] == 0)
        with connect(address, additional_headers=home) as other:
            assert "live visits from your address" in receive(other, "error")["error"]
        with visiting(address, token, **cafe) as (again, _):
            receive(again, "started")
            cut(again)
        wait_for(lambda: engine.stats()["streams"] == 0)
        clock.now += HELD_SECONDS + 0.1
        with visiting(address, **home) as (new, _):
            receive(new, "started")


def test_a_stream_warms_up_from_frames_that_were_sent_before(address):
    with visiting(address) as (socket, _):
        receive(socket, "started")
        for _ in range(8):
            send_frame(socket, EARLIER)
        (shown, taken, *_, collected), jpeg = answer(socket, 5)
        assert (shown, taken, collected) == (5, 5, 0) and jpeg


def test_a_server_that_stops_has_the_page_try_again():
    engine = Engine(Identity())
    with served_socket(engine) as address, started(address) as socket:
        engine.end()
        send_frame(socket, 1)
        with pytest.raises(ConnectionClosed) as closed:
            receive(socket, "error")
        assert closed.value.rcvd.code == 1012
