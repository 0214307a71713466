"""Real classes at tiny width with random weights: the models most tests run on."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny, LCMScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, DPTConfig, DPTForDepthEstimation

from live2diff import Live2DiffPipeline
from live2diff.model.unet import StreamUNet
from live2diff.training.text import build_text_encoder, build_tokenizer

SIDE = 32  # pixels of the safety checker's input


def build_tiny_dpt() -> DPTForDepthEstimation:
    config = DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
    )
    return DPTForDepthEstimation(config)


def build_tiny_pipeline(folder: Path) -> Live2DiffPipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(folder)
    unet = StreamUNet(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=64,
        depth_channels=(8, 8),
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():  # undo the zeros, so that cache and depth matter
            if "proj_out" in name or "flow_conv_in.conv_out" in name:
                parameter.normal_(std=0.2)
    pipeline = Live2DiffPipeline(
        vae=AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear"),
        depth_estimator=build_tiny_dpt(),
        size=32,
        t_index_list=(30, 40),
    )
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.depth_estimator):
        module.eval()
    return pipeline


def tiny_checker() -> StableDiffusionSafetyChecker:
    """Build a safety checker that objects to nothing yet."""
    torch.manual_seed(0)
    width = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = width | {"image_size": SIDE, "patch_size": 8}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(2)  # no cosine is that large
        checker.special_care_embeds_weights.fill_(2)
    return checker
