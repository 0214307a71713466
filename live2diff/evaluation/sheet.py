"""Draw the contact sheet: a row for the source, each style and each variant of one; a column for each moment.

The last column of the first clip is a slice through time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from ..video.reader import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
MOMENTS = 6  # in all, shared among the clips
CELL_HEIGHT, TITLE_HEIGHT, GAP = 168, 28, 2
INK, PAPER = (40, 40, 40), (255, 255, 255)
FONT_SIZE = 14


class Sheet:
    """Collect the images of `clips` clips; one row for each label, in order, without empty rows."""

    def __init__(self, labels: Sequence[str], clips: int):
        self.titles: list[str] = []
        self.rows: dict[str, list[Image]] = {label: [] for label in labels}
        self._moments = max(1, MOMENTS // clips)  # of each clip

    def add_clip(self, name: str, frames: int) -> None:
        """Begin the columns of a clip with `frames` frames."""
        slices = [] if self.titles else ["slice in time"]
        self.titles += [f"{name}, frame {index + 1}" for index in self._indices(frames)] + slices

    def add(self, label: str, images: Sequence[Image]) -> None:
        """Add the latest clip's images to a row; without effect if the sheet has no row of that label."""
        if label in self.rows:
            slices = [] if self.rows[label] else [slice_in_time(images)]
            self.rows[label] += [images[index] for index in self._indices(len(images))] + slices

    def save(self, path: Path) -> None:
        """Write the sheet as PNG or JPEG."""
        font = ImageFont.load_default(FONT_SIZE)
        rows = {label: images for label, images in self.rows.items() if images}
        margin = max(round(font.getlength(label)) for label in rows) + 16
        cells = next(iter(rows.values()))
        widths = [max(1, round(cell.shape[1] * CELL_HEIGHT / cell.shape[0])) for cell in cells]
        left = [margin + sum(widths[:column]) + GAP * column for column in range(len(widths))]
        height = TITLE_HEIGHT + (CELL_HEIGHT + GAP) * len(rows)
        sheet = Pillow.new("RGB", (left[-1] + widths[-1] + GAP, height), PAPER)
        draw = ImageDraw.Draw(sheet)
        for title, x, width in zip(self.titles, left, widths, strict=True):
            small = min(FONT_SIZE, FONT_SIZE * (width - 8) / font.getlength(title))
            draw.text((x + 4, TITLE_HEIGHT / 2), title, INK, ImageFont.load_default(small), anchor="lm")
        for number, (label, images) in enumerate(rows.items()):
            y = TITLE_HEIGHT + (CELL_HEIGHT + GAP) * number
            draw.text((4, y + CELL_HEIGHT / 2), label, INK, font, anchor="lm")
            for image, x, width in zip(images, left, widths, strict=True):
                cell = Pillow.fromarray(image).resize((width, CELL_HEIGHT), Pillow.Resampling.BOX)
                sheet.paste(cell, (x, y))
        sheet.save(path, quality=88)

    def _indices(self, frames: int) -> list[int]:
        """Spread the moments evenly, the last frame among them."""
        return [round(i * (frames - 1) / self._moments) for i in range(1, self._moments + 1)]


def slice_in_time(images: Sequence[Image]) -> Image:
    """Stack the middle row of each image, the first on top: flicker breaks the lines in it."""
    slices = np.stack([image[len(image) // 2] for image in images])
    height, width = images[0].shape[:2]
    return np.asarray(Pillow.fromarray(slices).resize((width, height), Pillow.Resampling.NEAREST))
