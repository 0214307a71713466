"""Blur and cross out images that Stable Diffusion's safety checker flags."""

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from torch.nn import functional
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..weights.hub import find

CHECKER = "CompVis/stable-diffusion-safety-checker"
ABOUT = " A content filter checks every image; what it objects to is blurred and crossed out."
BLURRED_SIDE = 6  # pixels to which the longer side of a hidden image is reduced


class ContentFilter:
    """Hide flagged images; all images are `[n, 3, height, width]` in about `[-1, 1]`."""

    def __init__(self, checker: StableDiffusionSafetyChecker) -> None:
        self.checker = checker.eval()
        self._side = checker.config.vision_config.image_size
        self._mean, self._std = (
            torch.tensor(values, device=checker.device)[:, None, None]
            for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images, with flagged ones hidden."""
        return torch.where(self.flagged(images)[:, None, None, None], hide(images), images)

    @torch.no_grad()
    def flagged(self, images: torch.Tensor) -> torch.Tensor:
        """Return for each image whether the checker flags it, bool `[n]`."""
        # `forward` waits for the GPU at each number, and logs each image.
        inputs = self.preprocess(images)
        return self.checker.forward_onnx(inputs, torch.empty(len(inputs), device=inputs.device))[1]

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        """Preprocess images as CLIP does, but squash them instead of cropping, so that all is checked."""
        inputs = (images.float().clamp(-1, 1) + 1) / 2
        inputs = functional.interpolate(inputs, (self._side, self._side), mode="bilinear", antialias=True)
        return ((inputs - self._mean) / self._std).to(self.checker.dtype)


def hide(images: torch.Tensor) -> torch.Tensor:
    """Blur images and cross them out."""
    height, width = images.shape[-2:]
    rows, columns = (max(1, round(BLURRED_SIDE * side / max(height, width))) for side in (height, width))
    blurred = functional.adaptive_avg_pool2d(images.float(), (rows, columns))
    blurred = functional.interpolate(blurred, (height, width), mode="bilinear")
    down = torch.linspace(-1, 1, height, device=images.device)[:, None]
    across = torch.linspace(-1, 1, width, device=images.device)
    cross = (down.abs() - across.abs()).abs() < 0.03
    return torch.where(cross, 1.0, blurred).to(images.dtype)


def load_content_filter(device: torch.device | str, dtype: torch.dtype, name: str) -> ContentFilter:
    """Load the filter from a folder or a Hub name.

    Raises:
        ValueError, OSError: the weights cannot be found or downloaded.
    """
    folder = find(name)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, dtype=dtype, local_files_only=True)
    nn.Module.to(checker, device)  # in place
    return ContentFilter(checker)
