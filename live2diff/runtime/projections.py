"""The products of attentions that have one input as a single product each."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from ..model.unet import SpatialAttention, StreamUNet


def pack(*linears: nn.Linear) -> Tensor:
    """Make the weights of layers parts of one tensor, which is returned; they share its memory.

    Layers that are such parts already stay so: what was returned before is still theirs.
    """
    weights = [linear.weight.detach() for linear in linears]
    packed = packed_already(weights)
    if packed is not None:
        return packed
    packed = torch.cat(weights)
    for linear, part in zip(linears, packed.split([len(weight) for weight in weights]), strict=True):
        linear.weight.data = part
    return packed


def packed_already(weights: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor that consists of these weights, in order; None if they lie apart."""
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
    """The spatial attentions of a UNet with fewer products.

    Query, key and value of a self-attention are one; keys and values of the prompt are one for all layers.
    """

    def __init__(self, unet: StreamUNet) -> None:
        self.forwards: dict[nn.Module, Callable[..., Tensor]] = {}
        of_prompt: list[Any] = []
        for module in unet.modules():
            if not isinstance(module, Attention):
                continue
            linears: list[Any] = [module.to_q, module.to_k, module.to_v]
            if module.is_cross_attention:
                first = sum(len(linear.weight) for linear in of_prompt)
                self.forwards[module] = partial(attend_across, module, first)
                of_prompt += linears[1:]
            else:
                self.forwards[module] = partial(attend, module, pack(*linears))
        self._weight = pack(*of_prompt)

    def around(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a UNet's forward that is called with prompt embeddings and gets their products."""

        def call(sample: Tensor, timestep: Tensor, embeds: Tensor, *others: Any) -> Tensor:
            return forward(sample, timestep, functional.linear(embeds, self._weight), *others)

        return call


def attend(attention: Any, weight: Tensor, x: Tensor, **_: Any) -> Tensor:
    """Attend from `[rows, pixels, C]` to itself; `weight` is that of query, key and value."""
    return SpatialAttention.attend(attention, *functional.linear(x, weight).chunk(3, dim=-1))


def attend_across(attention: Any, first: int, x: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
    """Attend from `[rows, pixels, C]` to the prompt's keys and values, which begin at `first`."""
    length = len(attention.to_k.weight)
    parts = encoder_hidden_states[..., first : first + 2 * length].chunk(2, dim=-1)
    return SpatialAttention.attend(attention, attention.to_q(x), *parts)
