"""Call streams and clips on workers, for the front's engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from ..config import MAX_DENOISING_STEPS, WARMUP_FRAMES
from ..errors import StreamClosed
from ..serving.sessions import QueuedFrame
from ..streaming.settings import StreamSettings
from .remote_worker import RemoteWorker, WorkerLost
from .worker import Reply

MOST_MOVES = 3  # without an image in between: a stream that crashes every worker must be ended


@dataclass(frozen=True, eq=False)
class FrameCall:
    """A frame on its way to a worker and back."""

    queued: QueuedFrame
    reply: Future[Reply]


class RemoteStream:
    """One viewer's stream on one worker, where `stream_id` has a place.

    Not thread-safe. Calls on a lost worker raise `WorkerLost`.
    """

    def __init__(self, worker: RemoteWorker, stream_id: str, settings: StreamSettings) -> None:
        self.worker, self.settings, self.stream_id = worker, settings, stream_id
        self.frames_in, self.frames_out, self.warm, self.ignored_words = 0, 0, False, ""
        self.calls: deque[FrameCall] = deque()  # pushed and not delivered, oldest first
        # As `Session.in_flight`, for a stream that takes over.
        self.in_flight: deque[QueuedFrame | None] = deque()
        self._turns = count()
        self._opened: Future = Future()
        self._is_open = False
        self._closed: Future | None = None
        self.began = 0.0  # when a hand-over to it began
        self.token = worker.announced.token if worker.announced else ""  # of the worker process
        self._slow_until = WARMUP_FRAMES  # in `frames_out`: the first frames compile

    def open(self, recent: Sequence[bytes]) -> None:
        """Open it on the worker, warmed up from recent frames; on failure, give its place back."""
        self.begin_open(recent)
        self._finish_open()

    def begin_open(self, recent: Sequence[bytes]) -> Future:
        """Begin to open it; frames may be sent at once."""
        self._opened = self.call(True, "open", self.settings, list(recent))
        return self._opened

    def _finish_open(self) -> None:
        try:
            self.ignored_words, self.frames_in, self.frames_out, self.warm = self._opened.result()
        except BaseException:
            self.close()
            raise
        self.in_flight = deque([None] * (self.frames_in - self.frames_out))

    def catch_up(self) -> bool:
        """Take the replies for frames that another stream has delivered; return whether one has an image.

        If so, this stream may take over. It may still be behind the other one: see `skip`.
        """
        if not self._opened.done():
            return False
        if not self._is_open:
            self._finish_open()
            self._is_open = True
        has_image = False
        while self.calls and self.calls[0].reply.done() and self.calls[0].queued.result.done():
            call = self.calls.popleft()
            has_image |= self.skip(call.queued, call.reply.result())
        return has_image

    def skip(self, queued: QueuedFrame, reply: Reply) -> bool:
        """Take the reply for a frame that another stream has delivered; return whether it has an image."""
        if not reply.was_replaced:
            self.in_flight.append(queued)
        return bool([self.in_flight.popleft() for _ in self.take_reply(reply)])

    def open_clip(self) -> None:
        """Open it for a clip, whose frames are arrays, not JPEGs."""
        try:
            self.ignored_words = self.call(True, "open_clip", self.settings).result()
        except BaseException:
            self.close()
            raise

    def send(self, queued: QueuedFrame) -> FrameCall:
        """Push a frame's JPEG; the reply comes later."""
        is_slow = self.frames_out <= self._slow_until
        call = FrameCall(queued, self.call(is_slow, "push", queued.frame))
        self.calls.append(call)
        return call

    def take_reply(self, reply: Reply) -> list[bytes]:
        """Count a reply; return a JPEG for each finished frame, all but the last one empty."""
        self.frames_in, self.warm = reply.frames_in, reply.warm
        self.frames_out += reply.finished
        return [b""] * (reply.finished - 1) + [reply.jpeg] if reply.finished else []

    def update(self, settings: StreamSettings, blend: int) -> None:
        """Change the settings."""
        self.ignored_words = self.call(True, "update", settings, blend).result()
        self.settings = settings
        self._slow_until = self.frames_out + WARMUP_FRAMES  # another number of steps compiles

    def restart(self) -> None:
        """Warm up again from the last frames."""
        self.call(True, "restart").result()
        self._slow_until = self.frames_out + WARMUP_FRAMES  # the next frame warms up

    def close(self) -> None:
        """Free the stream and give back its place."""
        wait_for([self.begin_close()])

    def begin_close(self) -> Future:
        """Begin to free the stream and to give back its place."""
        if self._closed is None:
            self._closed = self.call(True, "close")
            self._closed.add_done_callback(lambda _: self.worker.give_back(self.stream_id))
        return self._closed

    def call(self, compiles: bool, name: str, *arguments: Any) -> Future:
        """Call a method of `worker.Worker` for this stream, after its former calls; the last is `close`."""
        assert self._closed is None, f"{name} of a closed stream"
        deadlines = self.worker.deadlines
        deadline = deadlines.compiling if compiles else deadlines.frame
        return self.worker.call(
            deadline, "call", self.token, self.stream_id, next(self._turns), name, *arguments
        )


class RemoteClip:
    """The stream of a clip, with one image for each frame even if workers are lost.

    Args:
        connect: waits for a worker and opens the stream there; avoids processes with the given tokens.
    """

    def __init__(self, connect: Callable[[Collection[str]], RemoteStream]) -> None:
        self._connect = connect
        self._stream = connect(())
        self.ignored_words = self._stream.ignored_words
        # Pushed again to another worker: the frames of a warmup, and those that have no image yet.
        self._recent: deque[np.ndarray] = deque(maxlen=WARMUP_FRAMES + MAX_DENOISING_STEPS)
        self.frames_in = self.frames_out = self._moves = 0

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Push a frame; return the finished ones."""
        self._recent.append(frame)
        self.frames_in += 1
        return self._count(self._call("push_clip", frame))

    def flush(self) -> list[np.ndarray]:
        """Return the frames in flight."""
        return self._count(self._call("flush_clip"))

    def close(self) -> None:
        """Free the stream."""
        self._stream.close()

    def _call(self, name: str, *arguments: Any) -> list[np.ndarray]:
        """Call a method; if the worker is lost, push the recent frames to another one instead."""
        try:
            return self._result(name, *arguments)
        except (WorkerLost, StreamClosed) as error:
            reason = str(error)
        failed: set[str] = set()
        while True:
            self._stream.close()
            self._moves += 1
            if self._moves > MOST_MOVES:
                raise RuntimeError(f"The clip was given up after {self._moves} workers: {reason}.")
            failed.add(self._stream.token)
            self._stream = self._connect(failed)
            try:
                frames = [out for frame in self._recent for out in self._result("push_clip", frame)]
                # The images before these have been returned.
                owed = frames[len(self._recent) - (self.frames_in - self.frames_out) :]
                return owed + (self._result(name) if name == "flush_clip" else [])
            except (WorkerLost, StreamClosed) as error:
                reason = str(error)

    def _result(self, name: str, *arguments: Any) -> list[np.ndarray]:
        return self._stream.call(True, name, *arguments).result()

    def _count(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        self.frames_out += len(frames)
        self._moves = 0 if frames else self._moves
        return frames
