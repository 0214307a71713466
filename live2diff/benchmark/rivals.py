"""What the stream is measured against: the same model without its cache, and diffusers frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline, LCMScheduler, UNet2DConditionModel
from PIL import Image

from ..config import WINDOW
from ..model.attention import Window
from ..model.lcm import Schedule
from ..model.vae import patch_side, vae_scale_factor
from ..pipeline import Live2DiffPipeline
from ..weights.convert import quiet
from ..weights.swap import is_added

# What the stock UNet's configuration lacks.
OURS = ("depth_channels", "motion_module_resolutions", "motion_module_last_only")


def unet_calls(
    pipeline: Live2DiffPipeline, schedule: Schedule, size: tuple[int, int]
) -> dict[str, Callable[[], torch.Tensor]]:
    """The UNet's part of one new frame, at a working `size` (height, width): with the cache, and from the
    window's 16 frames anew. Both are one call, with all denoising steps in it."""
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
    """A tiny VAE of patches that takes pictures, as diffusers' pipelines want it."""

    def encode(self, pictures: torch.Tensor, **_: Any) -> Any:
        return super().encode(torch.nn.functional.pixel_unshuffle(pictures, patch_side(self)))

    def decode(self, latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        patches = super().decode(latents).sample
        return (torch.nn.functional.pixel_shuffle(patches, patch_side(self)),)


def sharing(outline: Callable[[], torch.nn.Module], weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The module that `outline` makes, on these very weights."""
    with torch.device("meta"):
        module = outline()
    module.load_state_dict(weights, assign=True)
    return module.eval()


def stock_pipeline(pipeline: Live2DiffPipeline) -> DiffusionPipeline:
    """diffusers' image-to-image pipeline on this one's weights, less motion modules and depth mapping."""
    from diffusers import StableDiffusionImg2ImgPipeline  # has things to say when it is imported

    unet, vae = pipeline.unet, pipeline.vae
    config = {name: value for name, value in unet.config.items() if name not in OURS}
    stock = sharing(
        lambda: UNet2DConditionModel.from_config(config, sample_size=64),
        {name: tensor for name, tensor in unet.state_dict().items() if not is_added(name)},
    )
    if patch_side(vae) > 1:
        vae = sharing(lambda: PatchVAE.from_config(vae.config), vae.state_dict())
    for module in (stock, vae):
        module.to(memory_format=torch.channels_last)
    return StableDiffusionImg2ImgPipeline(
        vae=vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        unet=stock,
        scheduler=LCMScheduler.from_config(pipeline.scheduler.config, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


class FrameByFrame:
    """diffusers' image-to-image pipeline with LCM steps, on this model's own weights where it has such: no
    depth, no memory. The prompt is encoded once."""

    def __init__(self, pipeline: Live2DiffPipeline, steps: int, size: tuple[int, int]):
        self._steps, self._size = steps, size
        self._embeds = pipeline.encode_prompt("", "a house")[None]
        with quiet():
            self._stock = stock_pipeline(pipeline)
        self._stock.set_progress_bar_config(disable=True)

    def push(self, frame: np.ndarray) -> np.ndarray:
        """uint8 `[height, width, 3]` in and out."""
        height, width = self._size
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)
        (drawn,) = self._stock(
            prompt_embeds=self._embeds,
            image=picture,
            strength=1.0,
            num_inference_steps=self._steps,
            guidance_scale=1.0,
        ).images
        return np.asarray(drawn.resize(frame.shape[1::-1], Image.Resampling.BICUBIC))
