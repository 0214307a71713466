"""Open the model to measure, if need be with random weights: speed does not depend on their values."""

import sys
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
)

from ..loading import NANO, load
from ..model.lcm import build_scheduler
from ..model.unet import StreamUNet
from ..pipeline import Live2DiffPipeline, to_channels_last
from ..runtime.device import best_device
from ..runtime.trial import accelerate
from ..streaming.content_filter import ContentFilter
from ..weights.convert import PUBLISHED, converted_folder

CPU_WARNING = (
    "live2diff: the full model on a CPU takes 15 GB of memory and a minute or more for each frame; "
    "--model nano is the one for a CPU."
)
# Of the published parts: Stable Diffusion 1.5's text encoder, and the DPT-Hybrid of MiDaS.
TEXT_ENCODER = CLIPTextConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
)
DEPTH_ESTIMATOR = DPTConfig(
    is_hybrid=True,
    backbone_featmap_shape=[1, 1024, 24, 24],
    neck_ignore_stages=[0, 1],
    backbone_out_indices=[2, 5, 8, 11],
    neck_hidden_sizes=[256, 512, 768, 768],
    readout_type="project",
)


def open_model(name: str, device: str | None, eager: bool = False) -> tuple[Live2DiffPipeline, str]:
    """Open a pipeline; its weights are "shipped", "published", "random", or "own" for a folder."""
    device = device or best_device()[0]
    if name != "live2diff":
        return load(name, device, eager=eager), "shipped" if name == "nano" else "own"
    if torch.device(device).type == "cpu":
        print(CPU_WARNING, file=sys.stderr)
    if (converted_folder(PUBLISHED) / "model_index.json").is_file():
        return load(name, device, eager=eager), "published"
    pipeline = random_model(device)
    if not eager and torch.device(device).type == "cuda":
        accelerate(pipeline, report=partial(print, file=sys.stderr))
    return pipeline, "random"


def random_model(device: str) -> Live2DiffPipeline:
    """Build the full model in its published sizes, with random weights, on a device."""
    cpu = torch.device(device).type == "cpu"
    torch.manual_seed(0)
    scheduler = build_scheduler()  # on the CPU: its schedules are computed in float64, which MPS lacks
    with torch.device(device):
        unet = StreamUNet(cross_attention_dim=768)
        with torch.no_grad():
            for name, parameter in unet.named_parameters():  # zeros in a new model
                if "proj_out.weight" in name or "flow_conv_in.conv_out.weight" in name:
                    parameter.normal_(std=0.01)
        pipeline = Live2DiffPipeline(
            vae=AutoencoderTiny(),
            text_encoder=CLIPTextModel(TEXT_ENCODER),
            tokenizer=CLIPTokenizer.from_pretrained(NANO / "tokenizer"),
            unet=unet,
            scheduler=scheduler,
            depth_estimator=DPTForDepthEstimation(DEPTH_ESTIMATOR),
        )
    pipeline.to(device, torch.float32 if cpu else torch.float16)
    to_channels_last(pipeline.vae, pipeline.unet, pipeline.depth_estimator)
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.depth_estimator):
        module.eval()
    return pipeline


def random_filter(device: torch.device, dtype: torch.dtype) -> ContentFilter:
    """Build a content filter of the published safety checker's size, a CLIP ViT-L/14: 1.2 GB in float32."""
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
    vision |= dict(image_size=224, patch_size=14)
    with torch.device(device):
        checker: Any = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=768))
    return ContentFilter(checker.to(device, dtype))
