"""`python -m live2diff`: what it makes of a clip, and what it says to bad input."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.paths import ROOT

from live2diff.__main__ import main
from live2diff.video.reader import probe, read_frames

FRAMES = 12


def command(*words: object) -> subprocess.CompletedProcess:
    """The command line as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "live2diff", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first frames of an example, with the sound beside them."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(ROOT / "examples" / "traveller.mp4")) as source, av.open(str(path), "w") as target:
        video = target.add_stream("libx264", rate=source.streams.video[0].average_rate)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        sound = target.add_stream_from_template(source.streams.audio[0])
        for frame, _ in zip(source.decode(video=0), range(FRAMES), strict=False):
            target.mux(video.encode(frame.reformat(160, 120, "yuv420p")))
        target.mux(video.encode(None))
        source.seek(0)
        for packet in source.demux(audio=0):
            if packet.size and packet.pts * packet.time_base < FRAMES / 25:
                packet.stream = sound
                target.mux(packet)
    return path


@pytest.fixture(scope="module")
def in_two_styles(clip: Path) -> dict[str, Path]:
    """The clip in two styles, each made by the command."""
    made = {}
    for style in ("pencil", "neon"):
        made[style] = clip.with_name(f"{style}.mp4")
        told = command(clip, made[style], "--model", "nano", "--style", style, "--prompt", "a woman")
        assert told.returncode == 0, told.stderr
        assert f"{FRAMES} frames" in told.stderr
    return made


def test_frames_size_rate_and_sound_are_those_of_the_clip(clip: Path, in_two_styles: dict[str, Path]) -> None:
    before = probe(clip)
    assert before.has_sound and before.frame_count == FRAMES
    for path in in_two_styles.values():
        after = probe(path)
        for name in ("width", "height", "frame_count", "rate", "has_sound"):
            assert getattr(after, name) == getattr(before, name)


def test_every_frame_is_translated_and_styles_differ(clip: Path, in_two_styles: dict[str, Path]) -> None:
    source, pencil, neon = (
        np.stack([image for image, _ in read_frames(path)]).astype(int)
        for path in (clip, in_two_styles["pencil"], in_two_styles["neon"])
    )
    for one, other in ((source, pencil), (source, neon), (pencil, neon)):
        assert np.abs(one - other).mean(axis=(1, 2, 3)).min() > 12  # of 255, in each frame, the first 8 too


def test_a_size_can_be_asked_for(clip: Path) -> None:
    target = clip.with_name("sized.mp4")
    told = command(clip, target, "--model", "nano", "--style", "oil", "--size", "200x97", "--steps", 1)
    assert told.returncode == 0, told.stderr
    assert (probe(target).width, probe(target).height, probe(target).frame_count) == (200, 98, FRAMES)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["missing.mp4", "out.mp4"], "no file"),
        (["README.md", "out.mp4"], "not a video"),
        (["CLIP", "out.avi"], ".mp4"),
        (["CLIP", "CLIP"], "another name"),
        (["CLIP", "no/such/folder/out.mp4"], "does not exist"),
        (["CLIP", "out.mp4", "--model", "nano", "--style", "crayon"], "pencil"),
        (["CLIP", "out.mp4", "--model", "no-such-model"], "no-such-model"),
        (["CLIP", "out.mp4", "--model", "nano", "--t-index-list", "42,30"], "42"),
        (["CLIP", "out.mp4", "--size", "big"], "640x360"),
        (["CLIP", "out.mp4", "--steps", "7"], "1, 2, 3, 4"),
    ],
)
def test_bad_input_is_answered_in_one_line_and_code_2(
    clip: Path, tmp_path: Path, words: list[str], answer: str, capsys: pytest.CaptureFixture
) -> None:
    said = [str(clip) if word == "CLIP" else word for word in words]
    said[0] = str(ROOT / said[0]) if words[0] == "README.md" else said[0]
    said[1] = str(tmp_path / "out.mp4") if words[1] == "out.mp4" else said[1]
    try:
        code = main(said)
    except SystemExit as end:  # how argparse ends
        code = end.code
    told = capsys.readouterr()
    assert code == 2
    assert answer in told.err.splitlines()[-1]
    assert "Traceback" not in told.err and told.out == ""
    assert not list(tmp_path.iterdir())
