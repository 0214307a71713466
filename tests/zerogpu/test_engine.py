"""An engine whose GPU is lent for each session: in a thread, and in a process forked as `spaces` forks it."""

import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue

import gradio as gr
import numpy as np
import pytest
from helpers.browser import wait_for
from helpers.gpu_visits import Clock, visiting
from helpers.paths import ROOT
from playwright.sync_api import sync_playwright

from live2diff.errors import ClipStopped, EngineBusy, GpuSessionOver, StreamClosed
from live2diff.serving.admission import WaitingLine
from live2diff.serving.clip_queue import ClipQueue
from live2diff.streaming.settings import StreamSettings
from live2diff.video.reader import Cut
from live2diff.zerogpu.button import gpu_session_button
from live2diff.zerogpu.engine import ZeroGpuEngine, seconds_of, wrap_gpu
from live2diff.zerogpu.worker import SILENCE_SECONDS, Job

PATIENCE = 60.0  # seconds that a condition may take
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CONTEXT = multiprocessing.get_context("fork")


def frames(seed: int, count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def alone(pipe, clip: list[np.ndarray], **settings) -> list[np.ndarray]:
    stream = pipe.stream(**settings)
    return [out for frame in clip for out in stream.push(frame)] + stream.flush()


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    assert len(first) == len(second) > 0
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left, right)


# As in spaces/zero/wrappers.py: a process forked for the call, arguments and results pickled through pipes,
# the generator in a thread there, a stop event read after each yield.


def in_forked_process(task: Callable[[Job], Generator[str]], seconds: Callable[[Job], int]) -> Callable:
    def work(arguments: SimpleQueue, results: SimpleQueue, stop) -> None:
        def iterate() -> None:
            generator = task(*arguments.get())
            for result in generator:
                if stop.is_set():
                    generator.close()
                    break
                results.put(result)

        with ThreadPoolExecutor() as executor:
            done = executor.submit(iterate)
        results.put(done.exception())

    def call(*arguments: Job) -> Iterator[str]:
        assert seconds(*arguments) > 0
        stop, asked, results = CONTEXT.Event(), SimpleQueue(ctx=CONTEXT), SimpleQueue(ctx=CONTEXT)
        process = CONTEXT.Process(target=work, args=(asked, results, stop), daemon=True)
        process.start()
        asked.put(arguments)
        try:
            while isinstance(result := results.get(), str):
                yield result
            if result is not None:
                raise result
        finally:
            stop.set()
            process.join(PATIENCE)
            assert process.exitcode == 0

    return call


both_ways = pytest.mark.parametrize(
    "engine", [wrap_gpu, in_forked_process], indirect=True, ids=["thread", "fork"]
)


@pytest.fixture
def engine(request, tiny_pipeline) -> Iterator[ZeroGpuEngine]:
    engine = ZeroGpuEngine(tiny_pipeline, capacity=3, wrap=getattr(request, "param", in_forked_process))
    pipes = len(engine.pipes.free)
    yield engine
    engine.shutdown()
    assert len(engine.pipes.free) == pipes, "a pipe was not given back"


@both_ways
def test_a_gpu_session_translates_what_is_pushed_and_names_the_frame_that_is_shown(engine, tiny_pipeline):
    clip = frames(1, 11)
    assert engine.open("ann", StreamSettings(style="pencil", seed=1)).result(PATIENCE) == ""
    assert engine.time_left("ann") is None
    with visiting(engine, "ann"):
        answers = [engine.push("ann", frame, tag=tag).result(PATIENCE) for tag, frame in enumerate(clip)]
        assert 0 < engine.time_left("ann") <= engine.gpu_seconds
        stats = engine.stats()
    expected = alone(tiny_pipeline, clip, style="pencil", seed=1)[: len(clip) - 1]  # the last is in flight
    assert_same([out for answer in answers for out in answer.frames], expected)
    assert [answer.tag for answer in answers] == [None] * 7 + [7, None, 8, 9]
    assert [answer.frames_in for answer in answers] == list(range(1, 12))
    assert answers[-1].warm
    assert (stats["streams"], stats["clips"], stats["capacity"]) == (1, 0, 3)
    assert stats["fps"] > 0 and 0 < stats["delay_p50"] <= stats["delay_p95"]


def test_before_the_gpu_session_only_the_newest_frame_waits_and_the_others_warm_it_up(engine, tiny_pipeline):
    clip = frames(2, 12)
    engine.open("ann", StreamSettings(style="pencil", steps=1)).result(PATIENCE)
    waiting = [engine.push("ann", frame, tag=tag) for tag, frame in enumerate(clip[:9])]
    assert engine.stats()["dropped"] == 8 and len(set(map(id, waiting))) == 1
    with visiting(engine, "ann"):
        answer = waiting[0].result(PATIENCE)
        assert (answer.tag, answer.warm, len(answer.frames)) == (None, True, 8) or answer.tag == 8
        assert engine.push("ann", clip[9], tag=9).result(PATIENCE).tag == 9


def test_prompt_style_and_restart_reach_a_gpu_session_that_runs(engine, tiny_pipeline):
    clip = frames(3, 12)
    engine.open("ann", StreamSettings(style="pencil", steps=1, seed=1))
    assert engine.update("ann", StreamSettings(style="pencil", prompt="a dog")).result(PATIENCE) == ""
    with visiting(engine, "ann"):
        for frame in clip[:8]:
            engine.push("ann", frame).result(PATIENCE)
        assert (
            engine.update("ann", StreamSettings(style="neon", prompt="a dog"), blend=1).result(PATIENCE) == ""
        )
        assert engine.update("ann", StreamSettings(prompt="word " * 300)).result(PATIENCE) != ""
        with pytest.raises(ValueError, match="no style"):
            engine.update("ann", StreamSettings(style="no such style")).result(PATIENCE)
        engine.update("ann", StreamSettings(style="neon", prompt="a cat"), blend=1).result(PATIENCE)
        changed = engine.push("ann", clip[8]).result(PATIENCE).frames
        engine.restart("ann").result(PATIENCE)
        assert engine.push("ann", clip[9]).result(PATIENCE).warm
        engine.open("ann", StreamSettings(style="ink", steps=2)).result(PATIENCE)  # in the same run
        assert engine.push("ann", clip[10]).result(PATIENCE).frames_in == 1
    stream = tiny_pipeline.stream(style="pencil", prompt="a dog", steps=1, seed=1)
    for frame in clip[:8]:
        stream.push(frame)
    stream.update(style="neon", prompt="a cat", blend=1)
    assert_same(changed, stream.push(clip[8]))


@both_ways
def test_a_gpu_session_that_is_over_is_continued_from_its_last_frames(tiny_pipeline, engine):
    clip = frames(4, 12)
    engine.open("ann", StreamSettings(style="pencil", steps=1, seed=1))
    with visiting(engine, "ann"):
        for frame in clip[:10]:
            engine.push("ann", frame).result(PATIENCE)
        engine.update("ann", StreamSettings(style="neon")).result(PATIENCE)
    assert engine.time_left("ann") == 0
    with pytest.raises(GpuSessionOver):
        engine.push("ann", clip[10])
    engine.open("ann", StreamSettings(style="neon", steps=1, seed=1)).result(PATIENCE)
    waiting = engine.push("ann", clip[10], tag=10)
    with visiting(engine, "ann"):
        continued = waiting.result(PATIENCE)
    assert (continued.tag, continued.warm, continued.frames_in) == (10, True, 9)
    assert_same(continued.frames, alone(tiny_pipeline, clip[2:11], style="neon", steps=1, seed=1)[-1:])
    with visiting(engine, "ann"):  # without opening it again: with the settings it had
        wait_for(lambda: engine.time_left("ann"))
        assert engine.push("ann", clip[11], tag=11).result(PATIENCE).tag == 11


def test_the_time_that_was_lent_ends_the_session_by_itself(tiny_pipeline):
    clock = Clock()
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, gpu_seconds=60.0, clock=clock)
    engine.open("ann", StreamSettings(style="pencil"))
    with visiting(engine, "ann") as over:
        wait_for(lambda: engine.time_left("ann") == 60.0)
        clock.now += 60.0
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
    clock.now += engine.idle_seconds + 1
    engine.close_idle(engine.idle_seconds)
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
def test_a_clip_comes_out_as_from_a_stream_of_its_own(engine, tiny_pipeline):
    clip = frames(8, 12)
    with engine.clip("ann/clip", StreamSettings(style="pencil", seed=1), frames=600) as stream:
        assert engine.stats()["clips"] == 1
        outs = [out for frame in clip for out in stream.push(frame)] + stream.flush()
    assert_same(outs, alone(tiny_pipeline, clip, style="pencil", seed=1))
    assert engine.stats()["clips"] == 0


@both_ways
def test_a_large_clip_keeps_its_size(engine):
    large = frames(9, 3, height=1400, width=1300)
    with engine.clip("ann/clip", StreamSettings(style="pencil", steps=1), frames=600) as stream:
        outs = [out for frame in large for out in stream.push(frame)] + stream.flush()
    assert [out.shape for out in outs] == [(1400, 1300, 3)] * 3


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


def test_a_clip_whose_time_is_over_says_so(tiny_pipeline):
    clock = Clock()
    engine = ZeroGpuEngine(tiny_pipeline, clock=clock)
    with pytest.raises(GpuSessionOver), engine.clip("ann", StreamSettings(style="pencil")) as stream:
        stream.push(frames(10, 1)[0])
        clock.now += 1000.0
        run = engine.registry.get("ann").run
        assert run is None or run.unreachable.wait(PATIENCE)
        stream.flush()
    engine.shutdown()


def test_the_gpu_is_asked_for_by_the_number_of_a_clips_frames():
    short, long = (seconds_of(Job(number=1, pipe=0, seconds=count * 0.1)) for count in (10, 600))
    assert long - short == 59


def quota_used_up(task: Callable, seconds: Callable) -> Callable:
    """Refuse, as `spaces` does."""

    def call(job: Job) -> Iterator[str]:
        raise gr.Error("You have exceeded your quota.", title="ZeroGPU quota exceeded")
        yield

    return call


def test_the_words_of_a_refusal_reach_the_viewer(tiny_pipeline, tmp_path):
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


def test_two_viewers_at_once_have_each_their_own(engine, tiny_pipeline):
    settings = {"ann": {"style": "pencil", "seed": 1}, "bob": {"style": "neon", "prompt": "a cat", "seed": 2}}
    clips = {"ann": frames(13, 9), "bob": frames(14, 9)}
    outs: dict[str, list[np.ndarray]] = {"ann": [], "bob": []}
    for key in clips:
        engine.open(key, StreamSettings(**settings[key]))
    with visiting(engine, "ann"), visiting(engine, "bob"):
        for pair in zip(clips["ann"], clips["bob"], strict=True):
            answers = [engine.push(key, frame) for key, frame in zip(clips, pair, strict=True)]
            for key, answer in zip(clips, answers, strict=True):
                outs[key] += answer.result(PATIENCE).frames
    for key in clips:
        assert_same(outs[key], alone(tiny_pipeline, clips[key], **settings[key])[:8])


def test_a_line_stands_before_it_as_before_any_engine(tiny_pipeline):
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, gpu_seconds=30.0)
    line = WaitingLine(engine)
    assert line.join("ann").position == 0
    engine.open("ann", StreamSettings(style="pencil"))
    assert line.join("bob").position == 1
    with pytest.raises(EngineBusy):
        engine.open("bob", StreamSettings(style="pencil"))
    with visiting(engine, "ann"):
        wait_for(lambda: engine.time_left("ann"))
        assert 0 < line.time_left("ann") <= 30.0
    assert line.time_left("ann") == 0
    line.leave("ann")
    assert line.join("bob").position == 0
    engine.shutdown()


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
    calls = [(path, query.get("durationSeconds")) for path, query in result["calls"]]
    visit, clip = (str(seconds_of(Job(number=1, pipe=0, seconds=seconds))) for seconds in (60, 20))
    assert [call for call in calls if call[0] == "/schedule"] == [
        ("/schedule", visit),
        ("/schedule", visit),
        ("/schedule", clip),
        ("/schedule", clip),
    ]
    assert [path for path, _ in calls].count("/release") == 4
