"""Pictures to latents and back, whatever VAE a model has."""

import math

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch.nn import functional

VAE = AutoencoderTiny | AutoencoderKL


def patch_side(vae: VAE) -> int:
    """The side of the square patches that the VAE takes as one cell of 3 * side**2 channels; 1 for pixels."""
    return math.isqrt(vae.config.in_channels // 3)


def vae_scale_factor(vae: VAE) -> int:
    """How many pixels a cell of the latents is wide and high."""
    channels = vae.config.get("encoder_block_out_channels") or vae.config.block_out_channels
    return patch_side(vae) * 2 ** (len(channels) - 1)


def encode(vae: VAE, pictures: torch.Tensor) -> torch.Tensor:
    """Pictures `[n, 3, height, width]` in `[-1, 1]` to scaled latents `[n, C, h, w]`."""
    encoded = vae.encode(functional.pixel_unshuffle(pictures.to(vae.dtype), patch_side(vae)))
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return latents * vae.config.scaling_factor


def decode(vae: VAE, latents: torch.Tensor) -> torch.Tensor:
    """Scaled latents `[n, C, h, w]` to pictures `[n, 3, height, width]` in `[-1, 1]`, not clamped."""
    patches = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
    return functional.pixel_shuffle(patches, patch_side(vae))
