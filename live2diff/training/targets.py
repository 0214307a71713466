"""The target of each style of the nano model: functions from image to image, without randomness.

Painted styles come from a teacher. The others are local rules, whose strokes follow the image (its edges, its
tones). What stays on the paper (hatching, dots) has a period of 8 pixels: the cells of the nano VAE's
latents. The UNet can know its phase from nothing else.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from .teachers import paint

PATTERN_PERIOD = 8


def luminance(image: np.ndarray) -> np.ndarray:
    """Return the grey value in `[0, 1]`, lightly smoothed so that camera noise draws no lines."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return cv2.bilateralFilter(grey, 5, 0.12, 2)


def lines(grey: np.ndarray, width: float = 1.0, gain: float = 14.0, threshold: float = 0.012) -> np.ndarray:
    """Return ink on edges, `[0, 1]`: a difference of Gaussians through a soft threshold."""
    difference = cv2.GaussianBlur(grey, (0, 0), width * 1.6) - cv2.GaussianBlur(grey, (0, 0), width)
    return np.clip((difference - threshold) * gain * 2, 0, 1)


def mix(ink: np.ndarray, paper: np.ndarray | tuple, pigment: np.ndarray | tuple) -> np.ndarray:
    """Return `paper` where `ink` is 0, `pigment` where it is 1; uint8 `[height, width, 3]`."""
    ink = ink[..., None]
    blend = (1 - ink) * np.asarray(paper, np.float32) + ink * np.asarray(pigment, np.float32)
    return np.clip(blend, 0, 255).astype(np.uint8)


def saturate(image: np.ndarray, factor: float) -> np.ndarray:
    """Move colours away from grey, or towards it; float32."""
    image = image.astype(np.float32)
    grey = image.mean(axis=2, keepdims=True)
    return np.clip(grey + (image - grey) * factor, 0, 255)


def waves(shape: tuple[int, int], along: tuple[int, int]) -> np.ndarray:
    """Return a line screen, `[0, 1]`, of PATTERN_PERIOD pixels in the direction `along` = (x, y)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return 0.5 + 0.5 * np.cos(2 * np.pi * (along[0] * x + along[1] * y) / PATTERN_PERIOD)


def pencil(image: np.ndarray) -> np.ndarray:
    """Draw graphite on warm paper: outlines, soft tone, diagonal hatching in the shadows."""
    grey = luminance(image)
    dodge = np.clip(grey / (cv2.GaussianBlur(grey, (0, 0), 4) + 0.02), 0, 1)
    shadow = np.clip(0.62 - cv2.GaussianBlur(grey, (0, 0), 1.5), 0, 1)
    hatching = np.clip(shadow * 2.6 - waves(grey.shape, (1, 1)) * 0.9, 0, 1)
    ink = np.clip((1 - dodge) * 2.2 + hatching * 0.5 + shadow * 0.25 + lines(grey) * 0.8, 0, 1)
    return mix(ink, (250, 245, 233), (84, 82, 88))


def rise(values: np.ndarray | float, at: np.ndarray | float, gain: float) -> np.ndarray:
    """Rise from 0 to 1 where `values` pass `at`: a step with a soft edge."""
    return 1 / (1 + np.exp((at - values) * gain))


def comic(image: np.ndarray) -> np.ndarray:
    """Draw strong colours in three steps, printed with dots where it is darker, under black ink."""
    smooth = image
    for _ in range(2):
        smooth = cv2.bilateralFilter(smooth, 7, 40, 4)
    colour = saturate(smooth, 1.9)
    hue = colour / (colour.max(axis=2, keepdims=True) + 1)
    grey = luminance(image)
    tone = cv2.GaussianBlur(grey, (0, 0), 1.2)
    light = (0.55 + 0.25 * rise(tone, 0.3, 40) + 0.2 * rise(tone, 0.5, 40))[..., None]
    white = 0.8 * rise(tone, 0.78, 40)[..., None]
    dots = (waves(grey.shape, (1, 1)) + waves(grey.shape, (1, -1))) / 2
    dots = rise(dots, np.clip(0.05 + 1.5 * tone, 0.2, 1), 14) * rise(0.5, tone, 30)
    flat = 255 * light * (hue * (1 - white) + white) * (1 - 0.45 * dots[..., None])
    return mix(np.clip(lines(grey, 1.4, 24, 0.01) + rise(0.11, tone, 60), 0, 1), flat, (14, 12, 20))


def neon(image: np.ndarray) -> np.ndarray:
    """Draw glowing lines, cyan in dark places and magenta in bright ones, on night blue."""
    grey = luminance(image)
    tube = lines(grey, 1.8, 18, 0.006)
    glow = cv2.GaussianBlur(tube, (0, 0), 4)
    bright = np.clip(2.2 * cv2.GaussianBlur(grey, (0, 0), 6) - 0.6, 0, 1)[..., None]
    colour = np.array([10, 210, 255], np.float32) + bright * np.array([245, -160, -65], np.float32)
    night = np.array([8, 8, 32], np.float32) + bright * np.array([52, 10, 78], np.float32)
    light = night + colour * np.clip(0.9 * tube + 0.7 * glow, 0, 1)[..., None]
    return np.clip(light + 110 * np.clip(tube - 0.6, 0, 1)[..., None], 0, 255).astype(np.uint8)


RULES = {rule.__name__: rule for rule in (pencil, comic, neon)}
# Painted styles, by the number that the teacher has for them.
PAINTED = {
    "ink": 2, "watercolour": 14, "pastel": 12, "oil": 5, "starry": 19, "woodblock": 18, "print": 24,
    "splash": 8,
}  # fmt: skip
TARGETS: dict[str, Callable[[np.ndarray], np.ndarray]] = RULES | {
    style: partial(paint, number=number) for style, number in PAINTED.items()
}
