"""Merge projections of spatial attentions that have the same input into a single product."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from ..model.unet import SpatialAttention, StreamUNet


def pack(*linears: nn.Linear) -> Tensor:
    """Move the weights of layers into one tensor, whose memory they then share, and return it.

    If they have been packed before, that tensor is returned.
    """
    weights = [linear.weight.detach() for linear in linears]
    packed = find_packed(weights)
    if packed is not None:
        return packed
    packed = torch.cat(weights)
    for linear, part in zip(linears, packed.split([len(weight) for weight in weights]), strict=True):
        linear.weight.data = part
    return packed


def find_packed(weights: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor that consists of exactly these weights, in order; None if there is none."""
    memory, end = weights[0].untyped_storage(), 0
    for weight in weights:
        is_next = weight.is_contiguous() and weight.storage_offset() == end
        if not is_next or weight.untyped_storage().data_ptr() != memory.data_ptr():
            return None
        end += weight.numel()
    if memory.nbytes() != end * weights[0].itemsize:
        return None
    rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
    return weights[0].new_empty(0).set_(memory, 0, (rows, columns), (columns, 1))


class PackedAttention:
    """Forwards of a UNet's spatial attentions with fewer matrix products.

    Query, key and value of a self-attention are one product; keys and values of the prompt are one for all
    layers together.
    """

    def __init__(self, unet: StreamUNet) -> None:
        self.forwards: dict[nn.Module, Callable[..., Tensor]] = {}
        prompt_linears: list[Any] = []
        for module in unet.modules():
            if not isinstance(module, Attention):
                continue
            linears: list[Any] = [module.to_q, module.to_k, module.to_v]
            if module.is_cross_attention:
                first = sum(len(linear.weight) for linear in prompt_linears)
                self.forwards[module] = partial(attend_across, module, first)
                prompt_linears += linears[1:]
            else:
                self.forwards[module] = partial(attend, module, pack(*linears))
        self._weight = pack(*prompt_linears)

    def around(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap a UNet's forward to receive keys and values of the prompt in place of its embeddings."""

        def call(sample: Tensor, timestep: Tensor, embeds: Tensor, *others: Any) -> Tensor:
            return forward(sample, timestep, functional.linear(embeds, self._weight), *others)

        return call


def attend(attention: Any, weight: Tensor, x: Tensor, **_: Any) -> Tensor:
    """Attend from `[rows, pixels, C]` to itself with the packed `weight` of query, key and value."""
    return SpatialAttention.attend(attention, *functional.linear(x, weight).chunk(3, dim=-1))


def attend_across(attention: Any, first: int, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
    """Attend from `[rows, pixels, C]` to the prompt, whose keys and values begin at channel `first`."""
    length = len(attention.to_k.weight)
    parts = encoder_hidden_states[..., first : first + 2 * length].chunk(2, dim=-1)
    return SpatialAttention.attend(attention, attention.to_q(x), *parts)
