"""`python -m live2diff.benchmark`: it measures all that it says it does, and leaves the model as it was."""

import io
import json
import math
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny_checker

import live2diff.benchmark.__main__ as measuring
from live2diff.benchmark.__main__ import main, measure_filter, measure_long
from live2diff.benchmark.measure import STAGES, interleave, stage_clock
from live2diff.benchmark.models import random_filter
from live2diff.streaming.content_filter import ContentFilter


@pytest.fixture(scope="module")
def printed(tiny_pipeline, tmp_path_factory) -> tuple[list[str], dict]:
    """What one run of it prints, and the JSON file it writes."""
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
    stages = sum(stage["p50_ms"] for stage in one["stages"].values())
    assert stages <= 2 * one["frame"]["p95_ms"]
    assert [many["streams"] for many in record["together"]] == [1, 2]
    assert one["cache_bytes_a_stream"] > 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--frames", "1"], "--frames 1 is too few"),
        (["--long", "100"], "--long 100 is too few"),
        (["--model", "no/such/place"], "no/such/place"),
        (["--json", "/no/folder/out.json"], "does not exist"),
    ],
)
def test_bad_input_is_told_in_a_line(words, told, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


def test_the_clock_changes_no_picture_and_leaves_nothing_behind(tiny_pipeline):
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


def test_the_safety_checker_is_measured_in_its_real_size_if_asked_for(tiny_pipeline, monkeypatch):
    with torch.device("meta"):
        checker = random_filter(torch.device("meta"), torch.float32).checker
    assert sum(parameter.numel() for parameter in checker.vision_model.parameters()) == 303_179_776
    monkeypatch.setattr(measuring, "random_filter", lambda *_: ContentFilter(tiny_checker()))
    measured = measure_filter(tiny_pipeline, 1.0, [32, 32], 2)
    assert 0 < measured["ratio"] and measured["picture"]["p50_ms"] <= measured["picture"]["p95_ms"]


def test_calls_take_turns(tiny_pipeline):
    order = []
    taken = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, tiny_pipeline.device
    )
    assert order[-6:] == ["a", "b"] * 3
    assert [len(seconds) for seconds in taken.values()] == [3, 3]


def test_a_late_frame_is_measured_beside_an_early_one(tiny_pipeline):
    measured = measure_long(tiny_pipeline, 12, 16, {"steps": 1})
    assert measured["frames"] == [12, 16]
    assert measured["ratio"] > 0
