"""Push noise through streams, and compare what comes out."""

import numpy as np

from live2diff.serving.sessions import EngineProtocol

from .waiting import PATIENCE


def frames(seed: int, count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return frames of noise."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def alone(pipe, clip: list[np.ndarray], flush: bool = False, **settings) -> list[np.ndarray]:
    """Return what a stream of its own makes of a clip, the frames in flight with `flush` only."""
    stream = pipe.stream(**settings)
    return [out for frame in clip for out in stream.push(frame)] + (stream.flush() if flush else [])


def push_by_turns(engine: EngineProtocol, clips: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Push the frames of several viewers, one of each at a time; return all results of each."""
    outs: dict[str, list[np.ndarray]] = {key: [] for key in clips}
    for frames_at_once in zip(*clips.values(), strict=True):
        answers = [engine.push(key, frame) for key, frame in zip(clips, frames_at_once, strict=True)]
        for key, answer in zip(clips, answers, strict=True):
            outs[key] += answer.result(PATIENCE).frames
    return outs


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Check that the images are the same to the bit."""
    assert len(first) == len(second) > 0
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)
