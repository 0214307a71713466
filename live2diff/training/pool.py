"""Clips made once and drawn from many times: rendering and styling one takes longer than learning from it."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.lib.format import open_memmap
from transformers import CLIPTokenizer, DPTForDepthEstimation

from ..model.depth import inverse_depth
from . import data
from .clips import Styled, sample_styled

CHUNK = 8  # clips that a worker makes at a time


@dataclass
class Pool:
    """`count` clips in files that are mapped into memory.

    Attributes:
        camera, clean, target: uint8 `[count, frames, size, size, 3]` RGB.
        depth: float16 `[count, frames, H, W]`, the estimator's inverse depth of what the camera saw, in the
            clip's range `[-1, 1]`.
        tokens: int64 `[count, 77]`, a prompt for each clip.
    """

    camera: np.ndarray
    clean: np.ndarray
    target: np.ndarray
    depth: np.ndarray
    tokens: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def make_pool(
    folder: Path,
    tokenizer: CLIPTokenizer,
    estimator: DPTForDepthEstimation,
    *,
    count: int,
    frames: int,
    size: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Pool:
    """The pool of clips in `folder`, made now if it is not there; one process a core makes them.

    The clips are a function of `seed`. A pool that was not finished is begun again.
    """
    side, finished = estimator.config.image_size, folder / "finished"
    shapes = {name: ((count, frames, size, size, 3), np.uint8) for name in ("camera", "clean", "target")}
    shapes |= {"depth": ((count, frames, side, side), np.float16), "tokens": ((count, 77), np.int64)}
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pool = Pool(
            *(
                open_memmap(folder / f"{name}.npy", "w+", kind, shape)
                for name, (shape, kind) in shapes.items()
            )
        )
        estimator.to(device)
        for start, clips in made_in_parallel(count, frames, size, seed):
            *pictures, prompts = zip(*clips, strict=True)
            chunk = slice(start, start + len(clips))
            pool.camera[chunk], pool.clean[chunk], pool.target[chunk] = (np.stack(part) for part in pictures)
            seen = torch.from_numpy(pool.camera[chunk]).to(device).flatten(0, 1).permute(0, 3, 1, 2)
            with torch.no_grad():
                depth = inverse_depth(estimator, seen.float() / 127.5 - 1).unflatten(0, (-1, frames))
            low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
            pool.depth[chunk] = ((depth - low) / (high - low).clamp(min=1e-6) * 2 - 1).cpu().numpy()
            pool.tokens[chunk] = tokenizer(
                list(prompts), padding="max_length", max_length=77, truncation=True
            ).input_ids
        finished.touch()
    return Pool(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes))


def made_in_parallel(count: int, frames: int, size: int, seed: int) -> Iterator[tuple[int, list[Styled]]]:
    """Clips in chunks: the number of the first, and each `(camera, clean, target, prompt)`."""
    starts = range(0, count, CHUNK)
    with ProcessPoolExecutor(
        min(os.cpu_count() or 1, len(starts)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=begin_worker,
        initargs=(data.PHOTOGRAPH_FOLDER,),
    ) as workers:
        tasks = [(start, min(CHUNK, count - start), frames, size, seed) for start in starts]
        yield from zip(starts, workers.map(make_chunk, tasks), strict=True)


def begin_worker(pictures: Path | None) -> None:
    """Prepare a process for `make_chunk`."""
    cv2.setNumThreads(1)
    data.PHOTOGRAPH_FOLDER = pictures


def make_chunk(task: tuple[int, int, int, int, int]) -> list[Styled]:
    """`(start, count, frames, size, seed)` to as many styled clips."""
    start, count, frames, size, seed = task
    random, clips = np.random.default_rng([seed, start]), []
    while len(clips) < count:
        clips += sample_styled(random, frames, size)
    return clips[:count]
