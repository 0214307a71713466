"""Linear layers in 8-bit floats (e4m3), for GPUs that multiply these twice as fast as 16-bit floats.

Each row of the input and of the weight has its own scale, so a viewer's frame does not depend on others in
the batch. Query, key and value are left out, as `projections` has packed their weights.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.nn import functional

from ..model.unet import StreamUNet

DTYPE = torch.float8_e4m3fn
LARGEST = 448.0
CAPABILITY = (8, 9)  # the lowest compute capability with such products
MULTIPLE = 16  # which the rows and columns of a weight must be


def has_float8(device: torch.device) -> bool:
    """Return whether a device multiplies 8-bit floats."""
    is_gpu = device.type == "cuda" and hasattr(functional, "scaled_mm")
    return is_gpu and torch.cuda.get_device_capability(device) >= CAPABILITY


def scaled(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Convert `[M, K]` to 8-bit floats; return them and the scales of the rows, float32 `[M, 1]`."""
    scales = rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (rows.float() / scales).to(DTYPE), scales


def multiply(layer: Any, weight: Tensor, weight_scales: Tensor, x: Tensor) -> Tensor:
    """Compute `nn.Linear.forward` with a weight from `scaled`."""
    rows, scales = scaled(x.flatten(0, -2))
    by_row = functional.ScalingType.RowWise  # pyright: ignore[reportPrivateImportUsage]
    out = functional.scaled_mm(
        rows, weight.t(), scales, by_row, weight_scales.t(), by_row, output_dtype=torch.bfloat16
    )
    out = out.to(x.dtype).unflatten(0, x.shape[:-1])
    return out if layer.bias is None else out + layer.bias


class Float8Linears:
    """The linear layers of a UNet's feed-forwards, with their weights in 8 bits."""

    def __init__(self, unet: StreamUNet) -> None:
        parents = [module for module in unet.modules() if isinstance(module, FeedForward)]
        layers = [layer for parent in parents for layer in parent.modules() if isinstance(layer, nn.Linear)]
        self._weights = {layer: scaled(layer.weight.detach()) for layer in layers if is_aligned(layer)}
        self._written = self._versions()

    def forwards(self) -> dict[nn.Module, Callable[..., Tensor]]:
        """Return the forward of each layer."""
        return {layer: partial(multiply, layer, *weight) for layer, weight in self._weights.items()}

    @torch.no_grad()
    def refresh(self) -> None:
        """Convert the weights again, in place, if they have changed."""
        if self._written != self._versions():
            for layer, stored in self._weights.items():
                for old, new in zip(stored, scaled(layer.weight), strict=True):
                    old.copy_(new)
            self._written = self._versions()

    def _versions(self) -> list[int]:
        return [layer.weight._version for layer in self._weights]


def is_aligned(layer: nn.Linear) -> bool:
    """Return whether GPUs can multiply a layer's weight in 8 bits, by its shape."""
    return layer.in_features % MULTIPLE == 0 and layer.out_features % MULTIPLE == 0
