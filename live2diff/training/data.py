"""Clips with known depth, made from a few freely licensed photographs, without end and without a data set to
fetch.

A clip here is a background photograph under a smooth camera motion with up to three moving, shaded cut-outs
in front of it. Every clip is a function of one random generator, so a batch is a function of (seed, stage,
step): nothing has to be stored for a run to be resumed or repeated.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

# Pictures that scikit-image and scikit-learn carry in their wheels (licences: the model card), and how often
# each is drawn: people, animals and rooms more often than textures.
PHOTOGRAPHS = {
    "astronaut": 4,
    "brick": 0.5,
    "camera": 2,
    "chelsea": 3,
    "coffee": 3,
    "grass": 0.5,
    "gravel": 0.5,
    "hubble_deep_field": 0.5,
    "rocket": 2,
    "china": 4,
    "flower": 3,
}


# A folder of more pictures, if one is given to the recipe.
PHOTOGRAPH_FOLDER: Path | None = None


@lru_cache(maxsize=2)
def photographs(folder: Path | None = None) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The source photographs, each uint8 `[height, width, 3]` RGB, and how likely each is to be drawn.

    Needs scikit-image and scikit-learn (`tests/requirements.txt`), which carry them. All pictures of `folder`
    come on top and are drawn as often as all the others together.

    Raises:
        ValueError: a file of the folder is no picture.
    """
    import skimage.data
    from sklearn.datasets import load_sample_image

    pictures = []
    for name in PHOTOGRAPHS:
        if name in ("china", "flower"):
            picture = load_sample_image(f"{name}.jpg")
        else:
            picture = getattr(skimage.data, name)()
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        pictures.append(np.ascontiguousarray(picture[..., :3]))
    chances = np.array(list(PHOTOGRAPHS.values()))
    chances /= chances.sum()
    files = sorted(folder.glob("*.[jp][pn]g")) if folder else []
    for file in files:
        picture = cv2.imread(str(file), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ValueError(f"{file.name} cannot be read as a picture; take it out of {folder.name}.")
        pictures.append(picture)
    if files:
        chances = np.concatenate([chances, np.full(len(files), 1 / len(files))]) / 2
    return tuple(pictures), chances


def smooth_path(random: np.random.Generator, amplitude: float) -> Callable[[float], float]:
    """A random smooth function of time (in frames): a slow drift and a slow swing of about `amplitude`."""
    speed, phase = random.uniform(0.02, 0.25), random.uniform(0, 2 * np.pi)
    swing, drift = amplitude * random.uniform(0, 1), amplitude * random.uniform(-0.06, 0.06)
    return lambda time: swing * np.sin(speed * time + phase) + drift * time


def recolour(random: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """One change of colour for a whole picture: hue, saturation, gain, gamma; uint8 in and out."""
    if random.random() < 0.5:
        hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + random.integers(0, 180)) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * random.uniform(0.3, 1.6), 0, 255)
        picture = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    curve = np.linspace(0, 1, 256) ** np.exp(random.normal(0, 0.35)) * random.uniform(0.6, 1.25)
    return cv2.LUT(picture, np.clip(curve * 255 + random.uniform(-25, 25), 0, 255).astype(np.uint8))


def view_of(random: np.random.Generator, size: int, margin: float) -> np.ndarray:
    """A recoloured photograph at the scale at which a `size` window shows a part of it, `margin` times as
    large."""
    pictures, chances = photographs(PHOTOGRAPH_FOLDER)
    picture = pictures[random.choice(len(pictures), p=chances)]
    scale = max(size * margin / min(picture.shape[:2]), random.uniform(0.25, 1.0))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=interpolation)
    side = int(size * 1.7)
    top = random.integers(0, max(1, picture.shape[0] - side + 1))
    left = random.integers(0, max(1, picture.shape[1] - side + 1))
    picture = picture[top : top + side, left : left + side]
    return recolour(random, picture[:, ::-1] if random.random() < 0.5 else picture)


def blob(random: np.random.Generator, size: int) -> np.ndarray:
    """A random closed shape, float32 `[size, size]` in `[0, 1]` with a soft edge: an ellipse with bumps, or a
    person's outline (head and shoulders)."""
    mask = np.zeros((size, size), np.float32)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    if random.random() < 0.4:
        head = (int(size * random.uniform(0.14, 0.2)), int(size * random.uniform(0.18, 0.26)))
        cv2.ellipse(mask, (size // 2, size // 3), head, 0, 0, 360, 1.0, -1)
        shoulders = (int(size * random.uniform(0.3, 0.42)), int(size * 0.38))
        cv2.ellipse(mask, (size // 2, int(size * 0.92)), shoulders, 0, 0, 360, 1.0, -1)
    else:
        radius = 0.28 * size * np.ones_like(angle)
        for order in range(1, 5):
            radius *= 1 + random.normal(0, 0.22) / order * np.cos(order * angle + random.uniform(0, 6.3))
        radius = np.clip(radius, size * 0.05, size * 0.48)
        outline = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + size / 2
        cv2.fillPoly(mask, [outline.astype(np.int32)], 1.0)
    return cv2.GaussianBlur(mask, (3, 3), 0)


class Layer:
    """A cut-out with a texture, a shape, a relief and a path."""

    def __init__(self, random: np.random.Generator, size: int, nearness: float):
        side = int(size * random.uniform(0.5, 1.4))
        self.texture = cv2.resize(view_of(random, size, 1.0), (side, side)).astype(np.float32)
        if random.random() < 0.4:  # flat surfaces and skin have little texture
            plain = random.uniform(30, 240, 3).astype(np.float32)
            self.texture = 0.25 * self.texture + 0.75 * plain
        self.mask = blob(random, side)
        relief = cv2.GaussianBlur(self.mask, (0, 0), side / 12)
        light = cv2.Sobel(relief, cv2.CV_32F, 1, 0) * np.cos(a := random.uniform(0, 6.3))
        light = light + cv2.Sobel(relief, cv2.CV_32F, 0, 1) * np.sin(a)
        self.texture = np.clip(self.texture * (1 + light[..., None] * side / 60), 0, 255)
        self.depth = (nearness + 0.12 * relief).astype(np.float32)
        start = random.uniform(0.1, 0.9, 2) * size
        self.x, self.y = smooth_path(random, size * 0.4), smooth_path(random, size * 0.25)
        self.turn, self.zoom = smooth_path(random, 12), smooth_path(random, 0.15)
        self.start, self.side, self.size = start, side, size

    def draw(self, time: float, picture: np.ndarray, depth: np.ndarray) -> None:
        """Paint the layer over `picture` and `depth`, in place."""
        matrix = cv2.getRotationMatrix2D((self.side / 2, self.side / 2), self.turn(time), 1 + self.zoom(time))
        matrix[:, 2] += self.start - self.side / 2 + np.array([self.x(time), self.y(time)])
        shape = (self.size, self.size)
        mask = cv2.warpAffine(self.mask, matrix, shape)[..., None]
        picture += mask * (cv2.warpAffine(self.texture, matrix, shape) - picture)
        depth += mask[..., 0] * (cv2.warpAffine(self.depth, matrix, shape) - depth)


def sample_cutouts(random: np.random.Generator, size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """One clip: uint8 `[frames, size, size, 3]` RGB, and its inverse depth, float32 `[frames, size, size]` in
    `[0, 1]`, near is 1."""
    background = view_of(random, size, 1.2).astype(np.float32)
    height, width = background.shape[:2]
    camera_x, camera_y = smooth_path(random, size * 0.2), smooth_path(random, size * 0.12)
    turn, zoom = smooth_path(random, 6), smooth_path(random, 0.12)
    gain = smooth_path(random, 0.12)
    nearness = np.sort(random.uniform(0.35, 0.85, random.integers(0, 4)))
    layers = [Layer(random, size, near) for near in nearness]
    slope = random.uniform(0, 0.4)
    ground = (np.linspace(-0.5, 1, size, dtype=np.float32)[:, None] * slope).clip(0, 1).repeat(size, 1)
    pictures, depths = [], []
    for time in range(frames):
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn(time), 1.0 + abs(zoom(time)))
        matrix[:, 2] += (size / 2 - width / 2 + camera_x(time), size / 2 - height / 2 + camera_y(time))
        picture = cv2.warpAffine(background, matrix, (size, size), borderMode=cv2.BORDER_REFLECT)
        depth = ground.copy()
        for layer in layers:
            layer.draw(time, picture, depth)
        picture *= 1 + gain(time)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
        depths.append(depth)
    return np.stack(pictures), np.stack(depths)
