"""The endpoints for programs and the clip queue, on a model at tiny width."""

import os
import time
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.clips import frame_count, write_clip

import app
from live2diff.errors import ClipStopped
from live2diff.serving.clip_queue import ClipQueue
from live2diff.serving.temp_files import sweep
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import Cut


@pytest.fixture
def client(address, tmp_path) -> Client:
    return Client(address, verbose=False, download_files=tmp_path / "downloads")


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 25)


def test_programs_translate_a_clip_or_a_part_of_it(client, clip):
    arguments = {"clip": handle_file(clip), "style": "pencil", "prompt": "a ball", "seed": 1}
    results = [Path(client.predict(**arguments, api_name="/translate")) for _ in range(2)]
    assert frame_count(results[0]) == 25
    assert results[0].read_bytes() == results[1].read_bytes(), "the same seed gave another result"
    part = client.predict(**arguments, start=0.2, end=0.6, steps=1, strength=0.5, api_name="/translate")
    assert frame_count(part) == 10


def test_programs_read_the_styles_and_the_state_of_the_server(client, engine):
    styles = client.predict(api_name="/styles")
    assert [style["name"] for style in styles] == list(engine.styles)
    assert styles[0] == {"name": "pencil", "title": "Pencil", "needs": ""}
    health = client.predict(api_name="/health")
    assert health["device"] == "cpu" and health["capacity"] == engine.capacity
    assert {"model", "streams", "clips", "fps", "delay_p50", "delay_p95"} <= set(health)


def test_the_health_is_reported_while_a_clip_runs(client, engine, tmp_path):
    clip = write_clip(tmp_path / "long.mp4", 700)
    job = client.submit(clip=handle_file(clip), style="pencil", api_name="/translate")
    while client.predict(api_name="/health")["clips"] == 0:
        assert not job.done(), "the clip was done before its health was reported"
    for session in engine.registry.all():
        engine.close(session.key)
    with pytest.raises(AppError):
        job.result()


def test_the_endpoints_describe_their_parameters(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/translate", "/styles", "/health"}
    parameters = described["/translate"]["parameters"]
    assert [each["parameter_name"] for each in parameters] == (
        ["clip", "style", "prompt", "seed", "start", "end", "steps", "strength"]
    )
    assert [each["parameter_has_default"] for each in parameters][2:] == [True] * 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"style": "no such style"}, "pencil"),
        ({"prompt": "word " * 2000}, "10000 characters"),
        ({"start": 3, "end": 2}, "must be after the start"),
        ({"start": 99}, "no frame from 99 s on"),
        ({"steps": 9}, "must be 1, 2, 3 or 4"),
        ({"strength": -1}, "must be above 0"),
        ({"clip": None}, "There is no clip"),
        ({"clip": "text"}, "is not a video"),
        ({"clip": "playlist"}, "is not a video"),
    ],
)
def test_bad_requests_are_answered_with_a_reason_and_not_logged(
    client, clip, tmp_path, capfd, wrong, message
):
    contents = {"text": "not a video", "playlist": "#EXTM3U\n#EXTINF:9,\n/etc/hostname\n"}
    if wrong.get("clip") in contents:
        broken = tmp_path / "notes.mp4"
        broken.write_text(contents[wrong["clip"]] * 20)
        wrong = {"clip": handle_file(broken)}
    with pytest.raises(AppError, match=message):
        client.predict(**{"clip": handle_file(clip), "style": "pencil"} | wrong, api_name="/translate")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("path", ["/etc/hostname", "../../etc/hostname", str(Path(app.__file__))])
def test_a_file_that_was_not_uploaded_is_refused(address, path):
    named = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for clip in (named, {"path": path}):  # the second does not say that it is a file
        data = {"data": [clip, "pencil", "", 0, 0, 0, 0, 0]}
        answer = httpx.post(f"{address}gradio_api/call/translate", json=data).json()
        events = httpx.get(f"{address}gradio_api/call/translate/{answer['event_id']}", timeout=180).text
        assert "event: error" in events and "event: complete" not in events


def test_a_stopped_clip_keeps_what_was_made(engine, clip, tmp_path):
    jobs = ClipQueue(engine, tmp_path / "results")
    result = jobs.new_result()
    steps = jobs.run("key", clip, result, Cut(), StreamSettings(style="pencil"))
    while next(steps).written < 12:
        pass
    jobs.stop("key")
    with pytest.raises(ClipStopped):
        next(steps)
    assert frame_count(result.path) == result.frames == 12


def test_old_results_and_empty_folders_are_deleted_and_nothing_else(tmp_path):
    results = tmp_path / "results"
    for path in (
        results / "old.mp4",
        results / ".old.part.mp4",
        results / "new.mp4",
        tmp_path / "full" / "x",
    ):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for name in ("empty", "fresh"):
        (tmp_path / name).mkdir()
    long_ago = time.time() - 7200
    for path in (results / "old.mp4", results / ".old.part.mp4", tmp_path / "full", tmp_path / "empty"):
        os.utime(path, (long_ago, long_ago))
    sweep(results)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["fresh", "full", "full/x", "results", "results/new.mp4"]


def test_temporary_files_are_bounded_and_the_oldest_are_deleted_first_unless_in_use(engine, clip, tmp_path):
    jobs = ClipQueue(engine, tmp_path / "results")
    uploads = [tmp_path / name / "upload.mp4" for name in ("first", "second", "third")]
    for age, path in zip((300, 200, 100), uploads, strict=True):
        path.parent.mkdir()
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - age,) * 2)
    os.utime(clip, (time.time() - 400,) * 2)
    running = jobs.run("key", clip, jobs.new_result(), Cut(), StreamSettings(style="pencil"))
    next(running)
    jobs.most_bytes = clip.stat().st_size + 1500  # what is being written counts as well
    jobs.tidy()
    assert clip.exists() and not uploads[0].exists()
    running.close()
    jobs.most_bytes = 0
    jobs.tidy()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == 0
