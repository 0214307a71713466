"""Read video files as upright RGB frames with their times.

Headers are not trusted: every limit is checked again on the data. Anything wrong with a file raises a
`ClipError` that says what to do.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile, takewhile
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation

from ..errors import ClipError

# Only these containers are opened. FFmpeg knows many more, and some of them (playlists, concat lists) are
# text files that make it read other files or addresses, which an uploaded file must not be able to do.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ogg,flv,asf,gif,apng,"
    "image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,mp3,wav,flac,aac"  # the last four to report "only sound"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
DEFAULT_RATE = Fraction(25)
UNNAMED_COLOURS = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
CUT_SLACK = Fraction(5, 1000)  # seconds; the ends of a cut are rounded, frame times are not
Image = np.ndarray  # uint8 [height, width, 3] RGB
TimedImages = Iterator[tuple[Image, Fraction]]  # with times in seconds


@dataclass(frozen=True)
class Limits:
    """Limits for accepted clips, checked against the header and again while decoding."""

    max_frames: int = 18_000
    max_seconds: float = 600.0
    max_pixels: int = 7680 * 4320
    max_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Cut:
    """The part of a clip from `start` to `end`, exclusive, in seconds from its first frame."""

    start: float = 0.0
    end: float | None = None  # the clip's end

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf"):
            raise ClipError(f"The start is {self.start:g} s: it must be 0 or more.")
        if self.end is not None and not self.start < self.end < float("inf"):
            raise ClipError(f"The end is {self.end:g} s: it must be after the start, {self.start:g} s.")

    def times(self, first: Fraction) -> tuple[Fraction, Fraction | float]:
        """Return the cut's begin and end as timestamps of a file whose first frame is at `first`."""
        end = float("inf") if self.end is None else first + Fraction(self.end) - CUT_SLACK
        return first + Fraction(self.start) - CUT_SLACK, end


WHOLE = Cut()


@dataclass(frozen=True)
class ClipInfo:
    """A clip, or a cut of it, as displayed (after rotation)."""

    width: int
    height: int
    frame_count: int  # coded frames
    rate: Fraction
    duration: float  # seconds
    has_sound: bool
    start: Fraction  # seconds: the time of the first frame in the file
    tick: Fraction  # seconds: the unit of the file's timestamps


def probe(path: str | Path, limits: Limits = Limits(), cut: Cut = WHOLE) -> ClipInfo:
    """Describe the clip at `path`, or a `cut` of it; limits of frames and seconds then apply to the cut.

    All packets are read, as the frame count and the duration in the header may be wrong.

    Raises:
        ClipError: the file is not a clip, is cut off, is over a limit, or has no frame in `cut`.
    """
    with Source(path, limits) as source:
        zero = source.start + Fraction(cut.start)
        begin, end = cut.times(source.start)
        packets, inside, last = 0, 0, 0.0
        for packet in source.packets(source.track):
            if packet.is_discard:
                continue
            time = source.start + packets / source.rate
            if packet.pts is not None:
                time = packet.pts * packet.time_base
            packets += 1
            if begin <= time < end:
                inside += 1
                last = max(last, float(time - zero))
                source.check_length(inside, last)
        is_counted = source.container.format.name.startswith("mov")  # other containers only estimate
        expected = source.track.frames if is_counted else 0
        if 0 < packets < expected and (present := source.count_packets()) < expected:
            raise ClipError(
                f"{source.name} is cut off: only {present} of its {expected} frames are there. Copy or "
                "download it again, or save it again with a video editor."
            )
    with Source(path, limits) as source:
        image, start = next(source.frames(cut), (None, None))
        if image is None or start is None:
            raise ClipError(f"{source.name} has no frame from {cut.start:g} s on: choose an earlier start.")
        return ClipInfo(
            width=image.shape[1],
            height=image.shape[0],
            frame_count=inside,
            rate=source.rate,
            duration=last + float(1 / source.rate) if last > 0 else float(inside / source.rate),
            has_sound=source.sound is not None,
            start=start,
            tick=source.tick,
        )


def read_frames(path: str | Path, limits: Limits = Limits(), cut: Cut = WHOLE) -> TimedImages:
    """Yield the frames of a clip, or a `cut` of it, in display order, with seconds since the first.

    Times strictly increase. All frames have the size of the first one. Transparency is blended with white.
    Damaged packets are skipped, as in a player; if most are damaged, `ClipError` is raised.
    """
    with Source(path, limits) as source:
        first: Fraction | None = None
        for image, time in source.frames(cut):
            first = time if first is None else first
            yield image, time - first


def resized(image: Image, width: int, height: int) -> Image:
    """Resize an image; when it shrinks, pixels are averaged, so that fine detail does not flicker."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width * height < image.shape[0] * image.shape[1]
    method = Interpolation.AREA if shrinks else Interpolation.BICUBIC
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=width, height=height, interpolation=method).to_ndarray()


class Source:
    """An open clip: its first video track, and its first audio track if it has one."""

    def __init__(self, path: str | Path, limits: Limits):
        self.path, self.limits, self.name = Path(path), limits, Path(path).name
        self._check_file()
        self._open()

    def _open(self) -> None:
        try:
            self.container = av.open(str(self.path.absolute()), container_options=OPTIONS)
        except (FFmpegError, UnicodeDecodeError) as error:
            raise ClipError(
                f"{self.name} is not a video that can be read: it may be cut off, or no video at all. Try an "
                "mp4, webm, mov, mkv or gif."
            ) from error
        try:
            self._choose_tracks()
        except ClipError:
            self.container.close()
            raise

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def _check_file(self) -> None:
        if self.path.is_dir():
            raise ClipError(f"{self.path} is a folder: name a video file in it.")
        if not self.path.is_file():
            raise ClipError(f"There is no file {self.path}: check the name.")
        size, most = self.path.stat().st_size, self.limits.max_bytes
        if size == 0:
            raise ClipError(f"{self.name} is empty (0 bytes): copy or download it again.")
        if size > most:
            raise ClipError(
                f"{self.name} has {size / 1e6:.1f} MB; at most {most / 1e6:.1f} MB are accepted here. Cut it "
                "shorter, or save it at a lower quality."
            )

    def _choose_tracks(self) -> None:
        # FFmpeg reports the cover image of a song as a video track.
        streams = self.container.streams
        videos = [track for track in streams.video if not track.disposition & Disposition.attached_pic]
        sounds = [track for track in streams.audio if track.codec_context is not None]
        if not videos:
            content = "only sound and no video track" if sounds else "no video track"
            raise ClipError(f"{self.name} has {content}: choose a video.")
        self.track, self.sound = videos[0], next(iter(sounds), None)
        decoder = self.track.codec_context
        if decoder is None:
            raise ClipError(f"{self.name} has a codec that cannot be read here: save it as an H.264 mp4.")
        self._check_pixels(decoder.width, decoder.height)
        decoder.thread_type = "AUTO"
        decoder.options = {"max_pixels": str(self.limits.max_pixels)}  # in case the header is wrong
        self.tick = self.track.time_base or Fraction(1, 90_000)
        self.rate = self.track.average_rate or self.track.guessed_rate or DEFAULT_RATE
        self.start = (self.track.start_time or 0) * self.tick

    def _check_pixels(self, width: int, height: int) -> None:
        most = self.limits.max_pixels
        if width * height > most:
            raise ClipError(
                f"{self.name} has frames of {width}x{height}, {width * height / 1e6:.1f} megapixels; at most "
                f"{most / 1e6:.1f} are accepted here. Save it smaller."
            )

    def check_length(self, frames: int, seconds: float) -> None:
        """Raise `ClipError` if so many frames or seconds are over the limit."""
        limits, end = self.limits, "the most accepted here. Cut it shorter."
        if frames > limits.max_frames:
            raise ClipError(f"{self.name} has more than {limits.max_frames} frames, {end}")
        if seconds > limits.max_seconds:
            raise ClipError(f"{self.name} is longer than {limits.max_seconds:g} seconds, {end}")

    def packets(self, track: av.VideoStream | AudioStream) -> Iterator[av.Packet]:
        """Yield the packets of one track, up to where the file breaks off."""
        with suppress(FFmpegError):
            yield from (packet for packet in self.container.demux(track) if packet.size)

    def count_packets(self) -> int:
        """Count the packets of the video track, including those hidden by an edit list (a trimmed clip)."""
        options = OPTIONS | {"ignore_editlist": "1"}
        count = 0
        with suppress(FFmpegError), av.open(str(self.path.absolute()), container_options=options) as whole:
            for packet in whole.demux(whole.streams[self.track.index]):
                count += packet.size > 0
        return count

    def frames(self, cut: Cut) -> TimedImages:
        """Yield upright frames of one size with their times in the file, which strictly increase."""
        timed = self._timed()
        first, time = next(timed)
        image = self._image(first)
        size = image.shape[1], image.shape[0]
        begin, end = cut.times(time)
        timed = self._timed_from(begin) if begin > time else chain([(first, time)], timed)
        inside = takewhile(lambda each: each[1] < end, dropwhile(lambda each: each[1] < begin, timed))
        for count, (frame, time) in enumerate(inside, 1):
            self.check_length(count, float(time - begin))
            yield resized(self._image(frame), *size), time

    def _image(self, frame: av.VideoFrame) -> Image:
        self._check_pixels(frame.width, frame.height)
        try:
            return _upright(_rgb(frame, self.track.sample_aspect_ratio), frame)
        except FFmpegError as error:
            what = f"a frame of {frame.width}x{frame.height}, {frame.format.name}, cannot be shown"
            raise ClipError(f"{self.name} is damaged: {what}. Copy or download it again.") from error

    def _timed(self) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Yield decoded frames and times; missing and non-increasing times follow from the frame rate."""
        last: Fraction | None = None
        for frame in self._decoded():
            time = Fraction(0) if last is None else last + 1 / self.rate
            if frame.pts is not None and (last is None or frame.pts * self.tick > last):
                time = frame.pts * self.tick
            last = time
            yield frame, time

    def _timed_from(self, begin: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Do the same from `begin` or shortly before it, or from the first frame if the file cannot seek."""
        with suppress(FFmpegError, ClipError):  # it has no index, or a wrong one
            self.container.seek(int(begin / self.tick), stream=self.track)
            timed = self._timed()
            frame, time = next(timed)
            if frame.pts is not None and time <= begin:
                return chain([(frame, time)], timed)
        self.container.close()
        self._open()
        return self._timed()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        decoded = damaged = 0
        for packet in chain(self.packets(self.track), [None]):  # None flushes the decoder
            try:
                frames = self.track.codec_context.decode(packet)
            except FFmpegError:
                damaged += 1
                continue
            decoded += len(frames)
            yield from frames
        if damaged > decoded:
            raise ClipError(
                f"{self.name} is damaged: {damaged} pieces of it cannot be decoded, {decoded} can. Copy or "
                "download it again."
            )
        if decoded == 0:
            raise ClipError(f"{self.name} has a video track without a single frame: choose another clip.")


def _rgb(frame: av.VideoFrame, pixel_aspect: Fraction | None) -> Image:
    """Convert any pixel format to 8-bit RGB with square pixels, transparency blended with white."""
    # Most HD clips do not name their colour space; players assume BT.709 for them, BT.601 for smaller ones.
    unnamed = frame.colorspace == UNNAMED_COLOURS and frame.height >= 720
    width = frame.width
    if pixel_aspect is not None and 0.02 < abs(pixel_aspect - 1) < 3:
        width = max(1, round(frame.width * pixel_aspect))
    has_alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    image = frame.reformat(
        width=width,
        format="rgba" if has_alpha else "rgb24",
        src_colorspace=Colorspace.ITU709 if unnamed else None,
    ).to_ndarray()
    if not has_alpha:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(image: Image, frame: av.VideoFrame) -> Image:
    """Rotate and flip an image by its display matrix, with which phones store the camera's orientation."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
