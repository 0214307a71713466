"""The training of motion modules, on a base in SD 1.5's layout at tiny width and on real video files."""

import copy
import csv
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from helpers.paths import PARITY
from safetensors.torch import load_file, save_file

from live2diff import Live2DiffPipeline
from live2diff.command import run_main
from live2diff.config import WINDOW
from live2diff.loading import load_base
from live2diff.model.attention import Window
from live2diff.model.unet import StreamUNet
from live2diff.training.__main__ import build_parser, run
from live2diff.training.motion import Inputs, MotionRecipe, denoising_loss, predict_noise, train_motion
from live2diff.training.videos import VideoFolder, read_clip
from live2diff.weights.convert import added_weights, load_added
from live2diff.weights.swap import is_added

SIZE = 64


def write_video(path: Path, frames: int, width: int = 96, height: int = 80, gop: int = 6) -> None:
    """A clip whose frame number n is of the grey 40 + 2 n."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"qp": "0", "g": str(gop)})
        video.width, video.height, video.pix_fmt = width, height, "yuv444p"
        for number in range(frames):
            image = np.full((height, width, 3), 40 + 2 * number, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos, of which one is broken and one too short, and `captions.jsonl` for them."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    write_video(folder / "a.mp4", 40)
    write_video(folder / "more" / "b.mkv", 50, 80, 96)
    write_video(folder / "short.mp4", 20)
    write_video(folder / "uncaptioned.mp4", 8)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    names = ("a.mp4", "more/b.mkv", "short.mp4", "broken.mp4", "elsewhere.mp4")
    lines = [json.dumps({"file_name": name, "text": f"a clip called {name}"}) for name in names]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def pipeline(base) -> Live2DiffPipeline:
    """The base with new motion modules; not to be changed."""
    torch.manual_seed(1)
    return load_base(str(base), str(base / "depth"))


@pytest.fixture
def unet(pipeline) -> StreamUNet:
    """A UNet whose new motion modules and mapping, zero at first, have an effect."""
    unet, generator = copy.deepcopy(pipeline.unet), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in added_weights(unet).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return unet


def videos_of(folder: Path, stride: int = 2) -> VideoFolder:
    return VideoFolder(folder, folder / "captions.jsonl", frames=WINDOW, stride=stride, size=SIZE)


def some_inputs(clips: int = 1) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    latents, depth = torch.randn(2, clips * WINDOW, 4, 8, 8, generator=generator)
    return Inputs(latents, depth, torch.randn(clips * WINDOW, 5, 64, generator=generator))


@pytest.mark.slow
def test_training_moves_only_what_is_new_and_a_run_that_was_killed_resumes(pipeline, folder, tmp_path):
    recipe = MotionRecipe(steps=4, caption_dropout=0.5, rise_steps=2, checkpoint_every=2, workers=2)

    def run(name: str, trained: Live2DiffPipeline, recipe: MotionRecipe = recipe) -> Iterator:
        target = tmp_path / f"{name}.safetensors"
        return train_motion(trained, videos_of(folder), tmp_path / name, target, recipe)

    trained = copy.deepcopy(pipeline)
    steps = list(run("a", trained))
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert all(np.isfinite(losses["loss"]) and losses["loss"] > 0 for _, losses in steps)
    for part in ("unet", "vae", "text_encoder", "depth_estimator"):
        before = getattr(pipeline, part).state_dict()
        for name, weight in getattr(trained, part).state_dict().items():
            assert torch.equal(weight, before[name]) != (part == "unet" and is_added(name)), name
    (preview,) = (tmp_path / "a" / "previews").iterdir()
    assert cv2.imread(str(preview)).shape == (2 * SIZE, 8 * SIZE, 3)

    # Another run is killed in its fourth step; the same call resumes after the second one, as if unbroken.
    killed = run("b", copy.deepcopy(pipeline))
    begun = [next(killed) for _ in range(3)]
    killed.close()
    target = tmp_path / "b.safetensors"
    assert not target.exists()
    resumed = copy.deepcopy(pipeline)
    rest = list(run("b", resumed))
    assert begun + rest == steps[:3] + steps[2:]
    torch.testing.assert_close(
        dict(resumed.unet.state_dict()), dict(trained.unet.state_dict()), atol=0, rtol=0
    )
    assert target.read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"started with seed 0, now it is 1"):
        next(run("b", resumed, replace(recipe, seed=1)))

    saved = load_file(target)
    assert all(weight.dtype == torch.float16 for weight in saved.values())
    published = json.loads((PARITY / "two-step.json").read_text())["weights"]
    assert saved.keys() == {name for name in published if is_added(name)}
    fresh = copy.deepcopy(pipeline)
    load_added(fresh.unet, target)
    stream = fresh.stream(steps=1, size=128, seed=0)
    frames = [np.full((128, 128, 3), 90, np.uint8)] * 9
    assert len([out for frame in frames for out in stream.push(frame)]) == 9


@torch.no_grad()
def test_no_frame_sees_a_later_one_in_training(unet):
    inputs, timesteps = some_inputs(), torch.full((WINDOW,), 300)
    changed = inputs.latents.clone()
    changed[-1] += 1
    one, other = (predict_noise(unet, sample, timesteps, inputs) for sample in (inputs.latents, changed))
    torch.testing.assert_close(one[:-1], other[:-1], atol=1e-6, rtol=0)
    assert (one[-1] - other[-1]).abs().max() > 1e-2
    changed = inputs.latents.clone()
    changed[8] += 1  # the first frame behind the warmup: all later ones see it, the warmup frames do not
    difference = (predict_noise(unet, changed, timesteps, inputs) - one).abs().amax(dim=(1, 2, 3))
    assert difference[:8].max() < 1e-6 < 1e-4 < difference[8:].min()


def test_clips_of_a_batch_do_not_see_each_other_and_the_loss_is_of_the_noise(pipeline, unet):
    inputs, seen = some_inputs(clips=2), {}

    def watched(sample, timesteps, prompt_embeds, depth_latents, window):
        seen.update(sample=sample, timesteps=timesteps, window=window)
        return unet(sample, timesteps, prompt_embeds, depth_latents, window)

    with torch.no_grad():
        torch.manual_seed(5)
        loss = denoising_loss(watched, pipeline.scheduler, inputs)
        alone = [
            unet(
                seen["sample"][clip],
                seen["timesteps"][clip],
                inputs.prompt_embeds[clip],
                inputs.depth_latents[clip],
                Window.clip(WINDOW),
            )
            for clip in (slice(0, 16), slice(16, 32))
        ]
    first, second = seen["timesteps"].view(2, WINDOW).unique(dim=1).flatten().tolist()
    assert first != second  # one timestep a clip
    alpha_bar = pipeline.scheduler.alphas_cumprod[seen["timesteps"]].view(-1, 1, 1, 1)
    noise = (seen["sample"] - alpha_bar.sqrt() * inputs.latents) / (1 - alpha_bar).sqrt()
    torch.testing.assert_close(loss, (torch.cat(alone) - noise).square().mean(), rtol=1e-4, atol=0)


def test_gradient_checkpointing_changes_no_gradient(unet):
    unet.requires_grad_(False)
    learnt = added_weights(unet)
    for parameter in learnt.values():
        parameter.requires_grad_(True)
    inputs, timesteps = some_inputs(), torch.full((WINDOW,), 300)

    def gradients() -> tuple[dict[str, torch.Tensor], int]:
        """Return the gradients, and the number of values saved for them."""
        kept = []
        unet.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            predict_noise(unet, inputs.latents, timesteps, inputs).square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in learnt.items()}, sum(kept)

    expected, plenty = gradients()
    unet.enable_gradient_checkpointing()
    again, few = gradients()
    torch.testing.assert_close(again, expected)
    assert few < plenty / 2


def test_a_clip_is_every_nth_frame_from_anywhere_in_a_video(folder):
    for name, frames in (("a.mp4", 40), ("more/b.mkv", 50)):
        starts = []
        for place in (0.0, 0.3, 0.7, 0.999):
            greys = [int(image.mean().round()) for image in read_clip(folder / name, place, 16, 2)]
            numbers = [(grey - 40) / 2 for grey in greys]
            assert np.allclose(np.diff(numbers), 2, atol=1.01)  # the colours round
            starts.append(round(numbers[0]))
        assert starts[0] == 0 and starts == sorted(starts) and starts[-1] >= frames - 31 - 3
        assert len(set(starts)) > 2


def test_clips_depend_on_the_generator_alone_and_unusable_videos_are_named_once(folder, caplog):
    videos = videos_of(folder)
    assert "1, e.g. uncaptioned.mp4" in caplog.text and "1, e.g. elsewhere.mp4" in caplog.text
    caplog.clear()
    clips = [videos.sample(np.random.default_rng([0, number])) for number in range(30)]
    assert {clip.caption for clip in clips} == {"a clip called a.mp4", "a clip called more/b.mkv"}
    assert all(clip.frames.shape == (16, SIZE, SIZE, 3) for clip in clips)
    assert sorted(record.args[0] for record in caplog.records) == ["broken.mp4", "short.mp4"]
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    again = videos_of(folder)  # knows nothing of what is broken
    for number in (29, 3):
        np.testing.assert_array_equal(
            again.sample(np.random.default_rng([0, number])).frames, clips[number].frames
        )


def arguments_of(base: Path, folder: Path, work: Path, /, **changes) -> list[str]:
    options = dict(
        base=base, depth=base / "depth", videos=folder, captions=folder / "captions.jsonl", work=work
    )
    options |= dict(size=SIZE, stride=2, steps=1)
    return ["motion"] + [f"--{name.replace('_', '-')}={value}" for name, value in (options | changes).items()]


def train(arguments: list[str]) -> int:
    return run_main(build_parser(), run, arguments)


@pytest.mark.slow
def test_the_command_trains_from_a_table_and_continues_from_a_result(base, folder, tmp_path, capsys):
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["a.mp4", "one, two"], ["more/b.mkv", "three"]])
    captions = tmp_path / "captions.csv"
    arguments = arguments_of(base, folder, tmp_path / "work", captions=captions, accumulate=2)
    assert train(arguments) == 0
    assert "motion     0  loss" in capsys.readouterr().out
    assert train(arguments) == 0  # nothing is left to do
    assert capsys.readouterr().out == ""
    result = tmp_path / "work" / "motion.safetensors"
    other = tmp_path / "again.safetensors"
    assert train([*arguments, f"--work={tmp_path / 'again'}", f"--out={other}"]) == 0
    assert other.read_bytes() == result.read_bytes()  # the seed decides everything
    more = arguments_of(base, folder, tmp_path / "more", start_from=result, out=tmp_path / "more.safetensors")
    assert train([*more, "--gradient-checkpointing"]) == 0
    one, other = load_file(result), load_file(tmp_path / "more.safetensors")
    assert all((weight - other[name]).abs().max() < 2e-3 for name, weight in one.items())


def test_mistakes_are_reported_in_one_line_and_end_with_code_2(base, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.jsonl").write_text('{"file_name": "x.mp4", "text": "a dog"}\n')
    (tmp_path / "prose.txt").write_text("x.mp4: a dog\n")
    (tmp_path / "fields.jsonl").write_text('{"name": "a.mp4", "caption": "a dog"}\n')
    for changes, expected in (
        (dict(videos=tmp_path / "nowhere"), "no folder"),
        (dict(videos=tmp_path / "empty"), "no video in"),
        (dict(captions=tmp_path / "nothing.csv"), "no file"),
        (
            dict(captions=tmp_path / "other.jsonl"),
            "the folder has 'a.mp4', for example, and the file 'x.mp4'",
        ),
        (dict(captions=tmp_path / "prose.txt"), "neither JSON lines"),
        (dict(captions=tmp_path / "fields.jsonl"), "Entry 1 of fields.jsonl lacks 'file_name'"),
        (dict(base=tmp_path / "nowhere"), "no model"),
        (dict(base=tmp_path / "empty"), "empty"),
        (dict(size=100), "multiple of 64"),
        (dict(stride=20), "None of the 4 videos"),
        (dict(start_from=folder / "broken.mp4"), "no checkpoint"),
    ):
        assert train(arguments_of(base, folder, tmp_path / "work", **changes)) == 2, changes
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("python -m live2diff.training: ") and expected in message, message
    for arguments in ([], ["motion"], arguments_of(base, folder, tmp_path / "work", steps=0)):
        with pytest.raises(SystemExit) as stopped:
            train(arguments)
        assert stopped.value.code == 2


def test_weights_that_do_not_fit_are_named(base, pipeline, tmp_path):
    weights = {name: weight.detach().clone() for name, weight in added_weights(pipeline.unet).items()}
    for change, message in (
        (lambda w: w.pop("flow_conv_in.conv_in.bias"), "lacks flow_conv_in.conv_in.bias"),
        (lambda w: w.update({"flow_conv_in.grid": torch.zeros(1)}), "unknown parameters flow_conv_in.grid"),
        (lambda w: w.update({"flow_conv_in.conv_in.bias": torch.zeros(3)}), r"has the shape \[3\]"),
    ):
        wrong = dict(weights)
        change(wrong)
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match=message):
            load_added(pipeline.unet, tmp_path / "wrong.safetensors")

    broken = tmp_path / "base"
    shutil.copytree(base, broken)
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({n: w for n, w in weights.items() if n != "conv_in.weight"}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks conv_in\.weight: it is"):
        load_base(str(broken), str(base / "depth"))
    save_file(weights | {"conv_in.scale": torch.ones(1)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has unknown parameters conv_in\.scale"):
        load_base(str(broken), str(base / "depth"))
