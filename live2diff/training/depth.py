"""The nano model's depth estimator: a small DPT, taught on the clips' own depth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation

from ..model.depth import inverse_depth
from .clips import sample_clip, through_camera
from .loop import Losses, fit
from .vae import picture_loss, to_tensor


def build_depth_estimator() -> DPTForDepthEstimation:
    """An untrained DPT for 64 x 64 pictures: four layers of width 96 on patches of 8.

    The denoiser sees depth as latents of a few dozen cells a side; finer depth would be lost on it.
    """
    config = DPTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[24, 48, 96, 96],
        reassemble_factors=[2, 1, 0.5, 0.25],
        fusion_hidden_size=24,
        use_auxiliary_head=False,
    )
    return DPTForDepthEstimation(config)


def train_depth(
    estimator: DPTForDepthEstimation,
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Losses]]:
    """Fit the estimator to inverse depth in `[0, 1]`: error of the values and, for edges, of their
    differences."""

    def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng([seed, 2, step])
        clips = [sample_clip(random, 128, frames=4) for _ in range(4)]
        pictures = to_tensor(np.concatenate([through_camera(random, clip) for clip, _ in clips]))
        depth = torch.from_numpy(np.concatenate([depth for _, depth in clips]))
        side = estimator.config.image_size
        return pictures, functional.interpolate(depth[:, None], (side, side), mode="area")[:, 0]

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Losses]:
        pictures, depth = (part.to(device) for part in batch)
        loss = picture_loss(inverse_depth(estimator, pictures), depth)
        return loss, {"loss": loss.item()}

    return fit(
        "depth",
        estimator,
        batch_of,
        loss_of,
        estimator.parameters(),
        steps=steps,
        peak=1e-3,
        folder=folder,
        seed=seed,
        device=device,
    )
