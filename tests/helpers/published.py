"""The parts of the published model at tiny width, random, each in the layout that it is published in."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from helpers.checkpoints import (
    CONVOLUTION,
    LAYERS,
    build_tiny_hybrid_dpt,
    kohya_lora,
    perturbed,
    random_lora,
    write,
)
from helpers.tiny_models import build_tiny_dpt

from live2diff.loading import load_base
from live2diff.training.text import build_text_encoder, build_tokenizer
from live2diff.weights.convert import Sources
from live2diff.weights.swap import is_added


def write_base(base: Path) -> Path:
    """A random model in the layout of `stable-diffusion-v1-5`, with a DPT in `depth`."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(base / "words")
    tokenizer.save_pretrained(base / "tokenizer")
    build_text_encoder(tokenizer).save_pretrained(base / "text_encoder")
    unet = UNet2DConditionModel(block_out_channels=(32, 32, 32, 32), cross_attention_dim=64)
    unet.save_pretrained(base / "unet")
    blocks = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    vae = AutoencoderKL(3, 3, *blocks, (8, 8, 8, 8), latent_channels=4, norm_num_groups=4)
    vae.save_pretrained(base / "vae")
    build_tiny_dpt().save_pretrained(base / "depth")
    return base


def write_sources(base: Path, folder: Path) -> Sources:
    """The other parts, for a base that `write_base` wrote."""
    torch.manual_seed(1)
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    tiny.save_pretrained(folder / "taesd")
    build_tiny_hybrid_dpt().save_pretrained(folder / "depth")
    unet = load_base(base, base / "depth").unet
    added = {name: tensor for name, tensor in perturbed(unet, 2).items() if is_added(name)}
    write({f"module.{name}": tensor for name, tensor in added.items()}, folder / "live2diff.ckpt")
    write(kohya_lora(random_lora(LAYERS | CONVOLUTION, seed=3)), folder / "lcm.safetensors")
    parts = ("live2diff.ckpt", "lcm.safetensors", "taesd", "depth")
    return Sources(str(base), *(str(folder / part) for part in parts))
