"""Compile the repeated blocks of the networks: a compiler makes few kernels of many small operations.

Compiling whole networks takes minutes, and again for each shape. Blocks of one kind are compiled once, for
all sizes: norms with their activations, gated activations, residuals. Only what is captured as a CUDA graph
uses them; the warmup stays eager.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from ..model.attention import TemporalTransformer
from ..model.unet import DepthMapping

BACKEND = "inductor"
MOST_KINDS = 64  # of one class, by channels and strides: beyond it a block stays as it is
BLOCKS = (ResnetBlock2D, Transformer2DModel, TemporalTransformer, DepthMapping, AutoencoderTinyBlock)
DEPTH_BLOCKS = ("BitBottleneckLayer", "DPTPreActResidualLayer")  # names in transformers


class CompiledRegions:
    """The blocks of some networks, compiled when they are first used."""

    def __init__(self, *networks: nn.Module) -> None:
        options: dict[str, Any] = {"backend": BACKEND, "dynamic": True, "fullgraph": True}
        blocks = [module for network in networks for module in network.modules() if is_block(module)]
        self._compiled = {block: torch.compile(block.forward, **options) for block in blocks}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Have the blocks use their compiled form inside the block."""
        for block, forward in self._compiled.items():
            block.forward = forward
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_KINDS):
                yield
        finally:
            for block in self._compiled:
                del block.forward

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that uses the compiled blocks."""

        @wraps(function)
        def call(*arguments: Any) -> Any:
            with self.active():
                return function(*arguments)

        return call


def is_block(module: nn.Module) -> bool:
    """Return whether a module is one of the repeated blocks that are compiled."""
    return isinstance(module, BLOCKS) or type(module).__name__ in DEPTH_BLOCKS
