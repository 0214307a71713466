"""A lost device ends the process: live streams and clips get the error, and `/health` reports it."""

import signal
import threading
from collections.abc import Iterator
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES
from helpers.waiting import PATIENCE

import app
from live2diff.cluster.engine import ClusterEngine
from live2diff.command import run_main
from live2diff.errors import DEVICE_LOST, ClipStopped, DeviceLost
from live2diff.runtime import device
from live2diff.serving import device_loss, shutdown
from live2diff.serving.clip_queue import ClipQueue
from live2diff.serving.engine import Engine
from live2diff.serving.shutdown import serve_until_stopped
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import Cut
from live2diff.zerogpu.engine import ZeroGpuEngine

FRAME = np.zeros((32, 32, 3), np.uint8)
ILLEGAL = "CUDA error: an illegal memory access was encountered"
SETTINGS = StreamSettings(steps=1)


@pytest.fixture(params=[False, True], ids=["alone", "together"])
def engine(request, tiny_pipeline) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline, capacity=2, together=request.param)
    yield engine
    engine.shutdown()


class Dying:
    """A GPU that fails at a call of the UNet, and then at everything, or only once."""

    def __init__(self, pipe, monkeypatch, for_good: bool = True):
        self.dead, self.for_good = False, for_good
        self.hook = pipe.unet.register_forward_pre_hook(self.fail)
        monkeypatch.setattr(device, "run_tiny_product", self.product)
        monkeypatch.setattr(device, "is_lost", lambda _: is_lost(torch.device("cuda")))

    def fail(self, *_: object) -> None:
        self.dead = self.for_good
        raise torch.AcceleratorError(f"{ILLEGAL}\nCompile with TORCH_USE_CUDA_DSA")

    def product(self, _: object) -> None:
        if self.dead:
            raise torch.AcceleratorError(ILLEGAL)


is_lost = device.is_lost


@pytest.fixture
def dying(tiny_pipeline, monkeypatch) -> Iterator[Dying]:
    dying = Dying(tiny_pipeline, monkeypatch)
    yield dying
    dying.hook.remove()


def test_every_viewer_gets_the_error_and_nobody_is_admitted(engine, dying):
    for key in ("ann", "bob"):
        engine.open(key, SETTINGS).result(PATIENCE)
    with pytest.raises(DeviceLost, match="has failed, and the server ends"):
        for _ in range(8):
            engine.push("ann", FRAME).result(PATIENCE)
    assert engine.failure == f"The device has failed: {ILLEGAL}"
    assert engine.session_keys() == set()
    with pytest.raises(DeviceLost):
        engine.open("cid", SETTINGS)
    assert engine.stats()["streams"] == 0, "the state can still be asked for"


def test_an_error_that_is_not_sticky_ends_one_stream_only(tiny_pipeline, monkeypatch):
    engine = Engine(tiny_pipeline, capacity=2)
    dying = Dying(tiny_pipeline, monkeypatch, for_good=False)
    engine.open("ann", SETTINGS).result(PATIENCE)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        for _ in range(8):
            engine.push("ann", FRAME).result(PATIENCE)
    dying.hook.remove()
    assert not engine.failure
    engine.open("bob", SETTINGS).result(PATIENCE)
    engine.shutdown()


def test_a_clip_is_stopped_with_the_error(engine, dying, tmp_path):
    jobs = ClipQueue(engine, tmp_path)
    for _ in range(2):  # the one that meets it, and one that comes later
        with pytest.raises(ClipStopped, match="The GPU of this server has failed"):
            for _ in jobs.run("ann", EXAMPLES / "room.mp4", jobs.new_result(), Cut(0, 1), SETTINGS):
                pass


class Page:
    """A page that notes that it is closed."""

    closed = False

    def close(self, verbose: bool = True) -> None:
        self.closed = True


def test_the_process_ends_with_an_error_code(engine, dying, monkeypatch, capsys):
    page = Page()
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # those of the tests stay
    monkeypatch.setattr(threading, "Timer", Mock())  # would kill the tests
    monkeypatch.setattr(shutdown, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(shutdown, "REPORT_SECONDS", 0.01)
    engine.open("ann", SETTINGS).result(PATIENCE)

    def use() -> None:
        while not engine.failure:
            engine.push("ann", FRAME).exception(PATIENCE)

    viewer = threading.Thread(target=use)
    viewer.start()
    code = run_main(app.build_parser(), lambda _: serve_until_stopped(page, engine), [])
    viewer.join(PATIENCE)
    assert code == DEVICE_LOST and page.closed
    assert f"The device has failed: {ILLEGAL}" in capsys.readouterr().err


def test_the_state_is_in_the_health(engine):
    def health() -> dict:
        (function,) = [f for f in app.build(engine).fns.values() if f.api_name == "health"]
        return function.fn()

    assert health()["state"] == "ok"
    engine.failure = "The device has failed: x"
    assert health()["state"] == "The device has failed: x"


@pytest.mark.parametrize("kind", [ZeroGpuEngine, ClusterEngine])
def test_the_device_of_another_process_is_not_tried_in_this_one(kind, monkeypatch):
    monkeypatch.setattr(device, "is_lost", None)
    engine = object.__new__(kind)

    def fail() -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        device_loss.watched(engine, fail)
