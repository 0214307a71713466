"""Compile the repeated blocks of the networks, which fuses many small operations into few kernels.

Compiling whole networks takes minutes for each shape. Blocks of one kind are compiled once for all sizes:
norms with their activations, gated activations, residuals. Only CUDA graphs use compiled blocks; the warmup
is computed eagerly.
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
MOST_KINDS = 64  # of blocks of one class, by channels and strides
BLOCKS = (ResnetBlock2D, Transformer2DModel, TemporalTransformer, DepthMapping, AutoencoderTinyBlock)
DEPTH_BLOCKS = ("BitBottleneckLayer", "DPTPreActResidualLayer")  # names in transformers


def compiled_forwards(
    *networks: nn.Module, fused: Callable[[nn.Module], Callable[..., Any] | None]
) -> dict[nn.Module, Callable[..., Any]]:
    """Return forwards for the blocks of some networks, which are compiled at their first call.

    `fused` returns a function to compile instead of a block's own `forward`; its first argument is the block.
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
    """Compile the forward of one class of blocks for all sizes."""
    compiled = torch.compile(function, backend=BACKEND, dynamic=True, fullgraph=True)

    def call(*arguments: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=MOST_KINDS):
            return compiled(*arguments, **options)

    return call


def is_block(module: nn.Module) -> bool:
    """Return whether a module is one of the blocks that are compiled."""
    return isinstance(module, BLOCKS) or type(module).__name__ in DEPTH_BLOCKS
