"""Makes results.jpg, the picture in the README: frames of example clips and what each style makes of them.

python examples/sheet.py
"""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np

import live2diff
from live2diff.clip import read_frames

FOLDER = Path(__file__).parent
CLIPS = ("admiral", "traveller", "raccoon", "room")
SIDE = 224  # of each picture on the sheet
FRAMES = 10  # so many go in; the last one is shown
TITLE_HEIGHT = 28


def square(frame: np.ndarray) -> np.ndarray:
    """The largest square at the top centre of a frame, uint8 `[SIDE, SIDE, 3]`."""
    height, width = frame.shape[:2]
    side = min(height, width)
    left = (width - side) // 2
    return cv2.resize(frame[:side, left : left + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def titles() -> np.ndarray:
    """The names over the columns."""
    band = np.full((TITLE_HEIGHT, SIDE * (1 + len(live2diff.STYLES)), 3), 255, np.uint8)
    for column, title in enumerate(["camera", *live2diff.STYLES]):
        place = (column * SIDE + 8, TITLE_HEIGHT - 9)
        cv2.putText(band, title, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    return band


def main() -> None:
    pipeline = live2diff.load("nano")
    rows = [titles()]
    for clip in CLIPS:
        frames = [frame for frame, _ in islice(read_frames(FOLDER / f"{clip}.mp4"), FRAMES)]
        row = [square(frames[-1])]
        for style in live2diff.STYLES:
            row.append(square(pipeline(frames, style=style)[-1]))
        rows.append(np.hstack(row))
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(FOLDER / "results.jpg"), sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
