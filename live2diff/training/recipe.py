"""The recipe of the nano model, from nothing to a folder that `live2diff.load` reads.

Numbers have their reasons beside them; what was tried before, with its figures, is in `LOG.md`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer, DPTForDepthEstimation

from ..config import WINDOW
from ..loading import RANGES
from ..model.lcm import build_scheduler
from ..pipeline import Live2DiffPipeline
from . import data
from .denoiser import PREDICTION_TYPE, Denoiser, build_unet, train_denoiser
from .depth import build_depth_estimator, train_depth
from .loop import Losses
from .pool import Pool, make_pool
from .ranges import measure_ranges
from .text import build_text_encoder, build_tokenizer
from .vae import build_vae, train_vae

# Steps of each stage; `scale` multiplies them.
DEPTH_STEPS = 700  # by then the loss of a step says more of its scenes than of what was learnt
VAE_STEPS = 900  # it begins with the principal components of patches, so little is left to learn
IMAGE_STEPS = 8500  # most of the time: the styles, and then the small features, come from here
LARGE_STEPS = 400  # enough for the coarsest level to get used to four times its cells
MOTION_STEPS = 400  # begun as an average of like frames: most of the flicker is gone after 200
JOINT_STEPS = 4800  # its loss still falls at the end
STEADY_STEPS = 300

# How many clips are made to draw from, for single pictures, for those at the default size, and in motion.
# Each is drawn a few times, with new noise, depth errors and timesteps: too seldom to be known by heart.
PICTURES = 12000
LARGE_PICTURES = 1600
CLIPS = 400
POOL_SEEDS = {"pictures": 1000, "large": 2000, "clips": 3000}  # no clip may be in two pools

SIZE = 256  # default working size
NUM_INFERENCE_STEPS = 200  # steps of 5 timesteps: there has to be one below full style, for a touch of it
T_INDEX_LIST = (198,)  # timestep 9, the least noise of full style; a second step costs a third more
STRONGEST_INDEX = 188  # timestep 59: beyond it more noise makes blur, not style


def is_motion(name: str) -> bool:
    return ".motion_modules." in name


def train_nano(
    work: Path,
    target: Path,
    *,
    scale: float = 1.0,
    seed: int = 0,
    photographs: Path | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, int, Losses]]:
    """Train the nano model, yielding `(stage, step, losses)`; save it to `target` at the end.

    `work` holds the checkpoints and previews: killed at any moment, the same call goes on from the last
    checkpoint. `photographs` is a folder of more pictures than those that Python packages carry.
    """
    data.PHOTOGRAPH_FOLDER = photographs
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    vae, estimator = build_vae(), build_depth_estimator()
    tokenizer = build_tokenizer(work / "tokenizer")
    denoiser = Denoiser(build_unet(), build_text_encoder(tokenizer), vae)

    def steps(count: int) -> int:
        return max(2, round(count * scale))

    def pool(name: str, count: int, frames: int, size: int) -> Pool:
        shape = dict(count=max(4, round(count * scale)), frames=frames, size=size)
        return make_pool(
            work / name, tokenizer, estimator, **shape, seed=POOL_SEEDS[name] + seed, device=device
        )

    for step, losses in train_depth(estimator, work, steps=steps(DEPTH_STEPS), seed=seed, device=device):
        yield "depth", step, losses
    estimator.eval()
    pictures = pool("pictures", PICTURES, frames=1, size=128)
    for step, losses in train_vae(vae, pictures, work, steps=steps(VAE_STEPS), seed=seed, device=device):
        yield "vae", step, losses
    large = pool("large", LARGE_PICTURES, frames=1, size=SIZE)
    clips = pool("clips", CLIPS, frames=WINDOW, size=128)
    for name, stage in stages(pictures, large, clips).items():
        stage["steps"] = steps(stage["steps"])
        for step, losses in train_denoiser(name, denoiser, folder=work, seed=seed, device=device, **stage):
            yield name, step, losses
    save(denoiser, tokenizer, estimator, target, scale, seed)


def stages(pictures: Pool, large: Pool, clips: Pool) -> dict[str, dict[str, Any]]:
    """How the denoiser is trained, one stage after the other: arguments of `train_denoiser` by name."""
    return {
        # Single pictures: few a step, for more steps in the same time.
        "image": dict(
            trains=lambda name: not name.startswith("vae.") and not is_motion(name),
            sources=[(pictures, 6)], steps=IMAGE_STEPS, peak=8e-4,
        ),
        # At the default size: what fills a cell there, and how far the attention of the coarsest level sees.
        "large": dict(
            trains=lambda name: not name.startswith("vae.encoder") and not is_motion(name),
            sources=[(large, 4)], steps=LARGE_STEPS, peak=4e-4,
        ),
        # Clips that fill the window of 16 under the warmup/causal mask; the picture part is frozen.
        "motion": dict(
            trains=is_motion,
            sources=[(clips, 1)], steps=MOTION_STEPS, peak=2e-3,
        ),
        # Everything together, gently, with the decoder: it learns what predicted latents look like. By turns:
        # clips alone would make it forget the default size, and the large pictures are few.
        "joint": dict(
            trains=lambda name: not name.startswith("vae.encoder"),
            sources=[(large, 4), (clips, 1), (large, 4), (pictures, 12)], steps=JOINT_STEPS, peak=6e-4,
        ),
        # Who has learnt to draw lines boils more: the memory has to catch up.
        "steady": dict(
            trains=is_motion,
            sources=[(clips, 1)], steps=STEADY_STEPS, peak=1e-3, flicker_weight=12.0,
        ),
    }  # fmt: skip


def save(
    denoiser: Denoiser,
    tokenizer: CLIPTokenizer,
    estimator: DPTForDepthEstimation,
    target: Path,
    scale: float,
    seed: int,
) -> None:
    """Put the parts together and write them to `target`, in half the size: they are loaded as float32."""
    pipeline = Live2DiffPipeline(
        vae=denoiser.vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(PREDICTION_TYPE),
        depth_estimator=estimator,
        size=SIZE,
        t_index_list=T_INDEX_LIST,
        num_inference_steps=NUM_INFERENCE_STEPS,
        strongest_index=STRONGEST_INDEX,
    )
    styles = list(pipeline.styles)[: max(2, round(scale * len(pipeline.styles)))]
    ranges = measure_ranges(pipeline.to("cpu"), styles, SIZE, seed)
    pipeline.to(torch.float16).save_pretrained(target)
    (target / RANGES).write_text(json.dumps(ranges, indent=1) + "\n")
