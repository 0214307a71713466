"""Numbered images as VP9, the number in an image, and the frames that a server receives and sends."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.browser import BITS, numbered

from live2diff.ui.frame_relay import CameraFrame, FrameRelay
from live2diff.ui.video_codec import ResultEncoder, is_vp9

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


def note_traffic(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Record the camera `frames` that a server receives, and the `results` that it encodes."""
    noted = SimpleNamespace(frames=[], results=[])
    put, encode = FrameRelay.put, FrameRelay.encode

    def noting_put(relay: FrameRelay, frame: CameraFrame) -> None:
        noted.frames.append(frame)
        put(relay, frame)

    def noting_encode(relay: FrameRelay, image: np.ndarray) -> bytes:
        noted.results.append(encode(relay, image))
        return noted.results[-1]

    monkeypatch.setattr(FrameRelay, "put", noting_put)
    monkeypatch.setattr(FrameRelay, "encode", noting_encode)
    return noted


def goes_on(traffic: SimpleNamespace, count: int = 5, video: bool = True) -> bool:
    """Return whether the last frames and results are all VP9, or all JPEGs."""
    last = [frame.data for frame in traffic.frames[-count:]] + traffic.results[-count:]
    return len(last) == 2 * count and all(is_vp9(data) == video for data in last)
