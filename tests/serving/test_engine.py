"""The engine: streams share nothing but the device, and are always freed."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from helpers.gpu_visits import Clock
from helpers.streams import alone, assert_same, frames, push_by_turns
from helpers.waiting import PATIENCE

from live2diff.errors import EngineBusy, NonFiniteError, StreamClosed
from live2diff.serving.engine import QUIET_SECONDS, Engine
from live2diff.serving.sessions import RATE_SECONDS, SessionRegistry
from live2diff.streaming import steps
from live2diff.streaming.settings import StreamSettings
from live2diff.styles import Style


@pytest.fixture
def engine(tiny_pipeline) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline, capacity=3)
    yield engine
    engine.shutdown()


@contextmanager
def held_device(pipe) -> Iterator[threading.Event]:
    """The UNet waits at its next call until the block ends; the event says that it has got there."""
    arrived, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        arrived.set()
        go_on.wait(PATIENCE)

    hook = pipe.unet.register_forward_pre_hook(wait)
    try:
        yield arrived
    finally:
        hook.remove()
        go_on.set()


def warm_up(engine: Engine, key: str, clip: list[np.ndarray]) -> None:
    for frame in clip[:8]:
        answer = engine.push(key, frame).result(PATIENCE)
    assert answer.warm and len(answer.frames) == 8


def test_two_viewers_who_take_turns_get_what_each_would_get_alone(engine, tiny_pipeline):
    settings = {"ann": {"style": "pencil", "seed": 1}, "bob": {"style": "neon", "prompt": "a cat", "seed": 2}}
    clips = {"ann": frames(1, 10), "bob": frames(2, 10)}
    for key in clips:
        engine.open(key, StreamSettings(**settings[key])).result(PATIENCE)
    outs = push_by_turns(engine, clips)
    for key in clips:
        assert_same(outs[key], alone(tiny_pipeline, clips[key], **settings[key]))


def test_while_a_frame_is_processed_only_the_newest_of_the_later_ones_waits(engine, tiny_pipeline):
    engine.open("ann", StreamSettings(style="pencil", steps=1)).result(PATIENCE)
    clip = frames(3, 12)
    warm_up(engine, "ann", clip)
    with held_device(tiny_pipeline) as arrived:
        working = engine.push("ann", clip[8], tag=8)
        assert arrived.wait(PATIENCE)
        waiting = [engine.push("ann", frame, tag=tag) for tag, frame in enumerate(clip[9:], start=9)]
    assert working.result(PATIENCE).tag == 8
    assert [answer.result(PATIENCE).tag for answer in waiting] == [11, 11, 11]
    assert engine.stats()["dropped"] == 2
    assert waiting[0].result().frames_in == 10


def test_an_answer_names_the_frame_it_shows_with_several_steps(engine):
    engine.open("ann", StreamSettings(style="pencil", steps=3)).result(PATIENCE)
    answers = [engine.push("ann", frame, tag=tag).result(PATIENCE) for tag, frame in enumerate(frames(4, 13))]
    assert [answer.tag for answer in answers] == [None] * 7 + [7, None, None, 8, 9, 10]


def test_a_stream_closed_during_a_frame_is_freed_and_the_device_goes_on(engine, tiny_pipeline):
    for key in ("ann", "bob"):
        engine.open(key, StreamSettings(style="pencil")).result(PATIENCE)
        warm_up(engine, key, frames(5, 8))
    stream = weakref.ref(engine.registry.get("ann").stream)
    with held_device(tiny_pipeline) as arrived:
        working = engine.push("ann", frames(6, 1)[0])
        assert arrived.wait(PATIENCE)
        waiting = engine.push("ann", frames(7, 1)[0])
        closed = engine.close("ann")
        assert engine.stats()["streams"] == 1
    closed.result(PATIENCE)
    working.result(PATIENCE)
    with pytest.raises(StreamClosed):
        waiting.result(PATIENCE)
    assert stream() is None, "the stream is still held by somebody"
    engine.close("ann").result(PATIENCE)  # again does no harm
    assert engine.push("bob", frames(8, 1)[0]).result(PATIENCE).warm


def test_a_silent_stream_is_freed_and_its_next_frame_says_so(tiny_pipeline):
    clock = Clock()
    engine = Engine(tiny_pipeline, idle_seconds=60.0, clock=clock)
    engine.open("ann", StreamSettings(style="pencil")).result(PATIENCE)
    clock.now += 60.0
    engine.close_idle(60.0)
    assert engine.session_keys() == {"ann"}
    clock.now += 1.0
    engine.close_idle(60.0)
    assert engine.session_keys() == set()
    with pytest.raises(StreamClosed):
        engine.push("ann", frames(9, 1)[0])
    engine.shutdown()


def test_a_viewer_too_many_is_refused_until_one_leaves_or_falls_silent(tiny_pipeline):
    clock = Clock()
    engine = Engine(tiny_pipeline, capacity=1, clock=clock)
    engine.open("ann", StreamSettings(style="pencil")).result(PATIENCE)
    with pytest.raises(EngineBusy, match="All 1 places are taken"):
        engine.open("bob", StreamSettings(style="pencil"))
    engine.open("ann", StreamSettings(style="neon")).result(PATIENCE)  # one's own place may be taken again
    engine.close("ann")
    engine.open("bob", StreamSettings(style="pencil")).result(PATIENCE)
    clock.now += QUIET_SECONDS + 1
    engine.open("cid", StreamSettings(style="pencil")).result(PATIENCE)
    assert engine.stats()["streams"] == 1
    engine.shutdown()


def test_an_error_of_one_viewer_does_not_affect_the_others(engine, tiny_pipeline):
    clip = frames(10, 10)
    engine.open("bob", StreamSettings(style="pencil", seed=3)).result(PATIENCE)
    outs = [out for frame in clip[:8] for out in engine.push("bob", frame).result(PATIENCE).frames]
    with pytest.raises(ValueError, match="no style"):
        engine.open("ann", StreamSettings(style="no such style")).result(PATIENCE)
    engine.open("ann", StreamSettings(style="pencil")).result(PATIENCE)
    with pytest.raises(ValueError, match="uint8"):
        engine.push("ann", clip[0].astype(np.float32)).result(PATIENCE)
    warm_up(engine, "ann", clip)
    hook = tiny_pipeline.unet.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.push("ann", clip[8]).result(PATIENCE)
    hook.remove()
    outs += [out for frame in clip[8:] for out in engine.push("bob", frame).result(PATIENCE).frames]
    assert_same(outs, alone(tiny_pipeline, clip, style="pencil", seed=3))
    assert engine.stats()["streams"] == 2


def test_style_and_prompt_change_while_it_runs_and_a_long_prompt_is_reported(engine):
    engine.open("ann", StreamSettings(style="pencil")).result(PATIENCE)
    warm_up(engine, "ann", frames(11, 8))
    assert engine.update("ann", StreamSettings(style="neon", prompt="a cat")).result(PATIENCE) == ""
    assert engine.update("ann", StreamSettings(prompt="word " * 300)).result(PATIENCE) != ""
    with pytest.raises(ValueError):
        engine.update("ann", StreamSettings(style="no such style")).result(PATIENCE)
    engine.restart("ann").result(PATIENCE)
    assert engine.push("ann", frames(12, 1)[0]).result(PATIENCE).warm


def test_a_clip_takes_turns_with_a_live_viewer_and_neither_changes_the_other(engine, tiny_pipeline):
    clip, live = frames(13, 10), frames(14, 10)
    engine.open("ann", StreamSettings(style="pencil", seed=5)).result(PATIENCE)

    def translate() -> list[np.ndarray]:
        with engine.clip("ann/clip", StreamSettings(style="neon", seed=6)) as stream:
            return [out for frame in clip for out in stream.push(frame)]

    with ThreadPoolExecutor(1) as clips:
        translated: Future = clips.submit(translate)
        outs = [out for frame in live for out in engine.push("ann", frame).result(PATIENCE).frames]
    assert_same(outs, alone(tiny_pipeline, live, style="pencil", seed=5))
    assert_same(translated.result(PATIENCE), alone(tiny_pipeline, clip, style="neon", seed=6))
    assert engine.stats()["clips"] == 0


def test_a_clip_that_is_closed_from_elsewhere_stops_and_is_freed(engine):
    with pytest.raises(StreamClosed), engine.clip("ann/clip", StreamSettings(style="pencil")) as stream:
        stream.push(frames(15, 1)[0])
        engine.close("ann/clip")
        stream.push(frames(15, 1)[0])
    assert engine.stats()["clips"] == 0


def test_fifty_viewers_who_come_and_go_leave_nothing_behind(engine):
    streams = []
    for number in range(50):
        key = f"viewer {number}"
        engine.open(key, StreamSettings(style="pencil")).result(PATIENCE)
        engine.push(key, frames(16, 1)[0]).result(PATIENCE)
        streams.append(weakref.ref(engine.registry.get(key).stream))
        engine.close(key).result(PATIENCE)
    assert [stream() for stream in streams] == [None] * 50
    assert engine.stats()["streams"] == 0


def test_stats_have_rate_and_delay(engine):
    assert engine.stats()["fps"] == engine.stats()["delay_p95"] == 0
    engine.open("ann", StreamSettings(style="pencil", steps=1)).result(PATIENCE)
    for frame in frames(17, 10):
        engine.push("ann", frame).result(PATIENCE)
    stats = engine.stats()
    assert stats["fps"] > 0 and 0 < stats["delay_p50"] <= stats["delay_p95"]
    assert (stats["streams"], stats["clips"], stats["capacity"]) == (1, 0, 3)
    assert engine.device == "cpu"


@pytest.mark.parametrize("rate", [100, 240])
def test_the_frame_rate_is_that_of_the_last_seconds_however_many_frames_they_have(rate):
    clock = Clock()
    registry = SessionRegistry(clock)
    for number in range(10 * rate):
        clock.now = 1000 + number / rate
        registry.finished.add(arrived=clock.now - 0.05)
    assert registry.stats()["fps"] == pytest.approx(rate, rel=0.01)
    assert registry.stats()["delay_p95"] == pytest.approx(0.05)
    clock.now += 2 * RATE_SECONDS
    assert registry.stats()["fps"] == 0
    registry.finished.add(arrived=clock.now)
    assert len(registry.finished) == 1, "what is not counted any more is not kept"


def test_downloads_of_one_style_keep_no_other_style_waiting(engine, tiny_pipeline, monkeypatch):
    go_on = threading.Event()
    for name in ("felt", "glass"):
        monkeypatch.setitem(
            tiny_pipeline.styles, name, Style(name, "{}", loras=((f"{name}.safetensors", 1.0),))
        )
    monkeypatch.setattr(tiny_pipeline, "fetch", lambda style: style == "glass" or go_on.wait(PATIENCE))
    waits = [engine.fetch("felt") for _ in range(20)]
    assert all(wait.cancel() for wait in waits[:10])
    try:
        assert all(engine.fetch(style).done() for style in (None, "", "pencil")), (
            "there is nothing to download"
        )
        engine.fetch("glass").result(PATIENCE)
        assert not any(wait.done() for wait in waits[10:])
    finally:
        go_on.set()
    for wait in waits[10:]:
        wait.result(PATIENCE)


@pytest.fixture
def together(tiny_pipeline) -> Iterator[Engine]:
    """As on a GPU: frames that wait at the same time are one batch."""
    engine = Engine(tiny_pipeline, capacity=4, together=True)
    yield engine
    engine.shutdown()


@contextmanager
def unet_rows(pipe) -> Iterator[list[int]]:
    """How many rows each call of the UNet has."""
    rows: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    try:
        yield rows
    finally:
        hook.remove()


def test_viewers_of_one_batch_each_get_what_they_would_get_alone(together, tiny_pipeline):
    keys = ("ann", "bob", "cid")
    clips = {key: frames(seed, 14) for seed, key in enumerate(keys)}
    settings = {key: {"style": "pencil", "seed": seed, "steps": 2} for seed, key in enumerate(keys)}
    outs: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for key in keys:
        together.open(key, StreamSettings(**settings[key])).result(PATIENCE)
        for frame in clips[key][:8]:
            outs[key] += together.push(key, frame).result(PATIENCE).frames
    for number in range(8, 14):
        answers = {key: together.push(key, clips[key][number], tag=(key, number)) for key in keys}
        for key, answer in answers.items():
            result = answer.result(PATIENCE)
            outs[key] += result.frames
            assert result.tag in (None, (key, number - 1))
    for key in keys:
        expected = np.stack(alone(tiny_pipeline, clips[key], **settings[key])).astype(int)
        assert np.abs(np.stack(outs[key]) - expected).max() <= 1


def test_frames_that_wait_while_the_device_is_busy_go_in_one_call(together, tiny_pipeline):
    keys = ("ann", "bob", "cid")
    for key in keys:
        together.open(key, StreamSettings(style="pencil", steps=2)).result(PATIENCE)
        warm_up(together, key, frames(1, 8))
    with unet_rows(tiny_pipeline) as rows:
        with held_device(tiny_pipeline) as arrived:
            answers = [together.push("ann", frames(2, 1)[0])]
            assert arrived.wait(PATIENCE)
            answers += [together.push(key, frames(3, 1)[0]) for key in ("bob", "cid")]
            answers.append(together.push("ann", frames(4, 1)[0], tag="newest"))
        for answer in answers:
            answer.result(PATIENCE)
    # Ann alone, then all three as two and one, of two rows each.
    assert rows == [2, 4, 2]


def test_a_frame_does_not_overtake_a_change_that_was_requested_before_it(together, tiny_pipeline):
    for key in ("ann", "bob"):
        together.open(key, StreamSettings(style="pencil", steps=1)).result(PATIENCE)
        warm_up(together, key, frames(1, 8))
    with unet_rows(tiny_pipeline) as rows:
        with held_device(tiny_pipeline) as arrived:
            working = together.push("ann", frames(2, 1)[0])
            assert arrived.wait(PATIENCE)
            together.push("ann", frames(3, 1)[0])
            changed = together.update("bob", StreamSettings(style="neon"))
            answer = together.push("bob", frames(4, 1)[0])
        assert changed.result(PATIENCE) == ""
        assert len(answer.result(PATIENCE).frames) == len(working.result(PATIENCE).frames) == 1
    assert rows == [1, 1, 1]


def test_a_bad_frame_in_a_batch_fails_only_for_its_own_viewer(together, tiny_pipeline):
    for key in ("ann", "bob"):
        together.open(key, StreamSettings(style="pencil", steps=1)).result(PATIENCE)
        warm_up(together, key, frames(1, 8))
    with held_device(tiny_pipeline) as arrived:
        together.push("bob", frames(2, 1)[0])
        assert arrived.wait(PATIENCE)
        bad = together.push("ann", np.zeros((4, 4), np.uint8))
        good = together.push("bob", frames(3, 1)[0])
    with pytest.raises(ValueError, match="uint8"):
        bad.result(PATIENCE)
    assert len(good.result(PATIENCE).frames) == 1


def test_an_error_while_one_stream_of_a_batch_is_dropped_does_not_affect_the_others(
    together, tiny_pipeline, monkeypatch
):
    for key in ("ann", "bob"):
        together.open(key, StreamSettings(style="pencil", steps=1)).result(PATIENCE)
        warm_up(together, key, frames(1, 8))
    ann, complete = together.registry.get("ann").stream, steps.complete
    monkeypatch.setattr(ann, "close", lambda: 1 / 0)

    def fail_for_ann(launched: steps.LaunchedBatch) -> list:
        results = zip(launched.states, complete(launched), strict=True)
        return [NonFiniteError("NaN") if state is ann.state else result for state, result in results]

    monkeypatch.setattr(steps, "complete", fail_for_ann)
    with held_device(tiny_pipeline) as arrived:
        together.push("bob", frames(2, 1)[0])
        assert arrived.wait(PATIENCE)
        bad, good = together.push("ann", frames(3, 1)[0]), together.push("bob", frames(3, 1)[0])
    with pytest.raises(NonFiniteError):
        bad.result(PATIENCE)
    assert len(good.result(PATIENCE).frames) == 1
    assert together.session_keys() == {"bob"}


def test_sessions_may_come_and_go_while_one_is_dropped(together, tiny_pipeline, monkeypatch):
    """The registry is read under its lock: another thread changes it in the middle."""
    together.open("ann", StreamSettings(style="pencil", steps=1)).result(PATIENCE)
    warm_up(together, "ann", frames(1, 8))
    original = steps.complete

    def fail(launched: steps.LaunchedBatch) -> list:
        for number in range(3):  # waits for the device: the places are given at once
            together.open(f"viewer {number}", StreamSettings(style="pencil", steps=1))
        original(launched)
        return [NonFiniteError("NaN")]

    monkeypatch.setattr(steps, "complete", fail)
    with pytest.raises(NonFiniteError):
        together.push("ann", frames(2, 1)[0]).result(PATIENCE)
    assert together.session_keys() == {"viewer 0", "viewer 1", "viewer 2"}
