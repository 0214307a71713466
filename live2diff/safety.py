"""The content filter: Stable Diffusion's own safety checker looks at what goes out; what it objects to is
blurred beyond recognition and crossed out."""

from __future__ import annotations

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch.nn import functional
from transformers import CLIPImageProcessor

from .hub import find

CHECKER = "CompVis/stable-diffusion-safety-checker"
ABOUT = " A content filter looks at every picture; what it objects to is blurred and crossed out."
CELLS = 6  # what is left of a blurred picture's longer side


class ContentFilter:
    """From pictures `[n, 3, height, width]` in about `[-1, 1]` to the same, the bad ones hidden."""

    def __init__(self, checker: StableDiffusionSafetyChecker, processor: CLIPImageProcessor) -> None:
        self.checker = checker.eval()
        size = processor.crop_size
        self._size = (size["height"], size["width"])
        self._mean, self._deviation = (
            torch.tensor(values, device=checker.device, dtype=torch.float32)[:, None, None]
            for values in (processor.image_mean, processor.image_std)
        )

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.where(self.objects(pictures)[:, None, None, None], hidden(pictures), pictures)

    @torch.no_grad()
    def objects(self, pictures: torch.Tensor) -> torch.Tensor:
        """For each picture whether it is a bad one, `[n]`."""
        seen = (pictures.float().clamp(-1, 1) + 1) / 2
        # Squeezed rather than cropped to the checker's square: nothing at the sides escapes it.
        seen = functional.interpolate(seen, self._size, mode="bilinear", antialias=True)
        seen = ((seen - self._mean) / self._deviation).to(self.checker.dtype)
        # Not `forward`, which asks the GPU for one number after the other, and logs each picture.
        return self.checker.forward_onnx(seen, torch.empty(len(seen), device=seen.device))[1]


def hidden(pictures: torch.Tensor) -> torch.Tensor:
    """Blurred and crossed out; the cross is one in a mirror as well."""
    height, width = pictures.shape[-2:]
    cells = [max(1, round(CELLS * side / max(height, width))) for side in (height, width)]
    blurred = functional.adaptive_avg_pool2d(pictures.float(), cells)
    blurred = functional.interpolate(blurred, (height, width), mode="bilinear")
    down = torch.linspace(-1, 1, height, device=pictures.device)[:, None]
    across = torch.linspace(-1, 1, width, device=pictures.device)
    cross = (down.abs() - across.abs()).abs() < 0.03
    return torch.where(cross, 1.0, blurred).to(pictures.dtype)


def load_content_filter(device: str, dtype: torch.dtype, name: str = CHECKER) -> ContentFilter:
    """The filter with the weights in a folder or of a Hub name.

    Raises:
        ValueError, OSError: they cannot be had.
    """
    folder = find(name)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return ContentFilter(
        checker.to(device), CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    )
