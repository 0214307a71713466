"""The kv-cache of the temporal attentions."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..config import TEMPORAL_HEADS, WINDOW

Pieces = list[Tensor]  # each `[B, frames, P, C]`, consecutive along K but separate in memory


class FusedAttention(Protocol):
    """Faster attention from one new frame per row to its window; see `runtime.kernels`."""

    def __call__(self, module: nn.Module, x: Tensor, cache: "KVCache", layer: int) -> Tensor:
        """Store keys and values of `x` `[B, 1, P, C]`; return the attention's output before `to_out`."""
        ...


@dataclass(eq=False)
class KVCache:
    """Keys and values of every temporal attention of a UNet, in one row for each denoising step of a stream.

    Keys and values are stored without their positions. The lists have one tensor for each attention, in the
    order of the forward pass. A row writes to the slot that `count` names, which is empty or holds the oldest
    entry: as long as `count` does not advance, the next frame overwrites it before it is seen.
    """

    keys: list[Tensor]  # `[B, 16, P, C]`, in the precision of the UNet, or in 8 bits with `scales`
    values: list[Tensor]  # as `keys`
    count: Tensor  # int64 `[B]`, frames streamed since the warmup
    scales: list[Tensor] | None = None  # of 8-bit keys and values, bfloat16 `[B, 16, 2, P, H]`
    index: Tensor | None = None  # int64, the rows that a UNet call uses; None for all
    attend: FusedAttention | None = None  # replaces `write` and the attention of one new frame

    @staticmethod
    def empty(
        rows: int, shapes: list[tuple[int, int]], dtype: torch.dtype, device: torch.device | str
    ) -> "KVCache":
        """Return a cache of zeros; `shapes` is `(P, C)` for each attention."""

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(rows, *shape, dtype=dtype, device=device)

        keys, values = (
            [zeros(WINDOW, pixels, channels, dtype=dtype) for pixels, channels in shapes] for _ in range(2)
        )
        scaled = [zeros(WINDOW, 2, pixels, TEMPORAL_HEADS, dtype=torch.bfloat16) for pixels, _ in shapes]
        return KVCache(keys, values, zeros(dtype=torch.int64), scaled if dtype.itemsize == 1 else None)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors; their first dimension is the row."""
        return [*self.keys, *self.values, *(self.scales or ()), self.count]

    def rows(self, start: int, stop: int) -> "KVCache":
        """Return the rows from `start` to `stop`, sharing this cache's memory."""
        keys, values, scales = (
            [tensor[start:stop] for tensor in tensors]
            for tensors in (self.keys, self.values, self.scales or [])
        )
        return KVCache(keys, values, self.count[start:stop], scales or None)

    def row(self, index: int) -> "KVCache":
        """Return one row, sharing this cache's memory."""
        return self.rows(index, index + 1)

    def select(self, index: Tensor) -> "KVCache":
        """Return a view of the rows at `index`, int64 `[B]` without duplicates, for UNet calls only."""
        return replace(self, index=index)

    @property
    def counts(self) -> Tensor:
        """The counts of the selected rows."""
        return self.count if self.index is None else self.count[self.index]

    def advance(self, frames: Tensor) -> None:
        """Add `frames` `[B]` to the counts of the selected rows."""
        if self.index is None:
            self.count += frames
        else:
            self.count.index_add_(0, self.index, frames.to(self.count.dtype))

    def grow(self, rows: int) -> None:
        """Grow to `rows` rows; the new ones are zeros.

        One tensor after the other, so that little is held twice. If memory runs out midway, the tensors that
        have grown are harmless, and the next attempt keeps them.
        """
        for tensors in (self.keys, self.values, self.scales or []):
            for index, tensor in enumerate(tensors):
                tensors[index] = grown(tensor, rows)
        self.count = grown(self.count, rows)

    def zero_(self) -> None:
        """Set everything to zero."""
        for tensor in self.tensors:
            tensor.zero_()

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Pieces, Pieces]:
        """Store keys and values `[B, Q, P, C]` at `slots`; return all those of attention `layer`."""
        rows = torch.arange(len(key), device=key.device) if self.index is None else self.index
        at = rows[:, None], slots
        keys, values = self.keys[layer], self.values[layer]
        if self.scales is None:
            keys[at] = key
            values[at] = value
            return [self._selected(keys)], [self._selected(values)]
        scales, pieces = self.scales[layer], []
        for number, (stored, entries) in enumerate(((keys, key), (values, value))):
            scaled, scale = quantise(entries, stored.dtype)
            stored.view(torch.uint8)[at] = scaled.view(torch.uint8)  # float8 does not support this indexing
            scales[:, :, number][at] = scale
            pieces.append(dequantise(self._selected(stored), self._selected(scales)[:, :, number], key.dtype))
        return [pieces[0]], [pieces[1]]

    def _selected(self, tensor: Tensor) -> Tensor:
        if self.index is None:
            return tensor
        bits = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
        return bits[self.index].view(tensor.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def share_rows(outlines: list[KVCache], rows: int, device: torch.device | str) -> list[KVCache]:
    """Allocate `rows` rows of zeros; return a cache in that memory for each outline.

    An outline is a cache of one row on the meta device, with any number of pixels. A row can be used for one
    outline at a time.
    """

    def within(all_tensors: list[list[Tensor]]) -> list[list[Tensor]]:
        widths = [[tensor.numel() for tensor in tensors] for tensors in all_tensors]
        width, dtype = max(map(sum, widths)), all_tensors[0][0].dtype
        memory = torch.zeros(rows, width, dtype=dtype, device=device)
        return [
            [
                piece.unflatten(1, tensor.shape[1:])
                for piece, tensor in zip(memory[:, : sum(sizes)].split(sizes, dim=1), tensors, strict=True)
            ]
            for sizes, tensors in zip(widths, all_tensors, strict=True)
        ]

    entries = within([[*outline.keys, *outline.values] for outline in outlines])
    outlined_scales = [outline.scales for outline in outlines if outline.scales is not None]
    all_scales = within(outlined_scales) if outlined_scales else [None] * len(outlines)
    count = torch.zeros(rows, dtype=torch.int64, device=device)
    return [
        KVCache(both[: len(both) // 2], both[len(both) // 2 :], count, scales)
        for both, scales in zip(entries, all_scales, strict=True)
    ]


def grown(tensor: Tensor, rows: int) -> Tensor:
    """Return the tensor, extended by rows of zeros to `rows` rows."""
    if len(tensor) >= rows:
        return tensor
    larger = torch.zeros(rows, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    larger[: len(tensor)].copy_(tensor)
    return larger


def quantise(entries: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantise entries `[B, Q, P, C]` to 8 bits; return them and their scales, bfloat16 `[B, Q, P, H]`."""
    largest = torch.iinfo(dtype).max if dtype == torch.int8 else torch.finfo(dtype).max
    heads = entries.float().unflatten(-1, (TEMPORAL_HEADS, -1))
    scale = (heads.abs().amax(dim=-1) / largest).clamp(min=1e-30).bfloat16()
    scaled = (heads / scale.float()[..., None]).clamp(-largest, largest).flatten(-2)
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


def dequantise(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `quantise`, up to rounding."""
    heads = stored.to(dtype).unflatten(-1, (TEMPORAL_HEADS, -1))
    return (heads * scale.to(dtype)[..., None]).flatten(-2)
