"""A folder of clips on a local Ray with two workers; without Ray only what is said then."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers.clips import numbers, write_clip
from helpers.folders import CopyingTranslator, results
from helpers.paths import ROOT

from live2diff.__main__ import main
from live2diff.cluster.folder import translate_on_cluster
from live2diff.video.folder import ClipOutcome, find_jobs

pytestmark = pytest.mark.long

needs_ray = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ray", "pyarrow"))), reason="Ray is not installed"
)


@pytest.fixture(autouse=True)
def helpers_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))


def clips(folder: Path, **frames: int) -> Path:
    folder.mkdir()
    for name, count in frames.items():
        write_clip(folder / f"{name}.mp4", count)
    return folder


def run(folder: Path, out: Path, **options: str) -> dict[str, ClipOutcome]:
    jobs, _ = find_jobs(folder, out)
    outcomes = translate_on_cluster("local", jobs, partial(CopyingTranslator, **options))
    return {outcome.source.stem: outcome for outcome in outcomes}


@needs_ray
@pytest.mark.slow
def test_broken_clips_and_dead_workers_cost_one_clip_each(tmp_path: Path):
    folder, out = clips(tmp_path / "in", a=3, deadly=5, once=5, z=2), tmp_path / "out"
    (folder / "broken.mp4").write_text("no video")
    outcomes = run(folder, out)
    assert {name: outcome.frames for name, outcome in outcomes.items()} == {
        "a": 3,
        "broken": 0,
        "deadly": 0,
        "once": 5,
        "z": 2,
    }
    assert "not a video" in str(outcomes["broken"].error)
    assert outcomes["deadly"].error == "its worker died, in 3 attempts."
    assert outcomes["once"].error is None and len(numbers(out / "once.mp4")) == 5
    assert {"a.mp4", "once.mp4", "z.mp4"} <= set(results(out)) and "deadly.mp4" not in results(out)


@needs_ray
@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path: Path):
    folder = clips(tmp_path / "in", a=2, b=2)
    with pytest.raises(ValueError, match=r"^there is no such style$"):
        run(folder, tmp_path / "out", error="there is no such style")


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1", "nowhere:99999999"])
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, capsys, address):
    folder = clips(tmp_path / "in", a=2)
    assert main([str(folder), str(tmp_path / "out"), "--cluster", address]) == 2
    assert f"no Ray cluster at {address}" in capsys.readouterr().err


def test_without_ray_the_message_says_what_to_install(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    folder = clips(tmp_path / "in", a=2)
    assert main([str(folder), str(tmp_path / "out"), "--cluster", "local"]) == 2
    assert "pip install 'live2diff[cluster]'" in capsys.readouterr().err


def test_a_single_clip_needs_no_cluster(tmp_path: Path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 2)
    assert main([str(clip), str(tmp_path / "out.mp4"), "--cluster", "local"]) == 2
    assert "translates folders" in capsys.readouterr().err
