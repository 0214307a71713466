"""The fastest way to compute frames on a GPU that gives correct frames is chosen."""

from dataclasses import replace
from itertools import count
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.streams import frames

from live2diff import Live2DiffPipeline
from live2diff.runtime import float8, regions
from live2diff.runtime import trial as trial_module
from live2diff.runtime.cuda_graphs import CudaRuntime, Way
from live2diff.runtime.trial import WAYS, Trial, accelerate, short_trial


def quick(pipeline: Live2DiffPipeline, **changes) -> Trial:
    """Return a trial of small frames."""
    return replace(short_trial(pipeline), frame=(48, 64), viewers=2, **changes)


def test_graphs_are_kept_only_if_they_give_the_same_frames(on_cuda, monkeypatch):
    reported: list[str] = []
    accelerate(on_cuda, report=reported.append, trial=quick(on_cuda))
    assert on_cuda.runtime is not None and reported == []
    decoded = CudaRuntime.decode
    monkeypatch.setattr(CudaRuntime, "decode", lambda runtime, latents: -decoded(runtime, latents))
    accelerate(on_cuda, report=reported.append, trial=quick(on_cuda))
    assert on_cuda.runtime is None and "CUDA graphs do not work here" in reported[-1]


def test_a_kernel_that_does_not_run_is_left_out(on_cuda, monkeypatch):
    kernels = pytest.importorskip("live2diff.runtime.kernels", reason="on Linux only")
    reported: list[str] = []
    broken = Mock(side_effect=RuntimeError("no kernel image is available for this device"))
    monkeypatch.setattr(kernels.FusedAttention, "__call__", broken)
    accelerate(on_cuda, report=reported.append, trial=quick(on_cuda))
    assert on_cuda.runtime is not None and on_cuda.runtime.way == Way()
    assert [line.split(" not work")[0] for line in reported] == [*WAYS.values()][:2]
    on_cuda.runtime = None


@pytest.mark.parametrize(
    ("faster", "taken"), [(True, Way(True, True, True, True)), (False, Way(True, True))], ids=str
)
def test_compiled_blocks_and_8_bit_floats_are_kept_if_they_are_faster(on_cuda, monkeypatch, faster, taken):
    pytest.importorskip("triton", reason="on Linux only")
    monkeypatch.setattr(regions, "compile_block", lambda function: function)  # traced in another test
    monkeypatch.setattr(trial_module, "has_float8", lambda device: True)
    # Each round takes less time than the last, or more.
    times, reported = ((-1 if faster else 1) * number**2 for number in count()), []
    accelerate(on_cuda, True, reported.append, quick(on_cuda, clock=lambda: next(times)))
    assert on_cuda.runtime.way == taken and len(on_cuda.runtime.graphs) == 0
    assert [line.split(" the")[0] for line in reported] == ["Compiling"]
    on_cuda.runtime = None


@torch.no_grad()
def turn_round(parameters: list[torch.nn.Parameter]) -> None:
    """Reverse weights in place, as `WeightSwapper` writes them; a second call restores them."""
    for parameter in parameters:
        parameter.copy_(parameter.flip(0))


def test_weights_written_later_reach_the_chosen_runtime_after_others_were_tried(on_cuda, monkeypatch):
    pytest.importorskip("triton", reason="on Linux only")
    monkeypatch.setattr(regions, "compile_block", lambda function: function)
    times, clip = (number**2 for number in count()), frames(0, 14)  # each round takes longer than the last
    accelerate(on_cuda, True, trial=quick(on_cuda, clock=lambda: next(times)))
    assert on_cuda.runtime.way == Way(True, True)
    before = on_cuda(clip, seed=1)
    packed = [p for n, p in on_cuda.unet.named_parameters() if any(f".to_{x}." in n for x in "qkv")]
    turn_round(packed)
    shown, on_cuda.runtime = on_cuda(clip, seed=1), None
    expected = on_cuda(clip, seed=1)
    turn_round(packed)
    differing = [np.abs(np.stack(own).astype(int) - expected).max() for own in (shown, before)]
    assert differing[0] <= 2 < differing[1]


def test_where_8_bit_floats_are_too_coarse_they_are_left_out(on_cuda, monkeypatch):
    pytest.importorskip("triton", reason="on Linux only")
    monkeypatch.setattr(regions, "compile_block", lambda function: function)
    monkeypatch.setattr(trial_module, "has_float8", lambda device: True)

    def coarse(layer: object, weight: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.linspace(-1e3, 1e3, len(weight)).expand(*x.shape[:-1], -1).contiguous()

    monkeypatch.setattr(float8, "multiply", coarse)
    monkeypatch.setattr(trial_module, "LARGEST_DIFFERENCE", 0.5)  # the tiny model's frames are nearly grey
    times, reported = (-(number**2) for number in count()), []
    accelerate(on_cuda, True, reported.append, quick(on_cuda, clock=lambda: next(times)))
    assert on_cuda.runtime.way == Way(True, True, True) and "8-bit floats do not work" in reported[-1]
    on_cuda.runtime = None


def test_blocks_that_do_not_compile_are_left_out(on_cuda, monkeypatch):
    pytest.importorskip("triton", reason="on Linux only")

    def broken(*_: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(regions, "BACKEND", broken)
    reported: list[str] = []
    accelerate(on_cuda, True, reported.append, quick(on_cuda))
    assert on_cuda.runtime is not None and "no C compiler" in reported[-1]
    assert "forward" not in vars(on_cuda.unet.mid_block.resnets[0])
    on_cuda.runtime = None


def test_frames_are_compared_with_eager_ones_in_float32(on_cuda, monkeypatch):
    on_cuda.runtime, seen, run = None, [], Trial.run

    def watched(own: Trial) -> tuple:
        seen.append((on_cuda.unet.dtype, on_cuda.vae.dtype, on_cuda.runtime is None))
        return run(own)

    monkeypatch.setattr(Trial, "run", watched)
    for part in (on_cuda.unet, on_cuda.vae, on_cuda.text_encoder, on_cuda.depth_estimator):
        part.to(torch.bfloat16)
    try:
        accelerate(on_cuda, trial=quick(on_cuda, dtype=torch.float32))
        assert seen[:2] == [(torch.float32, torch.float32, True), (torch.bfloat16, torch.bfloat16, False)]
    finally:
        on_cuda.runtime = None
        for part in (on_cuda.unet, on_cuda.vae, on_cuda.text_encoder, on_cuda.depth_estimator):
            part.to(torch.float32)


def test_a_trial_that_does_not_fit_into_memory_is_replaced_by_a_smaller_one(on_cuda, monkeypatch):
    tried, choose, reported = [], Trial.choose, []

    def small_memory(own: Trial, *arguments: object) -> object:
        tried.append((own.viewers, own.size))
        if own.viewers > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return choose(own, *arguments)

    monkeypatch.setattr(Trial, "choose", small_memory)
    accelerate(on_cuda, report=reported.append, trial=quick(on_cuda))
    assert on_cuda.runtime is not None and reported == []
    assert tried == [(2, 2 * on_cuda.size_multiple), (1, 2 * on_cuda.size_multiple)]
    on_cuda.runtime = None
