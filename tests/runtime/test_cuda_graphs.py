"""Compiled and captured, a model gives what it gives without; most of these need a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.tiny_models import build_tiny_pipeline

from live2diff import Live2DiffPipeline
from live2diff.runtime.cuda_graphs import WARMUP_CALLS, CudaRuntime, GraphCache, accelerate, pad_batch
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.settings import StreamSettings
from live2diff.streaming.steps import push_together

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
FRAMES = 20


def frames(seed: int, count: int = FRAMES) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8))


def near(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """True if no pixel differs by more than two grey levels, and few by more than one."""
    differing = np.abs(np.stack(first).astype(int) - np.stack(second))
    return differing.max() <= 2 and (differing > 1).mean() < 1e-3


@pytest.fixture(scope="module")
def on_cuda(tmp_path_factory) -> Iterator[Live2DiffPipeline]:
    """A pipeline in full single precision, so that rounding makes no difference."""
    exact = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield build_tiny_pipeline(tmp_path_factory.mktemp("tokenizer")).to("cuda")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = exact


@pytest.fixture(params=[False, True], ids=["graphs", "compiled"])
def fast(request, on_cuda) -> Iterator[Live2DiffPipeline]:
    """The pipeline with its runtime."""
    on_cuda.runtime = CudaRuntime(on_cuda, compiled=request.param)
    yield on_cuda
    on_cuda.runtime = None


def eagerly(pipeline: Live2DiffPipeline, *arguments, **settings) -> list[np.ndarray]:
    """Run without the runtime."""
    runtime, pipeline.runtime = pipeline.runtime, None
    try:
        return pipeline(*arguments, **settings)
    finally:
        pipeline.runtime = runtime


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_a_batch_is_pad_batch_to_a_power_of_two(rows):
    batch = torch.arange(rows)[:, None]
    padded = pad_batch(batch)
    assert len(padded) in (1, 2, 4, 8)
    assert torch.equal(padded[:rows], batch) and len(padded) < 2 * rows


class EmulatedCuda:
    """Enough of `torch.cuda` for a capture; the end of a failed one raises on the side stream, as CUDA's."""

    Stream = Mock
    CUDAGraph = Mock
    graph_pool_handle = Mock

    def __init__(self) -> None:
        self.current = Mock()

    def current_stream(self) -> Mock:
        return self.current

    @contextmanager
    def stream(self, stream: Mock) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Mock, stream: Mock, **options: object) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.current = before


def test_a_capture_that_fails_leads_back_to_the_callers_stream(monkeypatch):
    cuda = EmulatedCuda()
    for name in ("Stream", "CUDAGraph", "graph_pool_handle", "current_stream", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    graphs, callers, calls = GraphCache(), cuda.current, []

    def fails_in_the_capture(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) > WARMUP_CALLS:
            raise RuntimeError("operation not permitted when stream is capturing")
        return x

    with pytest.raises(RuntimeError, match="during capture"):
        graphs("fails", fails_in_the_capture, torch.ones(1))
    assert cuda.current is callers and len(graphs) == 0
    assert graphs("works", torch.square, torch.ones(1)).tolist() == [1] and cuda.current is callers


class TestOnGpu:
    pytestmark = on_gpu

    @pytest.mark.parametrize(
        "settings", [{"steps": 1}, {"steps": 2}, {"steps": 4}, {"cache_dtype": torch.int8}], ids=str
    )
    def test_frames_are_those_of_eager_code(self, fast, settings):
        clip = frames(0)
        assert near(fast(clip, seed=1, **settings), eagerly(fast, clip, seed=1, **settings))

    def test_a_restart_and_another_prompt_capture_nothing_more(self, fast):
        stream = fast.stream(steps=2)
        for frame in frames(1, 12):
            stream.push(frame)
        captured = len(fast.runtime.graphs)
        assert captured > 0
        stream.update(prompt="a cat", style="neon")
        stream.restart()
        for frame in frames(2, 10):
            stream.push(frame)
        assert len(fast.runtime.graphs) == captured

    def test_streams_pushed_together_give_what_each_gives_alone(self, fast):
        """With a lease that moves and an allocation that grows on the way."""
        pools, clips = CachePools(most=4), [frames(seed) for seed in range(3)]
        streams = [fast.stream(seed=seed, steps=2, pools=pools) for seed in range(3)]
        outs: list[list[np.ndarray]] = [[], [], []]
        for turn in range(FRAMES):
            if turn == 14:
                streams[0].close()
            there = [number for number in range(3) if number or turn < 14]
            pending = [streams[number].receive(clips[number][turn]) for number in there]
            batches = [pending] if streams[1].warm else [[frame] for frame in pending]
            results = [out for batch in batches for out in push_together(batch)]
            for number, out in zip(there, results, strict=True):
                outs[number] += out
        for number in range(3):
            expected = eagerly(fast, clips[number], seed=number, steps=2)
            assert near(outs[number], expected[: len(outs[number])])

    def test_graphs_are_kept_only_if_they_give_the_same_frames(self, on_cuda, monkeypatch):
        reported: list[str] = []
        accelerate(on_cuda, report=reported.append)
        assert on_cuda.runtime is not None and reported == []
        decoded = CudaRuntime.decode
        monkeypatch.setattr(CudaRuntime, "decode", lambda runtime, latents: -decoded(runtime, latents))
        accelerate(on_cuda, report=reported.append)
        assert on_cuda.runtime is None and len(reported) == 1

    def test_after_forgetting_graphs_are_captured_again(self, fast):
        before = fast(frames(5), seed=1)
        fast.runtime.forget()
        assert len(fast.runtime.graphs) == 0
        assert near(fast(frames(5), seed=1), before)

    def test_another_thread_may_make_the_graphs(self, fast):
        """The engine's thread warms up, captures and replays."""
        from live2diff.serving.engine import Engine

        clip = frames(4)
        engine = Engine(fast, capacity=2)
        engine.open("ann", StreamSettings(seed=3, steps=1)).result()
        outs = [out for frame in clip for out in engine.push("ann", frame).result().frames]
        engine.shutdown()
        assert near(outs, eagerly(fast, clip, seed=3, steps=1))
