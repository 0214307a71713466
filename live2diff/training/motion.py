"""The paper's training: motion modules and depth mapping for Stable Diffusion 1.5, from videos.

The image model stays unchanged, bit for bit. A clip of 16 frames is noised to one timestep, and the UNet
predicts the noise. Each frame sees the frames that it will see in a stream: the 8 warmup frames and the last
8 up to itself, never a later one. The motion modules and the mapping learn what other frames and the depth
add to the frozen layers' prediction.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ..config import WINDOW
from ..model.attention import Window
from ..model.depth import DepthRange, depth_pictures, inverse_depth
from ..model.unet import StreamUNet
from ..pipeline import Live2DiffPipeline
from ..streaming.images import download
from ..streaming.settings import LONGEST_PROMPT
from ..weights.convert import added_weights
from .loop import LoopSettings, Losses, fit, write_atomically
from .videos import Clip, VideoFolder

PREVIEW_TIMESTEP = 500  # of 1000: a large part of the preview must be predicted
FEW = 4  # frames per call of the VAE and the depth estimator: all 16 would need more memory than the UNet
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class MotionRecipe(LoopSettings):
    """The settings of a run; a step learns from `clips * accumulate` clips on each GPU."""

    steps: int = 50_000
    learning_rate: float = 1e-4
    rise_steps: int = 500
    workers: int = 4
    checkpoint_every: int = 500
    preview_every: int = 500
    clips: int = 1  # in a batch
    caption_dropout: float = 0.1  # share of clips trained without caption: motion must not depend on words
    precision: str = "no"  # or "fp16", "bf16": of frozen weights and of the arithmetic
    gradient_checkpointing: bool = False  # less memory, more time


@dataclass
class Inputs:
    """The UNet's inputs for some clips, their frames next to each other in the batch; float32."""

    latents: torch.Tensor  # `[clips * 16, 4, h, w]`, without noise
    depth_latents: torch.Tensor  # as `latents`
    prompt_embeds: torch.Tensor  # `[clips * 16, tokens, dim]`


def train_motion(
    pipeline: Live2DiffPipeline,
    videos: VideoFolder,
    work: Path,
    out: Path,
    recipe: MotionRecipe = MotionRecipe(),
) -> Iterator[tuple[int, Losses]]:
    """Train what `load_base` added to an image model, yielding `(step, losses)`.

    The result is saved to `out`: safetensors in half precision, by the names of the published checkpoint.
    `work` holds the checkpoint, from which the same call resumes, and previews. Under `accelerate launch` it
    runs on several GPUs.

    Raises:
        ValueError: The checkpoint in `work` was started with other settings.
    """
    accelerator = Accelerator(mixed_precision=recipe.precision, gradient_accumulation_steps=recipe.accumulate)
    trained = freeze_base(pipeline, DTYPES[recipe.precision])
    if recipe.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    pipeline.to(accelerator.device)

    def batch_of(number: int) -> list[Clip]:
        random = np.random.default_rng([recipe.seed, number, accelerator.process_index])
        clips = [videos.sample(random) for _ in range(recipe.clips)]
        share = recipe.caption_dropout
        return [replace(clip, caption="") if random.random() < share else clip for clip in clips]

    def loss_of(unet: StreamUNet, clips: list[Clip]) -> dict[str, torch.Tensor]:
        return {"loss": denoising_loss(unet, pipeline.scheduler, encode(pipeline, clips))}

    def preview(_: list[Clip]) -> np.ndarray:
        return preview_image(pipeline, videos.sample(np.random.default_rng(recipe.seed)))  # always the same

    yield from fit(
        "motion", pipeline.unet, trained, batch_of, loss_of, recipe, work, accelerator,
        preview=preview, size=videos.size, stride=videos.stride,
    )  # fmt: skip
    if accelerator.is_main_process:
        weights = {name: weight.detach().half().cpu().contiguous() for name, weight in trained.items()}
        write_atomically(out, lambda partial: save_file(weights, partial))


def freeze_base(pipeline: Live2DiffPipeline, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Freeze all weights, in `dtype`, except motion modules and depth mapping, which are returned by name."""
    trained = added_weights(pipeline.unet)
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.depth_estimator):
        nn.Module.to(module.requires_grad_(False), dtype)  # diffusers' own `to` warns about missing modules
    for name, parameter in pipeline.unet.named_parameters():
        parameter.requires_grad_(name in trained)
        parameter.data = parameter.data.to(torch.float32 if name in trained else dtype)
    return trained


@torch.no_grad()
def encode(pipeline: Live2DiffPipeline, clips: list[Clip]) -> Inputs:
    """Encode clips as a stream does, each with its own depth range."""
    pixels = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).to(pipeline.device)
    # Channels first: in the other order PyTorch 2.13 fails in the backward pass of a frozen norm on the CPU.
    source = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
    few = source.split(FEW)
    depth = torch.cat([inverse_depth(pipeline.depth_estimator, frames) for frames in few])
    depth = torch.cat([DepthRange().normalise(clip) for clip in depth.split(WINDOW)])
    depth_few = depth_pictures(depth, (source.shape[2], source.shape[3])).split(FEW)
    latents, depth_latents = (
        torch.cat([pipeline.encode(frames) for frames in parts]).float() for parts in (few, depth_few)
    )
    embeds = torch.stack([pipeline.encode_prompt(None, clip.caption[:LONGEST_PROMPT]) for clip in clips])
    return Inputs(latents, depth_latents, embeds.float().repeat_interleave(WINDOW, dim=0))


def predict_noise(
    unet: StreamUNet, sample: torch.Tensor, timesteps: torch.Tensor, inputs: Inputs
) -> torch.Tensor:
    """Predict the noise in `sample`, each frame seeing only what it will see in a stream."""
    window = Window.clip(WINDOW, sample.device)
    return unet(sample, timesteps, inputs.prompt_embeds, inputs.depth_latents, window).float()


def denoising_loss(unet: StreamUNet, scheduler: Any, inputs: Inputs) -> torch.Tensor:
    """Return the error of the predicted noise.

    Each frame has noise of its own, but the frames of a clip share their timestep, as those in the cache of
    one denoising step do.
    """
    clips, device = len(inputs.latents) // WINDOW, inputs.latents.device
    timesteps = torch.randint(len(scheduler.alphas_cumprod), (clips,), device=device)
    timesteps = timesteps.repeat_interleave(WINDOW)
    noise = torch.randn_like(inputs.latents)
    sample = scheduler.add_noise(inputs.latents, noise, timesteps)
    return functional.mse_loss(predict_noise(unet, sample, timesteps, inputs), noise)


@torch.no_grad()
def preview_image(pipeline: Live2DiffPipeline, clip: Clip) -> np.ndarray:
    """Draw every other frame of a clip above the UNet's one-step prediction from `PREVIEW_TIMESTEP`."""
    inputs, scheduler = encode(pipeline, [clip]), pipeline.scheduler
    noise = torch.randn(inputs.latents.shape, generator=torch.Generator().manual_seed(0)).to(inputs.latents)
    timesteps = torch.full((WINDOW,), PREVIEW_TIMESTEP, device=noise.device)
    alpha_bar = scheduler.alphas_cumprod[PREVIEW_TIMESTEP].item()
    sample = alpha_bar**0.5 * inputs.latents + (1 - alpha_bar) ** 0.5 * noise
    output = predict_noise(pipeline.unet, sample, timesteps, inputs)
    clean = (sample - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
    decoded = torch.cat([pipeline.decode(frames) for frames in clean[::2].split(FEW)])
    decoded = download(decoded, [clip.frames.shape[1:3]] * len(decoded))
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (clip.frames[::2], decoded)])
