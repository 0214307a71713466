"""Rounds of frames: one is computed while the next is launched, and results stay the same."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.streams import alone, assert_same, frames
from helpers.waiting import PATIENCE

from live2diff.errors import NonFiniteError, StreamClosed
from live2diff.serving.engine import Engine
from live2diff.streaming import images, steps
from live2diff.streaming.settings import StreamSettings

SETTINGS = {"style": "pencil", "steps": 2}


@pytest.fixture
def engine(tiny_pipeline) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline, capacity=4, together=True)
    yield engine
    engine.shutdown()


class SlowDevice:
    """The images of a round come when `ready` is set; counts the rounds that are launched."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.ready, self.launched, self.waiting = threading.Event(), threading.Semaphore(0), threading.Event()
        self.rounds: list[int] = []  # streams of each
        wait, launch = images.Download.wait, steps.launch

        def slow_wait(download: images.Download) -> object:
            self.waiting.set()
            assert self.ready.wait(PATIENCE)
            return wait(download)

        def counted_launch(pending: list[steps.PendingFrame]) -> steps.LaunchedBatch:
            launched = launch(pending)
            self.rounds.append(len(pending))
            self.launched.release()
            return launched

        patched.setattr(images.Download, "wait", slow_wait)
        patched.setattr(steps, "launch", counted_launch)

    def wait_for_launch(self) -> None:
        assert self.launched.acquire(timeout=PATIENCE)


def open_warm(engine: Engine, key: str, clip: list[np.ndarray]) -> list[np.ndarray]:
    """Open a stream and push 9 frames: it is warm, and a frame is in flight; return what came out."""
    engine.open(key, StreamSettings(**SETTINGS)).result(PATIENCE)
    return [out for frame in clip[:9] for out in engine.push(key, frame).result(PATIENCE).frames]


def test_a_frame_is_launched_while_the_last_one_is_computed(engine, tiny_pipeline, monkeypatch):
    clip = frames(1, 13)
    shown = open_warm(engine, "ann", clip)
    device = SlowDevice(monkeypatch)
    first = engine.push("ann", clip[9])
    device.wait_for_launch()
    second = engine.push("ann", clip[10])
    device.wait_for_launch()  # although the first is not done
    assert not first.done() and not second.done()
    replaced = engine.push("ann", np.zeros_like(clip[0]))  # two are on the device: it waits,
    third = engine.push("ann", clip[11])  # and a newer one takes its place
    assert third is replaced
    device.ready.set()
    for answer in (first, second, third):
        shown += answer.result(PATIENCE).frames
    shown += engine.push("ann", clip[12]).result(PATIENCE).frames
    assert_same(shown, alone(tiny_pipeline, clip, **SETTINGS))


def test_viewers_of_a_round_are_one_batch(engine, tiny_pipeline, monkeypatch):
    clips = {"ann": frames(1, 11), "bob": frames(2, 11)}
    shown = {key: open_warm(engine, key, clip) for key, clip in clips.items()}
    device = SlowDevice(monkeypatch)
    blocker = engine.push("ann", clips["ann"][9])
    device.wait_for_launch()
    other = engine.push("bob", clips["bob"][9])
    device.wait_for_launch()
    last = {key: engine.push(key, clip[10]) for key, clip in clips.items()}  # both wait
    device.ready.set()
    shown["ann"] += blocker.result(PATIENCE).frames
    shown["bob"] += other.result(PATIENCE).frames
    for key, answer in last.items():
        shown[key] += answer.result(PATIENCE).frames
    assert device.rounds == [1, 1, 2]
    for key, clip in clips.items():
        for mine, expected in zip(shown[key], alone(tiny_pipeline, clip, **SETTINGS), strict=True):
            assert np.abs(mine.astype(int) - expected).max() <= 1


def test_a_change_comes_after_the_frames_before_it(engine, tiny_pipeline, monkeypatch):
    clip = frames(1, 12)
    shown = open_warm(engine, "ann", clip)
    device = SlowDevice(monkeypatch)
    before = engine.push("ann", clip[9])
    device.wait_for_launch()
    changed = engine.update("ann", StreamSettings(**SETTINGS | {"style": "neon"}), blend=1)
    device.ready.set()
    changed.result(PATIENCE)
    shown += before.result(PATIENCE).frames
    for frame in clip[10:]:
        shown += engine.push("ann", frame).result(PATIENCE).frames
    stream = tiny_pipeline.stream(**SETTINGS)
    expected = [out for frame in clip[:10] for out in stream.push(frame)]
    stream.update(style="neon", blend=1)
    assert_same(shown, expected + [out for frame in clip[10:] for out in stream.push(frame)])


def test_a_stream_closed_in_a_round_does_not_disturb_the_next_round(engine, monkeypatch):
    clips = {"ann": frames(1, 11), "bob": frames(2, 11)}
    for key, clip in clips.items():
        open_warm(engine, key, clip)
    of_ann, complete = engine.registry.get("ann").stream.state, steps.complete

    def fail_for_ann(launched: steps.LaunchedBatch) -> list[steps.StepResult]:
        results = zip(launched.states, complete(launched), strict=True)
        return [NonFiniteError("NaN") if state is of_ann else result for state, result in results]

    monkeypatch.setattr(steps, "complete", fail_for_ann)
    device = SlowDevice(monkeypatch)
    failing = engine.push("ann", clips["ann"][9])
    device.wait_for_launch()
    late, good = engine.push("ann", clips["ann"][10]), engine.push("bob", clips["bob"][9])
    device.wait_for_launch()
    device.ready.set()
    with pytest.raises(NonFiniteError):
        failing.result(PATIENCE)
    with pytest.raises(StreamClosed):
        late.result(PATIENCE)
    assert len(good.result(PATIENCE).frames) == 1
    assert engine.session_keys() == {"bob"}


def test_non_finite_values_are_replaced_in_rounds_launched_since(tiny_pipeline):
    clip = frames(1, 14)
    stream = tiny_pipeline.stream(**SETTINGS)
    for frame in clip[:10]:
        stream.push(frame)
    stream.state.cache.keys[0].fill_(float("nan"))
    launched = [steps.launch([stream.receive(frame)]) for frame in clip[10:12]]
    shown = [image for batch in launched for image in steps.unwrap(steps.complete(batch)[0])]
    shown += [image for frame in clip[12:] for image in stream.push(frame)]
    assert len(shown) == 4 and stream.frames_out == stream.frames_in - 1
    assert stream.state.counts.recovered_at > 0 and not stream.state.outputs.launched
    assert all(torch.isfinite(row.latents).all() for row in stream.state.rows if row)
    assert all(np.ptp(image) > 0 for image in shown)


def test_a_repeated_image_is_that_of_the_frame_before(tiny_pipeline):
    stream = tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98)
    clip = frames(1, 11)
    for frame in clip[:10]:
        stream.push(frame)
    launched = [steps.launch([stream.receive(frame)]) for frame in (clip[10], clip[10])]
    assert [len(batch.skipped) for batch in launched] == [0, 1]
    first, second = [steps.unwrap(steps.complete(batch)[0]) for batch in launched]
    assert_same(first, second)


def test_an_error_while_images_are_awaited_reaches_their_viewer(engine, monkeypatch):
    clip = frames(1, 11)
    open_warm(engine, "ann", clip)
    with monkeypatch.context() as patched:
        patched.setattr(images.Download, "wait", lambda download: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.push("ann", clip[9]).result(PATIENCE)
