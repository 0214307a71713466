"""Encode images to latents and decode them, with the tiny VAE or Stable Diffusion's own."""

import math
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

VAE = AutoencoderTiny | AutoencoderKL


def pad_by_replication(*parts: nn.Module) -> None:
    """Make padded convolutions replicate the border pixels instead of padding with zeros.

    Zeros leave a visible frame if a model was trained on crops of images.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                module.padding_mode = "replicate"


def patch_side(vae: VAE, channels: str = "in_channels") -> int:
    """Return the side of the pixel patches that a VAE reads or writes as 3 * side**2 channels."""
    return math.isqrt(vae.config[channels] // 3)


def vae_scale_factor(vae: VAE) -> int:
    """Return the number of pixels per latent, in height and width."""
    channels = vae.config.get("encoder_block_out_channels") or vae.config["block_out_channels"]
    return patch_side(vae) * 2 ** (len(channels) - 1)


def encode(vae: VAE, images: Tensor) -> Tensor:
    """Encode images `[n, 3, height, width]` in `[-1, 1]` to scaled latents `[n, C, h, w]`."""
    patches = functional.pixel_unshuffle(images.to(vae.dtype), patch_side(vae))
    encoded = vae.encode(patches, return_dict=False)[0]
    latents = encoded if isinstance(encoded, Tensor) else encoded.mode()  # of the KL VAE's distribution
    return latents * vae.config["scaling_factor"]


def decode(vae: VAE, latents: Tensor) -> Tensor:
    """Decode scaled latents `[n, C, h, w]` to images `[n, 3, height, width]` in `[-1, 1]`, not clamped.

    For a decoder that writes patches and pads with zeros, the border latents are replicated first and the
    border of the image cut off, which removes most of the visible frame.
    """
    side, decoder = patch_side(vae, "out_channels"), cast(Any, vae.decoder)
    has_frame = side > 1 and decoder.layers[0].padding_mode == "zeros"
    latents = functional.pad(latents, [1] * 4, mode="replicate") if has_frame else latents
    patches = vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0]
    images = functional.pixel_shuffle(patches, side)
    edge = vae_scale_factor(vae)
    return images[..., edge:-edge, edge:-edge] if has_frame else images
