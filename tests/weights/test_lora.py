"""LoRA files in each layout."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from helpers.checkpoints import (
    ATTENTION,
    LAYERS,
    diffusers_lora,
    kohya_lora,
    peft_lora,
    random_lora,
    write,
)
from transformers import CLIPTextModel

from live2diff.loading import load_base
from live2diff.weights.lora import read_lora
from live2diff.weights.swap import parts_of

BLOCK = "temporal_transformer.transformer_blocks.0.attention_blocks.0"
MOTION = [f"{side}_blocks.0.motion_modules.0.{BLOCK}" for side in ("down", "up")]


@pytest.mark.parametrize("layout", [kohya_lora, peft_lora, diffusers_lora])
def test_a_lora_in_each_layout_changes_what_diffusers_loader_changes(layout, base, tmp_path):
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


def test_a_lora_of_motion_modules_is_refused(full, tmp_path):
    names = [f"{name}.to_q" for name in MOTION]
    shapes = {("unet", name): full.unet.get_parameter(f"{name}.weight").shape for name in names}
    motion = peft_lora(random_lora(shapes))
    with pytest.raises(ValueError, match=r"No layer of .*motion.safetensors matches"):
        read_lora(write(motion, tmp_path / "motion.safetensors"), parts_of(full))
    both = peft_lora(random_lora(LAYERS)) | motion
    with pytest.raises(ValueError, match=r"has, besides layers that fit,.*motion_modules"):
        read_lora(write(both, tmp_path / "both.safetensors"), parts_of(full))


def test_a_lora_that_fits_only_in_part_or_not_at_all_is_refused_by_name(full, tmp_path):
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
