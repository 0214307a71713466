"""The working size that this machine is fast enough for, measured before the page is served."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from ..pipeline import Live2DiffPipeline

SIZES = (256, 320, 384, 448)
FRAMES_A_SECOND = 16.0
CAMERA = (480, 640, 3)
TIMED_FRAMES = 9
TOLERANCE = 1.25  # time grows more slowly than the pixels: sizes predicted a little too slow are tried


def measure_size(
    pipe: Live2DiffPipeline,
    cache_dtype: torch.dtype | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[int, str]:
    """Find the largest of `SIZES` at which one viewer alone gets 16 frames a second, or else the smallest.

    A model with another default size keeps it. The smallest is measured, then from the largest down
    those that may be fast enough by their numbers of pixels. Returns the size, and a sentence about it.
    """
    size, *larger = SIZES
    if pipe.config.size not in SIZES:
        return pipe.config.size, f"Working size: {pipe.config.size}, the model's own."
    seconds = first = frame_seconds(pipe, size, cache_dtype, clock)
    for other in reversed(larger):
        if first * (other / SIZES[0]) ** 2 * FRAMES_A_SECOND <= TOLERANCE:
            taken = frame_seconds(pipe, other, cache_dtype, clock)
            if taken * FRAMES_A_SECOND <= 1:
                size, seconds = other, taken
                break
    return size, f"Working size: {size}, at {1 / seconds:.1f} frames a second for one viewer on this machine."


def set_size(pipe: Live2DiffPipeline, size: int) -> None:
    """Make `size` the default working size; raise ValueError if it is out of range."""
    pipe.working_size(1, 1, size)
    pipe.register_to_config(size=size)


def frame_seconds(
    pipe: Live2DiffPipeline, size: int, cache_dtype: torch.dtype | None, clock: Callable[[], float]
) -> float:
    """Return the median time of a warm stream's frame in seconds; no graphs are left in the runtime."""
    frame = np.random.default_rng(0).integers(0, 256, CAMERA, dtype=np.uint8)
    with closing(pipe.stream(size=size, cache_dtype=cache_dtype)) as stream:
        stream.push(frame)
        stream.flush()  # warms up with this one frame
        times = []
        for _ in range(stream.schedule.steps + TIMED_FRAMES):
            began = clock()
            stream.push(frame)
            times.append(clock() - began)
    if pipe.runtime is not None:
        pipe.runtime.forget()
    return median(times[-TIMED_FRAMES:])  # the first ones compile
