"""Compute a model's frames with OpenVINO on a CPU, in place of PyTorch's own kernels.

A compiled graph has packed weights and fused operations, and computes most layers in 8 bits if the processor
can. `accelerate` traces the graphs of a model once and keeps them on disk; they are compiled, in about a
second, for each working size and number of steps. The warmup is left to PyTorch.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openvino as ov
import torch
from huggingface_hub import constants
from torch import Tensor

from ..model.attention import Window
from ..model.depth import inverse_depth
from ..model.kv_cache import KVCache
from ..model.vae import decode, encode
from ..pipeline import Live2DiffPipeline
from .openvino_graphs import (
    Ranges,
    TracedPart,
    denoising_step,
    merge_upsampling,
    quantise,
    simplify_group_norms,
    trace,
)

OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
MOST_SHAPES = 8  # more than the viewers and clips that take turns on a CPU, each with its own size
KEPT_SECONDS = 30 * 24 * 3600.0  # graphs unused for longer are deleted

PACKAGE = Path(__file__).parents[1]
TRACED_CODE = ("config.py", "model/*.py", "runtime/openvino*.py")  # the code that the graphs depend on
TRACING_LIBRARIES = ("torch", "diffusers", "transformers", "openvino")


class CompiledPart:
    """One graph, compiled for each new shape of inputs; the latest few are kept.

    Inputs and outputs are PyTorch tensors in float32 or int64. Thread-safe.
    """

    def __init__(self, path: Path):
        self._graph = ov.Core().read_model(path)  # read now, as the file may be deleted while this is in use
        self._lock = threading.Lock()
        self._request = lru_cache(MOST_SHAPES)(self._compile)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Compute the outputs, compiling first if the shapes are new."""
        tensors = [ov.Tensor(tensor.contiguous().numpy(), shared_memory=True) for tensor in inputs]
        with self._lock:
            request = self._request(tuple(tuple(tensor.shape) for tensor in inputs))
            for number, tensor in enumerate(tensors):
                request.set_input_tensor(number, tensor)
            request.infer()
            return [torch.tensor(output.data) for output in request.output_tensors]

    def forget(self) -> None:
        """Free the compiled graphs."""
        with self._lock:
            self._request.cache_clear()

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> ov.InferRequest:
        graph = self._graph.clone()
        graph.reshape(dict(enumerate(shapes)))
        options = OPTIONS | {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return ov.compile_model(graph, "CPU", options).create_infer_request()


class OpenVINORuntime:
    """The networks of a model as OpenVINO graphs in the folder of `write_graphs`, for `pipeline.runtime`."""

    def __init__(self, folder: Path):
        self._parts = {file.stem: CompiledPart(file) for file in folder.glob("*.xml")}

    def encode(self, images: Tensor) -> Tensor:
        """Compute `Live2DiffPipeline.encode`."""
        return self._parts["encode"](images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Compute `Live2DiffPipeline.decode`, without the content filter."""
        return self._parts["decode"](latents)[0]

    def apply_filter(self, content_filter: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Compute `content_filter(images)`."""
        return content_filter(images)

    def inverse_depth(self, images: Tensor) -> Tensor:
        """Compute `Live2DiffPipeline.inverse_depth`."""
        return self._parts["depth"](images)[0]

    def takes(self, window: Window, cache: KVCache) -> bool:
        """Return whether `predict` can be called: for one frame per row and a float32 cache without index."""
        return window.frames == 1 and cache.keys[0].dtype == torch.float32 and cache.index is None

    def forget(self) -> None:
        """Free the graphs compiled so far."""
        for part in self._parts.values():
            part.forget()

    def predict(self, *inputs: Any) -> Tensor:
        """Compute `StreamUNet.forward`, and write the new keys and values to the cache."""
        *tensors, window, cache = inputs
        prediction, *written = self._parts["denoise"](*tensors, cache.count, *entries_of(cache))
        for layer, (key, value) in enumerate(zip(written[::2], written[1::2], strict=True)):
            cache.write(layer, key, value, window.slots)
        return prediction


def entries_of(cache: KVCache) -> list[Tensor]:
    """Return key, value, key, value, ... of all attentions, as inputs of the UNet's graph."""
    return [tensor for pair in zip(cache.keys, cache.values, strict=True) for tensor in pair]


def accelerate(
    pipeline: Live2DiffPipeline,
    ranges: Ranges | None = None,
    cache_folder: str | Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Add this runtime to a float32 pipeline on the CPU whose weights do not change; trace new graphs.

    `ranges` are input ranges of the layers that may be computed in 8 bits. `cache_folder` holds the graphs of
    all models, by default beside the Hub's cache. `report` is called with a line before work that takes long.

    Raises:
        OSError: the graphs cannot be written.
    """
    cache_folder = Path(cache_folder or Path(constants.HF_HOME) / "live2diff")
    ranges = ranges if ranges and computes_in_8_bits() else {}
    folder = cache_folder / f"openvino-{digest(pipeline, ranges)}"
    if folder.is_dir():
        with suppress(OSError):  # the cache may be shared and read-only
            os.utime(folder)  # keeps `delete_unused` from deleting it
    else:
        report("Preparing the model for this processor; this is done once and takes some seconds")
        write_graphs(pipeline, ranges, folder)
        delete_unused(cache_folder)
    pipeline.runtime = OpenVINORuntime(folder)


def computes_in_8_bits() -> bool:
    """Return whether the processor multiplies and adds bytes in one instruction (VNNI).

    Without it, 8 bits are less of a gain, and sums of products of full 8 bits may overflow.
    """
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_vnni", False) or has.get("avx_vnni", False))


def digest(pipeline: Live2DiffPipeline, ranges: Ranges, package: Path = PACKAGE) -> str:
    """Hash everything that the graphs depend on: weights, configuration, libraries, code in `package`."""
    versions = {name: version(name) for name in TRACING_LIBRARIES}
    borders = pipeline.config["replicate_borders"]
    result = hashlib.sha256(json.dumps([ranges, versions, platform.machine(), borders]).encode())
    for pattern in TRACED_CODE:
        for file in sorted(package.glob(pattern)):
            result.update(file.read_bytes())
    for part in (pipeline.vae, pipeline.unet, pipeline.depth_estimator):
        result.update(str(part.config).encode())
        for tensor in part.state_dict().values():
            result.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return result.hexdigest()[:16]


@torch.no_grad()
def write_graphs(pipeline: Live2DiffPipeline, ranges: Ranges, folder: Path) -> None:
    """Trace the networks and write their graphs to a new `folder`, all or nothing."""
    height, width = pipeline.working_size(3, 4)
    images = torch.rand(2, 3, height, width) * 2 - 1
    latents = pipeline.encode(images)[:1]
    cache = pipeline.unet.new_cache(1, latents.shape[2], latents.shape[3])
    embeds, timestep = pipeline.encode_prompt("", "")[None], torch.tensor([1])
    inputs = (latents, timestep, embeds, latents.clone(), cache.count, *entries_of(cache))
    examples = {
        "encode": ("vae", encode, images),
        "decode": ("vae", decode, latents),
        "depth": ("depth_estimator", inverse_depth, images[:1]),
        "denoise": ("unet", denoising_step, *inputs),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="openvino-unfinished-", dir=folder.parent) as unfinished:
        for name, (part, function, *example) in examples.items():
            graph = trace(TracedPart(part, getattr(pipeline, part), function), *example)
            simplify_group_norms(graph)
            merge_upsampling(graph, ranges)
            quantise(graph, ranges)
            ov.save_model(graph, Path(unfinished) / "graphs" / f"{name}.xml", compress_to_fp16=False)
        try:
            os.replace(Path(unfinished) / "graphs", folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def delete_unused(cache_folder: Path) -> None:
    """Delete graphs, finished or not, that have not been used for 30 days."""
    for folder in cache_folder.glob("openvino-*"):
        with suppress(OSError):  # another process may be faster
            if time.time() - folder.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(folder)
