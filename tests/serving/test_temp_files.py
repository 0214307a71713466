"""Temporary files: which ones are deleted, and that sweeping goes on after an error."""

import os
import threading

from helpers.waiting import PATIENCE

from live2diff.serving import temp_files
from live2diff.serving.temp_files import keep_tidy, sweep


def test_a_disk_that_is_away_for_a_moment_does_not_end_the_sweeping(monkeypatch):
    monkeypatch.setattr(temp_files, "SWEEP_SECONDS", 0.0)
    again, calls = threading.Event(), []

    def tidy() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise OSError("Input/output error")
        again.set()

    keep_tidy(tidy, lambda: not again.is_set())
    assert again.wait(PATIENCE)


def test_a_file_that_cannot_be_deleted_does_not_keep_the_others(tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    files = [tmp_path / f"upload-{number}" for number in range(3)]
    for age, file in enumerate(files):
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 + age, 1e9 + age))
    unlink = type(tmp_path).unlink

    def refuse(path, *options) -> None:
        if path == files[0]:
            raise PermissionError("another user's")
        unlink(path, *options)

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    sweep(results, most_bytes=200)
    assert [file.exists() for file in files] == [True, False, True]
