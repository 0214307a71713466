"""Choose the 8-bit levels of each large layer of a trained model, for `runtime.openvino`."""

from contextlib import ExitStack, closing
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import WARMUP_FRAMES
from ..pipeline import Live2DiffPipeline
from .clips import sample_clip

SETTLED_FRAMES = 2  # measured after the warmup, in each style
SAMPLES = 40  # pixels of a layer's input that are kept from each call
BALANCES = (0.0, 0.25, 0.5, 0.75)  # exponents: 0 for no scales, 1 for scales by the inputs alone
SHARES = tuple(np.arange(0.2, 1.01, 0.1))  # of the extremes; values beyond are clipped


def measure_ranges(
    pipeline: Live2DiffPipeline, styles: list[str], size: int, seed: int = 0
) -> dict[str, tuple[float, float, list[float]]]:
    """Measure a clip in each style; return the levels of each layer, as `runtime.openvino_graphs.Ranges`."""
    seen: dict[str, list[Tensor]] = {}  # extremes of each call `[2, channels]`, samples `[n, channels]`
    generator = torch.Generator().manual_seed(seed)

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pixels = inputs[0].movedim(1, -1) if isinstance(module, nn.Conv2d) else inputs[0]
        pixels = pixels.flatten(0, -2)
        rows = torch.randint(len(pixels), (SAMPLES,), generator=generator)
        seen.setdefault(name, []).append(torch.stack([*pixels.aminmax(dim=0), *pixels[rows]]))

    layers = layers_to_round(pipeline)
    with ExitStack() as hooks:
        for name, module in layers.items():
            hooks.callback(module.register_forward_pre_hook(partial(record, name)).remove)
        for number, style in enumerate(styles):
            random = np.random.default_rng([seed, number])
            frames, _ = sample_clip(random, size, WARMUP_FRAMES + SETTLED_FRAMES)
            with closing(pipeline.stream(style=style, seed=number)) as stream:
                for frame in frames:
                    stream.push(frame)
    return {
        name: choose_levels(layers[name].weight, *torch.stack(calls, dim=1).split([2, SAMPLES]))
        for name, calls in seen.items()
    }


@torch.no_grad()
def choose_levels(weight: Any, extremes: Tensor, inputs: Tensor) -> tuple[float, float, list[float]]:
    """Return low, high and scales for which rounding changes a layer's output least.

    Args:
        weight: `[channels out, channels in, ...]`.
        extremes: lowest and highest inputs, `[..., channels in]`.
        inputs: a sample of them, `[..., channels in]`.
    """
    extremes, inputs = extremes.flatten(0, -2), inputs.flatten(0, -2)
    weight = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
    largest, of_weight = extremes.abs().amax(0).clamp(min=1e-3), weight.abs().amax((0, 2)).clamp(min=1e-6)
    energy = weight.square().sum((0, 2))  # weight of an input channel's error in the output
    best, levels = torch.inf, (0.0, 1.0, [1.0])
    for balance in BALANCES:
        scales = largest**balance / of_weight ** (1 - balance) if balance else torch.ones_like(largest)
        scales = scales / scales.max()
        scaled, scaled_weight = inputs / scales, weight * scales[:, None]
        step = scaled_weight.abs().amax((1, 2), keepdim=True).clamp(min=1e-8) / 127
        weight_error = ((scaled_weight / step).round() * step - scaled_weight).square().sum((0, 2))
        of_weights = (weight_error * scaled.square().mean(0)).sum()
        lowest, highest = (bound.item() for bound in (extremes / scales).aminmax())
        lowest, highest = min(0.0, lowest), max(1e-3, highest)
        for below, above in product(SHARES if lowest else SHARES[-1:], SHARES):
            step = (highest * above - lowest * below) / 255
            zero = round(-lowest * below / step)  # zero has a level of its own
            rounded = torch.fake_quantize_per_tensor_affine(scaled, step, zero, 0, 255)
            error = (((rounded - scaled) * scales).square().mean(0) * energy).sum() + of_weights
            if error < best:
                best, low, high = error, round(-zero * step, 5), round((255 - zero) * step, 5)
                levels = low, high, [float(f"{scale:.3g}") for scale in scales]
    return levels


def layers_to_round(pipeline: Live2DiffPipeline) -> dict[str, nn.Module]:
    """Return the layers that may be computed in 8 bits, by name.

    Left out are small layers, keys and values (which also see prompts), the first and the last convolution of
    each part, and the inputs of the UNet's last one: rounding those costs 5 to 10 dB and makes still areas
    flicker. So does rounding the motion modules, which are there against flicker, and the decoder's
    convolutions after an upsampling, where each error shows in four pixels.
    """
    blocks: Any = pipeline.unet.up_blocks
    decoder: Any = pipeline.vae.decoder.layers
    last_resnet = f"unet.up_blocks.{len(blocks) - 1}.resnets.{len(blocks[-1].resnets) - 1}"
    kept = {"unet.conv_in", "unet.conv_out", f"{last_resnet}.conv2", f"{last_resnet}.conv_shortcut"}
    for coder in ("encoder", "decoder"):
        last = len(getattr(pipeline.vae, coder).layers) - 1
        kept |= {f"vae.{coder}.layers.0", f"vae.{coder}.layers.{last}"}
    upsampling = [number for number, layer in enumerate(decoder) if isinstance(layer, nn.Upsample)]
    kept |= {f"vae.decoder.layers.{number + 1}" for number in upsampling}
    return {
        name: module
        for part in ("vae", "unet")
        for name, module in getattr(pipeline, part).named_modules(prefix=part)
        if name not in kept
        and (isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and is_large(name)))
    }


def is_large(name: str) -> bool:
    """Return whether a linear layer of the UNet is large and computes from frames only."""
    *path, last = name.split(".")
    return "attentions" in path and last not in ("to_k", "to_v")
