"""Translate a clip with every variant of a model, and measure the outputs."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

import numpy as np
import torch

from ..benchmark.command import Record
from ..config import WARMUP_FRAMES
from ..model.depth import inverse_depth
from ..model.vae import vae_scale_factor
from ..pipeline import Live2DiffPipeline
from ..streaming.images import resize
from ..streaming.settings import StreamSettings
from ..training.targets import available_targets
from ..video.reader import Image
from . import figures
from .variants import variant

TARGET = "target"  # a variant without a model: the style's target of each frame
SOURCE = "source"


@dataclass(frozen=True)
class Scene:
    """A clip at the working size, with what its outputs are compared with, frame by frame."""

    images: list[Image]
    motions: list[figures.Motion]  # of each frame but the first
    moving: list[np.ndarray]  # which pixels move
    still: list[np.ndarray]  # which pixels are still in each frame but the first
    depths: list[np.ndarray]  # inverse depth
    edges: list[np.ndarray]
    targets: dict[str, list[Image]]  # of the styles that have one
    features: dict[str, np.ndarray]  # of the targets and, under "source", of the frames themselves


def make_scene(pipeline: Live2DiffPipeline, frames: Iterable[Image], settings: StreamSettings) -> Scene:
    """Resize frames to the working size, and analyse them."""
    images: list[Image] = []
    for frame in frames:
        height, width, _ = frame.shape
        images.append(resize(frame, pipeline.working_size(height, width, settings.size)))
    motions = [figures.find_motion(before, after) for before, after in pairwise(images)]
    targets = {name: [target(image) for image in images] for name, target in available_targets().items()}
    return Scene(
        images,
        motions,
        moving=figures.find_moving(images),
        still=list(map(figures.find_still, images, images[1:], motions)),
        depths=find_depths(pipeline, images),
        edges=[figures.find_edges(image) for image in images],
        targets=targets,
        features={name: figures.style_features(of) for name, of in {**targets, SOURCE: images}.items()},
    )


@torch.no_grad()
def find_depths(pipeline: Live2DiffPipeline, images: Iterable[Image]) -> list[np.ndarray]:
    """Estimate inverse depth `[H, W]` of each image with the pipeline's own estimator."""
    depths = []
    for image in images:
        pixels = torch.from_numpy(image).to(pipeline.unet.device).permute(2, 0, 1)[None] / 127.5 - 1
        depths.append(inverse_depth(pipeline.depth_estimator, pixels)[0].cpu().numpy())
    return depths


def mean_depth_error(pipeline: Live2DiffPipeline, scene: Scene, images: Iterable[Image]) -> float:
    """Average the depth error of images that belong to the frames of a scene."""
    return fmean(map(figures.depth_error, scene.depths, find_depths(pipeline, images)))


def describe(pipeline: Live2DiffPipeline, scene: Scene) -> Record:
    """Measure the scene itself, to compare its outputs with.

    An output whose depth error is close to that of the mirrored source has kept no depth.
    """
    mirrored = (image[:, ::-1].copy() for image in scene.images)
    return {
        "frames": len(scene.images),
        "size": list(scene.images[0].shape[:2]),
        "warp_error": figures.warp_error(scene.images, scene.motions),
        "valid_share": fmean(float(motion.valid.mean()) for motion in scene.motions),
        "moving_share": float(np.mean(scene.moving[WARMUP_FRAMES:])),
        "still_share": float(np.mean(scene.still)),
        "seams": figures.seams(scene.images, vae_scale_factor(pipeline.vae)),
        "mirrored_depth_error": mean_depth_error(pipeline, scene, mirrored),
    }


def measure(
    pipeline: Live2DiffPipeline,
    scene: Scene,
    style: str,
    outputs: list[Image],
    alone: Mapping[int, Image] | None = None,
) -> Record:
    """Measure a scene's outputs in a style, as `figures.py` defines it, averaged over the frames.

    `alone` holds outputs without memory by number of the frame. Figures that cannot be measured are None;
    those that need a target are left out for a style without one.
    """
    alone, edges = alone or {}, [figures.find_edges(output) for output in outputs]
    edges_alone = {index: figures.find_edges(image) for index, image in alone.items()}
    record: Record = {
        "warp_error": figures.warp_error(outputs, scene.motions),
        "depth_error": mean_depth_error(pipeline, scene, outputs),
        "edge_agreement": fmean(map(figures.edge_agreement, scene.edges, edges)),
        "moving_structure": figures.moving_structure(scene.edges, edges, edges_alone, scene.moving),
        "still_flicker": figures.still_flicker(outputs, alone, scene.still),
        "lag": figures.lag(scene.edges, edges, scene.moving),
        "seams": figures.seams(outputs, vae_scale_factor(pipeline.vae)),
    }
    if style not in scene.targets:
        return record
    distances = figures.style_distances(figures.style_features(outputs), scene.features)
    nearest = np.array(list(distances))[np.argmin(list(distances.values()), axis=0)]  # [frames]
    means = {name: float(distance.mean()) for name, distance in distances.items()}
    nearest_on_average = min(means, key=means.__getitem__)
    return record | {
        "perceptual_distance": fmean(map(figures.perceptual_distance, outputs, scene.targets[style])),
        "style_distance": means[style],
        "own_style_nearest": float(nearest_on_average == style),
        "own_style_frames": float((nearest == style).mean()),
        "nearest": nearest_on_average,
        "distances": means,
    }


def translate(
    pipeline: Live2DiffPipeline, images: Iterable[Image], settings: StreamSettings, seconds: list[float]
) -> Iterator[Image]:
    """Yield an output for each image from a new stream; add the time of each push after the warmup."""
    with closing(pipeline.stream(settings)) as stream:
        for image in images:
            warm, start = stream.warm, time.perf_counter()
            outputs = stream.push(image)
            if warm:
                seconds.append(time.perf_counter() - start)
            yield from outputs
        yield from stream.flush()


def translate_alone(
    pipeline: Live2DiffPipeline, scene: Scene, settings: StreamSettings, moments: int
) -> dict[int, Image]:
    """Return outputs without memory, by number of the frame: each from a stream that sees only that frame.

    The frame is pushed until the stream has warmed up. That takes long, so only `moments` pairs of successive
    frames are translated, spread over the clip after its warmup.
    """
    later = len(scene.images) - WARMUP_FRAMES
    ends = {WARMUP_FRAMES + int((i + 0.5) * later / moments) for i in range(moments)}
    alone = {}
    for index in sorted(ends | {end - 1 for end in ends}):
        with closing(pipeline.stream(settings)) as stream:
            outputs: list[Image] = []
            while not outputs:
                outputs = stream.push(scene.images[index])
            alone[index] = outputs[-1]
    return alone


def evaluate_style(
    pipeline: Live2DiffPipeline,
    scene: Scene,
    style: str,
    settings: StreamSettings,
    variants: Iterable[str],
    moments: int,
) -> Iterator[tuple[str, Record, list[Image]]]:
    """Yield each variant's name, figures and outputs; those of the model with `seconds_per_frame`.

    The last is the target, if the style has one. `moments` is as for `translate_alone`.
    """
    settings = settings.updated(style=style, size=scene.images[0].shape[:2])
    alone = translate_alone(pipeline, scene, settings, moments)
    for name in variants:
        seconds: list[float] = []
        with variant(pipeline, name):
            outputs = list(translate(pipeline, scene.images, settings, seconds))
        record = measure(pipeline, scene, style, outputs, alone)
        if name == "model":
            record["seconds_per_frame"] = median(seconds)
        yield name, record, outputs
    if style in scene.targets:
        outputs = scene.targets[style]
        yield TARGET, measure(pipeline, scene, style, outputs), outputs


def measure_drift(
    pipeline: Live2DiffPipeline, scene: Scene, style: str, settings: StreamSettings, at_least: int
) -> Record:
    """Measure how colours change over at least so many frames, between equal frames of the source.

    The clip is played there and back, so that the last 32 frames of the source are those from 8 to 40. Mean
    and deviation of each channel are averaged over both groups of 32 frames, and compared.
    """
    settings = settings.updated(style=style, size=scene.images[0].shape[:2])
    order = figures.there_and_back(len(scene.images), at_least)
    first: list[np.ndarray] = []
    last: deque[np.ndarray] = deque(maxlen=figures.DRIFT_FRAMES)
    outputs = translate(pipeline, (scene.images[index] for index in order), settings, [])
    for number, output in enumerate(outputs):
        last.append(figures.colour_statistics(output))
        if WARMUP_FRAMES <= number < WARMUP_FRAMES + figures.DRIFT_FRAMES:
            first.append(last[-1])
    change = figures.change_in_percent(np.mean(first, axis=0), np.mean(last, axis=0))  # [2, 3]
    return {
        "frames": len(order),
        "mean_percent": change[0].tolist(),
        "deviation_percent": change[1].tolist(),
        "drift_percent": float(np.abs(change).max()),
    }
