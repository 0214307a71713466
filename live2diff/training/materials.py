"""Draw textures for rendered scenes, float32 `[side, side, 3]` in `[0, 255]`."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import photographs as library
from .photographs import view_of
from .subjects import recoloured, subjects

BODIES = tomllib.loads((Path(__file__).parent / "bodies.toml").read_text())
PATTERNS, VIEWS = 12, 120  # different patterns of each kind, different views of photographs
KINDS = "plain cloth stripes tiles bricks wood leaves photograph"


def noise(random: np.random.Generator, side: int, *cells: int) -> np.ndarray:
    """Return smooth noise about 0, float32 `[side, side, 1]`, with `cells` bumps down and across."""
    grain = random.normal(0, 1, (cells[0], cells[-1])).astype(np.float32)
    return cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]


def any_colour(random: np.random.Generator, low: float = 40, high: float = 235) -> np.ndarray:
    """Return a colour between a grey and a bright one, float32 `[3]`."""
    grey = random.uniform(low, high)
    return (grey + random.uniform(0, 1) * (random.uniform(low, high, 3) - grey)).astype(np.float32)


@cache
def pattern(kind: str, index: int, side: int) -> np.ndarray:
    """Return the share of a second colour in a kind of surface, float32 `[side, side, 1]`.

    Only a few of each kind are made, and cached: surfaces differ in their colours.
    """
    random = np.random.default_rng([index, len(kind)])
    down, across = np.mgrid[0:side, 0:side].astype(np.float32)[..., None] / side
    if kind == "stripes":
        way = (across, down, across + down)[random.integers(3)]
        part = np.clip(2 * np.sin(way * 2 * np.pi * random.integers(3, 14)) + random.uniform(-1, 1), 0, 1)
    elif kind in ("tiles", "bricks"):
        wide = 1 + (kind == "bricks")
        row = down * random.integers(3, 9) * wide
        column = across * random.integers(3, 9) + (row.astype(int) % wide) / 2
        part = random.uniform(-1, 1, (32, 32))[row.astype(int), column.astype(int)] * random.uniform(0.1, 0.6)
        part = np.where(np.minimum(row % 1, (column % 1) * wide) < 0.08, -0.7, part)
    elif kind == "wood":
        boards = np.floor(across * random.integers(1, 8))
        grain = across * 14 + 0.6 * noise(random, side, 3, 12) + boards * 2.3
        part = 0.5 + 0.25 * np.sin(grain * 5) + 0.3 * np.sin(boards * 7.7)
    elif kind == "leaves":
        part = noise(random, side, 14) * 0.5 + noise(random, side, 30) * 0.5
    else:
        part = noise(random, side, 4) * 0.08 + noise(random, side, side // 2) * 0.12 * (kind == "cloth")
    return (part + noise(random, side, side // 3) * random.uniform(0, 0.04)).astype(np.float32)


@cache
def cached_view(index: int, side: int) -> np.ndarray:
    """Return one of `VIEWS` views of photographs."""
    return view_of(np.random.default_rng([index, 1]), side)


def material(random: np.random.Generator, side: int, kinds: str = KINDS) -> np.ndarray:
    """Return a texture of one of `kinds`."""
    kind, colour, other = random.choice(kinds.split()), any_colour(random), any_colour(random)
    if kind == "photograph":
        return np.clip(cached_view(int(random.integers(VIEWS)), side) * random.uniform(0.7, 1.2), 0, 255)
    if kind == "wood":
        colour = np.array([150, 100, 60], np.float32) * random.uniform(0.4, 1.5) + random.normal(0, 10, 3)
        other = colour * random.uniform(0.55, 0.85)
    elif kind == "leaves":
        colour = random.uniform([40, 80, 20], [150, 150, 70])
        other = colour * 0.4
    surface = colour + (other - colour) * pattern(kind, int(random.integers(PATTERNS)), side)
    return np.clip(surface, 0, 255).astype(np.float32)


def with_rectangles(
    random: np.random.Generator,
    surface: np.ndarray,
    shape: tuple[int, int],
    size: tuple[float, float],
    share: float = 1.0,
    photographs: bool = False,
) -> np.ndarray:
    """Draw framed rectangles over a surface: windows of a house, books on shelves, pictures on a wall.

    `shape` is the number of rows and columns, `size` the width and height in parts of a cell's, `share` the
    share of cells that have one.
    """
    surface, cell = surface.copy(), len(surface) / np.array(shape[::-1])
    for row, column in np.ndindex(*shape):
        wide, high = np.maximum(size * cell * [1, random.uniform(0.75, 1)], 1).astype(int)
        left, bottom = int((column + 0.5) * cell[0] - wide / 2), int((row + 0.95) * cell[1])
        if random.random() < share:
            frame, ends = any_colour(random).tolist(), (left + wide + 1, bottom + 1)
            cv2.rectangle(surface, (left - 2, bottom - high - 2), ends, frame, -1)
            fill = material(random, 48, "photograph" if photographs else "plain")
            surface[bottom - high : bottom, left : left + wide] = cv2.resize(fill, (wide, high))
    return surface


def blob(random: np.random.Generator, size: int) -> np.ndarray:
    """Return a random shape, float32 `[size, size]` in `[0, 1]`: a bumpy disc, or head and shoulders."""
    mask = np.zeros((size, size), np.float32)
    if random.random() < 0.4:
        head, shoulders = random.uniform([0.14, 0.18], [0.2, 0.26]), (random.uniform(0.3, 0.42), 0.38)
        for y, axes in ((0.33, head), (0.92, shoulders)):
            cv2.ellipse(mask, (size // 2, int(size * y)), [int(size * a) for a in axes], 0, 0, 360, 1.0, -1)
    else:
        angle, radius = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.full(64, 0.28 * size)
        for order in range(1, 5):
            radius *= 1 + random.normal(0, 0.22) / order * np.cos(order * angle + random.uniform(0, 6.3))
        radius = np.clip(radius, size * 0.05, size * 0.48)
        outline = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None] + size / 2
        cv2.fillPoly(mask, [outline.astype(np.int32)], 1.0)
    return cv2.GaussianBlur(mask, (3, 3), 0)


def cutout(random: np.random.Generator, side: int) -> np.ndarray:
    """Return a cut-out, float32 `[side, side, 4]` with opacity: a photographed subject or a random shape.

    Shapes are half of them, or all without subjects, and have a relief that is lit from one side.
    """
    found = subjects(library.material)
    if found and random.random() < 0.5:
        return recoloured(random, found[random.integers(len(found))], side)
    texture, mask, angle = view_of(random, side), blob(random, side), random.uniform(0, 6.3)
    if random.random() < 0.4:  # flat surfaces and skin have little texture
        texture = 0.25 * texture + 0.75 * random.uniform(30, 240, 3).astype(np.float32)
    relief = cv2.GaussianBlur(mask, (0, 0), side / 12)
    slope = np.cos(angle) * cv2.Sobel(relief, -1, 1, 0) + np.sin(angle) * cv2.Sobel(relief, -1, 0, 1)
    texture = np.clip(texture * (1 + slope[..., None] * side / 60), 0, 255)
    return np.dstack([texture, 255 * mask]).astype(np.float32)


def face(random: np.random.Generator, side: int, skin: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """Return the front of a head as `bodies.toml` describes it: eyes, brows, mouth, on skin."""
    colours = {"cheek": skin * [1.06, 0.92, 0.9], "lips": np.clip(skin * [0.95, 0.62, 0.6], 0, 255)}
    colours |= {"socket": skin * 0.78, "chin": skin * 0.95, "lid": skin * 0.3, "white": [235, 230, 225]}
    colours |= {"iris": any_colour(random, 20, 130), "black": [15, 12, 12], "brow": 0.3 * skin + 0.56 * hair}
    optional = {"beard": 0.35 * skin + 0.65 * hair, "glasses": [30, 28, 30], "fringe": hair}
    optional |= {"teeth": [238, 232, 225]}
    colours |= {name: colour for name, colour in optional.items() if random.random() < 0.4}
    front = skin + noise(random, side, 5) * 5 + noise(random, side, side // 3) * 3
    apart, level = random.uniform([0.85, -0.07], [1.15, 0.07])
    unit = side * 8  # sixteenths of a pixel in half of the face
    for layer, blur in (("soft", side / 22), ("sharp", 0.3)):
        for row in BODIES["face"][layer].strip().splitlines():
            x, y, wide, high, name, thickness, *arc = [*row.split(), "0", "0", "360"][:8]
            axes = unit * np.array([wide, high], float) * random.uniform(0.85, 1.2, 2)
            line = int(thickness) * max(1, side // 64) or -1
            for sign in (-1, 1) if x[0] == "±" else (0,):
                place = unit * np.array([1 + sign * float(x.lstrip("±")) * apart, 1 + float(y) + level])
                if name in colours:
                    shape: Any = place.astype(int).tolist(), axes.astype(int).tolist()
                    start, end, tint = float(arc[0]), float(arc[1]), np.array(colours[name], float).tolist()
                    cv2.ellipse(front, shape[0], shape[1], 0, start, end, tint, line, cv2.LINE_AA, 4)
        front = cv2.GaussianBlur(front, (0, 0), blur)
    return np.clip(front, 0, 255).astype(np.float32)
