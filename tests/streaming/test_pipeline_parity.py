"""The whole stream agrees with recorded runs of the published pipeline, from frames to latents and images.

Given to both sides: the noise of each frame, the prompt embeddings, and a stand-in for the depth estimator.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from helpers.parity import PIPELINE_CASES, recorded_unet, recorded_weight

from live2diff import Live2DiffPipeline, Stream
from live2diff.config import WARMUP_FRAMES, WINDOW
from live2diff.model.lcm import build_scheduler
from live2diff.streaming.cache_pool import CachePools
from live2diff.streaming.steps import push_together, unwrap
from live2diff.training.text import build_text_encoder, build_tokenizer

CASES = sorted(PIPELINE_CASES.glob("case-*.npz"))
TOLERANCE = 1e-4
SEED = 1  # of the recorded weights
TOGETHER = WINDOW + 1  # frames of two viewers: the cache is full and its oldest entry replaced
WIDTHS = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}
Recorded = dict[str, np.ndarray]


class RecordedDepth(torch.nn.Module):
    """A stand-in for the depth estimator; each frame's depth is from 0 to 1, so that all ranges agree."""

    config = SimpleNamespace(image_size=384)
    dtype = torch.float32

    def forward(self, pixels: torch.Tensor) -> SimpleNamespace:
        depth = (pixels.float().mean(1) + 1) / 2 * 0.8 + 0.1
        depth[:, 0, 0], depth[:, -1, -1] = 0.0, 1.0
        return SimpleNamespace(predicted_depth=depth)


class RecordedPipeline(Live2DiffPipeline):
    """A pipeline that returns recorded prompt embeddings and keeps the latents that it decodes."""

    def encode_prompt(self, style: str | None, prompt: str) -> torch.Tensor:
        return self.prompt_embeds

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.decoded += [frame.numpy().copy() for frame in latents]
        return super().decode(latents)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> RecordedPipeline:
    tokenizer = build_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    vae = AutoencoderTiny(**WIDTHS).eval()
    vae.load_state_dict(
        {key: recorded_weight(SEED, f"vae.{key}", list(w.shape)) for key, w in vae.state_dict().items()}
    )
    return RecordedPipeline(
        vae=vae,
        text_encoder=build_text_encoder(tokenizer).eval(),
        tokenizer=tokenizer,
        unet=recorded_unet("two-step"),
        scheduler=build_scheduler(),
        depth_estimator=RecordedDepth(),
    )


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def recorded(request, pipeline) -> Recorded:
    case = dict(np.load(request.param))
    pipeline.prompt_embeds = torch.from_numpy(case["prompt_embeds"][0])
    pipeline.decoded = []
    return case


def open_stream(pipeline: RecordedPipeline, recorded: Recorded, pools: CachePools | None = None) -> Stream:
    """Open a stream with the recorded settings and noise."""
    stream = pipeline.stream(
        style="",
        t_index_list=[49 - (int(timestep) - 19) // 20 for timestep in recorded["timesteps"]],  # of 50
        size=recorded["frames"].shape[1:3],
        scene_cut=None,
        pools=pools,
    )
    noise = iter(torch.from_numpy(np.nan_to_num(recorded["noise"])))
    stream.state.draw_noise = lambda shape: next(noise).reshape(shape)
    return stream


def check_latents(decoded: list[np.ndarray], recorded: Recorded) -> None:
    """Compare final latents with the recorded ones, as far as those had left the pipeline."""
    expected = recorded["final_latents"][: len(decoded)]
    known = ~np.isnan(expected).any((1, 2, 3))
    assert known.sum() >= len(decoded) - len(recorded["timesteps"]) > 0
    np.testing.assert_allclose(np.stack(decoded)[known], expected[known], atol=TOLERANCE, rtol=0)


def test_there_are_cases():
    assert CASES, f"no case-*.npz in {PIPELINE_CASES}"


def test_the_schedule_is_the_recorded_one(pipeline, recorded):
    schedule = open_stream(pipeline, recorded).schedule
    assert schedule.timesteps.tolist() == recorded["timesteps"].tolist()
    for ours, name in (
        (schedule.sqrt_alpha_bar, "alpha"),
        (schedule.sqrt_one_minus_alpha_bar, "beta"),
        (schedule.skip, "c_skip"),
        (schedule.out, "c_out"),
    ):
        np.testing.assert_allclose(ours.numpy(), recorded[name].ravel(), rtol=1e-6, atol=1e-7)


def test_a_single_stream_agrees_and_flushes_the_frames_in_flight(pipeline, recorded):
    stream, steps, count = (
        open_stream(pipeline, recorded),
        len(recorded["timesteps"]),
        len(recorded["frames"]),
    )
    images, returned = [], []
    for frame in recorded["frames"]:
        returned.append(stream.push(frame))
        images += returned[-1]
    expected = [0] * 7 + [8] + [0] * (steps - 1) + [1] * count
    assert [len(frames) for frames in returned] == expected[:count]
    images += stream.flush()
    assert len(images) == len(pipeline.decoded) == count
    check_latents(pipeline.decoded, recorded)
    known = ~np.isnan(recorded["final_latents"]).any((1, 2, 3))
    ours = np.stack(images)[known, ::2, ::2].transpose(0, 3, 1, 2).astype(int)
    assert np.abs(ours - recorded["pictures"][known]).max() <= 1  # grey levels


def test_a_flush_midway_gives_the_frames_that_were_to_come(pipeline, recorded):
    stream, count = open_stream(pipeline, recorded), WARMUP_FRAMES + 4
    pushed = sum(len(stream.push(frame)) for frame in recorded["frames"][:count])
    assert pushed + len(stream.flush()) == count
    check_latents(pipeline.decoded, recorded)


def test_a_stream_pushed_together_with_another_agrees(pipeline, recorded):
    pools = CachePools(most=2)
    other = {**recorded, "frames": recorded["frames"][::-1], "noise": recorded["noise"][::-1]}
    streams = [open_stream(pipeline, case, pools) for case in (other, recorded)]
    decoded = []
    for frames in list(zip(other["frames"], recorded["frames"], strict=True))[:TOGETHER]:
        waves = [streams] if streams[0].warm else [streams[:1], streams[1:]]
        for wave in waves:
            pipeline.decoded = []
            pending = [stream.receive(frames[streams.index(stream)]) for stream in wave]
            images = [unwrap(result) for result in push_together(pending)][-1]
            if streams[1] in wave and images:
                decoded += pipeline.decoded[-len(images) :]
    check_latents(decoded, recorded)


@pytest.mark.parametrize("recorded", CASES[:1], indirect=True)
def test_another_noise_is_noticed(pipeline, recorded):
    """The comparison can fail: noise of the first frame for all of them is far outside the tolerance."""
    noise = np.broadcast_to(recorded["noise"][:1], recorded["noise"].shape)
    stream = open_stream(pipeline, {**recorded, "noise": noise})
    for frame in recorded["frames"][:WARMUP_FRAMES]:
        stream.push(frame)
    with pytest.raises(AssertionError, match="Mismatched"):
        check_latents(pipeline.decoded, recorded)
