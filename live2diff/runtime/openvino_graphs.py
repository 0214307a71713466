"""Trace the networks of a model as OpenVINO graphs, with most layers in 8 bits.

Why `quantise` and not NNCF: NNCF calibrates with sample frames on every machine that traces graphs. Here the
ranges are measured once, at the end of training, and shipped as a file; the layers that stay in 32 bits were
chosen by how much finished clips flicker (NOTES.md). That is 25 lines, no dependency, the same everywhere.
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as operations
from torch import Tensor, nn
from torch.nn import functional

from ..config import TEMPORAL_HEADS, WINDOW
from ..model.attention import TemporalAttention, Window
from ..model.kv_cache import Pieces

# For each layer, by the name of its module: the lowest and the highest input after division by the scale of
# its channel, and these scales (SmoothQuant, Xiao et al., 2023: large channels take no levels from others).
Ranges = dict[str, tuple[float, float, list[float]]]


class TracedPart(nn.Module):
    """A function of a pipeline's module, to be traced; layers are named `name.path.of.the.layer`."""

    def __init__(self, name: str, module: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.add_module(name, module)
        self._name, self._function = name, function

    def forward(self, *inputs: Tensor) -> Any:
        """Call `function(module, *inputs)`."""
        return self._function(self.get_submodule(self._name), *inputs)


class ReadOnlyCache:
    """A cache that collects new entries and does not store them, as a graph that writes would copy it."""

    def __init__(self, entries: Sequence[Tensor], count: Tensor):
        stream = Window.stream(count)
        evicted = torch.arange(WINDOW) == stream.slots[:, :, None]
        self.window = Window(  # the new frame is the 17th entry, and the entry that it evicts is masked
            torch.cat([stream.mask & ~evicted, torch.ones_like(evicted[..., :1])], dim=-1),
            torch.cat([stream.positions, stream.own[..., None]], dim=-1),
            stream.own,
            stream.slots,
        )
        self._entries = entries  # key, value, key, ... of each attention, `[B, 16, P, C]`
        self.written: list[Tensor] = []  # the same for the new frame, `[B, 1, P, C]`

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Pieces, Pieces]:
        """Collect the new entry; return the past entries with it as the 17th."""
        self.written += [key, value]
        return [self._entries[2 * layer], key], [self._entries[2 * layer + 1], value]

    def attend(self, module: nn.Module, x: Tensor, cache: Any, layer: int) -> Tensor:
        """Compute `FusedAttention.__call__`; sums over heads are products with ones and zeros."""
        assert isinstance(module, TemporalAttention)
        window, channels = self.window, x.shape[-1]
        query = module.to_q(x + module.positions[window.own][:, :, None])
        query = query * (channels // TEMPORAL_HEADS) ** -0.5
        keys, values = self.write(layer, module.to_k(x), module.to_v(x), window.slots)
        position = module.positions[window.positions]  # [B, 1, K, C]
        lengths = [key.shape[1] for key in keys]
        position_keys, position_values = (
            project(position).transpose(1, 2).split(lengths, dim=1) for project in (module.to_k, module.to_v)
        )  # [B, K, 1, C]
        head = torch.arange(channels) // (channels // TEMPORAL_HEADS)
        sum_heads = functional.one_hot(head, TEMPORAL_HEADS).to(query)  # [C, H]
        score = torch.cat(
            [((key + at) * query) @ sum_heads for key, at in zip(keys, position_keys, strict=True)], dim=1
        )  # [B, K, P, H]
        unseen = torch.zeros_like(window.mask, dtype=score.dtype).masked_fill_(~window.mask, -torch.inf)
        weights = (score + unseen.transpose(1, 2)[..., None]).softmax(dim=1).split(lengths, dim=1)
        parts = [
            ((weight @ sum_heads.T) * (value + at)).sum(dim=1, keepdim=True)
            for weight, value, at in zip(weights, values, position_values, strict=True)
        ]
        return parts[0] + parts[1]


def denoising_step(unet: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run the UNet for one new frame per row; return the prediction and the keys and values to write."""
    sample, timestep, prompt_embeds, depth_latents, count, *entries = inputs
    cache = ReadOnlyCache(entries, count)
    prediction = unet(sample, timestep, prompt_embeds, depth_latents, cache.window, cache)
    return prediction, *cache.written


def trace(part: TracedPart, *example: Tensor) -> ov.Model:
    """Convert a part to a graph for inputs of any size."""
    with warnings.catch_warnings():
        # Tracing warns at each comparison of sizes, which here have the same result for all sizes.
        warnings.simplefilter("ignore")
        return ov.convert_model(part.eval(), example_input=example)


def simplify_group_norms(graph: ov.Model) -> None:
    """Rewrite group norms as two sums per channel and `a x + b`, which can be fused with later layers.

    OpenVINO's own (2026.4) crashes the process on the UNet: on processors without AVX-512, and on all if
    small operations are fused.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        x, weight, bias = (node.input_value(index) for index in range(3))
        groups, epsilon = (node.get_attributes()[name] for name in ("num_groups", "epsilon"))
        channels = weight.get_partial_shape()[0].get_length()
        spread = np.kron(np.eye(groups), np.full([channels // groups] * 2, groups / channels))
        pixels = operations.reduce_prod(operations.gather(operations.shape_of(x), [2, 3], 0), 0)
        mean = operations.reduce_mean(x, [2, 3])  # of each channel [B, C]
        square = operations.power(operations.reduce_l2(x, [2, 3]), np.float32(2))
        square = operations.divide(square, operations.convert(pixels, "f32"))
        of_group = operations.matmul(operations.concat([mean, square], 0), np.float32(spread), False, False)
        mean, square = operations.split(of_group, 0, 2).outputs()
        variance = operations.relu(operations.subtract(square, operations.multiply(mean, mean)))
        deviation = operations.sqrt(operations.add(variance, np.float32(epsilon)))
        a = operations.divide(weight, deviation)
        b = operations.subtract(bias, operations.multiply(mean, a))
        a, b = (operations.unsqueeze(each, [2, 3]) for each in (a, b))
        normed = operations.add(operations.multiply(x, a), b)
        normed.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(normed.output(0))
    graph.validate_nodes_and_infer_types()


def merge_upsampling(graph: ov.Model, ranges: Ranges) -> None:
    """Rewrite nearest-neighbour doubling and the 3 x 3 convolution after it as one transposed convolution.

    It gives the same with 4 products instead of 9. Layers in `ranges` are unchanged, as 8 bits gain more.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Convolution" or layer_of(node) in ranges:
            continue
        before = node.input_value(0).get_node()
        pads, replicated = node.get_attributes()["pads_begin"], is_replicated(before)
        if replicated:
            pads = before.input_value(1).get_node().data[2:]
            before = before.input_value(0).get_node()
        kind = before.get_attributes() if before.get_type_name() == "Interpolate" else {}
        if (kind.get("mode"), kind.get("shape_calculation_mode")) != ("nearest", "scales"):
            continue
        weight: Any = node.input_value(1).get_node().data  # [C_out, C_in, H, W]
        factors = before.input_value(1).get_node().data
        if (list(factors), list(pads), weight.shape[2:]) != ([2, 2], [1, 1], (3, 3)):
            continue
        flipped = weight[..., ::-1, ::-1].swapaxes(0, 1)
        summed = sum(
            np.pad(flipped, [(0, 0), (0, 0), (down, 1 - down), (right, 1 - right)])
            for down, right in product((0, 1), repeat=2)
        )
        entering, cut = before.input_value(0), [1, 1]
        if replicated:  # pad before the doubling, which makes two border pixels of each
            edge, cut = operations.constant(np.array([0, 0, 1, 1])), [3, 3]
            entering = operations.pad(entering, edge, edge, "edge")
        merged = operations.convolution_backprop_data(
            entering, operations.constant(summed), [2, 2], pads_begin=cut, pads_end=cut
        )
        merged.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(merged.output(0))
    graph.validate_nodes_and_infer_types()


def is_replicated(node: Any) -> bool:
    """Return whether a node pads an image with its border pixels."""
    return node.get_type_name() == "Pad" and node.get_attributes()["pad_mode"] == "edge"


def quantise(graph: ov.Model, ranges: Ranges) -> None:
    """Round inputs and weights of the layers in `ranges` to 8 bits, for processors with VNNI.

    Each input channel is divided by its scale first, and its weights are multiplied by it.
    """
    for node in graph.get_ordered_ops():
        if node.get_type_name() not in ("Convolution", "MatMul") or (name := layer_of(node)) not in ranges:
            continue
        low, high = map(np.float32, ranges[name][:2])
        weight: Any = node.input_value(1).get_node().data  # [C_out, C_in, ...]
        scales = np.array(ranges[name][2], np.float32).reshape(-1, *[1] * (weight.ndim - 2))
        entering = operations.fake_quantize(node.input_value(0), low * scales, high * scales, low, high, 256)
        node.input(0).replace_source_output(entering.output(0))
        weight = weight * scales
        largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True).clip(1e-8)
        rounded = operations.fake_quantize(
            operations.constant(weight), -largest, largest, -largest, largest, 255
        )
        node.input(1).replace_source_output(rounded.output(0))
    graph.validate_nodes_and_infer_types()


def layer_of(node: ov.Node) -> str:
    """Return the layer's name: `unet.conv_in` for `__module.unet.conv_in/aten::_convolution/Convolution`."""
    return node.get_friendly_name().split("/")[0].removeprefix("__module.")
