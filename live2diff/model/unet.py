"""diffusers' stock UNet with motion modules and the depth mapping, and the walk of a frame through them."""

import inspect
from collections.abc import Iterator
from itertools import pairwise

import torch
from diffusers import (
    ModelMixin,  # noqa: F401 - from_pretrained looks here for the class that knows how to load
    UNet2DConditionModel,
)
from torch import nn
from torch.nn import functional

from .attention import MotionModule, Window
from .kv_cache import KVCache

# Channels of the published checkpoint's depth mapping, conv by conv.
DEPTH_CHANNELS = (16, 16, 32, 32, 96, 96, 256)
RESOLUTIONS = (1, 2, 4, 8)


class DepthMapping(nn.Module):
    """Depth latents to features that are added to those of `conv_in` (paper, section 4.4)."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], out_channels: int):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        pairs = pairwise(channels)
        self.blocks = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1) for before, after in pairs])
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, depth_latents: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.conv_in(depth_latents))
        for block in self.blocks:
            x = functional.silu(block(x))
        return self.conv_out(x)


def layers_of(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None, nn.Module | None]]:
    """The (resnet, spatial attention, motion module) of each layer of a block, None for what it does not
    have."""
    missing = [None] * len(block.resnets)
    attentions, motions = getattr(block, "attentions", missing), getattr(block, "motion_modules", missing)
    return zip(block.resnets, attentions, motions, strict=True)


def called(block: nn.Module, module: nn.Module, *inputs) -> torch.Tensor:
    """`module(*inputs)`. In a block that is told to save memory, what is inside is not kept for the backward
    pass but computed again, as in diffusers' own blocks."""
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        return block._gradient_checkpointing_func(module, *inputs)
    return module(*inputs)


class StreamUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` plus `motion_modules` in every down and up block and `flow_conv_in`.

    Takes the stock model's configuration and three more entries: `depth_channels`, of the depth mapping's
    convolutions; `motion_module_resolutions`, the downsampling factors (1, 2, 4, 8 in SD 1.5) at which there
    are motion modules; `motion_module_last_only`, to have one alone, after the last layer. Parameter names
    are those of the published checkpoints, so SD-1.5 weights, LoRAs and `live2diff.ckpt` fit without
    renaming. Frames are rows of the batch everywhere but in the temporal attention.
    """

    def __init__(
        self,
        *args,
        depth_channels=DEPTH_CHANNELS,
        motion_module_resolutions=RESOLUTIONS,
        motion_module_last_only=False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.register_to_config(
            depth_channels=tuple(depth_channels),
            motion_module_resolutions=tuple(motion_module_resolutions),
            motion_module_last_only=motion_module_last_only,
        )
        self.add_motion()

    @property
    def device(self) -> torch.device:
        """Where the weights are. The stock property looks at every module, 3 ms each time."""
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.conv_in.weight.dtype

    def add_motion(self) -> None:
        """Set up motion modules and depth mapping, untrained: they change nothing yet."""
        groups, levels = self.config.norm_num_groups, len(self.down_blocks)
        last_only = self.config.motion_module_last_only
        for level, block in [
            *enumerate(self.down_blocks),
            *zip(reversed(range(levels)), self.up_blocks, strict=True),
        ]:
            has_motion = 2**level in self.config.motion_module_resolutions
            if not has_motion or (last_only and block is not self.up_blocks[-1]):
                continue
            motion = [MotionModule(resnet.out_channels, groups) for resnet in block.resnets]
            if last_only:
                motion[:-1] = [None] * len(motion[:-1])
            block.motion_modules = nn.ModuleList(motion)
        self.flow_conv_in = DepthMapping(
            self.config.in_channels, self.config.depth_channels, self.config.block_out_channels[0]
        )

    def new_cache(
        self,
        rows: int,
        height: int,
        width: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> KVCache:
        """An empty cache for `rows` rows of latents `[C, height, width]`; by default in the UNet's own
        precision and where it is. `torch.int8` and `torch.float8_e4m3fn` take half the memory of a half."""
        shapes = []

        def visit(block: nn.Module) -> None:
            for module in filter(None, getattr(block, "motion_modules", ())):
                shapes.extend([(height * width, module.temporal_transformer.norm.num_channels)] * 2)

        sizes = []
        for block in self.down_blocks:
            visit(block)
            sizes.append((height, width))
            if block.downsamplers is not None:
                height, width = (height + 1) // 2, (width + 1) // 2
        for block in self.up_blocks:
            height, width = sizes.pop()
            visit(block)
        return KVCache.empty(rows, shapes, dtype or self.dtype, device or self.device)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        depth_latents: torch.Tensor | None,
        window: Window | None,
        cache: KVCache | None = None,
    ) -> torch.Tensor:
        """What the model predicts of its latents: the noise, or what its scheduler's `prediction_type` says.

        Args:
            sample: latents `[B * Q, C, height, width]`, the Q frames of a clip or stream next to each other.
            timestep: int64 `[B * Q]` in `[0, 1000)`.
            encoder_hidden_states: prompt embeddings `[B * Q, tokens, dim]`.
            depth_latents: `[B * Q, C, height, width]`, or None to go without depth.
            window: who sees whom, and its `frames` is Q; None leaves the motion modules out: each row is a
                picture.
            cache: with B rows, to warm up or to stream; None to train.

        Returns:
            `[B * Q, C, height, width]`.
        """
        layers = iter(range(0, 1000, 2))  # number of each motion module's first attention in the cache
        embedding = self.time_embedding(self.get_time_embed(sample, timestep))
        pooled_text = self.get_aug_embed(embedding, encoder_hidden_states, added_cond_kwargs={})
        if pooled_text is not None:  # SD 1.5 has none
            embedding = embedding + pooled_text
        x = self.conv_in(sample)
        if depth_latents is not None:
            x = x + self.flow_conv_in(depth_latents)
        skips = [x]
        for block in self.down_blocks:
            for resnet, attention, motion in layers_of(block):
                x = called(block, resnet, x, embedding)
                if attention is not None:
                    x = attention(x, encoder_hidden_states, return_dict=False)[0]
                if motion is not None and window is not None:
                    x = called(block, motion, x, window, cache, next(layers))
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        x = self.mid_block(x, embedding, encoder_hidden_states=encoder_hidden_states)
        for block in self.up_blocks:
            for resnet, attention, motion in layers_of(block):
                x = called(block, resnet, torch.cat([x, skips.pop()], dim=1), embedding)
                if attention is not None:
                    x = attention(x, encoder_hidden_states, return_dict=False)[0]
                if motion is not None and window is not None:
                    x = called(block, motion, x, window, cache, next(layers))
            for upsampler in block.upsamplers or ():
                x = upsampler(
                    x, skips[-1].shape[-2:]
                )  # the skip's size, as an odd one is not half of another
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


# diffusers reads the configuration's entries off this signature.
_stock = inspect.signature(UNet2DConditionModel.__init__)
StreamUNet.__init__.__signature__ = _stock.replace(
    parameters=[
        *_stock.parameters.values(),
        inspect.Parameter("depth_channels", inspect.Parameter.KEYWORD_ONLY, default=DEPTH_CHANNELS),
        inspect.Parameter("motion_module_resolutions", inspect.Parameter.KEYWORD_ONLY, default=RESOLUTIONS),
        inspect.Parameter("motion_module_last_only", inspect.Parameter.KEYWORD_ONLY, default=False),
    ]
)
