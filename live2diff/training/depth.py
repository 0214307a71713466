"""The nano model's depth estimator: a small DPT, trained on the clips' true depth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation

from ..loading import NANO
from ..model.depth import inverse_depth
from .clips import sample_clip, through_camera
from .loop import LoopSettings, Losses, fit, share_of
from .vae import image_loss, to_tensor


def build_depth_estimator() -> DPTForDepthEstimation:
    """Return an untrained DPT of the shipped model's shape, for 64 x 64 images.

    The denoiser sees depth as latents of a few dozen cells a side: finer depth would make no difference.
    """
    return DPTForDepthEstimation(DPTConfig.from_pretrained(NANO / "depth_estimator", dtype=torch.float32))


def depth_loss(estimator: DPTForDepthEstimation, images: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """Return the error of inverse depth in `[0, 1]` and, to keep edges sharp, of its differences."""
    predicted = inverse_depth(estimator, images)
    target = functional.interpolate(depth[:, None], predicted.shape[1:], mode="area")[:, 0]
    return image_loss(predicted, target)


def train_depth(
    estimator: DPTForDepthEstimation, settings: LoopSettings, work: Path, accelerator: Accelerator
) -> Iterator[tuple[int, Losses]]:
    """Fit the estimator to the inverse depth of new clips at each step."""

    def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng([settings.seed, 2, step, accelerator.process_index])
        clips = [sample_clip(random, 128, frames=4) for _ in range(share_of(8, accelerator))]
        images = to_tensor(np.concatenate([through_camera(random, clip) for clip, _ in clips]))
        return images, torch.from_numpy(np.concatenate([depth for _, depth in clips]))

    def loss_of(estimator: DPTForDepthEstimation, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        images, depth = (part.to(accelerator.device) for part in batch)
        return {"loss": depth_loss(estimator, images, depth)}

    parameters = dict(estimator.named_parameters())
    return fit("depth", estimator, parameters, batch_of, loss_of, settings, work, accelerator)
