"""A model may have Stable Diffusion's own KL-VAE in place of the tiny one."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

import live2diff
from live2diff import Live2DiffPipeline
from live2diff.model.vae import decode, encode, vae_scale_factor


@pytest.fixture
def kl_pipeline(tiny_pipeline, monkeypatch) -> Iterator[Live2DiffPipeline]:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4)
    monkeypatch.setattr(tiny_pipeline, "vae", vae.eval())
    yield tiny_pipeline


def test_encoding_is_the_scaled_mode_of_the_posterior_and_decoding_undoes_the_scale(kl_pipeline):
    vae = kl_pipeline.vae
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = kl_pipeline.encode(images)
    assert latents.shape == (2, *kl_pipeline.latent_shape((32, 48))) == (2, 4, 16, 24)
    assert vae_scale_factor(vae) == 2 and vae.config.scaling_factor == 0.18215
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mode() * 0.18215
        assert torch.equal(latents, expected) and torch.equal(latents, kl_pipeline.encode(images))
        assert torch.equal(kl_pipeline.decode(latents), vae.decode(latents / 0.18215).sample)


def test_a_decoder_may_give_smaller_patches_than_the_encoder_takes():
    torch.manual_seed(0)
    vae = AutoencoderTiny(
        in_channels=48, out_channels=12, encoder_block_out_channels=(8,), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1,), num_decoder_blocks=(1, 0),
    ).eval()  # fmt: skip
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = encode(vae, images)
        decoded = decode(vae, latents)
    assert vae_scale_factor(vae) == 4 and latents.shape == (2, 4, 8, 12) and decoded.shape == images.shape
    padded = torch.nn.functional.pad(latents, [1] * 4, mode="replicate")
    expected = vae.decoder(padded)[:, 1::4, 2:-2, 2:-2]
    assert torch.equal(decoded[:, :, ::2, 1::2], expected), "the second pixel of each patch"


def test_a_stream_runs_with_it_and_the_model_is_saved_and_loaded(kl_pipeline, tmp_path):
    frames = list(np.random.default_rng(0).integers(0, 256, (11, 40, 56, 3), dtype=np.uint8))
    expected = kl_pipeline(frames, seed=1, steps=2)
    assert [image.shape for image in expected] == [frame.shape for frame in frames]
    assert len({image.tobytes() for image in expected}) == len(frames)
    kl_pipeline.save_pretrained(tmp_path)
    loaded = live2diff.load(str(tmp_path), device="cpu", eager=True)
    assert isinstance(loaded.vae, AutoencoderKL)
    difference = np.abs(np.stack(loaded(frames, seed=1, steps=2)).astype(int) - np.stack(expected))
    assert difference.max() <= 1
