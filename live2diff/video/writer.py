"""Write an mp4 with the sound of its source."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from ..errors import ClipError
from .reader import WHOLE, ClipInfo, Cut, Image, Limits, Source

# Without macroblock trees: with AVX-512, x264 165 encodes the same frames differently once in fifty times.
ENCODER_OPTIONS = {"preset": "veryfast", "mbtree": "0"}
QUALITY = 18  # x264's crf: visually almost lossless
COPIED_SOUND = ("aac", "mp3")  # every browser plays these in an mp4; other sound is converted to AAC
SOUND_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000)
CODER_DELAY = Fraction(1, 5)  # seconds; sound that starts so little before the first frame is coder delay


def check_target(source: str | Path, target: str | Path) -> None:
    """Raise `ClipError` if the result of `source` cannot be written to `target`."""
    source, target = Path(source), Path(target)
    if target.suffix.lower() != ".mp4":
        raise ClipError(f"{target.name} must end in .mp4: the result is always an mp4.")
    if not target.parent.is_dir():
        raise ClipError(f"The folder {target.parent} does not exist: make it first, or write elsewhere.")
    if target.is_dir():
        raise ClipError(f"{target} is a folder: name a file in it that ends in .mp4.")
    if target.exists() and source.exists() and target.samefile(source):
        raise ClipError(f"{target} is the clip itself: give the result another name.")


def partials_of(target: Path) -> list[Path]:
    """List the unfinished files of a result, which killed processes leave behind."""
    return [*target.parent.glob(f".{escape(target.stem)}-{'[0-9a-f]' * 8}.part.mp4")]


def even(length: int) -> int:
    """Round up to an even length: H.264 with 4:2:0 colour has no odd ones."""
    return length + length % 2


class ClipWriter:
    """Write an mp4: H.264 at the given times, and the sound of the source.

    The file has a temporary name until `finish`; without that it is deleted at the end of the block.
    """

    def __init__(
        self, target: Path, source: str | Path, info: ClipInfo, limits: Limits, cut: Cut, quality: int
    ):
        self.target, self.info = target, info
        self.whole = cut == WHOLE
        self.options = ENCODER_OPTIONS | {"crf": str(quality)}
        self.partial = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:8]}.part.mp4")
        self.written = 0
        self.latest: Image | None = None
        self.sound = SoundTrack(source, info, limits, cut) if info.has_sound else None
        self.lead = self.sound.lead if self.sound else Fraction(0)
        self.end = Fraction(0)  # of the newest frame, in the result
        self.pts = -1  # of the newest frame
        with self._writing():
            options = {"movflags": "+faststart"}
            self.container = av.open(str(self.partial), "w", format="mp4", container_options=options)

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.container.close()
            if self.sound is not None:
                self.sound.source.container.close()
        finally:
            self.partial.unlink(missing_ok=True)

    def write(self, image: Image, time: Fraction) -> None:
        """Append a frame that is shown `time` seconds after the first one, and the sound up to then."""
        self.latest = image
        with self._writing():
            if not self.written:
                self._add_tracks(even(image.shape[1]), even(image.shape[0]))
            rows, columns = self.video.height - image.shape[0], self.video.width - image.shape[1]
            if (rows, columns) != (0, 0):
                image = np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            colours = {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
            frame = frame.reformat(format="yuv420p", **colours)
            frame.time_base = self.info.tick
            # Increasing times may round to the same tick: 10,000 frames a second, in milliseconds.
            frame.pts = self.pts = max(self.pts + 1, round((time + self.lead) / self.info.tick))
            self.end = time + self.lead + 1 / self.info.rate
            self._mux(self.video.encode(frame))
            if self.sound is not None:
                self.sound.write_until(time + self.lead)
        self.written += 1

    def finish(self, complete: bool) -> None:
        """Write the last frames and the rest of the sound, and rename the file to `target`.

        The sound ends with the frames, unless they are those of the whole clip.
        """
        with self._writing():
            self._mux(self.video.encode(None))
            if self.sound is not None:
                self.sound.write_until(self.sound.limit if complete and self.whole else self.end)
            self.container.close()
            self.partial.replace(self.target)

    def _add_tracks(self, width: int, height: int) -> None:
        self.video = self.container.add_stream("libx264", rate=self.info.rate, options=self.options)
        encoder = self.video.codec_context
        encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
        encoder.time_base = self.info.tick
        encoder.colorspace, encoder.color_range = Colorspace.ITU709, ColorRange.MPEG
        encoder.color_primaries, encoder.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        if self.sound is not None:
            self.sound.open(self.container)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            # Players show the last frame for this long.
            packet.duration = packet.duration or round(1 / self.info.rate / packet.time_base)
            self.container.mux(packet)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ClipError(f"{self.target.name} cannot be written: {reason}.") from error


class SoundTrack:
    """Write the sound of a clip to an mp4: copied if browsers play it, else encoded as AAC.

    The sound starts `lead` seconds before the first frame, and frames are delayed by that. In a cut that
    starts later in the clip, the sound starts with the frames.
    """

    def __init__(self, source: str | Path, info: ClipInfo, limits: Limits, cut: Cut):
        self.source = Source(source, limits)
        assert self.source.sound is not None  # `probe` has seen it
        self.track = self.source.sound
        self.tick = self.track.time_base or Fraction(1, self.track.codec_context.rate)
        ahead = info.start - (self.track.start_time or 0) * self.tick
        self.lead = ahead if ahead > CODER_DELAY and not cut.start else Fraction(0)
        self.earliest = Fraction(0) if cut.start else -CODER_DELAY
        self.shift = self.lead - info.start
        self.limit = Fraction(limits.max_seconds)

    def open(self, container: OutputContainer) -> None:
        """Add the track to the file, without writing sound yet."""
        self.container = container
        decoder = self.track.codec_context
        if decoder.name in COPIED_SOUND:
            self.output: Any = container.add_stream_from_template(self.track)
            self.packets = self._copied()
        else:
            rate = decoder.rate if decoder.rate in SOUND_RATES else SOUND_RATES[0]
            self.output = container.add_stream("aac", rate=rate)
            self.output.codec_context.layout = "mono" if decoder.channels == 1 else "stereo"
            self.output.codec_context.bit_rate = 160_000
            self.packets = self._encoded()
        self.waiting = next(self.packets, None)

    def write_until(self, time: Fraction) -> None:
        """Write the sound up to `time`, so that sound and frames are interleaved in the file."""
        while self.waiting is not None and self.waiting[0] <= time:
            self.container.mux(self.waiting[1])
            self.waiting = next(self.packets, None)

    def _copied(self) -> Iterator[tuple[Fraction, av.Packet]]:
        for packet in self.source.packets(self.track):
            tick = packet.time_base
            if packet.pts is None or packet.pts * tick + self.shift < self.earliest:
                continue
            packet.pts += round(self.shift / tick)
            packet.dts = packet.pts
            packet.stream = self.output
            yield packet.pts * tick, packet

    def _encoded(self) -> Iterator[tuple[Fraction, av.Packet]]:
        encoder = self.output.codec_context
        # async=1 fills gaps with silence, so that the sound after a gap is not too early.
        resampler = av.AudioResampler("fltp", encoder.layout, encoder.rate, options={"async": "1"})
        resampled = (piece for frame in chain(self._decoded(), [None]) for piece in resampler.resample(frame))
        for piece in chain(resampled, [None]):  # None flushes the encoder
            for packet in self.output.encode(piece):
                yield packet.pts * packet.time_base, packet

    def _decoded(self) -> Iterator[av.AudioFrame]:
        for packet in chain(self.source.packets(self.track), [None]):
            try:
                frames = self.track.codec_context.decode(packet)
            except FFmpegError:
                continue  # a damaged packet becomes silence
            for frame in frames:
                if frame.pts is not None:
                    # In samples from here on, as milliseconds (webm) are too coarse.
                    time = frame.pts * self.tick + self.shift
                    if time < self.earliest:
                        continue
                    frame.pts, frame.time_base = round(time * frame.rate), Fraction(1, frame.rate)
                yield frame
