"""The published model in its exact layouts at tiny width, also converted, and styles with weights for it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers.checkpoints import LAYERS, kohya_lora, perturbed, random_lora, single_file, write
from helpers.published import write_sources

import live2diff
from live2diff.loading import convert, load_base
from live2diff.styles import Style, read_styles
from live2diff.weights.convert import Sources


@pytest.fixture(scope="session")
def sources(base, tmp_path_factory) -> Sources:
    """Write every part of the published model in its published layout."""
    return write_sources(base, tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def model(sources, tmp_path_factory) -> Path:
    """Convert these parts to a model."""
    model = tmp_path_factory.mktemp("converted") / "model"
    convert(model, sources, torch.float32)
    return model


@pytest.fixture(scope="session")
def styles(base, tmp_path_factory) -> dict[str, Style]:
    """Write a style with a base file and a LoRA, one with a base in a folder, and one with a LoRA alone."""
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
