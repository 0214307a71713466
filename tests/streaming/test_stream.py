"""A stream equals slow, obvious computations of the same thing."""

import av
import numpy as np
import pytest
import torch

from live2diff.config import WARMUP_FRAMES
from live2diff.model.attention import Window
from live2diff.model.depth import DepthRange, depth_pictures, inverse_depth
from live2diff.model.lcm import add_noise, denoise
from live2diff.model.unet import StreamUNet
from live2diff.streaming.images import resize
from live2diff.streaming.settings import StreamSettings
from live2diff.streaming.stream import noise_source
from live2diff.video.translate import translate


def clip(frames: int, height: int = 32, width: int = 32, seed: int = 0) -> list[np.ndarray]:
    """Return a drifting coloured pattern, different for each seed."""
    random = np.random.default_rng(seed)
    picture = resize(random.integers(0, 256, (6, 6, 3), dtype=np.uint8), (height + frames, width + frames))
    return [np.ascontiguousarray(picture[t : t + height, t : t + width]) for t in range(frames)]


def run(stream, frames) -> list[np.ndarray]:
    return [out for frame in frames for out in stream.push(frame)] + stream.flush()


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_streaming_with_the_cache_equals_one_forward_over_the_clip_under_the_mask(tiny_pipeline, steps):
    check_streaming(tiny_pipeline.unet, steps)


def test_a_unet_may_have_only_its_last_motion_module(tiny_pipeline):
    whole = tiny_pipeline.unet
    unet = StreamUNet.from_config({**whole.config, "motion_module_last_only": True}).eval()
    kept = unet.state_dict().keys()
    modules = {name.split(".temporal_transformer")[0] for name in kept if ".motion_modules." in name}
    assert modules == {f"up_blocks.1.motion_modules.{len(whole.up_blocks[1].resnets) - 1}"}
    unet.load_state_dict({name: weight for name, weight in whole.state_dict().items() if name in kept})
    assert len(unet.new_cache(1, 8, 12).keys) == 2 < len(whole.new_cache(1, 8, 12).keys)
    check_streaming(unet, steps=2)


@torch.no_grad()
def check_streaming(unet: StreamUNet, steps: int) -> None:
    frames = 28
    latents, depth = torch.randn(2, steps, frames, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    embeds = torch.randn(1, 5, 64).expand(frames, -1, -1)
    timesteps = torch.tensor([700, 500, 300, 100])[:steps]
    expected = torch.stack(
        [
            unet(latents[r], timesteps[r].expand(frames), embeds, depth[r], Window.clip(frames))
            for r in range(steps)
        ]
    )

    cache = unet.new_cache(steps, 8, 12)
    warm = slice(0, WARMUP_FRAMES)
    for r in range(steps):
        timestep = timesteps[r].expand(WARMUP_FRAMES)
        out = unet(latents[r, warm], timestep, embeds[warm], depth[r, warm], Window.warmup(), cache.row(r))
        torch.testing.assert_close(out, expected[r, warm], atol=2e-5, rtol=0)
    for call in range(frames - WARMUP_FRAMES + steps - 1):
        frame_of_row = torch.tensor([WARMUP_FRAMES + call - r for r in range(steps)])
        valid = (frame_of_row >= WARMUP_FRAMES) & (frame_of_row < frames)
        index = frame_of_row.clamp(0, frames - 1)
        rows = torch.arange(steps)
        sample = torch.where(
            valid.view(-1, 1, 1, 1), latents[rows, index], 1e3
        )  # an empty row must not matter
        window = Window.stream(cache.count)
        out = unet(sample, timesteps, embeds[:steps], depth[rows, index], window, cache)
        cache.count += valid
        torch.testing.assert_close(out[valid], expected[rows, index][valid], atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_the_stream_batch_equals_denoising_the_clip_step_by_step(tiny_pipeline, steps):
    """Compare push and flush with denoising all frames at once, one step after the other."""
    pipeline, frames, seed = tiny_pipeline, 20, 5
    source = clip(frames)
    stream = pipeline.stream(style="comic", prompt="a cat", seed=seed, steps=steps)
    out = np.stack(run(stream, source))

    schedule = stream.schedule
    pictures = torch.from_numpy(np.stack(source)).permute(0, 3, 1, 2).float() / 127.5 - 1
    clean = pipeline.encode(pictures)
    depth = torch.cat([inverse_depth(pipeline.depth_estimator, picture[None]) for picture in pictures])
    depth_range = DepthRange()
    parts = [depth[:WARMUP_FRAMES], *depth[WARMUP_FRAMES:].split(1)]
    normalised = torch.cat([depth_range.normalise(part) for part in parts])
    depth_latents = pipeline.encode(depth_pictures(normalised, (32, 32)))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.stack([torch.randn(steps, *clean.shape[1:], generator=generator) for _ in range(frames)])
    embeds = pipeline.encode_prompt("comic", "a cat").expand(frames, -1, -1)
    for step in range(steps):
        sample = add_noise(schedule, step, clean, noise[:, step])
        timesteps = schedule.timesteps[step].expand(frames)
        output = pipeline.unet(sample, timesteps, embeds, depth_latents, Window.clip(frames))
        clean = denoise(schedule, step, sample, output)
    expected = ((pipeline.decode(clean).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert len(out) == frames
    assert np.abs(out.astype(np.float32) - expected).max() < 1.0  # one grey level: the rounding to uint8


def test_two_streams_fed_in_turn_equal_the_same_two_alone(tiny_pipeline):
    settings = [
        dict(style="pencil", prompt="a dog", seed=1, steps=2),
        dict(style="neon", prompt="", seed=2, steps=3),
    ]
    clips = [clip(22, seed=1), clip(22, 48, 32, seed=2)]
    alone = [run(tiny_pipeline.stream(**s), frames) for s, frames in zip(settings, clips, strict=True)]
    streams = [tiny_pipeline.stream(**s) for s in settings]
    together = [[], []]
    for pair in zip(*clips, strict=True):
        for out, stream, frame in zip(together, streams, pair, strict=True):
            out += stream.push(frame)
    for out, stream in zip(together, streams, strict=True):
        out += stream.flush()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(np.stack(a), np.stack(b))


def test_the_seed_determines_the_output(tiny_pipeline):
    first, again, other = (np.stack(run(tiny_pipeline.stream(seed=seed), clip(12))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_same_frames_give_the_same_file_every_time(tmp_path):
    """The encoder must be deterministic too: with macroblock trees, x264 differed in one file of fifty."""
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"qp": "0"})
        video.width, video.height, video.pix_fmt = 96, 64, "yuv444p"
        for frame in clip(12, 64, 96):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())

    class Through:
        def push(self, frame: np.ndarray) -> list[np.ndarray]:
            return [frame]

        def flush(self) -> list[np.ndarray]:
            return []

    files = set()
    for _ in range(8):
        list(translate(Through(), source, target))
        files.add(target.read_bytes())
    assert len(files) == 1
    assert b" mbtree=0 " in files.pop()  # x264 writes its settings into the file


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("frames", [0, 1, 5, 8, 9, 11, 14])
def test_every_frame_in_gives_one_frame_out_of_its_size(tiny_pipeline, frames, steps):
    stream = tiny_pipeline.stream(steps=steps)
    sizes = [(33 + index, 47) for index in range(frames)]
    out, counts = [], []
    for height, width in sizes:
        finished = stream.push(np.full((height, width, 3), 90, np.uint8))
        counts.append(len(finished))
        out += finished
    expected = [0] * 7 + [8] + [0] * (steps - 1) + [1] * 20
    assert counts == expected[:frames]
    out += stream.flush()
    assert [picture.shape[:2] for picture in out] == sizes
    assert stream.frames_in == stream.frames_out == frames
    assert stream.flush() == []


@pytest.mark.parametrize("pushed", [7, 8, 10, 12])
def test_restart_update_and_flush_at_every_fill_level_lose_no_frame(tiny_pipeline, pushed):
    source = clip(18)
    for action in (
        lambda stream: stream.restart(),
        lambda stream: stream.update(prompt="a house", style="oil", blend=3),
        lambda stream: (stream.update(style="neon", blend=0), stream.restart()),
    ):
        stream = tiny_pipeline.stream(steps=4, style="pencil")
        counts = [len(stream.push(frame)) for frame in source[:pushed]]
        action(stream)
        counts += [len(stream.push(frame)) for frame in source[pushed:]]
        assert counts == [0] * 7 + [8] + [0] * 3 + [1] * 7  # no gap and no burst
        assert len(stream.flush()) == 3
    stream = tiny_pipeline.stream(steps=4)
    out = [picture for frame in source[:pushed] for picture in stream.push(frame)] + stream.flush()
    assert len(out) == pushed
    out += [picture for frame in source[pushed:] for picture in stream.push(frame)] + stream.flush()
    assert len(out) == len(source)


def test_a_restart_fills_the_cache_from_the_last_eight_frames_only(tiny_pipeline):
    """After different pasts, the same last 8 frames and a restart, the caches are the same."""
    caches = []
    for seed in (1, 2):
        stream = tiny_pipeline.stream(steps=1, seed=0)
        for frame in clip(12, seed=seed) + clip(12, seed=3):
            stream.push(frame)
        stream.restart()
        stream.state.depth_range = DepthRange(torch.tensor(0.0), torch.tensor(1.0))
        for frame in stream.state.recent:
            frame.depth_latents = torch.zeros_like(frame.depth_latents)
        stream.push(clip(1, seed=4)[0])
        caches.append(stream.state.cache)
    for a, b in zip(caches[0].keys, caches[1].keys, strict=True):
        torch.testing.assert_close(a[:, :9], b[:, :9])
    assert caches[0].count.tolist() == [1]


def test_an_update_takes_effect_from_the_next_frame_and_ends_at_the_new_prompt(tiny_pipeline):
    source = clip(24)
    changed, kept = (tiny_pipeline.stream(style="pencil", steps=1) for _ in range(2))
    for frame in source[:12]:
        np.testing.assert_array_equal(np.array(changed.push(frame)), np.array(kept.push(frame)))
    changed.update(style="neon", blend=4)
    for index, frame in enumerate(source[12:]):
        assert (changed.push(frame)[0] != kept.push(frame)[0]).any()
        target = tiny_pipeline.encode_prompt("neon", "")
        assert torch.allclose(changed.state.prompt.embeds, target, atol=1e-6) == (index >= 3)
    changed.restart()
    changed.push(source[0])
    torch.testing.assert_close(
        changed.state.prompt.embeds, tiny_pipeline.encode_prompt("neon", "")
    )  # the current prompt


def test_strength_and_steps_choose_where_a_stream_begins(tiny_pipeline):
    assert tiny_pipeline.indices(None, None) == [30, 40]  # its own
    assert tiny_pipeline.indices(1, None) == [30]
    assert tiny_pipeline.indices(3, None) == [30, 35, 40]
    assert tiny_pipeline.indices(None, 1.0) == [0, 40]
    assert tiny_pipeline.indices(1, 0.01) == [49]
    assert tiny_pipeline.indices(4, 0.2) == [37, 38, 39, 40]  # begins early enough for four
    for strength in (0.0, -1.0, 1.1):
        with pytest.raises(ValueError, match="strength"):
            tiny_pipeline.stream(strength=strength)


def test_bad_input_is_named_and_changes_nothing(tiny_pipeline):
    for settings, words in (
        (dict(style="cubist"), "no style 'cubist'.*pencil"),
        (dict(steps=5), "1, 2, 3 or 4"),
        (dict(t_index_list=[40, 30]), "40, 30.*increasing"),
        (dict(t_index_list=[60]), "from 0 to 49"),
        (dict(size=100000), "out of range"),
        (dict(prompt="x" * 5000), "5000 characters"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_pipeline.stream(**settings)
    stream = tiny_pipeline.stream()
    for bad in (
        None,
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="frame"):
            stream.push(bad)
    with pytest.raises(ValueError, match="no style"):
        stream.update(style="cubist", prompt="a dog")
    assert (stream.settings, stream.frames_in) == (StreamSettings(), 0)
    assert stream.ignored_words == ""
    stream.update(prompt="cat " * 100)
    assert stream.ignored_words.startswith("cat cat")
    stream.close()
    stream.close()
    with pytest.raises(RuntimeError, match="closed"):
        stream.push(clip(1)[0])


def test_a_saved_pipeline_loads_again_and_computes_the_same(tiny_pipeline, tmp_path):
    import live2diff

    tiny_pipeline.save_pretrained(tmp_path)
    assert list(tmp_path.glob("unet/*.safetensors")) and not list(tmp_path.glob("**/*.bin"))
    loaded = live2diff.load(str(tmp_path), device="cpu")
    frames = clip(10)
    expected, out = (np.stack(run(pipeline.stream(seed=1), frames)) for pipeline in (tiny_pipeline, loaded))
    assert np.abs(expected.astype(int) - out).max() <= 1  # channels-last sums in another order


@pytest.mark.parametrize("is_fixed", [False, True])
def test_noise_follows_the_seed_and_is_new_in_each_frame_unless_it_is_fixed(is_fixed):
    draw, again, other = (noise_source(seed, is_fixed, torch.device("cpu")) for seed in (3, 3, 4))
    first, second = draw((2, 8)), draw((2, 8))
    assert torch.equal(first, second) == is_fixed
    assert torch.equal(again((2, 8)), first) and not torch.equal(other((2, 8)), first)


@pytest.fixture
def with_fixed_noise(tiny_pipeline):
    tiny_pipeline.register_to_config(fixed_noise=True)
    yield tiny_pipeline
    tiny_pipeline.register_to_config(fixed_noise=False)


def test_with_fixed_noise_equal_frames_give_equal_outputs(with_fixed_noise):
    frame = np.full((32, 32, 3), 90, np.uint8)
    stream = with_fixed_noise.stream(steps=1, size=32)
    outputs = [out for _ in range(40) for out in stream.push(frame)]
    stream.close()
    assert np.abs(outputs[-1].astype(int) - outputs[-2]).max() <= 1
    with_fixed_noise.register_to_config(fixed_noise=False)
    stream = with_fixed_noise.stream(steps=1, size=32)
    outputs = [out for _ in range(40) for out in stream.push(frame)]
    stream.close()
    assert np.abs(outputs[-1].astype(int) - outputs[-2]).max() > 1
