"""Figures of `python -m live2diff.evaluation` with known values, the variants, and the command."""

import json
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
import torch

from live2diff.evaluation import measure as measuring
from live2diff.evaluation.__main__ import main
from live2diff.evaluation.figures import (
    change_in_percent,
    colour_statistics,
    depth_error,
    edge_agreement,
    find_edges,
    find_motion,
    style_distances,
    style_features,
    there_and_back,
    warp_error,
)
from live2diff.evaluation.measure import evaluate_style, make_scene, measure, measure_drift, translate_alone
from live2diff.evaluation.report import averages, record_row, summaries, summary_rows
from live2diff.evaluation.variants import VARIANTS, variant
from live2diff.model.unet import StreamUNet
from live2diff.streaming.images import resize
from live2diff.streaming.settings import StreamSettings
from live2diff.training.targets import RULES as TARGETS

STYLE = next(iter(TARGETS))
SIDE = 96
STEP = (2, 3)  # pixels a frame, down and right


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft coloured blobs of some ten pixels."""
    random = np.random.default_rng(seed)
    return resize(random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8), (height, width))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def moving() -> list[np.ndarray]:
    """A clip in which everything moves by STEP."""
    frames, (down, right) = 12, STEP
    picture = texture(SIDE + down * frames, SIDE + right * frames)
    corners = [(down * (frames - i), right * (frames - i)) for i in range(frames)]
    return [np.ascontiguousarray(picture[y : y + SIDE, x : x + SIDE]) for y, x in corners]


@pytest.fixture(scope="module")
def motions(moving):
    return [find_motion(before, after) for before, after in pairwise(moving)]


def test_the_flow_is_the_known_shift(motions):
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for motion in motions:
        flow = (motion.origin - np.dstack([x, y]))[motion.valid]
        np.testing.assert_allclose(np.median(flow, axis=0), (-STEP[1], -STEP[0]), atol=0.1)
        assert motion.valid[8:, 8:].mean() > 0.95
        assert not motion.valid[:, 0].any() and not motion.valid[0].any()  # these came in from outside


def test_what_moves_along_has_no_warp_error_and_what_stays_on_the_screen_has(moving, motions):
    assert warp_error(moving, motions) < 0.01
    assert warp_error([255 - picture for picture in moving], motions) < 0.01  # another style of it, as steady
    assert warp_error([moving[0]] * len(moving), motions) > 0.05


def test_warp_error_of_known_pictures(moving, motions):
    still = [motion._replace(origin=motions_of_nothing(SIDE)) for motion in motions]
    flickering = [noise(seed) for seed in range(len(moving))]
    assert warp_error(flickering, still) == pytest.approx(1 / 3, rel=0.02)  # E|a - b| of uniform a and b
    blinking = [np.full((SIDE, SIDE, 3), 51 * (i % 2), np.uint8) for i in range(len(moving))]
    assert warp_error(blinking, motions) == pytest.approx(0.2, rel=1e-4)


def motions_of_nothing(side: int) -> np.ndarray:
    return np.dstack(np.meshgrid(np.arange(side), np.arange(side))).astype(np.float32)


def test_what_was_hidden_is_left_out():
    """A square moves 12 pixels to the right over a still ground: what it uncovers was not seen before."""
    ground, square = texture(SIDE, SIDE), texture(40, 40, seed=1)
    before, after = ground.copy(), ground.copy()
    before[28:68, 20:60], after[28:68, 32:72] = square, square
    motion = find_motion(before, after)
    uncovered, elsewhere = motion.valid[30:66, 21:30], motion.valid[:, 76:]
    assert uncovered.mean() < 0.2 and elsewhere.mean() > 0.95
    painted = after.copy()
    painted[30:66, 20:32][~motion.valid[30:66, 20:32]] = 255  # invalid pixels do not count
    assert warp_error([before, painted], [motion]) == warp_error([before, after], [motion])


def test_depth_is_compared_whatever_its_scale_and_shift():
    depth = cv2.GaussianBlur(np.random.default_rng(0).random((32, 32)), (0, 0), 3)
    variance = ((depth - depth.min()) / np.ptp(depth)).var()
    assert depth_error(depth, 7 * depth - 3) < 1e-9
    assert depth_error(depth, -depth) == depth_error(depth, np.ones_like(depth)) == pytest.approx(variance)
    assert (
        0.01 * variance
        < depth_error(depth, depth + 0.3 * np.random.default_rng(1).random((32, 32)))
        < variance
    )


def test_edges_are_compared_whatever_their_contrast():
    picture = texture(SIDE, SIDE)
    edges = find_edges(picture)
    assert edge_agreement(edges, edges) == pytest.approx(1)
    assert edge_agreement(edges, find_edges(255 - picture // 3)) > 0.98
    assert edge_agreement(edges, find_edges(np.roll(picture, 1, axis=1))) > 0.9
    assert abs(edge_agreement(edges, find_edges(texture(SIDE, SIDE, seed=1)))) < 0.2
    assert edge_agreement(edges, find_edges(np.full_like(picture, 9))) == 0


def test_each_target_is_nearest_to_itself(moving):
    features = {name: style_features(map(target, moving)) for name, target in TARGETS.items()}
    features["source"] = style_features(moving)
    for name, own in features.items():
        distances = style_distances(own, features)
        assert distances[name].max() == 0
        assert all((distance > 0).all() for other, distance in distances.items() if other != name)


def test_style_features_are_mean_colour_and_contrast():
    grey = np.zeros((32, 32, 3), np.uint8)
    grey[:, ::2] = 255  # half black, half white: mean 0.5 in each channel, deviation 0.5
    np.testing.assert_allclose(style_features([grey]), 0.5, atol=1e-3)


@pytest.mark.parametrize(("frames", "at_least"), [(1, 80), (2, 80), (9, 100), (64, 600), (900, 600)])
def test_a_clip_played_there_and_back_ends_as_it_began(frames, at_least):
    order = there_and_back(frames, at_least)
    assert at_least <= len(order) < 2 * at_least
    assert order[8:40] == order[-32:]
    assert min(order) == order[0] == 0 and max(order) < frames
    assert max(np.abs(np.diff(order))) <= 1  # no jumps
    if frames <= at_least // 2 - 20:
        assert set(order) == set(range(frames))


def test_drift_in_percent():
    picture = np.random.default_rng(0).integers(20, 200, (SIDE, SIDE, 3)).astype(np.uint8)
    first = colour_statistics(picture)
    assert not change_in_percent(first, first).any()
    brighter = colour_statistics(np.round(picture * 1.1).astype(np.uint8))
    np.testing.assert_allclose(change_in_percent(first, brighter), 10, atol=0.1)  # mean and deviation alike


class Fading:
    """A stream that returns frames as they are, two pushes late, or a little darker each time."""

    def __init__(self, factor: float):
        self.factor, self.count, self.held, self.warm = factor, 0, [], True

    def push(self, frame):
        self.held.append((frame * self.factor**self.count).astype(np.uint8))
        self.count += 1
        return [self.held.pop(0)] if len(self.held) > 2 else []

    def flush(self):
        return self.held

    def close(self):
        pass


def test_the_drift_of_a_stream_is_its_own_and_not_the_clips(tiny_pipeline, moving, monkeypatch):
    images = [np.clip(frame * (0.5 + 0.05 * i), 0, 255).astype(np.uint8) for i, frame in enumerate(moving)]
    scene = make_scene(tiny_pipeline, images, StreamSettings(size=SIDE))  # the clip itself grows brighter
    monkeypatch.setattr(type(tiny_pipeline), "stream", lambda self, settings: Fading(1.0))
    steady = measure_drift(tiny_pipeline, scene, STYLE, StreamSettings(), 100)
    assert steady["drift_percent"] == 0 and steady["frames"] >= 100
    monkeypatch.setattr(type(tiny_pipeline), "stream", lambda self, settings: Fading(0.999))
    fading = measure_drift(tiny_pipeline, scene, STYLE, StreamSettings(), 100)
    expected = 100 * (0.999 ** (fading["frames"] - 40) - 1)
    np.testing.assert_allclose(fading["mean_percent"], expected, atol=0.7)  # whole grey values


def test_the_target_itself_and_the_source_itself_get_perfect_figures(tiny_pipeline, moving):
    scene = make_scene(tiny_pipeline, moving, StreamSettings(size=SIDE))
    target = measure(tiny_pipeline, scene, STYLE, [TARGETS[STYLE](image) for image in scene.images])
    assert target["nearest"] == STYLE and target["style_distance"] == 0
    assert target["own_style_nearest"] == target["own_style_frames"] == 1
    source = measure(tiny_pipeline, scene, STYLE, scene.images)
    assert source["nearest"] == "source" and source["own_style_nearest"] == source["own_style_frames"] == 0
    assert source["edge_agreement"] == pytest.approx(1) and source["depth_error"] < 1e-6


def test_an_output_without_memory_has_seen_no_other_frame(tiny_pipeline, moving):
    settings = StreamSettings(style=STYLE, size=32)
    scene = make_scene(tiny_pipeline, moving, settings)
    alone = translate_alone(tiny_pipeline, scene, settings, 2)
    assert list(alone) == [8, 9, 10, 11]  # two pairs after the warmup
    for index, image in alone.items():
        outputs = tiny_pipeline([scene.images[index]] * 8, **settings.model_dump())
        np.testing.assert_array_equal(image, outputs[7])
    assert translate_alone(tiny_pipeline, scene, settings, 0) == {}


def test_a_style_without_a_target_goes_without_its_figures(tiny_pipeline, moving, monkeypatch):
    others = {name: target for name, target in TARGETS.items() if name != STYLE}
    monkeypatch.setattr(measuring, "available_targets", lambda: others)
    scene = make_scene(tiny_pipeline, moving, StreamSettings(size=32))
    found = list(evaluate_style(tiny_pipeline, scene, STYLE, StreamSettings(), ["model"], 1))
    assert [name for name, *_ in found] == ["model"]  # and no target
    record = {"clip": "clip.mp4", "style": STYLE, "variant": "model", **found[0][1]}
    assert record["seams"] > 0 and {"lag", "moving_structure"} <= record.keys()
    assert not {"style_distance", "perceptual_distance", "own_style_nearest"} & record.keys()
    assert record_row(record).endswith("no target")
    (average,), (summary, _) = averages([record]), summaries([record], [])
    assert (
        average["style_distance"] is summary["warp_error_to_target"] is summary["own_style_nearest"] is None
    )
    assert "- " in list(summary_rows([summary]))[1]


def run(pipeline, frames, name: str = "model") -> np.ndarray:
    """Translate the clip by that variant of the pipeline."""
    with variant(pipeline, name):
        return np.stack(pipeline(frames, prompt="a cat", seed=3))


@pytest.fixture(scope="module")
def whole(tiny_pipeline, moving) -> np.ndarray:
    return np.stack(tiny_pipeline(moving, prompt="a cat", seed=3))


def test_without_motion_is_a_unet_without_motion_modules(tiny_pipeline, moving, whole, monkeypatch):
    left_out = run(tiny_pipeline, moving, "without motion")
    unet = tiny_pipeline.unet
    never_there = StreamUNet.from_config({**unet.config, "motion_module_resolutions": ()}).eval()
    kept = {name: weight for name, weight in unet.state_dict().items() if "motion_modules" not in name}
    assert len(kept) < len(unet.state_dict())
    never_there.load_state_dict(kept)  # strict: no weight is missing or left over
    monkeypatch.setattr(tiny_pipeline, "unet", never_there)
    np.testing.assert_array_equal(left_out, np.stack(tiny_pipeline(moving, prompt="a cat", seed=3)))
    assert not np.array_equal(left_out, whole)


def test_without_depth_is_a_depth_mapping_of_zeros(tiny_pipeline, moving, whole):
    left_out = run(tiny_pipeline, moving, "without depth")
    silent = tiny_pipeline.unet.flow_conv_in.register_forward_hook(lambda module, call, output: 0 * output)
    expected = run(tiny_pipeline, moving)
    silent.remove()
    np.testing.assert_array_equal(left_out, expected)
    assert not np.array_equal(left_out, whole)


def test_without_warmup_no_later_frame_sees_the_warmup_frames(tiny_pipeline, moving, whole, monkeypatch):
    left_out = run(tiny_pipeline, moving, "without warmup")
    np.testing.assert_array_equal(left_out[:8], whole[:8])  # the first 8 are unchanged
    assert not np.array_equal(left_out[8:], whole[8:])
    caches, new_cache = [], StreamUNet.new_cache

    def remember(*arguments):
        caches.append(new_cache(*arguments))
        return caches[-1]

    monkeypatch.setattr(StreamUNet, "new_cache", remember)
    stream = tiny_pipeline.stream(prompt="a cat", seed=3)
    with variant(tiny_pipeline, "without warmup"):
        out = [output for frame in moving[:8] for output in stream.push(frame)]
        (cache,) = caches
        for tensor in (*cache.keys, *cache.values):
            tensor[:, :8] = torch.randn_like(tensor[:, :8])  # [B, 16, P, C]
        out += [output for frame in moving[8:] for output in stream.push(frame)] + stream.flush()
    np.testing.assert_array_equal(out, left_out)


def test_a_variant_leaves_no_trace(tiny_pipeline, moving, whole):
    for name in VARIANTS:
        with pytest.raises(KeyboardInterrupt), variant(tiny_pipeline, name):
            raise KeyboardInterrupt
    np.testing.assert_array_equal(np.stack(tiny_pipeline(moving, prompt="a cat", seed=3)), whole)


@pytest.fixture(scope="module")
def folder(tiny_pipeline, moving, tmp_path_factory):
    """A model in `model`, a clip `clip.mp4` and a too short one `short.mp4`."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_pipeline.save_pretrained(folder / "model")
    for name, frames in (("clip.mp4", moving), ("short.mp4", moving[:5])):
        with av.open(str(folder / name), "w") as target:
            video = target.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
            for frame in frames:
                target.mux(video.encode(av.VideoFrame.from_ndarray(frame)))
            target.mux(video.encode(None))
    return folder


def test_the_command_measures_every_variant(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    words = ["clip.mp4", "--model", "model", "--styles", STYLE, "--device", "cpu", "--size", "64x32"]
    words += [
        "--frames",
        "10",
        "--drift",
        "72",
        "--moments",
        "1",
        "--sheet",
        "sheet.png",
        "--json",
        "report.json",
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report == json.loads((folder / "report.json").read_text())
    assert report["clips"][0]["size"] == [32, 64] and report["clips"][0]["frames"] == 10
    assert [record["variant"] for record in report["records"]] == [*VARIANTS, "target"]
    for record in report["records"]:
        assert record["style"] == STYLE and set(record["distances"]) == {*TARGETS, "source"}
        assert 0 <= record["warp_error"] < 1 and -1 <= record["edge_agreement"] <= 1
        assert any(record["variant"] in line and f"{record['warp_error']:.4f}" in line for line in lines)
        assert record["perceptual_distance"] >= 0 and record["seams"] > 0 and record["lag"] in range(9)
        assert record["variant"] != "target" or record["moving_structure"] is record["still_flicker"] is None
    assert report["drift"][0]["frames"] >= 72
    assert report["summary"][0]["drift_percent"] == report["drift"][0]["drift_percent"]
    assert report["frames_per_second"] > 0 and report["threads"] == torch.get_num_threads()
    sheet = cv2.imread("sheet.png")
    assert sheet.shape[0] > 6 * 168 and sheet.std() > 10  # source, style, four variants of it
    assert main([*words, "--quick"]) == 0
    quick = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [record["variant"] for record in quick["records"]] == ["model", "target"] and not quick["drift"]
    assert 2 * 168 < cv2.imread("sheet.png").shape[0] < sheet.shape[0]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["missing.mp4"], "no file"),
        (["short.mp4"], "at least 9"),
        (["clip.mp4", "--model", "model", "--styles", "crayon"], STYLE),
        (["clip.mp4", "--moments", "-1"], "at least 0"),
        (["clip.mp4", "--frames", "3"], "at least 9"),
        (["clip.mp4", "--drift", "50"], "at least 72"),
        (["clip.mp4", "--sheet", "sheet.gif"], ".png"),
        (["clip.mp4", "--json", "nowhere/report.json"], "does not exist"),
        (["clip.mp4", "--model", "no-such-model"], "no-such-model"),
        (["clip.mp4", "--model", "model", "--size", "4096"], "4096"),
        (["clip.mp4", "--model", "model", "--t-index-list", "42,30"], "42"),
    ],
)
def test_bad_input_is_answered_in_one_line_and_code_2(folder, words, answer, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert answer in printed.err and len(printed.err.splitlines()) == 1 and printed.out == ""
