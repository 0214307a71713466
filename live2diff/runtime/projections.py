"""The products of attentions that have one input as a single product each."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..model.unet import StreamUNet


def pack(*linears: nn.Linear) -> Tensor:
    """Make the weights of layers parts of one tensor, which is returned; they share its memory."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, weight.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight.data = part
    return weight


def pack_spatial_attention(unet: StreamUNet) -> None:
    """Have query, key and value, or those of them that come from the prompt, computed by one product."""
    for module in unet.modules():
        if isinstance(module, Attention):
            linears: list[Any] = [module.to_q, module.to_k, module.to_v]
            first = 1 if module.is_cross_attention else 0
            unet.spatial_attention.packed[module] = pack(*linears[first:])
