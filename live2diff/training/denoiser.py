"""The nano model's denoiser: the image part first, then the motion modules, then both, as in the paper
(section 5).

It is trained on what a stream will give it. The first step starts from the *camera's* latents, noised, and
must reach the *styled* ones; a later step starts from the model's own prediction, noised again, and must
reach the same. The error is taken on the clean latents and on the pixels that they decode to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel

from ..model.attention import TemporalTransformer, Window
from ..model.depth import depth_pictures
from ..model.lcm import build_scheduler
from ..model.unet import StreamUNet
from ..model.vae import decode, encode
from .loop import Losses, fit
from .pool import Pool
from .vae import picture_loss, to_tensor

# A stream may start anywhere in this range, more often at its lower end. It lies below SD's: a latent of
# 32 x 32 cells is drowned by the noise that one of 64 x 64 bears.
FIRST_TIMESTEPS = (4, 64)
LAST_TIMESTEP = 4
LATENT_WEIGHT = 0.1  # the latents' finest channels count as much as the coarsest, but nobody sees them
FLICKER_WEIGHT = 5.0  # a flicker of a tenth of the error is what the eye goes to
CONTRAST_WEIGHT = 1.0  # a model that is not sure draws the mean, which is grey where there should be a line
SECOND_STEPS = 0.3  # of all batches; the others learn the first step, which is the harder one
SLOW_CLIPS = 0.5  # of all clips; before a webcam most things hardly move
SIMILARITY_GAIN = 1.2  # the same frame then weighs 50 times one that has nothing in common with it
FULL_STRENGTH = 9  # from this first timestep on the target is all style; below, the camera shines through


def strength_of(first: torch.Tensor) -> torch.Tensor:
    """How much of the style a stream that starts at this timestep shows, in `(0, 1]`."""
    return ((first + 1) / (FULL_STRENGTH + 1)).clamp(max=1)


def build_unet() -> StreamUNet:
    """An untrained UNet of three levels.

    Text enters by cross-attention at the coarsest level and, pooled, as scale and shift of every resnet: the
    style has to reach the fine strokes too. Most resnets are at the finest level: what a style makes of 64
    pixels is a matter of one cell. The one motion module is at its end: the noise that makes a picture boil
    is in every cell of the latents, and passes the coarser levels by on the skips.
    """
    unet = StreamUNet(
        in_channels=32,
        out_channels=32,
        block_out_channels=(64, 96, 160),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=(3, 1, 1),
        norm_num_groups=8,
        cross_attention_dim=64,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        resnet_time_scale_shift="scale_shift",
        depth_channels=(32, 32),
        motion_module_resolutions=(1,),
        motion_module_last_only=True,
    )
    begin_as_copy(unet)
    for module in unet.modules():
        if isinstance(module, TemporalTransformer):
            begin_as_average(module)
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


@torch.no_grad()
def begin_as_average(motion: TemporalTransformer) -> None:
    """Set an untrained motion module one step away from taking the mean over the frames that are alike.

    Queries and keys are one orthogonal map, so that a frame looks at those that show the same in this place.
    The first attention turns x into x minus their mean; the second and the feed-forward add nothing yet.
    `proj_out` stays zero, as for all motion modules: what it has to learn is how much of that to take away.
    """
    block = motion.transformer_blocks[0]
    identity = torch.eye(motion.proj_in.in_features)
    motion.proj_in.weight.copy_(identity)
    motion.proj_in.bias.zero_()
    for attention, sign in zip(block.attention_blocks, (-1, 0), strict=True):
        nn.init.orthogonal_(attention.to_q.weight, gain=SIMILARITY_GAIN)
        attention.to_k.weight.copy_(attention.to_q.weight)
        attention.to_v.weight.copy_(identity)
        attention.to_out[0].weight.copy_(sign * identity)
        attention.to_out[0].bias.zero_()
    block.ff.net[2].weight.zero_()
    block.ff.net[2].bias.zero_()


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

    @property
    def frames(self) -> int:
        """Of each clip. Where it is one, the motion modules are left out."""
        return len(self.camera) // len(self.tokens)

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def sample_batch(random: np.random.Generator, pool: Pool, clips: int) -> Batch:
    """Clips of the pool, some of them slowed down. Their depth gets errors on top of the estimator's: a scale
    and a haze that jump from frame to frame."""
    drawn = np.sort(random.choice(len(pool), clips, replace=len(pool) < clips))
    frames = np.stack([sample_pace(random, pool.camera.shape[1]) for _ in drawn])  # [clips, frames]
    camera, clean, target, depth = (
        part[drawn[:, None], frames].reshape(-1, *part.shape[2:])
        for part in (pool.camera, pool.clean, pool.target, pool.depth)
    )
    camera, clean, target = to_tensor(camera), to_tensor(clean), to_tensor(target)
    depth = torch.from_numpy(depth.astype(np.float32))
    haze = torch.from_numpy(random.normal(0, 0.08, (len(depth), 1, 4, 4)).astype(np.float32))
    haze = functional.interpolate(haze, depth.shape[1:], mode="bilinear")[:, 0]
    scale = torch.from_numpy(random.normal(1, 0.04, (len(depth), 1, 1)).astype(np.float32))
    depth = depth_pictures((depth * scale + haze).clamp(-1, 1), camera.shape[2:])
    return Batch(camera, clean, target, depth, torch.from_numpy(pool.tokens[drawn]))


def sample_pace(random: np.random.Generator, frames: int) -> np.ndarray:
    """Which frame of a clip is shown when: all in order, or some of them for longer, down to a still."""
    if frames == 1 or random.random() > SLOW_CLIPS:
        return np.arange(frames)
    pace = random.choice([0, 0.25, 0.5])
    begin = random.integers(0, frames - int(pace * (frames - 1)))
    return begin + (pace * np.arange(frames)).astype(int)


def denoise_batch(
    denoiser: Denoiser, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step from the camera's latents, or a second one from the first one's result, as a stream does them.

    Returns:
        The predicted clean latents and pictures, and the latents and pictures that they should be.
    """
    vae, clips, frames = denoiser.vae, len(batch.tokens), batch.frames
    first = torch.rand(clips, device=batch.tokens.device).square()
    first = (FIRST_TIMESTEPS[0] + first * (FIRST_TIMESTEPS[1] - FIRST_TIMESTEPS[0])).long()
    strength = strength_of(first).repeat_interleave(frames).view(-1, 1, 1, 1)
    with torch.no_grad():
        wanted = torch.lerp(batch.clean, batch.target, strength)
        camera, wanted_latents, depth_latents = encode(
            vae, torch.cat([batch.camera, wanted, batch.depth])
        ).chunk(3)
    embeds = denoiser.embed(batch.tokens).repeat_interleave(frames, dim=0)
    window = Window.clip(frames) if frames > 1 else None
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


def contrast(pictures: torch.Tensor) -> torch.Tensor:
    """How much the pixels of each small square differ from each other, `[n, 3, squares, squares]`."""
    mean, square = (functional.avg_pool2d(power, 8, stride=4) for power in (pictures, pictures.square()))
    return ((square - mean.square()).clamp(min=0) + 1e-3).sqrt()


def denoising_loss(
    denoiser: Denoiser, batch: Batch, flicker_weight: float = FLICKER_WEIGHT
) -> tuple[torch.Tensor, Losses]:
    """The error of the clean latents, of the pictures and of their contrast; with clips, the flicker as
    well."""
    latents, output, wanted_latents, wanted = denoise_batch(denoiser, batch)
    latent_error, pixel_error = (latents - wanted_latents).square().mean(), picture_loss(output, wanted)
    contrast_error = (contrast(output) - contrast(wanted)).abs().mean()
    loss = LATENT_WEIGHT * latent_error + pixel_error + CONTRAST_WEIGHT * contrast_error
    losses = {
        "latent": latent_error.item(),
        "pixel": pixel_error.item(),
        "contrast": contrast_error.item(),
    }
    if batch.frames > 1:
        # What changes from frame to frame must be what changes in the target: anything else is flicker.
        error = (output - wanted).unflatten(0, (-1, batch.frames))
        flicker = (error[:, 1:] - error[:, :-1]).abs().mean()
        loss, losses["flicker"] = loss + flicker_weight * flicker, flicker.item()
    return loss, losses


def preview(denoiser: Denoiser, batch: Batch) -> np.ndarray:
    """The batch's first eight pictures: the camera's, what they should become, what they become."""
    with torch.no_grad():
        _, output, _, wanted = denoise_batch(denoiser, batch)
    rows = [torch.cat(list(pictures[:8]), dim=2) for pictures in (batch.camera, wanted, output)]
    pixels = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5
    return pixels.round().byte().permute(1, 2, 0).cpu().numpy()


def train_denoiser(
    name: str,
    denoiser: Denoiser,
    sources: Sequence[tuple[Pool, int]],
    trains: Callable[[str], bool],
    folder: Path,
    *,
    steps: int,
    peak: float,
    flicker_weight: float = FLICKER_WEIGHT,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[int, Losses]]:
    """One stage. Each step takes its clips from the next of `sources`, pools with the number of clips to
    draw; `trains` says, by name, which of the denoiser's parameters move. Clips of several frames go through
    the motion modules, single pictures around them."""
    moving = [parameter for key, parameter in denoiser.named_parameters() if trains(key)]
    for key, parameter in denoiser.named_parameters():
        # All norms and what comes before the first get gradients, used or not: where only some of a group
        # norm's are wanted, the backward pass of PyTorch 2.13, channels last on the CPU, writes to a null
        # pointer.
        parameter.requires_grad_(trains(key) or "norm" in key or key.startswith("unet.conv_in"))
    denoiser.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> Batch:
        random = np.random.default_rng([seed, sum(map(ord, name)), step])
        return sample_batch(random, *sources[step % len(sources)])

    return fit(
        name,
        denoiser,
        batch_of,
        lambda batch: denoising_loss(denoiser, batch.to(device), flicker_weight),
        moving,
        steps=steps,
        peak=peak,
        folder=folder,
        seed=seed,
        preview=lambda batch: preview(denoiser, batch.to(device)),
        device=device,
    )
