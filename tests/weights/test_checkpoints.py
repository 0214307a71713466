"""Checkpoints in the published and the original layout, and those that are damaged."""

import pickle
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from helpers.checkpoints import (
    original_vae_name,
    single_file,
    write,
)
from transformers import CLIPTextConfig, CLIPTextModel

from live2diff.loading import load_base
from live2diff.model.unet import StreamUNet
from live2diff.weights.checkpoints import SD_VAE, read_published, split_single_file
from live2diff.weights.convert import added_weights


def test_the_published_file_is_read_in_each_layout_and_a_wrong_name_is_named(sources, base, tmp_path):
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
    with pytest.raises(ValueError, match=r"file.ckpt has unknown parameters mid_block.motion"):
        load_base(base, depth, added=plain | {"mid_block.motion": torch.ones(3)}, motion="file.ckpt")
    name = next(iter(plain))
    short = {key: tensor for key, tensor in plain.items() if key != name}
    with pytest.raises(ValueError, match=f"file.ckpt lacks {name}"):
        load_base(base, depth, added=short, motion="file.ckpt")
    with pytest.raises(ValueError, match=f"{name} in file.ckpt has the shape"):
        load_base(base, depth, added=plain | {name: torch.ones(3)}, motion="file.ckpt")


def test_code_in_a_checkpoint_is_never_run_and_a_truncated_file_is_named(sources, tmp_path):
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


def test_names_and_shapes_at_full_size_are_those_of_the_published_checkpoints():
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
    split = split_single_file(whole, dict(unet.config), "whole.ckpt")
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
