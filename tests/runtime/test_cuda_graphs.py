"""A compiled and captured model gives the frames of eager code: emulated on a CPU, and on a GPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.graph_emulator import Graphs, emulate
from helpers.tiny_models import tiny_checker

from live2diff import Live2DiffPipeline
from live2diff.runtime import regions
from live2diff.runtime.cuda_graphs import WARMUP_CALLS, CudaRuntime, GraphCache, Way
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.content_filter import ContentFilter
from live2diff.streaming.settings import StreamSettings
from live2diff.streaming.steps import powers_of_two, push_together

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
FRAMES = 20


def frames(seed: int, count: int = FRAMES) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8))


def near(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Return whether no pixel differs by more than two grey levels, and few by more than one."""
    differing = np.abs(np.stack(first).astype(int) - np.stack(second))
    return differing.max() <= 2 and (differing > 1).mean() < 1e-3


WAYS = {"graphs": Way(), "attention": Way(True), "fused": Way(True, True), "compiled": Way(True, True, True)}


@pytest.fixture(params=["graphs", "attention", "fused", pytest.param("compiled", marks=on_gpu)])
def fast(request, on_cuda) -> Iterator[Live2DiffPipeline]:
    """Return the pipeline with its runtime."""
    if request.param != "graphs":
        pytest.importorskip("triton", reason="on Linux only")
    on_cuda.runtime = CudaRuntime(on_cuda, WAYS[request.param])
    yield on_cuda
    on_cuda.runtime = None


def eagerly(pipeline: Live2DiffPipeline, *arguments, **settings) -> list[np.ndarray]:
    """Run without the runtime."""
    runtime, pipeline.runtime = pipeline.runtime, None
    try:
        return pipeline(*arguments, **settings)
    finally:
        pipeline.runtime = runtime


@pytest.mark.parametrize("streams", range(1, 9))
def test_streams_are_split_into_calls_of_powers_of_two(streams):
    parts = powers_of_two(streams)
    assert sum(parts) == streams and set(parts) <= {1, 2, 4, 8} and parts == sorted(set(parts), reverse=True)


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    return emulate(monkeypatch)


class TestEmulator:
    """Mistakes in captures are found without a GPU."""

    def test_an_input_that_is_not_copied_in_is_stale(self, graphs):
        captured, factor = GraphCache(), torch.ones(1)
        calls = [captured("twice", lambda x: x * factor, torch.full((1,), 3.0)) for _ in range(2)]
        factor = torch.full((1,), 2.0)
        assert [call.item() for call in (*calls, captured("twice", lambda x: x * factor, torch.ones(1)))] == [
            3.0,
            3.0,
            1.0,  # a GPU's graph reads the old factor as well
        ]

    def test_memory_that_moved_is_another_graph_and_state_is_read_again(self, graphs):
        captured, state = GraphCache(), torch.ones(1)

        def add(x: torch.Tensor) -> torch.Tensor:
            return state.add_(x).clone()

        ran_before = WARMUP_CALLS * 1.0
        assert captured("add", add, torch.ones(1), state=[state]).item() == 2 + ran_before
        assert captured("add", add, torch.ones(1), state=[state]).item() == 3 + ran_before
        state = torch.ones(1)
        captured("add", add, torch.ones(1), state=[state])
        assert len(captured) == 2 and state.item() == 2 + ran_before

    @pytest.mark.parametrize(
        "operation",
        [torch.Tensor.item, torch.nonzero, lambda x: x[x > 0], torch.rand_like, bool],
        ids=["item", "nonzero", "mask", "rand", "bool"],
    )
    def test_what_a_capture_forbids_is_an_error(self, graphs, operation):
        def reads(x: torch.Tensor) -> torch.Tensor:
            operation(x)
            return x + 1

        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            GraphCache()("reads", reads, torch.ones(1))
        assert graphs.captured == 0

    def test_a_copy_from_the_host_is_an_error(self, graphs):
        def copies(x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(2).to("meta")

        with pytest.raises(RuntimeError, match="must not copy from or to the host"):
            GraphCache()("copies", copies, torch.ones(2, device="meta"))

    @pytest.mark.parametrize(
        "fault",
        [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: device-side assert")],
        ids=["out of memory", "sticky"],
    )
    def test_an_error_in_a_capture_leads_back_to_the_callers_stream(self, graphs, fault):
        captured, callers = GraphCache(), torch.cuda.current_stream()

        def fail(operation: str) -> None:
            raise fault

        graphs.fault = fail
        with pytest.raises(RuntimeError) as raised:
            captured("fails", torch.square, torch.ones(1))
        assert str(fault) in str(raised.value) and isinstance(raised.value, type(fault))
        assert torch.cuda.current_stream() is callers and len(captured) == 0
        graphs.fault = lambda operation: None
        assert captured("works", torch.square, torch.ones(1)).item() == 1


class TestGraphs:
    """Emulated, and on a GPU where there is one."""

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
        """With a lease that is freed and an allocation that grows on the way."""
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

    def test_blocks_are_traced_whole_and_give_the_same_frames(self, on_cuda, monkeypatch):
        """On a GPU they are compiled; without one only traced, as compiling takes minutes."""
        pytest.importorskip("triton", reason="on Linux only")
        if not torch.cuda.is_available():
            monkeypatch.setattr(regions, "BACKEND", "eager")
        on_cuda.runtime = CudaRuntime(on_cuda, WAYS["compiled"])
        shown = on_cuda(frames(0), seed=1, steps=2)
        on_cuda.runtime = None
        assert near(shown, on_cuda(frames(0), seed=1, steps=2))
        assert not any("forward" in vars(module) for module in on_cuda.unet.modules())

    def test_a_content_filter_is_captured_as_well(self, on_cuda, monkeypatch):
        clip, captured = frames(10), []
        for content_filter in (None, ContentFilter(tiny_checker().to(on_cuda.unet.device))):
            monkeypatch.setattr(on_cuda, "content_filter", content_filter)
            on_cuda.runtime = CudaRuntime(on_cuda, Way())
            shown = on_cuda(clip, seed=1)
            captured.append(len(on_cuda.runtime.graphs))
            on_cuda.runtime = None
            assert near(shown, on_cuda(clip, seed=1))
        assert captured[1] > captured[0]

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
