"""The contact sheet: rows of the source, the styles and the variants of one; columns of moments of each clip,
and a slice through time of the first."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..video.reader import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
MOMENTS = 6  # in all, shared among the clips
CELL_HEIGHT = 168
BAND_HEIGHT = 28  # of the titles
INK, PAPER = (40, 40, 40), (255, 255, 255)
GAP = 2
FONT, TITLE_SIZE, LABEL_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0.55


class Sheet:
    """Gathers pictures clip by clip, row by row.

    Args:
        labels: of the rows, from the top.
        clips: how many there will be.
    """

    def __init__(self, labels: Sequence[str], clips: int):
        self.titles: list[str] = []
        self.rows: dict[str, list[Image]] = {label: [] for label in labels}
        self.moments = max(1, MOMENTS // clips)  # of each clip

    def add_clip(self, name: str, frames: int) -> None:
        """Titles over the columns of a clip of so many frames."""
        slices = [] if self.titles else ["slice in time"]
        self.titles += [f"{name}, frame {index + 1}" for index in self._indices(frames)] + slices

    def add(self, label: str, pictures: Sequence[Image]) -> None:
        """The latest clip's pictures in a row; without effect if the sheet has no row of that label."""
        if label in self.rows:
            slices = [] if self.rows[label] else [slice_in_time(pictures)]
            cells = [pictures[index] for index in self._indices(len(pictures))] + slices
            self.rows[label] += [to_height(cell, CELL_HEIGHT) for cell in cells]

    def picture(self) -> Image:
        """All of it, on white."""
        margin = max(text_width(label, LABEL_SIZE) for label in self.rows) + 16
        widths = [cell.shape[1] + GAP for cell in next(iter(self.rows.values()))]
        titles = zip(self.titles, widths, strict=True)
        band = [written("", margin, BAND_HEIGHT, TITLE_SIZE)]
        lines = [np.hstack(band + [written(text, width, BAND_HEIGHT, TITLE_SIZE) for text, width in titles])]
        for label, cells in self.rows.items():
            line = np.hstack([written(label, margin, CELL_HEIGHT, LABEL_SIZE), *map(framed, cells)])
            lines.append(cv2.copyMakeBorder(line, 0, GAP, 0, 0, cv2.BORDER_CONSTANT, value=PAPER))
        return np.vstack(lines)

    def save(self, path: Path) -> None:
        """Write it as PNG or JPEG.

        Raises:
            OSError: it cannot be written.
        """
        picture = cv2.cvtColor(self.picture(), cv2.COLOR_RGB2BGR)
        quality = [] if path.suffix.lower() == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 88]
        _, code = cv2.imencode(path.suffix, picture, quality)
        path.write_bytes(code.tobytes())

    def _indices(self, frames: int) -> list[int]:
        """Evenly spread, the last frame among them."""
        return [round(i * (frames - 1) / self.moments) for i in range(1, self.moments + 1)]


def slice_in_time(pictures: Sequence[Image]) -> Image:
    """The middle row of pixels of each picture, the first on top, as a picture of their size: what sticks to
    things draws calm lines, what boils breaks them."""
    slices = np.stack([picture[len(picture) // 2] for picture in pictures])
    height, width = pictures[0].shape[:2]
    return cv2.resize(slices, (width, height), interpolation=cv2.INTER_NEAREST)


def to_height(picture: Image, height: int) -> Image:
    """The picture in its own aspect at that height."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def framed(cell: Image) -> Image:
    """The cell with a gap on its right."""
    return cv2.copyMakeBorder(cell, 0, 0, 0, GAP, cv2.BORDER_CONSTANT, value=PAPER)


def text_width(text: str, size: float) -> int:
    return cv2.getTextSize(text, FONT, size, 1)[0][0]


def written(text: str, width: int, height: int, size: float) -> Image:
    """Text on paper, in the middle of the height, made smaller if it is wider than `width`."""
    paper = np.full((height, width, 3), PAPER, np.uint8)
    size *= min(1.0, (width - 8) / max(text_width(text, size), 1))
    return cv2.putText(paper, text, (4, height // 2 + 5), FONT, size, INK, 1, cv2.LINE_AA)
