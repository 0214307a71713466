"""Depth of a frame as a picture, in a range that follows the stream."""

from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DPTForDepthEstimation

# how far the range moves towards each new frame's own: a twentieth, about a second to follow a change
RANGE_RATE = 0.05


@dataclass
class DepthRange:
    """The lowest and the highest inverse depth of a stream, followed slowly.

    Normalising each frame by its own extremes, as the published code does, makes the depth picture flicker.
    """

    low: torch.Tensor | None = None
    high: torch.Tensor | None = None

    def normalise(self, depth: torch.Tensor) -> torch.Tensor:
        """Inverse depth `[frames, h, w]` of any scale to `[-1, 1]`, after moving the range towards these
        frames."""
        low, high = depth.amin(), depth.amax()
        if self.low is None:
            self.low, self.high = low, high
        else:
            self.low = torch.lerp(self.low, low, RANGE_RATE)
            self.high = torch.lerp(self.high, high, RANGE_RATE)
        span = (self.high - self.low).clamp(min=1e-6)
        return ((depth - self.low) / span).clamp(0, 1) * 2 - 1


def inverse_depth(estimator: DPTForDepthEstimation, frames: torch.Tensor) -> torch.Tensor:
    """Inverse depth of `frames`, `[frames, 3, h, w]` in `[-1, 1]`, at the estimator's own size: `[frames, H,
    W]`."""
    size = estimator.config.image_size
    pixels = functional.interpolate(frames, (size, size), mode="bilinear", antialias=False)
    return estimator(pixels.to(estimator.dtype)).predicted_depth.float()


def depth_pictures(depth: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Normalised depth `[frames, H, W]` as pictures `[frames, 3, h, w]` of `size`, for the VAE."""
    pictures = functional.interpolate(depth[:, None], size, mode="bilinear", antialias=False)
    return pictures.expand(-1, 3, -1, -1)
