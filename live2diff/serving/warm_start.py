"""Allocate the caches of all viewers and capture every graph before the page is served.

Then no viewer has to wait for an allocation or a capture when streams come and go.
"""

import math
from contextlib import ExitStack, closing

import numpy as np
import torch

from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from ..streaming.cache_pool import CachePools
from ..streaming.steps import push_together
from ..streaming.stream import Stream

ASPECTS = (4 / 3, 16 / 9, 3 / 4, 9 / 16)  # width / height of cameras: laptops', then phones'


def open_pools(pipe: Live2DiffPipeline, capacity: int, cache_dtype: torch.dtype | None = None) -> CachePools:
    """Return cache pools for `capacity` viewers; on a GPU, allocate them and capture the graphs."""
    pools = CachePools(capacity)
    if pipe.unet.device.type == "cuda":
        warm_start(pipe, pools, capacity, cache_dtype)
    return pools


def warm_start(
    pipe: Live2DiffPipeline, pools: CachePools, capacity: int, cache_dtype: torch.dtype | None = None
) -> None:
    """Fill `pools` and capture the graphs for `capacity` default streams in each working size."""
    with closing(pipe.stream()) as stream:
        steps = stream.schedule.steps
    sizes = [pipe.working_size(720, round(720 * aspect)) for aspect in ASPECTS]
    latents = {size: pipe.latent_shape(size)[1:] for size in sizes}
    pools.reserve(pipe.unet, capacity * steps, latents, cache_dtype)
    for size in sorted(latents, key=math.prod, reverse=True):
        capture(pipe, pools, capacity, size, cache_dtype)


def capture(
    pipe: Live2DiffPipeline,
    pools: CachePools,
    capacity: int,
    size: tuple[int, int],
    cache_dtype: torch.dtype | None,
) -> None:
    """Capture the graphs of one working size by pushing frames through 1, 2, 4, ... streams.

    The largest batch comes first: the smaller ones reuse its memory.
    """
    frame = np.zeros((*size, 3), np.uint8)

    def push(streams: list[Stream]) -> None:
        push_together([stream.receive(frame) for stream in streams])

    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(pipe.stream(size=size, pools=pools, cache_dtype=cache_dtype)))
            for _ in range(capacity)
        ]
        runtime, pipe.runtime = pipe.runtime, None
        try:
            for stream in streams:
                for _ in range(WARMUP_FRAMES):
                    stream.push(frame)
            for _ in range(streams[0].schedule.steps - 1):
                push(streams)
        finally:
            pipe.runtime = runtime
        for bit in reversed(range(capacity.bit_length())):
            push(streams[: 1 << bit])
        streams[0].close()
        with closing(pipe.stream(size=size, pools=pools, cache_dtype=cache_dtype)) as newcomer:
            for _ in range(WARMUP_FRAMES + newcomer.schedule.steps):
                newcomer.push(frame)
