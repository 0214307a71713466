"""Clips rendered from small three-dimensional scenes, with true depth.

They show cut-outs that move before a photograph, people at a webcam, rooms and streets. A clip is a function
of one random generator, so a batch is a function of (seed, stage, step): nothing has to be stored for a run
to be resumed or repeated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np

from .materials import BODIES, any_colour, cutout, face, material, noise, with_rectangles
from .photographs import portrait, recolour, view_of
from .render import Box, Card, Ellipsoid, Plane, Pose, Solid, View, rotation

KINDS = {"collage": 0.6, "webcam": 0.22, "room": 0.1, "street": 0.08}
Random = np.random.Generator
Textures = dict[str, np.ndarray]


@dataclass
class Scene:
    """Surfaces and solids with a light, and the camera that looks at them."""

    light: np.ndarray
    eye: np.ndarray  # where the camera starts
    planes: list[Plane]
    solids: list[Solid] = field(default_factory=list)
    reach: float = 0.12  # metres the camera wanders
    sway: float = 0.12  # radians it turns
    near: float = 1.0  # metres: at this distance inverse depth is 1


def smooth_path(random: Random, amplitude: float) -> Callable[[float], float]:
    """Return a random smooth function of time (in frames): drift and swing of about `amplitude`."""
    speed, phase = random.uniform([0.02, 0], [0.5, 2 * np.pi])
    swing, drift = amplitude * random.uniform([0, -0.2], [1, 0.2])
    return lambda time: swing * np.sin(speed * time + phase) + drift * time


def moving(
    random: Random, place: Sequence[float] | np.ndarray, reach: float, sway: float, yaw: float = 0.0
) -> Pose:
    """Return a pose that drifts about `place` by `reach` metres and turns by `sway` radians."""
    shifts = [smooth_path(random, reach * part) for part in (1, 0.4, 0.7)]
    turns = [smooth_path(random, sway * part) for part in (1, 0.4, 0.3)]

    def pose(time: float) -> tuple[np.ndarray, np.ndarray]:
        turned, pitch, roll = (turn(time) for turn in turns)
        return rotation(yaw + turned, pitch, roll), place + np.array([shift(time) for shift in shifts])

    return pose


def attached(body: Pose, joint: list[float], own: Pose) -> Pose:
    """Return the pose of a part that moves by `own` about `joint` of a body."""

    def pose(time: float) -> tuple[np.ndarray, np.ndarray]:
        (turn, place), (part, shift) = body(time), own(time)
        return turn @ part, place + turn @ (joint + shift)

    return pose


def build(rows: str, textures: Textures, body: Pose, size: np.ndarray | float = 1.0) -> list[Solid]:
    """Return the parts of a table of `bodies.toml`; those without a texture are left out."""
    solids: list[Solid] = []
    for row in rows.strip().splitlines():
        shape, *numbers, name, roll = [*row.split(), "0"][:9]
        signs = [(-1, 1) if number[0] == "±" else (1,) for number in numbers[:3]]
        centre, half = np.array([float(number.lstrip("±")) for number in numbers]).reshape(2, 3) * size
        if name in textures:
            kind = Box if shape == "box" else Ellipsoid
            for sign in np.array(np.meshgrid(*signs)).reshape(3, -1).T:
                turn = rotation(0, 0, float(roll) * sign[0])
                solids.append(kind(centre * sign, half, textures[name], turn, body))
    return solids


def person(random: Random, side: int, place: np.ndarray, yaw: float, standing: bool) -> list[Solid]:
    """Return head, body and arms; `place` is the middle of the head."""
    body = moving(random, place, 0.05, 0.15, yaw)
    head = attached(body, [0, 0.1, 0.03], moving(random, [0, -0.1, -0.03], 0.006, 0.35))
    skin = np.array([75, 48, 36]) + np.array([163, 152, 142]) * random.random() + random.normal(0, 6, 3)
    skin = skin.astype(np.float32)
    hair = any_colour(random, 15, random.choice([70, 200], p=[0.7, 0.3]))
    hair *= np.array([1.1, 1, 0.85], np.float32)
    strands = np.clip(hair * (1 + 0.35 * noise(random, side, 6, side // 4)), 0, 255)
    textures = {
        "skin": np.clip(skin + noise(random, side, 6) * 6, 0, 255),
        "shirt": material(random, side, "plain cloth cloth stripes stripes tiles photograph leaves"),
    }
    if random.random() < 0.25:
        front = recolour(random, portrait(side)).astype(np.float32)
        textures["skin"] = 0.3 * textures["skin"] + 0.7 * np.median(front, (0, 1)).astype(np.float32)
    else:
        front, textures["nose"] = face(random, side, skin, hair), textures["skin"]
    textures["face"] = np.concatenate([front, strands], 1)
    style = random.random()
    textures |= {"hair": strands} if style < 0.85 else {}
    textures |= {"long": strands} if style < 0.4 else {}
    textures |= {"legs": material(random, side, "plain cloth")} if standing else {}
    table, broad = BODIES["person"], np.array([random.uniform(0.85, 1.2), 1, 1])
    solids = build(table["head"], textures, head, random.uniform(0.92, 1.1, 3))
    solids += build(table["body"], textures, body, broad)
    if not standing and random.random() < 0.4:
        joint, wave = [random.choice([-0.24, 0.24]), 0.55, -0.1], moving(random, [0, 0, 0], 0.02, 0.5)
        solids += build(table["hand"], textures, attached(body, joint, wave))
    return solids


def thing(random: Random, side: int, table: dict[str, Any], x: float, z: float) -> list[Solid]:
    """Return a thing of `bodies.toml` on the ground at (x, z), of a random size."""
    parts, shape = table["parts"], tuple(random.integers(2, 6, 2))
    first, plain = material(random, side), material(random, side, "plain cloth bricks wood tiles")
    makers = {
        "first": lambda: first,
        "second": lambda: material(random, side),
        "dark": lambda: first * 0.35,
        "black": lambda: np.full((4, 4, 3), 25, np.float32),
        "glow": lambda: np.full((4, 4, 3), (255, 235, 190), np.float32),
        "books": lambda: with_rectangles(random, plain * 0.5, (4, 12), (0.85, 0.85)),
        "windows": lambda: with_rectangles(random, plain, shape, (0.5, 0.6)),
    }
    makers |= {kind: partial(material, random, side, kind) for kind in ("wood", "leaves", "photograph")}
    textures = {name: make() for name, make in makers.items() if name in parts}
    reach, yaw = table.get("reach", 0.0), random.choice([0.0, random.uniform(-0.8, 0.8)])
    body = moving(random, [x, 0, z], reach, reach / 2, yaw)
    return build(parts, textures, body, random.uniform(table["smallest"], table["largest"]))


def any_light(random: Random) -> np.ndarray:
    """Return a light from above."""
    towards = random.uniform([-0.8, -1.0, -0.8], [0.8, -0.4, 0.1])
    return towards / np.linalg.norm(towards) * random.uniform(0.55, 0.9)


def collage(random: Random, side: int) -> Scene:
    """Return a photograph on a far wall, with up to three moving cut-outs in front of it."""
    far = random.uniform(2, 4)
    x, y, z = far * np.eye(3)
    background = view_of(random, int(side * 1.2))
    solids: list[Solid] = []
    for _ in range(random.integers(0, 4)):
        place = far * random.uniform([-0.3, -0.3, 0.4], [0.3, 0.3, 0.9])
        half = place[2] * np.array([*random.uniform(0.15, 0.4, 2), 0])
        pose = moving(random, place, place[2] * 0.25, 0.2)
        solids.append(Card(np.zeros(3), half, cutout(random, side), np.eye(3), pose))
    planes = [Plane(z - x / 2 - y / 2, x, y, background)]
    return Scene(any_light(random), np.zeros(3), planes, solids, far * 0.1, 0.1, far * 0.4)


def room(random: Random, side: int, clear: float) -> Scene:
    """Return a furnished room, its walls lit by a lamp; the camera has `clear` metres ahead of it."""
    size = wide, high, deep = random.uniform([2.8, 2.3, 3.2], [6.5, 3.1, 6.5])
    eye = random.uniform([-0.25 * wide, -1.6, 0.6], [0.25 * wide, -1.0, 0.6])
    light, solids = any_light(random), []
    for name in random.choice(list(BODIES["room"]), random.integers(2, 6)):
        table = BODIES["room"][name]
        z = deep - 0.3 if table.get("at_wall") else random.uniform(clear, deep - 0.4)
        solids += thing(random, max(16, side // 2), table, random.uniform(-0.42, 0.42) * wide, z)
    lamp = random.uniform([-0.4 * wide, 0.3 - high, 0.3 * deep], [0.4 * wide, 0.3 - high, 0.8 * deep])
    glow = random.uniform(1.0, 3.0) * (1 + random.uniform(-1, 1) * np.array([0.14, 0.02, -0.16]))
    x, y, z = np.diag(size)
    left, top = -x / 2, -x / 2 - y  # of the camera's end
    floor = material(random, side, "wood wood tiles cloth plain stripes")
    white = material(random, side, "plain plain plain wood") * 0.3 + 0.7 * 225
    papers = [wall(random, side) for _ in range(3)] + [np.full((8, 8, 3), 120, np.float32)]
    planes = [Plane(top + z, x, y, papers[0]), Plane(top, z, y, papers[1]), Plane(top + x, z, y, papers[2])]
    planes += [Plane(top, x, y, papers[3]), Plane(top, x, z, white), Plane(left, x, z, floor)]
    ambient = 1.15 - float(np.linalg.norm(light))
    for plane in planes:
        add_light(plane, lamp, glow, ambient, solids if plane is planes[-1] else [])
    return Scene(light, eye, planes, solids)


def wall(random: Random, side: int) -> np.ndarray:
    """Return the texture of a wall: paint or paper, perhaps with framed pictures."""
    surface = material(random, side, "plain plain plain cloth stripes bricks wood tiles photograph")
    if random.random() < 0.7:  # paint is seldom loud
        surface = 0.45 * surface + 0.55 * any_colour(random, 90, 235)
    return with_rectangles(random, surface, (2, 3), (0.7, 0.7), share=0.3, photographs=True)


def add_light(plane: Plane, lamp: np.ndarray, glow: np.ndarray, ambient: float, things: list[Solid]) -> None:
    """Add a lamp's light to a texture: darker far away, in corners, and around things on a floor."""
    v, u = np.mgrid[0:24, 0:24] / 23
    points = plane.corner + u[..., None] * plane.across + v[..., None] * plane.down
    normal = np.cross(plane.across, plane.down)
    distance = np.linalg.norm(lamp - points, axis=-1)
    facing = np.abs((lamp - points) @ normal) / np.linalg.norm(normal) / distance
    bright = ambient + ((0.3 + 0.7 * facing) / (1 + 0.5 * distance**2))[..., None] * glow
    for part, edge in ((u, plane.across), (1 - u, plane.across), (v, plane.down), (1 - v, plane.down)):
        bright *= 1 - 0.35 * np.exp(-part * np.linalg.norm(edge) / 0.25)[..., None]
    for solid in things:
        turn, place = solid.body(0)
        away = np.linalg.norm((points - place - turn @ solid.centre) / (solid.half + 0.1), axis=-1)
        bright *= 1 - 0.4 * np.exp(-(away**2) / 2)[..., None]
    shape = plane.texture.shape[1::-1]
    bright = cv2.resize(bright.astype(np.float32), shape, interpolation=cv2.INTER_CUBIC)
    plane.texture = np.clip(plane.texture * bright, 0, 255).astype(np.float32)


def street(random: Random, side: int) -> Scene:
    """Return open ground before a far photograph, with houses, trees, cars and people."""
    half, far, road = max(16, side // 2), random.uniform(35, 70), random.uniform(2.5, 6)
    sky = any_colour(random, 120, 245) * np.ones((side, side, 1)) - np.linspace(40, 0, side)[:, None, None]
    hills = slice(int(side * 0.3), int(side * 0.75))
    fade = np.linspace(0, 1, hills.stop - hills.start)[:, None, None] ** random.uniform(0.05, 0.5)
    sky[hills] += fade * (material(random, side, "photograph")[hills] - sky[hills])
    ground = material(random, side, "tiles bricks plain cloth leaves photograph")
    ground = cv2.GaussianBlur(0.7 * ground + 0.3 * ground.mean((0, 1)), (0, 0), 1.0).astype(np.float32)
    x, y, z = np.diag([2 * far, 1.35 * far, far])
    tile = random.uniform(4, 9) * np.eye(3)
    planes = [
        Plane(z - x / 2 - y * 0.74, x, y, sky.astype(np.float32)),
        Plane(np.zeros(3), tile[0], tile[2], ground),
    ]
    solids: list[Solid] = []
    for table in BODIES["street"].values():
        for _ in range(random.integers(0, table["most"])):
            aside = random.choice([-1, 1]) * (table["aside"] + random.uniform(0, road))
            solids += thing(random, half, table, aside, random.uniform(*table["depths"]))
    for _ in range(random.integers(0, 3)):
        place = random.uniform([-1.5, -1.55, 1.3], [1.5, -1.55, 6])
        solids += person(random, half, place, random.uniform(-0.8, 0.8), standing=True)
    eye = random.uniform([-0.4, -1.8, 0], [0.4, -1.2, 0])
    return Scene(any_light(random), eye, planes, solids, 0.25, 0.1, 2.0)


def sit_down(random: Random, side: int, scene: Scene, focal: float, yaw: float, tilt: float) -> None:
    """Seat one or two people before the camera, the heads a quarter to half of the image high."""
    steady, two = random.choice([0.06, 0.5]), random.random() < 0.15
    scene.reach, scene.sway = scene.reach * steady, scene.sway * steady
    away = 0.236 * focal / random.uniform(0.5, 1.0)
    scene.near = 0.8 * (away + 0.5 * two)
    for aside in (-0.4, 0.4) if two else (0,):
        across, down = random.uniform([-0.3, -0.35], [0.3, 0.1]) * away / focal
        spot = scene.eye + rotation(yaw, -tilt) @ [aside + across, down, away + 0.5 * two]
        scene.solids += person(random, side, spot, yaw + random.normal(0, 0.25), standing=two)


def sample_scene(random: Random, size: int, frames: int, kind: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return a rendered clip, uint8 `[frames, size, size, 3]` RGB, and its inverse depth.

    Depth is float32 `[frames, size, size]` in `[0, 1]`: a distance that is fixed over the clip divided by
    each pixel's own. `kind` is one of `KINDS`; any by default.
    """
    kind = kind or random.choice(list(KINDS), p=list(KINDS.values()))
    focal, yaw, tilt = random.uniform([1.3, -0.3, -0.05], [2.2, 0.3, 0.1])
    if kind == "collage":
        scene, yaw, tilt = collage(random, size), yaw * 0.2, 0.0
    elif kind == "street":
        scene = street(random, size)
    else:
        scene = room(random, size, 2.1 if kind == "webcam" else 1.6)
        if kind == "webcam":
            sit_down(random, max(24, size // 2), scene, focal, yaw, tilt)
    walk = moving(random, scene.eye, scene.reach, scene.sway, yaw)
    gain, exposure, soft = smooth_path(random, 0.08), random.uniform(0.8, 1.2), random.uniform(0.3, 0.7)
    images, depths = [], []
    for time in range(frames):
        turn, eye = walk(time)
        view = View(size, focal, eye, turn @ rotation(0, -tilt), scene.light)
        draw(scene, view, time)
        image = cv2.GaussianBlur(view.image, (3, 3), soft) * np.float32(exposure * (1 + gain(time)))
        images.append(np.clip(image, 0, 255).astype(np.uint8))
        depths.append(np.minimum(view.inverse_depth * np.float32(scene.near), 1))
    return np.stack(images), np.stack(depths)


def draw(scene: Scene, view: View, time: float) -> None:
    """Draw a scene at a time, far solids first: edges are blended with what is behind."""
    for plane in scene.planes:
        plane.draw(view)
    poses = {body: body(time) for body in {solid.body for solid in scene.solids}}
    placed = [(*poses[solid.body], solid) for solid in scene.solids]
    placed = [(turn @ solid.turn, place + turn @ solid.centre, solid) for turn, place, solid in placed]
    for turn, centre, solid in sorted(placed, key=lambda each: -np.linalg.norm(each[1] - view.position)):
        solid.draw(view, turn, centre)
