"""Limits of the Live tab's socket: what a hostile or broken client cannot take from the others."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import cv2
import gradio as gr
import numpy as np
import pytest
from helpers.browser import Identity
from helpers.live_socket import (
    JPEG,
    SETTINGS,
    answer,
    receive,
    result,
    send_frame,
    send_json,
    served_socket,
    socket_address,
    started,
)
from helpers.page import served_page
from helpers.waiting import wait_for
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode
from websockets.protocol import Event
from websockets.sync.client import connect
from websockets.uri import parse_uri

from live2diff.serving.engine import Engine
from live2diff.serving.limits import BURST_SECONDS, MESSAGES_A_SECOND, VisitorLimits
from live2diff.streaming.images import LARGEST_FRAME, decode_frame
from live2diff.ui import frame_relay, live_session, live_tab
from live2diff.ui.frame_relay import FRAMES_IN_ENGINE, CameraFrame
from live2diff.ui.live_session import RateBudget
from live2diff.ui.live_tab import configure_sockets

AT_ONCE = 1e-9  # seconds; uvicorn takes 0 for never
HOME = {"x-forwarded-for": "8.8.8.8"}
NOISE = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
LARGE = cv2.imencode(".jpg", NOISE)[1].tobytes()


@pytest.fixture(scope="module")
def engine(tiny_pipeline) -> Engine:
    return Engine(tiny_pipeline, capacity=2)


@pytest.fixture(scope="module")
def demo(engine) -> Iterator[gr.Blocks]:
    with served_page(engine, VisitorLimits(visits=3)) as demo:
        yield demo


@pytest.fixture
def address(demo, engine, monkeypatch) -> Iterator[str]:
    """Serve as behind a Space's proxy, whose headers the tests send."""
    monkeypatch.setenv("SPACE_ID", "somebody/live2diff")
    yield socket_address(demo)
    wait_for(lambda: engine.stats()["streams"] == 0)


def events_of_a_silent_client(address: str) -> list[Event]:
    """Open a socket that answers no ping, and return its events until the server closes it."""
    parts = urlsplit(address)
    protocol = ClientProtocol(parse_uri(address))
    protocol.send_request(protocol.connect())
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(b"".join(protocol.data_to_send()))
        while data := connection.recv(65536):
            protocol.receive_data(data)
    return protocol.events_received()


def test_too_many_sessions_from_one_address_are_rejected_and_others_are_served(address):
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(connect(address, additional_headers=HOME))
        forged = {"x-forwarded-for": "9.9.9.9, 8.8.8.8"}
        with connect(address, additional_headers=forged) as fourth:
            assert "3 live visits from your address" in receive(fourth, "error")["error"]
            with pytest.raises(ConnectionClosed):
                receive(fourth, "anything")
        with connect(address, additional_headers={"x-forwarded-for": "9.9.9.9"}) as other:
            send_json(other, start=SETTINGS)
            receive(other, "started")


def test_a_crowd_of_sockets_is_refused_and_open_ones_go_on(address, monkeypatch):
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


def test_the_server_deflates_nothing_and_takes_no_message_over_the_limit(address):
    """Fails if Gradio no longer passes these settings on to its server."""
    with connect(address) as foe:
        assert "Sec-WebSocket-Extensions" not in foe.response.headers
        foe.send(bytes(LARGEST_FRAME + 100))
        with pytest.raises(ConnectionClosed) as closed:
            receive(foe, "anything")
        assert closed.value.rcvd.code == 1009


def test_a_client_that_answers_no_ping_is_disconnected(demo, address, engine, monkeypatch):
    """As when the network is dead; fails if Gradio no longer passes the interval on to its server."""
    with started(address) as friend:
        assert 2 * live_tab.PING_SECONDS <= 10  # when a dead network must have been noticed
        with monkeypatch.context() as patch:
            patch.setattr(live_tab, "PING_SECONDS", AT_ONCE)
            configure_sockets(demo)
            _, *frames = events_of_a_silent_client(address)
        configure_sockets(demo)
        assert [frame.opcode for frame in frames] == [Opcode.PING, Opcode.CLOSE]
        answer(friend, 1)


def test_a_client_that_reads_nothing_is_cut_off(monkeypatch):
    """Fails if Gradio's server no longer lists its connections."""
    monkeypatch.setattr(live_session, "TAKEN_SECONDS", 0.0)  # a send that has to wait is given up at once
    engine = Engine(Identity())  # its results are so large that they fill every buffer
    with (
        served_socket(engine) as address,
        started(address) as friend,
        started(address, max_queue=1, close_timeout=0) as foe,
    ):
        number = 0
        with suppress(ConnectionClosed):
            while engine.stats()["streams"] == 2:
                number += 1
                send_frame(foe, number, LARGE)
                answer(friend, number)
        wait_for(lambda: engine.stats()["streams"] == 1)
        answer(friend, number + 1)


def test_the_rate_budget_allows_a_burst_and_then_the_limit():
    now = 100.0
    budget = RateBudget(clock=lambda: now)
    burst = round(BURST_SECONDS * MESSAGES_A_SECOND)
    assert [budget.charge(10) for _ in range(burst)] == pytest.approx([0.0] * burst, abs=1e-9)
    assert budget.charge(10) == pytest.approx(1 / MESSAGES_A_SECOND)
    now += 1000.0
    assert budget.charge(10) == 0.0
    waits = [budget.charge(LARGEST_FRAME) for _ in range(100)]
    assert waits[0] == 0.0 and waits[-1] > 5.0


def test_a_flood_is_read_slowly_while_others_are_answered(demo, address, monkeypatch):
    paid = threading.Event()

    async def spend(_: RateBudget, size: int) -> None:
        if size > len(LARGE):
            await asyncio.to_thread(paid.wait)

    monkeypatch.setattr(RateBudget, "spend", spend)
    with started(address) as friend, monkeypatch.context() as patch:
        patch.setattr(live_tab, "PING_SECONDS", 3600.0)  # while it is not read, its pongs are not either
        configure_sockets(demo)
        with started(address) as foe:
            answer(foe, 1, LARGE)
            send_json(foe, update=SETTINGS | {"style": "oil"})
            for number in range(1, 10):
                answer(friend, number)
            send_json(friend, update=SETTINGS | {"style": "oil"})
            receive(friend, "updated")
            with pytest.raises(TimeoutError):
                while "updated" not in str(foe.recv(timeout=0)):
                    pass
            paid.set()
            receive(foe, "updated")
    configure_sockets(demo)


def test_a_socket_that_sends_nothing_is_closed_unless_it_waits_in_line(address, monkeypatch):
    with started(address), started(address), connect(address) as third:
        send_json(third, start=SETTINGS)
        receive(third, "waiting")
        monkeypatch.setattr(live_session, "SILENT_SECONDS", 0.0)
        with connect(address) as idle:
            assert "sent nothing" in receive(idle, "error")["error"]
        send_json(third, start=SETTINGS)  # its next wait is under the new limit
        receive(third, "resume")
        for _ in range(2):
            receive(third, "waiting")


def test_under_overload_frames_are_dropped_undecoded_and_the_newest_is_shown(monkeypatch):
    arrived, decoded = [], []

    class CountingRelay(frame_relay.FrameRelay):
        def put(self, frame: CameraFrame) -> None:
            super().put(frame)
            arrived.append(frame)

    def decode(jpeg: bytes) -> np.ndarray:
        decoded.append(jpeg)
        return decode_frame(jpeg)

    monkeypatch.setattr(live_session, "FrameRelay", CountingRelay)
    monkeypatch.setattr(frame_relay, "decode_frame", decode)
    gate = threading.Event()
    engine = Engine(Identity(gate), capacity=2)
    with served_socket(engine) as address, started(address) as first, started(address) as second:
        for number in range(1, 31):
            for viewer in (first, second):
                send_frame(viewer, number)
            if number <= FRAMES_IN_ENGINE:  # these go to the engine before the next ones come
                wait_for(lambda taken=2 * number: len(decoded) == taken)
        wait_for(lambda: len(arrived) == 60)
        gate.set()
        for viewer in (first, second):
            newest, count = 0, 0
            while newest < 30:
                newest, count = result(viewer)[0][1], count + 1
            assert count <= 3
        assert len(decoded) == 6  # for each two while the model was busy, and then the newest
        for number in range(31, 40):
            header, jpeg = answer(first, number)
        assert header[:2] == [39, 39] and jpeg


def test_strange_prompts_are_accepted(address):
    with started(address) as viewer:
        for prompt in ("\0\0", "<script>alert(1)</script>", "\u202eevil", "\ud800", "🎨" * 900):
            send_json(viewer, update=SETTINGS | {"prompt": prompt})
            assert receive(viewer, "updated")["updated"] == "pencil"
        assert answer(viewer, 1, JPEG)[0][4] == 1
