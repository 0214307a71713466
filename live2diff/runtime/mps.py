"""Compute spatial attention row by row on Apple's GPUs, to save memory.

Their attention is not fused: the 8 rows of a warmup at 512 x 512 would take about 9 GB at once, as a row has
4,096 x 4,096 scores for each head.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

from ..config import MAX_DENOISING_STEPS
from ..model.unet import StreamUNet


class RowByRow(AttnProcessor2_0):
    """diffusers' attention, one row at a time if there are more rows than denoising steps of a stream."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *arguments: Any,
        **options: Any,
    ) -> Tensor:
        """Attend from `[rows, pixels, C]` to itself or to the prompt, `[rows, tokens, dim]`."""
        attend = super().__call__
        if len(hidden_states) <= MAX_DENOISING_STEPS:
            return attend(attn, hidden_states, encoder_hidden_states, *arguments, **options)
        states = hidden_states.split(1)
        prompts = [None] * len(states) if encoder_hidden_states is None else encoder_hidden_states.split(1)
        rows = [attend(attn, *pair, *arguments, **options) for pair in zip(states, prompts, strict=True)]
        return torch.cat(rows)


def spare_memory(unet: StreamUNet) -> None:
    """Make a UNet compute its spatial attention row by row."""
    unet.set_attn_processor(RowByRow())
