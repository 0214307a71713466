"""The nano model's depth estimator: a small DPT, taught on the clips' own depth."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import DPTConfig, DPTForDepthEstimation

from ..depth import inverse_depth
from .data import sample_clip
from .loop import Losses, fit
from .vae import picture_loss, to_tensor


def build_depth_estimator() -> DPTForDepthEstimation:
    """An untrained DPT for 128 x 128 pictures: four layers of width 96 on patches of 16."""
    config = DPTConfig(
        image_size=128,
        patch_size=16,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[24, 48, 96, 96],
        reassemble_factors=[4, 2, 1, 0.5],
        fusion_hidden_size=24,
        use_auxiliary_head=False,
    )
    return DPTForDepthEstimation(config)


def train_depth(
    estimator: DPTForDepthEstimation, folder: Path, *, steps: int, seed: int = 0
) -> Iterator[tuple[int, Losses]]:
    """Fit the estimator to inverse depth in `[0, 1]`: error of the values and, for edges, of their
    differences."""

    def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = np.random.default_rng([seed, 2, step])
        clips = [sample_clip(random, 128, frames=1) for _ in range(12)]
        pictures, depth = (np.concatenate(part) for part in zip(*clips, strict=True))
        return to_tensor(pictures), torch.from_numpy(depth)

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, Losses]:
        pictures, depth = batch
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
    )
