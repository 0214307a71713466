"""The compiled parts against PyTorch's own, on real frames: the same pictures."""

import json
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES

import live2diff
from live2diff.loading import NANO, RANGES
from live2diff.runtime.openvino import accelerate, digest
from live2diff.video.reader import read_frames

pytest.importorskip("openvino", reason="on PCs only")


def frames(count: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """A bright square that moves over noise."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    pictures = [still.copy() for _ in range(count)]
    for index, picture in enumerate(pictures):
        picture[8:24, index : index + 16] = 255
    return pictures


def translated(pipeline, pictures, **settings) -> np.ndarray:
    return np.stack(pipeline(pictures, **settings)).astype(int)


@pytest.fixture
def compiled_pipeline(tiny_pipeline, tmp_path_factory):
    accelerate(tiny_pipeline, kept_in=tmp_path_factory.getbasetemp() / "graphs")  # traced once for all tests
    yield tiny_pipeline
    tiny_pipeline.runtime = None


@pytest.mark.parametrize(("steps", "size"), [(1, (64, 64)), (3, (64, 96))])
def test_compiled_is_eager(compiled_pipeline, steps, size):
    pictures, runtime = frames(20, *size), compiled_pipeline.runtime
    settings = {"steps": steps, "size": size, "seed": 3, "prompt": "a square"}
    fast = translated(compiled_pipeline, pictures, **settings)
    compiled_pipeline.runtime = None
    eager = translated(compiled_pipeline, pictures, **settings)
    assert np.abs(fast - eager).max() <= 1  # of 255: what rounds the other way
    assert runtime._parts["denoise"]._requests  # and it was not PyTorch both times


def test_two_streams_on_one_runtime_are_as_one_alone(compiled_pipeline):
    pictures = frames(14)
    alone = [translated(compiled_pipeline, pictures, seed=seed) for seed in (0, 1)]
    streams = [compiled_pipeline.stream(seed=seed) for seed in (0, 1)]
    pushed = [[stream.push(picture) for stream in streams] for picture in pictures]
    for index, expected in enumerate(alone):
        out = [frame for given in pushed for frame in given[index]] + streams[index].flush()
        assert np.array_equal(np.stack(out), expected)


def test_graphs_are_traced_once_and_belong_to_these_weights(compiled_pipeline, tmp_path_factory):
    told, before = [], digest(compiled_pipeline, {})
    accelerate(compiled_pipeline, kept_in=tmp_path_factory.getbasetemp() / "graphs", report=told.append)
    assert not told
    with torch.no_grad():
        bias = compiled_pipeline.unet.conv_out.bias.clone()
        compiled_pipeline.unet.conv_out.bias += 0.5
        other = digest(compiled_pipeline, {})
        compiled_pipeline.unet.conv_out.bias.copy_(bias)
    assert other != before == digest(compiled_pipeline, {})


def test_ranges_are_those_of_the_shipped_models_layers():
    pipeline = live2diff.load("nano", eager=True)
    for name, (low, high) in json.loads((NANO / RANGES).read_text()).items():
        part, _, path = name.partition(".")
        assert isinstance(getattr(pipeline, part).get_submodule(path), torch.nn.Conv2d | torch.nn.Linear)
        assert low < high


def test_the_shipped_model_in_8_bits_looks_as_in_32():
    pictures = [picture for picture, _ in islice(read_frames(EXAMPLES / "admiral.mp4"), 14)]
    fast, eager = (
        translated(live2diff.load("nano", eager=eager), pictures, style="pencil") for eager in (False, True)
    )
    error = np.mean((fast[8:] - eager[8:]) ** 2)
    assert 10 * np.log10(255**2 / error) > 32  # decibels


@pytest.mark.long
def test_a_processor_without_avx512_draws_the_same(tmp_path):
    """As most laptops are; OpenVINO has other code for them, which once ended the process."""
    program = """
import sys, numpy as np, live2diff
from live2diff.runtime.openvino import accelerate
frames = np.random.default_rng(0).integers(0, 255, (10, 96, 128, 3), np.uint8)
pipe = live2diff.load("nano", eager=True)
eager = np.stack(pipe(frames, style="ink")).astype(int)
accelerate(pipe, kept_in=sys.argv[1])
print(np.abs(np.stack(pipe(frames, style="ink")) - eager).max())
"""
    environment = os.environ | {"DNNL_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) <= 1
