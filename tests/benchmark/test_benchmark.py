"""`python -m live2diff.benchmark` measures all figures, and leaves the model unchanged."""

import gc
import io
import json
import math
import weakref
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from helpers.streams import frames as clip_frames
from helpers.tiny_models import tiny_checker
from helpers.waiting import PATIENCE

import live2diff.benchmark.__main__ as benchmark
from live2diff.benchmark.__main__ import main, measure_filter, measure_long, measure_one, measure_together
from live2diff.benchmark.measure import STAGES, interleave, stage_clock
from live2diff.benchmark.models import random_filter, random_model
from live2diff.config import WARMUP_FRAMES
from live2diff.model.depth import inverse_depth
from live2diff.model.lcm import make_schedule
from live2diff.model.unet import StreamUNet
from live2diff.model.vae import decode, encode
from live2diff.serving.engine import Engine
from live2diff.streaming.content_filter import ContentFilter
from live2diff.streaming.settings import StreamSettings


@pytest.fixture(scope="module")
def printed(tiny_pipeline, tmp_path_factory) -> tuple[list[str], dict]:
    """Lines that a run prints, and the JSON file it writes."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_pipeline.save_pretrained(folder / "model")
    words = "--device cpu --size 32 --frames 2 --streams 1,2 --steps 2"
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["--model", f"{folder}/model", "--json", f"{folder}/out.json", *words.split()]) == 0
    return out.getvalue().strip().splitlines(), json.loads((folder / "out.json").read_text())


def test_the_last_line_is_the_json_and_the_others_a_table(printed):
    (*table, last), record = printed
    assert json.loads(last) == record
    assert any("img2img" in line for line in table)


def test_every_figure_is_there_and_is_a_time(printed):
    record = printed[1]
    one = record["one"]
    assert record["kind"] == "cpu" and record["device"] and record["torch"]
    assert (one["steps"], one["working_size"]) == (2, [28, 36])
    assert set(one["stages"]) == set(STAGES)
    timed = [
        one["frame"],
        *one["stages"].values(),
        one["first_frame"],
        one["prompt_change"],
        one["without_cache"]["unet_cached"],
        one["without_cache"]["unet_recomputed"],
        one["img2img"]["frame"],
        *(many["round"] for many in record["together"]),
    ]
    assert all(0 < figure["p50_ms"] <= figure["p95_ms"] < math.inf for figure in timed)
    assert [many["streams"] for many in record["together"]] == [1, 2]
    assert one["cache_bytes_a_stream"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--streams", "2,0"], "--streams"),
        (["--frames", "1"], "--frames 1 is too few"),
        (["--long", "100"], "--long 100 is too few"),
        (["--model", "no/such/place"], "no/such/place"),
        (["--json", "/no/folder/out.json"], "does not exist"),
    ],
)
def test_bad_input_is_answered_in_a_line(words, message, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line and line.startswith("python -m live2diff.benchmark: ")


def test_the_clock_changes_no_frame_and_leaves_nothing_behind(tiny_pipeline):
    frames = list(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    before = set(vars(tiny_pipeline)), set(vars(tiny_pipeline.unet))
    plain = tiny_pipeline(frames, seed=1, steps=1)
    with stage_clock(tiny_pipeline) as seconds:
        timed = tiny_pipeline(frames, seed=1, steps=1)
    np.testing.assert_array_equal(plain, timed)
    assert (set(vars(tiny_pipeline)), set(vars(tiny_pipeline.unet))) == before
    assert {stage: len(taken) for stage, taken in seconds.items()} == {
        "upload": 9, "depth": 9, "encode": 10, "unet": 2, "decode": 2, "download": 2,
    }  # fmt: skip


def test_each_stage_is_timed_once_a_frame_where_frames_form_rounds(tiny_pipeline):
    clip = clip_frames(1, WARMUP_FRAMES + 3)
    engine = Engine(tiny_pipeline, capacity=1, together=True)
    try:
        engine.open("ann", StreamSettings(steps=1)).result(PATIENCE)
        for frame in clip[:WARMUP_FRAMES]:
            engine.push("ann", frame).result(PATIENCE)
        with stage_clock(tiny_pipeline) as seconds:
            for frame in clip[WARMUP_FRAMES:]:
                engine.push("ann", frame).result(PATIENCE)
    finally:
        engine.shutdown()
    assert {stage: len(taken) for stage, taken in seconds.items()} == dict.fromkeys(STAGES, 3)


def test_the_safety_checker_is_measured_in_its_real_size_if_asked_for(tiny_pipeline, monkeypatch):
    with torch.device("meta"):
        checker = random_filter(torch.device("meta"), torch.float32).checker
    assert sum(parameter.numel() for parameter in checker.vision_model.parameters()) == 303_179_776
    monkeypatch.setattr(benchmark, "random_filter", lambda *_: ContentFilter(tiny_checker()))
    measured = measure_filter(tiny_pipeline, {"p50_ms": 1.0}, [32, 32], 2)
    assert 0 < measured["ratio"] and measured["picture"]["p50_ms"] <= measured["picture"]["p95_ms"]


def test_calls_take_turns(tiny_pipeline):
    order = []
    taken = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, tiny_pipeline.device
    )
    assert order[-6:] == ["a", "b"] * 3
    assert [len(seconds) for seconds in taken.values()] == [3, 3]


def test_a_late_frame_is_measured_beside_an_early_one(tiny_pipeline):
    measured = measure_long(tiny_pipeline, 12, 16, StreamSettings(steps=1))
    assert measured["frames"] == [12, 16]
    assert measured["ratio"] > 0


class EagerRuntime:
    """A runtime that computes what the pipeline does without one."""

    def __init__(self, pipeline):
        self._pipeline = pipeline

    def encode(self, images):
        return encode(self._pipeline.vae, images)

    def decode(self, latents):
        return decode(self._pipeline.vae, latents)

    def inverse_depth(self, images):
        return inverse_depth(self._pipeline.depth_estimator, images)

    def takes(self, window, cache):
        return False


def test_one_viewer_is_measured_with_one_cache_at_a_time(tiny_pipeline, monkeypatch):
    """Two of the full model's do not fit on a GPU of 12 GB; the runtime's rival shares the viewer's."""
    alive, counts, new_cache = weakref.WeakSet(), [], StreamUNet.new_cache

    def counted(*arguments, **named):
        cache = new_cache(*arguments, **named)
        gc.collect()
        alive.add(cache)
        counts.append(len(alive))
        return cache

    monkeypatch.setattr(StreamUNet, "new_cache", counted)
    monkeypatch.setattr(tiny_pipeline, "runtime", EagerRuntime(tiny_pipeline))
    measured = measure_one(tiny_pipeline, StreamSettings(steps=2), 2)
    assert measured["eager"]["ratio"] > 0
    assert len(counts) > 3 and max(counts) == 1
    counts.clear()
    assert [many["streams"] for many in measure_together(tiny_pipeline, [1], StreamSettings(), 2)] == [1]
    assert max(counts) == 1


def test_too_little_memory_is_answered_in_a_line(tiny_pipeline, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(benchmark, "open_model", lambda *arguments: (tiny_pipeline, "own"))
    monkeypatch.setattr(benchmark, "unet_calls", full)
    assert main(["--device", "cpu", "--frames", "2"]) == 2
    assert "not enough memory. Try a smaller --size" in capsys.readouterr().err


def test_the_schedule_of_a_random_model_is_computed_on_the_cpu():
    """In float64, which MPS lacks; the meta device stands for it here."""
    model = random_model("meta")
    assert model.unet.device.type == "meta"
    assert make_schedule(model.scheduler, [900]).timesteps.device.type == "cpu"
    assert model.scheduler.alphas_cumprod.device.type == "cpu"
