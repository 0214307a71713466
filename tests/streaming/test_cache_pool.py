"""Several streams in one cache: what each sees is its own, wherever its slot lies and whoever had it."""

import numpy as np
import pytest
import torch

from live2diff.model import kv_cache
from live2diff.model.kv_cache import grown
from live2diff.streaming.cache_pool import CachePool, CachePools
from live2diff.streaming.steps import push_together

STEPS = 2
LATENTS = (8, 8)
TURNS = 18


@pytest.fixture
def slots(tiny_pipeline) -> CachePool:
    return CachePool(tiny_pipeline.unet, STEPS, LATENTS, most=6)


def fill(cache, number: int) -> None:
    for tensor in cache.tensors:
        tensor.fill_(number)


def holds(cache, number: int) -> bool:
    return all(bool((tensor == number).all()) for tensor in cache.tensors)


def test_slots_in_use_stay_the_first_ones_and_keep_what_they_hold(slots):
    taken = [slots.take() for _ in range(5)]
    for number, slot in enumerate(taken, start=1):
        fill(slot.cache, number)
    taken[1].free()
    taken[2].free()
    left = [taken[0], taken[3], taken[4]]
    assert sorted(slot.index for slot in left) == [0, 1, 2]
    assert [holds(slot.cache, number) for slot, number in zip(left, (1, 4, 5), strict=True)] == [True] * 3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_next_owner_of_a_slot_finds_nothing_in_it(slots, which):
    taken = [slots.take() for _ in range(3)]
    for slot in taken:
        fill(slot.cache, 7)
    taken[which].free()
    assert holds(slots.block(2, 4), 0)
    assert holds(slots.take().cache, 0)


def test_growing_keeps_what_is_there_and_the_last_who_leaves_frees_it_all(slots):
    first = slots.take()
    fill(first.cache, 3)
    one = slots.nbytes
    others = [slots.take() for _ in range(4)]
    assert holds(first.cache, 3) and holds(slots.block(1, 6), 0)
    assert slots.nbytes == 6 * one
    for slot in (first, *others):
        slot.free()
    assert slots.nbytes == 0
    assert holds(slots.take().cache, 0)


def test_where_the_memory_ends_nobody_loses_a_slot_and_the_next_try_may_succeed(slots, monkeypatch):
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr(slots, "_new", short)
        with pytest.raises(torch.OutOfMemoryError):
            slots.take()
    first = slots.take()
    fill(first.cache, 3)
    tensors = iter((1, 2, 3))  # so many grow, then there is no memory for the next
    with monkeypatch.context() as patched:
        patched.setattr(kv_cache, "grown", lambda *told: grown(*told) if next(tensors, None) else short())
        with pytest.raises(torch.OutOfMemoryError):
            slots.take()
    assert len(slots) == 1 and holds(first.cache, 3)
    assert holds(slots.take().cache, 0) and holds(first.cache, 3)


def test_a_batch_is_the_smallest_aligned_block(slots):
    taken = [slots.take() for _ in range(6)]
    for indices, block in (
        ((0,), (0, 1)),
        ((3,), (3, 4)),
        ((2, 3), (2, 4)),
        ((1, 2), (0, 4)),
        ((3, 4), (0, 6)),
    ):
        assert slots.around([taken[index] for index in indices]) == range(*block)


def clip(seed: int, count: int, side: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def alone(pipeline, frames: list[np.ndarray], **settings) -> np.ndarray:
    stream = pipeline.stream(**settings)
    return np.stack([out for frame in frames for out in stream.push(frame)])


@pytest.mark.parametrize("steps", [1, 3])
def test_streams_pushed_together_give_what_each_gives_alone(tiny_pipeline, steps):
    """One leaves, one pauses, one comes late: the others' pictures are theirs all the same."""
    is_there = (lambda turn: turn < 14, lambda turn: turn % 4, lambda turn: turn > 1)
    table, clips = CachePools(), [clip(seed, TURNS) for seed in range(3)]
    settings = [
        {"style": style, "seed": seed, "steps": steps} for seed, style in enumerate(("pencil", "neon", "oil"))
    ]
    streams = [tiny_pipeline.stream(**told, pools=table) for told in settings]
    pushed, outs, largest = [0] * 3, [[] for _ in range(3)], 0
    for turn in range(TURNS):
        if turn == 14:
            streams[0].close()
        there = [number for number in range(3) if is_there[number](turn)]
        cold = [[number] for number in there if not streams[number].warm]
        warm = [number for number in there if streams[number].warm]
        for together in [*cold, warm] if warm else cold:
            arrivals = [streams[number].receive(clips[number][pushed[number]]) for number in together]
            for number, out in zip(together, push_together(arrivals), strict=True):
                outs[number] += out
                pushed[number] += 1
            largest = max(largest, len(together))
    assert largest == 3
    for number in range(3):
        expected = alone(tiny_pipeline, clips[number][: pushed[number]], **settings[number])
        differing = np.abs(np.stack(outs[number]).astype(int) - expected)
        assert differing.max() <= 1, f"stream {number}"  # sums in another order
        assert differing.mean() < 1e-2


def test_streams_of_other_sizes_or_steps_do_not_share_slots(tiny_pipeline):
    table = CachePools()
    streams = [
        tiny_pipeline.stream(pools=table, steps=steps, size=size)
        for steps, size in ((1, 32), (2, 32), (1, 48))
    ]
    same = tiny_pipeline.stream(pools=table, steps=1, size=32)
    for stream in (*streams, same):
        for frame in clip(0, 8):
            stream.push(frame)
    assert len({stream.pool for stream in streams}) == 3
    assert same.pool is streams[0].pool and len(same.pool) == 2
    for stream in (*streams, same):
        stream.close()
    assert table.nbytes == 0
