"""Models by name, their styles, and the shapes of tensors on ZeroGPU."""

from pathlib import Path

import pytest
import torch
from helpers.checkpoints import (
    weights_of,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

import live2diff
from live2diff import loading
from live2diff.loading import NANO, TOO_LARGE, convert, model_folder
from live2diff.runtime import trial
from live2diff.styles import STYLES, Style
from live2diff.weights.convert import PUBLISHED, Sources, new_folder


def test_a_style_sets_its_steps_and_one_without_its_files_says_what_it_needs(full, styles):
    assert full.stream(style="dream").schedule.timesteps.tolist() == [599, 199]
    nano = live2diff.load("nano")
    assert set(nano.styles) == {name for name, style in STYLES.items() if not style.has_weights}
    with pytest.raises(ValueError, match="'ghibli' needs the full model"):
        nano.stream(style="ghibli")
    with pytest.raises(ValueError, match=r"'toonyou' needs toonyou_beta6.safetensors"):
        full.stream(style="toonyou")
    with pytest.raises(
        OSError, match="nitrosocke/Ghibli-Diffusion is not on this machine, and the Hub cannot"
    ):
        full.stream(style="ghibli")
    # Although there is a folder live2diff/ here.
    with pytest.raises(OSError, match="some/base is not on this machine"):
        live2diff.load("live2diff", "cpu", sources=Sources(base="some/base"))
    assert "there is no CUDA GPU" in live2diff.load("auto", "cpu").about


class PlainShapes(TorchFunctionMode):
    """Every shape is a plain tuple, as in the main thread of a Space on ZeroGPU.

    There a function mode passes each result through `tree_map_only`, which makes a `torch.Size` a tuple.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return tree_map_only(torch.Tensor, lambda tensor: tensor, func(*args, **(kwargs or {})))


def test_a_model_is_converted_loaded_and_restyled_where_shapes_are_plain_tuples(
    sources, styles, full, tmp_path
):
    with PlainShapes():
        assert type(torch.ones(2, 3).shape) is tuple
        convert(tmp_path / "model", sources, torch.float32)
        pipeline = live2diff.load(str(tmp_path / "model"), "cpu", style="toon", styles=styles)
    full.activate_style("toon")
    expected = weights_of(full)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(pipeline).items())


def test_a_style_with_a_missing_file_in_a_folder_is_not_offered(model, tmp_path):
    name = "loras/ink.safetensors"
    style = {"ink": Style("Ink", loras=((name, 1.0),))}
    lines = []
    pipeline = live2diff.load(str(model), "cpu", styles=style, checkpoints=tmp_path, report=lines.append)
    assert "ink" not in pipeline.styles
    assert f"The style 'ink' is not available: it needs {name}." in lines
    (tmp_path / "loras").mkdir()
    (tmp_path / name).touch()
    assert "ink" in live2diff.load(str(model), "cpu", styles=style, checkpoints=tmp_path).styles


def test_of_two_conversions_at_once_the_slower_uses_the_folder_of_the_faster(monkeypatch, tmp_path):
    folder = tmp_path / "model"

    def another_is_faster(out: Path, *_: object, **__: object) -> None:
        with new_folder(out, 1) as new:
            for written in (new, out):
                written.mkdir(exist_ok=True)
                (written / "model_index.json").write_text("{}")

    monkeypatch.setattr(loading, "converted_folder", lambda sources: folder)
    monkeypatch.setattr(loading, "convert", another_is_faster)
    assert model_folder("live2diff", PUBLISHED, print) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_conversion_that_fails_without_another_is_an_error(monkeypatch, tmp_path):
    def fail(*_: object, **__: object) -> None:
        raise OSError("The disk is full.")

    monkeypatch.setattr(loading, "converted_folder", lambda sources: tmp_path / "model")
    monkeypatch.setattr(loading, "convert", fail)
    with pytest.raises(OSError, match="disk is full"):
        model_folder("live2diff", PUBLISHED, print)


def test_a_folder_in_the_home_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # on Windows
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="holds no model: it has no"):
        model_folder("~/model", PUBLISHED, print)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    assert model_folder("~/model", PUBLISHED, print) == tmp_path / "model"
    with pytest.raises(ValueError, match="There is no model '~/other'"):
        model_folder("~/other", PUBLISHED, print)


class Crowded:
    """`read_pipeline` on a device that is full at its first call, or has a bug."""

    def __init__(self, error: RuntimeError):
        self.error, self.calls, self.read = error, 0, loading.read_pipeline

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == 1:
            raise self.error
        return self.read(*arguments)


def test_auto_continues_with_nano_if_the_full_model_does_not_fit(monkeypatch):
    reported: list[str] = []
    crowded = Crowded(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    monkeypatch.setattr(loading, "read_pipeline", crowded)
    monkeypatch.setattr(loading, "choose_model", lambda *_: ("live2diff", "Model: Live2Diff, the full one."))
    monkeypatch.setattr(loading, "model_folder", lambda *_: NANO)
    pipeline = live2diff.load("auto", "cpu", eager=True, report=reported.append)
    assert pipeline.about == f"Model: nano, the small one. {TOO_LARGE}" and crowded.calls == 2
    assert f"{TOO_LARGE} Continuing with nano." in reported
    for model, error in (("live2diff", crowded.error), ("auto", RuntimeError("a bug"))):
        monkeypatch.setattr(loading, "read_pipeline", Crowded(error))
        with pytest.raises(RuntimeError, match=r"out of memory|a bug"):
            live2diff.load(model, "cpu", eager=True)


def test_a_trial_of_graphs_that_runs_out_of_memory_leaves_the_model_eager(tiny_pipeline, monkeypatch):
    reported: list[str] = []

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trial, "CudaRuntime", full)
    trial.accelerate(tiny_pipeline, report=reported.append)
    assert tiny_pipeline.runtime is None and "out of memory" in reported[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_refused_with_a_message():
    with pytest.raises(ValueError, match="There is no CUDA GPU here that torch can use"):
        live2diff.load("nano", "cuda")
