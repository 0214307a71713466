"""Compute a model's frames on a CUDA GPU by replaying CUDA graphs, its temporal attention by a Triton kernel.

Launching the one or two thousand kernels of a frame from Python takes longer than running them; a graph is
one launch. Graphs are captured at the first call with some shapes and cache, on the engine's thread.
Capturing takes a moment, compiling blocks before it a minute or more for the full model. The warmup is
computed eagerly. Weights are written in place, so no style or prompt needs new graphs. None of this has run
on a GPU yet; run `pytest -m gpu tests/runtime` first.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..model.attention import Window
from ..model.depth import inverse_depth
from ..model.kv_cache import KVCache
from ..model.vae import decode, encode
from ..pipeline import Live2DiffPipeline
from ..streaming.steps import powers_of_two
from .float8 import Float8Linears
from .overrides import Overrides
from .projections import PackedAttention

WARMUP_CALLS = 3  # before a capture, in which libraries choose kernels and allocate workspaces
MOST_GRAPHS = 128  # 4 networks for 1, 2, 4, 8 streams of a few sizes; the least recently used is dropped

Function = Callable[..., Tensor]


@dataclass
class CapturedGraph:
    """A captured function of tensors, with the inputs that it reads and the output that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Tensor

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Compute the function for other inputs of the same shapes."""
        for own, other in zip(self.inputs, inputs, strict=True):
            own.copy_(other)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it


class GraphCache:
    """Captured graphs by name, shapes and state. They share memory, as only one is replayed at a time."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, CapturedGraph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self._side_stream = torch.cuda.Stream()  # the same for all, as libraries keep a workspace per stream

    def __len__(self) -> int:
        return len(self._graphs)

    def __call__(
        self, name: str, function: Function, *inputs: Tensor, state: Sequence[Tensor] = ()
    ) -> Tensor:
        """Compute `function(*inputs)`, which also reads and writes the tensors in `state`.

        A graph refers to state by address: it serves any state at the same addresses with the same shapes,
        and does not keep it alive.
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
        # The outer context restores the caller's stream even if ending a failed capture raises.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"),
        ):
            output = function(*inputs)
        return CapturedGraph(graph, inputs, output)


@dataclass(frozen=True)
class Way:
    """Options of `CudaRuntime`."""

    attention: bool = False  # the temporal attention by the kernel in `kernels`
    fused: bool = False  # group norms and other operations by the kernels in `fusions`
    compiled: bool = False  # compiled blocks: see `regions`
    float8: bool = False  # feed-forwards in 8-bit floats: see `float8`


class CudaRuntime:
    """The networks of a model as CUDA graphs, for `pipeline.runtime`."""

    def __init__(self, pipeline: Live2DiffPipeline, way: Way) -> None:
        vae, depth_estimator, unet = networks = pipeline.vae, pipeline.depth_estimator, pipeline.unet
        self.way, self.graphs, self.attention = way, GraphCache(), None
        if way.attention:
            from .kernels import FusedAttention

            self.attention = FusedAttention(unet)
        packed = PackedAttention(unet)
        layers, fused_forward = [Overrides(packed.forwards)], lambda module: None
        if way.fused:
            from .fusions import fused_forward, fused_forwards

            layers.append(Overrides(fused_forwards(*networks)))
        self._float8 = Float8Linears(unet) if way.float8 else None
        if self._float8 is not None:
            layers.append(Overrides(self._float8.forwards()))
        if way.compiled:
            from .regions import compiled_forwards

            layers.append(Overrides(compiled_forwards(*networks, fused=fused_forward)))

        def prepare(function: Function) -> Function:
            for layer in reversed(layers):
                function = layer.around(function)
            return function

        self._encode = prepare(lambda images: encode(vae, images))
        self._decode = prepare(lambda latents: decode(vae, latents))
        self._depth = prepare(lambda images: inverse_depth(depth_estimator, images))
        self._predict = prepare(packed.around(unet.forward))

    def encode(self, images: Tensor) -> Tensor:
        """Compute `Live2DiffPipeline.encode`."""
        return self._in_parts("encode", self._encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Compute `Live2DiffPipeline.decode`, without the content filter."""
        return self._in_parts("decode", self._decode, latents)

    def apply_filter(self, content_filter: Function, images: Tensor) -> Tensor:
        """Compute `content_filter(images)`."""
        return self._in_parts("filter", content_filter, images)

    def inverse_depth(self, images: Tensor) -> Tensor:
        """Compute `Live2DiffPipeline.inverse_depth`."""
        return self._in_parts("depth", self._depth, images)

    def takes(self, window: Window, cache: KVCache) -> bool:
        """Return whether `predict` can be called: for one frame per row."""
        return window.frames == 1

    def forget(self) -> None:
        """Free the graphs captured so far."""
        self.graphs = GraphCache()  # with a new memory pool: an unused one cannot be captured into

    def predict(self, *inputs: Any) -> Tensor:
        """Compute `StreamUNet.forward`; the window follows from the cache's count at each replay."""
        *tensors, _, cache = inputs
        attend = self.attention if self.attention is not None and self.attention.takes(cache) else None
        if self._float8 is not None:
            self._float8.refresh()
        if attend is not None:
            attend.refresh()
            if cache.index is None:
                cache = cache.select(torch.arange(len(cache.count), device=cache.count.device))
        index = [] if cache.index is None else [cache.index]

        def step(sample: Tensor, timestep: Tensor, embeds: Tensor, depth: Tensor, *index: Tensor) -> Tensor:
            used = replace(cache, index=index[0] if index else None, attend=attend)
            window = Window.stream(used.counts) if attend is None else attend.window
            return self._predict(sample, timestep, embeds, depth, window, used)

        return self.graphs("predict", step, *tensors, *index, state=cache.tensors)

    def _in_parts(self, name: str, function: Function, batch: Tensor) -> Tensor:
        """Compute a batch in parts of 1, 2, 4, 8, ... rows, with one graph for each of these sizes."""
        parts = batch.split(powers_of_two(len(batch)))
        outputs = [self.graphs(name, function, part) for part in parts]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
