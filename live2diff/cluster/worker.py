"""Define the actor that owns one GPU, with an ordinary `Engine` on it.

Calls of one stream are numbered, because calls of an asynchronous actor may arrive out of order. Errors are
returned, not raised: Ray would wrap them in its own.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from socket import gethostname
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ..config import MAX_DENOISING_STEPS, WARMUP_FRAMES
from ..errors import DEVICE_LOST, StreamClosed, StreamOutOfMemory
from ..serving.engine import Engine
from ..serving.event_log import log
from ..serving.portable import ERRORS, portable
from ..serving.sessions import ClipStream, FrameResult, PromptHelp
from ..serving.working_size import set_work
from ..streaming.images import JPEG_QUALITY, decode_frame, encode_jpeg
from ..streaming.settings import StreamSettings
from ..styles import Style

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline

NO_MEMORY = (
    "A worker has not enough memory for the model. Close other programs that use its GPU, or take "
    "--small-memory or a smaller model (--model nano)."
)


@dataclass(frozen=True)
class Announcement:
    """The facts about a worker that is ready: its weights are loaded and its graphs compiled."""

    slots: int
    styles: dict[str, Style]
    default_style: str
    about: str
    prompt_help: PromptHelp
    size: int
    device: str
    process: int
    node: str
    token: str  # for all calls until the next announcement
    is_leaving: bool = False  # its node is about to be stopped; set by a later ping


@dataclass(frozen=True)
class Reply:
    """The result of one frame."""

    finished: int  # how many frames it finished
    jpeg: bytes  # the image of the last of them, b"" for none
    frames_in: int
    warm: bool
    was_replaced: bool = False  # by a newer frame, before the model saw it


class NotAnnounced(StreamClosed):
    """A call from before the worker's last announcement, or from before its process was restarted.

    `token` is that of the last announcement, "" before the first one.
    """

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self.token = token


Answer = tuple[Any, Exception | None]  # the result of a call, or its error


def load_engine(
    load: Callable[[], Live2DiffPipeline],
    size: int | None = None,
    steps: int | None = None,
    streams: int | None = None,
    small_memory: bool = False,
) -> Engine:
    """Load a model and make an engine for a worker; silent streams are left to the front.

    Args:
        load: returns the pipeline.
        size: working size; None for the model's own.
        steps: default denoising steps; None for the model's own.
        streams: how many viewers; None for as many as the device has room for.
        small_memory: whether caches are kept in 8 bits.

    Raises:
        ValueError, OSError: as `loading.load`.
    """
    from torch import int8  # not at import: torch takes seconds

    pipe = load()
    set_work(pipe, size, steps)
    return Engine(pipe, streams, idle_seconds=float("inf"), cache_dtype=int8 if small_memory else None)


def warm_up(engine: Engine) -> None:
    """Push some frames in the usual shape of a camera, so that its graphs are compiled."""
    engine.open("warmup", StreamSettings()).result()
    frame = np.zeros((3 * engine.size // 4, engine.size, 3), np.uint8)
    for _ in range(WARMUP_FRAMES + MAX_DENOISING_STEPS):
        engine.push("warmup", frame).result()
    engine.close("warmup").result()


class Turns:
    """Let the calls of one stream begin in the order of their numbers."""

    def __init__(self) -> None:
        self.next = 0
        # The number of the newest frame of a result: frames that replace each other share one.
        self.newest: WeakKeyDictionary[Future[FrameResult], int] = WeakKeyDictionary()
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, number: int) -> AsyncIterator[None]:
        """Wait for the turn of a number; the next one comes when the context ends."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.next == number)
        try:
            yield
        finally:
            async with self._changed:
                self.next += 1
                self._changed.notify_all()


class Worker:
    """One GPU, its engine, and the streams that the front has on it.

    Args:
        make_engine: called in the actor's process, until it succeeds once.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._token = ""
        self._is_leaving = False
        self._getting_ready = Lock()
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._clips: dict[str, tuple[ClipStream, ExitStack]] = {}

    @property
    def engine(self) -> Engine:
        """The engine, once `announce` has been called."""
        assert self._engine is not None
        return self._engine

    async def announce(self) -> Answer:
        """Load the model the first time, close all streams, and return an `Announcement`."""
        announcement, error = await answer(asyncio.to_thread(self._get_ready))
        return announcement, ValueError(NO_MEMORY) if isinstance(error, StreamOutOfMemory) else error

    def _get_ready(self) -> Announcement:
        from ray import get_runtime_context  # only in an actor

        with self._getting_ready:  # a front may ask again before it has an answer, another front may too
            if self._engine is None:
                engine = self._make_engine()
                try:
                    warm_up(engine)
                except BaseException:
                    engine.shutdown()  # otherwise its threads keep the model in memory
                    raise
                self._engine = engine
        engine = self._engine
        for stream in [*self._turns]:
            self._close(stream)
        self._token = secrets.token_hex(8)
        about = engine.styles, engine.default_style, engine.about, engine.prompt_help, engine.size
        here = os.getpid(), get_runtime_context().get_node_id()
        return Announcement(engine.capacity, *about, engine.device, *here, self._token)

    async def ping(self) -> tuple[str, bool]:
        """Return the token of the last announcement ("" before it), and whether to drain the worker.

        The process ends here if its device is lost.
        """
        if self._engine is not None and self._engine.failure:
            os._exit(DEVICE_LOST)  # Ray starts another
        return self._token, self._is_leaving

    async def leave(self, node: str) -> int | None:
        """Have the front drain this worker if it is on the node with this id, address or host name.

        Return how many streams it still has; None if it is on another node.
        """
        from ray import get_runtime_context, util  # only in an actor

        if node not in (get_runtime_context().get_node_id(), util.get_node_ip_address(), gethostname()):
            return None
        self._is_leaving = True
        return len(self._turns)

    async def fetch(self, style: str | None) -> Answer:
        """Download what a style needs."""
        if self._engine is None:
            return None, NotAnnounced("")
        return await answer(asyncio.wrap_future(self.engine.fetch(style)))

    async def call(self, token: str, stream: str, turn: int, name: str, *arguments: Any) -> Answer:
        """Call one of the methods below for a stream; each waits for its turn."""
        if token != self._token:
            return None, NotAnnounced(self._token)
        return await answer(getattr(self, name)(self._turns[stream].take(turn), stream, *arguments))

    async def open(self, turn: Any, stream: str, settings: StreamSettings, recent: list[bytes]) -> Any:
        """Open a stream and push its recent frames; return ignored words, frames in and out, whether warm."""
        async with turn:
            ignored_words = await asyncio.wrap_future(self.engine.open(stream, settings))
            frames_in = frames_out = 0
            warm = False
            for jpeg in recent:
                frame = await asyncio.to_thread(decode_frame, jpeg)
                result = await asyncio.wrap_future(self.engine.push(stream, frame))
                frames_in, frames_out, warm = result.frames_in, frames_out + len(result.frames), result.warm
            return ignored_words, frames_in, frames_out, warm

    async def push(self, turn: Any, stream: str, jpeg: bytes) -> Reply:
        """Push a frame; return its result."""
        turns = self._turns[stream]
        async with turn:
            frame = await asyncio.to_thread(decode_frame, jpeg)
            pushed, number = self.engine.push(stream, frame), turns.next
            turns.newest[pushed] = number
        result = await asyncio.wrap_future(pushed)
        if turns.newest[pushed] != number:
            return Reply(0, b"", result.frames_in, result.warm, was_replaced=True)
        jpeg = b""
        if result.frames:
            jpeg = await asyncio.to_thread(encode_jpeg, result.frames[-1], JPEG_QUALITY)
        return Reply(len(result.frames), jpeg, result.frames_in, result.warm)

    async def update(self, turn: Any, stream: str, settings: StreamSettings, blend: int) -> str:
        """Change the settings; return ignored words."""
        async with turn:
            changed = self.engine.update(stream, settings, blend)
        return await asyncio.wrap_future(changed)

    async def restart(self, turn: Any, stream: str) -> str:
        """Warm up again from the last frames."""
        async with turn:
            changed = self.engine.restart(stream)
        return await asyncio.wrap_future(changed)

    async def open_clip(self, turn: Any, stream: str, settings: StreamSettings) -> str:
        """Open the stream of a clip; return ignored words."""
        async with turn:
            stack = ExitStack()
            clip = await asyncio.to_thread(stack.enter_context, self.engine.clip(stream, settings))
            self._clips[stream] = clip, stack
        return clip.ignored_words

    async def push_clip(self, turn: Any, stream: str, frame: np.ndarray) -> list[np.ndarray]:
        """Push a frame of a clip; return the finished ones."""
        async with turn:
            return await asyncio.to_thread(self._clips[stream][0].push, frame)

    async def flush_clip(self, turn: Any, stream: str) -> list[np.ndarray]:
        """Return the frames of a clip that are in flight."""
        async with turn:
            return await asyncio.to_thread(self._clips[stream][0].flush)

    async def close(self, turn: Any, stream: str) -> None:
        """Free a stream or a clip."""
        async with turn:
            await asyncio.to_thread(self._close, stream)

    def _close(self, stream: str) -> None:
        self.engine.close(stream).result()
        if stream in self._clips:
            self._clips.pop(stream)[1].close()
        self._turns.pop(stream, None)


async def answer(work: Awaitable[Any]) -> Answer:
    """Return the result of a call, or its error."""
    [outcome] = await asyncio.gather(work, return_exceptions=True)
    if not isinstance(outcome, Exception):
        return outcome, None
    if not isinstance(outcome, ERRORS):
        log.error("a call failed", exc_info=outcome)
    return None, portable(outcome)
