"""Write real clips for tests and read them back."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from live2diff.video.reader import read_frames

RATE = 25


def numbered_image(index: int, width: int, height: int) -> np.ndarray:
    """An image with its index as its grey, bright at the top left and red at the top right."""
    image = np.full((height, width, 3), 40 + 8 * (index % 24), np.uint8)
    image[: height // 4, : width // 4] = 255
    image[: height // 4, -(width // 4) :] = (255, 0, 0)
    return image


def write_clip(
    path: Path,
    count: int,
    width: int = 96,
    height: int = 64,
    times_ms: list[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: str | None = None,
    rotation: int = 0,
    click_at: float = 0.0,
    sound_delay: float = 0.0,
) -> Path:
    """A real clip of `numbered_image`s; its sound is silent but for a click of 40 ms."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=RATE)
        video.width, video.height, video.pix_fmt = width, height, pixels
        video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        track = container.add_stream(sound, rate=48_000) if sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_image(index, width, height), format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = times_ms[index] if times_ms else index * 1000 // RATE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            samples = np.zeros((1, max(48_000, count * 48_000 // RATE)), np.float32)
            click = int(click_at * 48_000)
            samples[0, click : click + 1920] = np.sin(np.arange(1920) * 0.3)
            clip = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            clip.sample_rate, clip.pts = 48_000, int(sound_delay * 48_000)
            clip.time_base = Fraction(1, 48_000)
            container.mux(track.encode(clip))
            container.mux(track.encode(None))
    return path


def frame_count(path: str | Path) -> int:
    """Count the frames by decoding them."""
    return sum(1 for _ in read_frames(path))


def numbers(path: Path) -> list[float]:
    """The grey of each frame's middle, which is its number."""
    return [float(image[image.shape[0] // 2, image.shape[1] // 2].mean()) for image, _ in read_frames(path)]


def click_time(path: Path) -> float:
    """When the sound begins to be loud, in seconds on the clip's clock."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.abs(frame.to_ndarray().astype(np.float64)).max(axis=0)
            scale = 32_768 if frame.format.name.startswith("s16") else 1.0
            where = np.flatnonzero(loud / scale > 0.3)
            if len(where):
                return frame.time + where[0] / frame.sample_rate
    raise AssertionError("no click")


def sound_seconds(path: Path) -> float:
    """Where the sound ends, on the clip's clock."""
    with av.open(str(path)) as container:
        return max(frame.time + frame.samples / frame.sample_rate for frame in container.decode(audio=0))
