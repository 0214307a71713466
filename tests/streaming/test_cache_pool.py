"""Each lease of a pool holds the cache of its own stream only."""

import pytest
import torch

from live2diff.model import kv_cache
from live2diff.model.kv_cache import KVCache, grown
from live2diff.streaming.cache_pool import CachePool, CachePools

STEPS = 2
LATENTS = (8, 8)


class LimitedUNet:
    """A UNet that can allocate caches while `memory_left`."""

    def __init__(self, unet) -> None:
        self.unet, self.memory_left = unet, True

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def new_cache(self, *arguments) -> KVCache:
        if not self.memory_left:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.unet.new_cache(*arguments)


@pytest.fixture
def pool(tiny_pipeline) -> CachePool:
    return CachePool(tiny_pipeline.unet, STEPS, LATENTS, most=6)


def fill(cache, number: int) -> None:
    for tensor in cache.tensors:
        tensor.fill_(number)


def holds(cache, number: int) -> bool:
    return all(bool((tensor == number).all()) for tensor in cache.tensors)


def test_leases_keep_their_rows_and_contents(pool):
    taken = [pool.take() for _ in range(5)]
    for number, lease in enumerate(taken, start=1):
        fill(lease.cache, number)
    taken[1].free()
    taken[2].free()
    left = {1: taken[0], 4: taken[3], 5: taken[4]}
    assert all(lease.start == STEPS * (number - 1) for number, lease in left.items())
    assert all(holds(lease.cache, number) for number, lease in left.items())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_freed_rows_are_zero_for_the_next_lease(pool, which):
    taken = [pool.take() for _ in range(3)]
    for lease in taken:
        fill(lease.cache, 7)
    taken[which].free()
    again = pool.take()
    assert again.start == taken[which].start and holds(again.cache, 0)


def test_growing_keeps_contents_and_the_last_lease_frees_the_memory(pool):
    first = pool.take()
    fill(first.cache, 3)
    one = pool.cache.nbytes
    others = [pool.take() for _ in range(4)]
    assert holds(first.cache, 3) and all(holds(other.cache, 0) for other in others)
    assert pool.cache.nbytes == 6 * one
    for lease in (first, *others):
        lease.free()
    with pytest.raises(AssertionError, match="nothing is leased"):
        _ = pool.cache
    assert holds(pool.take().cache, 0)


def test_out_of_memory_loses_no_lease_and_the_next_attempt_may_succeed(tiny_pipeline, monkeypatch):
    unet = LimitedUNet(tiny_pipeline.unet)
    pool = CachePool(unet, STEPS, LATENTS, most=6)
    unet.memory_left = False
    with pytest.raises(torch.OutOfMemoryError):
        pool.take()
    unet.memory_left = True
    first = pool.take()
    fill(first.cache, 3)
    left = iter((1, 2, 3))  # so many tensors grow, then memory runs out

    def grow_some(*arguments) -> torch.Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return grown(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(kv_cache, "grown", grow_some)
        with pytest.raises(torch.OutOfMemoryError):
            pool.take()
    assert len(pool) == 1 and holds(first.cache, 3)
    assert holds(pool.take().cache, 0) and holds(first.cache, 3)


def test_a_batch_is_the_rows_of_its_leases_in_order(pool):
    taken = [pool.take() for _ in range(4)]
    batch = pool.batch([taken[3], taken[0]])
    assert batch.index is not None and batch.index.tolist() == [6, 7, 0, 1]
    batch.advance(torch.tensor([1, 0, 1, 1]))
    assert pool.cache.count.tolist() == [1, 1, 0, 0, 0, 0, 1, 0]
    assert batch.counts.tolist() == [1, 0, 1, 1]


def test_a_single_stream_uses_its_rows_without_an_index(tiny_pipeline):
    pool = CachePool(tiny_pipeline.unet, STEPS, LATENTS)
    batch = pool.batch([pool.take()])
    assert batch.index is None and batch.keys[0].data_ptr() == pool.cache.keys[0].data_ptr()


@pytest.mark.parametrize("cache_dtype", [None, torch.int8], ids=str)
def test_reserved_rows_are_shared_by_sizes_and_numbers_of_steps(tiny_pipeline, cache_dtype):
    pools, unet, sizes = CachePools(most=3), tiny_pipeline.unet, [(8, 8), (6, 10), (10, 6)]
    pools.reserve(unet, 6, {size: size for size in sizes}, cache_dtype)

    def take(steps: int, size: tuple[int, int]):
        lease = pools.take(unet, steps, size, cache_dtype)
        assert holds(lease.cache, 0)
        shapes = [tensor.shape for tensor in unet.new_cache(steps, *size, cache_dtype).tensors]
        assert [tensor.shape for tensor in lease.cache.tensors] == shapes
        return lease

    addresses = {take(2, size).cache.keys[0].untyped_storage().data_ptr() for size in sizes}
    assert len(addresses) == 1  # one allocation
    pools = CachePools(most=3)
    pools.reserve(unet, 6, {size: size for size in sizes}, cache_dtype)
    first, second, third = (take(2, size) for size in sizes)
    for number, lease in enumerate((first, second, third), start=1):
        fill(lease.cache, number)
    second.free()
    assert holds(first.cache, 1) and holds(third.cache, 3)
    single = take(1, (10, 6))
    fill(single.cache, 4)
    assert take(1, (8, 8)).start == 3 and holds(first.cache, 1) and holds(third.cache, 3)


def test_without_free_reserved_rows_others_are_allocated_until_memory_is_full(tiny_pipeline):
    pools, unet = CachePools(most=2), LimitedUNet(tiny_pipeline.unet)
    pools.reserve(unet, 4, {(64, 64): LATENTS})
    reserved = [pools.take(unet, steps, LATENTS, None) for steps in (1, 2)]
    other = pools.take(unet, 2, LATENTS, None)  # one row is left
    for number, lease in enumerate((*reserved, other), start=1):
        fill(lease.cache, number)
    assert other.pool is not reserved[1].pool and other.pool.steps == 2
    unet.memory_left = False
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        pools.take(unet, 3, LATENTS, None)
    assert all(holds(lease.cache, number) for number, lease in enumerate((*reserved, other), start=1))
    last = pools.take(unet, 1, LATENTS, None)
    assert last.pool is reserved[0].pool and holds(last.cache, 0)
    other.free()
    reserved[1].free()
    with pytest.raises(AssertionError, match="nothing is leased"):
        _ = other.pool.cache
    again = pools.take(unet, 2, LATENTS, None)
    assert again.pool is reserved[1].pool and holds(again.cache, 0)


def test_a_size_that_is_not_reserved_gets_its_own_memory(tiny_pipeline):
    pools, unet = CachePools(most=2), tiny_pipeline.unet
    pools.reserve(unet, 2, {(64, 64): (8, 8)})
    other = pools.take(unet, 2, (16, 16), None)
    fill(pools.take(unet, 2, (8, 8), None).cache, 1)
    assert holds(other.cache, 0)


def test_frames_of_other_shapes_get_the_nearest_reserved_size(tiny_pipeline):
    pools = CachePools(most=2)
    assert pools.nearest((448, 576)) == (448, 576)
    sizes = {(448, 576): (6, 8), (384, 704): (6, 8), (576, 448): (8, 6), (704, 384): (8, 6)}
    pools.reserve(tiny_pipeline.unet, 1, sizes)
    for size, expected in (
        ((480, 512), (448, 576)),
        ((384, 640), (384, 704)),
        ((576, 448), (576, 448)),
        ((640, 384), (704, 384)),
        ((256, 256), (256, 256)),  # chosen by the viewer
    ):
        assert pools.nearest(size) == expected
