"""Measure how many viewers a device has room for."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..config import WARMUP_FRAMES
from ..errors import LimitReached
from ..streaming.settings import StreamSettings

if TYPE_CHECKING:  # importing torch takes seconds
    import torch

    from ..pipeline import Live2DiffPipeline

MOST_VIEWERS = 8
CPU_VIEWERS = 4
SPARE = 0.1  # of the free memory: other frame sizes, fragments, a display on the same GPU


@dataclass(frozen=True)
class Room:
    """The number of viewers that a device has room for, and a sentence that says why."""

    viewers: int
    reason: str
    cache_bytes: float | None = None  # limit of all live streams together; None if it was not measured

    def __post_init__(self) -> None:
        """Check the number."""
        if self.viewers < 1:
            raise ValueError(f"capacity is {self.viewers}; the engine needs room for one stream at least.")

    def __str__(self) -> str:
        return self.reason

    def cache_bytes_of(
        self, pipe: Live2DiffPipeline, settings: StreamSettings, cache_dtype: torch.dtype | None, taken: int
    ) -> int:
        """Return the bytes of a stream's cache, if they fit beside the `taken` bytes of other streams.

        Raises:
            LimitReached: it does not fit; the message says what to do.
        """
        if self.cache_bytes is None:
            return 0
        steps, size = pipe.schedule(settings).steps, pipe.working_size(1, 1, settings.size)
        needed, free = bytes_of_cache(pipe, steps, size, cache_dtype), self.cache_bytes - taken
        if needed > free:
            raise LimitReached(
                f"{steps} denoising steps need {needed / 1e9:.1f} GB of the GPU's memory; "
                f"{free / 1e9:.1f} GB are free. Choose fewer steps, or try again later."
            )
        return needed


def bytes_of_cache(
    pipe: Live2DiffPipeline, steps: int, size: tuple[int, int], cache_dtype: torch.dtype | None = None
) -> int:
    """Return the bytes of a stream's cache at a working `size` (height, width); nothing is allocated."""
    import torch

    _, height, width = pipe.latent_shape(size)
    return pipe.unet.new_cache(steps, height, width, cache_dtype, torch.device("meta")).nbytes


def measure_room(pipe: Live2DiffPipeline, cache_dtype: torch.dtype | None = None) -> Room:
    """Divide the free memory of a GPU by a measured stream of default settings; take CPU_VIEWERS on a CPU."""
    device, side = pipe.unet.device, pipe.config.size  # pyright: ignore
    if device.type != "cuda":
        return Room(CPU_VIEWERS, f"Room for {CPU_VIEWERS} viewers at once on a CPU.")
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with closing(pipe.stream(cache_dtype=cache_dtype)) as stream:
        steps = stream.schedule.steps
        for _ in range(WARMUP_FRAMES + steps):
            stream.push(np.zeros((side, side, 3), np.uint8))
        cache = stream.nbytes
        working = max(0, torch.cuda.max_memory_allocated(device) - before - cache)
    torch.cuda.empty_cache()
    return share(torch.cuda.mem_get_info(device)[0], cache, working, steps)


def share(free: int, cache: int, working: int, steps: int) -> Room:
    """Divide the `free` bytes of a device among viewers.

    A stream's cache of `steps` rows takes `cache` bytes; one more is kept for a clip. The 8 rows of a warmup
    take `working` bytes while they are processed.
    """
    usable = (1 - SPARE) * free - cache - working
    a_viewer = cache + working * steps / WARMUP_FRAMES
    viewers = max(1, min(MOST_VIEWERS, int(usable // a_viewer)))
    return Room(
        viewers,
        f"Room for {viewers} viewers at once: {free / 1e9:.1f} GB of the GPU are free, a viewer takes "
        f"{a_viewer / 1e9:.2f} GB, and {MOST_VIEWERS} is the most.",
        cache_bytes=max(1.0, usable / a_viewer) * cache,
    )
