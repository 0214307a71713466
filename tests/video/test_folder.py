"""Folders of clips: those without a result, the failure of one clip, the summary."""

import os
from pathlib import Path

import pytest
from helpers.clips import numbers, write_clip
from helpers.folders import CopyingTranslator, results

from live2diff.errors import ClipError
from live2diff.video.folder import ClipJob, attempt, find_jobs, report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write three clips, of which `b` is broken, and files that are not clips."""
    folder = tmp_path / "in"
    (folder / "more.mp4").mkdir(parents=True)
    write_clip(folder / "a.mp4", 3)
    (folder / "b.MOV").write_text("no video")
    write_clip(folder / "c.mkv", 2)
    (folder / "notes.txt").write_text("x")
    (folder / ".c.mp4").write_text("hidden")
    return folder


def test_clips_are_found_by_their_suffix_in_order(folder: Path, tmp_path: Path):
    jobs, skipped = find_jobs(folder, tmp_path / "out")
    assert [(job.source.name, job.target.name) for job in jobs] == [
        ("a.mp4", "a.mp4"),
        ("b.MOV", "b.mp4"),
        ("c.mkv", "c.mp4"),
    ]
    assert skipped == 0 and (tmp_path / "out").is_dir()


def test_a_broken_clip_fails_alone_and_the_next_run_does_the_rest(folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    with pytest.raises(ClipError, match="1 of 3 clips failed"):
        jobs, skipped = find_jobs(folder, out)
        report(jobs, skipped, (attempt(job, CopyingTranslator()) for job in jobs))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("[1/3] a.mp4: 3 frames in ")
    assert lines[3] == "2 done, 1 failed, 0 skipped as already done"
    assert lines[4].startswith("  b.MOV: failed: b.MOV is not a video") and len(lines) == 5
    assert results(out) == ["a.mp4", "c.mp4"] and len(numbers(out / "c.mp4")) == 2
    write_clip(folder / "b.MOV", 4)
    before = (out / "a.mp4").stat()
    jobs, skipped = find_jobs(folder, out)
    report(jobs, skipped, (attempt(job, CopyingTranslator()) for job in jobs))
    assert capsys.readouterr().err.splitlines()[-1] == "1 done, 0 failed, 2 skipped as already done"
    assert len(numbers(out / "b.mp4")) == 4 and (out / "a.mp4").stat() == before
    assert find_jobs(folder, out) == ([], 3)


def test_an_interrupted_clip_is_not_done_and_the_summary_says_how_many_are_left(folder, tmp_path, capsys):
    jobs, skipped = find_jobs(folder, tmp_path / "out")

    def interrupted(job: ClipJob):
        for step in CopyingTranslator()(job):
            yield step
            if job.source.stem == "c":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(jobs, skipped, (attempt(job, interrupted) for job in jobs))
    assert "1 done, 1 failed, 0 skipped as already done, 1 left for the next run" in capsys.readouterr().err
    assert results(tmp_path / "out") == ["a.mp4"]
    assert [job.source.name for job in find_jobs(folder, tmp_path / "out")[0]] == ["b.MOV", "c.mkv"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of\nmemory"), OSError("disk")])
def test_errors_of_the_model_and_the_disk_fail_one_clip_only(error: BaseException, tmp_path: Path):
    def failing(_: ClipJob):
        raise error
        yield

    outcome = attempt(ClipJob(tmp_path / "a.mp4", tmp_path / "out.mp4"), failing)
    assert str(outcome) == f"a.mp4: failed: {' '.join(str(error).split()) or 'MemoryError'}"


def test_errors_of_the_code_are_not_hidden(tmp_path: Path):
    def wrong(_: ClipJob):
        raise TypeError("a bug")
        yield

    with pytest.raises(TypeError):
        attempt(ClipJob(tmp_path / "a.mp4", tmp_path / "out.mp4"), wrong)


def test_folders_that_cannot_be_used_are_refused_with_a_message(folder: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipError, match=r"no clip in it.*\.mp4"):
        find_jobs(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ClipError, match="another one"):
        find_jobs(folder, folder / ".." / "in")
    with pytest.raises(ClipError, match="is a file"):
        find_jobs(folder, folder / "a.mp4")
    with pytest.raises(OSError):
        find_jobs(folder, tmp_path / "no" / "such")
    os.rename(folder / "b.MOV", folder / "A.mov")
    with pytest.raises(ClipError, match=r"A.mov and a.mp4 would both become a.mp4"):
        find_jobs(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unfinished_results_of_killed_processes_are_removed(folder: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    jobs, _ = find_jobs(folder, out)
    others = [".a-mine.part.mp4", ".aa-0123abcd.part.mp4"]
    for name in [".a-0123abcd.part.mp4", ".c-89abcdef.part.mp4", *others]:
        (out / name).touch()
    jobs, skipped = find_jobs(folder, out)
    assert results(out) == sorted(others)
    for job in jobs:
        (out / f".{job.target.stem}-0123abcd.part.mp4").touch()
    report(jobs[:1], skipped, (attempt(job, CopyingTranslator()) for job in jobs[:1]))
    assert results(out) == sorted([*others, ".b-0123abcd.part.mp4", ".c-0123abcd.part.mp4", "a.mp4"])


def test_results_whose_outcome_came_too_late_are_counted(folder: Path, tmp_path: Path, capsys):
    jobs, skipped = find_jobs(folder, tmp_path / "out")

    def stopped():
        attempt(jobs[0], CopyingTranslator())  # by a worker, told to nobody yet
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        report(jobs, skipped, stopped())
    assert "1 done, 0 failed, 0 skipped as already done, 2 left for the next run" in capsys.readouterr().err
