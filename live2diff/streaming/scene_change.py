"""Scene cuts: when the picture is another one than the memory was made of, the memory is of no use."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from ..config import WARMUP_FRAMES

SCENE_CUT = 0.45  # `SceneChangeDetector` says why
SIDES = (18, 24)  # of the thumbnails: rows, columns
REACH = 3  # cells that a picture may have moved, each way, and still be the same
FLAT = 3.0  # grey levels: pictures that vary less have nothing that could be compared


class SceneChangeDetector:
    """Looks at small thumbnails of a stream's frames, and tells when to warm up again.

    Two pictures differ by 1 minus their correlation, at the best of all small shifts: so neither brightness
    nor a shaky hand counts. A picture that differs by more than `threshold` from the one 8 frames ago begins
    a change: a cut, a whip of the camera, somebody who sits down. If it differs as much from the very last
    one, that is a `cut`, and the memory is best made of this one picture at once. Otherwise, and if the cut
    was to something that did not stay, one waits until 8 frames in a row are of one scene: then it has
    `settled`, if that is another scene than the memory's, and those 8 should fill it.

    Found on the five example clips (60 frames each), cut into each other, and changed; the largest difference
    of two frames 8 apart, and in how many a change was told of:

    | the picture                                    | lowest | median | highest | told of  |
    |------------------------------------------------|-------:|-------:|--------:|---------:|
    | as it is; every third frame                    |   0.02 |   0.06 |    0.15 |  0 of 10 |
    | exposure, gamma, light off, light turns warm   |   0.02 |   0.05 |    0.12 |  0 of 20 |
    | noise of 20 grey levels                        |   0.02 |   0.05 |    0.11 |  0 of  5 |
    | shaken by 4 % of the picture, each frame       |   0.09 |   0.16 |    0.29 |  0 of  5 |
    | a white flash of one frame                     |   0.11 |   0.22 |    0.41 |  0 of  5 |
    | a pan of one width in 200 or in 100 frames     |   0.00 |   0.01 |    0.02 |  0 of 10 |
    | a pan of one width in 32 or 12 frames          |   0.50 |   0.78 |    0.92 |  2 of 10 |
    | somebody fills half of it within 12 frames     |   0.23 |   0.62 |    0.87 | 15 of 20 |
    | a cut                                          |   0.63 |   0.82 |    0.94 | 20 of 20 |

    0.45 lies between the highest of what is the same scene and the lowest of the cuts. A look at a picture
    takes 0.4 ms on a slow core.

    Args:
        threshold: from 0, anything, to 1, hardly anything; None never tells of a change.

    Attributes:
        cut: whether the newest frame begins another scene.
        settled: whether the newest 8 frames are of another scene than the memory.
    """

    def __init__(self, threshold: float | None = SCENE_CUT):
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"scene_cut is {threshold!r}; it must be between 0 and 1, or None for never.")
        self.cut = self.settled = False
        self._threshold = threshold
        self._recent: deque[np.ndarray] = deque(maxlen=WARMUP_FRAMES)
        self._known: np.ndarray | None = None  # what the memory was made of
        self._changing = False

    def see(self, picture: np.ndarray) -> None:
        """Look at the next frame, uint8 `[height, width, 3]`."""
        self.cut = self.settled = False
        if self._threshold is None:
            return
        step = max(
            1, min(picture.shape[:2]) // 128
        )  # averaging all of a large picture would take milliseconds
        now = cv2.resize(picture[::step, ::step], SIDES[::-1], interpolation=cv2.INTER_AREA)
        if self._known is None:
            self._known = now
            self._recent.append(now)
        if difference(self._recent[0], now) > self._threshold:  # 8 frames ago
            self.cut = not self._changing and difference(self._recent[-1], now) > self._threshold
            self._changing = True
        self._recent.append(now)
        if self._changing and difference(self._recent[0], now) < self._threshold / 2:
            self._changing = False
            self.settled = difference(self._known, now) > self._threshold

    def remember(self) -> None:
        """The memory is now made of the newest frames."""
        if self._recent:
            self._known = self._recent[-1]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """How much two thumbnails differ, from 0 to 2: 1 minus the correlation of their colours at the best of
    all shifts by up to `REACH` cells. Of pictures without any detail, the difference of their greys."""
    if min(float(first.std()), float(second.std())) < FLAT:
        return abs(float(first.mean()) - float(second.mean())) / 255
    inner = first[REACH:-REACH, REACH:-REACH]
    return 1 - float(cv2.matchTemplate(second, inner, cv2.TM_CCOEFF_NORMED).max())
