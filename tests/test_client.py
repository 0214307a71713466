"""The client for programs against a running page."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.browser import Identity, numbered
from helpers.waiting import PATIENCE, wait_for

import app
from live2diff.client import LiveClient, LiveResult
from live2diff.errors import LiveError
from live2diff.serving.engine import Engine
from live2diff.streaming.images import encode_jpeg
from live2diff.streaming.settings import StreamSettings


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    """A page with place for one viewer, on a model that returns its input, and its engine."""
    engine = Engine(Identity(), capacity=1)
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield SimpleNamespace(address=demo.local_url, engine=engine)
    demo.close()
    engine.shutdown()


@pytest.fixture(autouse=True)
def freed(server) -> Iterator[None]:
    """Wait until the stream of this test is freed."""
    yield
    wait_for(lambda: server.engine.stats()["streams"] == 0)


def answer(client: LiveClient, number: int) -> LiveResult:
    client.send(numbered(number, 160, 120))
    return client.receive()


def test_frames_come_back_with_their_numbers_once_the_stream_is_warm(server):
    with LiveClient(server.address, "pencil", "a ball", seed=3, steps=1) as client:
        for number in range(1, 8):
            result = answer(client, number)
            assert (result.image, result.number, result.newest, result.collected) == (None, 0, number, number)
        for number in range(8, 12):
            image = numbered(number, 160, 120)
            frame = image if number % 2 else encode_jpeg(image, 95)
            assert client.send(frame) == number
            result = client.receive()
            assert (result.number, result.newest, result.collected) == (number, number, 0)
            assert np.abs(result.image.astype(int) - image).mean() < 6
            assert 0 < result.work <= result.delay
        (session,) = server.engine.registry.all()
        assert (session.settings.prompt, session.settings.seed, session.settings.steps) == ("a ball", 3, 1)


def test_a_stream_is_updated_and_goes_on_after_a_refusal(address, engine):
    events = []
    with LiveClient(address, "pencil", on_event=events.append) as client:
        answer(client, 1)
        client.update(style="oil", prompt="a cat")
        (session,) = engine.registry.all()
        wait_for(lambda: (session.stream.settings.style, session.stream.settings.prompt) == ("oil", "a cat"))
        client.update(style="nothing like it")
        with pytest.raises(LiveError, match="nothing like it"):
            client.receive()
        assert [event["updated"] for event in events if "updated" in event] == ["oil"]
        assert client.settings.style == "oil"
        with pytest.raises(ValueError, match="open a new one"):
            client.update(seed=2)
        with pytest.raises(ValueError, match="no setting 'stile'"):
            client.update(stile="oil")
        client.restart()
        before = answer(client, 3).newest
        assert answer(client, 4).newest == before + 1


def test_after_a_refusal_all_settings_are_those_that_were_accepted(server, monkeypatch):
    def cache_bytes_of(_: object, settings: StreamSettings) -> int:
        if (settings.steps or 1) > 2:
            raise ValueError("4 denoising steps need more memory than is left. Choose fewer.")
        return 0

    monkeypatch.setattr(server.engine, "cache_bytes_of", cache_bytes_of)
    with LiveClient(server.address, "pencil", steps=1) as client:
        answer(client, 1)
        (session,) = server.engine.registry.all()
        for steps, prompt in ((4, "a cat"), (2, "a dog"), (3, "a bird")):
            is_accepted = steps <= 2
            client.update(steps=steps)
            if not is_accepted:
                with pytest.raises(LiveError, match="Choose fewer"):
                    client.receive()
            client.update(prompt=prompt)
            wait_for(lambda prompt=prompt: answer(client, 2) and session.settings.prompt == prompt)
            assert session.settings.steps == client.settings.steps == (1 if steps == 4 else 2)


def test_an_update_that_is_replaced_before_it_is_refused_is_not_raised(address, engine):
    with LiveClient(address, "pencil", steps=1) as client:
        answer(client, 1)
        (session,) = engine.registry.all()
        for prompt in ("a cat", "a dog"):
            client.update(style="nothing like it")
            client.update(style="oil", prompt=prompt)
            wait_for(lambda prompt=prompt: answer(client, 2) and session.settings.prompt == prompt)
            assert session.settings.style == client.settings.style == "oil"


def test_a_client_sees_its_place_in_line_and_its_last_frame_is_sent_again(server):
    events = []
    first = LiveClient(server.address, "pencil")
    answer(first, 1)
    with LiveClient(server.address, "pencil", on_event=events.append) as second, ThreadPoolExecutor() as pool:
        second.send(numbered(1))
        result = pool.submit(second.receive)
        wait_for(lambda: any(message.get("waiting") == 1 for message in events))
        assert not result.done()
        first.close()
        assert result.result(PATIENCE).newest == 1


def test_a_stream_that_the_server_freed_is_opened_again(server):
    with LiveClient(server.address, "pencil") as client:
        assert [answer(client, number).collected for number in (1, 2)] == [1, 2]
        (key,) = server.engine.session_keys()
        server.engine.close(key).result(PATIENCE)
        assert [answer(client, number).collected for number in (3, 4)] == [1, 2]


def test_refusals_of_the_server_are_raised_with_its_message(server, address):
    with LiveClient(address, "no such style") as client, pytest.raises(LiveError, match="no such style"):
        client.receive()
    with LiveClient(server.address, "pencil") as client:
        answer(client, 1)
        client.send(np.zeros((8, 1300, 3), np.uint8))
        with pytest.raises(LiveError, match="1300x8, the limit is 1280"):
            client.receive()
        with pytest.raises(ConnectionError, match="was lost"):
            client.receive()
        with pytest.raises(ConnectionError, match="was lost"):
            client.send(np.zeros((8, 8, 3), np.uint8))


def test_a_stalled_model_is_noticed_whatever_else_the_server_sends():
    gate = threading.Event()
    engine = Engine(Identity(gate), capacity=1)
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    with LiveClient(demo.local_url, "pencil") as client:
        client.send(numbered(1))
        with pytest.raises(TimeoutError):
            client.receive(timeout=5.0)  # longer than two messages that keep the connection alive
        gate.set()
        assert client.receive().newest == 1
    demo.close()
    engine.shutdown()


@pytest.mark.parametrize(
    ("address", "settings", "error", "words"),
    [
        ("127.0.0.1:7860", {}, ValueError, "give one like http://127.0.0.1:7860"),
        ("http://127.0.0.1:9", {}, OSError, "refused"),
        ("{address}some/where", {}, LiveError, "refuses live streams"),
        ("{address}", {"steps": 7}, ValueError, "steps is 7"),
        ("{address}", {"strenght": 1}, ValueError, "no setting 'strenght'"),
    ],
)
def test_a_client_that_cannot_connect_says_why(server, address, settings, error, words):
    with pytest.raises(error, match=words):
        LiveClient(address.format(address=server.address), "pencil", **settings)


def test_a_program_needs_neither_torch_nor_gradio():
    code = "import sys, live2diff.client; print({'torch', 'gradio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
