"""The nano model's tiny VAE: AutoencoderTiny, 4 times smaller on each side, 8 channels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from .data import sample_clip
from .loop import Losses, fit
from .targets import TARGETS


def build_vae() -> AutoencoderTiny:
    """An untrained VAE. 4x rather than SD's 8x: sharp after minutes of training instead of hours."""
    return AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(4, 1, 0),
        latent_channels=8,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 `[n, height, width, 3]` to float32 `[n, 3, height, width]` in `[-1, 1]`."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def sample_pictures(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """`count` pictures to compress: a third as the camera gives them, the others in a style or of depth."""
    pictures = []
    while len(pictures) < count:
        clip, depth = sample_clip(random, size, frames=2)
        styles = random.choice(list(TARGETS), 2, replace=False)
        other = (
            depth[1][..., None].repeat(3, 2) * 255 if random.random() < 0.4 else TARGETS[styles[1]](clip[1])
        )
        pictures += [clip[0], TARGETS[styles[0]](clip[0]), other.astype(np.uint8)]
    return np.stack(pictures[:count])


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pixels and, for sharp edges, of their differences across and down."""
    error = output - target
    across, down = error[..., :, 1:] - error[..., :, :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.7 * (across.abs().mean() + down.abs().mean())


def train_vae(
    vae: AutoencoderTiny, folder: Path, *, steps: int, seed: int = 0
) -> Iterator[tuple[int, Losses]]:
    """Fit the VAE. Latents are pulled to mean 0 and deviation 1 per channel, as the noise schedule takes them
    to be, and are disturbed before decoding, because the denoiser will hand the decoder latents that are
    slightly off."""
    vae.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> torch.Tensor:
        return to_tensor(sample_pictures(np.random.default_rng([seed, 1, step]), count=16, size=128))

    def loss_of(pictures: torch.Tensor) -> tuple[torch.Tensor, Losses]:
        latents = vae.encode(pictures).latents
        mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        spread = mean.square().mean() + (deviation - 1).square().mean()
        disturbed = latents + 0.08 * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        output = vae.decode(disturbed).sample
        loss = picture_loss(output, pictures)
        l1 = (output - pictures).abs().mean().item()
        return loss + 0.02 * spread, {"loss": loss.item(), "l1": l1, "spread": spread.item()}

    return fit(
        "vae", vae, batch_of, loss_of, vae.parameters(), steps=steps, peak=3e-3, folder=folder, seed=seed
    )
