"""Sample clips with captions from a folder of videos, to train the motion modules of a full model.

A random generator determines which clip is sampled and where it starts, so that a resumed run samples what
an uninterrupted one would have.
"""

import csv
import json
import logging
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import ClipError
from ..video.reader import Cut, Image, Limits, probe, read_frames, resized

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
LIMITS = Limits(max_frames=10**8, max_seconds=1e7, max_bytes=10**12)  # training videos may be long
logger = logging.getLogger(__name__)
probe_once = lru_cache(maxsize=None)(probe)  # it reads the whole file


@dataclass(frozen=True)
class Clip:
    """Frames, uint8 `[frames, size, size, 3]` RGB, with a caption."""

    frames: np.ndarray
    caption: str


class VideoFolder:
    """Sample clips of `frames` square frames, every `stride`-th one, from a folder's captioned videos.

    A video that cannot be read, or is too short, is named in a warning and left out.

    Raises:
        ValueError: There is no such folder, no video in it, or no caption for any of them.
    """

    def __init__(self, folder: Path, captions: Path, *, frames: int, stride: int, size: int):
        self.folder, self.frames, self.stride, self.size = folder, frames, stride, size
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}: --videos names the folder of the videos.")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        videos = {path.relative_to(folder).as_posix() for path in found}
        if not videos:
            raise ValueError(f"There is no video in {folder}; looked for {', '.join(SUFFIXES)}.")
        texts = read_captions(captions)
        self.captions = {name: texts[name] for name in sorted(videos & texts.keys())}
        if not self.captions:
            raise ValueError(
                f"None of the {len(videos)} videos in {folder} has a caption in {captions.name}: the folder "
                f"has {min(videos)!r}, for example, and the file {min(texts, default='nothing')!r}."
            )
        for left_out, lacking in ((videos - texts.keys(), "caption"), (texts.keys() - videos, "video")):
            if left_out:
                logger.warning("Left out without a %s: %d, e.g. %s", lacking, len(left_out), min(left_out))
        self.names = list(self.captions)
        self.broken: set[str] = set()

    def sample(self, random: np.random.Generator) -> Clip:
        """Return a clip from anywhere in any of the videos.

        Raises:
            ValueError: No video is left that can be read.
        """
        while len(self.broken) < len(self.names):
            # Both numbers are drawn before a broken video is left out: a resumed run, which does not know yet
            # that it is broken, samples the same.
            name, position = self.names[random.integers(len(self.names))], random.random()
            if name in self.broken:
                continue
            try:
                images = read_clip(self.folder / name, position, self.frames, self.stride)
            except ClipError as error:
                logger.warning("Left out: %s. %s", name, error)
                self.broken.add(name)
            else:
                return Clip(np.stack([square(image, self.size) for image in images]), self.captions[name])
        raise ValueError(f"None of the {len(self.names)} videos in {self.folder} can be used.")


def read_captions(file: Path) -> dict[str, str]:
    """Read captions by file name from JSON lines or a `.csv` with the fields `file_name` and `text`.

    Raises:
        ValueError: There is no such file, or it has another format.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}: --captions names the file of the captions.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            is_table = file.suffix.lower() == ".csv"
            rows = list(csv.DictReader(lines) if is_table else map(json.loads, filter(str.strip, lines)))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file.name} is neither JSON lines nor a .csv table: {error}") from None
    captions = {}
    for number, row in enumerate(rows, start=1):
        name, text = (row.get(field) if isinstance(row, dict) else None for field in ("file_name", "text"))
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(
                f"Entry {number} of {file.name} lacks 'file_name' or 'text', as in "
                '{"file_name": "a.mp4", "text": "a dog runs"}.'
            )
        captions[name] = text
    return captions


def read_clip(file: Path, position: float, frames: int, stride: int) -> list[Image]:
    """Read `frames` images, every `stride`-th frame of a video, from `position` on.

    0 starts at the first frame, 1 at the last one with enough frames after it.

    Raises:
        ClipError: The video cannot be read, or is too short.
    """
    needed = (frames - 1) * stride + 1
    info = probe_once(file, LIMITS)
    start = position * max(0.0, info.duration - float(needed / info.rate))
    images = [image for image, _ in islice(read_frames(file, LIMITS, Cut(start)), 0, needed, stride)]
    if len(images) < frames and start:  # the frames are unevenly spaced in time
        return read_clip(file, 0.0, frames, stride)
    if len(images) < frames:
        raise ClipError(f"It is too short: {frames} frames at a stride of {stride} need {needed}.")
    return images


def square(image: Image, size: int) -> Image:
    """Crop the middle of an image and scale it to `size` x `size`."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return resized(image[top : top + side, left : left + side], size, size)
