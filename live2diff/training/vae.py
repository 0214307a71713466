"""The nano model's tiny VAE: AutoencoderTiny, 8 times smaller on each side, 32 channels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch.nn.functional import pixel_unshuffle

from ..loading import NANO
from ..model.depth import depth_pictures
from ..model.vae import decode, encode, patch_side
from ..streaming.images import upload
from .loop import LoopSettings, Losses, fit, share_of
from .losses import CELL, image_loss
from .pool import Pool

LIFT = 4.0  # standard deviations
SIDE = 128  # pixels of the crops


def build_vae() -> AutoencoderTiny:
    """Return an untrained VAE of the shipped model's shape.

    The encoder takes patches of 8 x 8 pixels as cells. The decoder doubles the resolution twice, to patches
    of 2 x 2: a decoder that makes 8 x 8 pixels of a cell at once leaves a pattern of that period.
    """
    config: Any = AutoencoderTiny.load_config(NANO / "vae")
    del config["block_out_channels"]  # the class adds it itself
    vae: Any = AutoencoderTiny.from_config(config)
    return vae


@torch.no_grad()
def initialise_with_principal_components(vae: Any, images: torch.Tensor) -> None:
    """Initialise the encoder so that latents are the first principal components of the images' patches.

    Each component has mean 0 and deviation 1. The residual blocks start near the identity, lifted by `LIFT`
    so that their ReLU cuts nothing off.
    """
    patches = pixel_unshuffle(images.add(1).div(2), patch_side(vae))  # as the VAE does
    patches = patches.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean, values, vectors = patches.mean(0), *torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0), vectors.flip(1)
    for block in vae.encoder.layers:
        if hasattr(block, "conv"):  # a residual block
            block.conv[-1].weight *= 0.05
            block.conv[-1].bias.zero_()
    first, last = vae.encoder.layers[0], vae.encoder.layers[-1]
    width, channels = first.out_channels, last.out_channels
    whiten = vectors[:, :width] / values[:width].sqrt()
    set_pointwise(first, whiten.T, LIFT - mean @ whiten)
    set_pointwise(last, torch.eye(channels, width), torch.full([channels], -LIFT))


def set_pointwise(layer: Any, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Set a 3 x 3 convolution to apply `weight` `[out, in]` and `bias` to each cell."""
    layer.weight.zero_()
    layer.weight[:, :, 1, 1] += weight.to(layer.weight)
    layer.bias.copy_(bias)


@torch.no_grad()
def equalise_phases(vae: Any) -> None:
    """Let the decoder's last convolution give plain areas one colour, instead of a pattern in each patch.

    Each pixel of a patch has its own weights; their sums over the kernel are replaced by the mean sum.
    """
    last = vae.decoder.layers[-1]
    weight, bias = (parameter.unflatten(0, (3, -1)) for parameter in (last.weight, last.bias))  # [3, pixels]
    sums = weight.sum((-1, -2), keepdim=True)
    weight -= (sums - sums.mean(1, keepdim=True)) / weight[0, 0, 0].numel()
    bias -= bias - bias.mean(1, keepdim=True)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 `[n, height, width, 3]` to float32 `[n, 3, height, width]` in `[-1, 1]`."""
    return upload(list(images), images.shape[1:3], torch.device("cpu"))


def sample_images(random: np.random.Generator, pool: Pool, count: int) -> torch.Tensor:
    """Sample crops `[count, 3, SIDE, SIDE]`: 30 % camera, 58 % styled and 12 % depth images."""
    rows = np.sort(random.choice(len(pool["tokens"]), count, replace=len(pool["tokens"]) < count))
    size, places = pool["camera"].shape[2], pool["depth"].shape[2]
    top, left = (CELL * random.integers(0, (size - SIDE) // CELL + 1, 2)).tolist()
    part = (rows, 0, slice(top, top + SIDE), slice(left, left + SIDE))
    kind = random.random((count, 1, 1, 1))
    images = to_tensor(np.where(kind < 0.3, pool["camera"][part], pool["target"][part]))
    depth = torch.from_numpy(pool["depth"][rows, 0, : places // 2, : places // 2].astype(np.float32))
    return torch.where(torch.from_numpy(kind > 0.88), depth_pictures(depth, (SIDE, SIDE)), images)


def vae_loss(vae: AutoencoderTiny, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the reconstruction error, plus the latents' distance from mean 0 and deviation 1.

    The noise schedule assumes that mean and deviation. Noise is added to latents before decoding, as the
    denoiser's are inexact too.
    """
    latents = encode(vae, images)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    spread = mean.square().mean() + (deviation - 1).square().mean()
    amount = 0.08 * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    output = decode(vae, latents + amount * torch.randn_like(latents))
    loss = image_loss(output, images) + 0.02 * spread
    return {"loss": loss, "l1": (output - images).abs().mean(), "spread": spread}


def train_vae(
    vae: Any, pool: Pool, settings: LoopSettings, work: Path, accelerator: Accelerator
) -> Iterator[tuple[int, Losses]]:
    """Fit the VAE to images of the pool, 16 per step."""
    sample = sample_images(np.random.default_rng([settings.seed, 0]), pool, min(1000, len(pool["tokens"])))
    initialise_with_principal_components(vae, sample)
    vae.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> torch.Tensor:
        random = np.random.default_rng([settings.seed, 1, step, accelerator.process_index])
        return sample_images(random, pool, share_of(16, accelerator))

    def loss_of(vae: AutoencoderTiny, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return vae_loss(vae, images.to(accelerator.device))

    return fit("vae", vae, dict(vae.named_parameters()), batch_of, loss_of, settings, work, accelerator)
