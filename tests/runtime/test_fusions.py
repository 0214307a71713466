"""The kernels for group norms and gated activations, and what uses them, agree with PyTorch."""

import pytest
import torch
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from helpers.compiled import compiled_for_gpus, interpreted, run_interpreted
from torch.nn import functional
from transformers import BitConfig
from transformers.models.bit.modeling_bit import BitGroupNormActivation

triton = pytest.importorskip("triton", reason="on Linux only")

from live2diff.model.vae import pad_by_replication  # noqa: E402
from live2diff.runtime import fusions  # noqa: E402
from live2diff.runtime.overrides import Overrides  # noqa: E402

TOLERANCES = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def test_the_kernels_interpreted_agree_with_pytorch():
    run_interpreted(__file__, "-k", "kernel")


@interpreted
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups", "activation"),
    [((2, 320, 16, 20), 32, "silu"), ((1, 64, 23, 17), 32, "relu"), ((3, 96, 5, 3), 8, "")],
    ids=str,
)
def test_the_kernel_of_a_group_norm(shape, groups, activation, dtype):
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 + 20).to(dtype)  # far from zero: squares would cancel
    weight, bias = torch.randn(2, shape[1]).to(dtype)
    expected = functional.group_norm(x.float(), groups, weight.float(), bias.float(), 1e-5)
    expected = {"silu": functional.silu, "relu": functional.relu, "": lambda y: y}[activation](expected)
    out = fusions.launch_group_norm(x, weight, bias, groups, 1e-5, activation)
    assert out.is_contiguous(memory_format=torch.channels_last) and out.dtype == dtype
    assert (out.float() - expected).norm() / expected.norm() <= TOLERANCES[dtype]


@interpreted
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_kernel_of_a_gated_activation(dtype):
    x = torch.randn(2, 7, 2 * 320, generator=torch.Generator().manual_seed(0)).to(dtype) * 4
    value, gate = x.float().chunk(2, dim=-1)
    expected, out = value * functional.gelu(gate), fusions.launch_geglu(x)
    assert (out.float() - expected).norm() / expected.norm() <= TOLERANCES[dtype]


@torch.no_grad()
def test_fused_forwards_agree_with_those_of_the_modules(tiny_pipeline):
    """Module by module, on the inputs of each in a frame; on a CPU with the plain forms of the kernels."""
    networks = tiny_pipeline.unet, tiny_pipeline.vae, tiny_pipeline.depth_estimator
    forwards = fusions.fused_forwards(*networks)
    seen = {}

    def watch(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        seen.setdefault(module, (inputs, output))

    hooks = [module.register_forward_hook(watch) for module in forwards]
    frames = [frame.numpy() for frame in torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8)]
    expected = tiny_pipeline(frames, steps=1)
    for hook in hooks:
        hook.remove()
    kinds = {type(module).__name__ for module in seen}
    assert kinds == {"ResnetBlock2D", "GroupNorm", "GEGLU", "AutoencoderTinyBlock"}
    for module, (inputs, output) in seen.items():
        torch.testing.assert_close(forwards[module](*inputs), output, atol=1e-5, rtol=1e-5)
    overrides = Overrides(forwards)
    with overrides.active():
        again = tiny_pipeline(frames, steps=1)
    assert max(abs(a.astype(int) - b).max() for a, b in zip(again, expected, strict=True)) <= 1
    assert not any("forward" in vars(module) for module in forwards)


@pytest.mark.parametrize("activates", [True, False])
@torch.no_grad()
def test_the_norms_of_a_hybrid_depth_estimator(activates):
    module = BitGroupNormActivation(BitConfig(num_groups=4), 16, apply_activation=activates)
    module.weight.copy_(torch.linspace(-1, 1, 16))
    x = torch.randn(2, 16, 5, 7)
    forward = fusions.fused_forwards(torch.nn.Sequential(module))[module]
    torch.testing.assert_close(forward(x), module(x))


def test_a_tiny_block_that_replicates_borders_keeps_its_own_forward():
    block = AutoencoderTinyBlock(4, 4, "relu")
    assert fusions.fused_forwards(block)
    pad_by_replication(block)
    assert not fusions.fused_forwards(block)


def test_overrides_are_undone_after_an_error_and_can_be_nested():
    module = torch.nn.Identity()
    outer, inner = Overrides({module: lambda x: x + 1}), Overrides({module: lambda x: x * 10})
    with outer.active():
        assert inner.around(module)(2) == 20 and module(2) == 3
        with pytest.raises(ZeroDivisionError), inner.active():
            raise ZeroDivisionError
        assert module(2) == 3
    assert module(2) == 2 and "forward" not in vars(module)


@pytest.mark.long
def test_the_kernels_compile_for_each_kind_of_gpu_without_spills():
    kernels = compiled_for_gpus("fusions")
    assert {kernel["capability"] for kernel in kernels} == {80, 86, 89, 90, 120}
    assert all(kernel["spilled"] == kernel["stack"] == 0 for kernel in kernels), kernels
    assert max(kernel["registers"] for kernel in kernels) <= 128
