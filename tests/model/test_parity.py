"""The UNet agrees with numbers recorded from the published code, warming up and streaming."""

import numpy as np
import pytest
import torch
from helpers.parity import UNET_CASES, recorded_unet, recorded_weight

from live2diff.config import WARMUP_FRAMES
from live2diff.model.attention import Window

CASES = sorted(path.stem for path in UNET_CASES.glob("*.json"))
TOLERANCE = 1e-4


def test_weights_are_generated_as_they_were_for_the_recording():
    bias = recorded_weight(1, "conv_in.bias", [32])
    torch.testing.assert_close(bias[:3], torch.tensor([0.00580148, -0.02534455, 0.05366619]))


def test_there_are_cases():
    assert CASES, f"no parity case in {UNET_CASES}"


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_warmup_and_stream_agree_with_the_published_code(name):
    recorded = {key: torch.from_numpy(value) for key, value in np.load(UNET_CASES / f"{name}.npz").items()}
    unet = recorded_unet(name)
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
