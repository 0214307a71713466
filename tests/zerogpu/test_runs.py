"""How a run on a lent GPU is requested and ends: time, silence, closing, death, refusal."""

import json
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import pytest
from helpers.gpu_visits import Clock, both_ways, visiting
from helpers.paths import ROOT
from helpers.streams import frames
from helpers.waiting import PATIENCE, wait_for
from playwright.sync_api import sync_playwright

from live2diff.errors import ClipStopped, GpuSessionOver, StreamClosed
from live2diff.serving.clip_queue import ClipQueue
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import Cut
from live2diff.zerogpu.button import gpu_session_button
from live2diff.zerogpu.engine import ZeroGpuEngine
from live2diff.zerogpu.worker import SILENCE_SECONDS, Job

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_a_silent_viewers_session_ends_by_itself(tiny_pipeline):
    clock = Clock()
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, gpu_seconds=60.0, clock=clock)
    engine.open("ann", StreamSettings(style="pencil"))
    with visiting(engine, "ann") as over:
        wait_for(lambda: engine.registry.get("ann").stream is not None)
        assert engine.time_left("ann") == 60.0
        clock.now += SILENCE_SECONDS + 1
        assert over.wait(PATIENCE)
    assert engine.time_left("ann") == 0
    with pytest.raises(GpuSessionOver):
        engine.push("ann", frames(5, 1)[0])
    engine.shutdown()


def test_a_process_that_dies_while_it_is_written_to_leaves_nobody_waiting(tiny_pipeline):
    dead = threading.Event()

    def wrap(task: Callable, seconds: Callable) -> Callable:
        def call(job: Job) -> Iterator[str]:
            yield ""
            assert dead.wait(PATIENCE)  # and reads nothing of what is more than a pipe holds
            raise gr.Error("GPU task aborted", title="ZeroGPU worker error")  # as `spaces` reports it

        return call

    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, wrap=wrap)
    pipes = len(engine.pipes.free)
    engine.open("ann", StreamSettings(style="pencil"))
    for frame in frames(5, 9, height=700, width=900):
        waiting = engine.push("ann", frame)
    with ThreadPoolExecutor(1) as clicks:
        visit = clicks.submit(lambda: list(engine.gpu_session("ann")))
        wait_for(lambda: engine.time_left("ann"))
        dead.set()
        with pytest.raises(StreamClosed, match=r"^GPU task aborted$"):
            waiting.result(PATIENCE)
        with pytest.raises(gr.Error, match="GPU task aborted"):
            visit.result(PATIENCE)
    assert len(engine.pipes.free) == pipes and engine.session_keys() == {"ann"}
    engine.shutdown()


@both_ways
def test_closing_ends_the_session_and_gives_everything_back(engine):
    engine.open("ann", StreamSettings(style="pencil"))
    pipes = len(engine.pipes.free)
    with visiting(engine, "ann") as over:
        engine.push("ann", frames(6, 1)[0]).result(PATIENCE)
        assert len(engine.pipes.free) == pipes - 1
        engine.close("ann").result(PATIENCE)
        assert over.wait(PATIENCE)
    assert len(engine.pipes.free) == pipes and engine.session_keys() == set()
    with pytest.raises(StreamClosed):
        engine.push("ann", frames(6, 1)[0])
    engine.close("ann").result(PATIENCE)  # again does no harm


def test_a_page_that_goes_while_the_stream_is_opened_keeps_its_place(tiny_pipeline, monkeypatch):
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1)
    opening, go_on = threading.Event(), threading.Event()
    original = tiny_pipeline.stream

    def slow(*settings):
        opening.set()
        assert go_on.wait(PATIENCE)
        return original(*settings)

    monkeypatch.setattr(tiny_pipeline, "stream", slow)
    engine.open("ann", StreamSettings(style="pencil"))
    waiting = engine.push("ann", frames(7, 1)[0])
    visit = engine.gpu_session("ann")
    next(visit)
    assert opening.wait(PATIENCE) and engine.registry.get("ann").is_busy()
    run = engine.registry.get("ann").run
    run.unreachable.set()  # as if its process had died
    visit.close()
    go_on.set()
    assert run.done.wait(PATIENCE)
    with pytest.raises(GpuSessionOver):
        waiting.result(PATIENCE)
    assert engine.session_keys() == {"ann"}
    with visiting(engine, "ann"):
        engine.open("ann", StreamSettings(style="pencil"))
        assert engine.push("ann", frames(7, 1)[0]).result(PATIENCE).frames_in == 2
    engine.shutdown()


def test_a_viewer_who_vanishes_gives_back_the_gpu_and_in_time_the_place(tiny_pipeline, monkeypatch):
    clock, streams = Clock(), []
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, clock=clock)
    original = tiny_pipeline.stream

    def noted(*settings):
        streams.append(weakref.ref(stream := original(*settings)))
        return stream

    monkeypatch.setattr(tiny_pipeline, "stream", noted)
    engine.open("ann", StreamSettings(style="pencil"))
    with visiting(engine, "ann") as over:
        engine.push("ann", frames(7, 1)[0]).result(PATIENCE)
        clock.now += SILENCE_SECONDS + 1
        assert over.wait(PATIENCE)
    assert [stream() for stream in streams] == [None]
    assert engine.session_keys() == {"ann"}
    clock.now += 61.0
    engine.close_idle(60.0)
    assert engine.session_keys() == set()
    engine.shutdown()


@both_ways
def test_the_page_that_goes_ends_the_session(engine):
    engine.open("ann", StreamSettings(style="pencil"))
    visit = engine.gpu_session("ann")
    next(visit)
    run = engine.registry.get("ann").run
    assert list(engine.gpu_session("ann")) == [], "it has one already"
    visit.close()  # what Gradio does with the generator of a viewer who has gone
    assert run.done.wait(PATIENCE)
    with pytest.raises(GpuSessionOver):
        engine.push("ann", frames(7, 1)[0])


@both_ways
def test_a_clip_that_fails_or_is_cancelled_says_so_and_is_freed(engine):
    with (
        pytest.raises(ValueError, match="size"),
        engine.clip("ann/clip", StreamSettings(style="pencil", size=5000)),
    ):
        pass
    with pytest.raises(StreamClosed), engine.clip("ann/clip", StreamSettings(style="pencil")) as stream:
        stream.push(frames(10, 1)[0])
        engine.close("ann/clip")
        stream.push(frames(10, 1)[0])
    assert engine.stats()["clips"] == 0


def quota_used_up(task: Callable, seconds: Callable) -> Callable:
    """Refuse, as `spaces` does."""

    def call(job: Job) -> Iterator[str]:
        raise gr.Error("You have exceeded your quota.", title="ZeroGPU quota exceeded")
        yield

    return call


def test_the_message_of_a_refusal_reaches_the_viewer(tiny_pipeline, tmp_path):
    engine = ZeroGpuEngine(tiny_pipeline, wrap=quota_used_up)
    engine.open("ann", StreamSettings(style="pencil"))
    waiting = engine.push("ann", frames(11, 1)[0])
    with pytest.raises(gr.Error, match="quota"):  # which the page shows
        list(engine.gpu_session("ann"))
    for refused in (waiting.result, lambda _: engine.push("ann", frames(11, 1)[0])):
        with pytest.raises(StreamClosed, match=r"^You have exceeded your quota\.$") as error:
            refused(PATIENCE)
        assert not isinstance(error.value, GpuSessionOver), "there was no GPU whose time could be over"
    jobs = ClipQueue(engine, tmp_path)
    with pytest.raises(ClipStopped, match=r"^You have exceeded your quota\.$"):
        for _ in jobs.run(
            "bob", ROOT / "examples" / "room.mp4", jobs.new_result(), Cut(0, 1), StreamSettings()
        ):
            pass
    engine.open("ann", StreamSettings(style="pencil"))
    assert engine.time_left("ann") is None
    engine.shutdown()


def test_a_stream_that_cannot_be_opened_there_fails_the_frame_that_waits(engine):
    with pytest.raises(ValueError, match="no style"):
        engine.open("ann", StreamSettings(style="no such style"))
    assert engine.session_keys() == set()
    engine.open("ann", StreamSettings(style="pencil", size=5000))  # only the pipeline checks that
    waiting = engine.push("ann", frames(12, 1)[0])
    with visiting(engine, "ann") as over:
        with pytest.raises(ValueError, match="size"):
            waiting.result(PATIENCE)
        assert over.wait(PATIENCE)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_hidden_button_holds_the_gpu_until_the_page_is_closed(tiny_pipeline):
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1)
    with gr.Blocks() as demo:
        gpu_session_button(engine)
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    engine.open("ann", StreamSettings(style="pencil", steps=1))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(url)
        button = page.locator("#visit")
        button.wait_for(state="attached")
        page.evaluate("window.live2diffVisit = 'ann'")
        button.dispatch_event("click")
        answers = [
            engine.push("ann", frame, tag=tag).result(PATIENCE) for tag, frame in enumerate(frames(0, 9))
        ]
        assert answers[-1].tag == 8
        run = engine.registry.get("ann").run
        page.close()
        assert run.done.wait(PATIENCE)
        browser.close()
    demo.close()
    engine.shutdown()


@pytest.mark.slow
def test_a_space_in_zerogpu_mode_asks_once_for_each_gpu_session_and_clip_and_gives_back(tiny_pipeline):
    """See zerogpu_space.py: `spaces` itself, but for its scheduler and the weights' way to the GPU."""
    pytest.importorskip("spaces")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "helpers" / "zerogpu_space.py"],
        capture_output=True,
        text=True,
        timeout=400,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout + done.stderr
    result = json.loads(lines[0].removeprefix("RESULT "))
    assert result["device"] == "cuda:0", "the weights were loaded as if there were a GPU"
    assert result["tags"] == [None] * 7 + [7, 8, 9, 10, 11]
    assert result["over"] and result["continued"] == ["on", True] and result["free"]
    assert len(result["clips"]["felt"]) == 12 and result["clips"]["felt"] != result["clips"]["plain"]
    assert "content filter" in result["about"] and result["changed"] != result["clips"]["felt"][:1]
    calls = [(path, query.get("durationSeconds")) for path, query in result["calls"]]
    scheduled = [int(seconds) for path, seconds in calls if path == "/schedule"]
    assert scheduled[:2] == [33, 33] and len(scheduled) == 4
    assert all(13 <= seconds <= 33 for seconds in scheduled[2:]), "by the measured time of a frame"
    assert [path for path, _ in calls].count("/release") == 4
