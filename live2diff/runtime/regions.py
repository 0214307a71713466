"""Compile the repeated blocks of the networks: a compiler makes few kernels of many small operations.

Compiling whole networks takes minutes, and again for each shape. Blocks of one kind are compiled once, for
all sizes: norms with their activations, gated activations, residuals. Only what is captured as a CUDA graph
uses them; the warmup stays eager.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from ..model.attention import TemporalTransformer
from ..model.unet import DepthMapping

BACKEND = "inductor"
MOST_KINDS = 64  # of one class, by channels and strides
BLOCKS = (ResnetBlock2D, Transformer2DModel, TemporalTransformer, DepthMapping, AutoencoderTinyBlock)
DEPTH_BLOCKS = ("BitBottleneckLayer", "DPTPreActResidualLayer")  # names in transformers


def compiled_forwards(
    *networks: nn.Module, fused: Callable[[nn.Module], Callable[..., Any] | None] = lambda module: None
) -> dict[nn.Module, Callable[..., Any]]:
    """Return forwards of the blocks of some networks that are compiled when they are first called.

    `fused` returns what to compile in place of a block's own `forward`, called with the block first.
    """
    compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for block in (module for network in networks for module in network.modules() if is_block(module)):
        function = fused(block) or type(block).forward
        if function not in compiled:
            compiled[function] = compile_block(function)
        forwards[block] = partial(compiled[function], block)
    return forwards


def compile_block(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of blocks of one class, for all sizes."""
    compiled = torch.compile(function, backend=BACKEND, dynamic=True, fullgraph=True)

    def call(*arguments: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=MOST_KINDS):
            return compiled(*arguments, **options)

    return call


def is_block(module: nn.Module) -> bool:
    """Return whether a module is one of the repeated blocks that are compiled."""
    return isinstance(module, BLOCKS) or type(module).__name__ in DEPTH_BLOCKS
