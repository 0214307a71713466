"""What each style of the nano model should look like: functions from a picture to a picture.

Each is a fixed, local rule without randomness, so that the target of a clip is as steady as the clip.
Patterns (hatching, grid) have periods that divide 16 pixels, the nano UNet's coarsest cell: it can know their
phase from nothing else.
"""

import cv2
import numpy as np

PATTERN_PERIOD = 8


def luminance(picture: np.ndarray) -> np.ndarray:
    """Grey value in `[0, 1]`, float32 `[height, width]`, lightly smoothed so that camera noise draws no
    lines."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return cv2.bilateralFilter(grey, 5, 0.12, 2)


def lines(grey: np.ndarray, width: float = 1.0, gain: float = 14.0, threshold: float = 0.012) -> np.ndarray:
    """Ink on edges, `[0, 1]`, 1 where a line is: a difference of Gaussians through a soft threshold."""
    difference = cv2.GaussianBlur(grey, (0, 0), width * 1.6) - cv2.GaussianBlur(grey, (0, 0), width)
    return np.clip((difference - threshold) * gain * 2, 0, 1)


def mix(ink: np.ndarray, paper: np.ndarray | tuple, pigment: np.ndarray | tuple) -> np.ndarray:
    """`paper` where `ink` is 0, `pigment` where it is 1; uint8 `[height, width, 3]`."""
    ink = ink[..., None]
    blend = (1 - ink) * np.asarray(paper, np.float32) + ink * np.asarray(pigment, np.float32)
    return np.clip(blend, 0, 255).astype(np.uint8)


def saturate(picture: np.ndarray, factor: float) -> np.ndarray:
    """Colours further from (or nearer to) grey; float32 `[height, width, 3]`."""
    picture = picture.astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    return np.clip(grey + (picture - grey) * factor, 0, 255)


def waves(shape: tuple[int, int], along: tuple[int, int]) -> np.ndarray:
    """A line screen, `[0, 1]`, one period every PATTERN_PERIOD pixels in the direction `along` = (x, y)."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return 0.5 + 0.5 * np.cos(2 * np.pi * (along[0] * x + along[1] * y) / PATTERN_PERIOD)


def pencil(picture: np.ndarray) -> np.ndarray:
    """Graphite on warm paper: outlines, soft tone, diagonal hatching in the shadows."""
    grey = luminance(picture)
    dodge = np.clip(grey / (cv2.GaussianBlur(grey, (0, 0), 4) + 0.02), 0, 1)
    shadow = np.clip(0.62 - cv2.GaussianBlur(grey, (0, 0), 1.5), 0, 1)
    hatching = np.clip(shadow * 2.6 - waves(grey.shape, (1, 1)) * 0.9, 0, 1)
    ink = np.clip((1 - dodge) * 2.2 + hatching * 0.55 + shadow * 0.35 + lines(grey) * 0.8, 0, 1)
    return mix(ink, (248, 244, 234), (48, 46, 50))


def comic(picture: np.ndarray) -> np.ndarray:
    """Flat, strong colours in few steps, under black ink."""
    smooth = picture
    for _ in range(2):
        smooth = cv2.bilateralFilter(smooth, 7, 40, 4)
    grey = luminance(picture)
    colour = saturate(smooth, 2.1)
    level = colour.max(axis=2, keepdims=True) / 255
    step = level * 4
    flat = (np.floor(step) + 0.5 + 0.5 * np.tanh((step - np.floor(step) - 0.5) * 9)) / 4  # soft-edged steps
    colour = colour / (level + 1e-3) * np.clip(flat * 1.05 + 0.06, 0, 1)
    ink = np.clip(lines(grey, 1.3, 20) + np.clip((0.16 - grey) * 12, 0, 1), 0, 1)
    return mix(ink, np.clip(colour, 0, 255), (14, 12, 20))


def neon(picture: np.ndarray) -> np.ndarray:
    """Glowing contours, cyan to magenta by brightness, on night blue."""
    grey = luminance(picture)
    smooth = cv2.GaussianBlur(grey, (0, 0), 1.0)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    edge = np.clip(slope * 2.4 - 0.12, 0, 1)
    glow = cv2.GaussianBlur(edge, (0, 0), 3.5) * 1.1
    tone = cv2.GaussianBlur(grey, (0, 0), 3)[..., None]
    colour = (1 - tone) * np.array([20, 220, 255], np.float32) + tone * np.array([255, 40, 190], np.float32)
    night = np.array([10, 8, 34], np.float32) + tone * np.array([16, 6, 40], np.float32)
    light = (
        night
        + colour * np.clip(edge + glow * 0.75, 0, 1)[..., None]
        + 120 * np.clip(edge - 0.55, 0, 1)[..., None]
    )
    return np.clip(light, 0, 255).astype(np.uint8)


def oil(picture: np.ndarray) -> np.ndarray:
    """Thick paint: a Kuwahara filter (each pixel takes the calmest of four neighbourhoods), warmer and
    embossed."""
    source = saturate(picture, 1.7)
    for radius in (3, 2):
        size = (radius + 1, radius + 1)
        grey = source.mean(axis=2)
        mean = cv2.blur(source, size)
        variance = cv2.blur(grey * grey, size) - cv2.blur(grey, size) ** 2
        offset = radius // 2 + 1
        means, variances = [], []
        for dy in (-offset, offset):
            for dx in (-offset, offset):
                shift = np.float32([[1, 0, dx], [0, 1, dy]])
                extent = (grey.shape[1], grey.shape[0])
                means.append(cv2.warpAffine(mean, shift, extent, borderMode=cv2.BORDER_REFLECT))
                variances.append(cv2.warpAffine(variance, shift, extent, borderMode=cv2.BORDER_REFLECT))
        weight = 1 / (np.stack(variances) + 4) ** 3
        source = (np.stack(means) * weight[..., None]).sum(0) / weight.sum(0)[..., None]
    relief = cv2.GaussianBlur(source.mean(axis=2), (0, 0), 0.8)
    emboss = np.clip(
        cv2.Sobel(relief, cv2.CV_32F, 1, 1, ksize=3) * -2.0 + (relief - np.roll(relief, 2, (0, 1))), -40, 40
    )
    warm = source * np.array([1.08, 1.0, 0.86], np.float32) + np.array([14, 8, 0], np.float32)
    return np.clip(warm + 0.8 * emboss[..., None], 0, 255).astype(np.uint8)


def woodcut(picture: np.ndarray) -> np.ndarray:
    """Dark brown ink on cream, tone carried by horizontal cuts of varying width."""
    grey = luminance(picture)
    tone = np.clip(cv2.GaussianBlur(grey, (0, 0), 1.2) * 1.3 - 0.02, 0, 1) ** 0.7
    cuts = np.clip((waves(grey.shape, (0, 1)) - tone * 1.15 + 0.06) * 5 + 0.5, 0, 1)
    ink = np.clip(np.maximum(cuts, lines(grey, 1.4, 24)), 0, 1)
    return mix(ink, (242, 226, 190), (46, 24, 16))


def blueprint(picture: np.ndarray) -> np.ndarray:
    """White construction lines on blue paper with a faint grid."""
    grey = luminance(picture)
    smooth = cv2.GaussianBlur(grey, (0, 0), 0.8)
    slope = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    grid = np.zeros_like(grey)
    grid[::16] = 1
    grid[:, ::16] = 1
    ink = (
        np.clip(slope * 1.7 - 0.1, 0, 1) + lines(grey) * 0.5 + (1 - grey) * -0.06 + grid * 0.16 + grey * 0.12
    )
    return mix(np.clip(ink, 0, 1), (22, 62, 140), (232, 242, 255))


TARGETS = {
    "pencil": pencil,
    "comic": comic,
    "neon": neon,
    "oil": oil,
    "woodcut": woodcut,
    "blueprint": blueprint,
}
