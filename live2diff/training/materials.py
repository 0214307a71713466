"""What the surfaces of rendered scenes look like: woods, tiles, walls, shelves, faces."""

from functools import cache

import cv2
import numpy as np

from .data import view_of

FACES = {"astronaut": (66, 178, 112, 92), "chelsea": (30, 118, 205, 215)}  # top, left, height, width
PATTERNS, PICTURES = 12, 120  # of each kind


def noise(random: np.random.Generator, side: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise about 0, float32 `[side, side, 1]`, with so many bumps down and across."""
    grain = random.normal(0, 1, cells).astype(np.float32)
    return cv2.resize(grain, (side, side), interpolation=cv2.INTER_CUBIC)[..., None]


def any_colour(random: np.random.Generator, low: float = 40, high: float = 235) -> np.ndarray:
    """A colour between a grey and a bright one, float32 `[3]`."""
    grey = random.uniform(low, high)
    return (grey + random.uniform(0, 1) * (random.uniform(low, high, 3) - grey)).astype(np.float32)


@cache
def pattern(kind: str, index: int, side: int) -> np.ndarray:
    """How much of a second colour a surface of a kind has in it, float32 `[side, side, 1]`.

    Few of each kind are made, once: the many surfaces of a scene differ in their colours.
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
        at = row.astype(int), column.astype(int)
        part = random.uniform(-1, 1, (32, 32))[at] * random.uniform(0.1, 0.6)
        part = part + ((at[0] + at[1]) % 2) * (random.random() < 0.4)
        part = np.where(np.minimum(row % 1, (column % 1) * wide) < 0.08, -0.7, part)
    elif kind == "wood":
        boards = np.floor(across * random.integers(1, 8))
        grain = across * 14 + 0.6 * noise(random, side, (3, 12)) + boards * 2.3
        part = 0.5 + 0.25 * np.sin(grain * 5) + 0.3 * np.sin(boards * 7.7)
    elif kind == "leaves":
        part = noise(random, side, (14, 14)) * 0.5 + noise(random, side, (30, 30)) * 0.5
    else:  # plain, cloth
        part = noise(random, side, (4, 4)) * 0.08
        if kind == "cloth":
            part = part + noise(random, side, (side // 2, side // 2)) * 0.12
    return (part + noise(random, side, (side // 3, side // 3)) * random.uniform(0, 0.04)).astype(np.float32)


@cache
def picture(index: int, side: int) -> np.ndarray:
    """One of some views of photographs, float32 `[side, side, 3]`."""
    view = view_of(np.random.default_rng([index, 1]), side, 1.0)
    return cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)


def any_picture(random: np.random.Generator, side: int) -> np.ndarray:
    """A view of a photograph, a little brighter or darker, float32 `[side, side, 3]`."""
    return np.clip(picture(int(random.integers(PICTURES)), side) * random.uniform(0.7, 1.2), 0, 255)


def material(random: np.random.Generator, side: int, kinds: str = "") -> np.ndarray:
    """A surface, float32 `[side, side, 3]`, of one of `kinds` (or of any)."""
    colour, other = any_colour(random), any_colour(random)
    kind = random.choice((kinds or "plain cloth stripes tiles wood bricks photograph leaves").split())
    if kind == "photograph":
        return any_picture(random, side)
    if kind == "wood":
        colour = np.float32([150, 100, 60]) * random.uniform(0.4, 1.5) + random.normal(0, 10, 3)
        other = colour * random.uniform(0.55, 0.85)
    elif kind == "leaves":
        colour = random.uniform([40, 80, 20], [150, 150, 70])
        other = colour * 0.4
    part = pattern(kind, int(random.integers(PATTERNS)), side)
    surface = np.float32(colour) + np.float32(other - colour) * part
    return np.clip(surface, 0, 255, out=surface)


def panes(random: np.random.Generator, wall: np.ndarray) -> np.ndarray:
    """A house's wall with rows of windows and a door."""
    wall, side = wall.copy(), len(wall)
    rows, columns = random.integers(2, 6, 2)
    glass, frame = any_colour(random, 30, 200), any_colour(random, 120, 250)
    wide, high = side / columns, side / rows
    for row, column in np.ndindex(rows, columns):
        left, top = int((column + 0.25) * wide), int((row + 0.2) * high)
        right, bottom = int((column + 0.75) * wide), int((row + 0.75) * high)
        cv2.rectangle(wall, (left - 1, top - 1), (right + 1, bottom + 1), frame.tolist(), -1)
        lit = glass * random.uniform(0.6, 1.2) if random.random() < 0.8 else np.float32([255, 220, 140])
        wall[top:bottom, left:right] = lit + np.linspace(25, -25, max(bottom - top, 0))[:, None, None]
        cv2.line(wall, ((left + right) // 2, top), ((left + right) // 2, bottom), frame.tolist(), 1)
    return wall


def shelves(random: np.random.Generator, side: int) -> np.ndarray:
    """Rows of books in a bookcase."""
    front = material(random, side, "wood")
    rows = int(random.integers(3, 6))
    high, x = side // rows, 0
    for row in range(rows):
        x, bottom = 3, (row + 1) * high - 2
        cv2.rectangle(front, (3, row * high + 2), (side - 4, bottom), (25, 20, 18), -1)
        while x < side - 10:
            wide, tall = int(random.integers(2, max(4, side // 14))), int(high * random.uniform(0.5, 0.85))
            if random.random() < 0.88:
                corner = (min(x + wide, side - 5), bottom)
                cv2.rectangle(front, (x, bottom - tall), corner, any_colour(random).tolist(), -1)
            x += wide + 1
    return front


def wall(random: np.random.Generator, side: int) -> np.ndarray:
    """A wall of a room: paint or paper, and perhaps pictures, a door, a shelf's shadow."""
    surface = material(random, side, "plain plain plain cloth stripes bricks wood tiles photograph")
    if random.random() < 0.7:  # paint is seldom loud
        surface = 0.45 * surface + 0.55 * any_colour(random, 90, 235)
    for _ in range(random.integers(0, 4)):
        wide, high = (side * random.uniform(0.12, 0.35, 2)).astype(int)
        left, top = int(random.uniform(0, side - wide)), int(random.uniform(0.1, 0.5) * side)
        frame = any_colour(random).tolist()
        cv2.rectangle(surface, (left - 3, top - 3), (left + wide + 2, top + high + 2), frame, -1)
        hung = cv2.resize(any_picture(random, 48), (int(wide), int(high)))
        surface[top : top + high, left : left + wide] = hung
    if random.random() < 0.3:
        left, colour = int(random.uniform(0.05, 0.7) * side), any_colour(random)
        cv2.rectangle(surface, (left, side // 5), (left + side // 5, side), colour.tolist(), -1)
        cv2.rectangle(surface, (left, side // 5), (left + side // 5, side), (colour * 0.6).tolist(), 2)
    return surface.astype(np.float32)


@cache
def portrait(name: str) -> np.ndarray:
    """The face in a photograph of scikit-image."""
    import skimage.data

    top, left, height, width = FACES[name]
    return np.ascontiguousarray(getattr(skimage.data, name)()[top : top + height, left : left + width])


def face(random: np.random.Generator, side: int, skin: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """The front of a head: eyes, brows, mouth, perhaps a beard and glasses, on skin."""

    def at(x: float, y: float) -> tuple[int, int]:  # -1 .. 1 over the face, in sixteenths of a pixel
        return int((x + 1) * side * 8), int((y + 1) * side * 8)

    def spot(x: float, y: float, wide: float, high: float, colour, thick: int = -1, span=(0, 360)) -> None:
        axes = (int(wide * side * 8), int(high * side * 8))
        tint = np.asarray(colour, np.float64).tolist()
        cv2.ellipse(front, at(x, y), axes, 0, *span, tint, thick, cv2.LINE_AA, 4)

    front = skin + noise(random, side, (5, 5)) * 5 + noise(random, side, (side // 3, side // 3)) * 3
    apart, level, line = random.uniform(0.3, 0.4), random.uniform(-0.12, 0.02), max(1, side // 64)
    for x in (-apart, apart):
        spot(x, level, 0.27, 0.2, skin * 0.78)
        spot(x * 1.25, 0.32, 0.2, 0.17, skin * [1.06, 0.92, 0.9])
    spot(0, 0.3, 0.15, 0.07, skin * 0.75)
    spot(0, 0.68, 0.2, 0.06, skin * 0.8)
    if random.random() < 0.35:
        spot(0, 0.75, 0.62, 0.5, 0.35 * skin + 0.65 * hair)
        spot(0, 0.45, 0.34, 0.16, skin * 0.95)
    front = cv2.GaussianBlur(front, (0, 0), side / 22)
    iris, open_eye = any_colour(random, 20, 130), random.uniform(0.05, 0.1)
    for x in (-apart, apart):
        spot(x, level, 0.18, open_eye, (235, 230, 225))
        spot(x + random.normal(0, 0.01), level, 0.085, min(0.085, open_eye), iris)
        spot(x, level, 0.04, 0.04, (15, 12, 12))
        spot(x, level + 0.02, 0.19, open_eye + 0.03, skin * 0.3, line, (200, 340))
        spot(x, level - 0.12, 0.24, 0.13, 0.3 * skin + 0.7 * hair * 0.8, 2 * line, (205, 335))
    lips = np.clip(skin * [0.95, 0.62, 0.6], 0, 255)
    wide, smile = random.uniform(0.2, 0.32), random.uniform(0.02, 0.12)
    spot(0, 0.5, wide, smile, lips)
    if smile > 0.07:
        spot(0, 0.49, wide * 0.8, smile * 0.55, (238, 232, 225) if random.random() < 0.7 else (50, 15, 18))
    else:
        spot(0, 0.47, wide, 0.04, lips * 0.5, line, (10, 170))
    if random.random() < 0.3:
        for x in (-apart, apart):
            spot(x, level + 0.03, 0.27, 0.21, (30, 28, 30), line)
        cv2.line(front, at(-0.1, level), at(0.1, level), (30, 28, 30), line, cv2.LINE_AA, 4)
    edge = random.uniform(-0.95, -0.55)
    if random.random() < 0.75:
        spot(random.uniform(-0.5, 0.5), edge - 0.5, random.uniform(0.9, 1.4), 0.6, hair)
    return front.astype(np.float32)
