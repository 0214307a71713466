"""diffusers' stock UNet with motion modules and the depth mapping."""

import inspect
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from diffusers.models.activations import get_activation
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401 - from_pretrained looks for it here
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .attention import MotionModule, Window
from .kv_cache import KVCache

DEPTH_CHANNELS = (16, 16, 32, 32, 96, 96, 256)  # of the published depth mapping, convolution by convolution
RESOLUTIONS = (1, 2, 4, 8)


class DepthMapping(nn.Module):
    """Map depth latents to features that are added to the output of `conv_in` (paper, section 4.4)."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        pairs = pairwise(channels)
        self.blocks = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1) for before, after in pairs])
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)
        for parameter in self.conv_out.parameters():  # an untrained mapping changes nothing
            nn.init.zeros_(parameter)

    def forward(self, depth_latents: Tensor) -> Tensor:
        """Map `[rows, in_channels, h, w]` to `[rows, out_channels, h, w]`."""
        x = functional.silu(self.conv_in(depth_latents))
        for block in self.blocks:
            x = functional.silu(block(x))
        return self.conv_out(x)


def layers_of(block: Any) -> Iterator[tuple[nn.Module, nn.Module | None, nn.Module | None]]:
    """Yield the (resnet, spatial attention or None, motion module or None) of each layer of a block."""
    missing = [None] * len(block.resnets)
    attentions, motions = getattr(block, "attentions", missing), getattr(block, "motion_modules", missing)
    return zip(block.resnets, attentions, motions, strict=True)


def run_module(block: Any, module: nn.Module, *inputs: Any) -> Tensor:
    """Run a module of a block, with gradient checkpointing if it is enabled for the block."""
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        return cast(Tensor, checkpoint(module, *inputs, use_reentrant=False))
    return module(*inputs)


class SpatialAttention:
    """diffusers' attention processor without masks, norms and output scaling, which this UNet lacks."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Attend from `[rows, pixels, C]` to itself or to `[rows, tokens, dim]`."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return self.attend(attn, attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))

    @staticmethod
    def attend(attn: Any, *parts: Tensor) -> Tensor:
        """Attend with `parts`, which are query, key and value, each `[rows, pixels or tokens, C]`."""
        query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in parts)
        out = functional.scaled_dot_product_attention(query, key, value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class StreamUNet(UNet2DConditionModel):
    """`UNet2DConditionModel` plus `motion_modules` in down and up blocks and `flow_conv_in`.

    Takes the stock model's configuration and three more entries: `depth_channels` of the depth mapping;
    `motion_module_resolutions`, the downsampling factors (1, 2, 4, 8 in SD 1.5) at which there are motion
    modules; `motion_module_last_only`, for a single one after the last layer. Parameter names are those of
    the published checkpoints, so SD 1.5 weights, LoRAs and `live2diff.ckpt` fit without renaming. Frames are
    rows of the batch everywhere but in the temporal attention.
    """

    config: Any
    down_blocks: Any
    up_blocks: Any
    conv_norm_out: Any
    conv_act: Any

    def __init__(
        self,
        *args: Any,
        depth_channels: Sequence[int] = DEPTH_CHANNELS,
        motion_module_resolutions: Sequence[int] = RESOLUTIONS,
        motion_module_last_only: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_to_config(
            depth_channels=tuple(depth_channels),
            motion_module_resolutions=tuple(motion_module_resolutions),
            motion_module_last_only=motion_module_last_only,
        )
        self.add_motion()
        self.activation = get_activation(self.config.act_fn)
        self.set_attn_processor(SpatialAttention())  # pyright: ignore[reportArgumentType]
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                module.skip_time_act = True  # `forward` activates the embedding once for all of them

    @property
    def device(self) -> torch.device:
        """Device of the weights. The stock property visits every module, which takes 3 ms."""
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.conv_in.weight.dtype

    def add_motion(self) -> None:
        """Add untrained motion modules and depth mapping, which change nothing yet."""
        groups, levels = self.config.norm_num_groups, len(self.down_blocks)
        last_only = self.config.motion_module_last_only
        for level, block in [
            *enumerate(self.down_blocks),
            *zip(reversed(range(levels)), self.up_blocks, strict=True),
        ]:
            has_motion = 2**level in self.config.motion_module_resolutions
            if not has_motion or (last_only and block is not self.up_blocks[-1]):
                continue
            motion: list[Any] = [MotionModule(resnet.out_channels, groups) for resnet in block.resnets]
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
        """Return an empty cache of `rows` rows for latents `[C, height, width]`.

        `dtype` and `device` are by default the UNet's; `torch.int8` and `torch.float8_e4m3fn` take half the
        memory of float16.
        """
        shapes = []

        def visit(block: Any) -> None:
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

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - a window and a cache in place of options
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        depth_latents: Tensor | None,
        window: Window | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Predict the noise, or what the scheduler's `prediction_type` names: `[B * Q, C, height, width]`.

        Args:
            sample: latents `[B * Q, C, height, width]`, the Q frames of a clip or stream next to each other.
            timestep: int64 `[B * Q]` in `[0, 1000)`.
            encoder_hidden_states: prompt embeddings `[B * Q, tokens, dim]`.
            depth_latents: `[B * Q, C, height, width]`, or None for no depth.
            window: which frames attend to which, with Q `frames`; None skips the motion modules.
            cache: with B rows, for warmup and streaming; None for training.
        """
        layers = iter(range(0, 1000, 2))  # index of each motion module's first attention in the cache
        embedding = self.time_embedding(self.get_time_embed(sample, timestep))
        pooled_text = self.get_aug_embed(embedding, encoder_hidden_states, added_cond_kwargs={})
        if pooled_text is not None:  # in nano, not in SD 1.5
            embedding = embedding + pooled_text
        embedding = self.activation(embedding)
        x = self.conv_in(sample)
        if depth_latents is not None:
            x = x + self.flow_conv_in(depth_latents)
        skips = [x]
        for block in self.down_blocks:
            for resnet, attention, motion in layers_of(block):
                x = run_module(block, resnet, x, embedding)
                if attention is not None:
                    x = attention(x, encoder_hidden_states, return_dict=False)[0]
                if motion is not None and window is not None:
                    x = run_module(block, motion, x, window, cache, next(layers))
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)
        x = self.mid_block(x, embedding, encoder_hidden_states=encoder_hidden_states)
        for block in self.up_blocks:
            for resnet, attention, motion in layers_of(block):
                x = run_module(block, resnet, torch.cat([x, skips.pop()], dim=1), embedding)
                if attention is not None:
                    x = attention(x, encoder_hidden_states, return_dict=False)[0]
                if motion is not None and window is not None:
                    x = run_module(block, motion, x, window, cache, next(layers))
            for upsampler in block.upsamplers or ():
                x = upsampler(x, skips[-1].shape[-2:])  # doubling does not restore odd sizes
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


# diffusers reads the names of configuration entries from this signature.
_stock = inspect.signature(UNet2DConditionModel.__init__)
_own = inspect.signature(StreamUNet.__init__).parameters.values()
_entries = [*_stock.parameters.values(), *(entry for entry in _own if entry.kind is entry.KEYWORD_ONLY)]
StreamUNet.__init__.__signature__ = _stock.replace(parameters=_entries)
