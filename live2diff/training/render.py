"""Render planes, boxes and ellipsoids with the true depth of every pixel, one ray per pixel.

The world is in metres, x to the right, y down, z ahead. Surfaces are compared by inverse depth along a ray:
for a plane it is an affine function of the pixel, so walls, floors and the faces of boxes cost one
`warpPerspective` each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

NEAR = 0.08  # metres: nothing closer to the camera is drawn
CORNERS = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T  # of a box
Pose = Callable[[float], tuple[np.ndarray, np.ndarray]]  # time -> rotation [3, 3] and position [3]
Window = tuple[slice, slice]  # rows and columns


def rotation(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Return roll about z, then pitch about x, then yaw about y, in radians: `[3, 3]`."""
    about_y, about_x, about_z = (cv2.Rodrigues(axis)[0] for axis in np.diag([pitch, yaw, roll])[[1, 0, 2]])
    return about_y @ about_x @ about_z


class View:
    """A camera and a light, with image and inverse depth of the surfaces drawn so far."""

    def __init__(self, size: int, focal: float, position: np.ndarray, turn: np.ndarray, light: np.ndarray):
        """Place a camera of a focal length in half-widths; `turn` takes its coordinates to the world's.

        `light` points to the light; the shorter it is, the more of the light is ambient.
        """
        self.size, self.focal, self.position, self.turn = size, focal * size / 2, position, turn
        self.light, self.middle = light, (size - 1) / 2
        to_ray = np.array([[1, 0, -self.middle], [0, 1, -self.middle], [0, 0, self.focal]]) / self.focal
        self.rays = turn @ to_ray  # a pixel (x, y, 1) -> its ray, one metre along z from the camera
        self.image = np.zeros((size, size, 3), np.float32)
        self.inverse_depth = np.zeros((size, size), np.float32)

    def outline(self, corners: np.ndarray) -> np.ndarray:
        """Project the corners of a convex body `[n, 3]` to pixels `[m, 2]`, cut off behind the camera."""
        seen = (corners - self.position) @ self.turn
        front, back = seen[seen[:, 2] > NEAR], seen[seen[:, 2] <= NEAR]
        if len(front) and len(back):
            part = (front[:, None, 2] - NEAR) / (front[:, None, 2] - back[None, :, 2])
            cut = front[:, None] + part[..., None] * (back[None] - front[:, None])
            front = np.concatenate([front, cut.reshape(-1, 3)])
        return (front[:, :2] / front[:, 2:] * self.focal + self.middle).clip(-4000, 4000)

    def window(self, outline: np.ndarray) -> Window | None:
        """Return the rows and columns around an outline, or None where it lies outside the image."""
        if not len(outline):
            return None
        low = np.floor(outline.min(0) - 1).clip(0, self.size).astype(int)
        high = np.ceil(outline.max(0) + 2).clip(0, self.size).astype(int)
        return (slice(low[1], high[1]), slice(low[0], high[0])) if (high - low).min() > 1 else None

    def paint(
        self, window: Window, inverse_depth: np.ndarray, coverage: np.ndarray, colour: np.ndarray
    ) -> None:
        """Draw a surface over the image where it is nearer than the surfaces there."""
        behind, image = self.inverse_depth[window], self.image[window]
        coverage = coverage * (inverse_depth > behind)
        image += coverage[..., None] * (colour - image)
        np.copyto(behind, inverse_depth, where=coverage >= 0.5)

    def brightness(self, facing: np.ndarray | float) -> np.ndarray:
        """Return the brightness of a surface from its cosine to the light, times the light's strength."""
        strength = np.linalg.norm(self.light)
        bright = 1.15 - strength + np.clip(0.25 * strength + 0.75 * facing, 0, strength)
        return np.asarray(bright, np.float32)


def affine(rows: np.ndarray, window: Window) -> np.ndarray:
    """Compute `row . (x, y, 1)` at each pixel of a window for `rows` `[..., 3]`: float32 `[..., h, w]`."""
    x = rows[..., :1] * np.arange(window[1].start, window[1].stop) + rows[..., 2:]
    y = rows[..., 1:2] * np.arange(window[0].start, window[0].stop)
    return x.astype(np.float32)[..., None, :] + y.astype(np.float32)[..., :, None]


@dataclass
class Plane:
    """A flat surface: a texture from `corner` along `across` and `down`."""

    corner: np.ndarray
    across: np.ndarray
    down: np.ndarray
    texture: np.ndarray  # a fourth channel is its opacity, up to 255
    endless: bool = True  # repeated by mirroring, with the light in its texture

    def draw(self, view: View, brightness: np.ndarray | float = 1.0) -> None:
        """Draw it where it is nearer than the surfaces there."""
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        outline = corners * view.size  # an endless plane may fill the image
        if not self.endless:
            outline = view.outline(self.corner + corners @ np.stack([self.across, self.down]))
        if (window := view.window(outline)) is None:
            return
        # a pixel (x, y, 1) -> (across, down, 1) times inverse depth
        matrix = np.linalg.inv(np.stack([self.across, self.down, self.corner - view.position], 1)) @ view.rays
        rows, columns = (part.stop - part.start for part in window)
        height, width = self.texture.shape[:2]
        texel = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]]) @ matrix
        texel = texel @ np.array([[1, 0, window[1].start], [0, 1, window[0].start], [0, 0, 1]])
        colour = cv2.warpPerspective(
            self.texture, texel, (columns, rows), None, cv2.WARP_INVERSE_MAP, cv2.BORDER_REFLECT
        )
        coverage, points = np.zeros((rows, columns), np.float32), outline - [window[1].start, window[0].start]
        cv2.fillConvexPoly(coverage, cv2.convexHull((points * 16).astype(np.int32)), 1.0, cv2.LINE_8, 4)
        if colour.shape[2] == 4:
            coverage *= colour[..., 3] / 255
        view.paint(window, affine(matrix[2], window), coverage, colour[..., :3] * brightness)


@dataclass
class Solid:
    """A textured body of half-sizes `half` about `centre`, turned by `turn`, in the coordinates of `body`."""

    centre: np.ndarray
    half: np.ndarray
    texture: np.ndarray
    turn: np.ndarray
    body: Pose

    def draw(self, view: View, turn: np.ndarray, centre: np.ndarray) -> None:
        """Draw it at a rotation and a position in the world."""
        raise NotImplementedError


class Box(Solid):
    """A box with the same texture on each face."""

    def draw(self, view: View, turn: np.ndarray, centre: np.ndarray) -> None:
        """See `Solid.draw`."""
        camera = (view.position - centre) @ turn
        edges = turn.T * self.half[:, None]
        for axis in np.flatnonzero(np.abs(camera) > self.half):  # the faces that look at the camera
            normal = turn[:, axis] * np.sign(camera[axis])
            across, down = edges[[2, 0, 0][axis]], edges[[1, 2, 1][axis]]
            corner = centre + normal * self.half[axis] - across - down
            face = Plane(corner, 2 * across, 2 * down, self.texture, endless=False)
            face.draw(view, view.brightness(normal @ view.light))


class Card(Solid):
    """A flat, unlit rectangle with a texture on both sides."""

    def draw(self, view: View, turn: np.ndarray, centre: np.ndarray) -> None:
        """See `Solid.draw`."""
        across, down, _ = turn.T * self.half[:, None]
        Plane(centre - across - down, 2 * across, 2 * down, self.texture, endless=False).draw(view)


class Ellipsoid(Solid):
    """An ellipsoid; a texture `[side, 2 side, 3]` is its front (z < 0) beside its back."""

    def draw(self, view: View, turn: np.ndarray, centre: np.ndarray) -> None:
        """See `Solid.draw`."""
        window = view.window(view.outline(centre + CORNERS * self.half @ turn.T))
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
        where = (hit[:2] + 1) * np.float32((side - 1) / 2)
        where[0] += np.float32(self.texture.shape[1] - side) * (hit[2] > 0)
        colour = cv2.remap(self.texture, where[0], where[1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
        normal = hit / self.half.astype(np.float32)[:, None, None]
        facing = np.tensordot(view.light @ turn, normal / np.linalg.norm(normal, axis=0), 1)
        view.paint(window, inverse_depth, coverage, colour * view.brightness(facing)[..., None])
