"""A small renderer with the true depth of every pixel: planes, boxes and ellipsoids, met by one ray a pixel.

The world is metres, x to the right, y down, z ahead. Along a ray, inverse depth is what is computed and
compared: for a plane it is an affine function of the pixel, so walls, floors and the faces of boxes cost one
`warpPerspective` each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

NEAR = 0.08  # metres: nothing closer to the camera is drawn
SIGNS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T  # the corners of a box
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
