"""The parity cases recorded from the published code, and the weights that they ran with."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from live2diff.model.unet import StreamUNet

from .paths import PARITY

UNET_CASES = Path(os.environ.get("LIVE2DIFF_PARITY", PARITY))
PIPELINE_CASES = Path(os.environ.get("LIVE2DIFF_PARITY_PIPELINE", PARITY / "pipeline"))


def recorded_weight(seed: int, key: str, shape: list[int]) -> torch.Tensor:
    """Generate the weight that the recorded run had under this name; the weights are not stored."""
    x = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape)
    if x.ndim >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
    return torch.from_numpy(x.astype(np.float32))


def recorded_unet(name: str) -> StreamUNet:
    """Build the UNet of a case, with its weights."""
    case = json.loads((UNET_CASES / f"{name}.json").read_text())
    config = case["config"]
    unet = StreamUNet(
        block_out_channels=config["block_out_channels"], cross_attention_dim=config["cross_attention_dim"]
    )
    unet.load_state_dict(
        {key: recorded_weight(config["seed"], key, shape) for key, shape in case["weights"].items()}
    )
    return unet.eval()
