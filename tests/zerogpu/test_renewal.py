"""Runs follow each other while the viewer stays and the quota lasts; long clips take several."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from helpers.gpu_visits import Clock, in_forked_process, visiting
from helpers.streams import alone, assert_same, frames
from helpers.waiting import PATIENCE, wait_for

from live2diff.errors import GpuSessionOver, StreamClosed
from live2diff.runtime import trial
from live2diff.streaming.settings import StreamSettings
from live2diff.zerogpu.engine import CLIP_MARGIN, ZeroGpuEngine, wrap_gpu
from live2diff.zerogpu.quota import CHARGED, GPU_SECONDS, seconds_left, words_of
from live2diff.zerogpu.worker import Job

CHANGES = {"style": "pencil", "steps": 1, "seed": 1}
SETTINGS = StreamSettings(**CHANGES)
LEFT = "You have exceeded your free ZeroGPU quota (50s requested vs. {}s left). Try again in 3:00:00."


class Lender:
    """Lends GPUs by `wrap`, notes for how long each was asked, and refuses those of `refusals`, by number."""

    def __init__(self, wrap: Callable = wrap_gpu, refusals: dict[int, str] | None = None):
        self.wrap, self.refusals, self.asked = wrap, refusals or {}, []

    def __call__(self, task: Callable, seconds: Callable[[Job], int]) -> Callable:
        lent = self.wrap(task, seconds)

        def call(job: Job) -> Iterator[str]:
            self.asked.append(seconds(job))
            if words := self.refusals.get(len(self.asked)):
                raise gr.Error(words, title="ZeroGPU quota exceeded")
            yield from lent(job)

        return call


def test_one_run_requests_less_than_half_of_the_daily_quota_without_an_account():
    assert CHARGED * (GPU_SECONDS + 8) < 60


def test_a_run_whose_time_is_over_is_renewed_while_the_viewer_stays(tiny_pipeline):
    clock, lender, clip = Clock(), Lender(), frames(1, 14)
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, wrap=lender, clock=clock)
    engine.open("ann", SETTINGS)
    with visiting(engine, "ann") as over:
        outs = [engine.push("ann", frame).result(PATIENCE) for frame in clip[:10]]
        clock.now += GPU_SECONDS + 1
        wait_for(lambda: len(lender.asked) == 2)
        later = [engine.push("ann", frame, tag=tag).result(PATIENCE) for tag, frame in enumerate(clip[10:])]
        assert not over.is_set() and 0 < engine.time_left("ann") <= GPU_SECONDS
    assert lender.asked == [33, 33] and len(engine.pipes.free) == len(engine.pipes.ends)
    assert [answer.tag for answer in later] == [0, 1, 2, 3] and all(answer.warm for answer in later)
    assert_same([out for answer in outs for out in answer.frames], alone(tiny_pipeline, clip[:10], **CHANGES))
    # From the last 8 frames on, as after any GPU session.
    expected = alone(tiny_pipeline, clip[2:], **CHANGES)[8:]
    assert_same([out for answer in later for out in answer.frames], expected)
    engine.shutdown()


def test_a_frame_that_meets_the_end_of_a_run_is_shown_by_the_next(tiny_pipeline, monkeypatch):
    clock, lender, clip = Clock(), Lender(), frames(2, 10)
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, wrap=lender, clock=clock)
    engine.open("ann", SETTINGS)
    call, met = engine.call, []

    def too_late(session, name, *arguments, **options):
        if name == "push" and arguments[0] is clip[8] and not met:
            met.append(name)
            clock.now += GPU_SECONDS + 1
            raise GpuSessionOver
        return call(session, name, *arguments, **options)

    monkeypatch.setattr(engine, "call", too_late)
    with visiting(engine, "ann"):
        for frame in clip[:8]:
            engine.push("ann", frame).result(PATIENCE)
        answer = engine.push("ann", clip[8], tag="late").result(PATIENCE)
        assert (answer.tag, answer.warm, len(lender.asked)) == ("late", True, 2)
        assert engine.push("ann", clip[9], tag="on").result(PATIENCE).tag == "on"
    engine.shutdown()


def test_the_last_run_is_as_long_as_what_is_left_of_the_quota(tiny_pipeline):
    lender = Lender(refusals={2: LEFT.format(30), 4: LEFT.format(4)})
    clock, frame = Clock(), frames(3, 1)[0]
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, wrap=lender, clock=clock)
    engine.open("ann", SETTINGS)
    with ThreadPoolExecutor(1) as clicks:
        visit = clicks.submit(lambda: list(engine.gpu_session("ann")))
        for runs in (1, 3):
            for _ in range(9):
                engine.push("ann", frame).result(PATIENCE)
            assert len(lender.asked) == runs
            clock.now += GPU_SECONDS + 1
        with pytest.raises(gr.Error, match="4s left"):
            visit.result(PATIENCE)
    assert lender.asked == [33, 33, 19, 33], "19 s are charged as 29"
    with pytest.raises(StreamClosed, match="4s left") as error:
        engine.push("ann", frame)
    assert not isinstance(error.value, GpuSessionOver) and engine.session_keys() == {"ann"}
    engine.shutdown()


@pytest.mark.parametrize(
    ("words", "seconds"),
    [(LEFT.format(60), 31), (LEFT.format(0), -9), ("No GPU was available", None)],
)
def test_what_is_left_is_read_from_the_refusal(words, seconds):
    assert seconds_left(gr.Error(words)) == seconds


def test_a_viewer_who_has_not_signed_in_is_told_what_signing_in_gives():
    hint = "Signing in to Hugging Face gives more time a day."
    anonymous = LEFT.format(4).replace("free ", "")
    assert words_of(gr.Error(anonymous)) == f"{anonymous} {hint}"
    assert words_of(gr.Error(LEFT.format(4))) == LEFT.format(4)


@pytest.mark.parametrize("wrap", [wrap_gpu, in_forked_process], ids=["thread", "fork"])
def test_a_long_clip_takes_several_runs_and_loses_no_frame(tiny_pipeline, wrap, monkeypatch):
    clock, lender, clip = Clock(), Lender(wrap), frames(4, 20)
    engine = ZeroGpuEngine(tiny_pipeline, wrap=lender, clock=clock)
    call = engine.call

    def passing(session, name, *arguments, **options):
        if name == "push" and any(arguments[0] is clip[n] for n in (10, 15)):
            clock.now += GPU_SECONDS - CLIP_MARGIN + 0.5
        return call(session, name, *arguments, **options)

    monkeypatch.setattr(engine, "call", passing)
    with engine.clip("ann/clip", SETTINGS.updated(steps=2), frames=600) as stream:
        outs = [out for frame in clip for out in stream.push(frame)] + stream.flush()
    assert len(outs) == 20 and lender.asked == [33, 33, 33]
    changes = CHANGES | {"steps": 2}
    assert_same(outs[:10], alone(tiny_pipeline, clip[:10], flush=True, **changes))
    assert_same(outs[10:15], alone(tiny_pipeline, clip[2:15], flush=True, **changes)[8:])
    assert_same(outs[15:], alone(tiny_pipeline, clip[7:], flush=True, **changes)[8:])
    assert len(engine.pipes.free) == len(engine.pipes.ends)
    engine.shutdown()


def test_a_clip_whose_next_run_is_refused_says_so_and_keeps_what_is_done(tiny_pipeline):
    clock, lender = Clock(), Lender(refusals={2: LEFT.format(3)})
    engine = ZeroGpuEngine(tiny_pipeline, wrap=lender, clock=clock)
    outs, frame = [], frames(5, 1)[0]
    with pytest.raises(StreamClosed, match="3s left"), engine.clip("ann", SETTINGS) as stream:
        for _ in range(9):
            outs += stream.push(frame)
        clock.now += GPU_SECONDS - 1
        for _ in range(3):
            outs += stream.push(frame)
    assert len(outs) >= 8 and len(engine.pipes.free) == len(engine.pipes.ends)
    assert engine.stats()["clips"] == 0
    engine.shutdown()


def test_a_clip_requests_the_measured_time_of_its_frames(tiny_pipeline):
    lender = Lender()
    engine = ZeroGpuEngine(tiny_pipeline, wrap=lender)
    engine.frame_times.extend([0.2] * 64)
    for count in (40, 5, 10_000, None):
        with engine.clip("ann", SETTINGS, frames=count):
            pass
    assert lender.asked == [22, 13, 33, 33]  # 40 x 0.2 x 1.5 + 2 + 8; at least 5 and at most 25 and 8
    assert set(engine.frame_times) == {0.2}
    with engine.clip("ann", SETTINGS) as stream:
        for frame in frames(6, 12):
            stream.push(frame)
        stream.flush()
    assert sum(seconds != 0.2 for seconds in engine.frame_times) == 4, "those of the warm stream"
    engine.shutdown()


@pytest.mark.parametrize(("graphs", "tries"), [(True, 1), (False, 0)])
def test_the_process_with_the_gpu_captures_graphs_once(tiny_pipeline, monkeypatch, graphs, tries):
    tasks, seen = [], []
    monkeypatch.setattr(trial, "accelerate", lambda pipe, report, trial: seen.append(pipe))
    monkeypatch.setattr(trial, "short_trial", lambda pipe: pipe)
    engine = ZeroGpuEngine(tiny_pipeline, wrap=lambda task, _: tasks.append(task) or task, graphs=graphs)
    engine.pipe = SimpleNamespace(unet=SimpleNamespace(device=torch.device("cuda")))
    for number in (1, 2):
        run = tasks[0](Job(number, 0, 60.0))
        assert next(run) == "" and len(seen) == min(tries, number - 1), "the run has begun before"
        assert next(run) == ""
        run.close()
    assert seen == [engine.pipe] * tries
    engine.shutdown()
