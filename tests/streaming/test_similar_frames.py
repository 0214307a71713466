"""Frames that hardly change are skipped, and the last output is returned again."""

import numpy as np
import pytest

from live2diff.streaming.settings import StreamSettings
from live2diff.streaming.similar_frames import MOST_SKIPPED, SimilarFrameFilter
from live2diff.streaming.steps import push_together

SETTINGS = {"steps": 2, "seed": 3, "style": "pencil", "scene_cut": None}


def frame(seed: int, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def outputs(stream, frames: list[np.ndarray]) -> list[np.ndarray]:
    return [out for image in frames for out in stream.push(image)]


def test_equal_frames_are_skipped_ten_times_in_a_row():
    similar = SimilarFrameFilter(0.98)
    skipped = [similar.skips(frame(0)) for _ in range(2 * (MOST_SKIPPED + 1))]
    assert skipped == ([False] + [True] * MOST_SKIPPED) * 2


def test_frames_are_skipped_the_more_often_the_more_similar_they_are():
    rates = []
    for amplitude in (0, 4, 7, 9, 60):
        similar, skipped = SimilarFrameFilter(0.98, seed=1), 0
        for number in range(200):
            noise = np.random.default_rng(number).normal(0, amplitude, (64, 64, 3))
            skipped += similar.skips(np.clip(frame(0, (64, 64)) + noise, 0, 255).astype(np.uint8))
        rates.append(skipped / 200)
    assert rates[0] > 0.9 > rates[1] > rates[2] > 0 and rates[-1] == 0
    assert rates == sorted(rates, reverse=True)


def test_the_filter_is_seeded_and_none_turns_it_off():
    def skipped(**options) -> list[bool]:
        similar, random = SimilarFrameFilter(**options), np.random.default_rng(0)
        base = random.integers(0, 256, (64, 64, 3))
        noisy = (base + random.normal(0, 7, (40, 64, 64, 3))).clip(0, 255).astype(np.uint8)
        return [similar.skips(image) for image in noisy]

    assert (
        skipped(threshold=0.98, seed=-5)
        == skipped(threshold=0.98, seed=-5)
        != skipped(threshold=0.98, seed=2)
    )
    assert not any(skipped(threshold=None))


def test_a_skipped_frame_returns_the_last_output_and_every_frame_one_output(tiny_pipeline):
    stream = tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98)
    outs = outputs(stream, [frame(number) for number in range(12)])
    assert len(outs) == 11
    for _ in range(MOST_SKIPPED):
        (again,) = stream.push(frame(11))
        np.testing.assert_array_equal(again, outs[-1])
        again.fill(0)  # the caller's own copy
    (following,) = stream.push(frame(11))  # the eleventh is used
    assert (following != outs[-1]).any()
    assert stream.frames_in == 12 + MOST_SKIPPED + 1 == stream.frames_out + 1
    assert len(stream.flush()) == 1


def test_what_a_caller_draws_on_an_image_is_not_shown_again(tiny_pipeline):
    stream = tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98)
    last = outputs(stream, [frame(number) for number in range(12)])[-1]
    expected = last.copy()
    last.fill(0)
    np.testing.assert_array_equal(stream.push(frame(11))[0], expected)
    plain = tiny_pipeline.stream(**SETTINGS)
    outputs(plain, [frame(number) for number in range(12)])
    assert plain.state.similar.last_output is None  # none is ever shown again


def test_a_stream_without_skipped_frames_gives_the_same_with_and_without_the_filter(tiny_pipeline):
    frames = [frame(number) for number in range(14)]
    plain = outputs(tiny_pipeline.stream(**SETTINGS), frames)
    filtered = outputs(tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98), frames)
    np.testing.assert_array_equal(np.stack(plain), np.stack(filtered))


def test_skipped_frames_do_not_change_the_others(tiny_pipeline):
    frames = [frame(number) for number in range(14)]
    plain = outputs(tiny_pipeline.stream(**SETTINGS), frames)
    stream = tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98)
    outs = outputs(stream, frames[:10])
    assert len(outputs(stream, [frames[9]] * 3)) == 3  # skipped
    outs += outputs(stream, frames[10:])
    np.testing.assert_array_equal(np.stack(plain), np.stack(outs))


def test_an_update_or_restart_takes_effect_at_once_and_sizes_stay_those_of_the_input(tiny_pipeline):
    stream = tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98)
    outputs(stream, [frame(0)] * 12)
    last = stream.push(frame(0))[0]
    stream.update(prompt="a cat", blend=0)
    assert stream.state.prompt.frames_left == 1
    stream.push(frame(0))
    assert stream.state.prompt.frames_left == 0  # the frame was used
    stream.restart()
    stream.push(frame(0))
    assert not stream.state.restart_due
    wide = np.repeat(frame(0), 2, axis=1)
    shapes = [out.shape for out in outputs(stream, [wide] * 4)]
    assert shapes[0] == last.shape and set(shapes[1:]) == {wide.shape}


def test_streams_pushed_together_skip_each_on_its_own(tiny_pipeline):
    still, moving = (tiny_pipeline.stream(**SETTINGS, similar_frame_skip=0.98) for _ in range(2))
    for number in range(10):
        still.push(frame(0))
        moving.push(frame(number))
    last = still.state.similar.last_output
    for number in range(10, 13):
        results = push_together([still.receive(frame(0)), moving.receive(frame(number))])
        assert [len(result) for result in results] == [1, 1]
        np.testing.assert_array_equal(results[0][0], last)
    assert (still.frames_out, moving.frames_out) == (13, 12)  # nothing of the still one is in flight


def test_the_threshold_lies_between_0_and_1():
    for wrong in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(ValueError, match="similar_frame_skip"):
            StreamSettings(similar_frame_skip=wrong)
