"""Serve one run in the process that has the GPU: answer the calls that come through its pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DEVICE_LOST
from ..serving.portable import ERRORS, portable
from ..streaming.settings import StreamSettings
from .channel import PipeEnd

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline
    from ..streaming.stream import Stream

TIME_OVER = "time over"
SILENCE_SECONDS = 10.0  # without a call, after which the GPU is given back


@dataclass(frozen=True)
class Job:
    """The argument of a run, pickled into its process."""

    number: int  # of the run; every message carries it
    pipe: int  # index of its pipe
    seconds: float  # how long it may last
    is_clip: bool = False  # silence does not end it


class Callee:
    """The stream of a run, which `remote_stream.RemoteStream` calls."""

    def __init__(self, pipe: Live2DiffPipeline, end_process: Callable[[int], object] | None = None) -> None:
        self._pipe, self._end_process = pipe, end_process
        self.stream: Stream | None = None

    def open(self, settings: StreamSettings, recent: list[np.ndarray]) -> None:
        """Open a stream, and warm it up from recent frames."""
        self.stream = self._pipe.stream(settings)
        for frame in recent:
            self.stream.push(frame)

    def close(self) -> None:
        """Free the stream, if there is one."""
        if self.stream is not None:
            self.stream.close()
        self.stream = None

    def answer(self, name: str, arguments: tuple, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Call a method; return its result or error, and the stream's attributes after the call."""
        owner = self if name in ("open", "close") else self.stream
        try:
            result = getattr(owner, name)(*arguments, **options)
        except ERRORS as error:
            if self._end_process is not None:
                self._end_if_lost(error, self._end_process)
            result = portable(error)
        names = ["frames_in", "frames_out", "warm"]
        if name in ("open", "update"):
            names.append("ignored_words")
        return result, {name: getattr(self.stream, name) for name in names if self.stream is not None}

    def _end_if_lost(self, error: Exception, end_process: Callable[[int], object]) -> None:
        """End the process if its GPU is lost: `spaces` would use the process for later runs."""
        from ..runtime.device import is_lost

        if isinstance(error, RuntimeError) and is_lost(self._pipe.unet.device):
            end_process(DEVICE_LOST)


def serve(
    pipe: Live2DiffPipeline,
    end: PipeEnd,
    job: Job,
    clock: Callable[[], float] = time.monotonic,
    end_process: Callable[[int], object] | None = None,
) -> Generator[str]:
    """Answer calls until the time is over, a live viewer is silent, or this generator is closed.

    If the GPU is lost, `end_process` is called with an exit code.

    Yields:
        "" after each call and at least every POLL_SECONDS, because `spaces` can end a generator only where it
        yields; at last the reason for the end.
    """
    end.forget()  # this process may have served a run that ended in the middle of a message
    callee = Callee(pipe, end_process)
    began = heard = clock()

    def is_silent() -> bool:
        return clock() - heard > SILENCE_SECONDS

    try:
        yield ""
        while True:
            call = end.receive(job.number)
            if call is not None:
                reply, heard = callee.answer(*call), clock()
                if not end.send(job.number, reply, is_silent):
                    return
            if clock() - began >= job.seconds:
                yield TIME_OVER
                return
            if call is None and is_silent() and not job.is_clip:
                yield "silent"
                return
            yield ""
    finally:
        callee.close()
