"""The nano model's denoiser: the image part first, then the motion modules, then both, as in the paper
(section 5).

It is trained on what a stream will give it. The first step starts from the *camera's* latents, noised, and
must reach the *styled* ones; a later step starts from the model's own prediction, noised again, and must
reach the same. The model
predicts noise, as the sampler expects, but the error is taken on the clean latents and pixels that follow
from it: so the source's structure comes through by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, LCMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, DPTForDepthEstimation

from ..attention import Window
from ..depth import depth_pictures, inverse_depth
from ..unet import StreamUNet
from .data import sample_clip
from .loop import Losses, fit
from .targets import TARGETS
from .text import sample_prompt, sample_subject
from .vae import picture_loss, to_tensor

# A stream may start anywhere in this range. It is far below SD's: a latent of 64 x 64 cells with 8 channels
# is drowned by what one of SD's bears (from 120 to 330, and still from 60 to 220, faces and lines were gone).
FIRST_TIMESTEPS = (30, 140)
LAST_TIMESTEP = 8


def build_unet() -> StreamUNet:
    """An untrained UNet of three levels.

    Text enters by cross-attention at the coarsest level and, pooled, as scale and shift of every resnet: the
    style has to reach the fine strokes too. Motion modules are at all levels but the finest, whose 64 x 64
    cells would cost more to remember than all the rest to compute.
    """
    return StreamUNet(
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        depth_channels=(16, 16),
        motion_module_resolutions=(2, 4),
    )


def build_scheduler() -> LCMScheduler:
    """Stable Diffusion's linear noise schedule, as the published model uses it."""
    return LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1, clip_sample=False
    )


class Denoiser(nn.Module):
    """What is fitted together: the UNet, the text encoder and the VAE, of which only the decoder ever
    moves."""

    def __init__(self, unet: StreamUNet, text_encoder: CLIPTextModel, vae: AutoencoderTiny):
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.register_buffer("alpha_bar", build_scheduler().alphas_cumprod.clone(), persistent=False)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[n, 77]` to prompt embeddings `[n, 77, dim]`, at `clip_skip` 1 as the pipeline does."""
        hidden = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        text_model = getattr(self.text_encoder, "text_model", self.text_encoder)
        return text_model.final_layer_norm(hidden)

    def noise_to(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * torch.randn_like(latents)

    def clean_from(self, sample, timesteps, embeds, depth_latents, window) -> torch.Tensor:
        """The clean latents that the UNet's noise prediction makes of `sample`."""
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        output = self.unet(sample, timesteps, embeds, depth_latents, window)
        return (sample - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()


@dataclass
class Batch:
    """`[clips * frames, ...]`: camera pictures, styled pictures, depth pictures; and one prompt a clip."""

    source: torch.Tensor
    target: torch.Tensor
    depth: torch.Tensor
    tokens: torch.Tensor


def sample_batch(
    random: np.random.Generator,
    tokenizer: CLIPTokenizer,
    estimator: DPTForDepthEstimation,
    *,
    clips: int,
    frames: int,
    size: int,
) -> Batch:
    """Clips, each with a style, its targets, a prompt for it and the depth as the estimator sees it, errors
    included.

    One in twenty has no style: a prompt without style words leaves the picture as it is.
    """
    sources, targets, prompts = [], [], []
    for _ in range(clips):
        clip, _ = sample_clip(random, size, frames)
        if random.random() < 0.05:
            prompt, target = sample_subject(random), clip
        else:
            style = random.choice(list(TARGETS))
            prompt, target = sample_prompt(random, style), np.stack([TARGETS[style](frame) for frame in clip])
        sources.append(clip)
        targets.append(target)
        prompts.append(prompt)
    source = to_tensor(np.concatenate(sources))
    with torch.no_grad():
        depth = inverse_depth(estimator, source).unflatten(0, (clips, frames))
    low, high = depth.amin(dim=(1, 2, 3), keepdim=True), depth.amax(dim=(1, 2, 3), keepdim=True)
    depth = ((depth - low) / (high - low).clamp(min=1e-6) * 2 - 1).flatten(0, 1)
    tokens = tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return Batch(source, to_tensor(np.concatenate(targets)), depth_pictures(depth, (size, size)), tokens)


def denoising_loss(
    denoiser: Denoiser, batch: Batch, frames: int, with_motion: bool
) -> tuple[torch.Tensor, Losses]:
    """The error after one step from the camera's latents, or after a second one from the first one's
    result."""
    vae, clips = denoiser.vae, len(batch.tokens)
    with torch.no_grad():
        source, target, depth_latents = (
            vae.encode(pictures).latents for pictures in (batch.source, batch.target, batch.depth)
        )
    embeds = denoiser.embed(batch.tokens).repeat_interleave(frames, dim=0)
    window = Window.clip(frames) if with_motion else None
    first = torch.randint(*FIRST_TIMESTEPS, (clips,))
    timesteps = first.repeat_interleave(frames)
    sample = denoiser.noise_to(source, timesteps)
    if torch.rand(()) < 0.5:
        with torch.no_grad():
            clean = denoiser.clean_from(sample, timesteps, embeds, depth_latents, window)
        second = LAST_TIMESTEP + torch.rand(clips) * (first - 15 - LAST_TIMESTEP)
        timesteps = second.long().repeat_interleave(frames)
        sample = denoiser.noise_to(clean, timesteps)
    clean = denoiser.clean_from(sample, timesteps, embeds, depth_latents, window)
    output = vae.decode(clean).sample
    latent_error = (clean - target).square().mean()
    pixel_error = picture_loss(output, batch.target)
    loss = latent_error + pixel_error
    losses = {"latent": latent_error.item(), "pixel": pixel_error.item()}
    if with_motion:
        # What changes from frame to frame must be what changes in the target: anything else is flicker.
        error = (output - batch.target).unflatten(0, (clips, frames))
        flicker = (error[:, 1:] - error[:, :-1]).abs().mean()
        loss, losses["flicker"] = loss + flicker, flicker.item()
    return loss, losses


def train_denoiser(
    name: str,
    denoiser: Denoiser,
    tokenizer: CLIPTokenizer,
    estimator: DPTForDepthEstimation,
    trains: Callable[[str], bool],
    folder: Path,
    *,
    steps: int,
    clips: int,
    frames: int,
    size: int,
    peak: float,
    with_motion: bool,
    seed: int = 0,
) -> Iterator[tuple[int, Losses]]:
    """One stage; `trains` says, by name, which of the denoiser's parameters move in it."""
    moving = [parameter for key, parameter in denoiser.named_parameters() if trains(key)]
    for key, parameter in denoiser.named_parameters():
        # The whole UNet gets gradients, used or not: where only some of a group norm's are wanted, the
        # backward pass of PyTorch 2.13, channels last on the CPU, writes to a null pointer.
        parameter.requires_grad_(trains(key) or key.startswith("unet."))
    denoiser.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> Batch:
        random = np.random.default_rng([seed, sum(map(ord, name)), step])
        return sample_batch(random, tokenizer, estimator, clips=clips, frames=frames, size=size)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, Losses]:
        return denoising_loss(denoiser, batch, frames, with_motion)

    return fit(
        name,
        denoiser,
        batch_of,
        loss_of,
        moving,
        steps=steps,
        peak=peak,
        folder=folder,
        seed=seed,
    )
