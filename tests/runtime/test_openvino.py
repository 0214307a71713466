"""Compiled parts and PyTorch's own kernels give the same frames."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from itertools import count, islice
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers.paths import EXAMPLES, ROOT
from torch.testing import assert_close

import live2diff
from live2diff import Live2DiffPipeline
from live2diff.loading import NANO, RANGES
from live2diff.model.vae import pad_by_replication
from live2diff.serving.working_size import Work, frame_seconds
from live2diff.training.ranges import choose_levels
from live2diff.video.reader import read_frames

pytest.importorskip("openvino", reason="on PCs only")
from live2diff.runtime import openvino
from live2diff.runtime.openvino import accelerate, computes_in_8_bits, digest, write_graphs
from live2diff.runtime.openvino_graphs import Ranges, TracedPart, merge_upsampling, quantise, trace


def frames(count: int, height: int = 64, width: int = 64) -> list[np.ndarray]:
    """Return frames of a bright square that moves over noise."""
    rng = np.random.default_rng(0)
    still = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
    images = [still.copy() for _ in range(count)]
    for index, image in enumerate(images):
        image[8:24, index : index + 16] = 255
    return images


def translated(pipeline, images, **settings) -> np.ndarray:
    return np.stack(pipeline(images, **settings)).astype(int)


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory) -> Path:
    """Return a folder for the graphs, so that they are traced once for all tests."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture
def compiled_pipeline(tiny_pipeline, cache_folder):
    accelerate(tiny_pipeline, cache_folder=cache_folder)
    yield tiny_pipeline
    tiny_pipeline.runtime = None


@pytest.mark.parametrize(("steps", "size"), [(1, (64, 64)), (3, (64, 96))])
def test_compiled_frames_equal_eager_ones(compiled_pipeline, steps, size, monkeypatch):
    predict = Mock(side_effect=compiled_pipeline.runtime.predict)
    monkeypatch.setattr(compiled_pipeline.runtime, "predict", predict)
    images = frames(20, *size)
    settings = {"steps": steps, "size": size, "seed": 3, "prompt": "a square"}
    fast = translated(compiled_pipeline, images, **settings)
    compiled_pipeline.runtime = None
    eager = translated(compiled_pipeline, images, **settings)
    assert np.abs(fast - eager).max() <= 1  # of 255: what rounds the other way
    assert predict.call_count >= 12  # and it was not PyTorch both times


def test_two_streams_on_one_runtime_are_as_one_alone(compiled_pipeline):
    images = frames(14)
    alone = [translated(compiled_pipeline, images, seed=seed) for seed in (0, 1)]
    streams = [compiled_pipeline.stream(seed=seed) for seed in (0, 1)]
    pushed = [[stream.push(image) for stream in streams] for image in images]
    for index, expected in enumerate(alone):
        out = [frame for given in pushed for frame in given[index]] + streams[index].flush()
        assert np.array_equal(np.stack(out), expected)


def test_graphs_are_traced_once_and_belong_to_these_weights(compiled_pipeline, cache_folder):
    reported, before = [], digest(compiled_pipeline, {})
    accelerate(compiled_pipeline, cache_folder=cache_folder, report=reported.append)
    assert not reported
    with torch.no_grad():
        bias = compiled_pipeline.unet.conv_out.bias.clone()
        compiled_pipeline.unet.conv_out.bias += 0.5
        other = digest(compiled_pipeline, {})
        compiled_pipeline.unet.conv_out.bias.copy_(bias)
    assert other != before == digest(compiled_pipeline, {})


@pytest.mark.parametrize("library", ["torch", "diffusers", "transformers", "openvino"])
def test_another_version_of_a_library_needs_new_graphs(tiny_pipeline, library, monkeypatch):
    before = digest(tiny_pipeline, {})
    monkeypatch.setattr(
        openvino, "version", lambda name: "0.0.1" if name == library else importlib.metadata.version(name)
    )
    assert digest(tiny_pipeline, {}) != before


@pytest.mark.parametrize(
    "changed", ["config.py", "model/lcm.py", "model/kv_cache.py", "runtime/openvino_graphs.py"]
)
def test_other_code_needs_new_graphs(tiny_pipeline, changed, tmp_path):
    for folder in ("model", "runtime"):
        shutil.copytree(ROOT / "live2diff" / folder, tmp_path / folder)
    shutil.copy(ROOT / "live2diff" / "config.py", tmp_path)
    assert digest(tiny_pipeline, {}, package=tmp_path) == digest(tiny_pipeline, {})
    with (tmp_path / changed).open("a") as file:
        file.write("# changed")
    assert digest(tiny_pipeline, {}, package=tmp_path) != digest(tiny_pipeline, {})


def test_graphs_that_were_not_used_for_long_are_deleted(compiled_pipeline, cache_folder, tmp_path):
    (written,) = cache_folder.iterdir()
    for name in (written.name, "openvino-recent", "openvino-old", "openvino-unfinished-old", "other"):
        shutil.copytree(written, tmp_path / name)
    for name in (written.name, "openvino-old", "openvino-unfinished-old", "other"):
        os.utime(tmp_path / name, (0, 0))
    accelerate(compiled_pipeline, cache_folder=tmp_path)  # uses `written`, and so keeps it
    with torch.no_grad():
        compiled_pipeline.unet.conv_out.bias += 0.5
        accelerate(compiled_pipeline, cache_folder=tmp_path)
        compiled_pipeline.unet.conv_out.bias -= 0.5
    left = {folder.name for folder in tmp_path.iterdir()}
    assert {written.name, "openvino-recent", "other"} < left and len(left) == 4  # and the new one


def test_graphs_deleted_while_they_are_in_use_still_serve_other_sizes(
    compiled_pipeline, cache_folder, tmp_path
):
    shutil.copytree(cache_folder, tmp_path / "graphs")
    accelerate(compiled_pipeline, cache_folder=tmp_path / "graphs")
    shutil.rmtree(tmp_path / "graphs")
    assert len(compiled_pipeline(frames(9), size=(64, 64))) == 9


def test_measuring_the_working_size_leaves_no_compiled_graphs(compiled_pipeline, monkeypatch):
    compile_model = Mock(side_effect=openvino.ov.compile_model)
    monkeypatch.setattr(openvino.ov, "compile_model", compile_model)
    compiled = []
    for _ in range(2):
        frame_seconds(compiled_pipeline, Work(32, 2), clock=count(step=0.001).__next__)
        compiled.append(compile_model.call_count)
    assert compiled[1] == 2 * compiled[0] > 0  # the second time all is compiled again


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> tuple[Live2DiffPipeline, Ranges, Path]:
    """Return the shipped model, its ranges, and the folder of its graphs in 8 bits."""
    pipeline, ranges = live2diff.load("nano", eager=True), json.loads((NANO / RANGES).read_text())
    folder = tmp_path_factory.mktemp("shipped") / "graphs"
    write_graphs(pipeline, ranges, folder)
    return pipeline, ranges, folder


def test_every_layer_with_a_range_is_computed_in_8_bits(shipped):
    """The names of traced layers in the graphs are those of the shipped file."""
    _, ranges, folder = shipped
    rounded = sum(file.read_text().count('type="FakeQuantize"') for file in folder.glob("*.xml"))
    assert rounded == 2 * len(ranges)  # input and weight of each


def test_ranges_are_those_of_the_shipped_models_layers(shipped):
    pipeline, ranges, _ = shipped
    for name, (low, high, scales) in ranges.items():
        part, _, path = name.partition(".")
        layer = getattr(pipeline, part).get_submodule(path)
        assert isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
        assert low < high and len(scales) == layer.weight.shape[1] and max(scales) == 1


@pytest.mark.skipif(not computes_in_8_bits(), reason="8 bits are not for this processor")
def test_the_shipped_model_in_8_bits_gives_nearly_the_images_of_32(shipped):
    images = [image for image, _ in islice(read_frames(EXAMPLES / "admiral.mp4"), 14)]
    pipeline, _, folder = shipped
    eager = translated(pipeline, images, style="pencil")
    pipeline.runtime = openvino.OpenVINORuntime(folder)
    fast = translated(pipeline, images, style="pencil")
    pipeline.runtime = None
    error = np.mean((fast[8:] - eager[8:]) ** 2)
    assert 10 * np.log10(255**2 / error) > 45  # decibels


@pytest.mark.parametrize("replicated", [False, True])
def test_upsampling_and_its_convolution_become_one_layer_that_computes_the_same(replicated):
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.Upsample(scale_factor=2),
        torch.nn.Conv2d(4, 5, 3, padding=1),
    )
    if replicated:
        pad_by_replication(layers)
    images = torch.randn(2, 3, 7, 10)
    graph = trace(TracedPart("vae", layers, lambda module, x: module(x)), images)
    merge_upsampling(graph, {})
    kinds = [node.get_type_name() for node in graph.get_ordered_ops()]
    assert "Interpolate" not in kinds and kinds.count("ConvolutionBackpropData") == 1
    compiled = openvino.ov.compile_model(graph, "CPU", openvino.OPTIONS)
    assert_close(torch.tensor(compiled(images.numpy())[0]), layers(images), atol=1e-5, rtol=1e-5)


def test_a_channel_that_is_much_larger_takes_no_precision_from_the_others():
    torch.manual_seed(0)
    size = torch.tensor([100.0, 1, 1, 1])
    layer, images = torch.nn.Conv2d(4, 5, 3, padding=1), torch.randn(1, 4, 20, 20) * size[:, None, None]
    layer.weight.data /= size[:, None, None]
    sample = images[0].flatten(1).T
    levels = choose_levels(layer.weight, torch.stack(sample.aminmax(dim=0)), sample)
    plain = (-300.0, 300.0, [1.0] * 4)
    errors = []
    for chosen in (plain, levels):
        graph = trace(TracedPart("vae", layer, lambda module, x: module(x)), images)
        quantise(graph, {"vae": chosen})
        compiled = openvino.ov.compile_model(graph, "CPU", openvino.OPTIONS)
        errors.append((torch.tensor(compiled(images.numpy())[0]) - layer(images)).square().mean().item())
    assert errors[1] < errors[0] / 50
    zero = 255 * levels[0] / (levels[1] - levels[0])
    assert zero == pytest.approx(round(zero), abs=0.01)  # it has a level of its own


@pytest.mark.long
def test_a_processor_without_avx512_gives_the_same(tmp_path):
    """Most laptops lack it; OpenVINO's code for them has once crashed the process."""
    program = """
import sys, numpy as np, live2diff
from live2diff.runtime.openvino import accelerate
frames = np.random.default_rng(0).integers(0, 255, (10, 96, 128, 3), np.uint8)
pipe = live2diff.load("nano", eager=True)
eager = np.stack(pipe(frames, style="ink")).astype(int)
accelerate(pipe, cache_folder=sys.argv[1])
print(np.abs(np.stack(pipe(frames, style="ink")) - eager).max())
"""
    environment = os.environ | {"DNNL_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) <= 1
