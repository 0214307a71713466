"""Group norms, gated activations and the tiny VAE's blocks with fewer kernels than PyTorch's own operations.

PyTorch's group norm takes three kernels and transposes a channels-last image before and after. Each operation
has a plain form for the CPU, with which `tests/runtime/test_fusions.py` compares the kernels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bit.modeling_bit import BitGroupNormActivation

ELEMENTS = 2048  # per block of a group norm
GATED = 1024  # elements per program of a gated activation
WARPS = 4
ACTIVATIONS = ("", "silu", "relu")
SILU, RELU = tl.constexpr(1), tl.constexpr(2)


@triton.jit
def group_norm_kernel(
    x, weight, bias, out, pixels, eps,
    C: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Normalise one group of channels of one image, `[pixels, C]` in memory, and activate it."""
    first, image = tl.program_id(0) * GROUP, tl.program_id(1).to(tl.int64)
    d = tl.arange(0, GROUP_PADDED)
    of_group, channel = d < GROUP, first + d
    x += image * pixels * C
    out += image * pixels * C
    mean, squares, count = 0.0, 0.0, 0.0
    for start in range(0, pixels, BLOCK):  # mean and squared deviations of blocks, merged (Chan et al.)
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < pixels)[:, None] & of_group[None, :]
        value = tl.load(x + pixel[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        added = tl.minimum(pixels - start, BLOCK) * GROUP * 1.0
        own = tl.sum(tl.sum(value, axis=1), axis=0) / added
        deviation = tl.where(mask, value - own, 0.0)
        between, total = own - mean, count + added
        squares += (
            tl.sum(tl.sum(deviation * deviation, axis=1), axis=0) + between * between * count * added / total
        )
        mean += between * added / total
        count = total
    scale = tl.rsqrt(squares / count + eps)
    factor = tl.load(weight + channel, mask=of_group, other=0.0).to(tl.float32) * scale
    offset = tl.load(bias + channel, mask=of_group, other=0.0).to(tl.float32) - mean * factor
    for start in range(0, pixels, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        mask = (pixel < pixels)[:, None] & of_group[None, :]
        at = pixel[:, None] * C + channel[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
        if ACTIVATION == SILU:
            value = value / (1.0 + tl.exp(-value))
        if ACTIVATION == RELU:
            value = tl.maximum(value, 0.0)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def geglu_kernel(x, out, size, C: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply the first C of 2 C values by the GELU of the others."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, channel, mask = at // C, at % C, at < size
    value = tl.load(x + row * 2 * C + channel, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * C + C + channel, mask=mask, other=0.0).to(tl.float32)
    gate *= 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out + at, (value * gate).to(out.dtype.element_ty), mask=mask)


def norm_layout(channels: int, groups: int) -> dict[str, int]:
    """Return the constants of the group norm kernel."""
    group = channels // groups
    padded = triton.next_power_of_2(group)
    return {"C": channels, "GROUP": group, "GROUP_PADDED": padded, "BLOCK": max(1, ELEMENTS // padded)}


def launch_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activation: str
) -> Tensor:
    """Launch the kernel for `group_norm`."""
    x = x.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(x)
    constants = norm_layout(x.shape[1], groups) | {"ACTIVATION": ACTIVATIONS.index(activation)}
    group_norm_kernel[groups, len(x)](
        x, weight, bias, out, x.shape[2] * x.shape[3], eps, **constants, num_warps=WARPS  # pyright: ignore
    )  # fmt: skip
    return out


@torch.library.custom_op("live2diff::group_norm", mutates_args=(), device_types="cuda")
def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activation: str) -> Tensor:
    """Normalise groups of channels of `[n, C, h, w]` and activate them; the result is channels last."""
    return launch_group_norm(x, weight, bias, groups, eps, activation)


@group_norm.register_kernel("cpu")
def plain_group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, activation: str
) -> Tensor:
    """Do the same with PyTorch's own operations."""
    y = functional.group_norm(x, groups, weight, bias, eps)
    y = functional.silu(y) if activation == "silu" else functional.relu(y) if activation == "relu" else y
    return y.contiguous(memory_format=torch.channels_last)


def launch_geglu(x: Tensor) -> Tensor:
    """Launch the kernel for `geglu`."""
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    grid = (triton.cdiv(out.numel(), GATED),)
    geglu_kernel[grid](x, out, out.numel(), C=out.shape[-1], BLOCK=GATED, num_warps=WARPS)  # pyright: ignore
    return out


@torch.library.custom_op("live2diff::geglu", mutates_args=(), device_types="cuda")
def geglu(x: Tensor) -> Tensor:
    """Multiply the first half of the last dimension by the GELU of the second."""
    return launch_geglu(x)


@geglu.register_kernel("cpu")
def plain_geglu(x: Tensor) -> Tensor:
    """Do the same with PyTorch's own operations."""
    value, gate = x.chunk(2, dim=-1)
    return value * functional.gelu(gate)


@torch.library.custom_op("live2diff::conv_relu", mutates_args=(), device_types="cuda")
def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None) -> Tensor:
    """Apply a 3 x 3 convolution with zero padding of one, add `added` if given, and apply a ReLU."""
    ones = [1, 1]
    if added is None:
        return torch.cudnn_convolution_relu(x, weight, bias, ones, ones, ones, 1)
    return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, bias, ones, ones, ones, 1)


@conv_relu.register_kernel("cpu")
def plain_conv_relu(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None) -> Tensor:
    """Do the same with PyTorch's own operations."""
    y = functional.conv2d(x, weight, bias, padding=1)
    return functional.relu(y if added is None else y + added).contiguous(memory_format=torch.channels_last)


@group_norm.register_fake
def group_norm_shape(x: Tensor, *_: Any) -> Tensor:
    """Return an output without values."""
    return torch.empty_like(x, memory_format=torch.channels_last)


@geglu.register_fake
def geglu_shape(x: Tensor) -> Tensor:
    """Return an output without values."""
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@conv_relu.register_fake
def conv_relu_shape(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    """Return an output without values."""
    out = x.new_empty(len(x), len(weight), *x.shape[2:])
    return out.contiguous(memory_format=torch.channels_last)


def norm(module: nn.GroupNorm, x: Tensor, activation: str = "") -> Tensor:
    """Compute `GroupNorm.forward` and an activation."""
    return group_norm(x, module.weight, module.bias, module.num_groups, module.eps, activation)


def bit_norm(module: BitGroupNormActivation, x: Tensor) -> Tensor:
    """Compute `BitGroupNormActivation.forward`."""
    return norm(module, x, "relu" if isinstance(module.activation, nn.ReLU) else "")


def resnet(module: Any, x: Tensor, embedding: Tensor) -> Tensor:
    """Compute `ResnetBlock2D.forward`, for a block that `is_plain`."""
    y = module.conv1(norm(module.norm1, x, "silu"))
    y = norm(module.norm2, y + module.time_emb_proj(embedding)[:, :, None, None], "silu")
    return (x if module.conv_shortcut is None else module.conv_shortcut(x)) + module.conv2(y)


def gated(module: GEGLU, x: Tensor) -> Tensor:
    """Compute `GEGLU.forward`."""
    return geglu(module.proj(x))


def tiny_block(module: Any, x: Tensor) -> Tensor:
    """Compute `AutoencoderTinyBlock.forward`."""
    first, _, second, _, last = module.conv
    y = conv_relu(conv_relu(x, first.weight, first.bias, None), second.weight, second.bias, None)
    return conv_relu(y, last.weight, last.bias, module.skip(x))


def is_plain(block: Any) -> bool:
    """Return whether `resnet` computes the same as a block's own `forward`."""
    plain = block.upsample is None and block.downsample is None and block.output_scale_factor == 1.0
    plain = plain and block.time_emb_proj is not None and block.time_embedding_norm == "default"
    return plain and block.skip_time_act and isinstance(block.nonlinearity, nn.SiLU) and not block.training


def fused_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return a faster `forward` of a module, to be called with the module first; None if there is none."""
    if type(module) is ResnetBlock2D:
        return resnet if is_plain(module) else None
    if type(module) is AutoencoderTinyBlock:
        pads = module.conv[0].padding_mode  # cuDNN pads with zeros
        return tiny_block if isinstance(module.conv[1], nn.ReLU) and pads == "zeros" else None
    found: dict[type, Callable[..., Tensor]] = {nn.GroupNorm: norm, GEGLU: gated}
    return (found | {BitGroupNormActivation: bit_norm}).get(type(module))


def fused_forwards(*networks: nn.Module) -> dict[nn.Module, Callable[..., Tensor]]:
    """Return the faster forwards of all modules that have one."""
    modules = [module for network in networks for module in network.modules()]
    found = {module: fused_forward(module) for module in modules}
    return {module: partial(function, module) for module, function in found.items() if function}
