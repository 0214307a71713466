"""Clips rendered from small three-dimensional scenes, with true depth: rooms, streets, and people before a
webcam.

Light on what stands still is painted into the textures once a clip.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .data import recolour, smooth_path
from .materials import any_colour, any_picture, face, material, noise, panes, portrait, shelves, wall
from .render import Box, Ellipsoid, Light, Plane, Pose, View, rotation, still


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
