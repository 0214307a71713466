"""Compute what is measured from arrays: images are uint8 `[height, width, 3]` RGB, figures are floats.

Lengths (of the optical flow, of blurs) are in pixels of the working size, colours in `[0, 1]`.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..config import WARMUP_FRAMES
from ..video.reader import Image

FLOW_TOLERANCE = (0.01, 0.5)  # there and back may differ by sqrt(0.01 * squared lengths + 0.5) pixels
CELLS = 16  # style is compared in 16 x 16 cells of an image
GREY_BLUR, EDGE_BLUR = 1.0, 2.0  # standard deviations of the Gaussians before and after the edge filter
DRIFT_FRAMES = 32

DEFINITIONS = {
    "warp_error": "mean |output - previous output moved along the optical flow of the source|, 0 to 1, over "
    "the valid pixels",
    "optical_flow": "OpenCV DIS, PRESET_MEDIUM, on grey at the working size",
    "valid": "inside the previous image, and |there + back|^2 <= a (|there|^2 + |back|^2) + b",
    "valid_a_b": FLOW_TOLERANCE,
    "depth_error": "mean squared difference of inverse depth, that of the source scaled to 0..1, that of the "
    "output fitted to it (least squares, scale >= 0, shift)",
    "edge_agreement": "correlation of output and source in the root of the slope (Sobel) of grey, blurred "
    "before and after",
    "edge_blurs": (GREY_BLUR, EDGE_BLUR),
    "style_distance": "mean |difference| from the target of the same frame in mean colour and contrast of "
    "each cell, 0 to 1",
    "style_cells": (CELLS, CELLS),
    "drift": "percent by which mean and deviation of each colour channel change from the first frames to the "
    "last, in which the source is the same",
    "drift_first_frames": (WARMUP_FRAMES, WARMUP_FRAMES + DRIFT_FRAMES),
    "drift_last_frames": DRIFT_FRAMES,
}


class Motion(NamedTuple):
    """Motion of an image's pixels since the previous image."""

    origin: np.ndarray  # float32 `[height, width, 2]`, the (x, y) in the previous image
    valid: np.ndarray  # bool `[height, width]`, true where the pixel was inside it and not hidden


def remap(image: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Sample an image at `origin`, `[height, width, 2]`; outside, its border continues."""
    x, y = np.moveaxis(origin, 2, 0)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def find_motion(before: Image, after: Image) -> Motion:
    """Estimate the optical flow from `after` back to `before`, by OpenCV's DIS.

    A pixel is valid when its origin lies inside `before` and the flow from there leads back to it:
    `|there + back|^2 <= 0.01 (|there|^2 + |back|^2) + 0.5` (Sundaram et al., ECCV 2010).
    """
    estimator: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    one, other = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (before, after))
    there, back = estimator.calc(other, one, None), estimator.calc(one, other, None)  # [height, width, 2]
    height, width = one.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    origin = np.dstack([x, y]) + there
    inside = ((origin >= 0) & (origin <= (width - 1, height - 1))).all(axis=2)
    back = remap(back, origin)
    relative, absolute = FLOW_TOLERANCE
    allowed = relative * ((there**2).sum(axis=2) + (back**2).sum(axis=2)) + absolute
    return Motion(origin, inside & (((there + back) ** 2).sum(axis=2) <= allowed))


def warp_error(images: Sequence[Image], motions: Sequence[Motion]) -> float:
    """Compare images with their predecessors moved along with the scene: 0 if all sticks to things.

    1/3 for independent uniform noise. The mean over all valid pixels of all pairs, and over the channels, of
    the absolute difference in `[0, 1]`; 0 if no pixel is valid. `motions[i]` is that of image i + 1.
    """
    total, pixels = 0.0, 0
    for (before, after), motion in zip(pairwise(images), motions, strict=True):
        moved = remap(before.astype(np.float32), motion.origin)
        difference = np.abs(moved - after).mean(axis=2) / 255
        total += difference[motion.valid].sum(dtype=np.float64)
        pixels += np.count_nonzero(motion.valid)
    return float(total / max(pixels, 1))


def depth_error(source: np.ndarray, output: np.ndarray) -> float:
    """Return the mean squared difference of two maps of inverse depth `[H, W]`, up to scale and shift.

    The source's is scaled to `[0, 1]`, the output's fitted to it by least squares with a scale >= 0. 0 for
    the same shape, the variance of the source's map (about 0.1) for an unrelated or inverted one.
    """
    expected = (source - source.min()) / max(float(np.ptp(source)), 1e-6)
    expected, output = expected - expected.mean(), output - output.mean()
    scale = max(0.0, float((expected * output).mean() / max(float((output**2).mean()), 1e-12)))
    return float(((expected - scale * output) ** 2).mean())


def find_edges(image: Image) -> np.ndarray:
    """Return the strength of edges at each pixel, float32 `[height, width]`, at least 0.

    The root of the slope of grey, so that faint edges count too; blurred, so that an ink line counts as the
    edge it follows.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), GREY_BLUR)
    slope = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return cv2.GaussianBlur(np.sqrt(slope), (0, 0), EDGE_BLUR)


def edge_agreement(source: np.ndarray, output: np.ndarray) -> float:
    """Correlate two maps of edges `[height, width]`: 1 for the same edges at whatever contrast.

    About 0 for those of unrelated images, 0 if one has none.
    """
    source, output = source - source.mean(), output - output.mean()
    power = float((source**2).mean() * (output**2).mean())
    return float((source * output).mean()) / power**0.5 if power > 1e-6 else 0.0


def style_features(images: Iterable[Image]) -> np.ndarray:
    """Return mean colour and contrast (deviation of grey) of 16 x 16 cells, `[n, 1024]` in `[0, 1]`."""
    features = []
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        layers = np.dstack([image.astype(np.float32) / 255, grey, grey**2])
        cells = cv2.resize(layers, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
        *colour, mean, square = np.moveaxis(cells, 2, 0)
        features.append(np.ravel([*colour, np.sqrt(np.maximum(square - mean**2, 0))]))
    return np.stack(features)


def style_distances(own: np.ndarray, references: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean absolute difference of features `[n, features]` from each reference's: `[n]` each."""
    return {name: np.abs(own - reference).mean(axis=1) for name, reference in references.items()}


def colour_statistics(image: Image) -> np.ndarray:
    """Return mean and standard deviation of each channel in `[0, 1]`: `[2, 3]`."""
    pixels = image.reshape(-1, 3) / 255
    return np.stack([pixels.mean(axis=0), pixels.std(axis=0)])


def change_in_percent(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the relative change of each element in percent; a first value under 1/255 counts as that."""
    return 100 * (last - first) / np.maximum(first, 1 / 255)


def there_and_back(frames: int, at_least: int) -> list[int]:
    """Return indices, at least so many, that play a clip forwards and backwards again and again.

    The last 32 show what those from 8 to 40 show, in the same order, so what differs between the two is not
    the source's doing. Of a clip that is too long to return in time, only the beginning is played.
    """
    opening = WARMUP_FRAMES + DRIFT_FRAMES
    turn = max(1, min(frames - 1, (at_least - opening) // 2))  # the frame at which it turns back
    period = 2 * turn
    rounds = -(-max(at_least - opening, 1) // period)
    return [min(turn - abs(i % period - turn), frames - 1) for i in range(opening + rounds * period)]
