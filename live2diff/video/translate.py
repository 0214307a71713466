"""Clips in and out, with their sound: a video file goes through a stream and comes out as an mp4.

`translate` is the whole journey: decode, hand each frame to a stream, encode what comes back, keep the
timestamps and the sound. `clip.py` reads; here is what writes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from .reader import WHOLE, ClipInfo, Cut, Image, Limits, probe, read_frames, resized
from .writer import QUALITY, ClipWriter, check_target

# Macroblock trees off: with AVX-512, x264 165 makes another file of the same frames once in fifty times.


@dataclass(frozen=True)
class Progress:
    """Where a translation stands: frames taken in, frames in all, estimated seconds left, newest result,
    frames of the result so far."""

    done: int
    total: int
    seconds_left: float | None
    frame: Image | None
    written: int = 0


class FrameStream(Protocol):
    """What `translate` asks of a stream: one frame out for each frame in, in order, some calls late."""

    def push(self, frame: Image) -> list[Image]: ...

    def flush(self) -> list[Image]: ...


def translate(
    stream: FrameStream,
    source: str | Path,
    target: str | Path,
    *,
    size: tuple[int, int] | None = None,
    limits: Limits = Limits(),
    cut: Cut = WHOLE,
    keep: bool = False,
    quality: int = QUALITY,
) -> Iterator[Progress]:
    """Pushes every frame of `source`, or of a `cut` of it, through `stream` and writes the results to the mp4
    `target`.

    A generator: one `Progress` after each push, and one more when the file is complete. The result has
    the frame count, timestamps and sound of the source. `size`, a (width, height), resizes the frames
    before they are pushed. H.264 wants even sizes: an odd one is made even by repeating the last column or
    row, so 321x243 becomes 322x244. `quality` is x264's crf, lower is better.

    `target` appears only when it is complete: if the generator is closed or fails, nothing is left behind,
    and an older file of that name stays as it was. With `keep`, the frames made by then are a clip of their
    own with the sound that belongs to them; where there is none, there is no file.
    """
    target = Path(target)
    check_target(source, target)
    info = probe(source, limits, cut)
    with ClipWriter(target, source, info, limits, cut, quality) as writer:
        complete = False
        try:
            yield from _pushed(stream, read_frames(source, limits, cut), writer, info, size)
            complete = True
        finally:
            if complete or (keep and writer.written):
                writer.finish(complete)
    yield Progress(writer.written, writer.written, 0.0, writer.latest, writer.written)


def _pushed(
    stream: FrameStream,
    frames: Iterator[tuple[Image, Fraction]],
    writer: "ClipWriter",
    info: ClipInfo,
    size: tuple[int, int] | None,
) -> Iterator[Progress]:
    """Pushes, writes and reports frame by frame, up to the last frame that the stream still held."""
    moments: list[Fraction] = []
    begun = time.monotonic()
    for image, moment in frames:
        moments.append(moment)
        for result in stream.push(resized(image, *size) if size else image):
            writer.write(result, moments[writer.written])
        total = max(info.frame_count, len(moments))
        left = (time.monotonic() - begun) / len(moments) * (total - len(moments))
        yield Progress(len(moments), total, left, writer.latest, writer.written)
    for result in stream.flush():
        writer.write(result, moments[writer.written])
    if writer.written != len(moments):
        raise RuntimeError(f"the stream gave {writer.written} frames for {len(moments)} frames in")
