"""Detect scene changes, after which the cache has to be filled again."""

from collections import deque

import cv2
import numpy as np

from ..config import WARMUP_FRAMES

SCENE_CUT = 0.45  # above the largest difference within a scene, below the smallest of a cut: see NOTES.md
THUMBNAIL = (18, 24)  # rows, columns
LARGEST_SHIFT = 3  # pixels of the thumbnail by which an image may move and still be the same
LEAST_DETAIL = 3.0  # standard deviation in grey levels below which there is nothing to correlate


class SceneChangeDetector:
    """Detect cuts and slower scene changes by comparing small thumbnails of a stream's frames.

    Two images differ by 1 minus their correlation at the best of all small shifts, so neither brightness nor
    a shaky hand counts. A frame that differs by more than `threshold` from the one 8 frames ago begins a
    change: a cut, a whip pan, somebody who sits down. It is a cut if it differs as much from the previous
    frame. The change has settled once 8 frames in a row show one scene, other than that in the cache: after
    a slow change, or after a cut to something that did not stay. A threshold of None detects nothing.

    Attributes:
        cut: whether the newest frame begins another scene; the cache should be filled with it at once.
        settled: whether the newest 8 frames show another scene than the cache, and should fill it.
    """

    def __init__(self, threshold: float | None = SCENE_CUT) -> None:
        self.cut = self.settled = False
        self._threshold = threshold
        self._recent: deque[np.ndarray] = deque(maxlen=WARMUP_FRAMES)
        self._cached: np.ndarray | None = None  # a thumbnail of the scene in the cache
        self._changing = False

    def see(self, image: np.ndarray) -> None:
        """Compare the next frame, uint8 `[height, width, 3]`, with the previous ones."""
        self.cut = self.settled = False
        if self._threshold is None:
            return
        step = max(1, min(image.shape[:2]) // 128)  # averaging all of a large image takes milliseconds
        now = cv2.resize(image[::step, ::step], THUMBNAIL[::-1], interpolation=cv2.INTER_AREA)
        if self._cached is None:
            self._cached = now
            self._recent.append(now)
        if difference(self._recent[0], now) > self._threshold:  # 8 frames ago
            self.cut = not self._changing and difference(self._recent[-1], now) > self._threshold
            self._changing = True
        self._recent.append(now)
        if self._changing and difference(self._recent[0], now) < self._threshold / 2:
            self._changing = False
            self.settled = difference(self._cached, now) > self._threshold

    def remember(self) -> None:
        """Note that the cache was filled from the newest frames."""
        if self._recent:
            self._cached = self._recent[-1]


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return how much two thumbnails differ, from 0 to 2.

    It is 1 minus the correlation of their colours at the best of all shifts by up to `LARGEST_SHIFT` pixels;
    for images without detail, the difference of their means.
    """
    if min(float(first.std()), float(second.std())) < LEAST_DETAIL:
        return abs(float(first.mean()) - float(second.mean())) / 255
    inner = first[LARGEST_SHIFT:-LARGEST_SHIFT, LARGEST_SHIFT:-LARGEST_SHIFT]
    return 1 - float(cv2.matchTemplate(second, inner, cv2.TM_CCOEFF_NORMED).max())
