"""Clips with captions, drawn from a folder of videos: what the motion modules of a full model learn from.

Which clip is drawn, and from where in its video, is decided by a random generator: a run that is resumed
draws what an unbroken one would have drawn.
"""

import csv
import json
import logging
from dataclasses import dataclass
from itertools import dropwhile, islice
from pathlib import Path

import av
import numpy as np

from ..errors import ClipError
from ..video.reader import DEFAULT_RATE, Image, Limits, Source, resized

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif")
LIMITS = Limits(max_frames=10**8, max_seconds=1e7, max_bytes=10**12)  # one's own files may be long
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """uint8 `[frames, size, size, 3]` RGB, and what is to be seen in it."""

    pictures: np.ndarray
    caption: str


class VideoFolder:
    """Clips from those videos of a folder that have a caption: `frames` square pictures each, every
    `stride`-th frame.

    A video that cannot be read, or is too short, is named in a warning and left out.

    Raises:
        ValueError: there is no such folder, no video in it, or no caption for any of them.
    """

    def __init__(self, folder: Path, captions: Path, *, frames: int, stride: int, size: int):
        self.folder, self.frames, self.stride, self.size = folder, frames, stride, size
        if not folder.is_dir():
            raise ValueError(f"There is no folder {folder}: --videos names the folder of the videos.")
        found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        videos = {path.relative_to(folder).as_posix() for path in found}
        if not videos:
            raise ValueError(f"There is no video in {folder}; looked for {', '.join(SUFFIXES)}.")
        told = read_captions(captions)
        self.captions = {name: told[name] for name in sorted(videos & told.keys())}
        if not self.captions:
            raise ValueError(
                f"None of the {len(videos)} videos in {folder} has a caption in {captions.name}: "
                f"{min(videos)!r} is in the one, {min(told, default='nothing')!r} in the other."
            )
        for left_out, lacking in ((videos - told.keys(), "caption"), (told.keys() - videos, "video")):
            if left_out:
                logger.warning(
                    "Left out, as they lack a %s: %d, such as %s", lacking, len(left_out), min(left_out)
                )
        self.names = list(self.captions)
        self.broken: set[str] = set()

    def draw(self, random: np.random.Generator) -> Clip:
        """A clip from anywhere in any of the videos.

        Raises:
            ValueError: no video is left that can be read.
        """
        while len(self.broken) < len(self.names):
            # As much is drawn for a video known to be broken as for one found to be: a resumed run, which
            # does not know yet, draws the same.
            name, place = self.names[random.integers(len(self.names))], random.random()
            if name in self.broken:
                continue
            try:
                images = read_clip(self.folder / name, place, self.frames, self.stride)
            except ClipError as error:
                logger.warning("Left out: %s. %s", name, error)
                self.broken.add(name)
            else:
                return Clip(np.stack([square(image, self.size) for image in images]), self.captions[name])
        raise ValueError(f"Not one of the {len(self.names)} videos in {self.folder} can be used.")


def read_captions(file: Path) -> dict[str, str]:
    """Captions by file name, from a file of JSON lines or a `.csv`, with the fields `file_name` and `text`.

    Raises:
        ValueError: it is not that.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}: --captions names the file of the captions.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() == ".csv":
                rows = list(csv.DictReader(lines))
            else:
                rows = [json.loads(line) for line in lines if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file.name} is neither JSON lines nor a table in a .csv: {error}") from None
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


def read_clip(file: Path, place: float, frames: int, stride: int) -> list[Image]:
    """`frames` pictures, every `stride`-th frame of a video, beginning at `place`: 0 is its first frame, 1
    the last one from which on there are enough.

    Raises:
        ClipError: the video cannot be read, or is too short.
    """
    needed = (frames - 1) * stride + 1
    for start in (place, 0.0):  # a header may promise more than there is: then from the first frame
        with Source(file, LIMITS) as source:
            track = source.track
            rate = track.average_rate or track.guessed_rate or DEFAULT_RATE
            length = (track.duration or 0) * track.time_base
            length = length or (source.container.duration or 0) / av.time_base
            moment = source.start + start * max(0.0, float(length - needed / rate))
            if start:
                seek(source, moment)
            later = dropwhile(lambda shown, moment=moment: shown[1] < moment, source.frames())
            images = [image for image, _ in islice(later, 0, needed, stride)]
        if len(images) == frames:
            return images
    raise ClipError(f"It is too short: {frames} frames at a stride of {stride} need {needed}.")


def seek(source: Source, moment: float) -> None:
    """Go on from the key frame before `moment`, if the format can; to read from the start does as well."""
    try:
        source.container.seek(int(moment / source.track.time_base), stream=source.track)
    except av.FFmpegError:
        logger.debug("%s cannot be entered in the middle", source.name)


def square(image: Image, size: int) -> Image:
    """The middle of a picture at `size` x `size`."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resized(image[top : top + side, left : left + side], size, size)
