"""What goes into each large layer of a finished model: the ranges for `runtime` to compute in 8 bits."""

from contextlib import closing

import numpy as np
import torch
from torch import nn

from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from .clips import sample_clip

SETTLED_FRAMES = 2  # watched after the warmup, in each style


def measure_ranges(
    pipeline: Live2DiffPipeline, styles: list[str], size: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest value that enters each layer, by its name, over a clip in each style.

    Left out are the first and the last convolution of each part, and what leads straight to the UNet's last,
    which cost 5 to 10 dB if rounded and make what stands still flicker, and what is small or called with more
    than frames: embeddings, keys and values.
    """
    layers = {
        f"{part}.{name}": module
        for part in ("vae", "unet")
        for name, module in getattr(pipeline, part).named_modules()
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and is_large(name))
    }
    for coder in ("encoder", "decoder"):
        last = len(getattr(pipeline.vae, coder).layers) - 1
        for edge in (0, last):
            layers.pop(f"vae.{coder}.layers.{edge}", None)
    blocks = pipeline.unet.up_blocks
    last_resnet = f"unet.up_blocks.{len(blocks) - 1}.resnets.{len(blocks[-1].resnets) - 1}"
    for edge in ("unet.conv_in", "unet.conv_out", f"{last_resnet}.conv2", f"{last_resnet}.conv_shortcut"):
        layers.pop(edge, None)
    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str):
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            low, high = (bound.item() for bound in inputs[0].aminmax())
            before = seen.get(name, (0.0, 0.0))  # zero has a level of its own
            seen[name] = (min(before[0], low), max(before[1], high))

        return note

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        for number, style in enumerate(styles):
            random = np.random.default_rng([seed, number])
            pictures, _ = sample_clip(random, size, WARMUP_FRAMES + SETTLED_FRAMES)
            with closing(pipeline.stream(style=style, seed=number)) as stream:
                for picture in pictures:
                    stream.push(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (round(low, 4), round(high, 4)) for name, (low, high) in seen.items()}


def is_large(name: str) -> bool:
    """Whether a linear layer of the UNet is one of those that take long, and sees frames alone."""
    *path, last = name.split(".")
    return ("motion_modules" in path or "attentions" in path) and last not in ("to_k", "to_v")
