"""The UNet agrees with numbers recorded from the published code, warming up and streaming."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import PARITY

from live2diff.config import WARMUP_FRAMES
from live2diff.model.attention import Window
from live2diff.model.unet import StreamUNet

FOLDER = Path(os.environ.get("LIVE2DIFF_PARITY", PARITY))
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))
TOLERANCE = 1e-4


def recorded_weight(seed: int, key: str, shape: list[int]) -> torch.Tensor:
    """The weight that the recorded run had under this name (they are drawn, not stored)."""
    x = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
    if x.ndim >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
    return torch.from_numpy(x.astype(np.float32))


def test_the_recipe_of_the_weights_is_the_recorded_one():
    bias = recorded_weight(1, "conv_in.bias", [32])
    torch.testing.assert_close(bias[:3], torch.tensor([0.00580148, -0.02534455, 0.05366619]))


def test_there_are_cases():
    assert CASES, f"no parity case in {FOLDER}"


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_warmup_and_stream_agree_with_the_published_code(name):
    case = json.loads((FOLDER / f"{name}.json").read_text())
    recorded = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / f"{name}.npz").items()}
    config = case["config"]
    unet = StreamUNet(
        block_out_channels=config["block_out_channels"], cross_attention_dim=config["cross_attention_dim"]
    )
    unet.eval()
    unet.load_state_dict(
        {k: recorded_weight(config["seed"], k, shape) for k, shape in case["weights"].items()}
    )

    timesteps, prompt_embeds = recorded["timesteps"].long(), recorded["prompt_embeds"]
    steps, _, _, height, width = recorded["warmup_latents"].shape
    cache = unet.new_cache(steps, height, width)
    for step in range(steps):
        out = unet(
            recorded["warmup_latents"][step],
            timesteps[step].expand(WARMUP_FRAMES),
            prompt_embeds.expand(WARMUP_FRAMES, -1, -1),
            recorded["warmup_depth"],
            Window.warmup(),
            cache.row(step),
        )
        torch.testing.assert_close(out, recorded["warmup_out"][step], atol=TOLERANCE, rtol=0)

    for call, valid in enumerate(recorded["valid"]):
        out = unet(
            recorded["stream_latents"][call],
            timesteps,
            prompt_embeds.expand(steps, -1, -1),
            recorded["stream_depth"][call],
            Window.stream(cache.count),
            cache,
        )
        cache.count += valid
        torch.testing.assert_close(out[valid], recorded["stream_out"][call][valid], atol=TOLERANCE, rtol=0)
