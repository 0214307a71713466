"""Count what one streamed frame launches at Stable Diffusion 1.5's real layout, on tensors without memory.

    PYTHONPATH=.:tests python -m helpers.frame_audit [--viewers N] [--steps N] [--eager] [--top N]

Shapes and operations are those of a GPU, as far as PyTorch decides them above the device: the transposes
inside a group norm of a channels-last tensor, for one, are not seen. Attention counts as the flash kernel.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry, register_flop_formula

import live2diff.streaming.stream
from live2diff import Live2DiffPipeline
from live2diff.benchmark.models import random_model
from live2diff.config import WINDOW
from live2diff.model import attention
from live2diff.model.kv_cache import KVCache
from live2diff.runtime import fusions  # noqa: F401 - registers its operations
from live2diff.runtime.cuda_graphs import CudaRuntime, Way
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.steps import push_together
from live2diff.streaming.stream import Stream

from . import graph_emulator

aten = torch.ops.aten
INDICES = {1: [10], 2: [10, 30], 3: [10, 20, 30], 4: [10, 20, 30, 40]}  # of the denoising steps: any will do
NO_KERNEL = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::detach"}
NO_KERNEL |= {"aten::_unsafe_view", "aten::_reshape_alias", "aten::alias", "aten::lift_fresh"}
READS_A_NUMBER = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
# FLOP and bytes a second that a kernel reaches, and seconds of one that does nothing, in a graph.
CARDS = {
    "H100": (400e12, 2.55e12, 2.2e-6),
    "RTX 4090": (102e12, 0.85e12, 2.0e-6),
    "RTX 3060": (31e12, 0.306e12, 2.5e-6),
}


@register_flop_formula(torch.ops.live2diff.conv_relu)
def flop_of_convolution(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * int(np.prod(out_shape)) * int(np.prod(weight[1:]))


@dataclass
class Part:
    """The work of one part of a frame."""

    kernels: int = 0
    flop: float = 0.0
    bytes: float = 0.0
    synchronisations: list[str] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)  # predicted, by card


class Audit(TorchDispatchMode):
    """Count each operation on meta tensors while `on`, by the part of the frame that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.on = "rest", False
        self.reset()

    def reset(self) -> None:
        self.parts: defaultdict[str, Part] = defaultdict(Part)
        self.operations: Counter[tuple[str, str]] = Counter()
        self.moved_by: Counter[tuple[str, str]] = Counter()  # bytes

    @contextmanager
    def label(self, part: str) -> Iterator[None]:
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, function._schema.name
        to_host = name == "aten::_to_copy" and kwargs.get("device") == torch.device("cpu")
        if not (self.on or to_host or name == "aten::_local_scalar_dense"):
            return function(*args, **kwargs)
        inputs = tensors((args, kwargs))
        on_device = any(tensor.is_meta for tensor in inputs)
        if on_device and (to_host or name == "aten::_local_scalar_dense"):
            self.count(name, function, args, kwargs, inputs, None)
            return torch.ones(inputs[0].shape, dtype=kwargs.get("dtype") or inputs[0].dtype) if to_host else 1
        result = function(*args, **kwargs)
        if on_device or any(tensor.is_meta for tensor in tensors(result)):
            self.count(name, function, args, kwargs, inputs, result)
        return result

    def count(self, name: str, function: Any, args: tuple, kwargs: dict, inputs: list, result: Any) -> None:
        is_view = any(a.alias_info and not a.alias_info.is_write for a in function._schema.returns)
        if not self.on or is_view or name in NO_KERNEL:
            return
        part = self.parts["attention" if name == "live2diff::attend" else self.part]
        outputs = tensors(result)
        if name in READS_A_NUMBER or result is None or self.indexes_by_mask(name, args):
            part.synchronisations.append(name)
        formula = flop_registry.get(function._overloadpacket)
        flop = formula(*args, **kwargs, out_val=result) if formula else 0
        moved = self.moved(name, args, inputs + outputs)
        part.kernels += 1
        part.flop += flop
        part.bytes += moved
        self.operations[self.part, name] += 1
        self.moved_by[self.part, name] += moved
        for card, (flop_rate, byte_rate, least) in CARDS.items():
            part.seconds[card] += max(flop / flop_rate, moved / byte_rate, least)

    def total(self) -> Part:
        """Return the sum over all parts."""
        parts, whole = list(self.parts.values()), Part()
        for name in ("kernels", "flop", "bytes"):
            setattr(whole, name, sum(getattr(part, name) for part in parts))
        whole.synchronisations = [name for part in parts for name in part.synchronisations]
        whole.seconds = sum((part.seconds for part in parts), Counter())
        return whole

    @staticmethod
    def indexes_by_mask(name: str, args: tuple) -> bool:
        indices = args[1] if name.startswith("aten::index") and isinstance(args[1], list | tuple) else ()
        return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)

    @staticmethod
    def moved(name: str, args: tuple, read_and_written: list[torch.Tensor]) -> float:
        if name in ("aten::index_put_", "aten::index_put"):
            return 3 * args[2].nbytes
        if name == "live2diff::attend":
            new, tables, index, _, keys, values, scales = args
            entries = [stored[:1, :1].nbytes for stored in (keys, values, scales) if stored is not None]
            of_cache = len(index) * sum(entries) * WINDOW  # 15 entries are read and one is written
            return new.nbytes * 4 / 3 + tables.nbytes + of_cache
        on_device = [tensor for tensor in read_and_written if tensor.is_meta]
        return sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in on_device)


class FlashAttention(TorchFunctionMode):
    """Send meta tensors through the fused attention that a GPU uses, not through matrix products."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            scale = (kwargs or {}).get("scale")
            return aten._scaled_dot_product_flash_attention(*args[:3], scale=scale)[0]
        return function(*args, **(kwargs or {}))


def tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor)]


def full_model() -> Live2DiffPipeline:
    """Return the full model in float16, without memory."""
    with patch.object(torch.Tensor, "tolist", lambda tensor: [0.0] * tensor.numel()):  # of drop path's rates
        with patch.object(Live2DiffPipeline, "to", lambda pipeline, *_: pipeline):
            pipeline = random_model("meta")
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.depth_estimator):
        module.to(torch.float16)
    return pipeline


def labelled(audit: Audit, function: Any, part: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        with audit.label(part):
            return function(*args, **kwargs)

    return call


def meta_noise(shape: tuple[int, ...]) -> torch.Tensor:
    """Return noise; there is no generator for meta tensors."""
    return torch.randn(shape, device="meta")


@dataclass
class Streams:
    """Viewers of the full model, and what a round of one frame of each launches."""

    pipeline: Live2DiffPipeline
    mode: Audit
    steps: int = 2
    size: int = 512
    pools: CachePools = field(default_factory=lambda: CachePools(8))
    streams: list[Stream] = field(default_factory=list)

    def join(self, count: int = 1) -> None:
        """Let more viewers in, and warm up."""
        indices = INDICES[self.steps]
        image = np.zeros((self.size, self.size, 3), np.uint8)
        for _ in range(count):
            with patch.object(live2diff.streaming.stream, "noise_source", lambda *_: meta_noise):
                stream = self.pipeline.stream(size=self.size, t_index_list=indices, pools=self.pools)
            for _ in range(8):
                stream.push(image)
            self.streams.append(stream)
        for _ in range(self.steps):
            self.push()

    def push(self) -> None:
        image = np.zeros((self.size, self.size, 3), np.uint8)
        push_together([stream.receive(image) for stream in self.streams])

    def audit(self) -> Audit:
        """Count what a round launches."""
        pipeline, audit = self.pipeline, self.mode
        audit.reset()
        owners = [(pipeline, "encode", "encode"), (pipeline, "inverse_depth", "depth")]
        owners += [(pipeline, "predict", "UNet"), (pipeline, "decode", "decode")]
        owners += [(attention, "attend_once", "attention"), (KVCache, "write", "attention")]
        with ExitStack() as stack:
            for owner, name, part in owners:
                call = labelled(audit, getattr(owner, name), part)
                stack.enter_context(patch.object(owner, name, call))
            audit.on = True
            self.push()
            audit.on = False
        return audit


def table(audit: Audit) -> str:
    """Return the work by part as a table of Markdown."""
    lines = [
        "| part | kernels | TFLOP | GB | synchronisations | " + " | ".join(f"ms, {c}" for c in CARDS) + " |"
    ]
    lines += ["|---|" + "---:|" * (4 + len(CARDS))]
    for name, part in [*audit.parts.items(), ("**sum**", audit.total())]:
        milliseconds = " | ".join(f"{1e3 * part.seconds[card]:.1f}" for card in CARDS)
        lines += [
            f"| {name} | {part.kernels} | {part.flop / 1e12:.3f} | {part.bytes / 1e9:.2f} "
            f"| {len(part.synchronisations)} | {milliseconds} |"
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--viewers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="without the runtime")
    parser.add_argument("--top", type=int, default=0, help="also list so many operations")
    options = parser.parse_args()
    with pytest.MonkeyPatch.context() as patched, FlashAttention(), Audit() as mode:
        graph_emulator.emulate(patched)
        streams = Streams(full_model(), mode, options.steps)
        if not options.eager:
            streams.pipeline.runtime = CudaRuntime(streams.pipeline, Way(attention=True, fused=True))
        streams.join(options.viewers)
        audit = streams.audit()
    print(table(audit))
    for part, name in (("rest", name) for name in audit.parts["rest"].synchronisations):
        print(part, name)
    for (part, name), count in audit.operations.most_common(options.top):
        print(f"{count:6} {audit.moved_by[part, name] / 1e9:6.2f} GB  {part}: {name}")


if __name__ == "__main__":
    main()
