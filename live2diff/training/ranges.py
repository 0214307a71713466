"""Measure the input range of each large layer of a finished model: what `runtime` needs for 8 bits."""

from contextlib import ExitStack, closing
from functools import partial

import numpy as np
import torch
from torch import nn

from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from .clips import sample_clip

SETTLED_FRAMES = 2  # measured after the warmup, in each style


def measure_ranges(
    pipeline: Live2DiffPipeline, styles: list[str], size: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return each layer's lowest and highest input over a clip in each style, by the layer's name."""
    seen: dict[str, tuple[float, float]] = {}

    def record(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        low, high = (bound.item() for bound in inputs[0].aminmax())
        before = seen.get(name, (0.0, 0.0))  # zero has a level of its own
        seen[name] = (min(before[0], low), max(before[1], high))

    with ExitStack() as hooks:
        for name, module in layers_to_round(pipeline).items():
            hooks.callback(module.register_forward_pre_hook(partial(record, name)).remove)
        for number, style in enumerate(styles):
            random = np.random.default_rng([seed, number])
            frames, _ = sample_clip(random, size, WARMUP_FRAMES + SETTLED_FRAMES)
            with closing(pipeline.stream(style=style, seed=number)) as stream:
                for frame in frames:
                    stream.push(frame)
    return {name: (round(low, 4), round(high, 4)) for name, (low, high) in seen.items()}


def layers_to_round(pipeline: Live2DiffPipeline) -> dict[str, nn.Module]:
    """Return the layers that may be computed in 8 bits, by name.

    Left out are small layers, keys and values (called with more than frames), the first and the last
    convolution of each part, and the inputs of the UNet's last one: rounding those costs 5 to 10 dB and
    makes what stands still flicker. So does rounding the motion modules, which are there to calm it.
    """
    blocks = pipeline.unet.up_blocks
    last_resnet = f"unet.up_blocks.{len(blocks) - 1}.resnets.{len(blocks[-1].resnets) - 1}"
    kept = {"unet.conv_in", "unet.conv_out", f"{last_resnet}.conv2", f"{last_resnet}.conv_shortcut"}
    for coder in ("encoder", "decoder"):
        last = len(getattr(pipeline.vae, coder).layers) - 1
        kept |= {f"vae.{coder}.layers.0", f"vae.{coder}.layers.{last}"}
    return {
        name: module
        for part in ("vae", "unet")
        for name, module in getattr(pipeline, part).named_modules(prefix=part)
        if name not in kept
        and (isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and is_large(name)))
    }


def is_large(name: str) -> bool:
    """Return whether a linear layer of the UNet is slow and sees frames alone."""
    *path, last = name.split(".")
    return "attentions" in path and last not in ("to_k", "to_v")
