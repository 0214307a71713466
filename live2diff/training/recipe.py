"""The recipe of the nano model, from nothing to a folder that `live2diff.load` reads.

Numbers have their reasons beside them; `LOG.md` says what was tried before, with figures.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from transformers import CLIPTokenizer, DPTForDepthEstimation

from ..config import WINDOW
from ..loading import RANGES
from ..model.lcm import build_scheduler
from ..pipeline import Live2DiffPipeline
from . import photographs as library
from .denoiser import PREDICTION_TYPE, WEIGHTS, Denoiser, build_unet, is_motion, train_denoiser
from .depth import build_depth_estimator, train_depth
from .loop import LoopSettings, Losses
from .pool import Pool, open_pool
from .ranges import measure_ranges
from .teachers import TEACHERS, teacher_file
from .text import PHRASES, build_text_encoder, build_tokenizer
from .vae import build_vae, equalise_phases, train_vae

# Steps of the first two stages; `scale` multiplies those of all stages.
DEPTH_STEPS = 700  # by then the loss of a step says more about its scenes than about what was learnt
VAE_STEPS = 900  # it starts with the principal components of patches, so little is left to learn

# Clips in each pool: single images with targets, and clips in motion. Each is sampled a few times, in parts,
# with new noise, depth errors and timesteps: too seldom to be memorised.
# name: (count, frames, size, seed); no clip may be in two pools
POOLS = {
    "images": (3200, 1, 256, 1000),
    "clips": (320, WINDOW, 192, 3000),
}

SIZE = 256  # default working size
NUM_INFERENCE_STEPS = 200  # steps of 5 timesteps: there has to be one below full style, for a touch of it
T_INDEX_LIST = [198]  # timestep 9, the least noise of full style; a second step costs a third more
STRONGEST_INDEX = 188  # timestep 59: beyond it more noise makes blur, not style


def train_nano(
    work: Path,
    target: Path,
    *,
    material: Path,
    scale: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "no",
) -> Iterator[tuple[str, int, Losses]]:
    """Train the nano model, yielding `(stage, step, losses)`, and save it to `target`.

    `work` holds checkpoints and previews: if it is stopped, the same call resumes from the last checkpoint.
    `material` is the folder that `fetch.py` writes; `precision` is "no" or "bf16", which is faster where the
    processor multiplies it. The processes of `torchrun` share the clips of a step.

    Raises:
        ValueError: A teacher is missing in `material`.
    """
    library.material = material
    for teacher in TEACHERS:
        teacher_file(teacher)
    shared = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=precision, kwargs_handlers=[shared])
    torch.manual_seed(seed)
    vae, estimator = build_vae(), build_depth_estimator()
    with accelerator.main_process_first():
        tokenizer = build_tokenizer(work / "tokenizer")
    denoiser = Denoiser(build_unet(), build_text_encoder(tokenizer), vae)
    run: dict[str, Any] = dict(work=work, accelerator=accelerator)

    def settings(steps: int, learning_rate: float) -> LoopSettings:
        steps = max(2, round(steps * scale))
        return LoopSettings(
            steps, learning_rate, rise_steps=max(1, steps * 3 // 100), final_rate=0.02, betas=(0.9, 0.99),
            weight_decay=1e-4, ema_decay=0.995, seed=seed,
        )  # fmt: skip

    def pool(name: str) -> Pool:
        count, frames, size, pool_seed = POOLS[name]
        shape = dict(count=max(4, round(count * scale)), frames=frames, size=size, seed=pool_seed + seed)
        return open_pool(work / name, tokenizer, estimator, **shape)

    for step, losses in train_depth(estimator, settings(DEPTH_STEPS, 1e-3), **run):
        yield "depth", step, losses
    estimator.eval()
    with accelerator.main_process_first():
        pools = {name: pool(name) for name in POOLS}
    for step, losses in train_vae(vae, pools["images"], settings(VAE_STEPS, 1e-3), **run):
        yield "vae", step, losses
    for name, stage in stages(**pools).items():
        stage["settings"] = settings(*stage["settings"])
        for step, losses in train_denoiser(name, denoiser, **stage, **run):
            yield name, step, losses
    if accelerator.is_main_process:
        save(denoiser, tokenizer, estimator, target, scale, seed)


def stages(images: Pool, clips: Pool) -> dict[str, dict[str, Any]]:
    """Return the denoiser's stages in order, as arguments of `train_denoiser`.

    `settings` are the number of steps and the learning rate.
    """
    return {
        # Most of the time: the styles come from here, with the decoder that draws them. Parts of 128 pixels,
        # for more steps in the same time; by turns the whole, for the attention of the coarsest level.
        "image": dict(
            trains=lambda name: not name.startswith("vae.encoder") and not is_motion(name),
            sources=[(images, 8, 128), (images, 8, 128), (images, 2, 256), (images, 8, 128)],
            settings=(12000, 7e-4),
        ),
        # Clips that fill the window of 16 under the warmup/causal mask; all other layers are frozen, and are
        # the teacher. Starts as the average of like frames.
        "motion": dict(
            trains=is_motion, sources=[(clips, 2, 128), (clips, 1, 192)],
            settings=(5000, 1.5e-3), weights=WEIGHTS | {"pixel": 1.0, "flicker": 60.0},
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
    """Combine the parts to a pipeline and write it to `target` in half precision."""
    equalise_phases(denoiser.vae)
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
        fixed_noise=True,
        replicate_borders=True,  # after the training, whose images are parts of others
        prompt_hint=PHRASES["help"]["hint"],
        prompt_examples=PHRASES["help"]["examples"],
    )
    styles = list(pipeline.styles)[: max(2, round(scale * len(pipeline.styles)))]
    ranges = measure_ranges(pipeline.to("cpu"), styles, SIZE, seed)
    pipeline.to(torch.float16).save_pretrained(target)
    lines = (f"{json.dumps(name)}: {json.dumps(levels)}" for name, levels in ranges.items())
    (target / RANGES).write_text("{" + ",\n".join(lines) + "}\n")
