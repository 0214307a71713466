"""What one address may have of the page, and what a hostile program may not take from others."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import cv2
import numpy as np
import pytest
from helpers.browser import Identity, wait_for
from helpers.live_socket import SETTINGS, answer, started, told
from measure import load
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import app
from live2diff.serving.engine import Engine
from live2diff.serving.limits import VisitorLimits
from live2diff.ui import live_session, live_tab
from live2diff.ui.live_protocol import FRAME
from live2diff.ui.live_tab import PATH

HOME = "8.8.8.8"
NOISE = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
LARGE = cv2.imencode(".jpg", NOISE)[1].tobytes()


@pytest.fixture(scope="module")
def engine(tiny_pipeline) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline, capacity=2)
    yield engine
    engine.shutdown()


@pytest.fixture
def address(engine, monkeypatch) -> Iterator[str]:
    """Served as behind a Space's proxy, which the tests are."""
    demo = app.serve(engine, VisitorLimits(visits=3), quiet=True, server_name="127.0.0.1")
    monkeypatch.setenv("SPACE_ID", "somebody/live2diff")
    yield demo.local_url.rstrip("/").replace("http", "ws", 1) + PATH
    demo.close()


def test_too_many_visits_from_one_address_are_told_so_and_others_come_in(address):
    home = {"x-forwarded-for": HOME}
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(connect(address, additional_headers=home))
        forged = {"x-forwarded-for": "9.9.9.9, 8.8.8.8"}
        with connect(address, additional_headers=forged) as fourth:
            assert "3 live visits from your address" in told(fourth, "error")["error"]
            with pytest.raises(ConnectionClosed):
                fourth.recv(60)
        with connect(address, additional_headers={"x-forwarded-for": "9.9.9.9"}) as other:
            other.send(json.dumps({"start": SETTINGS}))
            told(other, "started")


def test_a_crowd_of_sockets_is_refused_and_those_inside_go_on(engine, address, monkeypatch):
    monkeypatch.setattr(live_tab, "SOCKETS_AT_ONCE", 30)
    with started(address) as friend, ExitStack() as held:
        for _ in range(29):
            held.enter_context(connect(address))
        for _ in range(20):
            with pytest.raises(InvalidStatus), connect(address):
                pass
        for number in range(1, 10):
            answer(friend, number)
    with started(address) as newcomer:
        answer(newcomer, 1)
    wait_for(lambda: engine.stats()["streams"] == 0)


@pytest.mark.parametrize("pings", [2.0, 60.0], ids=["unanswered pings", "unread answers"])
def test_who_takes_nothing_is_cut_off_and_costs_nobody_anything(pings, monkeypatch):
    """As when the network is gone without a word."""
    monkeypatch.setattr(live_tab, "PING_SECONDS", pings)
    monkeypatch.setattr(live_session, "TAKEN_SECONDS", 0.5)
    engine = Engine(Identity())  # gives back what it gets: pictures so large that they fill every buffer
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    address = demo.local_url.rstrip("/").replace("http", "ws", 1) + PATH
    with started(address) as friend, started(address, max_queue=1, close_timeout=0) as foe:
        number = 0
        with suppress(ConnectionClosed):
            while engine.stats()["streams"] == 2:
                number += 1
                if pings > 2 or number < 5:
                    foe.send(FRAME.pack(number) + LARGE)
                answer(friend, number)
        wait_for(lambda: engine.stats()["streams"] == 1)
        answer(friend, number + 1)
    demo.close()
    engine.shutdown()


def test_a_flood_is_read_slowly_and_a_friend_is_answered_meanwhile(engine, address, monkeypatch):
    monkeypatch.setattr(live_session, "BYTES_A_SECOND", 100_000.0)
    with started(address) as friend, started(address) as foe:
        foe.send(FRAME.pack(1) + LARGE)  # is paid for for seconds
        foe.send(json.dumps({"update": SETTINGS | {"style": "oil"}}))
        for number in range(1, 10):
            answer(friend, number)
        with pytest.raises(TimeoutError):
            while "updated" not in str(foe.recv(0.2)):
                pass


def test_a_socket_that_says_nothing_is_closed_unless_it_waits_in_line(engine, address, monkeypatch):
    monkeypatch.setattr(live_session, "SILENT_SECONDS", 0.3)
    with connect(address) as idle:
        assert "Nothing came" in told(idle, "error")["error"]
    monkeypatch.setattr(live_session, "SILENT_SECONDS", 300.0)
    with started(address), started(address), connect(address) as third:
        third.send(json.dumps({"start": SETTINGS}))
        told(third, "waiting")
        monkeypatch.setattr(live_session, "SILENT_SECONDS", 0.3)
        for _ in range(2):
            told(third, "waiting")  # once a second


def test_under_three_times_the_load_frames_are_left_out_before_the_model_and_none_is_lost_in_it(address):
    rate = load.OVERLOAD * asyncio.run(load.own_speed(address, frames=10))
    (row,) = asyncio.run(load.load(address, [3], 2.0, rate))
    assert (row["held"], row["in_line"], row["lost_inside"]) == (2, 1, 0)
    assert row["left_out"] > 0.3


def test_strange_prompts_are_words_like_any_others(engine, address):
    with started(address) as socket:
        for prompt in ("\0\0", "<script>alert(1)</script>", "\u202eevil", "\ud800", "🎨" * 900):
            socket.send(json.dumps({"update": SETTINGS | {"prompt": prompt}}))
            assert told(socket, "updated")["updated"] == "pencil"
        assert answer(socket, 1)[0][4] == 1
    wait_for(lambda: engine.stats()["streams"] == 0)


def test_the_limits_are_on_the_page(engine):
    config = json.dumps(app.build(engine, VisitorLimits(visits=7, clips=5)).get_config_file(), default=str)
    assert "At most 7 visits at once" in config and "At most 5 clips at once" in config
