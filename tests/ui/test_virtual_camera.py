"""The virtual camera on a device in place of pyvirtualcam's, with a running page and its client."""

import logging
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.browser import Identity
from helpers.page import served_page
from helpers.waiting import wait_for

import app
from live2diff.client import LiveClient
from live2diff.serving.engine import Engine
from live2diff.serving.futures import resolved
from live2diff.serving.sessions import FrameResult
from live2diff.ui.virtual_camera import HEIGHT, MISSING, WIDTH, VirtualCamera, letterbox, open_device

RED, BLUE = (250, 5, 5), (5, 5, 250)


class FakeDevice:
    """Keeps the last frame; `error` is raised by the next `send`."""

    frame: np.ndarray | None = None
    error: Exception | None = None
    closed = False

    def send(self, frame: np.ndarray) -> None:
        if self.error:
            raise self.error
        assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
        self.frame = frame

    def sleep_until_next_frame(self) -> None:
        time.sleep(0.005)  # leaves the processor to the server

    def close(self) -> None:
        self.closed = True

    def shows(self, colour: tuple[int, int, int]) -> bool:
        """Return whether the middle of the frame has this colour."""
        middle = (-99,) * 3 if self.frame is None else self.frame[HEIGHT // 2, WIDTH // 2].astype(int)
        return bool(np.abs(middle - np.array(colour)).max() < 12)


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    engine = Engine(Identity(), capacity=2)
    with served_page(engine) as demo:
        device = FakeDevice()
        camera = VirtualCamera(engine, device)
        yield SimpleNamespace(address=demo.local_url, device=device)
        camera.close()
    assert device.closed


def warm_up(client: LiveClient, colour: tuple[int, int, int]) -> None:
    for _ in range(9):
        client.send(np.full((60, 80, 3), colour, np.uint8))
        client.receive()


def test_the_first_visitor_has_the_camera_until_they_leave(server):
    wait_for(lambda: server.device.shows((0, 0, 0)))
    with LiveClient(server.address, "pencil") as second:
        with LiveClient(server.address, "pencil") as first:
            warm_up(first, RED)
            wait_for(lambda: server.device.shows(RED))
            warm_up(second, BLUE)
            assert server.device.shows(RED)
        wait_for(lambda: server.device.shows((0, 0, 0)))
        warm_up(second, BLUE)
        wait_for(lambda: server.device.shows(BLUE))


def test_a_result_that_comes_while_the_camera_changes_hands_is_shown():
    """The device thread has read the former owner's key and then sees that this session is gone."""
    asked, answer, keys = threading.Event(), threading.Event(), {"first"}

    def session_keys() -> set[str]:
        if threading.current_thread().name == "virtual camera" and keys == {"second"} and not answer.is_set():
            asked.set()
            answer.wait()
        return keys

    def push(key: str, frame: np.ndarray, tag: object = None) -> Future:
        return late if tag == "late" else resolved(FrameResult([frame], tag, frames_in=1, warm=True))

    late: Future[FrameResult] = Future()
    device = FakeDevice()
    engine = SimpleNamespace(push=push, session_keys=session_keys)
    camera = VirtualCamera(engine, device)  # pyright: ignore[reportArgumentType]
    engine.push("first", np.full((60, 80, 3), RED, np.uint8))
    wait_for(lambda: device.shows(RED))
    engine.push("first", np.full((60, 80, 3), RED, np.uint8), "late")
    keys = {"second"}
    asked.wait()
    engine.push("second", np.full((60, 80, 3), BLUE, np.uint8))
    answer.set()
    wait_for(lambda: device.shows(BLUE))
    late.set_result(FrameResult([np.full((60, 80, 3), RED, np.uint8)], "late", frames_in=2, warm=True))
    device.frame = None
    wait_for(lambda: device.frame is not None)
    assert device.shows(BLUE)
    camera.close()


def test_a_device_that_fails_leaves_the_stream_alone(server, caplog):
    with LiveClient(server.address, "pencil") as client, caplog.at_level(logging.ERROR):
        warm_up(client, RED)
        server.device.error = RuntimeError("the device is gone")
        wait_for(lambda: server.device.closed)
        warm_up(client, RED)
    assert "goes on without it" in caplog.text


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (1, 300), (720, 1280)])
def test_images_fit_in_their_aspect_on_black(shape):
    framed = letterbox(np.full((*shape, 3), 200, np.uint8))
    assert framed.shape == (HEIGHT, WIDTH, 3)
    rows, columns = (np.flatnonzero(framed.max(axis=(axis, 2))) for axis in (1, 0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height == HEIGHT or width == WIDTH
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.02 if min(shape) > 1 else 0.3)
    assert abs(rows[0] - (HEIGHT - 1 - rows[-1])) <= 1 and abs(columns[0] - (WIDTH - 1 - columns[-1])) <= 1


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, MISSING),
        (SimpleNamespace(Camera=lambda *_: (_ for _ in ()).throw(RuntimeError("no\ndevice"))), "modprobe"),
    ],
    ids=["no package", "no device"],
)
def test_what_is_missing_is_said_before_anything_is_loaded(module, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    monkeypatch.setattr(app, "start_engine", None)
    with pytest.raises(ValueError, match=message.split(":")[0]):
        open_device()
    assert app.main(["--model", "nano", "--virtual-camera"]) == 2
    assert message in capsys.readouterr().err
