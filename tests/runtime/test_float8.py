"""Linear layers in 8-bit floats are accurate enough, row by row, and use the current weights."""

from contextlib import closing

import pytest
import torch
from torch import nn

from live2diff.runtime.cuda_graphs import CudaRuntime, Way
from live2diff.runtime.float8 import Float8Linears, multiply, scaled


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_8_bits_is_near_the_layers(bias):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=bias)
    x = torch.randn(2, 7, 64) * torch.tensor([1.0, 300.0])[:, None, None]  # rows of very unlike sizes
    out, expected = multiply(layer, *scaled(layer.weight), x), layer(x)
    assert out.shape == expected.shape and out.dtype == expected.dtype
    for mine, theirs in zip(out, expected, strict=True):
        assert (mine - theirs).norm() / theirs.norm() < 0.06
    alone = multiply(layer, *scaled(layer.weight), x[:1])
    assert torch.equal(alone, out[:1])  # whatever else is in the batch


@torch.no_grad()
def test_rows_of_zeros_stay_zero():
    values, scales = scaled(torch.zeros(3, 16))
    assert not values.float().any() and torch.isfinite(scales).all()


@torch.no_grad()
def test_weights_that_were_written_to_are_converted_again(tiny_pipeline):
    linears = Float8Linears(tiny_pipeline.unet)
    layer, forward = next(iter(linears.forwards().items()))
    x = torch.randn(1, 5, layer.in_features)
    before, weight = forward(x), layer.weight.clone()
    try:
        layer.weight.mul_(2)
        assert torch.equal(forward(x), before)  # not yet
        linears.refresh()
        bias = 0 if layer.bias is None else layer.bias
        torch.testing.assert_close(forward(x) - bias, 2 * (before - bias), atol=1e-2, rtol=1e-2)
    finally:
        layer.weight.copy_(weight)


@torch.no_grad()
def test_a_replayed_graph_uses_new_weights(on_cuda):
    """They are written as by a change of style. A GPU needs compute capability 8.9."""
    if on_cuda.unet.device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no 8-bit floats")
    frames = [frame.numpy() for frame in torch.randint(0, 256, (14, 64, 64, 3), dtype=torch.uint8)]
    layers = list(Float8Linears(on_cuda.unet).forwards())

    def difference(shown: list, expected: list) -> float:
        return max(abs(a.astype(float) - b).mean() for a, b in zip(shown, expected, strict=True))

    def stream(restyled: bool) -> list:
        """Push all frames, the last four with other weights if `restyled`; return their images."""
        with closing(on_cuda.stream(steps=1)) as stream:
            for frame in frames[:10]:
                stream.push(frame)
            captured = on_cuda.runtime and len(on_cuda.runtime.graphs)
            try:
                for layer in layers if restyled else ():
                    layer.weight.mul_(32)
                shown = [image for frame in frames[10:] for image in stream.push(frame)]
            finally:
                for layer in layers if restyled else ():
                    layer.weight.div_(32)
            assert captured == (on_cuda.runtime and len(on_cuda.runtime.graphs))
        return shown

    on_cuda.runtime = CudaRuntime(on_cuda, Way(float8=True))
    first, changed = stream(restyled=False), stream(restyled=True)
    on_cuda.runtime = None
    expected = stream(restyled=True)
    assert 2 * difference(changed, expected) < difference(first, expected)
