"""Leases of a pool hold each stream's cache and nothing of another's."""

import pytest
import torch

from live2diff.model import kv_cache
from live2diff.model.kv_cache import KVCache, grown
from live2diff.streaming.cache_pool import CachePool

STEPS = 2
LATENTS = (8, 8)


class LimitedUNet:
    """Makes caches as long as `memory_left`."""

    def __init__(self, unet) -> None:
        self.unet, self.memory_left = unet, True

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


def test_leases_stay_the_first_ones_and_keep_what_they_hold(pool):
    taken = [pool.take() for _ in range(5)]
    for number, lease in enumerate(taken, start=1):
        fill(lease.cache, number)
    taken[1].free()
    taken[2].free()
    left = [taken[0], taken[3], taken[4]]
    assert sorted(lease.index for lease in left) == [0, 1, 2]
    assert [holds(lease.cache, number) for lease, number in zip(left, (1, 4, 5), strict=True)] == [True] * 3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_next_lease_of_freed_rows_finds_nothing_in_them(pool, which):
    taken = [pool.take() for _ in range(3)]
    for lease in taken:
        fill(lease.cache, 7)
    taken[which].free()
    assert holds(pool.block(2, 4), 0)
    assert holds(pool.take().cache, 0)


def test_growing_keeps_what_is_there_and_the_last_lease_frees_it_all(pool):
    first = pool.take()
    fill(first.cache, 3)
    one = pool.nbytes
    others = [pool.take() for _ in range(4)]
    assert holds(first.cache, 3) and holds(pool.block(1, 6), 0)
    assert pool.nbytes == 6 * one
    for lease in (first, *others):
        lease.free()
    assert pool.nbytes == 0
    assert holds(pool.take().cache, 0)


def test_without_memory_no_lease_is_lost_and_the_next_try_may_succeed(tiny_pipeline, monkeypatch):
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


def test_a_batch_is_the_smallest_aligned_block(pool):
    taken = [pool.take() for _ in range(6)]
    for indices, block in (
        ((0,), (0, 1)),
        ((3,), (3, 4)),
        ((2, 3), (2, 4)),
        ((1, 2), (0, 4)),
        ((3, 4), (0, 6)),
    ):
        assert pool.smallest_block([taken[index] for index in indices]) == range(*block)
