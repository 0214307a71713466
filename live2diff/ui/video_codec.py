"""Decode camera frames and encode results as VP9, a third of the bytes of JPEGs; README.md says when.

VP9 and not H.264: the same images take fewer bytes than in the baseline H.264 that is fast enough, and
every build of Chromium has it. A chunk is one frame; its first two bits differ from those of a JPEG.
"""

import time
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from ..streaming.images import LARGEST_FRAME, LONGEST_SIDE

MOST_WAITING = 32  # chunks; a page has at most 16 frames in flight
RATE_STEP = 1.3  # a smaller change of the bit rate is not worth the key frame it costs
MILLISECONDS = Fraction(1, 1000)
COLOURS = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.JPEG}
TO_PLANES: dict[str, Any] = {"format": "yuv420p", "interpolation": Interpolation.AREA, **COLOURS}
OPTIONS = {
    "deadline": "realtime",
    "cpu-used": "8",
    "lag-in-frames": "0",
    "qmin": "10",  # of 63: never finer than the JPEGs
    "qmax": "58",
    "max-intra-rate": "400",  # percent of a frame's share: a larger key frame would delay the next frames
}


class VideoError(Exception):
    """A chunk cannot be decoded, or an image cannot be encoded: use JPEGs."""


def is_vp9(data: bytes) -> bool:
    """Return whether a frame is VP9, not JPEG."""
    return data[0] >> 6 == 0b10


class CameraDecoder:
    """Decode the VP9 frames of one stream: all of them in order, as each refers to the one before.

    They are decoded once the newest is needed; only that one becomes an image.
    """

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._codec = av.CodecContext.create("vp9", "r")
        self._codec.thread_count = 1  # more would hold frames back
        self._codec.options = {"max_pixels": str(LONGEST_SIDE**2)}

    def put(self, chunk: bytes) -> None:
        """Keep a chunk until it is decoded.

        Raises:
            VideoError: too many are waiting, and none can be left out.
            ValueError: too large, or several frames in one chunk: they take more time than their size says.
        """
        if len(chunk) > LARGEST_FRAME or chunk[-1] >> 5 == 0b110:
            raise ValueError(f"The camera frame is no single VP9 frame of at most {LARGEST_FRAME} bytes.")
        self._waiting.append(chunk)
        self._bytes += len(chunk)
        if len(self._waiting) > MOST_WAITING or self._bytes > LARGEST_FRAME:
            raise VideoError("More VP9 frames wait than a page sends at once.")

    def take(self) -> list[bytes]:
        """Remove the waiting chunks and return them, for `decode`."""
        chunks = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return chunks

    def decode(self, chunks: list[bytes]) -> np.ndarray:
        """Decode the next chunks; return the last image, uint8 `[height, width, 3]` RGB.

        Raises:
            VideoError: one is damaged, too large, or not the next one.
        """
        frame = None
        try:
            for chunk in chunks:
                for frame in self._codec.decode(av.Packet(chunk)):
                    if max(frame.width, frame.height) > LONGEST_SIDE:
                        raise VideoError(f"A side has more than {LONGEST_SIDE} pixels.")
            if frame is None:
                raise VideoError("The VP9 frame has no image.")
            return frame.to_ndarray(format="rgb24")
        except FFmpegError as error:
            raise VideoError("The VP9 frame cannot be decoded.") from error


class ResultEncoder:
    """Encode the results of one stream, each as one chunk, at a bit rate that can change."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate  # bits a second
        self._codec: av.VideoCodecContext | None = None
        self._clock, self._began = clock, clock()

    def encode(self, image: np.ndarray) -> bytes:
        """Encode a uint8 RGB image `[height, width, 3]`, as a key frame if the size or the rate has changed.

        Raises:
            VideoError: the library refuses the image or the rate.
        """
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(**TO_PLANES)
        frame.time_base = MILLISECONDS
        frame.pts = int((self._clock() - self._began) * 1000)
        try:
            codec = self._codec
            if codec is None or self._differs(codec, frame):
                codec = self._codec = self._open(frame)
            return b"".join(map(bytes, codec.encode(frame)))
        except FFmpegError as error:
            raise VideoError("The result cannot be encoded as VP9.") from error

    def _differs(self, codec: av.VideoCodecContext, frame: av.VideoFrame) -> bool:
        rate = max(self.rate, codec.bit_rate or 1) / min(self.rate, codec.bit_rate or 1)
        return (codec.width, codec.height) != (frame.width, frame.height) or rate > RATE_STEP

    def _open(self, frame: av.VideoFrame) -> av.VideoCodecContext:
        codec = av.CodecContext.create("libvpx-vp9", "w")
        codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuv420p"
        codec.colorspace, codec.color_range = COLOURS.values()
        codec.time_base, codec.framerate = MILLISECONDS, Fraction(30)
        codec.thread_count, codec.gop_size = 1, 1 << 20
        rate = codec.bit_rate = self.rate
        limits = {"minrate": rate, "maxrate": rate, "bufsize": rate // 2}
        codec.options = OPTIONS | {name: str(value) for name, value in limits.items()}
        return codec
