"""The side of the main process: a run on a lent GPU, and the stream that lives in it."""

import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import GpuSessionOver, StreamClosed
from ..streaming.settings import StreamSettings
from .channel import PipeEnd
from .worker import Job


class Run:
    """One use of a GPU, from asking for it to giving it back.

    Attributes:
        job: what its process is started with.
        ends: when its time is over; None before it begins.
        opened: the result of opening its first stream.
        stop: set to have it end.
        unreachable: set once nobody answers calls any more.
        done: set when all is given back.
        error: what broke it off, such as the words of `spaces` that the quota is used up.
    """

    def __init__(self, job: Job, end: PipeEnd) -> None:
        self.job, self._end = job, end
        self.ends: float | None = None
        self.opened: Future[str] = Future()
        self.stop, self.unreachable, self.done = threading.Event(), threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.lock = threading.Lock()  # held during a call

    def over_error(self) -> StreamClosed:
        """Return the error for calls after the run: that its time is over, or why it was broken off."""
        if self.error is None:
            return GpuSessionOver()
        return StreamClosed(str(getattr(self.error, "message", self.error)))  # `gr.Error` quotes its message

    def call(self, name: str, *arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Call a method in the other process; return what `worker.Callee.answer` does.

        Raises:
            StreamClosed: the run has ended.
        """
        with self.lock:
            is_over, reply = self.unreachable.is_set, None
            if not is_over() and self._end.send(self.job.number, (name, arguments, options), is_over):
                while reply is None and not is_over():
                    reply = self._end.receive(self.job.number)
        if reply is None:
            raise self.over_error()
        return reply


class RemoteStream:
    """A stream in the process that has the GPU; an engine uses it as it does a `Stream`.

    Each method blocks until it is done there and raises what it raises there; after the run, `StreamClosed`.
    """

    settings: StreamSettings
    ignored_words: str

    def __init__(self, run: Run, settings: StreamSettings, recent: list[np.ndarray]) -> None:
        self.frames_in, self.frames_out, self.warm = 0, 0, False
        self._run = run
        self._call("open", settings, recent)

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Push a frame; return the finished ones."""
        return self._call("push", frame)

    def update(self, settings: StreamSettings, blend: int) -> None:
        """Change the settings."""
        self._call("update", settings, blend=blend)

    def restart(self) -> None:
        """Warm up again from the last frames."""
        self._call("restart")

    def flush(self) -> list[np.ndarray]:
        """Return the frames in flight."""
        return self._call("flush")

    def close(self) -> None:
        """Free the stream; the run goes on."""
        with suppress(StreamClosed):
            self._call("close")

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        result, attributes = self._run.call(name, *arguments, **options)
        vars(self).update(attributes)
        if isinstance(result, Exception):
            raise result
        return result
