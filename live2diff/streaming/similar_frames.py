"""Skip frames that hardly differ from the last one used, and repeat the last output instead."""

import random

import numpy as np

from .images import limit_side

MOST_SKIPPED = 10  # in a row
COMPARED_SIDE = 64  # pixels of the longer side of the compared thumbnails


class SimilarFrameFilter:
    """Choose frames to skip at random, the more often the more similar they are.

    A frame is skipped with probability `max(0, 1 - (1 - cos) / (1 - threshold))`, where cos is its cosine
    similarity in `[-1, 1]` with the last frame used; at most 10 in a row. With a threshold of None, none is.
    """

    def __init__(self, threshold: float | None, seed: int = 0) -> None:
        self.last_output: np.ndarray | None = None  # uint8 [height, width, 3], to be repeated
        self._threshold = threshold
        self._random = random.Random(seed)  # separate from the noise of the frames
        self._used: np.ndarray | None = None
        self._skipped = 0

    def keep(self, images: list[np.ndarray]) -> None:
        """Keep a copy of the last output, if it may have to be repeated."""
        if images and self._threshold is not None:
            self.last_output = images[-1].copy()

    def skips(self, image: np.ndarray, allowed: bool = True) -> bool:
        """Return whether to skip the next frame, uint8 `[height, width, 3]`; never if not `allowed`."""
        if self._threshold is None:
            return False
        step = max(1, min(image.shape[:2]) // (2 * COMPARED_SIDE))  # averaging all pixels takes milliseconds
        seen = limit_side(image[::step, ::step], COMPARED_SIDE).astype(np.float32) / 127.5 - 1
        probability = 0.0
        if allowed and self._used is not None and self._used.shape == seen.shape:
            norms = float(np.linalg.norm(self._used) * np.linalg.norm(seen))
            similarity = float(np.vdot(self._used, seen)) / max(norms, 1e-6)
            probability = 1 - (1 - similarity) / (1 - self._threshold)
        if self._skipped < MOST_SKIPPED and self._random.random() < probability:
            self._skipped += 1
            return True
        self._used, self._skipped = seen, 0
        return False
