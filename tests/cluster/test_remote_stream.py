"""A stream that takes over from another, seen from the front, with replies that the test gives."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is an extra: pip install '.[cluster]'")

from live2diff.cluster.remote_stream import RemoteStream
from live2diff.cluster.remote_worker import Deadlines
from live2diff.cluster.worker import Reply
from live2diff.serving.sessions import QueuedFrame
from live2diff.streaming.settings import StreamSettings


class Worker:
    """A worker that answers when the test wants."""

    announced, deadlines = None, Deadlines()

    def __init__(self) -> None:
        self.answers: list[Future] = []
        self.deadlines_given: list[float] = []

    def call(self, deadline: float, *_: Any) -> Future:
        self.deadlines_given.append(deadline)
        self.answers.append(Future())
        return self.answers[-1]


def test_a_stream_may_take_over_with_its_first_image_of_a_delivered_frame():
    worker: Any = Worker()
    stream = RemoteStream(worker, "stream", StreamSettings())
    stream.begin_open([b"jpeg"] * 8)
    queued = [QueuedFrame(b"jpeg", number, 0.0, Future()) for number in range(4)]
    for frame in queued:
        stream.send(frame)
    opened, *replies = worker.answers
    assert not stream.catch_up(), "it is not open yet"
    opened.set_result(("", 8, 8, True))
    replies[0].set_result(Reply(0, b"", 9, True, was_replaced=True))
    replies[1].set_result(Reply(1, b"picture", 10, True))
    assert not stream.catch_up(), "the other stream has delivered nothing"
    queued[0].result.set_result(SimpleNamespace())
    assert not stream.catch_up(), "it has no picture"
    queued[1].result.set_result(SimpleNamespace())
    assert stream.catch_up() and [call.queued for call in stream.calls] == queued[2:]


class PromptWorker(Worker):
    """A worker that answers at once."""

    def call(self, deadline: float, *_: Any) -> Future:
        super().call(deadline)
        self.answers[-1].set_result("")
        return self.answers[-1]


@pytest.mark.parametrize("change", ["update", "restart"])
def test_frames_have_more_time_after_a_change_that_may_compile_or_warm_up(change):
    worker: Any = PromptWorker()
    stream = RemoteStream(worker, "stream", StreamSettings(steps=1))
    limits = worker.deadlines

    def deadlines(frames: int) -> list[float]:
        for _ in range(frames):
            stream.send(QueuedFrame(b"jpeg", None, 0.0, Future()))
            stream.take_reply(Reply(1, b"picture", 1, True))
        return worker.deadlines_given[-frames:]

    assert deadlines(10) == [limits.compiling] * 9 + [limits.frame]
    if change == "update":
        stream.update(StreamSettings(steps=4), 8)
    else:
        stream.restart()
    assert deadlines(10) == [limits.compiling] * 9 + [limits.frame]
