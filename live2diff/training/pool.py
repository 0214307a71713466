"""Make clips once and sample them many times: making one takes longer than learning from it."""

import multiprocessing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.lib.format import open_memmap
from transformers import CLIPTokenizer, DPTForDepthEstimation

from ..model.depth import inverse_depth
from . import photographs
from .clips import Styled, sample_styled

CHUNK = 8  # clips that a worker makes at a time

# `count` clips in files that are mapped into memory:
#   camera, clean, target  uint8 `[count, frames, size, size, 3]` RGB; of clips of many frames `clean` alone
#   depth                  float16 `[count, frames, H, W]` in `[-1, 1]`, estimated from the first of these
#   tokens                 int64 `[count, 77]`, a prompt for each clip
Pool = dict[str, np.ndarray]


def open_pool(
    folder: Path,
    tokenizer: CLIPTokenizer,
    estimator: DPTForDepthEstimation,
    *,
    count: int,
    frames: int,
    size: int,
    seed: int,
) -> Pool:
    """Open the pool of clips in `folder`, or make it, with a process for each core.

    The same `seed` gives the same clips. An unfinished pool is made again.
    """
    side: Any = estimator.config.image_size
    images = ("clean",) if frames > 1 else ("camera", "clean", "target")
    layout = {name: (np.uint8, (count, frames, size, size, 3)) for name in images}
    layout |= {"depth": (np.float16, (count, frames, side, side)), "tokens": (np.int64, (count, 77))}
    if not (folder / "finished").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pool = {name: open_memmap(folder / f"{name}.npy", "w+", *kind) for name, kind in layout.items()}
        tasks = [(start, min(CHUNK, count - start), frames, size, seed) for start in range(0, count, CHUNK)]
        context = multiprocessing.get_context("spawn")
        count_of_workers = min(len(tasks), multiprocessing.cpu_count())
        with context.Pool(count_of_workers, init_worker, (photographs.material,)) as workers:
            for (start, number, *_), clips in zip(tasks, workers.imap(make_chunk, tasks), strict=True):
                chunk = slice(start, start + number)
                for name in images:
                    pool[name][chunk] = np.stack([clip[name] for clip in clips])
                pool["depth"][chunk] = estimate_depth(estimator, pool[images[0]][chunk])
                prompts = [str(clip["prompt"]) for clip in clips]
                tokens = tokenizer(prompts, padding="max_length", max_length=77, truncation=True)
                pool["tokens"][chunk] = tokens.input_ids
        (folder / "finished").touch()
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in layout}


@torch.no_grad()
def estimate_depth(estimator: DPTForDepthEstimation, clips: np.ndarray) -> np.ndarray:
    """Estimate the depth of uint8 `[clips, frames, height, width, 3]`, each clip scaled to `[-1, 1]`."""
    images = torch.from_numpy(clips).to(estimator.device).flatten(0, 1).permute(0, 3, 1, 2)
    depth = inverse_depth(estimator, images.float() / 127.5 - 1).unflatten(0, clips.shape[:2])
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    return ((depth - low) / (high - low).clamp(min=1e-6) * 2 - 1).cpu().numpy()


def init_worker(material: Path | None) -> None:
    """Prepare a process for `make_chunk`."""
    cv2.setNumThreads(1)
    photographs.material = material


def make_chunk(task: tuple[int, int, int, int, int]) -> list[Styled]:
    """Make the styled clips of `(start, count, frames, size, seed)`."""
    start, count, frames, size, seed = task
    random, clips = np.random.default_rng([seed, start]), []
    while len(clips) < count:
        clips += sample_styled(random, frames, size)
    return clips[:count]
