"""Clocks: what is timed, how, and how many seconds it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import cv2
import numpy as np
import torch

from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from ..serving.engine import Engine
from ..streaming import steps
from ..streaming.settings import StreamSettings

Call = Callable[[], Any]
Settings = dict[str, Any]
PATIENCE = 600.0  # seconds that one frame may take
SETTLING = 4  # calls before the first that counts
FRAMES_OF_LOOP = 32
STAGES = ("upload", "depth", "encode", "unet", "decode", "download")


def camera(height: int, width: int) -> list[np.ndarray]:
    """Frames of something that moves, uint8 `[height, width, 3]`."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (width + FRAMES_OF_LOOP, height + FRAMES_OF_LOOP))
    return [np.ascontiguousarray(scene[t : t + height, t : t + width]) for t in range(FRAMES_OF_LOOP)]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(calls: dict[str, Call], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds that each call took, `rounds` times. They take turns, so that whatever else the machine does
    hits all alike."""
    for call in calls.values():
        for _ in range(SETTLING):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            synchronise(device)
            begun = time.perf_counter()
            call()
            synchronise(device)
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3)}


class Viewers:
    """Some visitors of an engine of their own, each of whom has a frame at every turn."""

    def __init__(self, pipeline: Live2DiffPipeline, count: int, settings: Settings, frames: list[np.ndarray]):
        self._frames, self._pushed = frames, 0
        self._keys = [f"viewer {number}" for number in range(count)]
        self._engine = Engine(pipeline, capacity=count, idle_seconds=3600.0)
        try:
            for key in self._keys:
                self._engine.open(key, StreamSettings(**settings)).result(PATIENCE)
            while not all(answer.frames for answer in self.push()):
                pass
        except BaseException:
            self.close()
            raise

    def push(self) -> list[Any]:
        """A frame of everybody's, and the answers to all."""
        frame = self._frames[self._pushed % len(self._frames)]
        self._pushed += 1
        answers = [self._engine.push(key, frame) for key in self._keys]
        return [answer.result(PATIENCE) for answer in answers]

    def push_until(self, frame: int) -> None:
        """Go on until so many frames have gone in."""
        while self._pushed < frame:
            self.push()

    def close(self) -> None:
        self._engine.shutdown()


@contextmanager
def stage_clock(pipeline: Live2DiffPipeline) -> Iterator[dict[str, list[float]]]:
    """Seconds of each stage of each frame that streams of `pipeline` work on while it is open. "encode" is
    camera and depth picture in one; resizing belongs to "upload" and "download"."""
    device = pipeline.unet.device
    places = {
        "upload": (steps, "upload"),
        "depth": (pipeline, "inverse_depth"),
        "encode": (pipeline, "encode"),
        "unet": (pipeline, "predict"),
        "decode": (pipeline, "decode"),
        "download": (steps, "download"),
    }
    seconds: dict[str, list[float]] = {stage: [] for stage in places}
    with ExitStack() as undone:
        for stage, (owner, name) in places.items():
            undone.enter_context(timed(owner, name, seconds[stage], device))
        yield seconds


@contextmanager
def timed(owner: Any, name: str, seconds: list[float], device: torch.device) -> Iterator[None]:
    """While it is open, each call of `owner.name` adds the seconds that it took."""
    function, was_its_own = getattr(owner, name), name in vars(owner)

    def call(*arguments: Any, **named: Any) -> Any:
        synchronise(device)
        begun = time.perf_counter()
        result = function(*arguments, **named)
        synchronise(device)
        seconds.append(time.perf_counter() - begun)
        return result

    setattr(owner, name, call)
    try:
        yield
    finally:
        if was_its_own:
            setattr(owner, name, function)
        else:
            delattr(owner, name)


def eagerly(pipeline: Live2DiffPipeline, call: Call) -> Call:
    """The same call without the pipeline's runtime: PyTorch's own kernels, one by one."""

    def run() -> Any:
        runtime, pipeline.runtime = pipeline.runtime, None
        try:
            return call()
        finally:
            pipeline.runtime = runtime

    return run


def first_frame(
    pipeline: Live2DiffPipeline, settings: Settings, frames: list[np.ndarray], rounds: int
) -> list:
    """Seconds from the 8th camera frame of a stream to its first translated ones."""
    seconds = []
    for _ in range(rounds + 1):
        with closing(pipeline.stream(**settings)) as stream:
            for frame in frames[: WARMUP_FRAMES - 1]:
                stream.push(frame)
            begun = time.perf_counter()
            finished = stream.push(frames[WARMUP_FRAMES - 1])
            seconds.append(time.perf_counter() - begun)
            assert len(finished) == WARMUP_FRAMES
    return seconds[1:]


def prompt_change(pipeline: Live2DiffPipeline, settings: Settings, rounds: int) -> list[float]:
    """Seconds that a change of the prompt takes."""
    seconds = []
    with closing(pipeline.stream(**settings)) as stream:
        for number in range(rounds + 1):
            begun = time.perf_counter()
            stream.update(prompt=f"a house with {number} windows")
            synchronise(pipeline.unet.device)
            seconds.append(time.perf_counter() - begun)
    return seconds[1:]
