"""After a warm start nothing is captured or allocated when viewers join, leave, or have other cameras."""

import numpy as np
import pytest
import torch
from helpers.graph_emulator import emulate
from helpers.streams import alone

from live2diff.runtime.cuda_graphs import CudaRuntime, Way
from live2diff.serving.warm_start import warm_start
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.steps import push_together
from live2diff.streaming.stream import Stream

SHAPES = [(48, 64), (64, 48), (36, 64), (64, 36), (48, 64), (50, 50), (48, 64), (48, 64)]


def image(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def push(streams: list[tuple[Stream, np.ndarray]]) -> None:
    """Push a frame of each, as the engine does: those of one pool together."""
    batches: dict[object, list] = {}
    for stream, frame in streams:
        batches.setdefault(stream.pool or stream, []).append(stream.receive(frame))
    for batch in batches.values():
        for result in push_together(batch):
            assert isinstance(result, list), result


@pytest.mark.slow
@pytest.mark.parametrize(("fused", "capacity"), [(True, 8), (False, 4)], ids=["fused", "plain"])
def test_viewers_join_and_leave_and_nothing_is_captured(tiny_pipeline, monkeypatch, fused, capacity):
    pytest.importorskip("triton", reason="on Linux only")
    graphs, pipe = emulate(monkeypatch), tiny_pipeline
    monkeypatch.setattr(pipe, "runtime", CudaRuntime(pipe, Way(fused, fused)))
    pools = CachePools(capacity)
    warm_start(pipe, pools, capacity)
    captured = graphs.captured
    assert captured > 0
    allocated: list[tuple] = []
    new_cache = type(pipe.unet).new_cache
    monkeypatch.setattr(
        type(pipe.unet), "new_cache", lambda *a: allocated.append(a) or new_cache(*a)
    )  # fmt: skip
    viewers: list[tuple[Stream, np.ndarray]] = []
    for number, shape in enumerate(SHAPES[:capacity]):
        stream = pipe.stream(seed=number, pools=pools)
        for _ in range(8):
            stream.push(image(shape, number))
        viewers.append((stream, image(shape, number)))
        push(viewers)
    assert len({stream.pool for stream, _ in viewers}) == min(4, capacity)  # one for each working size
    for number in range(capacity - 2, -1, -3):
        viewers.pop(number)[0].close()
        push(viewers)
    push(viewers)
    assert graphs.captured == captured and not allocated
    for stream, _ in viewers:
        stream.close()


def test_where_memory_is_full_a_stream_is_refused_and_costs_the_others_nothing(tiny_pipeline, monkeypatch):
    pools = CachePools(1)
    warm_start(tiny_pipeline, pools, 1)
    frame = image((48, 64), 0)
    first, second = (tiny_pipeline.stream(pools=pools) for _ in range(2))
    for _ in range(8):
        first.push(frame)
    monkeypatch.setattr(type(tiny_pipeline.unet), "new_cache", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        for _ in range(8):
            second.push(frame)
    first.push(frame)
    first.close()
    assert len(second.push(frame)) == 8
    second.close()


def out_of_memory(*_: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_viewer_of_more_steps_leaves_room_for_the_others_and_graphs_go_on(tiny_pipeline, monkeypatch):
    """Beyond the reserved rows there is memory; only graphs for it are captured when they are needed."""
    pytest.importorskip("triton", reason="on Linux only")
    graphs, pipe = emulate(monkeypatch), tiny_pipeline
    monkeypatch.setattr(pipe, "runtime", CudaRuntime(pipe, Way(True, True)))
    pools, clips = CachePools(2), [[image((48, 64), 50 * seed + n) for n in range(14)] for seed in range(2)]
    warm_start(pipe, pools, 2)
    streams = [pipe.stream(seed=seed, steps=steps, pools=pools) for seed, steps in enumerate((4, None))]
    outs, captured = [[], []], graphs.captured
    for turn in range(14):
        for out, stream, clip in zip(outs, streams, clips, strict=True):
            out += stream.push(clip[turn])
    assert graphs.captured > captured
    for stream in streams:
        stream.close()
    monkeypatch.setattr(pipe, "runtime", None)
    for seed, steps in enumerate((4, None)):
        expected = alone(pipe, clips[seed], seed=seed, steps=steps)
        assert np.abs(np.stack(outs[seed]).astype(int) - expected).max() <= 2
