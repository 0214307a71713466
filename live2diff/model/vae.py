"""Images to latents and back, for the tiny VAE and for Stable Diffusion's own."""

import math

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

VAE = AutoencoderTiny | AutoencoderKL


def patch_side(vae: VAE, channels: str = "in_channels") -> int:
    """Return the side of the square patches that are 3 * side**2 channels, in or out; 1 for pixels."""
    return math.isqrt(vae.config[channels] // 3)


def vae_scale_factor(vae: VAE) -> int:
    """Return how many pixels a latent is wide and high."""
    channels = vae.config.get("encoder_block_out_channels") or vae.config["block_out_channels"]
    return patch_side(vae) * 2 ** (len(channels) - 1)


def encode(vae: VAE, images: Tensor) -> Tensor:
    """Encode images `[n, 3, height, width]` in `[-1, 1]` to scaled latents `[n, C, h, w]`."""
    patches = functional.pixel_unshuffle(images.to(vae.dtype), patch_side(vae))
    encoded = vae.encode(patches, return_dict=False)[0]
    latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # of a distribution
    return latents * vae.config["scaling_factor"]


def decode(vae: VAE, latents: Tensor) -> Tensor:
    """Decode scaled latents `[n, C, h, w]` to images `[n, 3, height, width]` in `[-1, 1]`, not clamped.

    A decoder of patches sees the outermost latents once more around them, instead of the zeros of its
    convolutions, which draw a frame around the image.
    """
    side, around = patch_side(vae, "out_channels"), 1 if patch_side(vae) > 1 else 0
    latents = functional.pad(latents, [around] * 4, mode="replicate") if around else latents
    patches = vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0]
    images = functional.pixel_shuffle(patches, side)
    edge = around * vae_scale_factor(vae)
    return images[..., edge:-edge, edge:-edge] if around else images
