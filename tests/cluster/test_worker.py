"""A worker's process."""

import asyncio
import os
import threading
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from helpers.recall import Recall, RecallStream
from helpers.waiting import PATIENCE

from live2diff.cluster.worker import Worker, load_engine
from live2diff.errors import DEVICE_LOST
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings


@pytest.mark.parametrize(("failure", "codes"), [("", []), ("The device has failed: x", [DEVICE_LOST])])
def test_it_ends_when_its_device_is_lost_and_ray_starts_another(monkeypatch, failure, codes):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    worker = Worker(lambda: SimpleNamespace(failure=failure))
    asyncio.run(worker.ping())
    assert ended == [], "it has no engine yet"
    worker._engine = worker._make_engine()
    asyncio.run(worker.ping())
    assert ended == codes


def test_its_engine_has_the_size_that_was_given(tiny_pipeline):
    size = tiny_pipeline.config.size
    engine = load_engine(lambda: tiny_pipeline, size=48)
    engine.shutdown()
    tiny_pipeline.register_to_config(size=size)
    assert engine.size == 48


class NotedEngine(Engine):
    """An engine that says when it was shut down."""

    is_shut_down = False

    def shutdown(self) -> None:
        super().shutdown()
        self.is_shut_down = True


class Failing(Recall):
    """A model whose streams fail."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__()
        self.error = error

    def stream(self, *_: Any, **__: Any) -> RecallStream:
        stream = FailingStream(self.styles, StreamSettings())
        stream.error = self.error
        return stream


class FailingStream(RecallStream):
    error: RuntimeError

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        raise self.error


@pytest.fixture
def on_a_node(monkeypatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))


def test_an_engine_that_cannot_warm_up_is_shut_down(on_a_node):
    engines: list[NotedEngine] = []

    def make_engine() -> Engine:
        engines.append(NotedEngine(Failing(RuntimeError("no kernel image is available")), capacity=2))
        return engines[-1]

    worker = Worker(make_engine)
    for number in (1, 2):
        said, error = asyncio.run(worker.announce())
        assert said is None and "no kernel image" in str(error)
        assert [engine.is_shut_down for engine in engines] == [True] * number


def test_too_little_memory_for_the_model_gives_a_message_for_the_operator(on_a_node):
    error = RuntimeError("CUDA error: out of memory")
    worker = Worker(lambda: NotedEngine(Failing(error), capacity=2))
    _, failure = asyncio.run(worker.announce())
    assert isinstance(failure, ValueError) and "--small-memory" in str(failure)


class NotingLock:
    """A lock that says when it is waited for."""

    def __init__(self) -> None:
        self.lock, self.is_waited_for = threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        if not self.lock.acquire(blocking=False):
            self.is_waited_for.set()
            self.lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_two_announcements_at_once_load_one_model(on_a_node):
    engines: list[Engine] = []
    lock = NotingLock()

    def make_engine() -> Engine:
        engines.append(Engine(Recall(), capacity=2, idle_seconds=float("inf")))
        if len(engines) == 1:
            second.start()
            assert lock.is_waited_for.wait(PATIENCE)
        else:
            lock.is_waited_for.set()
        return engines[-1]

    worker = Worker(make_engine)
    worker._getting_ready = lock
    second = threading.Thread(target=lambda: asyncio.run(worker.announce()))
    said, error = asyncio.run(worker.announce())
    second.join(PATIENCE)
    assert error is None and said.slots == 2 and len(engines) == 1
    worker.engine.shutdown()
