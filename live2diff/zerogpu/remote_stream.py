"""Call, from the main process, the stream in the process that has the GPU."""

import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import GpuSessionOver, StreamClosed
from ..streaming.settings import StreamSettings
from .channel import PipeEnd
from .quota import words_of
from .worker import Job


@dataclass(eq=False)
class Run:
    """One use of a GPU, from the request until it is given back."""

    job: Job  # the argument of its process
    pipe: PipeEnd
    ends: float | None = None  # when its time is over; None before it begins
    error: BaseException | None = None  # what refused or ended it, for example a used-up quota
    continues: bool = False  # it goes on with a clip's stream, from the last frames
    next_seconds: float | None = None  # how long the next run may last; None if there is none
    opened: Future[str] = field(default_factory=Future)  # the result of opening its first stream
    stop: threading.Event = field(default_factory=threading.Event)  # set to end it
    unreachable: threading.Event = field(default_factory=threading.Event)  # set once nobody answers calls
    done: threading.Event = field(default_factory=threading.Event)  # set once GPU and pipe are given back
    lock: threading.Lock = field(default_factory=threading.Lock)  # held during a call

    def over_error(self) -> StreamClosed:
        """Return the error for calls after the run: its time is over, or why it was broken off."""
        if self.error is None:
            return GpuSessionOver()
        return StreamClosed(words_of(self.error))

    def call(self, name: str, *arguments: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Call a method in the other process; return the result of `worker.Callee.answer`.

        Raises:
            StreamClosed: the run has ended.
        """
        with self.lock:
            is_over, reply = self.unreachable.is_set, None
            if not is_over() and self.pipe.send(self.job.number, (name, arguments, options), is_over):
                while reply is None and not is_over():
                    reply = self.pipe.receive(self.job.number)
        if reply is None:
            raise self.over_error()
        return reply


class RemoteStream:
    """A stream in the process that has the GPU, with the methods of `Stream` that an engine calls.

    Each method blocks until the call is done and raises its error; after the run, `StreamClosed`.
    """

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
