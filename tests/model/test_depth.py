"""The depth range follows a stream, and weights are standardized once, not in each frame."""

from copy import deepcopy

import pytest
import torch
from helpers.checkpoints import build_tiny_hybrid_dpt
from torch.testing import assert_close

from live2diff.model.depth import RANGE_RATE, DepthRange, inverse_depth, standardize_weights


def background(seed: int = 0) -> torch.Tensor:
    """Return depth `[1, 64, 64]` from 1 to 2."""
    depth = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(seed)) + 1
    depth[0, 0, 0], depth[0, -1, -1] = 1.0, 2.0
    return depth


def followed(low: float, high: float, frames: torch.Tensor) -> tuple[float, float]:
    """Move a range a twentieth towards each frame's, without widening it quickly."""
    for frame in frames:
        low = low + RANGE_RATE * (float(frame.min()) - low)
        high = high + RANGE_RATE * (float(frame.max()) - high)
    return low, high


def test_the_first_frames_fill_the_range():
    normalised = DepthRange().normalise(background() * 300)
    assert normalised.min() == -1 and normalised.max() == 1


def test_an_object_that_comes_close_suddenly_is_hardly_clamped_after_five_frames():
    """The object exceeds the range of the background by 1, 2 and 8 times its width, on either side."""
    for nearest in (3.0, 4.0, 10.0):
        for sign in (1, -1):
            depth_range, depth = DepthRange(), sign * background()
            depth_range.normalise(depth)
            nearer = depth.clone()
            nearer[0, 16:48, 16:48] = sign * torch.linspace(2 + 0.2 * (nearest - 2), nearest, 1024).view(
                32, 32
            )
            clamped = []
            for _ in range(6):
                normalised = sign * depth_range.normalise(nearer)
                clamped.append(float((normalised[0, 16:48, 16:48] >= 1).float().mean()))
            assert clamped[0] > 0.3  # it does not jump: the rest of the image would flicker
            assert clamped[4] <= 0.1, (nearest, sign, clamped)
            assert clamped == sorted(clamped, reverse=True)


def test_noise_does_not_widen_the_range_quickly():
    """Extremes that vary by 2 % of the range move it as slowly as those within it."""
    generator = torch.Generator().manual_seed(1)
    depth_range, depth = DepthRange(), background()
    depth_range.normalise(depth)
    noisy = []
    for _ in range(100):
        frame = depth.clone()
        frame[0, 0, 0] += 0.02 * float(torch.rand(1, generator=generator) - 0.5)
        frame[0, -1, -1] += 0.02 * float(torch.rand(1, generator=generator) - 0.5)
        noisy.append(frame)
        depth_range.normalise(frame)
    low, high = followed(1.0, 2.0, torch.stack(noisy))
    assert abs(float(depth_range.low) - low) < 1e-6 and abs(float(depth_range.high) - high) < 1e-6
    assert abs(low - 1) < 0.005 and abs(high - 2) < 0.005


def test_the_range_narrows_slowly():
    depth_range, depth = DepthRange(), background()
    depth_range.normalise(depth * 3)
    for _ in range(5):
        depth_range.normalise(depth)
    low, high = followed(3.0, 6.0, depth.repeat(5, 1, 1))
    assert high > 4.9 and abs(float(depth_range.high) - high) < 1e-5
    assert depth_range.low < low  # which is a widening


@pytest.mark.parametrize("times", [1, 2], ids=["once", "saved and loaded"])
def test_weights_standardized_once_give_the_same_depth(times, monkeypatch):
    torch.manual_seed(0)
    estimator = build_tiny_hybrid_dpt().eval()
    frames = torch.rand(2, 3, 48, 80) * 2 - 1
    with torch.no_grad():
        expected = inverse_depth(estimator, frames)
        for _ in range(times):
            loaded = build_tiny_hybrid_dpt().eval()
            loaded.load_state_dict(estimator.state_dict())
            standardize_weights(estimator := loaded)
        monkeypatch.setattr(torch.nn.functional, "batch_norm", None)  # by which the library does it
        assert_close(inverse_depth(estimator, frames), expected, rtol=1e-4, atol=1e-5)


def test_weights_are_standardized_only_once():
    estimator = build_tiny_hybrid_dpt()
    standardize_weights(estimator)
    before = deepcopy(estimator.state_dict())
    standardize_weights(estimator)
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())
