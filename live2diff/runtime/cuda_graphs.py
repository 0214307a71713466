"""On a CUDA GPU: what a model computes for each frame, compiled, and replayed as CUDA graphs.

Python calls some thousand kernels a frame, which takes it longer than the GPU takes to run them. A graph is
one call. Each is captured for the shapes and the memory it was first called with, by the thread that calls
it, the engine's; that takes a moment, and compiling before it a minute or two for the full model. The warmup,
a few calls a visit, is left as it is. New weights are written in place, so a style or a prompt captures
nothing anew.

`accelerate` is what `weights.load` calls: it trusts a graph only after a look at what it draws. No GPU was at
hand when this was written: it has never run. `tests/test_cuda.py` is what to run first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..model.attention import Window
from ..model.depth import inverse_depth
from ..model.kv_cache import KVCache
from ..model.vae import decode, encode

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

PREPARING_CALLS = 3  # before a capture: libraries choose their kernels and allocate what they need
MOST_GRAPHS = 64  # blocks of 1, 2, 4, 8 slots at every place, for a few sizes; the least used one is dropped

TRIAL_FRAMES = 12
LARGEST_DIFFERENCE = 2.0  # grey levels on average, between what eager code and the graphs draw

Function = Callable[..., torch.Tensor]


class Graph:
    """One function of tensors, captured."""

    def __init__(
        self,
        function: Function,
        inputs: tuple[torch.Tensor, ...],
        pool: tuple[int, int],
        aside: torch.cuda.Stream,
    ):
        self._inputs = [tensor.clone() for tensor in inputs]
        current = torch.cuda.current_stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(PREPARING_CALLS):
                function(*self._inputs)
        current.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            self._output = function(*self._inputs)

    def replay(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._output.clone()  # the next replay writes over it


class Graphs:
    """Graphs by what they were captured for. They share their memory: only one is replayed at a time."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._aside = torch.cuda.Stream()  # one for all: libraries keep a workspace for each stream

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self, name: str, function: Function, *inputs: torch.Tensor, memory: list[torch.Tensor] = ()
    ) -> torch.Tensor:
        """`function(*inputs)`, which also reads and writes the tensors in `memory`.

        A graph knows memory by its address alone. So it serves whatever lies at the same addresses in the
        same shapes, and keeps nothing alive.
        """
        key = (
            name,
            *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in inputs),
            *((tensor.data_ptr(), tensor.shape, tensor.dtype) for tensor in memory),
        )
        if key not in self._graphs:
            if len(self._graphs) == MOST_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = Graph(function, inputs, self._pool, self._aside)
        self._graphs.move_to_end(key)
        return self._graphs[key].replay(inputs)


class CudaRuntime:
    """The same calls as `Live2DiffPipeline`'s, which uses it if it has one.

    Args:
        pipeline: on a CUDA device.
        compiled: whether its modules are compiled before they are captured.
    """

    def __init__(self, pipeline: Live2DiffPipeline, compiled: bool = True):
        self._vae, self._estimator, self._unet = pipeline.vae, pipeline.depth_estimator, pipeline.unet
        self._graphs = Graphs()
        prepare = compiling if compiled else lambda function: function
        self._encode = prepare(lambda pictures: encode(self._vae, pictures))
        self._decode = prepare(lambda latents: decode(self._vae, latents))
        self._depth = prepare(lambda pictures: inverse_depth(self._estimator, pictures))
        self._predict = prepare(self._unet.forward)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._in_bucket("encode", self._encode, pictures)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._in_bucket("decode", self._decode, latents)

    def inverse_depth(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._in_bucket("depth", self._depth, pictures)

    def takes(self, window: Window, cache: KVCache) -> bool:
        """Whether `predict` can be called: for one frame a row."""
        return window.frames == 1

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        depth_latents: torch.Tensor,
        window: Window,
        cache: KVCache,
    ) -> torch.Tensor:
        """As `StreamUNet.forward`; the window is what the cache's count says, read anew at each replay."""

        def step(*inputs: torch.Tensor) -> torch.Tensor:
            return self._predict(*inputs, Window.stream(cache.count), cache)

        inputs = (sample, timestep, prompt_embeds, depth_latents)
        return self._graphs("predict", step, *inputs, memory=cache.tensors)

    def _in_bucket(self, name: str, function: Function, batch: torch.Tensor) -> torch.Tensor:
        return self._graphs(name, function, filled_up(batch))[: len(batch)]


def filled_up(batch: torch.Tensor) -> torch.Tensor:
    """With its last row repeated, to 1, 2, 4, 8, ... rows: each number of rows is a graph of its own."""
    missing = (1 << (len(batch) - 1).bit_length()) - len(batch)
    return torch.cat([batch, *[batch[-1:]] * missing]) if missing else batch


def compiling(function: Function) -> Function:
    """The function, compiled for each shape it is called with; without graphs, which are made here."""
    compiled = torch.compile(function, dynamic=False, mode="max-autotune-no-cudagraphs")

    def call(*inputs: Any) -> torch.Tensor:
        # Set here, as each thread has a limit of its own; beyond it, a function is no longer compiled at all.
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        return compiled(*inputs)

    return call


def accelerate(
    pipeline: Live2DiffPipeline,
    compiled: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Give a pipeline on a GPU its runtime, if that draws what it draws without, else say so and leave it.

    Args:
        compiled: whether to compile as well, which takes a minute or two for the full model.
        report: told in words what comes of it.
    """
    frames = list(np.random.default_rng(0).integers(0, 256, (TRIAL_FRAMES, 64, 64, 3), dtype=np.uint8))
    size = 2 * pipeline.size_multiple
    try:
        expected = np.stack(pipeline(frames, size=size))
        pipeline.runtime = CudaRuntime(pipeline, compiled)
        drawn = np.stack(pipeline(frames, size=size))
    except RuntimeError as error:  # as CUDA, the compiler and streams that drew nothing but NaN raise them
        pipeline.runtime = None
        report(f"CUDA graphs do not work here, so it goes on without, more slowly: {error}")
        return
    difference = np.abs(drawn.astype(np.float32) - expected).mean()
    if not difference <= LARGEST_DIFFERENCE:
        pipeline.runtime = None
        report(f"CUDA graphs draw something else here (by {difference:.1f} grey levels): it goes on without.")
