"""The fused attention equals the plain form: interpreted on a CPU, and compiled for each kind of GPU."""

from copy import deepcopy

import pytest
import torch
from helpers.compiled import compiled_for_gpus, interpreted, run_interpreted

from live2diff.config import WINDOW
from live2diff.model.attention import TemporalAttention, Window
from live2diff.model.kv_cache import KVCache

triton = pytest.importorskip("triton", reason="on Linux only")

PIXELS = 5
# Of the norm. The kernel adds a position to the query after its projection, the plain form before, and
# rounds the sum once, the plain form each operation.
TOLERANCES = {torch.float32: 6e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def test_the_kernel_interpreted_agrees_with_the_plain_form():
    run_interpreted(__file__)


def random_cache(rows: int, channels: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> KVCache:
    cache = KVCache.empty(rows, [(PIXELS, channels)], cache_dtype, "cpu")
    for slot in range(WINDOW):
        entries = [torch.randn(rows, 1, PIXELS, channels).to(dtype) for _ in range(2)]
        cache.write(0, *entries, torch.full((rows, 1), slot))
    return cache


@interpreted
@pytest.mark.parametrize(
    ("dtype", "cache_dtype", "channels", "counts"),
    [
        (torch.float32, None, 320, [0, 12]),  # two rows, which lie in the cache in another order
        (torch.float32, None, 640, [3]),
        (torch.float16, None, 320, [30]),
        (torch.bfloat16, None, 320, [8]),
        (torch.float32, torch.int8, 320, [9]),
        (torch.float16, torch.int8, 320, [7]),
    ],
    ids=str,
)
@torch.no_grad()
def test_attention_and_cache_are_those_of_the_plain_form(dtype, cache_dtype, channels, counts):
    from live2diff.runtime.kernels import FusedAttention, attend

    torch.manual_seed(0)
    module = TemporalAttention(channels).to(dtype)
    for linear in (module.to_q, module.to_k, module.to_v):
        torch.nn.init.normal_(linear.weight, std=channels**-0.5)
    cache = random_cache(5, channels, dtype, cache_dtype or dtype)
    other = deepcopy(cache)
    index = torch.tensor([4, 0][: len(counts)])
    cache.count[index] = other.count[index] = torch.tensor(counts)
    x = torch.randn(len(counts), 1, PIXELS, channels).to(dtype)

    plain = cache.select(index)
    expected = module(x, Window.stream(plain.counts), plain, 0)
    new = torch.cat([linear(x) for linear in (module.to_q, module.to_k, module.to_v)], dim=-1)
    fused = FusedAttention(module)
    fused.refresh()
    scales = other.scales[0] if other.scales else None
    out = attend(new, fused.tables[module], index, other.count, other.keys[0], other.values[0], scales)
    out = module.to_out[0](out)

    error = (out.float() - expected.float()).norm() / expected.float().norm()
    assert error <= TOLERANCES[dtype], error
    for written, reference in zip(other.tensors, cache.tensors, strict=True):
        assert torch.equal(written, reference)


@pytest.mark.long
def test_the_kernel_compiles_for_each_kind_of_gpu_without_spills():
    compiled = compiled_for_gpus("kernels")
    assert {kernel["capability"] for kernel in compiled} == {80, 86, 89, 90, 120}
    assert all(kernel["spilled"] == kernel["stack"] == 0 for kernel in compiled)
    assert max(kernel["registers"] for kernel in compiled) <= 168
    assert all(kernel["wide_loads"] for kernel in compiled if kernel["kind"] != "i8")
