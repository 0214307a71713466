"""The products of attentions that have one input as a single product each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from ..model.unet import SpatialAttention, StreamUNet


def pack(*linears: nn.Linear) -> Tensor:
    """Make the weights of layers parts of one tensor, which is returned; they share its memory."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, weight.split([len(linear.weight) for linear in linears]), strict=True):
        linear.weight.data = part
    return weight


def packed_forwards(unet: StreamUNet) -> dict[nn.Module, Callable[..., Tensor]]:
    """Return forwards of the spatial attentions with fewer products."""
    forwards: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in unet.modules():
        if isinstance(module, Attention):
            linears: list[Any] = [module.to_q, module.to_k, module.to_v]
            crosses = bool(module.is_cross_attention)
            forwards[module] = partial(attend_across if crosses else attend, module, pack(*linears[crosses:]))
    return forwards


def attend(attention: Any, weight: Tensor, x: Tensor, **_: Any) -> Tensor:
    """Attend from `[rows, pixels, C]` to itself; `weight` is that of query, key and value."""
    return SpatialAttention.attend(attention, *functional.linear(x, weight).chunk(3, dim=-1))


def attend_across(
    attention: Any, weight: Tensor, x: Tensor, encoder_hidden_states: Tensor, **_: Any
) -> Tensor:
    """Attend from `[rows, pixels, C]` to the prompt `[rows, tokens, dim]`; `weight` is of key and value."""
    parts = functional.linear(encoder_hidden_states, weight).chunk(2, dim=-1)
    return SpatialAttention.attend(attention, attention.to_q(x), *parts)
