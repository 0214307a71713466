"""A folder of clips on a local Ray with two workers; without Ray only what is said then."""

import importlib.util
import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers.clips import numbers, write_clip
from helpers.folders import CopyingTranslator, results
from helpers.paths import ROOT

from live2diff.__main__ import main
from live2diff.cluster import folder as module
from live2diff.cluster.folder import translate_in_rounds
from live2diff.cluster.ray_session import WorkerResources, ray_session, worker_resources
from live2diff.video.folder import ClipJob, ClipOutcome, find_jobs

needs_ray = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ray", "pyarrow"))), reason="Ray is not installed"
)


@pytest.fixture(scope="module")
def resources() -> Iterator[WorkerResources]:
    """Two workers on a Ray of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
        with ray_session("local"):
            yield replace(worker_resources("local"), workers=2)


def clips(folder: Path, **frames: int) -> Path:
    folder.mkdir()
    for name, count in frames.items():
        write_clip(folder / f"{name}.mp4", count)
    return folder


def run(resources: WorkerResources, folder: Path, out: Path, **options: str) -> Generator[ClipOutcome]:
    jobs, _ = find_jobs(folder, out)
    return translate_in_rounds(resources, jobs, partial(CopyingTranslator, **options))


@needs_ray
@pytest.mark.slow
def test_broken_clips_and_dead_workers_cost_one_clip_each(resources, tmp_path: Path):
    folder, out = clips(tmp_path / "in", a=3, deadly=5, once=5, z=2), tmp_path / "out"
    (folder / "broken.mp4").write_text("no video")
    outcomes = {outcome.source.stem: outcome for outcome in run(resources, folder, out)}
    assert {name: outcome.frames for name, outcome in outcomes.items()} == {
        "a": 3,
        "broken": 0,
        "deadly": 0,
        "once": 5,
        "z": 2,
    }
    assert "not a video" in str(outcomes["broken"].error)
    assert outcomes["deadly"].error == "its worker died, in 4 attempts."
    assert outcomes["once"].error is None and len(numbers(out / "once.mp4")) == 5
    assert {"a.mp4", "once.mp4", "z.mp4"} <= set(results(out)) and "deadly.mp4" not in results(out)


@needs_ray
@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_where_it_was(resources, tmp_path: Path):
    folder, out = clips(tmp_path / "in", a=2, b=3, c=4, d=5), tmp_path / "out"
    outcomes = run(resources, folder, out)
    first = next(outcomes).source.stem
    outcomes.close()
    done = {name: (out / name).stat().st_mtime_ns for name in results(out)}
    assert f"{first}.mp4" in done
    rest = {outcome.source.stem for outcome in run(resources, folder, out)}
    assert rest | {name[0] for name in done} == set("abcd") and first not in rest
    assert results(out) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert (out / f"{first}.mp4").stat().st_mtime_ns == done[f"{first}.mp4"]
    assert len(numbers(out / "d.mp4")) == 5


@needs_ray
@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_run(resources, tmp_path: Path):
    folder = clips(tmp_path / "in", a=2, b=2)
    with pytest.raises(ValueError, match=r"^there is no such style$"):
        list(run(resources, folder, tmp_path / "out", error="there is no such style"))


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
    assert "pip install '.[cluster]' in the repository's folder" in capsys.readouterr().err


def test_a_single_clip_needs_no_cluster(tmp_path: Path, capsys):
    clip = write_clip(tmp_path / "a.mp4", 2)
    assert main([str(clip), str(tmp_path / "out.mp4"), "--cluster", "local"]) == 2
    assert "translates folders" in capsys.readouterr().err


def test_a_clip_and_a_link_to_it_are_two_clips(tmp_path: Path, monkeypatch):
    folder = clips(tmp_path / "in", a=2)
    (folder / "b.mp4").symlink_to(folder / "a.mp4")
    jobs, _ = find_jobs(folder, tmp_path / "out")

    def run_round(_: object, jobs: dict[str, ClipJob], make: object) -> Iterator[tuple[str, ClipOutcome]]:
        yield from ((source, ClipOutcome(job.source, 2)) for source, job in jobs.items())

    monkeypatch.setattr(module, "run_round", run_round)
    outcomes = translate_in_rounds(WorkerResources({}, 1), jobs, lambda: None)
    assert [outcome.source.name for outcome in outcomes] == ["a.mp4", "b.mp4"]
