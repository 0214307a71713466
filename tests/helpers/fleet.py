"""Steps of the cluster's tests: push frames, end workers and nodes, wait for others."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from helpers.streams import frames

from live2diff.cluster.engine import ClusterEngine
from live2diff.cluster.remote_worker import RemoteWorker
from live2diff.serving.sessions import FrameResult
from live2diff.streaming.images import JPEG_QUALITY, decode_frame, encode_jpeg
from live2diff.streaming.settings import StreamSettings

PATIENCE = 240.0  # seconds that a condition may take


class OffsetClock:
    """The real clock, which a test may put forward."""

    offset = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.offset


def camera(seed: int, count: int) -> list[bytes]:
    """Return JPEGs of noise."""
    return [encode_jpeg(frame, 90) for frame in frames(seed, count)]


def jpeg_of(image: np.ndarray) -> bytes:
    """Return a picture as the page gets it."""
    return encode_jpeg(image, JPEG_QUALITY)


def alone(pipe: Any, jpegs: list[bytes], **settings: Any) -> list[bytes]:
    """Return what a stream of its own makes of a camera's frames: the last picture of each push, or b""."""
    stream = pipe.stream(StreamSettings(**settings))
    pushed = [stream.push(decode_frame(jpeg)) for jpeg in jpegs]
    stream.close()
    return [jpeg_of(out[-1]) if out else b"" for out in pushed]


def wait_until(condition: Callable[[], Any], step: Callable[[], None] = lambda: None) -> None:
    """Wait for a condition, taking a step now and then."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        step()
        time.sleep(0.1)


@dataclass
class Fleet:
    """The cluster of the tests and the engine in front of it."""

    cluster: Any
    engine: ClusterEngine
    clock: OffsetClock
    node_options: dict[str, Any]
    lost_nodes: int = field(default=0)

    def wait_for_workers(self, count: int = 2) -> None:
        """Wait until so many workers are ready, on as many nodes."""
        while self.lost_nodes:
            self.cluster.add_node(**self.node_options)
            self.lost_nodes -= 1
        self.engine.pool.grow(count)
        workers = self.engine.pool.workers
        wait_until(lambda: not any(each.is_draining for each in workers.values()), self.engine.watch)
        wait_until(lambda: len(self.engine.pool.ready()) == count, self.engine.watch)

    def close_streams(self) -> None:
        """Close all streams, and wait until the workers have freed them."""
        for key in self.engine.session_keys():
            self.engine.close(key).result(PATIENCE)
        wait_until(lambda: not any(worker.streams for worker in self.engine.pool.ready()))

    def open(self, key: str, **settings: Any) -> RemoteWorker:
        """Open a stream; return its worker."""
        self.engine.open(key, StreamSettings(**settings)).result(PATIENCE)
        return self.worker_of(key)

    def worker_of(self, key: str) -> RemoteWorker:
        """Return the worker of a stream."""
        return self.engine.registry.get(key).stream.worker

    def push(self, key: str, jpeg: bytes, tag: Any = None) -> FrameResult:
        """Push a frame and wait for its result."""
        return self.engine.push(key, jpeg, tag).result(PATIENCE)

    def push_all(self, key: str, jpegs: list[bytes]) -> list[bytes]:
        """Push frames one after the other; return the last picture of each, or b""."""
        results = [self.push(key, jpeg).frames for jpeg in jpegs]
        return [pictures[-1] if pictures else b"" for pictures in results]

    def push_until_moved(
        self, key: str, worker: RemoteWorker, jpegs: list[bytes]
    ) -> tuple[list[bytes], list[bytes], int]:
        """Push frames until the stream is at another worker.

        Return the frames it goes on from, those it has had since, and how many the old worker still answered.
        """
        for answered, jpeg in enumerate(jpegs):
            kept = list(self.engine.registry.get(key).recent)
            result = self.push(key, jpeg)
            if self.worker_of(key) is not worker:
                return kept, [] if result.moved else [jpeg], answered
        raise AssertionError("the stream has not moved")

    def remove_node_of(self, worker: RemoteWorker) -> None:
        """End the node of a worker with all its processes, as when its machine is gone."""
        parent = process_parent(worker.announced.process)
        [node] = [
            node
            for node in self.cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid == parent
        ]
        os.kill(worker.announced.process, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)
        self.lost_nodes += 1


def process_parent(process: int) -> int:
    """Return the id of a process's parent."""
    with open(f"/proc/{process}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
