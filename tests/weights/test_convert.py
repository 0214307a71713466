"""The parts of the published model become one folder, or are refused by name."""

import re
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from helpers.checkpoints import (
    CONVOLUTION,
    FRAMES,
    LAYERS,
    SMALL,
    random_lora,
)

import live2diff
from live2diff.loading import load_base, main


def test_converting_the_published_parts_gives_every_parameter_its_value(sources, full, base):
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").state_dict()
    unet |= {name.removeprefix("module."): t for name, t in torch.load(sources.motion).items()}
    for (_, layer), (down, up, alpha) in random_lora(LAYERS | CONVOLUTION, seed=3).items():
        name = f"{layer}.weight"
        if name in unet:
            change = (up.flatten(1) @ down.flatten(1)).view_as(unet[name]) * alpha / len(down)
            unet[name] = unet[name] + change
    parameters = dict(full.unet.named_parameters())
    assert parameters.keys() == unet.keys()
    for name, expected in unet.items():
        torch.testing.assert_close(parameters[name].detach(), expected, rtol=0, atol=1e-6, msg=name)
    tiny = AutoencoderTiny.from_pretrained(sources.vae)
    assert all(torch.equal(full.vae.state_dict()[name], t) for name, t in tiny.state_dict().items())
    first = full(FRAMES[:9], **SMALL)
    assert len(first) == 9 and first[8].shape == FRAMES[8].shape


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "cut", "unet/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "cut", "is damaged"),
        ("text_encoder/model.safetensors", "remove", "no file named model.safetensors"),
        ("depth/model.safetensors", "garbage", "is damaged"),
        ("tokenizer/tokenizer.json", "cut", "is damaged"),
        ("unet/config.json", "garbage", "not a valid JSON file"),
    ],
)
def test_a_base_with_a_damaged_part_is_refused_with_its_path(base, tmp_path, file, change, words):
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    whole = (broken / file).read_bytes()
    if change == "remove":
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(whole[: len(whole) // 2] if change == "cut" else b"x" * 1000)
    with pytest.raises((ValueError, OSError), match=re.escape(str(broken))) as caught:
        load_base(broken, broken / "depth")
    assert words in str(caught.value) and "download it again" in str(caught.value)


def test_the_command_line_converts_once_and_the_model_runs_with_style_and_lora(
    sources, styles, tmp_path, capsys
):
    words = ["convert", str(tmp_path / "out"), "--base", sources.base, "--motion", sources.motion]
    words += ["--few-step-lora", sources.few_step_lora, "--vae", sources.vae, "--depth", sources.depth]
    assert main(words) == 0
    assert not list((tmp_path / "out").rglob("*.bin")) and not list((tmp_path / "out").rglob("*.ckpt"))
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    wrong = [*words[:1], str(tmp_path / "other"), *words[2:4], "--motion", sources.few_step_lora, *words[6:]]
    assert main(wrong) == 2 and "lcm.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".partial*"))
    pipeline = live2diff.load(str(tmp_path / "out"), loras=[styles["felt"].loras[0]])
    assert len(pipeline(FRAMES[:8], style="pencil", **SMALL)) == 8
