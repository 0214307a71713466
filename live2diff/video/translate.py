"""Translate a clip: decode it, push its frames through a stream, encode the results with times and sound."""

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from .reader import WHOLE, Cut, Image, Limits, probe, read_frames, resized
from .writer import QUALITY, ClipWriter, check_target, even


@dataclass(frozen=True)
class Progress:
    """Progress of a translation."""

    done: int  # frames pushed
    total: int
    seconds_left: float | None  # estimated
    frame: Image | None  # the newest result
    written: int = 0  # frames in the result


class FrameStream(Protocol):
    """What `translate` calls on a stream: one frame out for each frame in, in order, with some delay."""

    def push(self, frame: Image) -> list[Image]:
        """Take a frame; return the results that are ready."""
        ...

    def flush(self) -> list[Image]:
        """Return the remaining results."""
        ...


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
) -> Generator[Progress, None, None]:
    """Push the frames of `source`, or of a `cut` of it, through `stream` and write the results to `target`.

    Yields a `Progress` after each push, and one more when the file is complete. The result is an mp4 with the
    frame count, timestamps and sound of the source. `size`, a (width, height), resizes the frames before they
    are pushed; H.264 needs even sizes, so the last column or row of an odd size is repeated. `quality` is
    x264's crf: lower is better.

    `target` is written only when it is complete: if the generator is closed or fails, no file is left behind,
    and an older file of that name is unchanged. With `keep`, the frames written so far become `target`, with
    their sound; without any frame there is no file.

    Raises:
        ClipError: the clip cannot be read, or the result cannot be written.
    """
    target = Path(target)
    check_target(source, target)
    info = probe(source, limits, cut)
    times: list[Fraction] = []
    complete, begun = False, time.monotonic()
    with ClipWriter(target, source, info, limits, cut, quality) as writer:
        try:
            for image, shown_at in read_frames(source, limits, cut):
                times.append(shown_at)
                for result in stream.push(resized(image, *size) if size else image):
                    writer.write(result, times[writer.written])
                total = max(info.frame_count, len(times))
                left = (time.monotonic() - begun) / len(times) * (total - len(times))
                yield Progress(len(times), total, left, writer.latest, writer.written)
            for result in stream.flush():
                writer.write(result, times[writer.written])
            if writer.written != len(times):
                raise RuntimeError(f"the stream gave {writer.written} frames for {len(times)} frames in")
            complete = True
        finally:
            if complete or (keep and writer.written):
                writer.finish(complete)
    yield Progress(writer.written, writer.written, 0.0, writer.latest, writer.written)


def sizes(
    size: int | tuple[int, int] | None, clip: str | Path
) -> tuple[tuple[int, int] | None, int | tuple[int, int] | None]:
    """Return the (width, height) to which a clip's frames are resized, and its stream's working size.

    `size` is n for about n x n pixels, or a (width, height).
    """
    if isinstance(size, int):
        info = probe(clip)
        scale = size / math.sqrt(info.width * info.height)
        return (even(max(2, round(info.width * scale))), even(max(2, round(info.height * scale)))), size
    if size is None:
        return None, None
    width, height = even(size[0]), even(size[1])
    return (width, height), (height, width)
