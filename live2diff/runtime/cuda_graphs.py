"""Compute a model's frames on a CUDA GPU by replaying CUDA graphs, its temporal attention by a Triton kernel.

Python launches some thousand kernels a frame, which takes longer than the GPU takes to run them; a graph is
one launch. Each is captured for the shapes and the cache it was first called with, on the engine's thread.
Capturing takes a moment, compiling before it a minute or two for the full model. The warmup stays eager. New
weights are written in place, so a style or a prompt captures nothing again. None of this has run on a GPU
yet; `pytest -m gpu tests/runtime/test_cuda_graphs.py` is what to run first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from subprocess import SubprocessError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.attention import Window
from ..model.depth import inverse_depth
from ..model.kv_cache import KVCache
from ..model.vae import decode, encode
from ..pipeline import Live2DiffPipeline
from ..streaming.steps import powers_of_two

WARMUP_CALLS = 3  # before a capture: libraries choose their kernels and allocate what they need
MOST_GRAPHS = 128  # 4 networks for 1, 2, 4, 8 streams of a few sizes; the least used is dropped

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

    def __init__(self, pipeline: Live2DiffPipeline, compiled: bool = True, fused: bool = False):
        vae, depth_estimator = pipeline.vae, pipeline.depth_estimator
        self.graphs = GraphCache()
        # Compiled for each shape without graphs, which are made here.
        options = {"dynamic": False, "mode": "max-autotune-no-cudagraphs", "recompile_limit": MOST_GRAPHS}
        prepare: Any = partial(torch.compile, **options) if compiled else lambda function: function
        self._encode = prepare(lambda images: encode(vae, images))
        self._decode = prepare(lambda latents: decode(vae, latents))
        self._depth = prepare(lambda images: inverse_depth(depth_estimator, images))
        self._predict = prepare(pipeline.unet.forward)
        self.fused = None
        if fused:
            from .kernels import FusedAttention

            self.fused = FusedAttention(pipeline.unet)

    def encode(self, images: Tensor) -> Tensor:
        """As `Live2DiffPipeline.encode`."""
        return self._in_parts("encode", self._encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        """As `Live2DiffPipeline.decode`, without the content filter."""
        return self._in_parts("decode", self._decode, latents)

    def inverse_depth(self, images: Tensor) -> Tensor:
        """As `Live2DiffPipeline.inverse_depth`."""
        return self._in_parts("depth", self._depth, images)

    def takes(self, window: Window, cache: KVCache) -> bool:
        """True if `predict` can be called: one frame a row."""
        return window.frames == 1

    def forget(self) -> None:
        """Free the graphs captured so far."""
        self.graphs = GraphCache()  # a memory pool that no graph uses any more cannot be captured into

    def predict(self, *inputs: Any) -> Tensor:
        """As `StreamUNet.forward`; the window is that of the cache's count, read again at each replay."""
        *tensors, _, cache = inputs
        fused = self.fused if self.fused is not None and self.fused.takes(cache) else None
        if fused is not None:
            fused.refresh()
            if cache.index is None:
                cache = cache.select(torch.arange(len(cache.count), device=cache.count.device))
        index = [] if cache.index is None else [cache.index]

        def step(sample: Tensor, timestep: Tensor, embeds: Tensor, depth: Tensor, *index: Tensor) -> Tensor:
            used = replace(cache, index=index[0] if index else None, attend=fused)
            window = Window.stream(used.counts) if fused is None else fused.window
            return self._predict(sample, timestep, embeds, depth, window, used)

        return self.graphs("predict", step, *tensors, *index, state=cache.tensors)

    def _in_parts(self, name: str, function: Function, batch: Tensor) -> Tensor:
        """Compute parts of 1, 2, 4, 8, ... rows, each number of which is a graph of its own."""
        parts = batch.split(powers_of_two(len(batch)))
        outputs = [self.graphs(name, function, part) for part in parts]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def accelerate(
    pipeline: Live2DiffPipeline, compiled: bool = False, report: Callable[[str], None] = lambda line: None
) -> None:
    """Give a pipeline on a GPU its runtime after a trial; what fails is left out, and `report` says so.

    The trial: a short clip of noise at the smallest size, eager and with the graphs, must give the same
    frames within 2 grey levels on average: first with the attention kernel, if there is Triton, then without.
    """
    frames = list(np.random.default_rng(0).integers(0, 256, (TRIAL_FRAMES, 64, 64, 3), dtype=np.uint8))
    size = 2 * pipeline.size_multiple

    def translate() -> np.ndarray:
        """Return the frames, with a cache of full precision and one of 8 bits."""
        clips = [pipeline(frames, size=size, cache_dtype=dtype) for dtype in (None, torch.int8)]
        return np.stack(clips).astype(np.float32)

    pipeline.runtime, expected = None, None
    for fused in (True, False) if find_spec("triton") else (False,):
        problem = ""
        try:
            expected = translate() if expected is None else expected
            pipeline.runtime = CudaRuntime(pipeline, compiled, fused)
            difference = np.abs(translate() - expected).mean()
            if difference > LARGEST_DIFFERENCE:
                problem = f"the images differ by {difference:.1f} grey levels"
        except kernel_errors() as error:  # from CUDA, a compiler, or a stream of nothing but NaN
            problem = " ".join(str(error).split())
        if not problem:
            return
        pipeline.runtime = None
        what = "The attention kernel does" if fused else "CUDA graphs do"
        report(f"{what} not work here; continuing without, more slowly: {problem}")


def kernel_errors() -> tuple[type[Exception], ...]:
    """Return what CUDA, and the compilers that Triton calls, may raise."""
    errors: tuple[type[Exception], ...] = (RuntimeError, OSError, SubprocessError)
    if find_spec("triton"):
        import triton

        errors += (triton.TritonError,)
    return errors
