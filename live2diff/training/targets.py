"""The target of each style of the nano model: functions from image to image, without randomness.

Painted styles come from a teacher. The others are local rules, whose strokes follow the image: its edges, its
tones. Nothing has a pattern that stays on the paper: it would stand still before what moves.
"""

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from .teachers import has_painter, paint

# Colours of comic.
NAVY, SKY, CREAM = np.array([(58, 68, 182), (150, 196, 232), (255, 244, 214)], np.float32)


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


def pencil(image: np.ndarray) -> np.ndarray:
    """Draw graphite on warm paper: outlines, and soft tone rubbed into the shadows."""
    grey = luminance(image)
    dodge = np.clip(grey / (cv2.GaussianBlur(grey, (0, 0), 4) + 0.02), 0, 1)
    shadow = np.clip(0.62 - cv2.GaussianBlur(grey, (0, 0), 1.5), 0, 1)
    ink = np.clip((1 - dodge) * 2.4 + shadow * 0.75 + lines(grey) * 0.9, 0, 1)
    return mix(ink, (250, 245, 233), (84, 82, 88))


def rise(values: np.ndarray | float, at: np.ndarray | float, gain: float) -> np.ndarray:
    """Rise from 0 to 1 where `values` pass `at`: a step with a soft edge."""
    return 1 / (1 + np.exp((at - values) * gain))


def comic(image: np.ndarray) -> np.ndarray:
    """Draw flat colours under black ink, cream in the lights; what is grey is sky blue, or navy."""
    smooth = image
    for _ in range(3):
        smooth = cv2.bilateralFilter(smooth, 7, 40, 4)
    strongest = smooth.max(axis=2).astype(np.float32)
    saturation = (strongest - smooth.min(axis=2)) / (strongest + 20)
    coloured = rise(cv2.GaussianBlur(saturation, (0, 0), 1.5), 0.26, 25)[..., None]
    hue = saturate(smooth, 1.6)
    hue = 200 * hue / (hue.max(axis=2, keepdims=True) + 1) + 0.2 * CREAM
    grey = luminance(image)
    tone = cv2.GaussianBlur(grey, (0, 0), 1.2)
    shadow, light, paper = (rise(tone, at, 45)[..., None] for at in (0.25, 0.45, 0.66))
    plain = NAVY + light * (SKY - NAVY)
    strong = (1 - shadow) * (0.35 * hue + 0.65 * NAVY) + shadow * (0.72 + 0.28 * light) * hue
    flat = plain + coloured * (strong - plain)
    flat += paper * (1 - 0.4 * coloured) * (CREAM - flat)
    return mix(np.clip(lines(grey, 1.4, 34, 0.007) + rise(0.07, tone, 70), 0, 1), flat, (14, 12, 20))


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


def available_targets() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the targets that can be made: painted ones only where their teacher has been fetched."""
    return TARGETS if has_painter() else RULES
