"""Uni-directional temporal attention: the window of visible frames, and the motion module.

Shapes: B streams x denoising steps (or clips, in training), Q new frames per call, K frames in the window, P
pixels, C channels, H heads, D channels per head. Tensors are `[B, frames, P, C]`, so that a frame's entry in
the cache is contiguous, and in it the channels of each pixel.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from ..config import POSITIONS, RECENT_FRAMES, TEMPORAL_HEADS, WARMUP_FRAMES, WINDOW
from .kv_cache import KVCache, Pieces


@dataclass(frozen=True)
class Window:
    """Mask, positions and cache slots of one attention call (paper, section 4.2)."""

    mask: Tensor  # bool `[B or 1, Q, K]`, true where frame q sees frame k
    positions: Tensor  # int64 `[B or 1, Q, K]` in `[0, 16)`, the position of frame k as frame q sees it
    own: Tensor  # int64 `[B or 1, Q]`, the position of frame q itself
    slots: Tensor  # int64 `[B or 1, Q]`, where the cache stores frame q; unused without a cache

    @property
    def frames(self) -> int:
        """Number of new frames per call, Q."""
        return self.own.shape[1]

    @staticmethod
    def clip(frames: int, device: torch.device | str = "cpu") -> "Window":
        """Return the window of a whole clip, without a cache, as in training.

        The 8 warmup frames see each other; frame f >= 8 sees them and the last 8 frames up to itself.
        """
        index = torch.arange(frames, device=device)
        query, key = index[:, None], index[None, :]
        age = query - key
        recent = (query >= WARMUP_FRAMES) & (key >= WARMUP_FRAMES) & (age >= 0) & (age < RECENT_FRAMES)
        own = index.clamp(max=WINDOW - 1)
        positions = torch.where(key < WARMUP_FRAMES, key, own[:, None] - age)
        mask = (key < WARMUP_FRAMES) | recent
        positions = torch.where(mask, positions, 0)
        return Window(mask[None], positions[None], own[None], index[None])

    @staticmethod
    def warmup(device: torch.device | str = "cpu") -> "Window":
        """Return the window of the 8 warmup frames, which fill slots 0-7 of the cache and see each other."""
        index = torch.arange(WARMUP_FRAMES, device=device)
        slot = torch.arange(WINDOW, device=device)
        mask = (slot < WARMUP_FRAMES).expand(WARMUP_FRAMES, -1)
        positions = slot.expand(WARMUP_FRAMES, -1)
        return Window(mask[None], positions[None], index[None], index[None])

    @staticmethod
    def stream(count: Tensor) -> "Window":
        """Return the window of one new frame per cache row, after `count` streamed frames, int64 `[B]`.

        Slots 8-15 are a ring buffer. Entries stay where they were written; their positions shift with age.
        """
        slot = torch.arange(WINDOW, device=count.device)
        write = WARMUP_FRAMES + count % RECENT_FRAMES
        age = (write[:, None] - slot) % RECENT_FRAMES
        own = WARMUP_FRAMES + count.clamp(max=RECENT_FRAMES - 1)
        warmup = slot < WARMUP_FRAMES
        mask = warmup | (age <= count[:, None])
        positions = torch.where(warmup, slot, (own[:, None] - age).clamp(min=0))
        return Window(mask[:, None], positions[:, None], own[:, None], write[:, None])


def positional_table(channels: int) -> Tensor:
    """Return sinusoids of base 10000, float32 `[24, channels]`: sine on even channels, cosine on odd."""
    frequency = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angle = torch.arange(POSITIONS)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def split_heads(tensor: Tensor) -> Tensor:
    """Split the channels of `[..., C]` into heads, `[..., H, D]`."""
    return tensor.unflatten(-1, (TEMPORAL_HEADS, -1))


def attend(
    query: Tensor, keys: Pieces, values: Pieces, position_key: Tensor, position_value: Tensor, mask: Tensor
) -> Tensor:
    """Attend from Q frames, `query` `[B, Q, P, C]` (scaled), to K frames; return `[B, Q, P, C]`.

    `position_key` and `position_value`, `[B, Q, K, C]`, are what the positions of the K frames add to keys
    and values for each query; `mask` is bool `[B or 1, Q, K]`.
    """
    key, value = torch.cat(keys, dim=1), torch.cat(values, dim=1)
    query, key, value = (split_heads(tensor).permute(0, 2, 3, 1, 4) for tensor in (query, key, value))
    position_key, position_value = map(split_heads, (position_key, position_value))  # [B, Q, K, H, D]
    score = query @ key.transpose(-1, -2) + torch.einsum("bphqd,bqkhd->bphqk", query, position_key)
    weight = score.masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)  # [B, P, H, Q, K]
    out = weight @ value + torch.einsum("bphqk,bqkhd->bphqd", weight, position_value)
    return out.permute(0, 3, 1, 2, 4).flatten(-2)


def attend_once(
    query: Tensor, keys: Pieces, values: Pieces, position_key: Tensor, position_value: Tensor, mask: Tensor
) -> Tensor:
    """Compute `attend` for Q = 1 with elementwise products and sums, in the cache's own layout.

    For a single query this is faster than P x H matrix products with 16 columns each, and without matrix
    products a compiler can fuse it all.
    """
    lengths = [key.shape[1] for key in keys]
    position_keys, position_values = (
        position.transpose(1, 2).split(lengths, dim=1) for position in (position_key, position_value)
    )  # [B, K, 1, C]
    score = torch.cat(
        [split_heads((key + at) * query).sum(-1) for key, at in zip(keys, position_keys, strict=True)], dim=1
    )  # [B, K, P, H]
    unseen = torch.zeros_like(mask, dtype=score.dtype).masked_fill_(~mask, -torch.inf)  # [B, 1, K]
    weights = (score + unseen.transpose(1, 2)[..., None]).softmax(dim=1).split(lengths, dim=1)
    parts = [
        (weight[..., None] * split_heads(value + at)).sum(dim=1, keepdim=True).flatten(-2)
        for weight, value, at in zip(weights, values, position_values, strict=True)
    ]
    return sum(parts[1:], start=parts[0])


class TemporalAttention(nn.Module):
    """Self-attention over the frames at each pixel; the same for training, warmup and streaming.

    Positions are added to the input of q, k and v. As `to_k` and `to_v` have no bias, `W(x + pe) = Wx + W
    pe`: the cache holds `Wx`; `W pe`, which is small and the same for all pixels, is added at each call.
    """

    positions: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.register_buffer("positions", positional_table(channels), persistent=False)

    def forward(self, x: Tensor, window: Window, cache: KVCache | None, layer: int) -> Tensor:
        """Attend from `x`, `[B, Q, P, C]`; `layer` is the index of this attention in the cache."""
        once = window.frames == 1 and not torch.is_grad_enabled()
        if once and cache is not None and cache.attend is not None:
            return self.to_out[0](cache.attend(self, x, cache, layer))
        query = self.to_q(x + self.positions[window.own][:, :, None])
        query = query * (query.shape[-1] // TEMPORAL_HEADS) ** -0.5
        keys, values = [self.to_k(x)], [self.to_v(x)]
        if cache is not None:
            keys, values = cache.write(layer, keys[0], values[0], window.slots)
        position_key, position_value = (
            project(self.positions[:WINDOW])[window.positions].expand(x.shape[0], -1, -1, -1)  # [B, Q, K, C]
            for project in (self.to_k, self.to_v)
        )
        out = (attend_once if once else attend)(
            query, keys, values, position_key, position_value, window.mask
        )
        return self.to_out[0](out)


class TemporalTransformerBlock(nn.Module):
    """Two temporal attentions and a feed-forward, each on a normed input with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList([TemporalAttention(channels) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])
        self.ff = FeedForward(channels, activation_fn="geglu")
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, window: Window, cache: KVCache | None, layer: int) -> Tensor:
        """Transform `x`, `[B, Q, P, C]`, with attentions `layer` and `layer + 1` of the cache."""
        for offset, (attention, norm) in enumerate(zip(self.attention_blocks, self.norms, strict=True)):
            x = x + attention(norm(x), window, cache, layer + offset)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """Group norm of each frame (over the whole clip it would leak the future), projections, one block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalTransformerBlock(channels)])
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)  # an untrained motion module changes nothing
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, window: Window, cache: KVCache | None, layer: int) -> Tensor:
        """Transform `x`, `[B * Q, C, h, w]`, with attentions `layer` and `layer + 1` of the cache."""
        y = self.norm(x).permute(0, 2, 3, 1)  # the order in memory, channels last
        y = self.proj_in(y.flatten(1, 2).unflatten(0, (-1, window.frames)))  # [B, Q, P, C]
        for block in self.transformer_blocks:
            y = block(y, window, cache, layer)
        return x + self.proj_out(y).reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class MotionModule(nn.Module):
    """Motion module, added after each (resnet, spatial attention) pair of the UNet."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, groups)

    def forward(self, x: Tensor, window: Window, cache: KVCache | None, layer: int) -> Tensor:
        """Attend from `x`, `[B * Q, C, h, w]`, with attentions `layer` and `layer + 1` of the cache."""
        return self.temporal_transformer(x, window, cache, layer)
