"""The content filter: Stable Diffusion's own safety checker looks at what goes out; what it objects to is
blurred beyond recognition and crossed out."""

from __future__ import annotations

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch.nn import functional
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..weights.hub import find

CHECKER = "CompVis/stable-diffusion-safety-checker"
ABOUT = " A content filter looks at every picture; what it objects to is blurred and crossed out."
CELLS = 6  # what is left of a blurred picture's longer side


class ContentFilter:
    """From pictures `[n, 3, height, width]` in about `[-1, 1]` to the same, the bad ones hidden."""

    def __init__(self, checker: StableDiffusionSafetyChecker) -> None:
        self.checker = checker.eval()
        self._side = checker.config.vision_config.image_size
        self._mean, self._deviation = (
            torch.tensor(values, device=checker.device)[:, None, None]
            for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )

    @torch.no_grad()
    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.where(self.objects(pictures)[:, None, None, None], hidden(pictures), pictures)

    @torch.no_grad()
    def objects(self, pictures: torch.Tensor) -> torch.Tensor:
        """For each picture whether it is a bad one, `[n]`."""
        # Not `forward`, which asks the GPU for one number after the other, and logs each picture.
        seen = self.prepared(pictures)
        return self.checker.forward_onnx(seen, torch.empty(len(seen), device=seen.device))[1]

    def prepared(self, pictures: torch.Tensor) -> torch.Tensor:
        """As CLIP's image processor makes them, but squeezed to the checker's square rather than cropped:
        nothing at the sides escapes it."""
        seen = (pictures.float().clamp(-1, 1) + 1) / 2
        seen = functional.interpolate(seen, (self._side, self._side), mode="bilinear", antialias=True)
        return ((seen - self._mean) / self._deviation).to(self.checker.dtype)


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


def load_content_filter(device: torch.device | str, dtype: torch.dtype, name: str = CHECKER) -> ContentFilter:
    """The filter with the weights in a folder or of a Hub name.

    Raises:
        ValueError, OSError: they cannot be had.
    """
    folder = find(name)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return ContentFilter(checker.to(device))
