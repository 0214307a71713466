"""Engines for the workers of a cluster, made in their processes."""

from pathlib import Path

from helpers.checkpoints import kohya_lora, random_lora, write
from helpers.recall import LORAS
from helpers.tiny_models import build_tiny_pipeline

from live2diff import Live2DiffPipeline
from live2diff.serving.engine import Engine
from live2diff.styles import Style
from live2diff.weights.swap import WeightSwapper

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def write_weights(folder: Path) -> None:
    """Write what `tiny_pipeline` reads: the tiny model's own weights, and a LoRA for each style."""
    pipe = build_tiny_pipeline(folder)
    pipe.unet.save_pretrained(folder / "model" / "unet")
    pipe.text_encoder.save_pretrained(folder / "model" / "text_encoder")
    shape = pipe.unet.get_submodule(LAYER).weight.shape
    for name, seed in LORAS.items():
        lora = random_lora({("unet", LAYER): shape}, seed=seed)
        write(kohya_lora(lora), folder / f"{name}.safetensors")


def tiny_pipeline(folder: Path) -> Live2DiffPipeline:
    """The tiny pipeline of the tests, with the same weights in each process, and the styles of LORAS."""
    pipe = build_tiny_pipeline(folder)
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    pipe.weight_swapper = WeightSwapper(parts, folder / "model", Path)
    for name in LORAS:
        loras = ((str(folder / f"{name}.safetensors"), 1.0),)
        pipe.styles[name] = Style(name.title(), "{}", loras=loras)
    return pipe


def tiny_engine(folder: Path) -> Engine:
    """An engine with room for two."""
    return Engine(tiny_pipeline(folder), capacity=2, idle_seconds=float("inf"))
