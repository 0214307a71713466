"""The caches of several streams side by side in one allocation, so that one UNet call serves them all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..model.kv_cache import KVCache
from ..model.unet import StreamUNet


@dataclass(eq=False)
class CacheLease:
    """The rows of one stream: `pool.steps` of them, from `index * pool.steps` on."""

    pool: "CachePool"
    index: int

    @property
    def cache(self) -> KVCache:
        """Its rows, sharing the pool's memory. Not to be kept: leases move."""
        return self.pool.block(self.index, self.index + 1)

    def free(self) -> None:
        """Return the rows to the pool, which zeroes them."""
        self.pool.free(self)


class CachePool:
    """Cache rows for streams of one working size and number of denoising steps.

    The leases are always the first ones: when one is freed, the last moves into the gap. The allocation
    doubles when all rows are leased, up to `most` leases, and is freed with the last lease. Freed rows are
    zeroed, so the next stream sees nothing of the last. `size` is the (height, width) of the latents.
    """

    def __init__(
        self,
        unet: StreamUNet,
        steps: int,
        size: tuple[int, int],
        cache_dtype: torch.dtype | None = None,
        most: int = 1,
    ) -> None:
        self.steps = steps
        self._most = most
        self._new_cache = lambda leases: unet.new_cache(leases * steps, *size, cache_dtype)
        self._cache: KVCache | None = None
        self._capacity = 0
        self._leases: list[CacheLease] = []

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole allocation."""
        return self._cache.nbytes if self._cache else 0

    def take(self) -> CacheLease:
        """Lease rows of zeros.

        Raises:
            torch.OutOfMemoryError: there is no memory for one more; the present leases are unchanged.
        """
        if len(self) == self._capacity:
            capacity = max(self._capacity + 1, min(2 * self._capacity, self._most))
            if self._cache is None:
                self._cache = self._new_cache(capacity)
            else:
                self._cache.grow(capacity * self.steps)
            self._capacity = capacity  # only after the allocation, which may fail
        self._leases.append(CacheLease(self, len(self)))
        return self._leases[-1]

    def free(self, lease: CacheLease) -> None:
        """Zero the rows of a lease for the next one."""
        last = self._leases.pop()
        vacated = last.cache
        if last is not lease:
            lease.cache.copy_(vacated)
            self._leases[lease.index] = last
            last.index = lease.index
        if self._leases:
            vacated.zero_()
        else:
            self._cache, self._capacity = None, 0

    def block(self, start: int, stop: int) -> KVCache:
        """Return the rows of the leases from `start` to `stop`, sharing their memory."""
        assert self._cache is not None, "nothing is leased"
        return self._cache.rows(start * self.steps, stop * self.steps)

    def smallest_block(self, leases: Sequence[CacheLease]) -> range:
        """Return the smallest block of 1, 2, 4, 8, ... leases, at a multiple of its size, that holds these.

        So there are few shapes to compile for, and the rows need no copying.
        """
        indices, size = [lease.index for lease in leases], 1
        while len({index // size for index in indices}) > 1:
            size *= 2
        start = indices[0] // size * size
        return range(start, min(start + size, self._capacity))


class CachePools:
    """Pools by working size, number of steps and dtype; streams of one pool can be pushed together."""

    def __init__(self, most: int = 1) -> None:
        self._most = most  # expected number of streams
        self._pools: dict[tuple, CachePool] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all allocations."""
        return sum(pool.nbytes for pool in self._pools.values())

    def take(
        self, unet: StreamUNet, steps: int, size: tuple[int, int], cache_dtype: torch.dtype | None
    ) -> CacheLease:
        """Lease rows of zeros for a stream of these steps and this (height, width) of latents."""
        key = (steps, size, cache_dtype)
        if key not in self._pools:
            self._pools[key] = CachePool(unet, steps, size, cache_dtype, self._most)
        return self._pools[key].take()
