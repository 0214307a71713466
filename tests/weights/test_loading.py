"""Loading the published model from checkpoints in exactly its layouts, at tiny width; styles with weights of
their own, and changing them while streams run."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from helpers.checkpoints import (
    diffusers_lora,
    kohya_lora,
    original_unet_name,
    original_vae_name,
    peft_lora,
    random_lora,
    single_file,
    write,
)
from safetensors.torch import load_file
from transformers import BitConfig, CLIPTextConfig, CLIPTextModel, DPTConfig, DPTForDepthEstimation

import live2diff
from live2diff.loading import main
from live2diff.model.unet import StreamUNet
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.styles import STYLES, Style, read_styles
from live2diff.weights.checkpoints import read_published, split_single_file
from live2diff.weights.convert import Sources, added_weights, convert, load_base
from live2diff.weights.lora import read_lora
from live2diff.weights.swap import SD_VAE, is_added, parts_of

SMALL = {"size": 128, "t_index_list": [30]}  # one step at the smallest size
FRAMES = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8)
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYERS = {
    ("unet", f"{ATTENTION}.to_q"): torch.Size([32, 32]),
    ("unet", f"{ATTENTION}.to_out.0"): torch.Size([32, 32]),
    ("unet", "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"): torch.Size([32, 128]),
    ("unet", "down_blocks.0.attentions.0.proj_in"): torch.Size([32, 32, 1, 1]),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"): torch.Size([64, 64]),
    ("text_encoder", "encoder.layers.0.self_attn.out_proj"): torch.Size([64, 64]),
}
CONVOLUTION = {("unet", "mid_block.resnets.0.conv1"): torch.Size([32, 32, 3, 3])}


def perturbed(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The module's parameters, each changed a little."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: p.detach() + 0.05 * torch.randn(p.shape, generator=generator)
        for name, p in module.named_parameters()
    }


def build_tiny_hybrid_dpt() -> DPTForDepthEstimation:
    """The kind that the published one is: a ResNet in front of the transformer."""
    config = DPTConfig(
        is_hybrid=True,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        backbone_featmap_shape=[1, 64, 4, 4],
        backbone_out_indices=[0, 1, 2, 3],
        neck_ignore_stages=[0, 1],
        neck_hidden_sizes=[16, 32, 8, 8],
        fusion_hidden_size=8,
        readout_type="project",
        backbone_config=BitConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[1, 1, 1],
            out_features=["stage1", "stage2", "stage3"],
            embedding_dynamic_padding=True,
            global_padding="same",
            layer_type="bottleneck",
            num_groups=4,
        ),
    )
    return DPTForDepthEstimation(config)


@pytest.fixture(scope="module")
def sources(base, tmp_path_factory) -> Sources:
    """Every part of the published model, as it is published."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(1)
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    tiny.save_pretrained(folder / "taesd")
    build_tiny_hybrid_dpt().save_pretrained(folder / "depth")
    added = {
        name: t for name, t in perturbed(load_base(base, base / "depth").unet, 2).items() if is_added(name)
    }
    write({f"module.{name}": t for name, t in added.items()}, folder / "live2diff.ckpt")
    write(kohya_lora(random_lora(LAYERS | CONVOLUTION, seed=3)), folder / "lcm.safetensors")
    return Sources(
        str(base),
        str(folder / "live2diff.ckpt"),
        str(folder / "lcm.safetensors"),
        str(folder / "taesd"),
        str(folder / "depth"),
    )


@pytest.fixture(scope="module")
def model(sources, tmp_path_factory) -> Path:
    """The same, converted."""
    model = tmp_path_factory.mktemp("converted") / "model"
    convert(model, sources, torch.float32)
    return model


@pytest.fixture(scope="module")
def styles(base, tmp_path_factory) -> dict[str, Style]:
    """One style with a base in one file and a LoRA, one with a base in a folder, one with a LoRA alone."""
    folder = tmp_path_factory.mktemp("styles")
    loaded = load_base(base, base / "depth")
    other = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    unet = perturbed(other, 4)
    encoder = perturbed(loaded.text_encoder, 5)
    whole = single_file(unet, perturbed(loaded.vae, 6), encoder)
    write(whole, folder / "toon.safetensors")
    write(kohya_lora(random_lora(LAYERS, seed=7)), folder / "felt.safetensors")
    other.load_state_dict(perturbed(other, 8))
    other.save_pretrained(folder / "dream" / "unet")
    loaded.text_encoder.save_pretrained(folder / "dream" / "text_encoder")
    (folder / "styles.json").write_text(
        json.dumps(
            {
                "toon": {"title": "Toon", "base": "toon.safetensors", "loras": [["felt.safetensors", 0.7]]},
                "dream": {"title": "Dream", "base": "dream", "clip_skip": 2, "t_index_list": [20, 40]},
                "felt": {"title": "Felt", "template": "felted, {}", "loras": [["felt.safetensors", 1]]},
            }
        )
    )
    return read_styles(folder / "styles.json")


@pytest.fixture
def full(model, styles) -> live2diff.Live2DiffPipeline:
    return live2diff.load(str(model), "cpu", styles=styles)


def weights_of(pipeline: live2diff.Live2DiffPipeline) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": parameter.detach().clone()
        for part, module in parts_of(pipeline).items()
        for name, parameter in module.named_parameters()
    }


def test_the_published_parts_become_one_model_of_which_every_parameter_is_what_it_must_be(
    sources, full, base
):
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


def test_the_published_file_is_read_in_each_of_its_shapes_and_a_wrong_name_is_told(sources, base, tmp_path):
    plain = {name.removeprefix("module."): t for name, t in torch.load(sources.motion).items()}
    variants = {
        "prefixed": {f"module.{name}": t for name, t in plain.items()},
        "wrapped": {"state_dict": plain, "global_step": 7},
        "tables": plain | {f"{name.rsplit('.', 2)[0]}.pos_encoder.pe": torch.ones(24) for name in plain},
        "grid": plain | {"module.grid": torch.ones(3)},
    }
    for name, variant in variants.items():
        read = read_published(write(variant, tmp_path / f"{name}.ckpt"))
        assert read.keys() == plain.keys(), name
        assert all(torch.equal(read[key], plain[key]) for key in plain), name
    depth = base / "depth"
    whole = load_base(base, depth, added=plain | {"conv_in.bias": torch.full([32], 7.0)}).unet
    assert whole.conv_in.bias.eq(7).all()  # keys of the base are honoured
    with pytest.raises(ValueError, match=r"file.ckpt has, unknown here, mid_block.motion"):
        load_base(base, depth, added=plain | {"mid_block.motion": torch.ones(3)}, motion="file.ckpt")
    name = next(iter(plain))
    short = {key: tensor for key, tensor in plain.items() if key != name}
    with pytest.raises(ValueError, match=f"file.ckpt lacks {name}"):
        load_base(base, depth, added=short, motion="file.ckpt")
    with pytest.raises(ValueError, match=f"{name} in file.ckpt has the shape"):
        load_base(base, depth, added=plain | {name: torch.ones(3)}, motion="file.ckpt")


def test_code_in_a_checkpoint_is_never_run_and_half_a_file_is_told(sources, tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, ("raise SystemExit('the code in the checkpoint has run')",)

    (tmp_path / "trap.ckpt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    torch.save({"state_dict": Trap()}, tmp_path / "zip.ckpt")
    for name in ("trap.ckpt", "zip.ckpt"):
        with pytest.raises(ValueError, match=f"{name} holds more than tensors"):
            read_published(tmp_path / name)
    for source in (sources.motion, sources.few_step_lora):
        half = tmp_path / Path(source).name
        half.write_bytes(Path(source).read_bytes()[:-5000])
        with pytest.raises(ValueError, match=f"{half.name} is cut off"):
            read_published(half)
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(ValueError, match=r"empty.ckpt"):
        read_published(tmp_path / "empty.ckpt")


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
def test_a_base_with_a_broken_part_is_told_with_its_place(base, tmp_path, file, change, words):
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


@pytest.mark.parametrize("layout", [kohya_lora, peft_lora, diffusers_lora])
def test_a_lora_changes_what_diffusers_own_loader_changes_in_each_layout(layout, base, tmp_path):
    layers = random_lora(LAYERS, seed=3)
    file = write(layout(layers), tmp_path / "style.safetensors")
    pipeline = load_base(base, base / "depth")
    stock = StableDiffusionPipeline(
        vae=pipeline.vae,
        text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder"),
        tokenizer=pipeline.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(base / "unet"),
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    before = {name: p.clone() for name, p in stock.unet.named_parameters()}
    before |= {name: p.clone() for name, p in stock.text_encoder.named_parameters()}
    changes = read_lora(file, parts_of(pipeline))
    stock.load_lora_weights(str(file))
    stock.fuse_lora()
    stock.unload_lora_weights()
    after = dict(stock.unet.named_parameters()) | dict(stock.text_encoder.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for _, name in changes} == changed
    for (_, name), factors in changes.items():
        delta = factors.delta(before[name].shape, torch.device("cpu"))
        torch.testing.assert_close(before[name] + delta, after[name], atol=1e-5, rtol=1e-5)


def test_a_lora_that_fits_nothing_or_only_in_part_is_refused_by_name(full, tmp_path):
    parts = parts_of(full)
    strange = kohya_lora(
        {("unet", "double_blocks.0.img_attn"): random_lora(LAYERS)["unet", f"{ATTENTION}.to_q"]}
    )
    with pytest.raises(ValueError, match=r"No layer of .*flux.safetensors matches .*double_blocks"):
        read_lora(write(strange, tmp_path / "flux.safetensors"), parts)
    fitting = kohya_lora(random_lora(LAYERS))
    with pytest.raises(ValueError, match="double_blocks"):
        read_lora(write(fitting | strange, tmp_path / "mixed.safetensors"), parts)
    other = kohya_lora(random_lora({("unet", f"{ATTENTION}.to_q"): torch.Size([48, 32])}))
    with pytest.raises(ValueError, match=f"{ATTENTION}.to_q.weight of the unet has the shape"):
        read_lora(write(other, tmp_path / "wide.safetensors"), parts)


def test_a_single_file_becomes_the_same_weights_as_its_folder(full, styles, base, model):
    full.activate_style("toon")
    expected = load_file(styles["toon"].base)
    lora = random_lora(LAYERS, seed=7) | {}
    few = random_lora(LAYERS | CONVOLUTION, seed=3)
    for name, parameter in full.unet.named_parameters():
        if is_added(name):
            continue
        wanted = expected[f"model.diffusion_model.{original_unet_name(name)}"].clone()
        for weight, layers in ((0.7, lora), (1.0, few)):
            for (_, layer), (down, up, alpha) in layers.items():
                if name == f"{layer}.weight":
                    wanted += weight * alpha / 4 * (up.flatten(1) @ down.flatten(1)).view_as(wanted)
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-5, msg=name)
    own = live2diff.load(str(model), "cpu")
    assert weights_of(own).keys() == weights_of(full).keys()  # a tiny VAE stays what it is


def test_a_hundred_changes_of_style_leave_the_very_bits_of_a_fresh_load(full, model, styles):
    addresses = [p.data_ptr() for p in full.unet.parameters()]
    for number in range(100):
        style = (
            (None, "felt", "toon", "dream")[number % 4] if number % 10 == 0 else (None, "felt")[number % 2]
        )
        full.activate_style(style, lora_scale=1 - number % 7 / 10)
    for style in (None, "dream", "toon"):
        full.activate_style(style)
        fresh = weights_of(live2diff.load(str(model), "cpu", style=style, styles=styles))
        worn = weights_of(full)
        assert all(torch.equal(worn[name], fresh[name]) for name in fresh), style
    assert [p.data_ptr() for p in full.unet.parameters()] == addresses  # written in place


def test_nobody_restyles_the_picture_of_another(full, model, styles):
    alone = live2diff.load(str(model), "cpu", styles=styles)(FRAMES, style="felt", **SMALL)
    engine = Engine(full)
    engine.open("one", StreamSettings(style="felt", **SMALL)).result()
    with pytest.raises(ValueError, match="Somebody else"):
        engine.open("two", StreamSettings(style="toon", **SMALL)).result()
    out = []
    for number, frame in enumerate(FRAMES):
        out += engine.push("one", frame).result().frames
        if number == 9:
            engine.open("two", StreamSettings(style="felt", **SMALL)).result()  # the same weights: welcome
            with pytest.raises(ValueError, match="Somebody else"):
                engine.update("two", StreamSettings(style="felt", lora_scale=0.5)).result()
    assert all(np.array_equal(mine, his) for mine, his in zip(out, alone, strict=False))
    engine.close("one").result()
    engine.update("two", StreamSettings(style="toon")).result()
    engine.shutdown()


def test_a_stream_changes_style_without_a_gap_and_forgets_only_if_the_weights_changed(full):
    stream = full.stream(style="felt", **SMALL)
    for frame in FRAMES[:9]:
        stream.push(frame)
    before = full.unet.conv_in.weight.clone()
    with pytest.raises(ValueError, match="no style 'nothing'"):
        stream.update(style="nothing")
    with pytest.raises(ValueError, match="4001 characters"):
        stream.update(style="toon", prompt="x" * 4001)
    assert torch.equal(full.unet.conv_in.weight, before)  # what is refused changes nothing
    kept, fresh = (full_count(stream, keep) for keep in (True, False))
    assert kept > 1 and fresh == 1
    stream.close()


def full_count(stream: live2diff.Stream, keep_cache: bool) -> int:
    """Frames that the memory holds beside the warmup ones, one frame after a change of style."""
    stream.update(style="toon" if keep_cache else "felt", keep_cache=keep_cache)
    assert len(stream.push(FRAMES[0])) == 1
    return int(stream.state.cache.count[0])


def test_a_style_brings_its_steps_and_one_that_needs_the_full_model_says_so(full, styles):
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


def test_a_file_of_styles_tells_every_mistake_in_it(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps(
            {
                "good": {"title": "Good"},
                "a": {"title": "A", "template": "no place for words", "steps": 9},
                "b": {"base": 3, "lora": "x"},
                "c": {"title": "C", "t_index_list": [40, 30], "loras": [["x.safetensors", "much"]]},
            }
        )
    )
    with pytest.raises(ValueError) as caught:
        read_styles(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 8
    for words in ("'a': template", "'a': steps is 9", "'b' has no title", "'b': base is 3", "'b' has 'lora'"):
        assert any(words in line for line in lines), words
    file.write_text("{")
    with pytest.raises(ValueError, match="not a JSON file"):
        read_styles(file)


def test_the_command_line_converts_once_and_translates_with_style_and_lora(sources, styles, tmp_path, capsys):
    words = ["convert", str(tmp_path / "out"), "--base", sources.base, "--motion", sources.motion]
    words += ["--few-step-lora", sources.few_step_lora, "--vae", sources.vae, "--depth", sources.depth]
    assert main(words) == 0
    assert not list((tmp_path / "out").rglob("*.bin")) and not list((tmp_path / "out").rglob("*.ckpt"))
    assert main(words) == 2 and "exists already" in capsys.readouterr().err
    wrong = [*words[:1], str(tmp_path / "other"), *words[2:4], "--motion", sources.few_step_lora, *words[6:]]
    assert main(wrong) == 2 and "lcm.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".partly*"))
    pipeline = live2diff.load(str(tmp_path / "out"), loras=[styles["felt"].loras[0]])
    assert len(pipeline(FRAMES[:8], style="pencil", **SMALL)) == 8


def test_the_names_and_shapes_of_the_real_model_are_those_of_the_published_checkpoints():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        blocks = {"down_block_types": SD_VAE["down_block_types"], "up_block_types": SD_VAE["up_block_types"]}
        vae = AutoencoderKL(
            **blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4
        )
        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        encoder = CLIPTextModel(CLIPTextConfig(num_attention_heads=12, **sizes))
    states = [module.state_dict() for module in (unet, vae, encoder)]
    whole = single_file(*states)
    names = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": [320, 640, 1, 1],
        "model.diffusion_model.middle_block.1.proj_in.weight": [1280, 1280, 1, 1],
        "model.diffusion_model.time_embed.0.weight": [1280, 320],
        "first_stage_model.decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
        "first_stage_model.encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": [3072, 768],
    }
    assert {name: list(whole[name].shape) for name in names} == names
    split = split_single_file(whole, dict(unet.config), SD_VAE, "whole.ckpt")
    for part, state in zip(("unet", "vae"), states, strict=False):
        assert {n: t.shape for n, t in split[part].items()} == {n: t.shape for n, t in state.items()}
    assert len(split["text_encoder"]) == 196 and len(split["unet"]) == 686 and len(split["vae"]) == 248
    assert original_vae_name("decoder.up_blocks.0.resnets.0.conv1.weight") in {
        name.removeprefix("first_stage_model.") for name in whole
    }
    with torch.device("meta"):
        real = StreamUNet(cross_attention_dim=768)
    assert sum(p.numel() for p in real.parameters()) == pytest.approx(1277.7e6, rel=1e-4)
    assert len(added_weights(real)) == 20 * 26 + 16
