"""Every loss is computed on the device of its data: on torch's `meta` device, which has no numbers.

An operation on tensors of two devices fails there as it does between the CPU and a GPU.
"""

import pytest
import torch
from helpers.material import write_material
from torch.overrides import TorchFunctionMode

from live2diff.config import WINDOW
from live2diff.training import photographs
from live2diff.training.denoiser import Denoiser, build_unet, denoising_loss
from live2diff.training.depth import build_depth_estimator, depth_loss
from live2diff.training.text import build_text_encoder, build_tokenizer
from live2diff.training.vae import build_vae, vae_loss

SIDE = 64


class NoTensorsOfTheCpu(TorchFunctionMode):
    """Fail where a tensor with a dimension is created on the CPU; indices would hide it on `meta`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim and result.device.type != "meta":
            raise AssertionError(f"{func.__name__} gave a tensor {list(result.shape)} on {result.device}")
        return result


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory) -> Denoiser:
    tokenizer = build_tokenizer(tmp_path_factory.mktemp("words"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "material", write_material(tmp_path_factory.mktemp("material")))
        return Denoiser(build_unet(), build_text_encoder(tokenizer), build_vae()).to("meta")


@pytest.mark.parametrize("frames", [1, WINDOW], ids=["images", "clips"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])  # which decides whether it is the first step or a second one
def test_the_denoiser_s_loss(denoiser, frames, seed):
    images = torch.zeros(2 * frames, 3, SIDE, SIDE, device="meta")
    batch = {name: images for name in ("camera", "clean", "target", "depth")}
    batch["tokens"] = torch.zeros(2, 77, dtype=torch.int64, device="meta")
    torch.manual_seed(seed)
    with NoTensorsOfTheCpu():
        losses = denoising_loss(denoiser, batch)
    assert {loss.device.type for loss in losses.values()} == {"meta"}
    assert ("flicker" in losses) == (frames > 1)


def test_the_losses_of_vae_and_depth_estimator():
    images = torch.zeros(2, 3, SIDE, SIDE, device="meta")
    vae, estimator = build_vae().to("meta"), build_depth_estimator().to("meta")
    with NoTensorsOfTheCpu():
        assert vae_loss(vae, images)["loss"].device.type == "meta"
        assert depth_loss(estimator, images, torch.zeros(2, SIDE, SIDE, device="meta")).device.type == "meta"
