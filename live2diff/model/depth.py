"""Estimate the depth of frames and normalise it to a range that follows the stream."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DPTForDepthEstimation
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d

RANGE_RATE = 0.05  # how far the range moves towards each frame's; a change takes about a second
WIDENING_RATE = 0.5  # the same where a frame exceeds the range by more than the margin
WIDENING_MARGIN = 0.02  # of the range; a smaller excess is noise and must not move the range back and forth


@dataclass
class DepthRange:
    """Running minimum and maximum of a stream's inverse depth, slow to narrow and quick to widen.

    Normalising each frame by its own extremes, as the published code does, makes the depth flicker. A range
    that widened slowly would clamp whatever comes close to a flat surface.
    """

    low: Tensor | None = None
    high: Tensor | None = None

    def normalise(self, depth: Tensor) -> Tensor:
        """Move the range towards that of inverse depth `[frames, h, w]`; return the depth in `[-1, 1]`."""
        low, high = depth.amin(), depth.amax()
        if self.low is not None and self.high is not None:
            margin = WIDENING_MARGIN * (self.high - self.low)
            low = torch.lerp(self.low, low, RANGE_RATE).minimum(
                torch.lerp(self.low, low + margin, WIDENING_RATE)
            )
            high = torch.lerp(self.high, high, RANGE_RATE).maximum(
                torch.lerp(self.high, high - margin, WIDENING_RATE)
            )
        self.low, self.high = low, high
        span = (high - low).clamp(min=1e-6)
        return ((depth - low) / span).clamp(0, 1) * 2 - 1


class StandardizedConv2d(WeightStandardizedConv2d):
    """A weight-standardized convolution whose weights were standardized in advance, not in each call."""

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Pad and convolve `[n, C, h, w]`."""
        return nn.Conv2d.forward(self, self.pad(hidden_state) if self.pad is not None else hidden_state)


def standardize_weights(estimator: nn.Module) -> None:
    """Standardize the weights of a hybrid DPT in place, in float32; calling it again changes nothing."""
    for module in estimator.modules():
        if type(module) is WeightStandardizedConv2d:
            rows = module.weight.detach().float().flatten(1)
            variance, mean = torch.var_mean(rows, dim=1, keepdim=True, correction=0)
            rows = (rows - mean) * torch.rsqrt(variance + module.eps)
            module.weight.data = rows.view_as(module.weight).to(module.weight.dtype)
            module.__class__ = StandardizedConv2d


def inverse_depth(estimator: DPTForDepthEstimation, frames: Tensor) -> Tensor:
    """Estimate inverse depth `[n, H, W]`, at the estimator's size, of images `[n, 3, h, w]` in `[-1, 1]`."""
    size: Any = estimator.config.image_size
    pixels = functional.interpolate(frames, (size, size), mode="bilinear", antialias=False)
    return estimator(pixels.to(estimator.dtype)).predicted_depth.float()


def depth_pictures(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert normalised depth `[frames, H, W]` to images `[frames, 3, h, w]` of `size`, for the VAE."""
    images = functional.interpolate(depth[:, None], size, mode="bilinear", antialias=False)
    return images.expand(-1, 3, -1, -1)
