"""Cues: a file of changes gives the same pixels as a stream that is changed by hand."""

import json

import numpy as np
import pytest
from helpers.clips import write_clip
from helpers.streams import alone, assert_same, frames

from live2diff import __main__ as command_line
from live2diff.serving.engine import Engine
from live2diff.streaming.cues import CuedStream, CueSheet, read_cues
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import read_frames
from live2diff.video.translate import translate

START = {"style": "pencil", "prompt": "a cat", "seed": 3, "steps": 1}
CUES = [
    {"frame": 0, "prompt": "a dog"},
    {"frame": 11, "style": "neon", "blend": 4},
    {"frame": 13, "mix_style": "ink", "mix_prompt": "a house", "mix": 0.5, "refill": True},
    {"frame": 15, "strength": 0.9, "steps": 2},
    {"frame": 15, "mix": 0.0, "blend": 0},
    {"frame": 90, "style": "oil"},
]
CLIP = frames(7, 20)


def by_hand(stream, clip):
    """Push a clip with the changes of CUES, made by hand."""
    stream.update(prompt="a dog")
    for number, frame in enumerate(clip):
        if number == 11:
            stream.update(style="neon", blend=4)
        if number == 13:
            stream.update(mix_style="ink", mix_prompt="a house", mix=0.5, blend=1)
            stream.restart()
        if number == 15:
            stream.update(strength=0.9, steps=2)
            stream.update(mix=0.0, blend=1)
        yield from stream.push(frame)
    yield from stream.flush()


@pytest.fixture
def sheet(tmp_path) -> CueSheet:
    path = tmp_path / "cues.json"
    path.write_text(json.dumps({"start": START, "cues": CUES[5:] + CUES[:5]}))
    return read_cues(path)


def test_cues_change_a_stream_as_the_same_updates_by_hand(tiny_pipeline, sheet):
    assert [cue.frame for cue in sheet.cues] == [0, 11, 13, 15, 15, 90]  # whatever their order in the file
    expected = list(by_hand(tiny_pipeline.stream(**START), CLIP))
    cued = CuedStream(tiny_pipeline.stream(**sheet.start), sheet)
    out = [image for frame in CLIP for image in cued.push(frame)] + cued.flush()
    assert_same(out, expected)
    assert [cue.frame for cue in cued.due] == [90]
    plain = alone(tiny_pipeline, CLIP, flush=True, **START)
    assert all(not np.array_equal(one, other) for one, other in zip(out, plain, strict=True))


def test_a_live_session_with_the_same_changes_gives_the_same_pixels(tiny_pipeline, sheet):
    """As the page's messages change it: with all settings, through the engine."""
    engine = Engine(tiny_pipeline)
    settings = StreamSettings(**START)
    engine.open("ann", settings).result()
    out = []
    for number, frame in enumerate(CLIP):
        for cue in sheet.cues:
            if cue.frame == number:
                settings = settings.updated(**cue.changes)
                engine.update("ann", settings, blend=0 if cue.refill else cue.blend)
                if cue.refill:
                    engine.restart("ann")
        out += engine.push("ann", frame).result().frames
    engine.shutdown()
    assert_same(out, list(by_hand(tiny_pipeline.stream(**START), CLIP))[: len(out)])
    assert len(out) == len(CLIP) - 1


def test_the_command_line_replays_cues_on_a_clip_to_the_same_pixels(
    tiny_pipeline, tmp_path, monkeypatch, capsys
):
    clip, expected, out = (tmp_path / f"{name}.mp4" for name in ("clip", "expected", "out"))
    write_clip(clip, 20)
    (tmp_path / "cues.json").write_text(json.dumps({"start": START, "cues": CUES}))

    class ByHand:
        def __init__(self) -> None:
            self.source: list[np.ndarray] = []

        def push(self, frame):
            self.source.append(frame)
            return []

        def flush(self):
            return list(by_hand(tiny_pipeline.stream(**START), self.source))

    list(translate(ByHand(), clip, expected))
    monkeypatch.setattr(command_line, "load_model", lambda _: tiny_pipeline)
    assert command_line.main([str(clip), str(out), "--cues", str(tmp_path / "cues.json")]) == 0
    assert f"{clip} has ended before the cue at frame 90" in capsys.readouterr().err
    assert_same(*([image for image, _ in read_frames(path)] for path in (out, expected)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ("[]", r'must be like \{"start"'),
        ('{"cues": {}}', r'must be like \{"start"'),
        ('{"cues": [7]}', 'cue 1: It must be an object like {"frame": 40'.replace("{", r"\{")),
        ('{"cues": [{"frame": 1}, {"style": "ink"}]}', "cue 2: It has no frame"),
        ('{"cues": [{"frame": -1}]}', "cue 1: frame is -1: .*greater than or equal to 0"),
        ('{"cues": [{"frame": 1.5}]}', "cue 1: frame is 1.5"),
        ('{"cues": [{"frame": 1, "seed": 2}]}', "cue 1: seed cannot change while a stream runs"),
        ('{"cues": [{"frame": 1, "blend": 9999}]}', "cue 1: blend is 9999"),
        ('{"cues": [{"frame": 1, "strength": NaN}]}', "cue 1: strength is nan; it must be above 0"),
        ('{"cues": [{"frame": 1, "colour": "red"}]}', "cue 1: There is no setting 'colour'"),
        ('{"start": {"steps": 9}, "cues": []}', "start: steps is 9; it must be 1, 2, 3 or 4"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_of_the_mistake(tmp_path, text, message):
    path = tmp_path / "cues.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cues(path)


def test_a_style_that_the_model_does_not_have_is_named_before_the_first_frame(tiny_pipeline, tmp_path):
    path = tmp_path / "cues.json"
    path.write_text(json.dumps({"cues": [CUES[1], {"frame": 20, "style": "cubist"}]}))
    with pytest.raises(ValueError, match=r"Cue 2, at frame 20: There is no style 'cubist'"):
        read_cues(path).check(tiny_pipeline, StreamSettings())
