"""On a CPU: what a model computes for each frame, run by OpenVINO instead of PyTorch's own kernels.

PyTorch calls some 1,000 small kernels a frame, and convolutions pack their weights anew at each. A compiled
graph has them packed, joins what belongs together, and computes most layers in 8 bits where the processor
can. `accelerate` traces the graphs once for a model and keeps them on the disk; they are compiled,
in a second or so, for each size of picture and number of steps. The UNet's call of the warmup, one a visit,
stays with PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import openvino as ov
import torch
from huggingface_hub import constants

from ..model import attention, depth, unet, vae
from ..model.attention import Window
from ..model.kv_cache import KVCache
from . import openvino_graphs as graphs

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

PARTS = ("encode", "decode", "depth", "denoise")
OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
}
MOST_SHAPES = 8  # more than the visitors and clips that take turns on a CPU, each with sizes of their own


class Part:
    """One graph, compiled for each shape of inputs that it meets; the latest few are kept.

    Tensors go in and come out as PyTorch's, in float32 or int64. Thread-safe.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._requests: OrderedDict[tuple, ov.InferRequest] = OrderedDict()

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        tensors = [ov.Tensor(tensor.contiguous().numpy(), shared_memory=True) for tensor in inputs]
        with self._lock:
            request = self._request(shapes)
            for number, tensor in enumerate(tensors):
                request.set_input_tensor(number, tensor)
            request.infer()
            return [torch.tensor(output.data) for output in request.output_tensors]

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> ov.InferRequest:
        if shapes not in self._requests:
            graph = ov.Core().read_model(self._path)
            graph.reshape(dict(enumerate(shapes)))
            options = OPTIONS | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
            self._requests[shapes] = ov.compile_model(graph, "CPU", options).create_infer_request()
            while len(self._requests) > MOST_SHAPES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shapes)
        return self._requests[shapes]


class Runtime:
    """The parts of a model, compiled: the same calls as `Live2DiffPipeline`'s, which uses it if it has it."""

    def __init__(self, folder: Path):
        self._parts = {name: Part(folder / f"{name}.xml") for name in PARTS}

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._parts["encode"](pictures)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._parts["decode"](latents)[0]

    def inverse_depth(self, pictures: torch.Tensor) -> torch.Tensor:
        return self._parts["depth"](pictures)[0]

    def takes(self, window: Window, cache: KVCache) -> bool:
        """Whether `predict` can be called: for one frame a row, and keys and values as they are."""
        return window.frames == 1 and cache.keys[0].dtype == torch.float32

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        depth_latents: torch.Tensor,
        window: Window,
        cache: KVCache,
    ) -> torch.Tensor:
        """As `StreamUNet.forward`."""
        memory = [tensor for pair in zip(cache.keys, cache.values, strict=True) for tensor in pair]
        prediction, *written = self._parts["denoise"](
            sample, timestep, prompt_embeds, depth_latents, cache.count, *memory
        )
        for layer, (key, value) in enumerate(zip(written[::2], written[1::2], strict=True)):
            cache.write(layer, key, value, window.slots)
        return prediction


def accelerate(
    pipeline: Live2DiffPipeline,
    ranges: graphs.Ranges | None = None,
    kept_in: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Give a pipeline on the CPU, in float32, its runtime.

    Args:
        pipeline: its weights must not change any more.
        ranges: of what goes into the layers that may be computed in 8 bits; None for none.
        kept_in: the folder of the graphs of all models; by default beside the Hub's cache.
        report: told in words what is going on, if it takes a while.

    Raises:
        OSError: the graphs cannot be written.
    """
    kept_in = Path(kept_in or Path(constants.HF_HOME) / "live2diff")
    ranges = ranges if ranges and computes_in_8_bits() else {}
    folder = kept_in / f"openvino-{digest(pipeline, ranges)}"
    if not folder.is_dir():
        report("Preparing the model for this processor; this is done once and takes some seconds")
        write(pipeline, ranges, folder)
    pipeline.runtime = Runtime(folder)


def computes_in_8_bits() -> bool:
    """Whether the processor multiplies and adds up bytes at once. Without that, 8 bits gain less, and sums of
    products of full 8 bits may overflow."""
    has = torch.cpu.get_capabilities()
    return has.get("avx512_vnni", False) or has.get("avx_vnni", False)


def digest(pipeline: Live2DiffPipeline, ranges: graphs.Ranges) -> str:
    """What the graphs depend on: the weights, the code they are traced from, the versions of what traces."""
    told = hashlib.sha256(
        json.dumps([ranges, torch.__version__, ov.__version__, platform.machine()]).encode()
    )
    for module in (attention, depth, graphs, unet, vae):
        told.update(Path(module.__file__).read_bytes())
    for part in (pipeline.vae, pipeline.unet, pipeline.depth_estimator):
        told.update(
            str(dict(part.config.items() if hasattr(part.config, "items") else vars(part.config))).encode()
        )
        for tensor in part.state_dict().values():
            told.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return told.hexdigest()[:16]


@torch.no_grad()
def write(pipeline: Live2DiffPipeline, ranges: graphs.Ranges, folder: Path) -> None:
    """Trace the parts and write their graphs into a new `folder`, all or nothing."""
    height, width = pipeline.working_size(3, 4, pipeline.config.size)
    pictures = torch.rand(2, 3, height, width) * 2 - 1
    latents = pipeline.encode(pictures)[:1]
    cache = pipeline.unet.new_cache(1, *latents.shape[2:])
    memory = [tensor for pair in zip(cache.keys, cache.values, strict=True) for tensor in pair]
    embeds, timestep = pipeline.encode_prompt("", "")[None], torch.tensor([1])
    examples = {
        "encode": (graphs.Encoder(pipeline.vae), pictures),
        "decode": (graphs.Decoder(pipeline.vae), latents),
        "depth": (graphs.Depth(pipeline.depth_estimator), pictures[:1]),
        "denoise": (
            graphs.DenoisingStep(pipeline.unet),
            *(latents, timestep, embeds, latents.clone(), cache.count, *memory),
        ),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        for name, (module, *example) in examples.items():
            graph = graphs.trace(module, *example)
            graphs.simplify_group_norms(graph)
            graphs.quantise(graph, ranges)
            ov.save_model(graph, Path(unfinished) / "graphs" / f"{name}.xml", compress_to_fp16=False)
        try:
            os.replace(Path(unfinished) / "graphs", folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
