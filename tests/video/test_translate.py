"""Translated clips keep their frames, times, colours and sound."""

from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.clips import RATE, click_time, numbered_image, numbers, sound_seconds, write_clip

from live2diff.errors import ClipError
from live2diff.video.reader import Cut, Limits, probe, read_frames
from live2diff.video.translate import translate


@dataclass
class Late:
    """A minimal stream that returns its input: the first 8 frames together, later ones n - 1 pushes late."""

    late: int = 2
    gathered: int = 8
    held: list[np.ndarray] = field(default_factory=list)
    taken: int = 0

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        self.held.append(frame)
        self.taken += 1
        if self.taken < self.gathered:
            return []
        keep = 0 if self.taken == self.gathered else self.late
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def flush(self) -> list[np.ndarray]:
        out, self.held = self.held, []
        return out


def run(source: Path, target: Path, **options: object) -> list[object]:
    return list(translate(Late(), source, target, **options))


@pytest.mark.parametrize("count", [1, 5, 8, 30])
def test_every_frame_comes_out_once_in_order_at_its_time(tmp_path: Path, count: int) -> None:
    source = write_clip(tmp_path / "in.mp4", count)
    steps = run(source, tmp_path / "out.mp4")
    assert [step.done for step in steps] == [*range(1, count + 1), count]
    assert {step.total for step in steps} == {count} and steps[-1].seconds_left == 0
    before, after = probe(source), probe(tmp_path / "out.mp4")
    assert (after.frame_count, after.width, after.height) == (count, before.width, before.height)
    assert after.rate == before.rate == RATE
    assert after.duration == pytest.approx(count / RATE)
    np.testing.assert_allclose(numbers(tmp_path / "out.mp4"), numbers(source), atol=3)


def test_the_result_plays_in_a_browser(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.webm", 10, codec="libvpx")
    run(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        track = container.streams.video[0]
        assert (track.codec_context.name, track.codec_context.pix_fmt) == ("h264", "yuv420p")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_variable_frame_times_are_kept(tmp_path: Path) -> None:
    times = [0, 40, 80, 250, 260, 300, 700, 701, 702, 900, 1400, 1440]
    source = write_clip(tmp_path / "in.mp4", len(times), times_ms=times)
    run(source, tmp_path / "out.mp4")
    assert [round(time * 1000) for _, time in read_frames(tmp_path / "out.mp4")] == times


@pytest.mark.parametrize(
    ("name", "sound"), [("in.mp4", "aac"), ("in.mkv", "libopus"), ("in.mov", "pcm_s16le")]
)
def test_sound_stays_in_sync(tmp_path: Path, name: str, sound: str) -> None:
    # A clock that starts late and sound that starts later still: both as recorders write them.
    times = [2000 + 40 * index for index in range(50)]
    source = write_clip(tmp_path / name, 50, times_ms=times, sound=sound, click_at=1.0, sound_delay=2.1)
    run(source, tmp_path / "out.mp4")
    with av.open(str(source)) as before, av.open(str(tmp_path / "out.mp4")) as after:
        pictures = [next(clip.decode(video=0)).time for clip in (before, after)]
    away = click_time(source) - pictures[0]
    assert away == pytest.approx(1.1, abs=0.03)
    assert click_time(tmp_path / "out.mp4") - pictures[1] == pytest.approx(away, abs=0.025)


def test_aac_is_copied_packet_for_packet(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 30, sound="aac", click_at=0.5)
    run(source, tmp_path / "out.mp4")
    packets = []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            packets.append(
                [(packet.pts, bytes(packet)) for packet in container.demux(audio=0) if packet.size]
            )
    assert packets[0] == packets[1]


def test_odd_sizes_become_even_by_repeating_the_edge(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", 10, 321, 243, codec="ffv1", pixels="bgr0")
    run(source, tmp_path / "out.mp4")
    image, _ = next(read_frames(tmp_path / "out.mp4"))
    assert image.shape == (244, 322, 3)
    np.testing.assert_allclose(image[:, 321].astype(int), image[:, 320].astype(int), atol=6)


def test_frames_are_resized_before_they_are_pushed(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 9)
    steps = run(source, tmp_path / "out.mp4", size=(48, 50))
    assert steps[-1].frame.shape == (50, 48, 3)
    assert (probe(tmp_path / "out.mp4").width, probe(tmp_path / "out.mp4").height) == (48, 50)


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_a_phone_clip_stands_upright(tmp_path: Path, rotation: int) -> None:
    source = write_clip(tmp_path / "in.mp4", 9, rotation=rotation)
    run(source, tmp_path / "out.mp4")
    expected = np.rot90(numbered_image(0, 96, 64), rotation // 90)  # both count counter-clockwise
    image, _ = next(read_frames(tmp_path / "out.mp4"))
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 6


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mov", "qtrle", "argb"),
        ("b.mkv", "ffv1", "gray"),
        ("c.mkv", "ffv1", "gray16le"),
        ("d.mkv", "ffv1", "yuv420p10le"),
        ("e.mkv", "ffv1", "rgb48le"),
        ("f.gif", "gif", "rgb8"),
        ("g.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_any_pixel_format_keeps_its_brightness(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    source = write_clip(tmp_path / name, 9, codec=codec, pixels=pixels)
    run(source, tmp_path / "out.mp4")
    tolerance = 24 if pixels == "rgb8" else 4
    np.testing.assert_allclose(
        numbers(tmp_path / "out.mp4"), [40 + 8 * index for index in range(9)], atol=tolerance
    )


def test_colours_are_preserved(tmp_path: Path) -> None:
    ramp = np.zeros((64, 256, 3), np.uint8)
    ramp[:16] = np.arange(256, dtype=np.uint8)[None, :, None]
    ramp[16:32], ramp[32:48], ramp[48:] = (200, 30, 40), (20, 160, 60), (40, 60, 210)

    class Painter(Late):
        def push(self, frame: np.ndarray) -> list[np.ndarray]:
            return [ramp]

    source = write_clip(tmp_path / "in.mp4", 3, 256, 64)
    list(translate(Painter(), source, tmp_path / "out.mp4"))
    image = next(read_frames(tmp_path / "out.mp4"))[0].astype(int)
    assert np.abs(image[4:12] - ramp[4:12].astype(int)).mean() < 2
    for row in (24, 40, 56):
        np.testing.assert_allclose(image[row, 128], ramp[row, 128], atol=5)


def test_8k_frames_can_be_read(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", 1, 7680, 4320, codec="mjpeg", pixels="yuvj420p")
    run(source, tmp_path / "out.mp4", size=(96, 54))
    assert probe(source).width == 7680
    assert probe(tmp_path / "out.mp4").width == 96


def broken_clip(folder: Path, kind: str) -> Path:
    """Write a file that is not a valid clip."""
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("not a video\n" * 200)
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "only sound":
        with av.open(str(path), "w") as container:
            track = container.add_stream("aac", rate=48_000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), "fltp", "mono")
            frame.sample_rate = 48_000
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    elif kind == "no index":
        path.write_bytes(write_clip(folder / "whole.mp4", 30).read_bytes()[:-2000])
    elif kind == "cut off":
        run(write_clip(folder / "whole.mp4", 30, 192, 128, sound="aac"), folder / "fast.mp4")
        data = (folder / "fast.mp4").read_bytes()
        path.write_bytes(data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2])
    elif kind == "no frames":
        write_clip(path, 0, sound="aac")
    return path


@pytest.mark.parametrize(
    "kind",
    ["missing", "text", "playlist", "empty", "folder", "only sound", "no index", "cut off", "no frames"],
)
def test_a_broken_clip_gets_a_clear_message_and_leaves_no_file(tmp_path: Path, kind: str) -> None:
    source = broken_clip(tmp_path, kind)
    for read in (lambda: probe(source), lambda: run(source, tmp_path / "out.mp4")):
        with pytest.raises(ClipError) as error:
            read()
        assert len(str(error.value)) > 20 and "\n" not in str(error.value)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (Limits(max_frames=10), "10 frames"),
        (Limits(max_seconds=0.5), "0.5 seconds"),
        (Limits(max_pixels=1000), "megapixels"),
        (Limits(max_bytes=100), "MB"),
    ],
)
def test_a_clip_over_a_limit_is_refused_with_the_limit(tmp_path: Path, limits: Limits, word: str) -> None:
    source = write_clip(tmp_path / "in.mp4", 30)
    with pytest.raises(ClipError, match=word):
        probe(source, limits)
    with pytest.raises(ClipError, match=word):
        list(read_frames(source, limits))


def test_a_translation_closed_midway_leaves_no_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 30, sound="aac")
    target = tmp_path / "out.mp4"
    target.write_bytes(b"the old one")
    steps = translate(Late(), source, target)
    for _ in range(15):
        next(steps)
    steps.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert target.read_bytes() == b"the old one"


def greys(first: int, last: int) -> list[int]:
    return [40 + 8 * (index % 24) for index in range(first, last)]


@pytest.mark.parametrize(
    ("name", "codec", "cut", "first", "last"),
    [
        ("in.mp4", "libx264", Cut(0.4, 0.8), 10, 20),
        ("in.mp4", "libx264", Cut(1.64), 41, 50),
        ("in.mp4", "libx264", Cut(0, 0.2), 0, 5),
        ("in.mp4", "libx264", Cut(0.401, 0.799), 10, 20),  # as a person rounds it
        ("in.mkv", "ffv1", Cut(1.2, 99), 30, 50),
        ("in.gif", "gif", Cut(0.4, 0.8), 10, 20),
        ("in.avi", "mjpeg", Cut(0.4, 0.8), 10, 20),
    ],
)
def test_a_cut_holds_exactly_its_frames(tmp_path: Path, name, codec, cut, first, last) -> None:
    pixels = {"gif": "rgb8", "ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
    source = write_clip(tmp_path / name, 50, codec=codec, pixels=pixels)
    steps = run(source, tmp_path / "out.mp4", cut=cut)
    assert steps[0].total == steps[-1].total == steps[-1].written == last - first
    np.testing.assert_allclose(
        numbers(tmp_path / "out.mp4"), numbers(source)[first:last], atol=30 if codec == "gif" else 4
    )
    times = [time for _, time in read_frames(tmp_path / "out.mp4")]
    assert times[0] == 0 and float(times[-1]) == pytest.approx((last - first - 1) / RATE, abs=0.01)


@pytest.mark.parametrize(("name", "sound"), [("in.mp4", "aac"), ("in.mkv", "libopus")])
def test_the_sound_of_a_cut_stays_in_sync_and_ends_with_it(tmp_path, name, sound) -> None:
    source = write_clip(tmp_path / name, 75, sound=sound, click_at=1.5)
    run(source, tmp_path / "out.mp4", cut=Cut(1.0, 2.0))
    assert click_time(tmp_path / "out.mp4") == pytest.approx(0.5, abs=0.03)
    assert sound_seconds(tmp_path / "out.mp4") == pytest.approx(1.0, abs=0.06)


def test_limits_hold_for_the_cut_and_not_for_the_whole(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 50)
    run(source, tmp_path / "out.mp4", cut=Cut(1.0, 1.4), limits=Limits(max_frames=10, max_seconds=0.5))
    with pytest.raises(ClipError, match="10 frames"):
        run(source, tmp_path / "out.mp4", cut=Cut(1.0, 1.6), limits=Limits(max_frames=10))


def test_a_cut_without_frames_is_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 10)
    with pytest.raises(ClipError, match="no frame from 5 s on"):
        run(source, tmp_path / "out.mp4", cut=Cut(5))
    for wrong in ({"start": -1}, {"start": float("nan")}, {"start": 2, "end": 1}):
        with pytest.raises(ClipError):
            Cut(**wrong)


class Breaks(Late):
    """A stream that fails at its 20th frame, like one that was closed meanwhile."""

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        if self.taken == 19:
            raise RuntimeError("gone")
        return super().push(frame)


@pytest.mark.parametrize("ending", ["closed", "failed"])
def test_a_partial_result_is_kept_on_request_with_its_sound(tmp_path, ending) -> None:
    source = write_clip(tmp_path / "in.mp4", 75, sound="aac", click_at=0.4)
    stream = Breaks() if ending == "failed" else Late()
    steps = translate(stream, source, tmp_path / "out.mp4", keep=True)
    if ending == "failed":
        with pytest.raises(RuntimeError, match="gone"):
            list(steps)
    else:
        for _ in range(19):
            step = next(steps)
        steps.close()
        assert step.written == 17
    np.testing.assert_allclose(numbers(tmp_path / "out.mp4"), greys(0, 17), atol=4)
    assert sound_seconds(tmp_path / "out.mp4") == pytest.approx(17 / RATE, abs=0.06)
    assert click_time(tmp_path / "out.mp4") == pytest.approx(0.4, abs=0.03)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_no_file_is_kept_when_no_frame_was_written(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 30)
    steps = translate(Late(), source, tmp_path / "out.mp4", keep=True)
    next(steps)
    steps.close()
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_a_target_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", 3)
    for target in (source, tmp_path / "out.avi", tmp_path / "nowhere" / "out.mp4"):
        with pytest.raises(ClipError):
            run(source, target)
