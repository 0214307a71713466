"""The parts of a model as OpenVINO graphs: traced from PyTorch, with the ranges that let most layers be
computed in 8 bits."""

from __future__ import annotations

import warnings

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as operations
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import nn

from ..config import WINDOW
from ..model.attention import Window
from ..model.depth import inverse_depth
from ..model.kv_cache import Pieces
from ..model.vae import decode, encode

Ranges = dict[str, tuple[float, float]]  # of what goes into a layer, by the name of the module


class Encoder(nn.Module):
    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return encode(self.vae, pictures)


class Decoder(nn.Module):
    def __init__(self, vae: nn.Module):
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return decode(self.vae, latents)


class Depth(nn.Module):
    def __init__(self, depth_estimator: nn.Module):
        super().__init__()
        self.depth_estimator = depth_estimator

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return inverse_depth(self.depth_estimator, pictures)


class Past:
    """A cache that is read only: what is written lies beside it, and is given back at the end.

    A graph that changed the cache would copy all of it.
    """

    def __init__(self, memory: tuple[torch.Tensor, ...]):
        self.memory = memory  # keys, values, keys, ...: of each attention `[B, 16, P, C]`
        self.written: list[torch.Tensor] = []  # likewise, `[B, 1, P, C]`

    def write(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor
    ) -> tuple[Pieces, Pieces]:
        self.written += [key, value]
        return [self.memory[2 * layer], key], [self.memory[2 * layer + 1], value]

    @staticmethod
    def window(count: torch.Tensor) -> Window:
        """`Window.stream` where the new frame is a 17th entry, and the slot that it will be written to is not
        seen."""
        stream = Window.stream(count)
        evicted = torch.arange(WINDOW) == stream.slots[:, :, None]
        return Window(
            torch.cat([stream.mask & ~evicted, torch.ones_like(evicted[..., :1])], dim=-1),
            torch.cat([stream.positions, stream.own[..., None]], dim=-1),
            stream.own,
            stream.slots,
        )


class DenoisingStep(nn.Module):
    """The UNet for one new frame a row: prediction, then the keys and values to be written."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        depth_latents: torch.Tensor,
        count: torch.Tensor,
        *memory: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        past = Past(memory)
        window = Past.window(count)
        prediction = self.unet(sample, timestep, prompt_embeds, depth_latents, window, past)
        return prediction, *past.written


def trace(module: nn.Module, *example: torch.Tensor) -> ov.Model:
    """The graph of `module`, for inputs of any size."""
    with warnings.catch_warnings():
        # Tracing warns at each comparison of sizes; here they come out the same for all sizes.
        warnings.simplefilter("ignore")
        decoder = TorchScriptPythonDecoder(module.eval(), example_input=example)
    frontend = FrontEndManager().load_by_framework("pytorch")
    return frontend.convert(frontend.load(decoder))


def simplify_group_norms(graph: ov.Model) -> None:
    """Group norms as two sums over each channel and one pass of `a x + b`, which what follows can join.

    OpenVINO's own (2026.4) ends the process on the UNet: on processors without AVX-512, and on all where
    small operations are joined.
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


def quantise(graph: ov.Model, ranges: Ranges) -> int:
    """Round what goes into the layers in `ranges`, and their weights, to 256 and 255 levels; how many there
    were. Processors with the instructions for it then compute them in 8 bits."""
    done = 0
    for node in graph.get_ordered_ops():
        name = module_name(node.get_friendly_name())
        if node.get_type_name() not in ("Convolution", "MatMul") or name not in ranges:
            continue
        low, high = (np.float32(bound) for bound in ranges[name])
        entering = operations.fake_quantize(node.input_value(0), low, high, low, high, 256)
        node.input(0).replace_source_output(entering.output(0))
        weight = node.input_value(1)
        values = np.abs(constant(weight))
        largest = values.max(axis=tuple(range(1, values.ndim)), keepdims=True).clip(1e-8).astype(np.float32)
        rounded = operations.fake_quantize(weight, -largest, largest, -largest, largest, 255)
        node.input(1).replace_source_output(rounded.output(0))
        done += 1
    graph.validate_nodes_and_infer_types()
    return done


def module_name(friendly_name: str) -> str:
    """`unet.conv_in` of `__module.unet.conv_in/aten::_convolution/Convolution`."""
    return friendly_name.split("/")[0].removeprefix("__module.")


def constant(output: ov.Output) -> np.ndarray:
    """The value of what depends on no input."""
    model = ov.Model([operations.result(output)], [])
    return ov.compile_model(model, "CPU")([])[0]
