"""What comes out of an engine whose GPU is lent for each session, in a thread and in a forked process."""

import pytest
from helpers.gpu_visits import both_ways, visiting
from helpers.streams import alone, assert_same, frames, push_by_turns
from helpers.waiting import PATIENCE, wait_for

from live2diff.errors import EngineBusy, GpuSessionOver
from live2diff.serving.admission import WaitingLine
from live2diff.streaming.settings import StreamSettings
from live2diff.zerogpu.engine import ZeroGpuEngine


@both_ways
def test_a_gpu_session_translates_what_is_pushed_and_names_the_frame_that_is_shown(engine, tiny_pipeline):
    clip = frames(1, 11)
    assert engine.open("ann", StreamSettings(style="pencil", seed=1)).result(PATIENCE) == ""
    assert engine.time_left("ann") is None
    with visiting(engine, "ann"):
        answers = [engine.push("ann", frame, tag=tag).result(PATIENCE) for tag, frame in enumerate(clip)]
        assert 0 < engine.time_left("ann") <= engine.gpu_seconds
        stats = engine.stats()
    expected = alone(tiny_pipeline, clip, style="pencil", seed=1)  # but the last, in flight
    assert_same([out for answer in answers for out in answer.frames], expected)
    assert [answer.tag for answer in answers] == [None] * 7 + [7, None, 8, 9]
    assert [answer.frames_in for answer in answers] == list(range(1, 12))
    assert answers[-1].warm
    assert (stats["streams"], stats["clips"], stats["capacity"]) == (1, 0, 3)
    assert stats["fps"] > 0 and 0 < stats["delay_p50"] <= stats["delay_p95"]


def test_before_the_gpu_session_only_the_newest_frame_waits_and_the_others_warm_it_up(engine, tiny_pipeline):
    clip = frames(2, 12)
    engine.open("ann", StreamSettings(style="pencil", steps=1)).result(PATIENCE)
    waiting = [engine.push("ann", frame, tag=tag) for tag, frame in enumerate(clip[:9])]
    assert engine.stats()["dropped"] == 8 and len(set(map(id, waiting))) == 1
    with visiting(engine, "ann"):
        answer = waiting[0].result(PATIENCE)
        assert (answer.tag, answer.warm, len(answer.frames)) == (None, True, 8) or answer.tag == 8
        assert engine.push("ann", clip[9], tag=9).result(PATIENCE).tag == 9


def test_prompt_style_and_restart_reach_a_gpu_session_that_runs(engine, tiny_pipeline):
    clip = frames(3, 12)
    engine.open("ann", StreamSettings(style="pencil", steps=1, seed=1))
    assert engine.update("ann", StreamSettings(style="pencil", prompt="a dog")).result(PATIENCE) == ""
    with visiting(engine, "ann"):
        for frame in clip[:8]:
            engine.push("ann", frame).result(PATIENCE)
        assert (
            engine.update("ann", StreamSettings(style="neon", prompt="a dog"), blend=1).result(PATIENCE) == ""
        )
        assert engine.update("ann", StreamSettings(prompt="word " * 300)).result(PATIENCE) != ""
        with pytest.raises(ValueError, match="no style"):
            engine.update("ann", StreamSettings(style="no such style")).result(PATIENCE)
        engine.update("ann", StreamSettings(style="neon", prompt="a cat"), blend=1).result(PATIENCE)
        changed = engine.push("ann", clip[8]).result(PATIENCE).frames
        engine.restart("ann").result(PATIENCE)
        assert engine.push("ann", clip[9]).result(PATIENCE).warm
        engine.open("ann", StreamSettings(style="ink", steps=2)).result(PATIENCE)  # in the same run
        assert engine.push("ann", clip[10]).result(PATIENCE).frames_in == 1
    stream = tiny_pipeline.stream(style="pencil", prompt="a dog", steps=1, seed=1)
    for frame in clip[:8]:
        stream.push(frame)
    stream.update(style="neon", prompt="a cat", blend=1)
    assert_same(changed, stream.push(clip[8]))


@both_ways
def test_a_gpu_session_that_is_over_is_continued_from_its_last_frames(tiny_pipeline, engine):
    clip = frames(4, 12)
    engine.open("ann", StreamSettings(style="pencil", steps=1, seed=1))
    with visiting(engine, "ann"):
        for frame in clip[:10]:
            engine.push("ann", frame).result(PATIENCE)
        engine.update("ann", StreamSettings(style="neon")).result(PATIENCE)
    assert engine.time_left("ann") == 0
    with pytest.raises(GpuSessionOver):
        engine.push("ann", clip[10])
    engine.open("ann", StreamSettings(style="neon", steps=1, seed=1)).result(PATIENCE)
    waiting = engine.push("ann", clip[10], tag=10)
    with visiting(engine, "ann"):
        continued = waiting.result(PATIENCE)
    assert (continued.tag, continued.warm, continued.frames_in) == (10, True, 9)
    assert_same(continued.frames, alone(tiny_pipeline, clip[2:11], style="neon", steps=1, seed=1)[-1:])
    with visiting(engine, "ann"):  # without opening it again: with the settings it had
        wait_for(lambda: engine.time_left("ann"))
        assert engine.push("ann", clip[11], tag=11).result(PATIENCE).tag == 11


@both_ways
def test_a_clip_comes_out_as_from_a_stream_of_its_own(engine, tiny_pipeline):
    clip = frames(8, 12)
    with engine.clip("ann/clip", StreamSettings(style="pencil", seed=1), frames=600) as stream:
        assert engine.stats()["clips"] == 1
        outs = [out for frame in clip for out in stream.push(frame)] + stream.flush()
    assert_same(outs, alone(tiny_pipeline, clip, flush=True, style="pencil", seed=1))
    assert engine.stats()["clips"] == 0


@both_ways
def test_a_large_clip_keeps_its_size(engine):
    large = frames(9, 3, height=1400, width=1300)
    with engine.clip("ann/clip", StreamSettings(style="pencil", steps=1), frames=600) as stream:
        outs = [out for frame in large for out in stream.push(frame)] + stream.flush()
    assert [out.shape for out in outs] == [(1400, 1300, 3)] * 3


def test_two_viewers_at_once_have_each_their_own(engine, tiny_pipeline):
    settings = {"ann": {"style": "pencil", "seed": 1}, "bob": {"style": "neon", "prompt": "a cat", "seed": 2}}
    clips = {"ann": frames(13, 9), "bob": frames(14, 9)}
    for key in clips:
        engine.open(key, StreamSettings(**settings[key]))
    with visiting(engine, "ann"), visiting(engine, "bob"):
        outs = push_by_turns(engine, clips)
    for key in clips:
        assert_same(outs[key], alone(tiny_pipeline, clips[key], **settings[key]))


def test_it_works_behind_a_waiting_line(tiny_pipeline):
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, gpu_seconds=30.0)
    line = WaitingLine(engine)
    assert line.join("ann").position == 0
    engine.open("ann", StreamSettings(style="pencil"))
    assert line.join("bob").position == 1
    with pytest.raises(EngineBusy):
        engine.open("bob", StreamSettings(style="pencil"))
    with visiting(engine, "ann"):
        wait_for(lambda: engine.time_left("ann"))
        assert 0 < line.time_left("ann") <= 30.0
    assert line.time_left("ann") == 0
    line.leave("ann")
    assert line.join("bob").position == 0
    engine.shutdown()
