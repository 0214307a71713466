"""Streams pushed together give what each gives alone, also if memory runs out."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from live2diff import Live2DiffPipeline, Stream
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.steps import StepResult, push_together

TURNS = 18


def clip(seed: int, count: int, side: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def alone(pipeline, frames: list[np.ndarray], **settings) -> np.ndarray:
    stream = pipeline.stream(**settings)
    return np.stack([out for frame in frames for out in stream.push(frame)])


def check_same(images: list[np.ndarray], expected: np.ndarray) -> None:
    """Check that images differ by no more than the rounding of sums in another order."""
    differing = np.abs(np.stack(images).astype(int) - expected)
    assert differing.max() <= 1
    assert differing.mean() < 1e-2


@pytest.mark.parametrize("steps", [1, 3])
def test_streams_pushed_together_give_what_each_gives_alone(tiny_pipeline, steps):
    """One leaves, one pauses and one comes late, without changing the images of the others."""
    is_there = (lambda turn: turn < 14, lambda turn: turn % 4, lambda turn: turn > 1)
    pools, clips = CachePools(), [clip(seed, TURNS) for seed in range(3)]
    settings = [
        {"style": style, "seed": seed, "steps": steps} for seed, style in enumerate(("pencil", "neon", "oil"))
    ]
    streams = [tiny_pipeline.stream(**values, pools=pools) for values in settings]
    pushed, outs, largest = [0] * 3, [[] for _ in range(3)], 0
    for turn in range(TURNS):
        if turn == 14:
            streams[0].close()
        there = [number for number in range(3) if is_there[number](turn)]
        cold = [[number] for number in there if not streams[number].warm]
        warm = [number for number in there if streams[number].warm]
        for together in [*cold, warm] if warm else cold:
            pending = [streams[number].receive(clips[number][pushed[number]]) for number in together]
            for number, out in zip(together, push_together(pending), strict=True):
                outs[number] += out
                pushed[number] += 1
            largest = max(largest, len(together))
    assert largest == 3
    for number in range(3):
        check_same(outs[number], alone(tiny_pipeline, clips[number][: pushed[number]], **settings[number]))


def test_streams_of_other_sizes_or_steps_do_not_share_a_pool(tiny_pipeline):
    pools = CachePools()
    streams = [
        tiny_pipeline.stream(pools=pools, steps=steps, size=size)
        for steps, size in ((1, 32), (2, 32), (1, 48))
    ]
    same = tiny_pipeline.stream(pools=pools, steps=1, size=32)
    for stream in (*streams, same):
        for frame in clip(0, 8):
            stream.push(frame)
    assert len({stream.pool for stream in streams}) == 3
    assert same.pool is streams[0].pool and len(same.pool) == 2
    leased = [stream.pool for stream in streams]
    for stream in (*streams, same):
        stream.close()
    assert [len(pool) for pool in leased] == [0] * 3


class Shortage:
    """Call a method of the pipeline; raise out-of-memory once, at a call that `applies`."""

    def __init__(self, call, applies) -> None:
        self.call, self.applies, self.happened = call, applies, False

    def __call__(self, *arguments):
        if not self.happened and self.applies(*arguments):
            self.happened = True
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.call(*arguments)


def varying_depth(images: torch.Tensor) -> torch.Tensor:
    """Return depth whose extremes differ from frame to frame; that of the tiny model is constant."""
    return images.mean(dim=1) * (1 + images.mean(dim=(1, 2, 3)).abs() * 50)[:, None, None]


@pytest.fixture
def warm_pair(tiny_pipeline) -> Iterator[list[Stream]]:
    pools = CachePools()
    streams = [tiny_pipeline.stream(seed=seed, steps=2, pools=pools) for seed in (0, 1)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_pipeline, "inverse_depth", varying_depth)
        for seed, stream in enumerate(streams):
            for frame in clip(seed, 10):
                stream.push(frame)
        yield streams
    for stream in streams:
        stream.close()


def push_pair(streams: list[Stream], turn: int) -> list[StepResult]:
    return push_together([stream.receive(clip(seed, TURNS)[turn]) for seed, stream in enumerate(streams)])


@pytest.mark.parametrize("network", ["inverse_depth", "encode", "predict", "decode"])
def test_out_of_memory_for_a_batch_processes_its_streams_one_by_one_and_changes_nothing(
    tiny_pipeline, warm_pair, monkeypatch, network
):
    """Not even the depth range, which moves with every frame."""
    shortage = Shortage(getattr(tiny_pipeline, network), lambda images, *rest: len(images) > 1)
    outs: list[list[np.ndarray]] = [[], []]
    for turn in range(10, TURNS):
        if turn == 12:
            monkeypatch.setattr(tiny_pipeline, network, shortage)
        for out, result in zip(outs, push_pair(warm_pair, turn), strict=True):
            out += result
    assert shortage.happened
    for seed, (stream, out) in enumerate(zip(warm_pair, outs, strict=True)):
        assert (stream.frames_in, stream.frames_out) == (TURNS, TURNS - 1)
        single = tiny_pipeline.stream(seed=seed, steps=2)
        check_same(out, np.stack([o for frame in clip(seed, TURNS) for o in single.push(frame)])[-len(out) :])
        for side in ("low", "high"):
            range_ends = [getattr(s.state.depth_range, side) for s in (stream, single)]
            torch.testing.assert_close(*range_ends, atol=1e-6, rtol=1e-6)


def restarted(pipeline: Live2DiffPipeline, seed: int) -> tuple[list[np.ndarray], Stream]:
    """Push 10 frames, restart, push the rest; return the images after the restart."""
    stream = pipeline.stream(seed=seed, steps=2)
    frames = clip(seed, TURNS)
    for frame in frames[:10]:
        stream.push(frame)
    stream.restart()
    return [out for frame in frames[10:] for out in stream.push(frame)], stream


def test_out_of_memory_in_one_stream_s_restart_leaves_the_other_s_as_it_is(
    tiny_pipeline, warm_pair, monkeypatch
):
    """Each restart runs once: frames are counted once and the noise is the same as alone."""
    calls = iter(range(100))
    shortage = Shortage(tiny_pipeline.predict, lambda *inputs: next(calls) == 2)  # after 2 steps of the first
    for stream in warm_pair:
        stream.restart()
    monkeypatch.setattr(tiny_pipeline, "predict", shortage)
    kept, failed = push_pair(warm_pair, 10)
    monkeypatch.undo()
    assert shortage.happened and isinstance(failed, torch.OutOfMemoryError)
    assert warm_pair[0].frames_in == 11
    warm_pair[1].close()
    out = kept + [image for turn in range(11, TURNS) for image in warm_pair[0].push(clip(0, TURNS)[turn])]
    expected, stream = restarted(tiny_pipeline, 0)
    check_same(out, np.stack(expected))
    assert warm_pair[0].frames_in == stream.frames_in == TURNS


def test_out_of_memory_while_one_stream_recovers_counts_no_frame_twice(tiny_pipeline, warm_pair, monkeypatch):
    for row in warm_pair[1].state.rows:
        if row is not None:
            row.latents.fill_(torch.nan)
    shortage = Shortage(tiny_pipeline.predict, lambda *inputs: inputs[4].frames > 1)  # the warmup's window
    monkeypatch.setattr(tiny_pipeline, "predict", shortage)
    kept, failed = push_pair(warm_pair, 10)
    assert shortage.happened and isinstance(failed, torch.OutOfMemoryError)
    assert len(kept) == 1 and (warm_pair[0].frames_in, warm_pair[0].frames_out) == (11, 10)
