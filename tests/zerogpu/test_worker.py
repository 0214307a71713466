"""One run in the process that has the GPU, called step by step by a clock that the test moves."""

import multiprocessing
from typing import Any, cast

import numpy as np
import pytest
from helpers.gpu_visits import Clock
from helpers.waiting import PATIENCE

from live2diff.errors import NonFiniteError, StreamOutOfMemory
from live2diff.runtime import device
from live2diff.streaming.settings import StreamSettings
from live2diff.zerogpu.channel import PipePool
from live2diff.zerogpu.worker import SILENCE_SECONDS, Job, portable, serve

FRAME = np.zeros((32, 32, 3), np.uint8)
SETTINGS = StreamSettings(style="pencil", steps=1)


class Caller:
    """The main process: sends a call, and takes the answer of the run's next step."""

    def __init__(self, pipe, seconds: float = 60.0, is_clip: bool = False, end_process=None) -> None:
        pool, self.clock = PipePool(1), Clock()
        self.end = pool.ends[0][0]
        self.run = serve(pipe, pool.ends[0][1], Job(1, 0, seconds, is_clip), self.clock, end_process)
        assert next(self.run) == "", "a run begins with a heartbeat"

    def __call__(self, name: str, *arguments: object, beat: str = "") -> tuple:
        self.end.send(1, (name, arguments, {}), lambda: False)
        assert next(self.run) == beat
        return self.end.receive(1)


def test_a_run_answers_calls_and_yields_heartbeats_in_silence(tiny_pipeline):
    call = Caller(tiny_pipeline)
    _, attributes = call("open", SETTINGS, [FRAME] * 8)
    assert (attributes["frames_in"], attributes["warm"], attributes["ignored_words"]) == (8, True, "")
    frames, attributes = call("push", FRAME)
    assert len(frames) == 1 and (attributes["frames_in"], attributes["frames_out"]) == (9, 9)
    assert next(call.run) == ""
    call.run.close()


def test_the_stream_is_closed_with_the_run(tiny_pipeline, monkeypatch):
    streams = []
    original = tiny_pipeline.stream
    monkeypatch.setattr(tiny_pipeline, "stream", lambda *args: streams.append(original(*args)) or streams[-1])
    call = Caller(tiny_pipeline)
    call("open", SETTINGS, [])
    call.run.close()
    with pytest.raises(RuntimeError, match="closed"):
        streams[0].push(FRAME)


def test_a_run_ends_when_its_time_is_over(tiny_pipeline):
    call = Caller(tiny_pipeline, seconds=60.0)
    call.clock.now += 59.0
    call("open", SETTINGS, [FRAME] * 8)
    call.clock.now += 1.0
    assert len(call("push", FRAME, beat="time over")[0]) == 1, "what was sent in time is answered"
    assert list(call.run) == []


def test_a_silent_viewer_gives_the_gpu_back_and_a_clip_keeps_it(tiny_pipeline):
    call = Caller(tiny_pipeline)
    call.clock.now += SILENCE_SECONDS
    call("open", SETTINGS, [])
    call.clock.now += SILENCE_SECONDS
    assert next(call.run) == ""
    call.clock.now += 1.0
    assert list(call.run) == ["silent"]
    call = Caller(tiny_pipeline, is_clip=True)
    call.clock.now += SILENCE_SECONDS + 1
    assert next(call.run) == ""
    call.run.close()


def test_an_error_keeps_its_type_across_processes_and_the_run_goes_on(tiny_pipeline):
    call = Caller(tiny_pipeline)
    error, _ = call("open", StreamSettings(style="no such style"), [])
    assert type(error) is ValueError and "no style" in str(error)
    call("open", SETTINGS, [])
    error, attributes = call("push", FRAME.astype(float))
    assert type(error) is ValueError and attributes["frames_in"] == 0
    assert call("push", FRAME)[1]["frames_in"] == 1
    call.run.close()


@pytest.mark.parametrize("lost", [True, False])
def test_a_process_whose_gpu_is_lost_ends_and_serves_no_other_run(tiny_pipeline, monkeypatch, lost):
    codes: list[int] = []
    call = Caller(tiny_pipeline, end_process=codes.append)
    call("open", SETTINGS, [FRAME] * 8)

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device, "is_lost", lambda _: lost)
    hook = tiny_pipeline.unet.register_forward_pre_hook(fail)
    error, _ = call("push", FRAME)
    hook.remove()
    assert "illegal memory access" in str(error) and codes == [3] * lost
    call.run.close()


def test_a_process_that_is_kept_serves_its_next_run_after_half_a_message():
    pool, clock = PipePool(1), Clock()
    first, index = pool.take()
    here, there = pool.ends[index]
    assert not here.send(first, np.zeros(3_000_000, np.uint8), lambda: True), "the run is over before its end"
    context = multiprocessing.get_context("fork")
    ended, sent = context.Event(), context.Event()

    def serve_twice() -> None:
        """Receive what is there of a frame in one run, and the only call of the next."""
        for number in (first, first + 1):
            run = serve(cast(Any, None), there, Job(number, index, 60.0), clock)
            assert [next(run), next(run)] == ["", ""]
            run.close()
            ended.set()
            assert sent.wait(PATIENCE)

    process = context.Process(target=serve_twice, daemon=True)
    process.start()
    assert ended.wait(PATIENCE)
    pool.give_back(index)
    assert pool.take() == (first + 1, index)
    assert here.send(first + 1, ("close", (), {}), lambda: False)
    sent.set()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert here.receive(first + 1) == (None, {})


def test_errors_are_made_picklable():
    from torch import OutOfMemoryError

    class Odd(FileNotFoundError):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} {two}")

    assert type(portable(OutOfMemoryError("CUDA out of memory"))) is StreamOutOfMemory
    assert type(portable(NonFiniteError("NaN"))) is NonFiniteError
    assert (type(portable(Odd(1, 2))), str(portable(Odd(1, 2)))) == (OSError, "1 2")
    assert type(portable(RuntimeError("x"))) is RuntimeError
