"""The target of each style of the nano model: functions from image to image.

Each is a fixed, local rule without randomness, so that the target of a clip is as steady as the clip. Strokes
follow the image (its edges, its tones). What stays on the paper (hatching, cuts, grid, pixels) has a
period that divides 8 pixels, or is 8 or 16: the cells of the nano VAE's latents, and of the level below. The
UNet can know its phase from nothing else.
"""

from typing import Any

import cv2
import numpy as np

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


def kuwahara(image: np.ndarray, radius: int) -> np.ndarray:
    """Give each pixel the mean of the calmest of four neighbourhoods: flat dabs with clean edges.

    float32 `[height, width, 3]` in and out.
    """
    height, width = image.shape[:2]
    size, offset = (radius + 1, radius + 1), radius // 2 + 1
    grey = image.mean(axis=2)
    variance = cv2.blur(grey * grey, size) - cv2.blur(grey, size) ** 2
    weight = (20 / (variance + 4)) ** 3
    weighted = np.dstack([cv2.blur(image, size) * weight[..., None], weight])
    weighted = cv2.copyMakeBorder(weighted, offset, offset, offset, offset, cv2.BORDER_REFLECT)
    corners = [weighted[y : y + height, x : x + width] for y in (0, 2 * offset) for x in (0, 2 * offset)]
    total = corners[0] + corners[1] + corners[2] + corners[3]
    return np.maximum(total[..., :3] / total[..., 3:], 0)


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


def oil(image: np.ndarray) -> np.ndarray:
    """Draw thick paint: dabs of warm colour over a dark drawing, and ridges that bend with the tones."""
    bright = saturate(image, 1.5)
    dabs = kuwahara(kuwahara(bright, 3), 2)
    dabs += 0.5 * np.clip(cv2.GaussianBlur(bright, (0, 0), 1.0) - dabs, -60, 30)  # or eyes are painted over
    dabs *= 1 - 0.4 * lines(luminance(image), 1.2, 14, 0.008)[..., None]
    tone = cv2.GaussianBlur(dabs.mean(axis=2), (0, 0), 3)
    y, x = np.mgrid[: tone.shape[0], : tone.shape[1]].astype(np.float32) / PATTERN_PERIOD
    ridges = np.cos(2 * np.pi * (x + y + tone / 128)) * (5 + 0.07 * tone)
    relief = cv2.GaussianBlur(dabs.mean(axis=2), (0, 0), 0.8)
    emboss = 1.2 * np.clip(relief - np.roll(relief, (2, 2), (0, 1)), -40, 40)
    deep = 255 * (dabs / 255) ** 1.2 * (1.08, 1, 0.84) + (12, 8, 2)
    return np.clip(deep + (emboss + ridges)[..., None], 0, 255).astype(np.uint8)


def woodcut(image: np.ndarray) -> np.ndarray:
    """Draw dark brown ink on cream, tone carried by cuts of varying width that bend over what is light."""
    grey = luminance(image)
    tone = cv2.GaussianBlur(grey, (0, 0), 1.5)
    height = np.arange(len(grey), dtype=np.float32)[:, None] / PATTERN_PERIOD
    cuts = 0.5 + 0.5 * np.cos(2 * np.pi * (height + 0.8 * cv2.GaussianBlur(grey, (0, 0), 4)))
    tone = np.clip(tone * 1.3 - 0.02, 0, 1) ** 0.7
    ink = np.clip((cuts - tone * 1.15 + 0.06) * 4 + 0.5, 0, 1)
    return mix(np.maximum(ink, lines(grey, 1.4, 24)), (242, 226, 190), (46, 24, 16))


def blueprint(image: np.ndarray) -> np.ndarray:
    """Draw white construction lines on blue paper with a faint grid, paler where the thing is light."""
    grey = luminance(image)
    grid = np.zeros_like(grey)
    grid[::16] = 1
    grid[:, ::16] = 1
    ink = 0.9 * lines(grey, 1.3, 18, 0.007) + 0.16 * grid + 0.22 * cv2.GaussianBlur(grey, (0, 0), 1.5)
    return mix(np.clip(ink, 0, 1), (22, 62, 140), (232, 242, 255))


def ink(image: np.ndarray) -> np.ndarray:
    """Draw in sumi ink: wet black washes in three tones with soft borders, brush lines, much empty paper."""
    grey = kuwahara(image.astype(np.float32), 2).mean(axis=2) / 255
    local = grey - 0.6 * (cv2.GaussianBlur(grey, (0, 0), 16) - 0.45)
    soft = cv2.GaussianBlur(local, (0, 0), 1.0)
    wash: Any = sum(rise(level, soft, 40) for level in (0.2, 0.33, 0.46)) / 3
    rim = np.abs(wash - cv2.GaussianBlur(wash, (0, 0), 2.5))
    brush = lines(grey, 1.5, 26, 0.01)
    return mix(np.clip(wash * 0.9 + rim * 0.5 + brush * 0.8, 0, 1), (238, 241, 240), (16, 18, 26))


def watercolour(image: np.ndarray) -> np.ndarray:
    """Draw thin colour on white paper: pale washes, darker where a wash ends, over a few pen lines."""
    smooth = kuwahara(kuwahara(saturate(image, 1.9), 3), 2)
    grey = smooth.mean(axis=2) / 255
    edge = np.abs(cv2.GaussianBlur(grey, (0, 0), 0.8) - cv2.GaussianBlur(grey, (0, 0), 2.2))
    pigment = np.clip(1.3 - grey, 0.2, 1) * (0.6 + 4 * edge)
    washes = 255 - (255 - smooth) * pigment[..., None]
    pen = 0.75 * lines(luminance(image), 1.1, 16, 0.01)
    return mix(pen, washes * (1, 0.99, 0.965) + 4, (66, 48, 60))


PALETTE = np.array(
    [
        [26, 28, 44], [93, 39, 93], [177, 62, 83], [239, 125, 87], [255, 205, 117], [167, 240, 112],
        [56, 183, 100], [37, 113, 121], [41, 54, 111], [59, 93, 201], [65, 166, 246], [115, 239, 247],
        [244, 244, 244], [148, 176, 194], [86, 108, 134], [51, 60, 87], [222, 158, 115], [120, 70, 50],
    ],
    np.float32,
)  # fmt: skip


def pixel(image: np.ndarray) -> np.ndarray:
    """Draw blocks of 4 pixels in the colours of an old game console."""
    height, width = image.shape[:2]
    small = cv2.resize(saturate(image, 1.5), (-(-width // 4), -(-height // 4)), interpolation=cv2.INTER_AREA)
    sharp = np.clip(small * 1.5 - 0.5 * cv2.GaussianBlur(small, (0, 0), 1.5), 0, 255)
    distance = np.square(sharp[:, :, None] - PALETTE).sum(axis=3)
    weight = np.exp(-(distance - distance.min(axis=2, keepdims=True)) / 250)  # soft where two are as near
    colour = (weight @ PALETTE) / weight.sum(axis=2, keepdims=True)
    return np.clip(colour, 0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)[:height, :width]


STYLES = (pencil, ink, watercolour, oil, comic, neon, pixel, woodcut, blueprint)
TARGETS = {style.__name__: style for style in STYLES}
