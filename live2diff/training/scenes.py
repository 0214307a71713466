"""Clips rendered from small three-dimensional scenes, with the true depth of every pixel: rooms, streets, and
people before a webcam.

The world is metres, x to the right, y down, z ahead. A picture is planes, boxes and ellipsoids met by one ray
a pixel. Along a ray, inverse depth is what is computed and compared: for a plane it is an affine function of
the pixel, so walls, floors and the faces of boxes cost one `warpPerspective` each. Light on what stands still
is painted into the textures once a clip.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import cv2
import numpy as np

from .data import recolour, smooth_path, view_of

NEAR = 0.08  # metres: nothing closer to the camera is drawn
SIGNS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T  # the corners of a box
FACES = {"astronaut": (66, 178, 112, 92), "chelsea": (30, 118, 205, 215)}  # top, left, height, width
Pose = Callable[[float], tuple[np.ndarray, np.ndarray]]  # time -> turn [3, 3] and place [3]


def rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Roll about z, then pitch about x, then yaw about y, in radians: `[3, 3]`."""
    (a, b, c), (p, q, r) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    return np.array(
        [
            [a * c + p * q * r, p * q * c - a * r, p * b],
            [b * r, b * c, -q],
            [a * q * r - p * c, p * r + a * q * c, a * b],
        ]
    )


def still(time: float) -> tuple[np.ndarray, np.ndarray]:
    """The pose of what does not move."""
    return np.eye(3), np.zeros(3)


class View:
    """A picture in the making: the camera, and what it has seen so far."""

    def __init__(self, size: int, focal: float, position: np.ndarray, turn: np.ndarray):
        """`focal` is in half-widths of the picture; `turn` takes camera coordinates to the world's."""
        self.size, self.focal, self.position, self.turn = size, focal * size / 2, position, turn
        self.middle = (size - 1) / 2
        to_ray = np.array([[1, 0, -self.middle], [0, 1, -self.middle], [0, 0, self.focal]]) / self.focal
        self.rays = turn @ to_ray  # a pixel (x, y, 1) -> its ray, one metre along z from the camera
        self.picture = np.zeros((size, size, 3), np.float32)
        self.inverse_depth = np.zeros((size, size), np.float32)

    def outline(self, corners: np.ndarray) -> np.ndarray:
        """The corners of a convex body `[n, 3]` as pixels `[m, 2]`, cut off where it passes the camera."""
        seen = (corners - self.position) @ self.turn
        front, back = seen[seen[:, 2] > NEAR], seen[seen[:, 2] <= NEAR]
        if len(front) and len(back):
            part = (front[:, None, 2] - NEAR) / (front[:, None, 2] - back[None, :, 2])
            cut = front[:, None] + part[..., None] * (back[None] - front[:, None])
            front = np.concatenate([front, cut.reshape(-1, 3)])
        return (front[:, :2] / front[:, 2:] * self.focal + self.middle).clip(-4000, 4000)

    def window(self, outline: np.ndarray) -> tuple[slice, slice] | None:
        """The rows and columns around an outline, or None where it lies outside the picture."""
        if not len(outline):
            return None
        low = np.floor(outline.min(0) - 1).clip(0, self.size).astype(int)
        high = np.ceil(outline.max(0) + 2).clip(0, self.size).astype(int)
        return (slice(low[1], high[1]), slice(low[0], high[0])) if (high - low).min() > 1 else None

    def paint(self, window: tuple[slice, slice], inverse_depth, coverage, colour: np.ndarray) -> None:
        """Lay a body over the picture, where it is in front of what is there."""
        behind, picture = self.inverse_depth[window], self.picture[window]
        coverage = coverage * (inverse_depth > behind)
        picture += coverage[..., None] * (colour - picture)
        np.copyto(behind, inverse_depth, where=coverage >= 0.5)


def affine(rows: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
    """`row . (x, y, 1)` at each pixel of a window for each of `rows`, `[..., 3]`: float32 `[..., h, w]`."""
    x = rows[..., :1] * np.arange(window[1].start, window[1].stop) + rows[..., 2:]
    y = rows[..., 1:2] * np.arange(window[0].start, window[0].stop)
    return x.astype(np.float32)[..., None, :] + y.astype(np.float32)[..., :, None]


@dataclass
class Plane:
    """An endless flat surface: a texture from `corner` along `across` and `down`, mirrored over and over."""

    corner: np.ndarray
    across: np.ndarray
    down: np.ndarray
    texture: np.ndarray

    def matrix(self, view: View) -> np.ndarray:
        """A pixel (x, y, 1) -> (across, down, 1) times inverse depth."""
        return np.linalg.inv(np.stack([self.across, self.down, self.corner - view.position], 1)) @ view.rays

    def colour(self, view: View, matrix: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
        height, width = self.texture.shape[:2]
        texel = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]]) @ matrix
        texel = texel @ np.array([[1, 0, window[1].start], [0, 1, window[0].start], [0, 0, 1]])
        shape = (window[1].stop - window[1].start, window[0].stop - window[0].start)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(self.texture, texel, shape, flags=flags, borderMode=cv2.BORDER_REFLECT)

    def draw(self, view: View) -> None:
        matrix = self.matrix(view)
        window = (slice(0, view.size), slice(0, view.size))
        inverse_depth = affine(matrix[2], window)
        nearest = inverse_depth > view.inverse_depth
        columns, rows = np.flatnonzero(nearest.any(0)), np.flatnonzero(nearest.any(1))
        if len(rows):
            window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            mask = nearest[window]
            colour = self.colour(view, matrix, window)
            cv2.copyTo(colour, mask.view(np.uint8), view.picture[window])
            np.copyto(view.inverse_depth[window], inverse_depth[window], where=mask)


@dataclass
class Light:
    """Light from one side and from everywhere; `towards` is a unit vector."""

    towards: np.ndarray
    ambient: float

    def on(self, facing: np.ndarray) -> np.ndarray:
        """Brightness of a surface, of the cosine between it and the light."""
        return self.ambient + (1.15 - self.ambient) * np.clip(0.25 + 0.75 * facing, 0, 1)


@dataclass
class Box:
    """A box of half-sizes `half`, with a texture for its sides and one for its top."""

    centre: np.ndarray
    half: np.ndarray
    light: Light
    side: np.ndarray
    top: np.ndarray
    turn: np.ndarray = field(default_factory=lambda: np.eye(3))
    body: Pose = still

    def draw(self, view: View, turn: np.ndarray, centre: np.ndarray) -> None:
        outline = view.outline(centre + SIGNS * self.half @ turn.T)
        window = view.window(outline)
        camera = (view.position - centre) @ turn
        facing = np.flatnonzero(np.abs(camera) > self.half)
        if window is None or not len(facing):
            return
        shape = (window[0].stop - window[0].start, window[1].stop - window[1].start)
        points = (outline - [window[1].start, window[0].start]) * 16
        coverage = np.zeros(shape, np.uint8)
        cv2.fillConvexPoly(coverage, cv2.convexHull(points.astype(np.int32)), 255, cv2.LINE_AA, 4)
        inverse_depth, colour = None, None
        for (
            axis
        ) in facing:  # the ray enters where it has passed the last of the faces that look at the camera
            normal = turn[:, axis] * np.sign(camera[axis])
            across, down = {0: (2, 1), 1: (0, 2), 2: (0, 1)}[axis]
            across, down = turn[:, across] * self.half[across], turn[:, down] * self.half[down]
            corner = centre + normal * self.half[axis] - across - down
            face = Plane(corner, 2 * across, 2 * down, self.top if axis == 1 else self.side)
            matrix = face.matrix(view)
            entered = affine(matrix[2], window)
            painted = face.colour(view, matrix, window) * np.float32(
                self.light.on(normal @ self.light.towards)
            )
            if colour is None:
                inverse_depth, colour = entered, painted
            else:
                cv2.copyTo(painted, (entered < inverse_depth).view(np.uint8), colour)
                np.minimum(entered, inverse_depth, out=inverse_depth)
        view.paint(window, inverse_depth, coverage.astype(np.float32) / 255, colour)


@dataclass
class Ellipsoid:
    """An ellipsoid of half-axes `half`; its texture `[side, 2 side, 3]` is its front (z < 0) and its back."""

    centre: np.ndarray
    half: np.ndarray
    light: Light
    texture: np.ndarray
    turn: np.ndarray = field(default_factory=lambda: np.eye(3))
    body: Pose = still

    def bounds(self, view: View, turn: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """The corners of the rectangle around the outline, in pixels `[2, 2]`."""
        axes = view.turn.T @ turn * self.half
        spread, middle = axes @ axes.T, (centre - view.position) @ view.turn
        dual = spread - np.outer(middle, middle)
        if middle[2] < NEAR or -dual[2, 2] < NEAR**2:  # the camera's plane cuts it
            return view.outline(centre + SIGNS * self.half @ turn.T)
        across = dual[:2, 2] / dual[2, 2]
        reach = np.sqrt(np.maximum(across**2 - np.diag(dual)[:2] / dual[2, 2], 0))
        return np.stack([across - reach, across + reach]) * view.focal + view.middle

    def draw(self, view: View, turn: np.ndarray, centre: np.ndarray) -> None:
        window = view.window(self.bounds(view, turn, centre))
        origin = (view.position - centre) @ turn / self.half  # where the ellipsoid is the unit sphere
        outside = origin @ origin - 1
        if window is None or outside < 1e-3:
            return
        rays = turn.T @ view.rays / self.half[:, None]
        along = origin @ rays
        conic = np.outer(along, along) - outside * rays.T @ rays
        slope_x, slope_y, rest, along, *rays = affine(np.concatenate([conic, [along], rays]), window)
        x = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :]
        y = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
        inside = x * slope_x + y * slope_y + rest  # the discriminant: positive where the ray hits
        edge = cv2.magnitude(slope_x, slope_y) * 2 + np.float32(1e-12)
        inverse_depth = (np.sqrt(np.maximum(inside, 0)) - along) / np.float32(outside)
        coverage = np.clip(inside / edge + np.float32(0.5), 0, 1) * (inverse_depth > 0)
        hit = np.stack(rays) / np.maximum(inverse_depth, 1e-3) + origin.astype(np.float32)[:, None, None]
        side = self.texture.shape[0]
        where = hit[:2] * np.float32((side - 1) / 2) + np.float32((side - 1) / 2)
        where[0] += np.float32(side) * (hit[2] > 0)
        colour = cv2.remap(self.texture, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        normal = hit / self.half.astype(np.float32)[:, None, None]
        towards = (self.light.towards @ turn).astype(np.float32)
        facing = np.einsum("k,khw->hw", towards, normal)
        facing /= np.sqrt(np.einsum("khw,khw->hw", normal, normal))
        view.paint(window, inverse_depth, coverage, colour * self.light.on(facing)[..., None])


# ---- materials

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


# ---- things


def upright(random: np.random.Generator, centre, half, light: Light, side: np.ndarray, top=None) -> Box:
    """A box on its base; without a top of its own it is darker or lighter there."""
    top = np.full((4, 4, 3), side.mean((0, 1)) * random.uniform(0.7, 1.2), np.float32) if top is None else top
    return Box(np.asarray(centre, float), np.asarray(half, float), light, side, top)


def ball(centre, half, light: Light, texture: np.ndarray, body: Pose = still, roll: float = 0.0) -> Ellipsoid:
    """An ellipsoid with the same picture before and behind."""
    texture = np.concatenate([texture, texture[:, ::-1]], 1) if texture.shape[1] == len(texture) else texture
    centre, half = np.asarray(centre, float), np.asarray(half, float)
    return Ellipsoid(centre, half, light, texture, rotation(0, 0, roll), body)


def moving(random: np.random.Generator, place, reach: float, sway: float, facing: float = 0.0) -> Pose:
    """A body that drifts about `place` by `reach` metres and turns by `sway` radians."""
    x, y, z = (smooth_path(random, reach * part) for part in (1, 0.4, 0.7))
    yaw, pitch, roll = (smooth_path(random, sway * part) for part in (1, 0.4, 0.3))

    def pose(time: float) -> tuple[np.ndarray, np.ndarray]:
        shift = np.array([x(time), y(time), z(time)])
        return rotation(facing + yaw(time), pitch(time), roll(time)), np.asarray(place) + shift

    return pose


def carried(body: Pose, joint, own: Pose) -> Pose:
    """The pose of a part that turns by `own` about `joint` of a body."""

    def pose(time: float) -> tuple[np.ndarray, np.ndarray]:
        (turn, place), (part, shift) = body(time), own(time)
        return turn @ part, place + turn @ (np.asarray(joint) + shift)

    return pose


def person(random: np.random.Generator, side: int, place, light: Light, facing: float, legs=False) -> list:
    """Head, neck, shoulders and arms; `place` is the middle of the head."""
    body = moving(random, place, 0.05, 0.15, facing)
    head = carried(body, [0, 0.1, 0.03], moving(random, [0, -0.1, -0.03], 0.006, 0.35))
    tone = random.random()
    skin = np.float32([75, 48, 36]) * (1 - tone) + np.float32([238, 200, 178]) * tone + random.normal(0, 6, 3)
    hair = any_colour(random, 15, 70) if random.random() < 0.7 else any_colour(random, 60, 210)
    hair = (0.6 * hair + 0.4 * hair.mean() * np.float32([1.2, 1, 0.75])).astype(np.float32)
    strands = np.clip(hair * (1 + 0.35 * noise(random, side, (6, side // 4))), 0, 255)
    plain = np.clip(skin + noise(random, side, (6, 6)) * 6, 0, 255)
    shirt = material(random, side, "plain cloth cloth stripes stripes tiles photograph leaves")
    front = face(random, side, skin.astype(np.float32), hair)
    mapped = random.random() < 0.25
    if mapped:
        front = recolour(random, portrait("astronaut"))
        front = cv2.resize(front, (side, side)).astype(np.float32)
        plain = np.clip(plain * 0.3 + 0.7 * np.median(front, (0, 1)).astype(np.float32), 0, 255)
    size = random.uniform(0.92, 1.1, 3)
    parts = [([0, 0, 0], [0.078, 0.118, 0.098], np.concatenate([front, strands], 1), 0)]
    if not mapped:
        parts.append(([0, 0.022, -0.092], [0.015, 0.03, 0.022], plain, 0))
    parts += [([x, 0.005, 0.01], [0.014, 0.03, 0.02], plain, 0) for x in (-0.078, 0.078)]
    style = random.random()
    if style < 0.85:
        parts.append(
            ([0, -0.03, 0.022], np.array([0.088, 0.112, 0.1]) * random.uniform(0.97, 1.1), strands, 0)
        )
    if style < 0.4:
        long = random.uniform(0.1, 0.22)
        parts.append(([0, long * 0.55, 0.06], [random.uniform(0.09, 0.125), long, 0.06], strands, 0))
    solids = [ball(np.multiply(c, size), np.multiply(h, size), light, t, head, r) for c, h, t, r in parts]
    broad, arm = random.uniform(0.85, 1.2), material(random, side, "plain cloth") if legs else shirt
    parts = [([0, 0.15, 0.025], [0.055, 0.11, 0.055], plain, 0)]
    parts += [([0, 0.5, 0.05], [0.2 * broad, 0.32, 0.125], shirt, 0)]
    for x in (-broad, broad):
        parts.append(([0.13 * x, 0.27, 0.045], [0.11, 0.075, 0.085], shirt, 0.35 * x))
        parts.append(([0.215 * x, 0.45, 0.04], [0.06, 0.2, 0.07], shirt, -0.15 * x))
        if legs:
            parts.append(([0.09 * x, 1.1, 0.05], [0.085, 0.5, 0.1], arm, 0))
            parts.append(([0.25 * x, 0.75, 0], [0.045, 0.2, 0.045], plain, 0))
    solids += [ball(c, h, light, t, body, r) for c, h, t, r in parts]
    if not legs and random.random() < 0.4:
        hand_side = random.choice([-1.0, 1.0])
        wave = carried(body, [0.24 * hand_side, 0.55, -0.1], moving(random, [0, 0, 0], 0.02, 0.5))
        tilt = hand_side * random.uniform(-0.5, 0.4)
        up = np.array([np.sin(tilt), -np.cos(tilt), 0.0])
        solids.append(ball(up * 0.13 - [0, 0, 0.03], [0.045, 0.16, 0.045], light, shirt, wave, tilt))
        solids.append(ball(up * 0.32 - [0, 0, 0.05], [0.042, 0.065, 0.022], light, plain, wave, tilt))
        for finger in range(4):
            lean = tilt + (finger - 1.5) * 0.16
            tip = up * 0.36 + np.array([np.sin(lean), -np.cos(lean), 0]) * 0.04 - [0, 0, 0.05]
            tip = tip + np.array([np.cos(tilt), np.sin(tilt), 0]) * (finger - 1.5) * 0.02
            solids.append(ball(tip, [0.011, 0.045, 0.011], light, plain, wave, lean))
    return solids


def animal(random: np.random.Generator, side: int, place, light: Light) -> list:
    """A four-legged pet that looks about; `place` is the middle of its body, its feet 0.3 below."""
    fur = material(random, side, "leaves cloth stripes plain")
    fur = np.clip(
        0.5 * fur + 0.5 * any_colour(random) * (1 + 0.15 * noise(random, side, (side // 3, 12))), 0, 255
    )
    body = moving(random, place, 0.08, 0.3, random.uniform(-2.5, 2.5) if random.random() < 0.5 else 0.0)
    look = carried(body, [0, -0.17, -0.3], moving(random, [0, 0, 0], 0.02, 0.5))
    picture = portrait("chelsea")
    front = cv2.resize(picture, (side, side)).astype(np.float32) * (fur.mean((0, 1)) / picture.mean((0, 1)))
    head = np.concatenate([np.clip(front, 0, 255), fur], 1).astype(np.float32)
    fur = fur.astype(np.float32)
    solids = [ball([0, 0, 0], [0.14, 0.15, 0.3], light, fur, body)]
    solids += [ball([0, 0, 0], [0.12, 0.11, 0.11], light, head, look)]
    solids += [ball([x, -0.1, 0.03], [0.03, 0.07, 0.02], light, fur, look, 4 * x) for x in (-0.07, 0.07)]
    corners = [(x, z) for x in (-0.08, 0.08) for z in (-0.2, 0.2)]
    solids += [ball([x, 0.2, z], [0.04, 0.13, 0.04], light, fur, body) for x, z in corners]
    return [*solids, ball([0, -0.12, 0.36], [0.025, 0.16, 0.025], light, fur, body, 0.4)]


# ---- places


@dataclass
class Scene:
    """What is there, and the camera that looks at it."""

    light: Light
    solids: list
    planes: list[Plane]
    eye: np.ndarray  # where the camera starts
    reach: float  # metres the camera wanders
    sway: float  # radians it turns
    near: float  # metres: at this distance inverse depth is 1


def room(random: np.random.Generator, side: int, webcam: bool) -> Scene:
    """The inside of a box, lamp light falling off over it, with furniture on the floor and a window perhaps.

    For a webcam nothing stands within 1.3 metres of the camera.
    """
    wide, high, deep = random.uniform(2.8, 6.5), random.uniform(2.3, 3.1), random.uniform(3.2, 6.5)
    eye = np.array([random.uniform(-0.25, 0.25) * wide, -random.uniform(1.0, 1.6), 0.6])
    toward = np.array([random.uniform(-0.8, 0.8), -random.uniform(0.4, 0.9), -random.uniform(0.1, 0.8)])
    light = Light(toward / np.linalg.norm(toward), random.uniform(0.25, 0.6))
    tint = 1 + random.uniform(-1, 1) * np.float32([0.14, 0.02, -0.16])
    lamp = np.array([random.uniform(-0.4, 0.4) * wide, 0.3 - high, random.uniform(0.3, 0.8) * deep])
    power = random.uniform(1.0, 3.0)
    solids = furniture(random, side, wide, high, deep, 2.1 if webcam else 1.6, light)
    same, paper = random.random() < 0.6, wall(random, side)
    left, right, ahead = -wide / 2, wide / 2, deep
    x, y, z = np.diag([wide, high, deep])
    spots = [  # corner, across, down, texture
        ([left, -high, ahead], x, y, wall(random, side)),
        ([left, -high, 0], z, y, paper),
        ([right, -high, 0], z, y, paper[:, ::-1].copy() if same else wall(random, side)),
        ([left, 0, 0], x, z, material(random, side, "wood wood tiles cloth plain stripes")),
        ([left, -high, 0], x, z, material(random, side, "plain plain plain wood") * 0.3 + 0.7 * 225),
        ([left, -high, 0], x, y, np.full((8, 8, 3), 120, np.float32)),
    ]
    planes = []
    for index, (corner, across, down, texture) in enumerate(spots):
        v, u = np.mgrid[0:24, 0:24] / 23
        points = corner + u[..., None] * across + v[..., None] * down
        ray, normal = lamp - points, np.cross(across, down) / np.linalg.norm(np.cross(across, down))
        length = np.linalg.norm(ray, axis=-1)
        bright = light.ambient + power * (0.3 + 0.7 * np.abs(ray @ normal) / length) / (1 + 0.5 * length**2)
        edge = [
            d * np.linalg.norm(way) for d, way in ((u, across), (1 - u, across), (v, down), (1 - v, down))
        ]
        for distance in edge:
            bright = bright * (1 - 0.35 * np.exp(-distance / 0.25))
        if index == 3:  # the floor is darker under and around things
            shadow = np.ones((24, 24), np.float32)
            for solid in solids:
                if solid.centre[1] + solid.half[1] > -0.5:
                    near = (np.abs(points[..., [0, 2]] - solid.centre[[0, 2]]) - solid.half[[0, 2]]).max(-1)
                    shadow *= 1 - 0.5 / (1 + np.exp(near * 12))
            bright = bright * shadow
        bright = cv2.resize(bright.astype(np.float32), texture.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        texture = np.clip(texture * bright[..., None] * tint, 0, 255).astype(np.float32)
        if index < 3 and random.random() < 0.35:
            a, b = int(side * random.uniform(0.1, 0.5)), int(side * random.uniform(0.12, 0.25))
            tall, broad = int(side * random.uniform(0.35, 0.5)), int(side * random.uniform(0.2, 0.4))
            cv2.rectangle(texture, (a - 3, b - 3), (a + broad + 2, b + tall + 2), (215, 212, 205), -1)
            outside = cv2.resize(any_picture(random, 48), (broad, tall)) * 0.45 + 140
            texture[b : b + tall, a : a + broad] = np.clip(outside, 0, 255)[:, : side - a]
            cv2.rectangle(texture, (a + broad // 2 - 1, b), (a + broad // 2, b + tall), (200, 198, 190), -1)
        planes.append(Plane(np.array(corner), across, down, np.ascontiguousarray(texture, np.float32)))
    return Scene(light, solids, planes, eye, 0.12, 0.12, 1.0)


def furniture(
    random: np.random.Generator, side: int, wide: float, high: float, deep: float, clear: float, light: Light
) -> list:
    """Cupboards, bookcases, tables, sofas, lamps, plants and loose things, from `clear` metres on."""
    half = max(16, side // 2)
    solids: list = []
    for _ in range(random.integers(2, 6)):
        kind = random.choice(["cupboard", "books", "table", "sofa", "lamp", "plant", "ball", "screen"])
        x, z = random.uniform(-0.42, 0.42) * wide, random.uniform(clear, deep - 0.4)
        surface = material(random, half)
        spin = rotation(random.choice([0.0, random.uniform(-0.8, 0.8)]))
        own: list = []
        if kind in ("cupboard", "books", "screen"):
            tall, broad, z = random.uniform(0.3, 1.0), random.uniform(0.25, 0.8), deep - 0.25
            front = shelves(random, half * 2) if kind == "books" else surface
            if kind == "screen":
                front, tall, broad = any_picture(random, half), 0.35, 0.55
                own.append(upright(random, [x, -0.3, z], [0.7, 0.3, 0.22], light, surface))
            base = -0.6 if kind == "screen" else 0.0
            own.append(upright(random, [x, base - tall, z], [broad, tall, 0.05 - 0.3 * base], light, front))
        elif kind == "table":
            a, b, tall = random.uniform(0.35, 0.8), random.uniform(0.3, 0.5), random.uniform(0.4, 0.8)
            legs = [(p, q) for p in (-0.85, 0.85) for q in (-0.85, 0.85)]
            own = [
                upright(random, [x + p * a, -tall / 2, z + q * b], [0.03, tall / 2, 0.03], light, surface)
                for p, q in legs
            ]
            own.append(upright(random, [x, -tall, z], [a, 0.03, b], light, surface, surface))
            cup = [x + random.uniform(-0.6, 0.6) * a, -tall - 0.11, z]
            own.append(ball(cup, random.uniform(0.05, 0.12, 3), light, material(random, half)))
        elif kind == "sofa":
            a = random.uniform(0.4, 0.9)
            own.append(upright(random, [x, -0.22, z], [a, 0.22, 0.38], light, surface, surface))
            own.append(upright(random, [x, -0.5, z + 0.34], [a, 0.4, 0.1], light, surface, surface))
            for p in (-a, a):
                own.append(upright(random, [x + p, -0.3, z], [0.1, 0.3, 0.4], light, surface, surface))
            own.append(ball([x + 0.3 * a, -0.6, z + 0.15], [0.2, 0.2, 0.1], light, material(random, half)))
        elif kind == "lamp":
            glow = Light(light.towards, 1.15)
            tall = random.uniform(0.9, 1.7)
            own.append(upright(random, [x, -tall / 2, z], [0.025, tall / 2, 0.025], light, surface))
            shade = np.full((8, 8, 3), (255, 235, 190), np.float32)
            own.append(ball([x, -tall, z], [0.2, 0.15, 0.2], glow, shade))
        elif kind == "plant":
            own.append(upright(random, [x, -0.18, z], [0.14, 0.18, 0.14], light, surface))
            green = material(random, half, "leaves")
            for _ in range(random.integers(3, 6)):
                lean = random.normal(0, 0.5)
                tip = [x + 0.3 * np.sin(lean), -0.35 - 0.4 * np.cos(lean), z + random.uniform(-0.1, 0.1)]
                own.append(ball(tip, [0.09, 0.36, 0.08], light, green, roll=lean))
        else:
            r = random.uniform(0.12, 0.4)
            place = moving(random, [x, -r, z], 0.15, 0.8)
            own.append(ball([0, 0, 0], r * random.uniform(0.7, 1.2, 3), light, surface, place))
        if kind in ("cupboard", "books") and random.random() < 0.4:
            own = [own[0]]
            own[0].turn = spin
        solids += own
    return solids


def street(random: np.random.Generator, side: int) -> Scene:
    """Open ground before a far photograph, with houses, trees, cars and people."""
    toward = np.array([random.uniform(-0.8, 0.8), -random.uniform(0.4, 1), -random.uniform(-0.3, 0.8)])
    light = Light(toward / np.linalg.norm(toward), random.uniform(0.3, 0.6))
    far = random.uniform(35, 70)
    sky = any_colour(random, 120, 245) * (1 - 0.25 * np.linspace(1, 0, side)[:, None, None] * [1, 0.6, 0.1])
    sky = sky + noise(random, side, (10, 4)) * random.uniform(0, 18)
    if random.random() < 0.7:
        middle = slice(int(side * 0.3), int(side * 0.75))
        hills = cv2.resize(any_picture(random, side), (side, middle.stop - middle.start))
        fade = np.linspace(0, 1, middle.stop - middle.start)[:, None, None] ** random.uniform(0.05, 0.5)
        sky[middle] += fade * (hills - sky[middle])
    sky = np.clip(sky, 0, 255).astype(np.float32)
    ground = material(random, side, "tiles bricks plain cloth leaves photograph")
    ground = cv2.GaussianBlur(0.7 * ground + 0.3 * ground.mean((0, 1)), (0, 0), 1.0)
    tile = random.uniform(4, 9)
    planes = [
        Plane(np.array([-far, -far, far]), np.array([2 * far, 0, 0]), np.array([0, far * 1.35, 0]), sky),
        Plane(np.zeros(3), np.array([tile, 0, 0]), np.array([0, 0, tile]), ground),
    ]
    solids: list = []
    half = max(16, side // 2)
    road = random.uniform(2.5, 6)
    surfaces = [material(random, side, "plain cloth bricks wood tiles") for _ in range(2)]
    for _ in range(random.integers(0, 7)):
        flank, z = random.choice([-1, 1]), random.uniform(5, 40)
        size = random.uniform([2, 1.8, 2], [4.5, 5, 4.5])
        front = panes(random, surfaces[random.integers(2)])
        solids.append(upright(random, [flank * (road + size[0]), -size[1], z], size, light, front))
    for _ in range(random.integers(0, 5)):
        x, z = random.choice([-1, 1]) * random.uniform(1.2, road + 1), random.uniform(3.5, 25)
        tall, crown = random.uniform(1.2, 2.6), random.uniform(0.5, 1.3)
        bark, green = material(random, half, "wood"), material(random, half, "leaves")
        solids.append(upright(random, [x, -tall / 2, z], [0.1, tall / 2, 0.1], light, bark))
        for _ in range(random.integers(1, 6)):
            at = [x, -tall - 0.3 * crown, z] + random.normal(0, 0.45, 3) * crown
            solids.append(ball(at, crown * random.uniform(0.5, 1, 3), light, green))
    for _ in range(random.integers(0, 3)):
        paint, glass = material(random, half, "plain"), material(random, half, "plain") * 0.35
        place = [random.uniform(-0.8, 0.8) * road, 0, random.uniform(4, 14)]
        drive = moving(random, place, 0.6, 0.05, random.uniform(-3, 3))
        solids.append(
            Box(np.array([0, -0.6, 0]), np.array([0.85, 0.3, 2.0]), light, paint, paint, body=drive)
        )
        cabin = np.array([0, -1.1, 0.2]), np.array([0.75, 0.25, 1.1])
        solids.append(Box(*cabin, light, glass, paint, body=drive))
        wheels = [(x, z) for x in (-0.8, 0.8) for z in (-1.2, 1.2)]
        black = np.full((4, 4, 3), 25, np.float32)
        solids += [ball([x, -0.32, z], [0.12, 0.32, 0.32], light, black, drive) for x, z in wheels]
    for _ in range(random.integers(0, 3)):
        place = [random.uniform(-1.5, 1.5), -1.55, random.uniform(1.3, 6)]
        solids += person(random, half, place, light, random.uniform(-0.8, 0.8), legs=True)
    if random.random() < 0.3:
        place = [random.uniform(-0.8, 0.8), -0.3, random.uniform(1.5, 3)]
        solids += animal(random, half, place, light)
    eye = np.array([random.uniform(-0.4, 0.4), -random.uniform(1.2, 1.8), 0])
    return Scene(light, solids, planes, eye, 0.25, 0.1, 2.0)


def sample_scene(random: np.random.Generator, size: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """One rendered clip: uint8 `[frames, size, size, 3]` RGB, and its inverse depth, float32 `[frames, size,
    size]` in `[0, 1]`: a distance that is fixed over the clip divided by each pixel's own."""
    kind = random.choice(["webcam", "room", "street"], p=[0.55, 0.25, 0.2])
    scene = street(random, size) if kind == "street" else room(random, size, kind == "webcam")
    focal = random.uniform(1.3, 2.2)
    tilt = random.uniform(0, 0.12) if kind == "street" else random.uniform(-0.1, 0.2)
    yaw = random.uniform(-0.6, 0.6) * (0.3 if kind == "street" else 1.0)
    if kind == "webcam":
        steady, yaw, tilt = random.choice([0.06, 0.5]), yaw * 0.5, tilt * 0.5
        scene.reach, scene.sway = scene.reach * steady, scene.sway * steady
        away = 0.236 * focal / (2 * random.uniform(0.25, 0.5))  # the head is that part of the picture high
        two = random.random() < 0.15
        scene.near = 0.8 * (away + 0.5 * two)
        for aside in (-0.4, 0.4) if two else (0,):
            aside += random.uniform(-0.3, 0.3) * away / focal
            spot = np.array([aside, random.uniform(-0.35, 0.1) * away / focal, away + 0.5 * two])
            spot, facing = scene.eye + rotation(yaw, -tilt) @ spot, yaw + random.normal(0, 0.25)
            scene.solids += person(random, max(24, size // 2), spot, scene.light, facing, legs=two)
    elif kind == "room" and random.random() < 0.5:
        place = scene.eye * [1, 0, 1] + [random.uniform(-0.5, 0.5), -0.3, random.uniform(1.3, 2.2)]
        scene.solids += animal(random, max(16, size // 2), place, scene.light)
    walk = moving(random, scene.eye, scene.reach, scene.sway, yaw)
    gain, exposure, soft = smooth_path(random, 0.08), random.uniform(0.8, 1.2), random.uniform(0.3, 0.7)
    pictures, depths = [], []
    for time in range(frames):
        turn, eye = walk(time)
        view = View(size, focal, eye, turn @ rotation(0, -tilt))
        for plane in scene.planes:
            plane.draw(view)
        poses = {body: body(time) for body in {solid.body for solid in scene.solids}}
        placed = [(*poses[solid.body], solid) for solid in scene.solids]
        placed = [(turn @ solid.turn, place + turn @ solid.centre, solid) for turn, place, solid in placed]
        # the far ones first: edges are blended with what is behind
        for turn, centre, solid in sorted(placed, key=lambda each: -np.linalg.norm(each[1] - eye)):
            solid.draw(view, turn, centre)
        picture = cv2.GaussianBlur(view.picture, (3, 3), soft) * np.float32(exposure * (1 + gain(time)))
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
        depths.append(np.minimum(view.inverse_depth * np.float32(scene.near), 1))
    return np.stack(pictures), np.stack(depths)
