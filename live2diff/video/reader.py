"""Reading clips: a video file becomes upright RGB frames with their times.

Nothing a header says is believed: every limit is checked again on what is really there. Everything a file can
get wrong ends in a `ClipError` that says what to do.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation

from ..errors import ClipError

# Only these containers are opened. FFmpeg knows many more, and some of them (playlists, concat lists) are
# text files that make it read other files or addresses: an uploaded file must not be able to do that.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ogg,flv,asf,gif,apng,"
    "image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,mp3,wav,flac,aac"  # the last four: to say "only sound"
)
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
DEFAULT_RATE = Fraction(25)
UNNAMED_COLOURS = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
CUT_SLACK = Fraction(5, 1000)  # seconds; the ends of a cut come rounded, frame times do not
Image = np.ndarray  # uint8 [height, width, 3] RGB


@dataclass(frozen=True)
class Limits:
    """How much of a clip is accepted. Checked against the header and again while decoding."""

    max_frames: int = 18_000
    max_seconds: float = 600.0
    max_pixels: int = 7680 * 4320
    max_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class Cut:
    """The part of a clip from `start` up to `end`, in seconds from its first frame; None is its end. The
    frame shown from `end` on is not in it."""

    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < float("inf"):
            raise ClipError(f"The start is {self.start:g} s: it must be 0 or more.")
        if self.end is not None and not self.start < self.end < float("inf"):
            raise ClipError(f"The end is {self.end:g} s: it must be after the start, {self.start:g} s.")

    def moments(self, first: Fraction) -> tuple[Fraction, Fraction | None]:
        """From when until when, on the clock of a file whose first frame is at `first`."""
        begin = first + Fraction(self.start) - CUT_SLACK
        return begin, None if self.end is None else first + Fraction(self.end) - CUT_SLACK


WHOLE = Cut()


@dataclass(frozen=True)
class ClipInfo:
    """What a clip, or a cut of it, is, as it is shown (after its display rotation).

    `frame_count` is the number of coded frames. `start` is the time of the first of them in the file, `tick`
    the unit of the file's timestamps, both in seconds.
    """

    width: int
    height: int
    frame_count: int
    rate: Fraction
    duration: float
    has_sound: bool
    start: Fraction = Fraction(0)
    tick: Fraction = Fraction(1, 90_000)


def probe(path: str | Path, limits: Limits = Limits(), cut: Cut = WHOLE) -> ClipInfo:
    """What the clip at `path` is, or a `cut` of it; all `limits` but that of bytes then hold for that part.

    Reads through the packets, so that a count or a length claimed by the header is not merely believed.
    Raises `ClipError` if it is no clip, is cut off, is over a limit, or has no frame in `cut`.
    """
    with Source(path, limits) as source:
        track = source.track
        rate = track.average_rate or track.guessed_rate or DEFAULT_RATE
        zero = Fraction(source.start) + Fraction(cut.start)
        begin, end = cut.moments(Fraction(source.start))
        packets, inside, last = 0, 0, 0.0
        for packet in source.packets(source.track):
            if packet.is_discard:
                continue
            moment = Fraction(source.start) + packets / rate
            if packet.pts is not None:
                moment = packet.pts * packet.time_base
            packets += 1
            if begin <= moment and (end is None or moment < end):
                inside += 1
                last = max(last, float(moment - zero))
                source.check_length(inside, last)
        indexed = source.container.format.name.startswith("mov")  # other headers guess at the count
        if indexed and 0 < packets < track.frames and (there := source.count_packets()) < track.frames:
            raise ClipError(
                f"{source.name} is cut off: only {there} of its {track.frames} frames are there. Copy or "
                "download it again, or save it anew with a video editor."
            )
    with Source(path, limits) as source:
        image, start = next(source.frames(cut), (None, None))
        if image is None:
            raise ClipError(f"{source.name} has no frame from {cut.start:g} s on: choose an earlier start.")
        return ClipInfo(
            width=image.shape[1],
            height=image.shape[0],
            frame_count=inside,
            rate=rate,
            duration=last + float(1 / rate) if last > 0 else float(inside / rate),
            has_sound=source.sound is not None,
            start=start,
            tick=source.track.time_base,
        )


def read_frames(
    path: str | Path, limits: Limits = Limits(), cut: Cut = WHOLE
) -> Iterator[tuple[Image, Fraction]]:
    """The frames of a clip, or of a `cut` of it, in the order they are shown, each with its time in seconds
    from the first one.

    Times strictly increase. All frames have the size of the first one. Transparency is laid over white. A
    damaged packet is skipped, as a player does; a clip of which most is damaged raises `ClipError`.
    """
    with Source(path, limits) as source:
        first: Fraction | None = None
        for image, moment in source.frames(cut):
            first = moment if first is None else first
            yield image, moment - first


def resized(image: Image, width: int, height: int) -> Image:
    """The image at another size: averaged when it shrinks, so that fine detail does not shimmer."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = width * height < image.shape[0] * image.shape[1]
    how = Interpolation.AREA if shrinks else Interpolation.BICUBIC
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return frame.reformat(width=width, height=height, interpolation=how).to_ndarray()


class Source:
    """An open clip: its picture track, and its first sound track if it has one."""

    def __init__(self, path: str | Path, limits: Limits):
        self.path, self.limits = Path(path), limits
        self.name = self.path.name
        self._check_file()
        self._open()

    def _open(self) -> None:
        try:
            self.container = av.open(str(self.path.absolute()), container_options=OPTIONS)
        except (av.FFmpegError, UnicodeDecodeError) as error:
            raise ClipError(
                f"{self.name} is not a video that can be read: it may be cut off, or something else than a "
                "video. Try an mp4, webm, mov, mkv or gif."
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
        size = self.path.stat().st_size
        if size == 0:
            raise ClipError(f"{self.name} is empty (0 bytes): copy or download it again.")
        if size > self.limits.max_bytes:
            raise ClipError(
                f"{self.name} has {size / 1e6:.1f} MB; at most {self.limits.max_bytes / 1e6:.1f} MB are "
                "accepted here. Cut it shorter, or save it at a lower quality."
            )

    def _choose_tracks(self) -> None:
        # The cover picture of a song counts as a video track to FFmpeg, not to us.
        cover = av.stream.Disposition.attached_pic
        videos = [track for track in self.container.streams.video if not track.disposition & cover]
        sounds = [track for track in self.container.streams.audio if track.codec_context is not None]
        if not videos:
            what = "only sound and no picture" if sounds else "no video track"
            raise ClipError(f"{self.name} has {what}: choose a video.")
        self.track, self.sound = videos[0], next(iter(sounds), None)
        decoder = self.track.codec_context
        if decoder is None:
            raise ClipError(f"{self.name} is coded in a way that cannot be read here: save it as H.264 mp4.")
        self._check_pixels(decoder.width, decoder.height)
        decoder.thread_type = "AUTO"
        decoder.options = {"max_pixels": str(self.limits.max_pixels)}  # for a header that lies
        self.start = float((self.track.start_time or 0) * self.track.time_base)

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            raise ClipError(
                f"{self.name} has frames of {width}x{height}, {width * height / 1e6:.1f} megapixels; at "
                f"most {self.limits.max_pixels / 1e6:.1f} are accepted here. Save it smaller."
            )

    def check_length(self, frames: int, seconds: float) -> None:
        """Raises `ClipError` when this many frames, or this many seconds, are more than is accepted."""
        if frames > self.limits.max_frames:
            raise ClipError(
                f"{self.name} has more than {self.limits.max_frames} frames, the most accepted here. Cut it "
                "shorter."
            )
        if seconds > self.limits.max_seconds:
            raise ClipError(
                f"{self.name} is longer than {self.limits.max_seconds:g} seconds, the most accepted "
                "here. Cut it shorter."
            )

    def packets(self, track: av.stream.Stream) -> Iterator[av.Packet]:
        """The packets of one track; a file that ends in the middle simply ends."""
        demuxed = self.container.demux(track)
        while True:
            try:
                packet = next(demuxed)
            except (StopIteration, av.FFmpegError):
                return
            if packet.size:
                yield packet

    def count_packets(self) -> int:
        """How many the picture track really has, with those that an edit list hides: a phone that trims a
        clip does no more than that."""
        options = OPTIONS | {"ignore_editlist": "1"}
        count = 0
        with suppress(av.FFmpegError), av.open(str(self.path.absolute()), container_options=options) as whole:
            for packet in whole.demux(whole.streams[self.track.index]):
                count += packet.size > 0
        return count

    def frames(self, cut: Cut = WHOLE) -> Iterator[tuple[Image, Fraction]]:
        """Upright frames of one size with their times in the file, which strictly increase."""
        timed = self._timed()
        first, moment = next(timed)
        picture = self._picture(first)
        size = picture.shape[1], picture.shape[0]
        begin, end = cut.moments(moment)
        timed = self._timed_from(begin) if begin > moment else chain([(first, moment)], timed)
        count = 0
        for frame, moment in timed:
            if moment < begin:
                continue
            if end is not None and moment >= end:
                return
            count += 1
            self.check_length(count, float(moment - begin))
            yield resized(self._picture(frame), *size), moment

    def _picture(self, frame: av.VideoFrame) -> Image:
        self._check_pixels(frame.width, frame.height)
        try:
            return _upright(_rgb(frame, self.track.sample_aspect_ratio), frame)
        except av.FFmpegError as error:
            what = f"a frame of {frame.width}x{frame.height}, {frame.format.name}, cannot be shown"
            raise ClipError(f"{self.name} is damaged: {what}. Copy or download it again.") from error

    def _timed(self) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """Decoded frames from here on; where a file gives no time, or not a later one, the rate does."""
        last: Fraction | None = None
        interval = 1 / (self.track.average_rate or self.track.guessed_rate or DEFAULT_RATE)
        for frame in self._decoded():
            moment = Fraction(0) if last is None else last + interval
            if frame.pts is not None and (last is None or frame.pts * self.track.time_base > last):
                moment = frame.pts * self.track.time_base
            last = moment
            yield frame, moment

    def _timed_from(self, begin: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
        """As `_timed`, from `begin` or a little before it; from the first frame if the file cannot jump."""
        try:
            self.container.seek(int(begin / self.track.time_base), stream=self.track)
            timed = self._timed()
            frame, moment = next(timed)
            if frame.pts is not None and moment <= begin:
                return chain([(frame, moment)], timed)
        except (av.FFmpegError, ClipError):
            pass  # it has no index, or a wrong one
        self.container.close()
        self._open()
        return self._timed()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        decoded = damaged = 0
        for packet in chain(
            self.packets(self.track), [None]
        ):  # None: the frames that the decoder still holds
            try:
                frames = self.track.codec_context.decode(packet)
            except av.FFmpegError:
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
    """Any pixel format as 8-bit RGB with square pixels; the transparent is laid over white, as on a page."""
    # Most HD clips do not name their colours; players take BT.709 for them and BT.601 for smaller ones.
    unnamed = frame.colorspace == UNNAMED_COLOURS and frame.height >= 720
    colours = Colorspace.ITU709 if unnamed else None
    stretched = pixel_aspect is not None and 0.02 < abs(pixel_aspect - 1) < 3
    width = max(1, round(frame.width * pixel_aspect)) if stretched else frame.width
    see_through = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    form = "rgba" if see_through else "rgb24"
    image = frame.reformat(width=width, format=form, src_colorspace=colours).to_ndarray()
    if not see_through:
        return image
    alpha = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _upright(image: Image, frame: av.VideoFrame) -> Image:
    """The image as it is meant to be shown: a phone stores what its sensor saw and how to turn it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
