"""A clip through every variant of a model, measured."""

import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..config import WARMUP_FRAMES
from ..model.depth import inverse_depth
from ..pipeline import Live2DiffPipeline
from ..streaming.images import resize
from ..training.targets import TARGETS
from ..video.reader import Image
from .figures import (
    DRIFT_FRAMES,
    Motion,
    change_in_percent,
    colour_statistics,
    depth_error,
    edge_agreement,
    find_edges,
    find_motion,
    look,
    style_distances,
    there_and_back,
    warp_error,
)
from .variants import VARIANTS, variant

TARGET = "target"  # the variant without a model: the style's target, frame by frame
SOURCE = "source"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A clip at the working size, and all of it that outputs are held against.

    Attributes:
        pictures: the frames.
        motions: from each frame but the first back to the one before.
        depths: inverse depth of each frame.
        edges: of each frame.
        looks: of each style's target of the frames and, under "source", of the frames themselves.
    """

    pictures: list[Image]
    motions: list[Motion]
    depths: list[np.ndarray]
    edges: list[np.ndarray]
    looks: dict[str, np.ndarray]


def make_scene(pipeline: Live2DiffPipeline, frames: list[Image], size: int | tuple[int, int] | None) -> Scene:
    """Frames of any size as a scene at the working size that `pipeline` gives them."""
    size = pipeline.config.size if size is None else size
    working_size = pipeline.working_size(*frames[0].shape[:2], size)
    pictures = [resize(frame, working_size) for frame in frames]
    looks = {name: look(map(target, pictures)) for name, target in TARGETS.items()}
    return Scene(
        pictures,
        motions=[find_motion(before, after) for before, after in pairwise(pictures)],
        depths=find_depths(pipeline, pictures),
        edges=[find_edges(picture) for picture in pictures],
        looks={**looks, SOURCE: look(pictures)},
    )


@torch.no_grad()
def find_depths(pipeline: Live2DiffPipeline, pictures: Iterable[Image]) -> list[np.ndarray]:
    """Inverse depth `[H, W]` of each picture, by the pipeline's own estimator."""
    depths = []
    for picture in pictures:
        pixels = torch.from_numpy(picture).to(pipeline.unet.device).permute(2, 0, 1)[None] / 127.5 - 1
        depths.append(inverse_depth(pipeline.depth_estimator, pixels)[0].cpu().numpy())
    return depths


def describe(pipeline: Live2DiffPipeline, scene: Scene) -> Figures:
    """What the scene's own figures are: its size, and what to hold those of its outputs against.

    The mirrored source stands for another picture of the kind: where the depth error of an output comes near
    to that of the mirrored source, the output has kept no depth, or the estimator sees none.
    """
    mirrored = find_depths(pipeline, (picture[:, ::-1].copy() for picture in scene.pictures))
    depths = zip(scene.depths, mirrored, strict=True)
    return {
        "frames": len(scene.pictures),
        "size": list(scene.pictures[0].shape[:2]),
        "warp_error": warp_error(scene.pictures, scene.motions),
        "valid_share": statistics.fmean(float(motion.valid.mean()) for motion in scene.motions),
        "mirrored_depth_error": statistics.fmean(depth_error(*pair) for pair in depths),
    }


def measure(pipeline: Live2DiffPipeline, scene: Scene, style: str, outputs: list[Image]) -> Figures:
    """The figures of a scene's outputs in a style, as `figures.py` defines them, averaged over the frames."""
    depths = zip(scene.depths, find_depths(pipeline, outputs), strict=True)
    edges = zip(scene.edges, map(find_edges, outputs), strict=True)
    distances = style_distances(look(outputs), scene.looks)
    nearest = np.array(list(distances))[np.argmin(list(distances.values()), axis=0)]  # [frames]
    means = {name: float(distance.mean()) for name, distance in distances.items()}
    return {
        "warp_error": warp_error(outputs, scene.motions),
        "depth_error": statistics.fmean(depth_error(*pair) for pair in depths),
        "edge_agreement": statistics.fmean(edge_agreement(*pair) for pair in edges),
        "style_distance": means[style],
        "own_style_nearest": float(min(means, key=means.get) == style),
        "own_style_frames": float((nearest == style).mean()),
        "nearest": min(means, key=means.get),
        "distances": means,
    }


def translated(
    pipeline: Live2DiffPipeline, pictures: Iterable[Image], settings: dict[str, Any], seconds: list[float]
) -> Iterator[Image]:
    """The pictures through a fresh stream with these settings, as many as come in; the time of each push
    after the warmup goes into `seconds`."""
    with closing(pipeline.stream(**settings)) as stream:
        for picture in pictures:
            warm, begun = stream.warm, time.perf_counter()
            outputs = stream.push(picture)
            if warm:
                seconds.append(time.perf_counter() - begun)
            yield from outputs
        yield from stream.flush()


def evaluate_style(
    pipeline: Live2DiffPipeline, scene: Scene, style: str, settings: dict[str, Any]
) -> Iterator[tuple[str, Figures, list[Image]]]:
    """Each variant's name, figures and outputs; those of the model with the median `seconds_per_frame`."""
    settings = {**settings, "style": style, "size": scene.pictures[0].shape[:2]}
    for name in VARIANTS:
        seconds: list[float] = []
        with variant(pipeline, name):
            outputs = list(translated(pipeline, scene.pictures, settings, seconds))
        figures = measure(pipeline, scene, style, outputs)
        if name == "model":
            figures["seconds_per_frame"] = statistics.median(seconds)
        yield name, figures, outputs
    outputs = [TARGETS[style](picture) for picture in scene.pictures]
    yield TARGET, measure(pipeline, scene, style, outputs), outputs


def measure_drift(
    pipeline: Live2DiffPipeline, scene: Scene, style: str, settings: dict[str, Any], at_least: int
) -> Figures:
    """How far the model's colours have moved after at least so many frames, where the source is the same.

    The clip is played there and back, so that the last 32 frames of the source are those from 8 to 40; mean
    and deviation of each channel are averaged over the 32 frames of each, and compared.
    """
    settings = {**settings, "style": style, "size": scene.pictures[0].shape[:2]}
    order = there_and_back(len(scene.pictures), at_least)
    first: list[np.ndarray] = []
    last: deque[np.ndarray] = deque(maxlen=DRIFT_FRAMES)
    outputs = translated(pipeline, (scene.pictures[index] for index in order), settings, [])
    for number, output in enumerate(outputs):
        last.append(colour_statistics(output))
        if WARMUP_FRAMES <= number < WARMUP_FRAMES + DRIFT_FRAMES:
            first.append(last[-1])
    change = change_in_percent(np.mean(first, axis=0), np.mean(last, axis=0))  # [2, 3]
    return {
        "frames": len(order),
        "mean_percent": change[0].tolist(),
        "deviation_percent": change[1].tolist(),
        "drift_percent": float(np.abs(change).max()),
    }
