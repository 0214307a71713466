"""The full model at its real size, 1.28 billion parameters in the UNet, with random weights.

7 GB of disk, 15 GB of memory and five minutes of two cores. To run it:
`REAL_SIZE=1 python -m pytest tests/weights/test_real_size.py -s`.
"""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from helpers.checkpoints import kohya_lora, random_lora, write
from transformers import CLIPTextModel, DPTForDepthEstimation

import live2diff
from live2diff.benchmark.models import DEPTH_ESTIMATOR, TEXT_ENCODER
from live2diff.loading import convert
from live2diff.model.unet import StreamUNet
from live2diff.training.text import build_tokenizer
from live2diff.weights.convert import Sources
from live2diff.weights.swap import is_added

pytestmark = pytest.mark.skipif(not os.environ.get("REAL_SIZE"), reason="large: set REAL_SIZE=1")


class PeakMemory(threading.Thread):
    """Record the peak of this process's own memory in bytes, without mapped files."""

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self.going = 0, True

    def run(self) -> None:
        while self.going:
            status = Path("/proc/self/status").read_text()
            self.bytes = max(self.bytes, int(status.split("RssAnon:")[1].split()[0]) * 1024)
            time.sleep(0.05)


def write_published(folder: Path) -> Sources:
    """Write the parts in their published layouts, with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(cross_attention_dim=768)
    unet.save_pretrained(folder / "base" / "unet")
    layers = {
        ("unet", name.removesuffix(".weight")): parameter.shape
        for name, parameter in unet.named_parameters()
        if "attn" in name and parameter.ndim == 2
    }
    CLIPTextModel(TEXT_ENCODER).save_pretrained(folder / "base" / "text_encoder")
    build_tokenizer(folder / "words").save_pretrained(folder / "base" / "tokenizer")
    AutoencoderTiny().save_pretrained(folder / "taesd")
    DPTForDepthEstimation(DEPTH_ESTIMATOR).save_pretrained(folder / "depth")
    write(kohya_lora(random_lora(layers, rank=64)), folder / "lcm.safetensors")
    with torch.device("meta"):
        outline = StreamUNet(cross_attention_dim=768)
    added = {f"module.{n}": 0.01 * torch.randn(p.shape) for n, p in outline.named_parameters() if is_added(n)}
    write(added, folder / "live2diff.ckpt")
    names = ("base", "live2diff.ckpt", "lcm.safetensors", "taesd", "depth")
    return Sources(*(str(folder / name) for name in names))


def test_the_full_model_loads_within_its_size_and_translates_a_frame_on_a_cpu(tmp_path):
    convert(tmp_path / "model", write_published(tmp_path))
    peak = PeakMemory()
    peak.start()
    begun = time.monotonic()
    pipeline = live2diff.load(str(tmp_path / "model"), "cpu")
    modules = [module for module in pipeline.components.values() if isinstance(module, torch.nn.Module)]
    weights = 4 * sum(parameter.numel() for module in modules for parameter in module.parameters())
    print(
        f"\nloaded {weights / 1e9:.1f} GB in {time.monotonic() - begun:.0f} s, peak {peak.bytes / 1e9:.1f} GB"
    )
    assert peak.bytes < 1.3 * weights
    begun = time.monotonic()
    stream = pipeline.stream(t_index_list=[30, 42], size=512)
    stream.push(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    (out,) = stream.flush()
    print(f"the first frame took {time.monotonic() - begun:.0f} s, peak {peak.bytes / 1e9:.1f} GB")
    peak.going = False
    assert out.shape == (512, 512, 3) and out.std() > 0
    assert peak.bytes < 24 * 2**30
