"""Compute the figures of the evaluation from arrays: images are uint8 `[height, width, 3]` RGB.

Lengths (of the optical flow, of blurs) are in pixels of the working size, colours in `[0, 1]`. "Memory" is
what a stream has seen before: the warmup frames and the latest ones. A figure that cannot be measured (no
pixel moves, say) is None.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np

from ..config import RECENT_FRAMES, WARMUP_FRAMES
from ..video.reader import Image

FLOW_TOLERANCE = (0.01, 0.5)  # there and back may differ by sqrt(0.01 * squared lengths + 0.5) pixels
CELLS = 16  # style is compared in 16 x 16 cells of an image
GREY_BLUR, EDGE_BLUR = 1.0, 2.0  # standard deviations of the Gaussians before and after the edge filter
DRIFT_FRAMES = 32
CHANGE_BLUR = 2.0  # before images are compared: camera noise must not count as motion
MOVED, STOOD = 0.05, 0.015  # mean |difference| of colours: moving pixels are above, still ones below
STILL_FLOW = 0.25  # still pixels have a shorter flow
FEWEST_PIXELS = 64  # of a frame that is measured
SCALES = 4  # of the perceptual distance: 1, 1/2, 1/4, 1/8
SIMILARITY_FLOOR = 0.0026  # of squared slopes in [0, 1]: weaker ones are alike (Xue et al., TIP 2014)


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
    """Compare images with their predecessors warped by the motion: 0 if textures stick to the scene.

    1/3 for independent uniform noise. The mean over all valid pixels of all pairs, and over the channels, of
    the absolute difference in `[0, 1]`; 0 if no pixel is valid. `motions[i]` is that of image i + 1.
    Fooled by blur and smearing, which lower it.
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
    the same shape, the variance of the source's map (about 0.1) for an unrelated or inverted one. Fooled by
    an estimator that goes by a pixel's position rather than by the image.
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
    """Correlate two maps of edges `[height, width]`: 1 for the same edges at any contrast.

    About 0 for those of unrelated images, 0 if one has none. Fooled by a copy of the source, the best of all.
    """
    source, output = source - source.mean(), output - output.mean()
    power = float((source**2).mean() * (output**2).mean())
    return float((source * output).mean()) / power**0.5 if power > 1e-6 else 0.0


def find_moving(images: Sequence[Image]) -> list[np.ndarray]:
    """Return where each frame differs from any in the memory: bool `[height, width]` each.

    Ghosts would show there. The warmup frames have no moving pixels: they are translated together.
    """
    blurred = [cv2.GaussianBlur(image.astype(np.float32) / 255, (0, 0), CHANGE_BLUR) for image in images]
    masks = [np.zeros(image.shape[:2], bool) for image in images]
    for index in range(WARMUP_FRAMES, len(images)):
        recent = range(max(WARMUP_FRAMES, index - RECENT_FRAMES + 1), index)
        for before in (*range(WARMUP_FRAMES), *recent):
            masks[index] |= np.abs(blurred[index] - blurred[before]).mean(axis=2) > MOVED
    return masks


def find_still(before: Image, after: Image, motion: Motion) -> np.ndarray:
    """Return where hardly anything changes between two frames and nothing moves: bool `[height, width]`."""
    difference = cv2.GaussianBlur(after.astype(np.float32) - before, (0, 0), CHANGE_BLUR) / 255
    y, x = np.mgrid[: len(after), : after.shape[1]]
    flow = np.linalg.norm(motion.origin - np.dstack([x, y]), axis=2)
    return (np.abs(difference).mean(axis=2) < STOOD) & (flow < STILL_FLOW)


def mean_agreement(
    sources: Iterable[np.ndarray], outputs: Iterable[np.ndarray], masks: Iterable[np.ndarray]
) -> float | None:
    """Average the edge agreement within the masks over the frames, each weighted by its pixels."""
    frames = [f for f in zip(sources, outputs, masks, strict=True) if np.count_nonzero(f[2]) >= FEWEST_PIXELS]
    if not frames:
        return None
    agreements = [edge_agreement(source[mask], output[mask]) for source, output, mask in frames]
    return float(np.average(agreements, weights=[np.count_nonzero(mask) for *_, mask in frames]))


def moving_structure(
    source: Sequence[np.ndarray],
    output: Sequence[np.ndarray],
    alone: Mapping[int, np.ndarray],
    moving: Sequence[np.ndarray],
) -> float | None:
    """Return the edge agreement with the source in moving pixels, with memory over without.

    Maps of edges of all frames, and of some without memory by number of the frame. Below 1: ghosts and blur.
    Fooled by a memory that draws less of the style: strokes that the source lacks count as faults.
    """
    masks = [moving[index] for index in alone]
    with_memory, without = (
        mean_agreement((source[index] for index in alone), (edges[index] for index in alone), masks)
        for edges in (output, alone)
    )
    return with_memory / without if with_memory is not None and without and without > 0 else None


def lag(
    source: Sequence[np.ndarray], output: Sequence[np.ndarray], moving: Sequence[np.ndarray]
) -> int | None:
    """Return how many frames ago, 0 to 8, the source's edges agreed best with the output's in moving pixels.

    Maps of edges of all frames. Fooled by a ghost that is fainter than the image over it, and by motion that
    returns within 8 frames or is slower than the blur of the edges.
    """
    first = WARMUP_FRAMES
    agreements = [
        mean_agreement(source[first - frames : len(source) - frames], output[first:], moving[first:]) or 0.0
        for frames in range(first + 1)
    ]
    return int(np.argmax(agreements)) if max(agreements) > 0 else None


def still_flicker(
    output: Sequence[Image], alone: Mapping[int, Image], still: Sequence[np.ndarray]
) -> float | None:
    """Return the mean |difference| of successive outputs in still pixels, with memory over without.

    Images of all frames, and of some without memory by number of the frame; `still[i]` is of frame i + 1.
    Below 1 the memory calms. Fooled by an output that is frozen or flat: read it beside `moving_structure`.
    """
    ends = [index for index in alone if index - 1 in alone]
    if sum(np.count_nonzero(still[index - 1]) for index in ends) < FEWEST_PIXELS:
        return None
    with_memory, without = (
        np.concatenate([cv2.absdiff(images[i], images[i - 1])[still[i - 1]] for i in ends]).mean()
        for images in (output, alone)
    )
    return float(with_memory / without) if without > 0 else None


def seams(images: Sequence[Image], cell: int) -> float | None:
    """Return the mean |step| between neighbours across borders of the latent cells over that inside them.

    `cell` is their side in pixels. About 1.01 for photographs. Fooled by noise or detail inside the cells,
    and by a pattern whose steps lie beside the borders.
    """
    across, inside = [], []
    for image in images:
        for axis in (0, 1):
            steps = np.abs(np.diff(image.astype(np.int16), axis=axis)).mean(axis=(1 - axis, 2))
            border = np.arange(1, len(steps) + 1) % cell == 0
            across.append(steps[border])
            inside.append(steps[~border])
    steps = np.concatenate(inside)
    return float(np.concatenate(across).mean() / steps.mean()) if steps.any() else None


def perceptual_distance(image: Image, target: Image) -> float:
    """Return 1 - the multi-scale gradient magnitude similarity of two images: 0 for the same, below 1.

    With the slopes a and b (Prewitt, each channel) it is the mean of `1 - (2ab + c) / (a^2 + b^2 + c)` over
    pixels, channels and the scales 1, 1/2, 1/4, 1/8; no network. Fooled by a wrong flat colour, which it does
    not see, and by blur, which at the finest scale may cost less than strokes beside the target's.
    """
    kernel = np.array([[1, 0, -1]] * 3, np.float32) / 3
    layers, distances = [each.astype(np.float32) / 255 for each in (image, target)], []
    for _ in range(SCALES):
        one, other = (
            np.hypot(cv2.filter2D(layer, -1, kernel), cv2.filter2D(layer, -1, kernel.T)) for layer in layers
        )
        likeness = (2 * one * other + SIMILARITY_FLOOR) / (one**2 + other**2 + SIMILARITY_FLOOR)
        distances.append(1 - float(likeness.mean()))
        layers = [cv2.pyrDown(layer) for layer in layers]
    return float(np.mean(distances))


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
    """Return the mean absolute difference of features `[n, features]` from each reference's: `[n]` each.

    Fooled by a tint: it sees colours and contrast of large cells, no strokes.
    """
    return {name: np.abs(own - reference).mean(axis=1) for name, reference in references.items()}


def colour_statistics(image: Image) -> np.ndarray:
    """Return mean and standard deviation of each channel in `[0, 1]`: `[2, 3]`."""
    pixels = image.reshape(-1, 3) / 255
    return np.stack([pixels.mean(axis=0), pixels.std(axis=0)])


def change_in_percent(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the relative change of each element in percent; a first value under 1/255 counts as that.

    Fooled by what leaves mean and deviation of a colour as they are: shapes that dissolve.
    """
    return 100 * (last - first) / np.maximum(first, 1 / 255)


def there_and_back(frames: int, at_least: int) -> list[int]:
    """Return at least so many indices that play a clip forwards and backwards repeatedly.

    The last 32 show the same frames as those from 8 to 40, in the same order, so that a difference between
    the two does not come from the source. Of a clip that is too long to return in time, only the beginning
    is played.
    """
    opening = WARMUP_FRAMES + DRIFT_FRAMES
    turn = max(1, min(frames - 1, (at_least - opening) // 2))  # the frame at which it turns back
    period = 2 * turn
    rounds = -(-max(at_least - opening, 1) // period)
    return [min(turn - abs(i % period - turn), frames - 1) for i in range(opening + rounds * period)]
