"""The Live tab's socket as programs use it, well-behaved and hostile; a tiny model, the real server."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
from helpers.browser import Identity, IdentityStream
from helpers.live_socket import (
    IMAGE,
    JPEG,
    SETTINGS,
    answer,
    cut,
    receive,
    result,
    send_json,
    served_socket,
    started,
)
from helpers.waiting import PATIENCE, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from live2diff.serving.engine import Engine
from live2diff.streaming.images import LARGEST_FRAME, decode_frame
from live2diff.streaming.settings import StreamSettings
from live2diff.ui.live_protocol import FRAME, PATH


@pytest.fixture(scope="module")
def engine(tiny_pipeline) -> Engine:
    return Engine(tiny_pipeline, capacity=2)


@pytest.fixture(scope="module")
def address(engine) -> Iterator[str]:
    with served_socket(engine) as address:
        yield address


def test_frames_are_counted_during_the_warmup_and_then_come_back_as_images(engine, address):
    with started(address) as socket:
        for number in range(1, 8):
            (shown, taken, held, worked, gathered), jpeg = answer(socket, number)
            assert (shown, taken, gathered, jpeg) == (0, number, number, b"")
            assert 0 < worked <= held
        for number in (8, 9, 12):
            (shown, taken, *_, gathered), jpeg = answer(socket, number)
            assert (shown, taken, gathered) == (number, number, 0)
            assert decode_frame(jpeg).shape == IMAGE.shape
        socket.send(json.dumps({"update": SETTINGS | {"style": "oil"}}))
        assert receive(socket, "updated")["updated"] == "oil"
        socket.send(json.dumps({"update": SETTINGS | {"style": "nothing like it"}}))
        assert receive(socket, "refused")["style"] == "oil"
        socket.send(json.dumps({"restart": True}))
        assert answer(socket, 13)[0][0] == 13
        socket.send(json.dumps({"stop": True}))
        wait_for(lambda: engine.stats()["streams"] == 0)
        socket.send(json.dumps({"start": SETTINGS}))  # and once more on the same socket
        receive(socket, "started")
        assert answer(socket, 14)[0][4] == 1
    wait_for(lambda: engine.stats()["streams"] == 0)


class Downloading(Identity):
    """A model with styles to download: the events in `come` let a download end; comic's fails."""

    def __init__(self) -> None:
        super().__init__()
        self.come = {style: threading.Event() for style in ("neon", "comic")}
        file = ("a.safetensors", 1.0)
        self.styles |= {name: replace(self.styles[name], loras=(file,)) for name in self.come}

    def fetch(self, style: str | None) -> None:
        if event := self.come.get(style or ""):
            assert event.wait(PATIENCE)
        if style == "comic":
            raise OSError("comic cannot be downloaded")


def test_a_style_that_was_left_while_it_was_downloaded_is_neither_applied_nor_refused():
    model = Downloading()
    with served_socket(Engine(model)) as address, started(address) as socket:
        for left in ("neon", "comic"):
            send_json(socket, update=SETTINGS | {"style": left})
            assert receive(socket, "loading") == {"loading": left}
            send_json(socket, update=SETTINGS | {"style": "ink"})
            model.come[left].set()
            send_json(socket, update=SETTINGS | {"style": "oil", "prompt": left})
            while (message := receive(socket, "refused", "updated")).get("updated") != "oil":
                assert message.get("updated") == "ink", message
        send_json(socket, update=SETTINGS | {"style": "comic"})  # and no other is chosen meanwhile
        refused = receive(socket, "refused")
        assert (refused["refused"], refused["style"]) == ("comic cannot be downloaded", "oil")
        assert refused["settings"].items() >= {"style": "oil", "prompt": "comic"}.items()


def test_settings_that_are_refused_after_others_were_chosen_are_not_spoken_of(monkeypatch):
    entered, release = threading.Event(), threading.Event()

    def update(stream: IdentityStream, settings: StreamSettings, **options: object) -> None:
        if settings.style == "comic":
            entered.set()
            assert release.wait(PATIENCE)
            raise ValueError("not now")

    monkeypatch.setattr(IdentityStream, "update", update)
    with served_socket(Engine(Identity())) as address, started(address) as socket:
        send_json(socket, update=SETTINGS | {"style": "comic"})
        assert entered.wait(PATIENCE)
        send_json(socket, update=SETTINGS | {"style": "ink"})
        send_json(socket, echo=1)  # once it is answered, ink has been read
        receive(socket, "echo")
        release.set()
        assert receive(socket, "refused", "updated").get("updated") == "ink"


def test_a_style_is_downloaded_before_a_place_is_taken():
    model = Downloading()
    with served_socket(Engine(model, capacity=1)) as address, connect(address) as socket:
        send_json(socket, start=SETTINGS | {"style": "neon"})
        assert receive(socket, "loading") == {"loading": "neon"}
        with started(address):
            model.come["neon"].set()
            assert receive(socket, "waiting")["waiting"] == 1
        receive(socket, "started")


def test_a_burst_of_frames_drops_all_but_the_newest(engine, address, monkeypatch):
    call, release = engine.call, threading.Event()

    def held(*arguments: object, **options: object) -> object:
        assert release.wait(PATIENCE)
        return call(*arguments, **options)

    with started(address) as socket:
        for number in range(1, 9):
            answer(socket, number)
        monkeypatch.setattr(engine, "call", held)
        for number in range(9, 60):
            socket.send(FRAME.pack(number) + JPEG)
        send_json(socket, echo=1)  # once it is answered, all frames have been read
        receive(socket, "echo")
        release.set()
        taken = 0
        answers = 0
        while taken < 59:
            taken, answers = result(socket)[0][1], answers + 1
        assert answers <= 4  # two in the engine, one that waits there, one in the relay
    wait_for(lambda: engine.stats()["streams"] == 0)


def test_a_stream_with_other_settings_replaces_the_last_one(engine, address):
    with started(address) as socket:
        for number in range(1, 9):
            answer(socket, number)
        socket.send(json.dumps({"start": SETTINGS | {"steps": 3, "strength": 0.4, "seed": 5}}))
        receive(socket, "started")
        assert engine.stats()["streams"] == 1
        assert answer(socket, 9)[0][4] == 1
        socket.send(json.dumps({"start": SETTINGS | {"steps": 9}}))
        assert "steps is 9" in receive(socket, "error")["error"]
    wait_for(lambda: engine.stats()["streams"] == 0)


def claim_enormous_size(data: bytes) -> bytes:
    start = data.index(b"\xff\xc0") + 5  # height and width in the header
    return data[:start] + b"\xff\xdc\xff\xdc" + data[start + 4 :]


@pytest.mark.parametrize(
    "hostile",
    [
        "not JSON",
        json.dumps({"start": SETTINGS | {"seed": 1.5}}),
        b"",
        b"\0\0",
        FRAME.pack(1) + b"GIF89a",
        FRAME.pack(1) + JPEG[:30],
        FRAME.pack(1) + claim_enormous_size(JPEG),
        bytes(LARGEST_FRAME + 100),
    ],
    ids=[
        "garbage", "float seed", "empty", "short", "gif", "cut off", "enormous image", "too large",
    ],
)  # fmt: skip
def test_messages_that_the_page_never_sends_close_that_socket_alone(engine, address, hostile):
    """All other messages like these: `test_live_protocol.py`."""
    with started(address) as friend, started(address) as foe:
        foe.send(hostile)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                foe.recv(PATIENCE)
        assert closed.value.rcvd.code in (1008, 1009)
        wait_for(lambda: engine.stats()["streams"] == 1)
        for number in range(1, 9):
            answer(friend, number)
    wait_for(lambda: engine.stats()["streams"] == 0)


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null"])
def test_pages_of_other_sites_are_refused(address, origin):
    with pytest.raises(InvalidStatus), connect(address, origin=origin):
        pass


def test_the_own_page_is_accepted_behind_a_proxy_as_well(address):
    own = address.replace("ws", "http", 1).removesuffix(PATH)
    with connect(address, origin=own):
        pass
    forwarded = {"x-forwarded-host": "somebody-live2diff.example"}
    with connect(address, origin="https://somebody-live2diff.example", additional_headers=forwarded):
        pass


def test_a_viewer_beyond_the_capacity_waits_in_line_and_gets_a_place(engine, address):
    with started(address) as first, started(address), connect(address) as third:
        third.send(json.dumps({"start": SETTINGS}))
        waiting = receive(third, "waiting")
        assert waiting["waiting"] == 1 and waiting["seconds"] > 0
        assert receive(first, "time_left")["time_left"] > 0
        first.close()
        receive(third, "started")
        assert answer(third, 1)[0][4] == 1
    wait_for(lambda: engine.stats()["streams"] == 0)


def test_a_socket_that_is_reset_frees_its_stream(engine, address):
    """The last one here: its place is held for a while, and others would wait for it."""
    with started(address) as socket:
        assert engine.stats()["streams"] == 1
        cut(socket)
        wait_for(lambda: engine.stats()["streams"] == 0)
