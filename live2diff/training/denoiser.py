"""The nano model's denoiser: the image part first, then the motion modules, then both, as in the paper
(section 5).

It is trained on what a stream will give it. The first step starts from the *camera's* latents, noised, and
must reach the *styled* ones; a later step starts from the model's own prediction, noised again, and must
reach the same. The error is taken on the clean latents and on the pixels that they decode to.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel

from ..attention import Window
from ..depth import depth_pictures
from ..sampler import build_scheduler
from ..unet import StreamUNet
from ..vae import decode, encode
from .loop import Losses, fit
from .pool import Pool
from .vae import picture_loss, to_tensor

# A stream may start anywhere in this range, more often at its lower end. It lies below SD's: a latent of
# 32 x 32 cells is drowned by the noise that one of 64 x 64 bears.
FIRST_TIMESTEPS = (9, 300)
LAST_TIMESTEP = 4
LATENT_WEIGHT = 0.1  # the latents' finest channels count as much as the coarsest, but nobody sees them
SECOND_STEPS = 0.35  # of all batches; the others learn the first step, which is the harder one
FULL_STRENGTH = 39  # from this first timestep on the target is all style; below, the camera shines through


def strength_of(first: torch.Tensor) -> torch.Tensor:
    """How much of the style a stream that starts at this timestep shows, in `(0, 1]`."""
    return ((first + 1) / (FULL_STRENGTH + 1)).clamp(max=1)


def build_unet() -> StreamUNet:
    """An untrained UNet of three levels.

    Text enters by cross-attention at the coarsest level and, pooled, as scale and shift of every resnet: the
    style has to reach the fine strokes too. Motion modules are at all levels but the finest, whose cells
    would cost more to remember than all the rest to compute.
    """
    unet = StreamUNet(
        in_channels=32,
        out_channels=32,
        block_out_channels=(64, 96, 160),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        depth_channels=(32, 32),
        motion_module_resolutions=(2, 4),
    )
    begin_as_copy(unet)
    return unet


@torch.no_grad()
def begin_as_copy(unet: StreamUNet) -> None:
    """Set an untrained UNet to hand its input on, so that it has to learn only the difference a style makes.

    `conv_in` makes [x, -x] of the latents x, and the last resnet takes that from its skip connection. The
    norm before `conv_out` leaves it nearly as it is (latents have deviation 1), and silu(x) - silu(-x) is x.
    """
    channels = unet.config.in_channels
    both = torch.cat([torch.eye(channels), -torch.eye(channels)])
    last = unet.up_blocks[-1].resnets[-1]
    for layer in (unet.conv_in, unet.conv_out, last.conv2):
        layer.weight *= 0.1
        layer.bias.zero_()
    unet.conv_in.weight[:, :, 1, 1] += both
    unet.conv_out.weight[:, :, 1, 1] += both.T
    last.conv_shortcut.weight *= 0.1
    last.conv_shortcut.weight[:, -len(both) :, 0, 0] += torch.eye(len(both))


# The model predicts the clean latents themselves. Where little noise is added, a prediction of the noise
# would have to hold the whole difference between camera and style, divided by that little.
PREDICTION_TYPE = "sample"


class Denoiser(nn.Module):
    """What is fitted together: the UNet, the text encoder and the VAE, of which only the decoder ever
    moves."""

    def __init__(self, unet: StreamUNet, text_encoder: CLIPTextModel, vae: AutoencoderTiny):
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.register_buffer(
            "alpha_bar", build_scheduler(PREDICTION_TYPE).alphas_cumprod.clone(), persistent=False
        )

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[n, 77]` to prompt embeddings `[n, 77, dim]`, at `clip_skip` 1 as the pipeline does."""
        hidden = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        text_model = getattr(self.text_encoder, "text_model", self.text_encoder)
        return text_model.final_layer_norm(hidden)

    def noise_to(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha_bar = self.alpha_bar[timesteps].view(-1, 1, 1, 1)
        return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * torch.randn_like(latents)


@dataclass
class Batch:
    """`[clips * frames, 3, height, width]` in `[-1, 1]`: the camera's pictures, the clean ones, the styled
    ones, the depth; and one prompt a clip, `[clips, 77]`."""

    camera: torch.Tensor
    clean: torch.Tensor
    target: torch.Tensor
    depth: torch.Tensor
    tokens: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def sample_batch(random: np.random.Generator, pool: Pool, clips: int) -> Batch:
    """Clips of the pool. Their depth gets errors on top of the estimator's: a scale and a haze that jump from
    frame to frame."""
    drawn = np.sort(random.choice(len(pool), clips, replace=len(pool) < clips))
    camera, clean, target = (
        to_tensor(part[drawn].reshape(-1, *part.shape[2:])) for part in (pool.camera, pool.clean, pool.target)
    )
    depth = torch.from_numpy(pool.depth[drawn].astype(np.float32)).flatten(0, 1)
    haze = torch.from_numpy(random.normal(0, 0.08, (len(depth), 1, 4, 4)).astype(np.float32))
    haze = functional.interpolate(haze, depth.shape[1:], mode="bilinear")[:, 0]
    scale = torch.from_numpy(random.normal(1, 0.04, (len(depth), 1, 1)).astype(np.float32))
    depth = depth_pictures((depth * scale + haze).clamp(-1, 1), camera.shape[2:])
    return Batch(camera, clean, target, depth, torch.from_numpy(pool.tokens[drawn]))


def denoise_batch(
    denoiser: Denoiser, batch: Batch, frames: int, with_motion: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step from the camera's latents, or a second one from the first one's result, as a stream does them.

    Returns:
        The predicted clean latents and pictures, and the latents and pictures that they should be.
    """
    vae, clips = denoiser.vae, len(batch.tokens)
    first = torch.rand(clips, device=batch.tokens.device).square()
    first = (FIRST_TIMESTEPS[0] + first * (FIRST_TIMESTEPS[1] - FIRST_TIMESTEPS[0])).long()
    strength = strength_of(first).repeat_interleave(frames).view(-1, 1, 1, 1)
    with torch.no_grad():
        wanted = torch.lerp(batch.clean, batch.target, strength)
        camera, wanted_latents, depth_latents = encode(
            vae, torch.cat([batch.camera, wanted, batch.depth])
        ).chunk(3)
    embeds = denoiser.embed(batch.tokens).repeat_interleave(frames, dim=0)
    window = Window.clip(frames) if with_motion else None
    timesteps = first.repeat_interleave(frames)
    sample = denoiser.noise_to(camera, timesteps)
    if torch.rand(()) < SECOND_STEPS:
        with torch.no_grad():
            clean = denoiser.unet(sample, timesteps, embeds, depth_latents, window)
        second = LAST_TIMESTEP + torch.rand(clips, device=first.device) * (first - 4 - LAST_TIMESTEP)
        timesteps = second.long().repeat_interleave(frames)
        sample = denoiser.noise_to(clean, timesteps)
    clean = denoiser.unet(sample, timesteps, embeds, depth_latents, window)
    return clean, decode(vae, clean), wanted_latents, wanted


def denoising_loss(
    denoiser: Denoiser, batch: Batch, frames: int, with_motion: bool
) -> tuple[torch.Tensor, Losses]:
    """The error of the clean latents and of the pictures; with clips, the flicker as well."""
    latents, output, wanted_latents, wanted = denoise_batch(denoiser, batch, frames, with_motion)
    latent_error, pixel_error = (latents - wanted_latents).square().mean(), picture_loss(output, wanted)
    loss = LATENT_WEIGHT * latent_error + pixel_error
    losses = {"latent": latent_error.item(), "pixel": pixel_error.item()}
    if with_motion:
        # What changes from frame to frame must be what changes in the target: anything else is flicker.
        error = (output - wanted).unflatten(0, (-1, frames))
        flicker = (error[:, 1:] - error[:, :-1]).abs().mean()
        loss, losses["flicker"] = loss + flicker, flicker.item()
    return loss, losses


def preview(denoiser: Denoiser, batch: Batch, frames: int, with_motion: bool) -> np.ndarray:
    """The batch's first eight pictures: the camera's, what they should become, what they become."""
    with torch.no_grad():
        _, output, _, wanted = denoise_batch(denoiser, batch, frames, with_motion)
    rows = [torch.cat(list(pictures[:8]), dim=2) for pictures in (batch.camera, wanted, output)]
    pixels = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(1, 2, 0).cpu().numpy()


def train_denoiser(
    name: str,
    denoiser: Denoiser,
    pool: Pool,
    trains: Callable[[str], bool],
    folder: Path,
    *,
    steps: int,
    clips: int,
    peak: float,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Losses]]:
    """One stage, on `clips` clips of the pool a step; `trains` says, by name, which of the denoiser's
    parameters move in it. Clips of several frames go through the motion modules, single pictures around
    them."""
    frames = pool.camera.shape[1]
    with_motion = frames > 1
    moving = [parameter for key, parameter in denoiser.named_parameters() if trains(key)]
    for key, parameter in denoiser.named_parameters():
        # The whole UNet gets gradients, used or not: where only some of a group norm's are wanted, the
        # backward pass of PyTorch 2.13, channels last on the CPU, writes to a null pointer.
        parameter.requires_grad_(trains(key) or key.startswith("unet."))
    denoiser.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> Batch:
        random = np.random.default_rng([seed, sum(map(ord, name)), step])
        return sample_batch(random, pool, clips)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, Losses]:
        return denoising_loss(denoiser, batch.to(device), frames, with_motion)

    def preview_of(batch: Batch) -> np.ndarray:
        return preview(denoiser, batch.to(device), frames, with_motion)

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
        preview=preview_of,
        device=device,
    )
