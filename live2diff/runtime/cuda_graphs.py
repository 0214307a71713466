"""Compute a model's frames on a CUDA GPU by replaying CUDA graphs, compiled before if asked.

Python launches some thousand kernels a frame, which takes longer than the GPU takes to run them; a graph is
one launch. Each is captured for the shapes and the cache it was first called with, on the engine's thread.
Capturing takes a moment, compiling before it a minute or two for the full model. The warmup stays eager. New
weights are written in place, so a style or a prompt captures nothing again. None of this has run on a GPU
yet; `pytest -m gpu tests/runtime/test_cuda_graphs.py` is what to run first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.attention import Window
from ..model.depth import inverse_depth
from ..model.kv_cache import KVCache
from ..model.vae import decode, encode
from ..pipeline import Live2DiffPipeline

WARMUP_CALLS = 3  # before a capture: libraries choose their kernels and allocate what they need
MOST_GRAPHS = 64  # blocks of 1, 2, 4, 8 streams at every offset, for a few sizes; the least used is dropped

TRIAL_FRAMES = 12
LARGEST_DIFFERENCE = 2.0  # grey levels on average, between frames of eager code and of the graphs

Function = Callable[..., Tensor]


@dataclass
class CapturedGraph:
    """A function of tensors, captured with the inputs that it reads and the output that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Tensor

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Compute the function of other inputs of the same shapes."""
        for own, other in zip(self.inputs, inputs, strict=True):
            own.copy_(other)
        self.graph.replay()
        return self.output.clone()  # the next replay writes over it


class GraphCache:
    """Graphs by what they were captured for. They share their memory: only one is replayed at a time."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, CapturedGraph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._side_stream = torch.cuda.Stream()  # one for all: libraries keep a workspace for each stream

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self, name: str, function: Function, *inputs: Tensor, state: Sequence[Tensor] = ()
    ) -> Tensor:
        """Compute `function(*inputs)`, which also reads and writes the tensors in `state`.

        A graph knows state by its address alone: it serves all that lies at the same addresses in the same
        shapes, and keeps nothing alive.
        """
        key = (
            name,
            *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs),
            *((tensor.data_ptr(), tensor.shape, tensor.dtype) for tensor in state),
        )
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = self._capture(function, [tensor.clone() for tensor in inputs])
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs)

    def _capture(self, function: Function, inputs: list[Tensor]) -> CapturedGraph:
        current, side, graph = torch.cuda.current_stream(), self._side_stream, torch.cuda.CUDAGraph()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARMUP_CALLS):
                function(*inputs)
        current.wait_stream(side)
        # The outer context leads back to the caller's stream even where ending a failed capture raises.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"),
        ):
            output = function(*inputs)
        return CapturedGraph(graph, inputs, output)


class CudaRuntime:
    """The parts of a model as CUDA graphs: a pipeline that has it as `runtime` calls it for each frame."""

    def __init__(self, pipeline: Live2DiffPipeline, compiled: bool = True):
        vae, depth_estimator = pipeline.vae, pipeline.depth_estimator
        self.graphs = GraphCache()
        # Compiled for each shape without graphs, which are made here.
        options = {"dynamic": False, "mode": "max-autotune-no-cudagraphs", "recompile_limit": MOST_GRAPHS}
        prepare: Any = partial(torch.compile, **options) if compiled else lambda function: function
        self._encode = prepare(lambda images: encode(vae, images))
        self._decode = prepare(lambda latents: decode(vae, latents))
        self._depth = prepare(lambda images: inverse_depth(depth_estimator, images))
        self._predict = prepare(pipeline.unet.forward)

    def encode(self, images: Tensor) -> Tensor:
        """As `Live2DiffPipeline.encode`."""
        return self._padded("encode", self._encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        """As `Live2DiffPipeline.decode`, without the content filter."""
        return self._padded("decode", self._decode, latents)

    def inverse_depth(self, images: Tensor) -> Tensor:
        """As `Live2DiffPipeline.inverse_depth`."""
        return self._padded("depth", self._depth, images)

    def takes(self, window: Window, cache: KVCache) -> bool:
        """True if `predict` can be called: one frame a row."""
        return window.frames == 1

    def forget(self) -> None:
        """Free the graphs captured so far."""
        self.graphs = GraphCache()  # a memory pool that no graph uses any more cannot be captured into

    def predict(self, *inputs: Any) -> Tensor:
        """As `StreamUNet.forward`; the window is that of the cache's count, read again at each replay."""
        *tensors, _, cache = inputs

        def step(*tensors: Tensor) -> Tensor:
            return self._predict(*tensors, Window.stream(cache.count), cache)

        return self.graphs("predict", step, *tensors, state=cache.tensors)

    def _padded(self, name: str, function: Function, batch: Tensor) -> Tensor:
        return self.graphs(name, function, pad_batch(batch))[: len(batch)]


def pad_batch(batch: Tensor) -> Tensor:
    """Repeat the last row up to 1, 2, 4, 8, ... rows: each number of rows is a graph of its own."""
    missing = (1 << (len(batch) - 1).bit_length()) - len(batch)
    return torch.cat([batch, *[batch[-1:]] * missing]) if missing else batch


def accelerate(
    pipeline: Live2DiffPipeline, compiled: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Give a pipeline on a GPU its runtime after a trial; if that fails, say so and leave it eager.

    The trial: a short clip of noise at the smallest size, eager and with the graphs, must give the same
    frames within 2 grey levels on average.
    """
    frames = list(np.random.default_rng(0).integers(0, 256, (TRIAL_FRAMES, 64, 64, 3), dtype=np.uint8))
    size = 2 * pipeline.size_multiple
    try:
        expected = np.stack(pipeline(frames, size=size))
        pipeline.runtime = CudaRuntime(pipeline, compiled)
        generated = np.stack(pipeline(frames, size=size))
    except RuntimeError as error:  # from CUDA, the compiler, or a stream of nothing but NaN
        pipeline.runtime = None
        report(f"CUDA graphs do not work here; continuing without them, more slowly: {error}")
        return
    difference = np.abs(generated.astype(np.float32) - expected).mean()
    if difference > LARGEST_DIFFERENCE:
        pipeline.runtime = None
        report(f"CUDA graphs change the images here, by {difference:.1f} grey levels: continuing without.")
