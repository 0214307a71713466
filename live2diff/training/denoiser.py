"""The nano model's denoiser: the image layers first, then the motion modules (paper, section 5).

It is trained on what a stream will give it. The first step starts from the *camera's* latents, noised, and
must reach the *styled* ones; a later step starts from the model's own prediction, noised again, and must
reach the same. The error is taken on the clean latents and on the pixels that they decode to.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel

from ..config import WINDOW
from ..loading import NANO
from ..model.attention import TemporalTransformer, Window
from ..model.depth import depth_pictures
from ..model.lcm import build_scheduler
from ..model.unet import StreamUNet
from ..model.vae import decode, encode
from ..streaming.images import download
from .clips import through_camera
from .loop import LoopSettings, Losses, fit, share_of
from .losses import CELL, Critic, Perception, contrast, image_loss
from .pool import Pool
from .vae import to_tensor

# A stream may start anywhere in this range, more often at its lower end. It lies below SD's: a latent of
# 32 x 32 cells is drowned by the noise that one of 64 x 64 bears.
FIRST_TIMESTEPS = (4, 64)
LAST_TIMESTEP = 4
# What each loss counts. An unsure model draws the mean of what it is unsure of, grey where there should be a
# line: contrast, texture, perception and the critic see that. The finest latents nobody sees.
WEIGHTS = {
    "latent": 0.1, "pixel": 0.25, "contrast": 1.0, "perception": 0.6, "texture": 1.5, "fooled": 0.2,
    "critic": 1.0, "flicker": 6.0,
}  # fmt: skip
SECOND_STEPS = 0.3  # share of batches; the others learn the first step, which is the harder one
SLOW_CLIPS = 0.7  # share of clips; in front of a webcam most things hardly move
CUT_CLIPS = 0.06  # share of clips that go over to another one
FASTEST_PAN = 8.0  # pixels a frame
SIMILARITY_GAIN = 0.8  # of queries and keys at first: more, and noise decides which frames are alike
AVERAGED = 0.8  # of what differs from the mean over alike frames is taken away at first
FULL_STRENGTH = 9  # from this first timestep on the target is all style; below, the camera shows through
# The model predicts the clean latents themselves. Where little noise is added, a prediction of the noise
# would have to hold the whole difference between camera and style, divided by that little.
PREDICTION_TYPE = "sample"

# Some clips: "camera", "clean", "target" (styled) and "depth" are images `[clips * frames, 3, height, width]`
# in `[-1, 1]`, "tokens" `[clips, 77]`. Clips of several frames go through the motion modules, single images
# around them.
Batch = dict[str, torch.Tensor]


def build_unet() -> StreamUNet:
    """Return an untrained UNet of the shipped model's shape, three levels.

    Text enters by cross-attention at the coarsest level and, pooled, as scale and shift of every resnet: the
    style has to reach the fine strokes too. Most resnets are at the finest level: what a style makes of 64
    pixels is a matter of one cell. The one motion module is at its end: the noise that makes an image flicker
    is in every cell of the latents, and passes the coarser levels by on the skips.
    """
    config: Any = StreamUNet.load_config(NANO / "unet")
    unet: Any = StreamUNet.from_config(config)
    initialise_as_copy(unet)
    return unet


@torch.no_grad()
def initialise_as_copy(unet: Any) -> None:
    """Initialise a UNet to return its input, so that it only has to learn the difference a style makes.

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
def initialise_as_average(motion: Any, spread: torch.Tensor) -> None:
    """Initialise a motion module as the mean over frames that are alike.

    Queries and keys are one orthogonal map, so that a frame attends to those that show the same at this cell.
    The first attention turns x into x minus their mean, of which `proj_out` takes AVERAGED away; the second
    and the feed-forward add nothing yet. All of that is blind to positions: it leaves out the few directions
    in which they lie. So a module starts calm, with ghosts, and learns where not to average.

    Args:
        motion: a `TemporalTransformer`.
        spread: deviation of what enters, `[groups]`, which its norm divides by.
    """
    block = motion.transformer_blocks[0]
    identity = torch.eye(motion.proj_in.in_features, device=spread.device)
    positions = block.attention_blocks[0].positions[:WINDOW]
    _, lengths, directions = torch.linalg.svd(positions, full_matrices=False)
    directions = directions[lengths > 0.02 * lengths[0]]
    blind = identity - directions.T @ directions
    motion.norm.reset_parameters()
    motion.proj_in.weight.copy_(identity)
    motion.proj_in.bias.zero_()
    for attention, sign in zip(block.attention_blocks, (-1, 0), strict=True):
        nn.init.orthogonal_(attention.to_q.weight, gain=SIMILARITY_GAIN)
        attention.to_q.weight.copy_(attention.to_q.weight @ blind)
        attention.to_k.weight.copy_(attention.to_q.weight)
        attention.to_v.weight.copy_(blind)
        attention.to_out[0].weight.copy_(sign * identity)
        attention.to_out[0].bias.zero_()
    block.ff.net[2].weight.zero_()
    block.ff.net[2].bias.zero_()
    deviation = spread.repeat_interleave(len(identity) // len(spread))
    motion.proj_out.weight.copy_(-AVERAGED * deviation[:, None] * blind)
    motion.proj_out.bias.zero_()


@torch.no_grad()
def begin_motion(denoiser: "Denoiser", batch: Batch) -> None:
    """Initialise the motion modules by what enters them with a batch of clips."""
    modules = [module for module in denoiser.unet.modules() if isinstance(module, TemporalTransformer)]
    inputs: dict[Any, torch.Tensor] = {}
    hooks = [
        module.norm.register_forward_pre_hook(lambda norm, arguments: inputs.update({norm: arguments[0]}))
        for module in modules
    ]
    denoise_batch(denoiser, batch)
    for hook, module in zip(hooks, modules, strict=True):
        hook.remove()
        groups = inputs[module.norm].float().unflatten(1, (module.norm.num_groups, -1))
        initialise_as_average(module, groups.std(dim=(2, 3, 4)).mean(dim=0))


def is_motion(name: str) -> bool:
    """Return whether a parameter of the denoiser belongs to a motion module."""
    return ".motion_modules." in name


class Denoiser(nn.Module):
    """Combine what is fitted together: the UNet, the text encoder and the VAE's decoder."""

    vae: Any

    def __init__(self, unet: StreamUNet, text_encoder: CLIPTextModel, vae: AutoencoderTiny):
        super().__init__()
        self.unet, self.text_encoder, self.vae = unet, text_encoder, vae
        self.perception, self.critic = Perception(), Critic(text_encoder.config.hidden_size)
        alpha_bar = build_scheduler(PREDICTION_TYPE).alphas_cumprod.clone()
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encode tokens `[n, 77]` to `[n, 77, dim]`, at `clip_skip` 1 as the pipeline does."""
        hidden = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        text_model = getattr(self.text_encoder, "text_model", self.text_encoder)
        return text_model.final_layer_norm(hidden)

    def add_noise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, frames: int = 1, amount: float = 1.0
    ) -> torch.Tensor:
        """Noise each of the latents to its timestep, all frames of a clip alike, as nano's streams do."""
        alpha_bar = self.get_buffer("alpha_bar")[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents[::frames]).repeat_interleave(frames, dim=0)
        return alpha_bar.sqrt() * latents + amount * (1 - alpha_bar).sqrt() * noise


def sample_batch(random: np.random.Generator, pool: Pool, clips: int, side: int) -> Batch:
    """Sample parts of `side` x `side` pixels of clips, with errors of scale and haze in the depth.

    Clips of several frames get their noise here: so it differs where one is slowed down to a still, too.
    """
    total, length, size, *_ = pool["clean"].shape
    rows = np.sort(random.choice(total, clips, replace=total < clips))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("camera", "clean", "target", "depth")}
    for row in rows:
        shown, places = sample_pace(random, length), sample_path(random, length, size - side)
        shown_rows = np.full(length, row)
        if length > 1 and random.random() < CUT_CLIPS:
            shown_rows[random.integers(1, length) :] = random.integers(total)
        for name, part in parts.items():
            if name in pool:
                scale = pool[name].shape[2] / size
                for clip, frame, place in zip(shown_rows, shown, places, strict=True):
                    (top, left), wide = (place * scale).astype(int), int(side * scale)
                    part.append(pool[name][clip, frame, top : top + wide, left : left + wide])
    if length > 1:
        cleans = np.stack(parts["clean"]).reshape(clips, length, side, side, 3)
        parts["camera"] = list(np.concatenate([through_camera(random, clean) for clean in cleans]))
    depth = torch.from_numpy(np.stack(parts.pop("depth")).astype(np.float32))
    batch = {name: to_tensor(np.stack(part)) for name, part in parts.items() if part}
    haze = torch.from_numpy(random.normal(0, 0.08, (len(depth), 1, 4, 4)).astype(np.float32))
    haze = functional.interpolate(haze, depth.shape[1:], mode="bilinear")[:, 0]
    scale = torch.from_numpy(random.normal(1, 0.04, (len(depth), 1, 1)).astype(np.float32))
    depth = depth_pictures((depth * scale + haze).clamp(-1, 1), (side, side))
    return batch | {"depth": depth, "tokens": torch.from_numpy(pool["tokens"][rows])}


def sample_pace(random: np.random.Generator, frames: int) -> np.ndarray:
    """Return which frame of a clip is shown when: all in order, slowed down to a still, or with stops."""
    if frames == 1 or random.random() > SLOW_CLIPS:
        return np.arange(frames)
    if random.random() < 0.4:  # stop and go
        moves = np.repeat(random.integers(0, 2, frames // 4 + 1), 4)[:frames]
        return np.cumsum(moves) - moves[0]
    pace = random.choice([0, 0, 0, 0.25, 0.5])
    start = random.integers(0, frames - int(pace * (frames - 1)))
    return start + (pace * np.arange(frames)).astype(int)


def sample_path(random: np.random.Generator, frames: int, margin: int) -> np.ndarray:
    """Return the corner (y, x) of the part that each frame shows, from 0 to `margin`, `[frames, 2]`.

    Single images are cut at the borders of cells; the camera of a clip may pan and shake.
    """
    if frames == 1:
        return CELL * random.integers(0, margin // CELL + 1, (1, 2))
    speed = random.uniform(-FASTEST_PAN, FASTEST_PAN, 2) * (random.random() < 0.25)
    shake = random.choice([0.0, 0.0, 0.0, 0.0, 0.6, 2.0])
    path = random.uniform(0, margin, 2) + speed * np.arange(frames)[:, None]
    path += shake * random.standard_normal((frames, 2))
    return np.abs((path + margin) % (2 * margin) - margin) if margin else np.zeros((frames, 2))


def denoise_batch(
    denoiser: Denoiser, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take one step from the camera's latents, or a second one from its result, as a stream does.

    The target of a clip is what the image layers alone make of each clean frame without noise: as sharp as
    without memory, and calm where nothing moves.

    Returns:
        The predicted clean latents and images, and the latents and images that they should be.
    """
    vae, clips, device = denoiser.vae, len(batch["tokens"]), batch["tokens"].device
    frames = len(batch["camera"]) // clips
    first = torch.rand(clips, device=device).square()
    first = (FIRST_TIMESTEPS[0] + first * (FIRST_TIMESTEPS[1] - FIRST_TIMESTEPS[0])).long()
    timesteps = first.repeat_interleave(frames)
    embeds = denoiser.embed(batch["tokens"]).repeat_interleave(frames, dim=0)
    window = Window.clip(frames, device) if frames > 1 else None
    with torch.no_grad():
        camera, depth = encode(vae, batch["camera"]), encode(vae, batch["depth"])
        if window is None:
            # How much of the style a stream from this timestep shows.
            strength = ((first + 1) / (FULL_STRENGTH + 1)).clamp(max=1).view(-1, 1, 1, 1)
            target = torch.lerp(batch["clean"], batch["target"], strength)
            target_latents = encode(vae, target)
        else:
            calm = denoiser.add_noise(encode(vae, batch["clean"]), timesteps, amount=0)
            target_latents = denoiser.unet(calm, timesteps, embeds, depth, None)
            target = decode(vae, target_latents)
    sample = denoiser.add_noise(camera, timesteps, frames)
    if torch.rand(()) < SECOND_STEPS:
        with torch.no_grad():
            clean = denoiser.unet(sample, timesteps, embeds, depth, window)
        second = LAST_TIMESTEP + torch.rand(clips, device=device) * (first - 4 - LAST_TIMESTEP)
        timesteps = second.long().repeat_interleave(frames)
        sample = denoiser.add_noise(clean, timesteps, frames)
    clean = denoiser.unet(sample, timesteps, embeds, depth, window)
    return clean.float(), decode(vae, clean).float(), target_latents.float(), target.float()


def denoising_loss(
    denoiser: Denoiser, batch: Batch, weights: dict[str, float] = WEIGHTS
) -> dict[str, torch.Tensor]:
    """Return the losses by name, those of single images or of clips; "loss" is their weighted sum."""
    latents, output, target_latents, target = denoise_batch(denoiser, batch)
    frames = len(output) // len(batch["tokens"])
    losses = {
        "latent": (latents - target_latents).square().mean(),
        "pixel": image_loss(output, target),
        "contrast": (contrast(output) - contrast(target)).abs().mean(),
    }
    if frames > 1:
        # What changes from frame to frame must be what changes in the target: anything else is flicker.
        error = (output - target).unflatten(0, (-1, frames))
        losses["flicker"] = (error[:, 1:] - error[:, :-1]).abs().mean()
    else:
        losses["perception"], losses["texture"] = denoiser.perception(output, target)
        text = denoiser.embed(batch["tokens"]).mean(dim=1)
        losses["fooled"], losses["critic"] = denoiser.critic.losses(batch["camera"], output, target, text)
    loss: Any = sum(weights[name] * value for name, value in losses.items())
    return {"loss": loss, **losses}


@torch.no_grad()
def preview_image(denoiser: Denoiser, batch: Batch) -> np.ndarray:
    """Draw the batch's first eight images: the camera's, the targets, the results."""
    _, output, _, target = denoise_batch(denoiser, batch)
    height, width = target.shape[2:]
    rows = [images[:8].float() for images in (batch["camera"], target, output)]
    rows = [np.concatenate(download(row, [(height, width)] * len(row)), axis=1) for row in rows]
    return np.concatenate(rows)


def train_denoiser(
    name: str,
    denoiser: Any,
    sources: Sequence[tuple[Pool, int, int]],
    trains: Callable[[str], bool],
    settings: LoopSettings,
    work: Path,
    accelerator: Accelerator,
    weights: dict[str, float] = WEIGHTS,
) -> Iterator[tuple[int, Losses]]:
    """Train one stage.

    Each step takes its clips from the next of `sources`: a pool, the number of clips to sample, which the
    processes share, and the side of the part that is shown. `trains` says, by name, which parameters move.
    """
    trained = {key: parameter for key, parameter in denoiser.named_parameters() if trains(key)}
    # All norms and what comes before the first get gradients, used or not: where only some of a group norm's
    # are computed, the backward pass of PyTorch 2.13, channels last on the CPU, writes to a null pointer.
    # Where the motion module at the UNet's end is trained alone, the layer before it is the first.
    needed, motion_alone = ("norm", "unet.conv_in"), all(map(is_motion, trained))
    if motion_alone and denoiser.unet.config.motion_module_last_only:
        blocks = denoiser.unet.up_blocks
        needed = ("conv_norm_out", f"up_blocks.{len(blocks) - 1}.resnets.{len(blocks[-1].resnets) - 1}.conv2")
    for key, parameter in denoiser.named_parameters():
        parameter.requires_grad_(key in trained or any(part in key for part in needed))
    denoiser.to(memory_format=torch.channels_last)

    def batch_of(step: int) -> Batch:
        random = np.random.default_rng([settings.seed, sum(map(ord, name)), step, accelerator.process_index])
        pool, clips, side = sources[step % len(sources)]
        return sample_batch(random, pool, share_of(clips, accelerator), side)

    def loss_of(denoiser: Denoiser, batch: Batch) -> dict[str, torch.Tensor]:
        return denoising_loss(denoiser, to_device(batch), weights)

    def to_device(batch: Batch) -> Batch:
        return {key: tensor.to(accelerator.device) for key, tensor in batch.items()}

    def preview(batch: Batch) -> np.ndarray:
        return preview_image(denoiser, to_device(batch))

    if motion_alone:
        begin_motion(denoiser.to(accelerator.device), to_device(batch_of(0)))
    yield from fit(name, denoiser, trained, batch_of, loss_of, settings, work, accelerator, preview=preview)
