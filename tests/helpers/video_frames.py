"""Numbered images as VP9, and the number in an image."""

import numpy as np
from helpers.browser import BITS, numbered

from live2diff.ui.video_codec import ResultEncoder

SIZE = 320, 240


def read_number(image: np.ndarray) -> int:
    """Return the number in an image of `numbered`, whatever its size; -1 where there is none."""
    cell, number = image.shape[1] / BITS, 0
    for bit in range(BITS):
        first, second = (
            image[int((row + 0.5) * cell), int((bit + 0.5) * cell)].mean() > 128 for row in (0, 1)
        )
        if first == second:
            return -1
        number |= first << bit
    return number


def encoded(numbers: range, rate: int = 1_000_000, size: tuple[int, int] = SIZE) -> list[bytes]:
    """Return numbered images as the VP9 frames of one stream."""
    encoder = ResultEncoder(rate)
    return [encoder.encode(numbered(number, *size)) for number in numbers]


def is_key(chunk: bytes) -> bool:
    """Return whether a VP9 frame can be decoded without others."""
    return chunk[0] & 0x0C == 0
