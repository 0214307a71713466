"""Caches of several streams in one allocation, so that one UNet call can serve them all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..model.kv_cache import KVCache, share_rows
from ..model.unet import StreamUNet
from .images import to_device

Size = tuple[int, int]  # height, width
SIMILAR = 1.25  # working sizes whose numbers of pixels differ by a smaller factor come from the same `size`


@dataclass(eq=False)
class CacheLease:
    """The cache rows of one stream: `pool.steps` of them, from `start` on. They are never moved."""

    pool: "CachePool"
    start: int

    @property
    def cache(self) -> KVCache:
        """The rows, sharing the pool's memory. Do not keep this: it is outdated when the pool grows."""
        return self.pool.cache.rows(self.start, self.start + self.pool.steps)

    def free(self) -> None:
        """Return the rows to the pool, which zeroes them."""
        self.pool.free(self)


class FreeRows:
    """Track which rows of an allocation are leased."""

    def __init__(self) -> None:
        self._leased: list[bool] = []

    def __len__(self) -> int:
        return len(self._leased)

    def add(self, rows: int) -> None:
        """Note that the allocation has `rows` more rows."""
        self._leased += [False] * rows

    def find(self, rows: int) -> int | None:
        """Return the start of the first `rows` adjacent free rows, None if there are none."""
        starts = range(len(self) - rows + 1)
        return next((start for start in starts if not any(self._leased[start : start + rows])), None)

    def take(self, rows: int) -> int | None:
        """Lease the first `rows` adjacent free rows; return their start, None if there are none."""
        start = self.find(rows)
        if start is not None:
            self._leased[start : start + rows] = [True] * rows
        return start

    def free(self, start: int, rows: int) -> None:
        """Mark rows as free."""
        self._leased[start : start + rows] = [False] * rows


class CachePool:
    """Cache rows for streams of one working size and number of denoising steps.

    When all rows are leased, the allocation doubles, up to `most` leases; it is freed with the last lease.
    With `reserved` rows, those are used instead and never grow: check `ReservedRows.suffice` first. Freed
    rows are zeroed, so the next stream sees nothing of the last. `size` is (height, width) of the latents.
    """

    def __init__(
        self,
        unet: StreamUNet,
        steps: int,
        size: Size,
        cache_dtype: torch.dtype | None = None,
        most: int = 1,
        reserved: "ReservedRows | None" = None,
    ) -> None:
        self.steps = steps
        self._most = most
        self._new_cache = lambda leases: unet.new_cache(leases * steps, *size, cache_dtype)
        self._reserved = reserved
        self._rows = FreeRows() if reserved is None else reserved.rows
        self._cache = None if reserved is None else reserved.caches[size]
        self._leases = 0

    def __len__(self) -> int:
        return self._leases

    @property
    def cache(self) -> KVCache:
        """The cache of all rows."""
        assert self._cache is not None, "nothing is leased"
        return self._cache

    def take(self) -> CacheLease:
        """Lease rows of zeros.

        Raises:
            torch.OutOfMemoryError: there is no memory for more rows; the present leases are unchanged.
        """
        start = self._rows.take(self.steps)
        if start is None and self._reserved is None:
            capacity = len(self._rows) // self.steps
            self._grow(max(capacity + 1, min(2 * capacity, self._most)))
            start = self._rows.take(self.steps)
        assert start is not None, "too few reserved rows are free"
        self._leases += 1
        return CacheLease(self, start)

    def free(self, lease: CacheLease) -> None:
        """Zero the rows of a lease for the next one."""
        lease.cache.zero_()
        self._rows.free(lease.start, self.steps)
        self._leases -= 1
        if not self._leases and self._reserved is None:
            self._cache, self._rows = None, FreeRows()

    def batch(self, leases: Sequence[CacheLease]) -> KVCache:
        """Return the rows of these leases for one UNet call, in order.

        With more than one possible lease, an index tensor selects the rows, so that one captured graph serves
        every choice of the same number.
        """
        starts = [lease.start for lease in leases]
        in_line = starts == list(range(starts[0], starts[0] + len(leases) * self.steps, self.steps))
        if in_line and self._most == 1:
            return self.cache.rows(starts[0], starts[-1] + self.steps)
        rows = torch.tensor([row for start in starts for row in range(start, start + self.steps)])
        return self.cache.select(to_device(rows, self.cache.count.device))

    def _grow(self, leases: int) -> None:
        added = leases * self.steps - len(self._rows)
        if self._cache is None:
            self._cache = self._new_cache(leases)
        else:
            self._cache.grow(leases * self.steps)
        self._rows.add(added)  # only after the allocation, which may fail


class ReservedRows:
    """Rows that are allocated once, each large enough for any of some sizes of latents."""

    def __init__(
        self, unet: StreamUNet, rows: int, sizes: Sequence[Size], cache_dtype: torch.dtype | None
    ) -> None:
        outlines = [unet.new_cache(1, *size, cache_dtype, torch.device("meta")) for size in sizes]
        self.caches = dict(zip(sizes, share_rows(outlines, rows, unet.device), strict=True))
        self.rows, self.cache_dtype = FreeRows(), cache_dtype
        self.rows.add(rows)

    def suffice(self, steps: int, size: Size, cache_dtype: torch.dtype | None) -> bool:
        """Return whether there are free rows for a stream with these steps and this size of latents."""
        fits = size in self.caches and cache_dtype == self.cache_dtype
        return fits and self.rows.find(steps) is not None


@dataclass(frozen=True)
class CacheSource:
    """The pools from which one stream leases its rows."""

    pools: "CachePools"
    unet: StreamUNet
    cache_dtype: torch.dtype | None

    def take(self, steps: int, size: Size) -> CacheLease:
        """Lease rows of zeros for `steps` denoising steps and a (height, width) of latents."""
        return self.pools.take(self.unet, steps, size, self.cache_dtype)


class CachePools:
    """Pools by number of steps, size of latents, dtype and whether the rows are reserved.

    Streams of one pool can be pushed together.
    """

    def __init__(self, most: int = 1) -> None:
        self.working_sizes: list[Size] = []  # in pixels, those that rows are reserved for
        self._most = most  # expected number of streams
        self._pools: dict[tuple, CachePool] = {}
        self._reserved: ReservedRows | None = None

    def reserve(
        self,
        unet: StreamUNet,
        rows: int,
        sizes: dict[Size, Size],
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        """Allocate `rows` rows for streams of these sizes; they are never freed.

        `sizes` maps working sizes in pixels to sizes of latents, each a (height, width).
        """
        self._reserved = ReservedRows(unet, rows, list(dict.fromkeys(sizes.values())), cache_dtype)
        self.working_sizes = list(sizes)

    def nearest(self, size: Size) -> Size:
        """Return the reserved working size with the aspect ratio nearest to that of `size`.

        So cameras of different shapes share a batch. If no reserved size has about as many pixels, as when a
        viewer chose another size, `size` is returned.
        """

        def distance(other: Size) -> float:
            return abs(math.log(other[1] * size[0] / (other[0] * size[1])))

        similar = [s for s in self.working_sizes if 1 / SIMILAR < math.prod(s) / math.prod(size) < SIMILAR]
        return min(similar, key=distance, default=size)

    def take(self, unet: StreamUNet, steps: int, size: Size, cache_dtype: torch.dtype | None) -> CacheLease:
        """Lease rows of zeros for a stream with `steps` denoising steps and a (height, width) of latents.

        They are reserved rows while enough adjacent ones are free, then those of a pool that grows.

        Raises:
            torch.OutOfMemoryError: there is no memory for them; the present leases are unchanged.
        """
        reserved = self._reserved
        if reserved is not None and not reserved.suffice(steps, size, cache_dtype):
            reserved = None
        key = (steps, size, cache_dtype, reserved is not None)
        if key not in self._pools:
            self._pools[key] = CachePool(unet, steps, size, cache_dtype, self._most, reserved)
        return self._pools[key].take()
