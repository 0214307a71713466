"""Streams whose workers fail or drain, with real workers in this process."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is an extra: pip install '.[cluster]'")

from helpers.fleet import camera
from helpers.local_actors import CRASH, LocalActor, LocalRay, local_cluster, local_ray, wait_for_workers
from helpers.recall import Recall, RecallStream
from helpers.streams import frames
from helpers.waiting import PATIENCE, wait_for

from live2diff.cluster import sessions
from live2diff.cluster.engine import ClusterEngine
from live2diff.errors import StreamClosed
from live2diff.runtime import device
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings


@pytest.fixture
def actors(monkeypatch) -> Iterator[LocalRay]:
    with local_ray(monkeypatch) as actors:
        yield actors


def engine_of(pipe: Any) -> Engine:
    return Engine(pipe, capacity=4, idle_seconds=float("inf"))


def open_stream(engine: ClusterEngine, key: str, **settings: Any) -> Any:
    engine.open(key, StreamSettings(steps=1, **settings)).result(PATIENCE)
    return engine.registry.get(key)


def push_all(engine: ClusterEngine, key: str, jpegs: list[bytes]) -> list[Any]:
    return [engine.push(key, jpeg).result(PATIENCE) for jpeg in jpegs]


class Deadly(Recall):
    """A model that ends its process with the first picture in one style."""

    def stream(self, settings: StreamSettings | None = None, **options: Any) -> RecallStream:
        return DeadlyStream(self.styles, settings or StreamSettings())


class DeadlyStream(RecallStream):
    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        if self.settings.style == "neon" and self.frames_in == 7:
            raise RuntimeError(CRASH)
        return super().push(frame)


def visit(engine: ClusterEngine, key: str) -> None:
    """Do as the page: open a stream, push frames until it ends, and close it."""
    wait_for_workers(engine, 2)
    open_stream(engine, key, style="neon")
    try:
        push_all(engine, key, camera(1, 20))
    finally:
        engine.close(key).result(PATIENCE)


def test_a_page_whose_streams_end_their_workers_is_stopped(actors, monkeypatch):
    crashes: list[Any] = []
    monkeypatch.setattr(LocalActor, "crash", noting(crashes))
    with local_cluster(lambda: engine_of(Deadly())) as engine:
        with pytest.raises(StreamClosed, match="first in line"):
            visit(engine, "ann")
        with pytest.raises(RuntimeError, match="4 workers were lost over this stream"):
            visit(engine, "ann")
        assert len(crashes) == 4
        wait_for_workers(engine, 2)
        open_stream(engine, "bob", style="pencil")
        assert push_all(engine, "bob", camera(2, 9))[-1].frames, "others are served"


def noting(calls: list[Any]) -> Callable[..., None]:
    """Return `LocalActor.crash` that notes its calls."""
    crash = LocalActor.crash

    def noted(actor: LocalActor, restart: bool = True) -> None:
        calls.append(actor)
        crash(actor, restart)

    return noted


def test_a_viewer_who_gets_images_in_between_may_lose_any_number_of_workers(actors):
    clip = camera(3, 9)
    with local_cluster(lambda: engine_of(Recall())) as engine:
        session = open_stream(engine, "ann", style="pencil")
        for _ in range(6):
            push_all(engine, "ann", clip)
            former = session.stream.worker
            former.actor.crash()
            push_all(engine, "ann", clip[:2])
            assert session.stream.worker is not former
            wait_for_workers(engine, 2)
        session.stream.worker.actor.crash()
        push_all(engine, "ann", clip[:1])
        engine.close("ann").result(PATIENCE)
        assert engine._losses == {}, "who has left is forgotten"


class Fragile(Recall):
    """A model with a device of its own, which can be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = SimpleNamespace(device=SimpleNamespace(type="cpu", is_lost=False))

    def stream(self, settings: StreamSettings | None = None, **options: Any) -> RecallStream:
        stream = FragileStream(self.styles, settings or StreamSettings())
        stream.device = self.unet.device
        return stream


class FragileStream(RecallStream):
    device: Any

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        if self.device.is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().push(frame)


def lose_the_device_of(worker: Any) -> None:
    worker.actor.instance.engine.pipe.unet.device.is_lost = True


def test_a_viewer_leaves_a_worker_whose_device_is_lost(actors, monkeypatch):
    monkeypatch.setattr(device, "is_lost", lambda device: device.is_lost)
    clip = camera(4, 20)
    with local_cluster(lambda: engine_of(Fragile())) as engine:
        ann, bob = (open_stream(engine, key, style="pencil") for key in ("ann", "bob"))
        for key in ("ann", "bob"):
            push_all(engine, key, clip[:9])
        assert ann.stream.worker is not bob.stream.worker
        lose_the_device_of(ann.stream.worker)
        results = push_all(engine, "ann", clip[9:12])
        assert [result.moved for result in results] == [True, False, False] and results[-1].frames
        assert ann.stream.worker is bob.stream.worker


def test_a_clip_leaves_a_worker_whose_device_is_lost(actors, monkeypatch):
    monkeypatch.setattr(device, "is_lost", lambda device: device.is_lost)
    monkeypatch.setattr(sessions, "CLIP_SECONDS", 0.0)
    clip = frames(5, 20)
    with local_cluster(lambda: engine_of(Fragile())) as engine:
        with engine.clip("ann/clip", StreamSettings(style="pencil", steps=1)) as stream:
            outs = [out for frame in clip[:12] for out in stream.push(frame)]
            [worker] = [worker for worker in engine.pool.ready() if worker.streams]
            lose_the_device_of(worker)
            outs += [out for frame in clip[12:] for out in stream.push(frame)] + stream.flush()
            assert len(outs) == len(clip)


class Downloading(Recall):
    """A model whose styles are downloaded while a gate is open."""

    def __init__(self, gate: threading.Event, fetches: list[str | None]) -> None:
        super().__init__()
        self._gate, self._fetches = gate, fetches

    def fetch(self, style: str | None) -> None:
        self._fetches.append(style)
        assert self._gate.wait(PATIENCE)


def test_a_drain_has_no_gap_while_the_next_worker_downloads_the_style(actors):
    clip, gate, fetches = camera(6, 60), threading.Event(), []
    gate.set()
    with local_cluster(lambda: engine_of(Downloading(gate, fetches))) as engine:
        session = open_stream(engine, "ann", style="felt")
        push_all(engine, "ann", clip[:10])
        former = session.stream.worker
        gate.clear()
        engine.drain(former.key)
        wait_for(lambda: len(fetches) == 2)
        for jpeg in clip[10:20]:
            engine.watch()
            [result] = push_all(engine, "ann", [jpeg])
            assert len(result.frames) == 1, "a gap"
        assert fetches == ["felt"] * 2 and session.stream.worker is former
        gate.set()
        wait_for(lambda: session.successor is not None and session.successor.frames_in == 8)
        for jpeg in clip[20:]:
            [result] = push_all(engine, "ann", [jpeg])
            assert len(result.frames) == 1, "a gap"
            wait_for(lambda: session.successor is None or not session.successor.calls)
            if session.stream.worker is not former:
                break
        assert session.stream.worker is not former
        wait_for_workers(engine, 2)
