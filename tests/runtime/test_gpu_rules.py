"""Rules for the path of a frame on a GPU, checked on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_models import build_tiny_pipeline
from torch.overrides import TorchFunctionMode

import live2diff
from live2diff import Live2DiffPipeline
from live2diff.model.attention import Window
from live2diff.model.vae import decode, encode
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.steps import push_together

HOST_READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero"}


def frames(count: int, side: int = 64) -> list[np.ndarray]:
    """Return a moving image of coarse blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = blocks.repeat(side // 8, axis=0).repeat(side // 8, axis=1)
    return [np.roll(image, 2 * index, axis=1) for index in range(count)]


class NoHostReads(TorchFunctionMode):
    """Fail if a number is read from the device while this is `on`, which would wait for a GPU."""

    def __init__(self) -> None:
        self.on, self.calls = False, 0

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.calls += self.on
        if self.on and getattr(function, "__name__", "") in HOST_READS:
            raise AssertionError(f"Tensor.{function.__name__} between encode and decode")
        return function(*args, **(kwargs or {}))


@contextmanager
def no_host_reads(pipeline: Live2DiffPipeline) -> Iterator[NoHostReads]:
    """Forbid such reads from the first encode of a round to its decode."""
    encode_images, decode_latents, mode = pipeline.encode, pipeline.decode, NoHostReads()

    def start(images: torch.Tensor) -> torch.Tensor:
        mode.on = True
        return encode_images(images)

    def stop(latents: torch.Tensor) -> torch.Tensor:
        images = decode_latents(latents)
        mode.on = False
        return images

    with pytest.MonkeyPatch.context() as patched, mode:
        patched.setattr(pipeline, "encode", start)
        patched.setattr(pipeline, "decode", stop)
        yield mode


@pytest.mark.parametrize("viewers", [1, 2])
def test_no_number_is_read_between_encode_and_decode(tiny_pipeline, viewers):
    pools = CachePools(viewers)
    streams = [tiny_pipeline.stream(seed=seed, steps=2, pools=pools) for seed in range(viewers)]
    for stream in streams:
        for frame in frames(8):
            stream.push(frame)
    with no_host_reads(tiny_pipeline) as mode:
        for frame in frames(4):
            push_together([stream.receive(frame) for stream in streams])
    assert mode.calls > 500


def test_a_read_of_a_number_is_found(tiny_pipeline, monkeypatch):
    stream = tiny_pipeline.stream(steps=1)
    for frame in frames(8):
        stream.push(frame)
    predict = tiny_pipeline.predict
    monkeypatch.setattr(tiny_pipeline, "predict", lambda *inputs: predict(*inputs) * float(inputs[1][0] > 0))
    with no_host_reads(tiny_pipeline), pytest.raises(AssertionError, match="between encode and decode"):
        stream.push(frames(1)[0])


@pytest.mark.parametrize("model", ["tiny", "nano"])
def test_half_precision_is_finite_and_within_a_grey_level(model, tmp_path):
    pipeline = build_tiny_pipeline(tmp_path) if model == "tiny" else live2diff.load("nano", "cpu", eager=True)
    clip, settings = frames(12), {"steps": 2, "size": 64, "seed": 1}
    expected = np.stack(pipeline(clip, **settings)).astype(np.float32)
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.depth_estimator):
        module.to(torch.float16)
    largest: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                largest[name] = max(largest.get(name, 0.0), output.abs().max().item())

        return hook

    for part in ("vae", "unet", "depth_estimator"):
        for name, module in getattr(pipeline, part).named_modules():
            module.register_forward_hook(watch(f"{part}.{name}"))
    halved = np.stack(pipeline(clip, **settings)).astype(np.float32)
    difference = np.abs(halved - expected)
    name = max(largest, key=lambda name: largest[name])
    assert largest[name] < 6000, name  # a tenth of the largest float16
    assert difference.mean() <= 0.5 and np.percentile(difference, 99) <= 1, (
        difference.mean(),
        difference.max(),
    )


@pytest.mark.parametrize("part", ["encode", "decode", "UNet", "UNet with the kernel"])
@torch.no_grad()
def test_the_networks_are_traced_whole(tiny_pipeline, part):
    """One graph each, without a break; the depth estimator's code has a lock in it, which breaks one."""
    pipeline = tiny_pipeline
    unet, vae = pipeline.unet, pipeline.vae
    if part in ("encode", "decode"):
        function, channels, side = (encode, 3, 32) if part == "encode" else (decode, 4, 16)
        inputs = torch.randn(2, channels, side, side)
        expected = function(vae, inputs)
        traced = torch.compile(lambda batch: function(vae, batch), backend="eager", fullgraph=True)(inputs)
    else:
        latents = torch.randn(2, 4, 8, 8)
        inputs = (latents, torch.tensor([500, 200]), torch.randn(2, 77, 64), latents)
        cache = unet.new_cache(2, 8, 8).select(torch.tensor([1, 0]))
        expected = unet(*inputs, Window.stream(cache.counts), cache)
        if part == "UNet with the kernel":
            kernels = pytest.importorskip("live2diff.runtime.kernels")
            from helpers.graph_emulator import PlainKernel

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(kernels, "attend_kernel", PlainKernel())
                cache.attend = kernels.FusedAttention(unet)
                cache.attend.refresh()
                compiled = torch.compile(unet.forward, backend="eager", fullgraph=True)
                traced = compiled(*inputs, cache.attend.window, cache)
        else:

            def step(*tensors: torch.Tensor) -> torch.Tensor:
                return unet(*tensors, Window.stream(cache.counts), cache)

            traced = torch.compile(step, backend="eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(traced, expected, atol=1e-5, rtol=1e-5)
