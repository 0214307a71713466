"""Images to latents and back, for the tiny VAE and for Stable Diffusion's own."""

import math
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

VAE = AutoencoderTiny | AutoencoderKL


def pad_by_replication(*parts: nn.Module) -> None:
    """Have convolutions see the outermost pixels once more around an image, and not zeros.

    Zeros draw a frame if a model was trained on parts of images, whose surroundings it could not know.
    """
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d) and any(module.padding):
                module.padding_mode = "replicate"


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

    A decoder of patches that pads with zeros sees the outermost latents once more around them, which takes
    most of its frame away.
    """
    side, decoder = patch_side(vae, "out_channels"), cast(Any, vae.decoder)
    around = 1 if side > 1 and decoder.layers[0].padding_mode == "zeros" else 0
    latents = functional.pad(latents, [around] * 4, mode="replicate") if around else latents
    patches = vae.decode(latents.to(vae.dtype) / vae.config["scaling_factor"], return_dict=False)[0]
    images = functional.pixel_shuffle(patches, side)
    edge = around * vae_scale_factor(vae)
    return images[..., edge:-edge, edge:-edge] if around else images
