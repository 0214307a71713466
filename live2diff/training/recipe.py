"""The recipe of the nano model, from nothing to a folder that `live2diff.load` reads."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ..pipeline import Live2DiffPipeline
from .denoiser import Denoiser, build_scheduler, build_unet, train_denoiser
from .depth import build_depth_estimator, train_depth
from .loop import Losses
from .text import build_text_encoder, build_tokenizer
from .vae import build_vae, train_vae

# Steps of each stage; `scale` multiplies them.
VAE_STEPS = 1600  # L1 0.06 on [-1, 1] by then; the loss still falls slowly
DEPTH_STEPS = 300
IMAGE_STEPS = 1500
MOTION_STEPS = 140
JOINT_STEPS = 60
SIZE = 256  # default working size
T_INDEX_LIST = (46, 49)  # timesteps 79 and 19: enough noise to let go of the camera's texture, not its lines


def is_motion(name: str) -> bool:
    return ".motion_modules." in name


def train_nano(
    work: Path, target: Path, *, scale: float = 1.0, seed: int = 0
) -> Iterator[tuple[str, int, Losses]]:
    """Train the nano model, yielding `(stage, step, losses)`; save it to `target` at the end.

    `work` holds the checkpoints: killed at any moment, the same call goes on from the last one.
    """
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vae, estimator = build_vae(), build_depth_estimator()
    tokenizer = build_tokenizer(work / "tokenizer")
    denoiser = Denoiser(build_unet(), build_text_encoder(tokenizer), vae)

    def steps(count: int) -> int:
        return max(2, round(count * scale))

    for step, losses in train_vae(vae, work, steps=steps(VAE_STEPS), seed=seed):
        yield "vae", step, losses
    for step, losses in train_depth(estimator, work, steps=steps(DEPTH_STEPS), seed=seed):
        yield "depth", step, losses
    estimator.eval()
    stages = {
        # Single pictures: twelve different ones a step teach the styles fastest.
        "image": dict(
            trains=lambda name: not name.startswith("vae.") and not is_motion(name),
            steps=steps(IMAGE_STEPS), clips=12, frames=1, size=96, peak=1.2e-3, with_motion=False,
        ),
        # Clips that fill the window of 16 under the warmup/causal mask; the picture part is frozen.
        "motion": dict(
            trains=is_motion,
            steps=steps(MOTION_STEPS), clips=1, frames=16, size=128, peak=1e-3, with_motion=True,
        ),
        # Everything together, gently, with the decoder: it learns what predicted latents look like.
        "joint": dict(
            trains=lambda name: not name.startswith("vae.encoder"),
            steps=steps(JOINT_STEPS), clips=1, frames=16, size=128, peak=3e-4, with_motion=True,
        ),
    }  # fmt: skip
    for name, stage in stages.items():
        for step, losses in train_denoiser(
            name, denoiser, tokenizer, estimator, folder=work, seed=seed, **stage
        ):
            yield name, step, losses
    pipeline = Live2DiffPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        depth_estimator=estimator,
        size=SIZE,
        t_index_list=T_INDEX_LIST,
    )
    pipeline.to(torch.float16).save_pretrained(target)  # half the size; loaded as float32
