"""How many viewers a device has room for, measured on it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..config import WARMUP_FRAMES

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

MOST_VIEWERS = 8
CPU_VIEWERS = 4
SPARE = 0.1  # of the free memory: other sizes of pictures, fragments, whatever else the GPU shows


@dataclass(frozen=True)
class Room:
    """For how many viewers there is room, and why, in a sentence."""

    viewers: int
    reason: str


def bytes_of_cache(
    pipe: Live2DiffPipeline, steps: int, size: tuple[int, int], cache_dtype: torch.dtype | None = None
) -> int:
    """Bytes that the memory of a stream takes at a working `size` (height, width); nothing is allocated."""
    _, height, width = pipe.latent_shape(size)
    return pipe.unet.new_cache(steps, height, width, cache_dtype, torch.device("meta")).nbytes


def measure_room(pipe: Live2DiffPipeline, cache_dtype: torch.dtype | None = None) -> Room:
    """Run a stream of default settings on a GPU, see what it takes, and divide; a CPU has room for 4."""
    device, side = pipe.unet.device, pipe.config.size
    if device.type != "cuda":
        return Room(CPU_VIEWERS, f"Room for {CPU_VIEWERS} viewers at once on a CPU.")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with closing(pipe.stream(cache_dtype=cache_dtype)) as stream:
        steps = stream.schedule.steps
        for _ in range(WARMUP_FRAMES + steps):
            stream.push(np.zeros((side, side, 3), np.uint8))
        memory = stream.nbytes
        working = max(0, torch.cuda.max_memory_allocated(device) - before - memory)
    torch.cuda.empty_cache()
    return share(torch.cuda.mem_get_info(device)[0], memory, working, steps)


def share(free: int, memory: int, working: int, steps: int) -> Room:
    """Room in `free` bytes for viewers whose streams each take `memory` to remember, where the warmup's 8
    rows take `working` bytes while they are worked on. One memory more is kept for a clip."""
    usable = (1 - SPARE) * free - memory - working
    a_viewer = memory + working * steps / WARMUP_FRAMES
    viewers = max(1, min(MOST_VIEWERS, int(usable // a_viewer)))
    return Room(
        viewers,
        f"Room for {viewers} viewers at once: {free / 1e9:.1f} GB of the GPU are free, a viewer takes "
        f"{a_viewer / 1e9:.2f} GB, and {MOST_VIEWERS} is the most.",
    )
