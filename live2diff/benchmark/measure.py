"""Time calls and stages of a pipeline, alone and by turns."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import cycle
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch

from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from ..serving.engine import Engine
from ..streaming import steps
from ..streaming.images import Download
from ..streaming.settings import StreamSettings

Call = Callable[[], Any]
FRAME_TIMEOUT = 600.0  # seconds
UNTIMED_CALLS = 4  # before the first that counts
LOOP_FRAMES = 32
STAGES = {  # the method of the pipeline or of `Download`, or the function of `streaming.steps`
    "upload": "upload",
    "depth": "inverse_depth",
    "encode": "encode",
    "unet": "predict",
    "decode": "decode",
    "download": "finish",
}


def camera(height: int, width: int) -> list[np.ndarray]:
    """Generate frames of a moving scene, uint8 `[height, width, 3]`."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (width + LOOP_FRAMES, height + LOOP_FRAMES))
    return [np.ascontiguousarray(scene[t : t + height, t : t + width]) for t in range(LOOP_FRAMES)]


@contextmanager
def clock(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Append the seconds that the block takes, the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    yield
    wait()
    seconds.append(time.perf_counter() - start)


def interleave(calls: dict[str, Call], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Time each call `rounds` times, by turns: other work on the machine then slows all alike."""
    for call in calls.values():
        for _ in range(UNTIMED_CALLS):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            with clock(seconds[name], device):
                call()
    return seconds


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Return median and 95th percentile in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3)}


def times_as_long(one: dict[str, float], other: dict[str, float]) -> float:
    """Return the ratio of two medians."""
    return round(one["p50_ms"] / other["p50_ms"], 2)


@contextmanager
def viewers(
    pipeline: Live2DiffPipeline, count: int, settings: StreamSettings, frames: list[np.ndarray]
) -> Iterator[Callable[..., list[Any]]]:
    """Open viewers and warm them up; yield a function that pushes a frame of all or of the first n."""
    engine, images = Engine(pipeline, capacity=count, idle_seconds=3600.0), cycle(frames)

    def push(first: int = count) -> list[Any]:
        image = next(images)
        results = [engine.push(str(number), image) for number in range(first)]
        return [result.result(FRAME_TIMEOUT) for result in results]

    try:
        for number in range(count):
            engine.open(str(number), settings).result(FRAME_TIMEOUT)
        while not all(result.frames for result in push()):
            pass
        yield push
    finally:
        engine.shutdown()


@contextmanager
def stage_clock(pipeline: Live2DiffPipeline) -> Iterator[dict[str, list[float]]]:
    """Time each stage of each frame of `pipeline` inside the block.

    "encode" encodes camera and depth image; resizing belongs to "upload" and "download". The conversion of
    pixels to bytes is in none of them.
    """
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def timed(function: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with clock(taken, pipeline.unet.device):
                return function(*arguments, **named)

        return call

    with ExitStack() as patches:
        for stage, name in STAGES.items():
            owner = {"upload": steps, "download": Download}.get(stage, pipeline)
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), seconds[stage])))
        yield seconds


def first_frame(
    pipeline: Live2DiffPipeline, settings: StreamSettings, frames: list[np.ndarray], rounds: int
) -> list[float]:
    """Time the 8th push of new streams, which gives the first translated frames."""
    seconds: list[float] = []
    for _ in range(rounds + 1):
        with closing(pipeline.stream(settings)) as stream:
            for frame in frames[: WARMUP_FRAMES - 1]:
                stream.push(frame)
            with clock(seconds, pipeline.unet.device):
                finished = stream.push(frames[WARMUP_FRAMES - 1])
            assert len(finished) == WARMUP_FRAMES
    return seconds[1:]


def prompt_change(pipeline: Live2DiffPipeline, settings: StreamSettings, rounds: int) -> list[float]:
    """Time changes of the prompt."""
    seconds: list[float] = []
    with closing(pipeline.stream(settings)) as stream:
        for number in range(rounds + 1):
            with clock(seconds, pipeline.unet.device):
                stream.update(prompt=f"a house with {number} windows")
    return seconds[1:]
