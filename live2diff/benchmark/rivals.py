"""Alternatives to measure beside a stream: the model without its cache, diffusers frame by frame."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from PIL import Image

from ..config import WINDOW
from ..model.attention import Window
from ..model.lcm import Schedule
from ..model.vae import patch_side, vae_scale_factor
from ..pipeline import Live2DiffPipeline, to_channels_last
from ..weights.convert import quiet
from ..weights.swap import is_added

# Of our UNet's configuration, unknown to diffusers' own UNet.
OUR_OPTIONS = ("depth_channels", "motion_module_resolutions", "motion_module_last_only")


def unet_calls(
    pipeline: Live2DiffPipeline, schedule: Schedule, size: tuple[int, int]
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return UNet calls for one new frame: with the cache, and recomputing the window's 16 frames.

    Each is one call with all denoising steps, at a working `size` (height, width).
    """
    unet, steps = pipeline.unet, schedule.steps
    height, width = (side // vae_scale_factor(pipeline.vae) for side in size)
    channels, text = unet.config.in_channels, unet.config.cross_attention_dim
    like = {"device": unet.device, "dtype": unet.dtype}
    cache = unet.new_cache(steps, height, width)
    cache.count.fill_(WINDOW)  # all entries are in use

    def call(frames: int, window: Window, *cached: Any) -> Callable[[], torch.Tensor]:
        rows = steps * frames
        latents, depth = torch.randn(2, rows, channels, height, width, **like)
        embeds = torch.randn(rows, pipeline.tokenizer.model_max_length, text, **like)
        timesteps = schedule.timesteps.to(unet.device).repeat_interleave(frames)
        return torch.no_grad()(lambda: unet(latents, timesteps, embeds, depth, window, *cached))

    return {
        "cached": call(1, Window.stream(cache.count), cache),
        "recomputed": call(WINDOW, Window.clip(WINDOW, unet.device)),
    }


class PatchVAE(AutoencoderTiny):
    """A tiny VAE of patches that encodes and decodes images, as diffusers' pipelines expect."""

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Cut images into patches and encode them."""
        return super().encode(torch.nn.functional.pixel_unshuffle(x, patch_side(self)))

    def decode(self, x: torch.Tensor, generator: Any = None, return_dict: bool = True) -> tuple[torch.Tensor]:
        """Decode latents to patches and join them."""
        (patches,) = super().decode(x, return_dict=False)
        return (torch.nn.functional.pixel_shuffle(patches, patch_side(self, "out_channels")),)


def share_weights(build: Callable[[], Any], weights: dict[str, torch.Tensor]) -> Any:
    """Build a module on existing weights, without a copy of them."""
    with torch.device("meta"):
        module = build()
    module.load_state_dict(weights, assign=True)
    return module.eval()


def stock_pipeline(pipeline: Live2DiffPipeline) -> Any:
    """Build diffusers' image-to-image pipeline on the same weights, without motion modules and depth."""
    # Imported here: it prints messages.
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
        StableDiffusionImg2ImgPipeline,
    )

    unet, vae = pipeline.unet, pipeline.vae
    config = {name: value for name, value in unet.config.items() if name not in OUR_OPTIONS}
    stock = share_weights(
        lambda: UNet2DConditionModel.from_config(config, sample_size=64),
        {name: tensor for name, tensor in unet.state_dict().items() if not is_added(name)},
    )
    if patch_side(vae) > 1:
        vae = share_weights(lambda: PatchVAE.from_config(vae.config), vae.state_dict())
    to_channels_last(stock, vae)
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": pipeline.text_encoder,
        "tokenizer": pipeline.tokenizer,
        "unet": stock,
        "scheduler": LCMScheduler.from_config(pipeline.scheduler.config, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)


def frame_by_frame(
    pipeline: Live2DiffPipeline, steps: int, size: tuple[int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that translates a uint8 `[height, width, 3]` frame without depth and cache.

    It runs diffusers' image-to-image pipeline with LCM steps on this model's weights; the prompt is encoded
    once, before.
    """
    (height, width), embeds = size, pipeline.encode_prompt("", "a house")[None]
    with quiet():
        stock = stock_pipeline(pipeline)
    stock.set_progress_bar_config(disable=True)
    options = {"strength": 1.0, "num_inference_steps": steps, "guidance_scale": 1.0}

    def push(frame: np.ndarray) -> np.ndarray:
        image = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
        (image,) = stock(prompt_embeds=embeds, image=image, **options).images
        return np.asarray(image.resize(frame.shape[1::-1], Image.Resampling.BICUBIC))

    return push
