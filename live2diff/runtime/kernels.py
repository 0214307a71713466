"""The temporal attention of one new frame as a single Triton kernel, with the write to the cache.

PyTorch's own operations read the cache several times. `model.attention` is the reference, with which
`tests/runtime/test_kernels.py` compares this, interpreted on a CPU and compiled for GPUs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional

from ..config import RECENT_FRAMES, TEMPORAL_HEADS, WARMUP_FRAMES, WINDOW
from ..model.attention import TemporalAttention, Window
from ..model.kv_cache import KVCache
from .projections import pack

CACHE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
ELEMENTS = 1024  # of a head's keys per program: 16 for each thread of 2 warps
WARPS = 2
ROUNDING = tl.constexpr(1.5 * 2**23)  # added to a small float32 and subtracted, it rounds half to even
LARGEST = tl.constexpr(127.0)  # of int8
LEAST = tl.constexpr(1e-30)  # scale, as in `model.kv_cache.quantise`
WARMUP = tl.constexpr(WARMUP_FRAMES)
RECENT = tl.constexpr(RECENT_FRAMES)
ENTRIES = tl.constexpr(WINDOW)


@triton.jit
def store_entry(entry, to, scale_to, mask, inside, SCALED: tl.constexpr):
    """Store keys or values of a frame, `[BLOCK, D]`; return the stored values in float32."""
    if not SCALED:
        tl.store(to, entry, mask=mask)
        return entry.to(tl.float32)
    full = entry.to(tl.float32)
    scale = tl.maximum(tl.div_rn(tl.max(tl.abs(full), axis=1), LARGEST), LEAST)
    bits = scale.to(tl.int32, bitcast=True)  # round to bfloat16 by hand, as Triton's interpreter truncates
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    scale = bits.to(tl.float32, bitcast=True)
    scales = tl.broadcast_to(scale[:, None], full.shape)
    stored = tl.minimum(tl.maximum(tl.div_rn(full, scales), -LARGEST), LARGEST) + ROUNDING - ROUNDING
    tl.store(to, stored.to(tl.int8), mask=mask)
    tl.store(scale_to, scale.to(tl.bfloat16), mask=inside)
    return stored * scales


@triton.jit
def load_entry(entry, own, at, scale_at, table, is_own, mask, read, reads, SCALED: tl.constexpr):
    """Return keys or values of an entry plus those of its position, float32 `[BLOCK, D]`."""
    loaded = tl.load(entry + at, mask=read, other=0.0).to(tl.float32)
    if SCALED:
        loaded *= tl.load(scale_at, mask=reads, other=0.0).to(tl.float32)[:, None]
    return tl.where(is_own, own, loaded) + tl.load(table, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def attend_kernel(
    new, tables, index, count, keys, values, scales, out, row_stride, scale_stride, pixels,
    C: tl.constexpr, H: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Attend from BLOCK pixels of one head of one new frame to its window; arguments as for `attend`."""
    head, frame = tl.program_id(0), tl.program_id(2)
    pixel, d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D_PADDED)
    inside, of_head, channel = pixel < pixels, d < D, head * D + d
    mask = inside[:, None] & of_head[None, :]
    at = pixel[:, None] * C + channel[None, :]
    new += frame.to(tl.int64) * pixels * 3 * C + pixel[:, None] * 3 * C + channel[None, :]
    row = tl.load(index + frame)
    before = tl.load(count + row)  # frames that the row has streamed
    slot = (before % RECENT + WARMUP).to(tl.int32)
    own = (tl.minimum(before, RECENT - 1) + WARMUP).to(tl.int32)
    keys, values, scales = keys + row * row_stride, values + row * row_stride, scales + row * scale_stride
    scale_at = pixel * H + head

    position_query = tl.load(tables + own * C + channel, mask=of_head, other=0.0).to(tl.float32)
    q = (tl.load(new, mask=mask, other=0.0).to(tl.float32) + position_query[None, :]) * (D**-0.5)
    key_scale = scales + 2 * slot * pixels * H + scale_at
    entry = slot * pixels * C + at
    own_key = tl.load(new + C, mask=mask, other=0.0)
    own_key = store_entry(own_key, keys + entry, key_scale, mask, inside, SCALED)
    own_value = tl.load(new + 2 * C, mask=mask, other=0.0)
    own_value = store_entry(own_value, values + entry, key_scale + pixels * H, mask, inside, SCALED)

    largest, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    result = tl.zeros([BLOCK, D_PADDED], tl.float32)
    for entry in range(ENTRIES):
        number = tl.full([], entry, tl.int32)
        age = (slot - number + 2 * RECENT) % RECENT
        is_seen, is_own = (age <= before) | (number < WARMUP), slot == number
        # Neither the frame's own entry, which is still being written, nor empty entries are read.
        reads = pixel < tl.where(is_seen & (slot != number), pixels, 0)
        read = reads[:, None] & of_head[None, :]
        at_entry, at_scale = number * pixels * C + at, scales + 2 * number * pixels * H + scale_at
        position = tl.where(number < WARMUP, number, tl.maximum(own - age, 0))
        table = tables + (position + ENTRIES) * C + channel
        k = load_entry(keys, own_key, at_entry, at_scale, table, is_own, of_head, read, reads, SCALED)
        table, at_scale = table + ENTRIES * C, at_scale + pixels * H
        v = load_entry(values, own_value, at_entry, at_scale, table, is_own, of_head, read, reads, SCALED)
        score = tl.where(is_seen, tl.sum(k * q, axis=1), float("-inf"))
        higher = tl.maximum(largest, score)
        shrink, weight = tl.exp(largest - higher), tl.exp(score - higher)
        total, largest = total * shrink + weight, higher
        result = result * shrink[:, None] + weight[:, None] * v
    out += frame.to(tl.int64) * pixels * C + at
    tl.store(out, (result / total[:, None]).to(out.dtype.element_ty), mask=mask)


def layout(channels: int) -> dict[str, int]:
    """Return the kernel's constants for a number of channels."""
    head = channels // TEMPORAL_HEADS
    padded = triton.next_power_of_2(head)
    block = max(1, ELEMENTS // padded)
    return {"C": channels, "H": TEMPORAL_HEADS, "D": head, "D_PADDED": padded, "BLOCK": block}


@torch.library.custom_op("live2diff::attend", mutates_args=("keys", "values", "scales"))
def attend(
    new: Tensor,
    tables: Tensor,
    index: Tensor,
    count: Tensor,
    keys: Tensor,
    values: Tensor,
    scales: Tensor | None,
) -> Tensor:
    """Store one new frame per row and attend from it to its window, `[B, 1, P, C]`.

    Args:
        new: queries, keys and values of the new frames without their positions, `[B, 1, P, 3 * C]`.
        tables: what the 16 positions add to query, key and value, `[3, 16, C]`.
        index: the row of each frame in the following tensors, int64 `[B]`; no two are the same.
        count: frames that each row has streamed, int64 `[rows]`.
        keys: of the cache, `[rows, 16, P, C]`.
        values: as `keys`.
        scales: of 8-bit keys and values, `[rows, 16, 2, P, H]`.
    """
    frames, _, pixels, channels = new.shape[:3] + keys.shape[-1:]
    out = new.new_empty(frames, 1, pixels, channels)
    constants = layout(channels)
    grid = TEMPORAL_HEADS, triton.cdiv(pixels, constants["BLOCK"]), frames
    scaled = keys if scales is None else scales  # not read if there are none
    attend_kernel[grid](
        new, tables, index, count, keys, values, scaled, out,
        keys.stride(0), scaled.stride(0), pixels, **constants, SCALED=scales is not None, num_warps=WARPS,  # pyright: ignore
    )  # fmt: skip
    return out


@attend.register_fake
def attend_shape(new: Tensor, *others: Tensor | None) -> Tensor:
    """Return an output without values."""
    return new.new_empty(*new.shape[:3], new.shape[3] // 3)


class FusedAttention:
    """The temporal attentions of a UNet by the kernel, for `KVCache.attend`.

    The weights of each attention's three projections become views of one tensor in `weights`, so that they
    are one product; later writes to them reach this tensor.
    """

    window = Window(*[torch.empty(1, 1)] * 4)  # only says one frame per row: the kernel uses the count

    def __init__(self, unet: nn.Module) -> None:
        self.weights: dict[Any, Tensor] = {}  # `[3 * C, C]`
        self.tables: dict[Any, Tensor] = {}  # what positions add, `[3, 16, C]`
        self._written: list[int] = []
        for module in unet.modules():
            if isinstance(module, TemporalAttention):
                self.weights[module] = pack(module.to_q, module.to_k, module.to_v)

    def takes(self, cache: KVCache) -> bool:
        """Return whether the kernel supports the precision of the cache."""
        return cache.keys[0].dtype in CACHE_DTYPES

    @torch.no_grad()
    def refresh(self) -> None:
        """Update in place what positions add to queries, keys and values, if the weights have changed."""
        parts = [(m.to_q.weight, m.to_k.weight, m.to_v.weight) for m in self.weights]
        written = [weight._version for of_module in parts for weight in of_module]
        if written == self._written:
            return
        for module, weight in self.weights.items():
            table = functional.linear(module.positions[:WINDOW], weight)
            table = torch.stack(table.chunk(3, dim=-1))
            self.tables.setdefault(module, table).copy_(table)
        self._written = written

    def __call__(self, module: nn.Module, x: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Compute `model.kv_cache.FusedAttention.__call__`; the cache must have an `index`."""
        assert cache.index is not None
        scales = None if cache.scales is None else cache.scales[layer]
        keys, values = cache.keys[layer], cache.values[layer]
        new = functional.linear(x, self.weights[module])
        return attend(new, self.tables[module], cache.index, cache.count, keys, values, scales)
