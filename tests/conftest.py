"""A pipeline of all the real classes at tiny width, with random weights: what most tests run on."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
# Tiny models have nothing to share out: two threads that wait for each other take five times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, LCMScheduler, UNet2DConditionModel
from transformers import DPTConfig, DPTForDepthEstimation

from live2diff import Live2DiffPipeline
from live2diff.engine import Engine
from live2diff.training.text import build_text_encoder, build_tokenizer
from live2diff.unet import StreamUNet

if TYPE_CHECKING:
    from playwright.sync_api import Playwright


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


def build_tiny_pipeline(folder) -> Live2DiffPipeline:
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
        for name, parameter in unet.named_parameters():  # undo the zeros, so that memory and depth matter
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


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Live2DiffPipeline:
    return build_tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def engine(tiny_pipeline) -> Iterator[Engine]:
    """The one behind `address`."""
    engine = Engine(tiny_pipeline)
    yield engine
    engine.shutdown()


@pytest.fixture(scope="session")
def address(engine) -> Iterator[str]:
    """The page, served."""
    import app  # brings Gradio with it, which most tests do without

    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield demo.local_url
    demo.close()


@pytest.fixture(scope="module")
def playwright() -> Iterator["Playwright"]:
    """Closed after the module: no other may run beside it."""
    from playwright.sync_api import sync_playwright  # not everywhere that a GPU is

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random model in the layout of `stable-diffusion-v1-5`, with a DPT beside it in `depth`; not to be
    changed."""
    base = tmp_path_factory.mktemp("base")
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
