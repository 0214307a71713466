"""Choose working size, denoising steps and cache precision for this machine.

They are measured once, before the page is served. If memory runs out during the start, less is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from math import inf
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from ..errors import is_out_of_memory
from ..streaming.settings import StreamSettings
from .capacity import SPARE, bytes_of_cache
from .engine import Engine

if TYPE_CHECKING:
    import torch

    from ..pipeline import Live2DiffPipeline
    from ..styles import Style

CAMERA = (480, 640, 3)
TIMED_FRAMES = 9
NO_MEMORY = (
    "There is not enough memory for one viewer, not even with the least work for each frame. Close other "
    "programs that use the GPU, or take a smaller model (--model nano)."
)


@dataclass(frozen=True)
class Ladder:
    """The choices for a model, and the frames per second that one viewer should get.

    A choice is measured if its time, predicted from that of the least work, is at most `tolerance` times the
    limit: time grows more slowly than work.
    """

    sizes: tuple[int, ...]
    steps: tuple[int, ...] | None  # those above the model's own number are left out; None for that alone
    frames_a_second: float
    tolerance: float


LADDERS = {  # by the model's own size
    256: Ladder((256, 320, 384, 448), None, 16.0, 1.25),
    512: Ladder((384, 448, 512), (1, 2, 3), 15.0, 2.0),
}


@dataclass(frozen=True)
class Work:
    """The settings that decide what a frame costs."""

    size: int
    steps: int
    cache_dtype: torch.dtype | None = None  # None for the weights' own

    @property
    def cost(self) -> int:
        """The work of a frame, to which the bytes of its cache are proportional."""
        return self.size**2 * self.steps


def ladder_of(pipe: Live2DiffPipeline) -> Ladder | None:
    """Return the choices for a model; None for none, as for the full one on a CPU."""
    is_slow = pipe.unet.device.type == "cpu" and pipe.config.few_step_lora
    return None if is_slow else LADDERS.get(pipe.config.size)


def choices(
    pipe: Live2DiffPipeline, size: int | None = None, steps: int | None = None, small_memory: bool = False
) -> list[list[Work]]:
    """Return the possible work, least first, in groups: with a full cache, then with an 8-bit one.

    On a GPU, work for which the caches of a viewer and a clip do not fit into the free memory is left out;
    the least work stays in any case.

    Raises:
        ValueError: a number is out of range.
    """
    import torch

    from ..runtime.device import free_bytes

    StreamSettings(steps=steps)
    ladder, own, device = ladder_of(pipe), len(pipe.config.t_index_list), pipe.unet.device
    sizes = [size] if size is not None else ladder.sizes if ladder else [pipe.config.size]
    numbers = [own] if steps is None else [steps]
    if ladder and ladder.steps and steps is None:
        numbers = [number for number in ladder.steps if number <= own]
    free = free_bytes(device)  # None on a CPU
    dtypes = [torch.int8] if small_memory else [None] if free is None else [None, torch.int8]

    def fits(work: Work) -> bool:
        side = pipe.working_size(1, 1, work.size)
        cache = bytes_of_cache(pipe, work.steps, side, work.cache_dtype)
        return free is None or 2 * cache <= (1 - SPARE) * free

    groups = [[Work(side, number, dtype) for dtype in dtypes] for side in sizes for number in numbers]
    groups.sort(key=lambda group: group[0].cost)
    fitting = [[work for work in group if fits(work)] for group in groups]
    return [group for group in fitting if group] or [groups[0][-1:]]


def measure(
    pipe: Live2DiffPipeline, groups: list[list[Work]], clock: Callable[[], float] = time.perf_counter
) -> tuple[Work, float]:
    """Return the most work that is fast enough for one viewer, and the seconds of a frame.

    The least is measured first, and returned if even that is too slow; then the most that may be fast enough;
    then those between, by bisection. What does not fit into the memory counts as too slow; if nothing fits,
    the time is infinite.
    """
    ladder = ladder_of(pipe)
    assert ladder is not None, "there is nothing to choose"
    limit = 1 / ladder.frames_a_second

    def first_fit(group: list[Work]) -> tuple[Work, float]:
        for work in group:
            try:
                return work, frame_seconds(pipe, work, clock)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        return group[-1], inf

    best, seconds = first_fit(groups[0])
    per_cost = seconds / best.cost
    low, high = 1, len(groups) - 1
    while low <= high and per_cost * groups[high][0].cost > ladder.tolerance * limit:
        high -= 1
    tried = high
    while low <= high and seconds <= limit:
        work, frame_time = first_fit(groups[tried])
        if frame_time <= limit:
            best, seconds, low = work, frame_time, tried + 1
        else:
            high = tried - 1
        tried = (low + high + 1) // 2
    return best, seconds


def frame_seconds(pipe: Live2DiffPipeline, work: Work, clock: Callable[[], float]) -> float:
    """Return the median seconds of a frame in a warm stream; leave no graphs in the runtime."""
    from ..runtime.device import release_memory

    release_memory()  # of a choice that did not fit
    frame = np.random.default_rng(0).integers(0, 256, CAMERA, dtype=np.uint8)
    times = []
    try:
        with closing(pipe.stream(size=work.size, steps=work.steps, cache_dtype=work.cache_dtype)) as stream:
            stream.push(frame)
            stream.flush()  # warms up from this frame alone
            for _ in range(stream.schedule.steps + TIMED_FRAMES):
                began = clock()
                stream.push(frame)
                times.append(clock() - began)
    finally:
        if pipe.runtime is not None:
            pipe.runtime.forget()
    return median(times[-TIMED_FRAMES:])  # the first ones compile


def set_work(pipe: Live2DiffPipeline, size: int | None = None, steps: int | None = None) -> None:
    """Set the default working size and steps (None keeps them); limit styles to these steps.

    Raises:
        ValueError: one is out of range.
    """
    StreamSettings(steps=steps)
    if size is not None:
        pipe.working_size(1, 1, size)
        pipe.register_to_config(size=size)
    own = len(pipe.config.t_index_list)
    if steps is not None and steps != own:
        pipe.register_to_config(t_index_list=pipe.indices(steps, None))
    if steps is not None and steps < own:
        pipe.styles = {name: with_fewer_steps(style, steps) for name, style in pipe.styles.items()}


def with_fewer_steps(style: Style, steps: int) -> Style:
    """Return a style with at most `steps` denoising steps, spread from its first to its last one."""
    from ..model.lcm import spread_indices

    indices = style.t_index_list
    if indices is not None and len(indices) > steps:
        style = replace(style, t_index_list=tuple(spread_indices(indices[0], indices[-1], steps)))
    return replace(style, steps=min(style.steps, steps)) if style.steps else style


def start_fitting(
    pipe: Live2DiffPipeline,
    streams: int | None = None,
    size: int | None = None,
    steps: int | None = None,
    small_memory: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Engine, str]:
    """Start an engine with the most work per frame for which this machine has the speed and the memory.

    `streams` is its capacity; `size` and `steps` are chosen where they are None. Return the engine and a
    sentence about the choice, which the page shows too; "" if there was nothing to choose.

    Raises:
        ValueError: not even the least work fits into the memory, or a number is out of range.
    """
    from ..runtime.device import release_memory

    groups, about = choices(pipe, size, steps, small_memory), pipe.about
    works = [work for group in groups for work in reversed(group)]  # the least memory first
    chosen, why = groups[-1][0], ""
    if len(groups) > 1:
        chosen, seconds = measure(pipe, groups, clock)
        why = f"at {1 / seconds:.1f} frames a second for one viewer on this machine"
    elif size is None:
        why = "the model's own"
    for work in reversed(works[: works.index(chosen) + 1]):
        set_work(pipe, work.size, work.steps)
        sentence = describe(work, groups, why) if why else ""
        pipe.about = f"{about} {sentence}".rstrip()
        try:
            return Engine(pipe, streams, cache_dtype=work.cache_dtype), sentence
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        release_memory()
        why = "as more does not fit into the memory"
    pipe.about = about
    raise ValueError(NO_MEMORY)


def describe(work: Work, groups: list[list[Work]], why: str) -> str:
    """Return a sentence about the choice of `work` among `groups`, and how to choose otherwise."""
    parts, flags = [str(work.size)], ["--size"]
    if len({group[0].steps for group in groups}) > 1:
        parts.append(f"{work.steps} denoising step{'s' * (work.steps > 1)}")
        flags.append("--steps")
    if work.cache_dtype is not None:
        parts.append("an 8-bit cache")
    other = f" Choose otherwise with {' and '.join(flags)}." if len(groups) > 1 else ""
    return f"Working size: {', '.join(parts)}, {why}.{other}"
