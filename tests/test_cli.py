"""`python -m live2diff`: translated clips, settings, exit codes."""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from helpers.folders import CopyingTranslator
from helpers.paths import ROOT

from live2diff import __main__ as command_line
from live2diff.__main__ import main
from live2diff.cli import add_model_options, model_loader
from live2diff.command import run_main
from live2diff.errors import NonFiniteError, StreamOutOfMemory
from live2diff.video.reader import probe, read_frames

FRAMES = 12


def command(*words: object) -> subprocess.CompletedProcess:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "live2diff", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the first frames of an example, with their sound."""
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
    """Translate the clip into two styles with the command."""
    made = {}
    for style in ("pencil", "neon"):
        made[style] = clip.with_name(f"{style}.mp4")
        process = command(clip, made[style], "--model", "nano", "--style", style, "--prompt", "a woman")
        assert process.returncode == 0, process.stderr
        assert f"{FRAMES} frames" in process.stderr
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


def test_the_size_is_an_option(clip: Path) -> None:
    target = clip.with_name("sized.mp4")
    process = command(clip, target, "--model", "nano", "--style", "oil", "--size", "200x97", "--steps", 1)
    assert process.returncode == 0, process.stderr
    assert (probe(target).width, probe(target).height, probe(target).frame_count) == (200, 98, FRAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_bad_input_gives_a_message_of_one_line_and_exit_code_2(
    clip: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    paths = {"CLIP": str(clip), "README.md": str(ROOT / "README.md"), "out.mp4": str(tmp_path / "out.mp4")}
    try:
        code = main([paths.get(argument, argument) for argument in arguments])
    except SystemExit as end:  # how argparse ends
        code = end.code
    output = capsys.readouterr()
    assert code == 2
    assert message in output.err.splitlines()[-1]
    assert "Traceback" not in output.err and output.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (ValueError("The size is\nwrong."), 2, "tool: The size is wrong.\n"),
        (OSError("No space left."), 2, "tool: No space left.\n"),
        (NonFiniteError("NaN."), 2, "tool: NaN.\n"),
        (StreamOutOfMemory("No memory."), 2, "tool: No memory.\n"),
        (KeyboardInterrupt(), 130, "\ntool: interrupted\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture
) -> None:
    def run(_: argparse.Namespace) -> None:
        if error is not None:
            raise error

    assert run_main(argparse.ArgumentParser(prog="tool"), run, []) == code
    assert capsys.readouterr().err == message


def test_only_options_that_are_given_become_settings(clip: Path, tmp_path: Path, monkeypatch) -> None:
    given = []

    def settings(**values: object) -> None:
        given.append(values)
        raise ValueError("enough")

    settings.model_fields = command_line.StreamSettings.model_fields
    monkeypatch.setattr(command_line, "StreamSettings", settings)
    out = str(tmp_path / "out.mp4")
    assert main([str(clip), out]) == 2
    assert main([str(clip), out, "--similar-frame-skip", "0.98", "--steps", "2", "--scene-cut", "off"]) == 2
    assert main([str(clip), out, "--seed", "3"]) == 2
    always = {"scene_cut": 0.45, "size": None}
    assert given[2] == always | {"seed": 3}
    assert given[:2] == [always, always | {"similar_frame_skip": 0.98, "steps": 2, "scene_cut": None}]


@pytest.fixture
def sigterms() -> Iterator[list[int]]:
    """Return the list of signals that would otherwise end the tests."""
    received: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGTERM, former)


def call_handler() -> None:
    """Call the handler of SIGTERM, without a signal that might end the tests."""
    handler: Any = signal.getsignal(signal.SIGTERM)
    handler(signal.SIGTERM, None)


def test_sigterm_interrupts_as_ctrl_c_does(sigterms: list[int], capsys: pytest.CaptureFixture) -> None:
    def run(_: argparse.Namespace) -> None:
        call_handler()

    assert run_main(argparse.ArgumentParser(prog="tool"), run, []) == 130
    assert capsys.readouterr().err == "\ntool: interrupted\n"
    call_handler()
    assert sigterms == [signal.SIGTERM], "afterwards it is as it was"


def test_a_clip_that_is_stopped_leaves_no_unfinished_file(
    clip: Path, tmp_path: Path, sigterms: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(CopyingTranslator):
        def __call__(self, job):
            for step in super().__call__(job):
                if step.done == 3:
                    assert len(list(tmp_path.iterdir())) == 2
                    call_handler()
                yield step

    monkeypatch.setattr(command_line, "Translator", lambda _: Stopped())
    (tmp_path / ".out-0123abcd.part.mp4").touch()  # of a run that was killed
    assert main([str(clip), str(tmp_path / "out.mp4")]) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "size", "scene_cut"),
    [
        ([], (96, 128), None),
        (["--scene-cut", "0.3"], (96, 128), 0.3),
        (["--size", "200x100"], (100, 200), None),
        (["--size", "64", "--scene-cut", "off"], 64, None),
    ],
)
def test_size_and_scene_cut_of_a_cue_file_hold_where_the_options_are_not_given(
    clip: Path, tmp_path: Path, words: list[str], size: object, scene_cut: float | None, monkeypatch
) -> None:
    opened = []

    def stream(settings: command_line.StreamSettings) -> None:
        opened.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(command_line, "load_model", lambda _: SimpleNamespace(stream=stream))
    cues = tmp_path / "cues.json"
    cues.write_text(json.dumps({"start": {"size": [96, 128], "scene_cut": None, "seed": 3}, "cues": []}))
    assert main([str(clip), str(tmp_path / "out.mp4"), "--cues", str(cues), *words]) == 2
    [settings] = opened
    assert (settings.size, settings.scene_cut, settings.seed) == (size, scene_cut, 3)


def test_paths_of_the_model_are_valid_in_another_working_directory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "nano", "files", "sub"):
        (tmp_path / name).mkdir()
    for name in ("lora.safetensors", "base.safetensors", "sub/beside.safetensors"):
        (tmp_path / name).touch()
    styles = {
        "one": {"title": "One", "base": "base.safetensors"},
        "two": {"title": "Two", "loras": [["beside.safetensors", 1.0], ["owner/name/far.safetensors", 0.5]]},
    }
    (tmp_path / "sub" / "styles.json").write_text(json.dumps(styles))

    def load(*words: str) -> tuple[str, dict]:
        parser = argparse.ArgumentParser()
        add_model_options(parser)
        call = model_loader(parser.parse_args(words))
        return call.args[0], call.keywords

    model, given = load(
        *["--model", "mine", "--checkpoints", "files", "--lora", "lora.safetensors:0.5"],
        *["--lora", "owner/name/a.safetensors", "--styles", "sub/styles.json"],
    )
    assert model == str(tmp_path / "mine") and given["checkpoints"] == str(tmp_path / "files")
    assert given["loras"] == [(str(tmp_path / "lora.safetensors"), 0.5), ("owner/name/a.safetensors", 1.0)]
    assert given["styles"]["one"].base == str(tmp_path / "base.safetensors")
    beside = str(tmp_path / "sub" / "beside.safetensors")
    assert given["styles"]["two"].loras == ((beside, 1.0), ("owner/name/far.safetensors", 0.5))
    assert load("--model", "nano")[0] == "nano", "a name, whatever folders there are"
    assert load("--model", "owner/name")[0] == "owner/name"
