"""The caches of several streams side by side in one allocation, so that one UNet call serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..model.kv_cache import KVCache

if TYPE_CHECKING:
    from ..model.unet import StreamUNet


@dataclass(eq=False)
class CacheLease:
    """The rows of one stream: `steps` of them, from `index * steps` on."""

    slots: CachePool
    index: int

    @property
    def cache(self) -> KVCache:
        """Its part of the cache, sharing its memory. Not to be kept: slots move."""
        return self.slots.block(self.index, self.index + 1)

    def free(self) -> None:
        """Give it back; nothing of what was in it can be read any more."""
        self.slots.free(self)


class CachePool:
    """Room for streams of one working size and number of denoising steps.

    The slots in use are always the first ones: when one is freed, the last moves into its place. The
    allocation doubles when all are taken, up to `most`, and is let go when the last stream has left. A slot
    is zeroed as it is freed, so its next owner sees nothing of the last.

    Args:
        unet: whose cache it is.
        steps: denoising steps, the rows of one stream.
        size: (height, width) of the latents.
        cache_dtype: as `StreamUNet.new_cache`.
        most: how many streams are expected at most.
    """

    def __init__(
        self,
        unet: StreamUNet,
        steps: int,
        size: tuple[int, int],
        cache_dtype: torch.dtype | None = None,
        most: int = 1,
    ):
        self.steps = steps
        self._most = most
        self._new = lambda slots: unet.new_cache(slots * steps, *size, cache_dtype)
        self._cache: KVCache | None = None
        self._room = 0
        self._taken: list[CacheLease] = []

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole allocation."""
        return self._cache.nbytes if self._cache else 0

    def take(self) -> CacheLease:
        """A slot of zeros.

        Raises:
            torch.OutOfMemoryError: there is no room for one more; those in use are as they were.
        """
        if len(self) == self._room:
            room = max(self._room + 1, min(2 * self._room, self._most))
            if self._cache is None:
                self._cache = self._new(room)
            else:
                self._cache.grow(room * self.steps)
            self._room = room  # only now: there may not have been the memory
        self._taken.append(CacheLease(self, len(self)))
        return self._taken[-1]

    def free(self, slot: CacheLease) -> None:
        """As `CacheLease.free`."""
        last = self._taken.pop()
        vacated = last.cache
        if last is not slot:
            slot.cache.copy_(vacated)
            self._taken[slot.index] = last
            last.index = slot.index
        if self._taken:
            vacated.zero_()
        else:
            self._cache, self._room = None, 0

    def block(self, start: int, stop: int) -> KVCache:
        """The rows of the slots from `start` to `stop`, sharing their memory."""
        return self._cache.rows(start * self.steps, stop * self.steps)

    def around(self, slots: Sequence[CacheLease]) -> range:
        """The smallest of the blocks of 1, 2, 4, 8, ... slots that holds all of these; each begins at a
        multiple of its size. So there are few shapes to prepare for, and they need no copying."""
        indices, size = [slot.index for slot in slots], 1
        while len({index // size for index in indices}) > 1:
            size *= 2
        start = indices[0] // size * size
        return range(start, min(start + size, self._room))


class CachePools:
    """The slots of all working sizes and numbers of steps; streams that share one can be worked on
    together.

    Args:
        most: how many streams are expected at most.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._groups: dict[tuple, CachePool] = {}

    @property
    def nbytes(self) -> int:
        return sum(slots.nbytes for slots in self._groups.values())

    def take(
        self, unet: StreamUNet, steps: int, size: tuple[int, int], cache_dtype: torch.dtype | None
    ) -> CacheLease:
        """A slot of zeros for a stream of these steps and this size of latents."""
        key = (steps, size, cache_dtype)
        if key not in self._groups:
            self._groups[key] = CachePool(unet, steps, size, cache_dtype, self._most)
        return self._groups[key].take()
