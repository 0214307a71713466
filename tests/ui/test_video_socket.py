"""VP9 on the live socket, as a program uses it; the real server, a model that returns its frames."""

import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

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
    started,
)
from helpers.video_frames import encoded, is_key, read_number
from helpers.waiting import PATIENCE, wait_for
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from live2diff.serving.engine import Engine
from live2diff.serving.limits import BYTES_A_SECOND
from live2diff.streaming.images import LARGEST_FRAME, decode_frame
from live2diff.ui import frame_relay, live_session
from live2diff.ui.frame_relay import FrameRelay
from live2diff.ui.video_codec import CameraDecoder, ResultEncoder, VideoError, is_vp9

CHUNKS = [b"", *encoded(range(1, 64))]  # the first is a key frame


@pytest.fixture(scope="module")
def gate() -> threading.Event:
    return threading.Event()


@pytest.fixture(scope="module")
def engine(gate) -> Engine:
    return Engine(Identity(gate), capacity=2)


@pytest.fixture(scope="module")
def address(engine) -> Iterator[str]:
    with served_socket(engine) as address:
        yield address


@pytest.fixture(autouse=True)
def opened(gate, engine) -> Iterator[None]:
    gate.set()
    yield
    gate.set()
    wait_for(lambda: engine.stats()["streams"] == 0)


def warm_up(socket: ClientConnection) -> None:
    """Send the first eight frames as VP9."""
    for number in range(1, 9):
        answer(socket, number, CHUNKS[number])


def decode(decoder: CameraDecoder, chunk: bytes) -> int:
    decoder.put(chunk)
    return read_number(decoder.decode(decoder.take()))


def test_results_are_jpegs_until_vp9_is_asked_for_and_then_in_order_from_a_key_frame_on(address):
    with started(address) as socket:
        for number in range(1, 12):
            (shown, taken, *_), image = answer(socket, number, encoded(range(number, number + 1))[0])
            assert taken == number
            assert number < 8 or (shown == number and read_number(decode_frame(image)) == number)
        send_json(socket, codec="vp9", rate=800_000)
        decoder = CameraDecoder()
        for number in range(20, 40):
            (shown, *_), image = answer(socket, number, encoded(range(number, number + 1))[0])
            assert is_key(image) == (number == 20)
            assert decode(decoder, image) == shown == number
        send_json(socket, codec="jpeg")
        assert decode_frame(answer(socket, 40, CHUNKS[1])[1]).shape == (240, 320, 3)


def test_of_a_burst_all_frames_are_decoded_and_only_the_newest_are_encoded(address, gate, monkeypatch):
    encodes: list[int] = []

    class CountingEncoder(ResultEncoder):
        def encode(self, image: Any) -> bytes:
            encodes.append(read_number(image))
            return super().encode(image)

    monkeypatch.setattr(frame_relay, "ResultEncoder", CountingEncoder)
    with started(address) as socket:
        warm_up(socket)
        send_json(socket, codec="vp9")
        gate.clear()
        for number in range(9, 30):
            send_frame(socket, number, CHUNKS[number])
        send_json(socket, echo=7)
        assert receive(socket, "echo") == {"echo": 7.0}  # all have arrived
        gate.set()
        decoder, numbers = CameraDecoder(), []
        while not numbers or numbers[-1] < 29:
            (shown, *_), image = result(socket)
            assert decode(decoder, image) == shown
            numbers.append(shown)
    assert numbers == sorted(set(numbers)) and len(numbers) < 20
    assert encodes == numbers


def test_a_stream_opened_again_begins_again(address):
    with started(address) as socket:
        warm_up(socket)
        send_json(socket, codec="vp9")
        assert is_vp9(answer(socket, 9, CHUNKS[9])[1])
        send_json(socket, start=SETTINGS)
        receive(socket, "started")
        chunks = encoded(range(12))
        images = [answer(socket, 20 + number, chunk)[1] for number, chunk in enumerate(chunks)]
        assert [len(image) > 0 for image in images] == [False] * 7 + [True] * 5
        assert not any(is_vp9(image) for image in images[7:])


@pytest.mark.parametrize(
    "bad",
    [b"\x82" * 300, CHUNKS[40], encoded(range(1), size=(1400, 100))[0]],
    ids=["noise", "no key frame", "large"],
)
def test_after_a_frame_that_cannot_be_decoded_jpegs_have_to_do(address, bad):
    with started(address) as socket:
        for number in range(1, 9):
            answer(socket, number)
        send_frame(socket, 9, bad)
        assert receive(socket, "codec") == {"codec": "jpeg"}
        send_frame(socket, 10, CHUNKS[1])  # sent before the page knew
        assert receive(socket, "codec") == {"codec": "jpeg"}
        assert answer(socket, 11)[0][:2] == [11, 11]


def test_more_frames_than_a_page_sends_at_once_are_not_kept(address, gate, engine):
    with started(address) as socket:
        warm_up(socket)
        gate.clear()
        (session,) = engine.registry.all()
        # One frame in the model, one before it: from now on the decoder keeps all.
        send_frame(socket, 9, CHUNKS[9])
        wait_for(lambda: not session.result.done() and session.waiting is None)
        send_frame(socket, 10, CHUNKS[10])
        wait_for(lambda: session.waiting is not None)
        for number in range(11, 60):
            send_frame(socket, number, CHUNKS[number])
        send_json(socket, echo=1)
        receive(socket, "echo")
        gate.set()
        assert receive(socket, "codec") == {"codec": "jpeg"}
        send_frame(socket, 60, JPEG)
        while result(socket)[0][1] < 60:
            pass


@pytest.mark.parametrize(
    "hostile",
    [
        {"codec": "h264"},
        {"codec": "vp9", "rate": 1},
        {"codec": "vp9", "rate": 10**12},
        {"echo": "text"},
        b"\x82" * 40 + b"\xc3",
        b"\x82" * (LARGEST_FRAME - 1) + b"\xc3",
    ],
    ids=["codec", "slow", "fast", "echo", "several frames", "several large"],
)
def test_what_no_page_sends_closes_that_socket_alone(address, hostile):
    with started(address) as friend, started(address) as foe:
        if isinstance(hostile, bytes):
            send_frame(foe, 1, hostile)
        else:
            send_json(foe, **hostile)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                foe.recv(PATIENCE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code in (1008, 1009)
        warm_up(friend)


def test_frames_from_before_a_cut_must_be_jpegs(address):
    with started(address) as socket:
        send_frame(socket, 0, CHUNKS[1])
        answer_or_close = receive(socket, "error")
        assert "not a readable JPEG" in answer_or_close["error"]


def test_each_vp9_frame_is_charged_for_its_decoding(address, monkeypatch):
    charged: list[int] = []

    class Budget(live_session.RateBudget):
        async def spend(self, size: int) -> None:
            charged.append(size)

    monkeypatch.setattr(
        live_session.LiveSession.__dataclass_fields__["rate_budget"], "default_factory", Budget
    )
    monkeypatch.setattr(live_session.RateBudget, "spend", Budget.spend)
    with started(address) as socket:
        answer(socket, 1)
        answer(socket, 2, CHUNKS[1])
        assert max(charged[:-1]) < BYTES_A_SECOND / 100 < charged[-1]


def test_encoder_and_decoder_are_freed_with_the_visit(address, engine, monkeypatch):
    held: list[weakref.ref] = []

    def noting(kind: type) -> Any:
        class Noted(kind):
            def __init__(self, *rest: object) -> None:
                super().__init__(*rest)
                held.append(weakref.ref(self))

        return Noted

    for kind in (CameraDecoder, ResultEncoder):
        monkeypatch.setattr(frame_relay, kind.__name__, noting(kind))
    with started(address) as socket:
        warm_up(socket)
        send_json(socket, codec="vp9")
        answer(socket, 9, CHUNKS[9])
        assert [each() is not None for each in held] == [True, True]
    wait_for(lambda: [each() for each in held] == [None, None])


def test_a_result_that_cannot_be_encoded_is_sent_as_a_jpeg(address, monkeypatch):
    def fail(encoder: ResultEncoder, image: object) -> bytes:
        raise VideoError("no")

    monkeypatch.setattr(ResultEncoder, "encode", fail)
    with started(address) as socket:
        for number in range(1, 9):
            answer(socket, number)
        send_json(socket, codec="vp9")
        assert decode_frame(answer(socket, 9)[1]).shape == (48, 64, 3)


def test_an_engine_that_takes_jpegs_offers_no_other():
    engine: Any = SimpleNamespace(takes_jpegs=True)
    assert FrameRelay(engine, "key", lambda data: None).codecs == []  # type: ignore[arg-type]
