"""Push noise through streams, and compare what comes out."""

import numpy as np


def frames(seed: int, count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return frames of noise."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def alone(pipe, clip: list[np.ndarray], flush: bool = False, **settings) -> list[np.ndarray]:
    """Return what a stream of its own makes of a clip, the frames in flight with `flush` only."""
    stream = pipe.stream(**settings)
    return [out for frame in clip for out in stream.push(frame)] + (stream.flush() if flush else [])


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Check that the images are the same to the bit."""
    assert len(first) == len(second) > 0
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)
