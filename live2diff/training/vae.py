"""The nano model's tiny VAE: AutoencoderTiny, 8 times smaller on each side, 32 channels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn
from torch.nn.functional import pixel_unshuffle

from ..model.depth import depth_pictures
from ..model.vae import decode, encode, patch_side
from .loop import Losses, fit
from .pool import Pool

LIFT = 4.0  # standard deviations


def build_vae() -> AutoencoderTiny:
    """An untrained VAE: a patch of 8 x 8 pixels is a cell of 192 channels, and 32 in the latents.

    All of it works on cells, so its cost is that of a few of the UNet's layers. A decoder that doubles cells
    step by step, as usual, draws the same into each of many like cells: it lost the cuts of a woodcut, whose
    period is a cell, wherever the picture is plain.
    """
    return AutoencoderTiny(
        in_channels=192,
        out_channels=192,
        encoder_block_out_channels=(64,),
        decoder_block_out_channels=(80,),
        num_encoder_blocks=(2,),
        num_decoder_blocks=(4,),
        latent_channels=32,
    )


@torch.no_grad()
def begin_with_principal_components(vae: AutoencoderTiny, pictures: torch.Tensor) -> None:
    """Set the VAE to what linear algebra knows already: latents are the first principal components of the
    patches of these pictures, each of mean 0 and deviation 1.

    Its blocks hand on nearly what they get, lifted by `LIFT` so that their ReLU cuts nothing off; the
    training bends them from there.
    """
    patches = pixel_unshuffle(pictures.add(1).div(2), patch_side(vae))  # the VAE begins by that, too
    patches = patches.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean, values, vectors = patches.mean(0), *torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0), vectors.flip(1)
    for layers in (vae.encoder.layers, vae.decoder.layers):
        for block in layers:
            if isinstance(block, AutoencoderTinyBlock):
                block.conv[-1].weight *= 0.05
                block.conv[-1].bias.zero_()
    first, last = vae.encoder.layers[0], vae.encoder.layers[-1]
    width, channels = first.out_channels, last.out_channels
    whiten = vectors[:, :width] / values[:width].sqrt()
    set_pointwise(first, whiten.T, LIFT - mean @ whiten)
    set_pointwise(last, torch.eye(channels, width), torch.full([channels], -LIFT))
    first, last = vae.decoder.layers[0], vae.decoder.layers[-1]
    colour = vectors[:, :channels] * values[:channels].sqrt()
    width = first.out_channels
    set_pointwise(first, torch.eye(width, channels), torch.full([width], LIFT))
    padded = torch.cat([colour, colour.new_zeros(len(colour), width - channels)], dim=1)
    set_pointwise(last, padded, mean - LIFT * colour.sum(1))


def set_pointwise(layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Make a 3 x 3 convolution do `weight` `[out, in]` and `bias` at each cell."""
    layer.weight.zero_()
    layer.weight[:, :, 1, 1] += weight.to(layer.weight)
    layer.bias.copy_(bias)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 `[n, height, width, 3]` to float32 `[n, 3, height, width]` in `[-1, 1]`."""
    tensor = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def sample_pictures(random: np.random.Generator, pool: Pool, count: int) -> torch.Tensor:
    """`count` pictures to compress, `[count, 3, size, size]`: camera, styled and depth pictures."""
    frame = random.integers(pool.camera.shape[1])
    drawn = np.sort(random.choice(len(pool), count, replace=len(pool) < count))
    camera, target = pool.camera[drawn, frame], pool.target[drawn, frame]
    kind = random.random(count)
    pictures = to_tensor(np.where(kind[:, None, None, None] < 0.3, camera, target))
    depth = torch.from_numpy(pool.depth[drawn, frame].astype(np.float32))
    deep = torch.from_numpy(kind > 0.88)[:, None, None, None]
    return torch.where(deep, depth_pictures(depth, pictures.shape[2:]), pictures)


def picture_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the pixels and, for sharp edges, of their differences across and down."""
    error = output - target
    across, down = error[..., :, 1:] - error[..., :, :-1], error[..., 1:, :] - error[..., :-1, :]
    return error.abs().mean() + 0.7 * (across.abs().mean() + down.abs().mean())


def train_vae(
    vae: AutoencoderTiny,
    pool: Pool,
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Losses]]:
    """Fit the VAE. Latents are pulled to mean 0 and deviation 1 per channel, as the noise schedule takes them
    to be, and are disturbed before decoding, because the denoiser will hand the decoder latents that are
    slightly off."""
    random = np.random.default_rng([seed, 0])
    begin_with_principal_components(vae, sample_pictures(random, pool, min(1000, len(pool))))
    vae.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> torch.Tensor:
        return sample_pictures(np.random.default_rng([seed, 1, step]), pool, 16)

    def loss_of(pictures: torch.Tensor) -> tuple[torch.Tensor, Losses]:
        latents = encode(vae, pictures)
        mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        spread = mean.square().mean() + (deviation - 1).square().mean()
        disturbed = latents + 0.08 * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        output = decode(vae, disturbed)
        loss = picture_loss(output, pictures)
        l1 = (output - pictures).abs().mean().item()
        return loss + 0.02 * spread, {"loss": loss.item(), "l1": l1, "spread": spread.item()}

    return fit(
        "vae",
        vae,
        batch_of,
        lambda pictures: loss_of(pictures.to(device)),
        vae.parameters(),
        steps=steps,
        peak=1e-3,
        folder=folder,
        seed=seed,
        device=device,
    )
