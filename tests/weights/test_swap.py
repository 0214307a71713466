"""Styles change the weights in place, while streams run."""

import numpy as np
import pytest
import torch
from helpers.checkpoints import (
    CONVOLUTION,
    FRAMES,
    LAYERS,
    SMALL,
    original_unet_name,
    random_lora,
    weights_of,
)
from safetensors.torch import load_file

import live2diff
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.weights.convert import added_weights
from live2diff.weights.swap import is_added


def test_a_base_in_a_single_file_with_loras_gives_every_parameter_its_value(full, styles, base, model):
    full.activate_style("toon")
    expected = load_file(styles["toon"].base)
    lora = random_lora(LAYERS, seed=7) | {}
    few = random_lora(LAYERS | CONVOLUTION, seed=3)
    for name, parameter in full.unet.named_parameters():
        if is_added(name):
            continue
        expected_value = expected[f"model.diffusion_model.{original_unet_name(name)}"].clone()
        for weight, layers in ((0.7, lora), (1.0, few)):
            for (_, layer), (down, up, alpha) in layers.items():
                if name == f"{layer}.weight":
                    expected_value += (
                        weight * alpha / 4 * (up.flatten(1) @ down.flatten(1)).view_as(expected_value)
                    )
        torch.testing.assert_close(parameter.detach(), expected_value, rtol=0, atol=1e-5, msg=name)
    own = live2diff.load(str(model), "cpu")
    assert weights_of(own).keys() == weights_of(full).keys()  # a tiny VAE stays what it is


def test_weights_after_a_hundred_style_changes_equal_a_fresh_load_to_the_bit(full, model, styles):
    addresses = [p.data_ptr() for p in full.unet.parameters()]
    for number in range(100):
        style = (
            (None, "felt", "toon", "dream")[number % 4] if number % 10 == 0 else (None, "felt")[number % 2]
        )
        full.activate_style(style, lora_scale=1 - number % 7 / 10)
    for style in (None, "dream", "toon"):
        full.activate_style(style)
        fresh = weights_of(live2diff.load(str(model), "cpu", style=style, styles=styles))
        weights = weights_of(full)
        assert all(torch.equal(weights[name], fresh[name]) for name in fresh), style
    assert [p.data_ptr() for p in full.unet.parameters()] == addresses  # written in place


def test_a_style_cannot_change_the_weights_that_another_stream_uses(full, model, styles):
    alone = live2diff.load(str(model), "cpu", styles=styles)(FRAMES, style="felt", **SMALL)
    engine = Engine(full)
    engine.open("one", StreamSettings(style="felt", **SMALL)).result()
    with pytest.raises(ValueError, match="Another viewer"):
        engine.open("two", StreamSettings(style="toon", **SMALL)).result()
    out = []
    for number, frame in enumerate(FRAMES):
        out += engine.push("one", frame).result().frames
        if number == 9:
            engine.open("two", StreamSettings(style="felt", **SMALL)).result()  # the same weights: welcome
            with pytest.raises(ValueError, match="Another viewer"):
                engine.update("two", StreamSettings(style="felt", lora_scale=0.5)).result()
    assert all(np.array_equal(mine, his) for mine, his in zip(out, alone, strict=False))
    engine.close("one").result()
    engine.update("two", StreamSettings(style="toon")).result()
    engine.shutdown()


def test_a_stream_changes_style_without_a_gap_and_clears_its_cache_unless_asked_to_keep_it(full):
    with torch.no_grad():
        for name, parameter in added_weights(full.unet).items():
            if "motion_modules" in name and "proj_out" in name:
                parameter.mul_(30)  # so that what the cache holds shows

    def first_frame_after(warmup: np.ndarray, keep_cache: bool) -> np.ndarray:
        stream = full.stream(style="felt", scene_cut=None, **SMALL)
        for frame in [*warmup, *FRAMES[4:]]:  # a cleared cache is filled from the last 8 frames
            stream.push(frame)
        stream.update(style="toon", keep_cache=keep_cache)
        (image,) = stream.push(FRAMES[0])
        stream.close()
        return image

    one, other = FRAMES[:8], FRAMES[4:]
    assert np.array_equal(first_frame_after(one, False), first_frame_after(other, False))
    assert not np.array_equal(first_frame_after(one, True), first_frame_after(other, True))


def test_a_refused_change_of_style_changes_nothing(full):
    stream = full.stream(style="felt", **SMALL)
    before = weights_of(full)
    with pytest.raises(ValueError, match="no style 'nothing'"):
        stream.update(style="nothing")
    with pytest.raises(ValueError, match="4001 characters"):
        stream.update(style="toon", prompt="x" * 4001)
    assert all(torch.equal(after, before[name]) for name, after in weights_of(full).items())
    stream.close()
