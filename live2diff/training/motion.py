"""The paper's own training: motion modules and depth mapping for Stable Diffusion 1.5, from a folder of
videos.

The picture model stays as it is, bit for bit. What is learnt is how frames belong together: a clip of 16 is
noised to one timestep, and the UNet, in which each frame sees those that it will see in a stream (the 8
warmup frames and the last 8 up to itself, never a later one), has to predict the noise. Who looks at the
other frames, and at the depth, can tell more of it than the frozen rest alone: that is what the motion
modules and the mapping learn.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import LCMScheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ..config import WINDOW
from ..model.attention import Window
from ..model.depth import DepthRange, depth_pictures, inverse_depth
from ..model.unet import StreamUNet
from ..pipeline import LONGEST_PROMPT, Live2DiffPipeline
from ..weights.convert import added_weights
from .loop import Losses, write_whole
from .videos import Clip, VideoFolder

PREVIEW_TIMESTEP = 500  # of 1000: much of what is shown then has to be guessed
FEW = 4  # frames that the VAE and the depth estimator take at once: all 16 would need more than the UNet does
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What a resumed run may do otherwise than before; all else decides what is learnt.
FREE = ("steps", "gradient_checkpointing", "workers", "checkpoint_every", "preview_every")
Made = TypeVar("Made")


@dataclass(frozen=True)
class MotionRecipe:
    """The numbers of a run. A step learns from `clips * accumulate` clips on each GPU."""

    steps: int = 50_000
    clips: int = 1  # at a time
    accumulate: int = 1  # times, before the weights move
    learning_rate: float = 1e-4
    rise_steps: int = 500  # over which the rate comes up; then it stays
    caption_dropout: float = 0.1  # of the captions are left out: motion is not to hang on words
    ema_decay: float = 0.9999  # of the moving average that is saved at the end
    precision: str = "no"  # or "fp16", "bf16": of what is frozen and of the arithmetic
    gradient_checkpointing: bool = False  # less memory, more time
    seed: int = 0
    workers: int = 4  # threads that read clips ahead
    checkpoint_every: int = 500
    preview_every: int = 500


@dataclass
class Inputs:
    """What the UNet is given of some clips, their frames next to each other in the batch; float32.

    Attributes:
        latents, depth_latents: `[clips * 16, 4, h, w]`, without noise.
        prompt_embeds: `[clips * 16, tokens, dim]`.
    """

    latents: torch.Tensor
    depth_latents: torch.Tensor
    prompt_embeds: torch.Tensor


def train_motion(
    pipeline: Live2DiffPipeline,
    videos: VideoFolder,
    work: Path,
    out: Path,
    recipe: MotionRecipe = MotionRecipe(),
) -> Iterator[tuple[int, Losses]]:
    """Train what `load_base` added to a picture model, yielding `(step, losses)`.

    At the end it is saved to `out`: safetensors in half precision, by the names of the published checkpoint.
    `work` holds the checkpoint and the previews: killed at any moment, the same call goes on from the last
    checkpoint. Under `accelerate launch` it runs on several GPUs.

    Raises:
        ValueError: the checkpoint in `work` was begun with other settings.
    """
    accelerator = Accelerator(mixed_precision=recipe.precision, gradient_accumulation_steps=recipe.accumulate)
    learnt = freeze_base(pipeline, DTYPES[recipe.precision])
    parameters = list(learnt.values())
    if recipe.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    pipeline.to(accelerator.device)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=1e-2)
    unet, optimizer = accelerator.prepare(pipeline.unet, optimizer)
    average = EMAModel(parameters, decay=recipe.ema_decay)
    settings = {name: value for name, value in asdict(recipe).items() if name not in FREE}
    settings |= {"size": videos.size, "stride": videos.stride, "processes": accelerator.num_processes}
    checkpoint = Checkpoint(work / "motion.pt", settings, learnt, optimizer, average, accelerator.scaler)
    first = checkpoint.resume(accelerator.device)

    def clips_of(part: int) -> list[Clip]:
        """The clips of one backward pass, of which a step has `accumulate`."""
        random = np.random.default_rng([recipe.seed, part, accelerator.process_index])
        clips = [videos.draw(random) for _ in range(recipe.clips)]
        return [drop_caption(random, clip, recipe.caption_dropout) for clip in clips]

    parts = range(first * recipe.accumulate, recipe.steps * recipe.accumulate)
    coming = made_ahead(clips_of, parts, recipe.workers)
    for step in range(first, recipe.steps):
        torch.manual_seed(seed_of(recipe.seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1, (step + 1) / recipe.rise_steps)
        total = 0.0
        for _ in range(recipe.accumulate):
            inputs = encode(pipeline, next(coming))
            with accelerator.accumulate(unet):  # the gradients gather; at the last part the weights move
                loss = denoising_loss(unet, pipeline.scheduler, inputs)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            total += accelerator.reduce(loss.detach(), "mean").item() / recipe.accumulate
        if not np.isfinite(total):
            raise FloatingPointError(f"The loss is {total} at step {step}; lower the learning rate.")
        average.step(parameters)
        done, last = step + 1, step + 1 == recipe.steps
        if accelerator.is_main_process and (done % recipe.preview_every == 0 or last):
            clip = videos.draw(np.random.default_rng(recipe.seed))  # the same each time
            write_preview(pipeline, clip, work / "previews" / f"motion-{done:06}.png")
        if accelerator.is_main_process and (done % recipe.checkpoint_every == 0 or last):
            checkpoint.write(done)
        yield step, {"loss": total}
    if accelerator.is_main_process:
        averages = zip(learnt, average.shadow_params, strict=True)
        weights = {name: weight.half().cpu().contiguous() for name, weight in averages}
        write_whole(out, lambda partial: save_file(weights, partial))


def freeze_base(pipeline: Live2DiffPipeline, dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """Let nothing move but motion modules and depth mapping, which are given back by name; what is only
    computed with may be in half precision."""
    learnt = added_weights(pipeline.unet)
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.depth_estimator):
        nn.Module.to(module.requires_grad_(False), dtype)  # diffusers' own `to` warns of modules it has not
    for name, parameter in pipeline.unet.named_parameters():
        parameter.requires_grad_(name in learnt)
        parameter.data = parameter.data.to(torch.float32 if name in learnt else dtype)
    return learnt


@torch.no_grad()
def encode(pipeline: Live2DiffPipeline, clips: list[Clip]) -> Inputs:
    """Clips as the UNet sees them, by the same means as in a stream; each clip has its own range of depth."""
    pixels = torch.from_numpy(np.concatenate([clip.pictures for clip in clips])).to(pipeline.device)
    # Channels first: in the other order PyTorch 2.13 fails in the backward pass of a frozen norm on the CPU.
    source = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
    few = source.split(FEW)
    depth = torch.cat([inverse_depth(pipeline.depth_estimator, frames) for frames in few])
    depth = torch.cat([DepthRange().normalise(clip) for clip in depth.split(WINDOW)])
    depth_few = depth_pictures(depth, source.shape[2:]).split(FEW)
    latents, depth_latents = (
        torch.cat([pipeline.encode(frames) for frames in parts]).float() for parts in (few, depth_few)
    )
    embeds = torch.stack([pipeline.encode_prompt(None, clip.caption[:LONGEST_PROMPT]) for clip in clips])
    return Inputs(latents, depth_latents, embeds.float().repeat_interleave(WINDOW, dim=0))


def predict_noise(
    unet: StreamUNet, sample: torch.Tensor, timesteps: torch.Tensor, inputs: Inputs
) -> torch.Tensor:
    """The noise in `sample`, each frame seeing only what it will see in a stream."""
    window = Window.clip(WINDOW, sample.device)
    return unet(sample, timesteps, inputs.prompt_embeds, inputs.depth_latents, window).float()


def denoising_loss(unet: StreamUNet, scheduler: LCMScheduler, inputs: Inputs) -> torch.Tensor:
    """The error of the predicted noise.

    Each frame has noise of its own, but the frames of a clip share their timestep, as those in the cache of
    one denoising step do.
    """
    clips, device = len(inputs.latents) // WINDOW, inputs.latents.device
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (clips,), device=device)
    timesteps = timesteps.repeat_interleave(WINDOW)
    noise = torch.randn_like(inputs.latents)
    sample = scheduler.add_noise(inputs.latents, noise, timesteps)
    return functional.mse_loss(predict_noise(unet, sample, timesteps, inputs), noise)


@torch.no_grad()
def write_preview(pipeline: Live2DiffPipeline, clip: Clip, file: Path) -> None:
    """Every other frame of a clip, above what the UNet makes of it in one step out of half noise."""
    inputs, scheduler = encode(pipeline, [clip]), pipeline.scheduler
    noise = torch.randn(inputs.latents.shape, generator=torch.Generator().manual_seed(0)).to(inputs.latents)
    timesteps = torch.full((WINDOW,), PREVIEW_TIMESTEP, device=noise.device)
    sample = scheduler.add_noise(inputs.latents, noise, timesteps)
    alpha_bar = scheduler.alphas_cumprod[PREVIEW_TIMESTEP].item()
    output = predict_noise(pipeline.unet, sample, timesteps, inputs)
    clean = (sample - (1 - alpha_bar) ** 0.5 * output) / alpha_bar**0.5
    decoded = torch.cat([pipeline.decode(frames) for frames in clean[::2].split(FEW)]).float()
    pictures = ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    strip = np.concatenate([np.concatenate(list(row), axis=1) for row in (clip.pictures[::2], pictures)])
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), strip[..., ::-1])


@dataclass
class Checkpoint:
    """All that a run needs to go on, in one file."""

    file: Path
    settings: dict
    learnt: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: EMAModel
    scaler: torch.amp.GradScaler | None  # of fp16 alone

    def write(self, step: int) -> None:
        """Write down that `step` steps are done."""
        state = {
            "step": step,
            "settings": self.settings,
            "learnt": {name: parameter.detach() for name, parameter in self.learnt.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }
        write_whole(self.file, lambda partial: torch.save(state, partial))

    @torch.no_grad()
    def resume(self, device: torch.device) -> int:
        """Put back what was written, if anything was; how many steps are done.

        Raises:
            ValueError: the run was begun with other settings.
        """
        if not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True, map_location="cpu")
        for name, now in self.settings.items():
            before = state["settings"].get(name)
            if before != now:
                raise ValueError(
                    f"{self.file} was begun with {name} {before}, and now it is {now}: go on with the same, "
                    "or begin anew with another --work."
                )
        for name, parameter in self.learnt.items():
            parameter.copy_(state["learnt"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.average.to(device)
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        return state["step"]


def drop_caption(random: np.random.Generator, clip: Clip, share: float) -> Clip:
    """The clip, without its caption in this share of all cases."""
    return Clip(clip.pictures, "" if random.random() < share else clip.caption)


def seed_of(*numbers: int) -> int:
    """One seed out of several numbers, so that no two steps and no two processes share their noise."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def made_ahead(make: Callable[[int], Made], numbers: range, workers: int) -> Iterator[Made]:
    """`make` of each number in turn; as many threads make as many ahead."""
    with ThreadPoolExecutor(workers) as pool:
        coming: deque = deque()
        for number in numbers:
            coming.append(pool.submit(make, number))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
