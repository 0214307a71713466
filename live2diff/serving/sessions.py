"""Keep an engine's sessions by key, with statistics; name the methods that the page may call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from ..errors import GONE, DeviceLost, EngineBusy, ServerStopping, StreamClosed
from ..streaming.settings import StreamSettings
from .event_log import log_event, log_id

if TYPE_CHECKING:
    from ..styles import Style

RATE_SECONDS = 5.0  # over which frame rates and delays are measured


@dataclass(frozen=True)
class FrameResult:
    """The frames that one pushed frame finished, and the tag of the frame that the last one shows."""

    frames: list[Any]  # each uint8 [height, width, 3]; JPEGs where the engine takes JPEGs
    tag: Any
    frames_in: int
    warm: bool
    moved: bool = False  # the stream goes on at another worker, without an image of this frame


@dataclass(frozen=True, eq=False)
class QueuedFrame:
    """A frame that waits, the time at which it arrived, and the future of its result."""

    frame: Any
    tag: Any
    arrived: float
    result: Future[FrameResult]


@dataclass(eq=False, kw_only=True)
class Session:
    """One viewer's or one clip's stream, and the latest frame that waits for it."""

    key: str
    settings: StreamSettings
    last_seen: float
    is_clip: bool = False
    stream: Any = None  # a Stream, or an object with its methods and attributes; None unless it is open
    waiting: QueuedFrame | None = None
    result: Future[FrameResult] | None = None  # of the newest frame
    changes: int = 0  # updates and restarts that are not applied yet
    in_flight: deque[QueuedFrame | None] = field(default_factory=deque)  # pushed, without a result yet
    cache_bytes: int = 0
    opened: float = 0.0
    closed: bool = False
    reason: str = "closed"
    freed: Future[None] = field(default_factory=Future)  # done when the stream of a closed session is freed

    def log(self, event: str, **values: Any) -> None:
        """Log that the stream is opened or closed."""
        log_event(event, kind="clip" if self.is_clip else "live", id=log_id(self.key), **values)

    def take_waiting(self) -> QueuedFrame | None:
        """Take the waiting frame, unless its future is cancelled; call this with the lock held."""
        queued, self.waiting = self.waiting, None
        return queued if queued and queued.result.set_running_or_notify_cancel() else None

    def closed_error(self) -> StreamClosed:
        """Return the error for calls of a stream that has ended."""
        if self.reason == "device lost":
            return DeviceLost()
        return ServerStopping() if self.reason == "stopped" else StreamClosed(GONE)

    def is_busy(self) -> bool:
        """Return whether the server has work for this session, during which silence does not count."""
        return self.stream is None or (self.result is not None and not self.result.done())


class FinishedFrames:
    """The frames finished in the last RATE_SECONDS. Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._frames: deque[tuple[float, float]] = deque()  # when finished, delay in seconds

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, arrived: float) -> None:
        """Add a frame that is finished now; forget those that no longer count."""
        with self._lock:
            now = self._clock()
            self._frames.append((now, now - arrived))
            while self._frames[0][0] < now - RATE_SECONDS:
                self._frames.popleft()

    def rates(self) -> dict[str, float]:
        """Return frames per second, and the median and 95th percentile of their delay in seconds."""
        with self._lock:
            now = self._clock()
            recent = [delay for when, delay in self._frames if when >= now - RATE_SECONDS]
        p50, p95 = np.percentile(recent, [50, 95]).tolist() if recent else (0.0, 0.0)
        return {"fps": len(recent) / RATE_SECONDS, "delay_p50": p50, "delay_p95": p95}


class SessionRegistry:
    """The sessions of an engine, by key. Thread-safe.

    Attributes:
        lock: to be held while a session's waiting frame or `dropped` is read or changed.
        finished: the frames finished lately.
        dropped: how many frames were replaced by newer ones.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self._sessions: dict[str, Session] = {}
        self.finished = FinishedFrames(clock)
        self.dropped = 0

    def get(self, key: str) -> Session:
        """Return the session of a key; raise `StreamClosed` if there is none."""
        session = self._sessions.get(key)
        if session is None:
            raise StreamClosed(GONE)
        return session

    def add(self, session: Session, capacity: int) -> Session | None:
        """Add a session, and return the former one of its key, which is still to be closed.

        Raises:
            EngineBusy: there are `capacity` other live sessions already; clips do not count.
        """
        with self.lock:
            if not session.is_clip and len(self.live_keys() - {session.key}) >= capacity:
                raise EngineBusy(f"All {capacity} places are taken. Try again in a minute.")
            former = self._sessions.get(session.key)
            self._sessions[session.key] = session
            return former

    def remove(self, session: Session) -> None:
        """Remove a session, unless another has its key by now."""
        with self.lock:
            if self._sessions.get(session.key) is session:
                del self._sessions[session.key]

    def all(self) -> list[Session]:
        """Return every session, clips included."""
        with self.lock:
            return list(self._sessions.values())

    def live_keys(self) -> set[str]:
        """Return the keys of the live sessions."""
        return {session.key for session in self.all() if not session.is_clip}

    def stats(self) -> dict[str, float]:
        """Return open streams and clips, frames dropped, frames per second, delays in seconds."""
        streams = len(self.live_keys())
        counts = {"streams": streams, "clips": len(self.all()) - streams, "dropped": self.dropped}
        return counts | self.finished.rates()


class ClipStream:
    """The stream of a clip; `push` and `flush` wait for their turn on the device.

    `submit` calls a method of the stream, by name, on its thread. With `ahead`, each call returns the frames
    of the one before, so that the caller encodes while the device computes.
    """

    def __init__(self, ignored_words: str, submit: Callable[..., Future], ahead: bool = False) -> None:
        self.ignored_words = ignored_words
        self._submit, self._ahead = submit, ahead
        self._pending: Future[list[np.ndarray]] | None = None

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Push a frame; return finished ones, each uint8 `[height, width, 3]`."""
        former, self._pending = self._pending, self._submit("push", frame)
        return (former.result() if former else []) if self._ahead else self._pending.result()

    def flush(self) -> list[np.ndarray]:
        """Return the frames still in flight."""
        frames = self._pending.result() if self._ahead and self._pending else []
        self._pending = None
        return frames + self._submit("flush").result()


class PromptHelp(NamedTuple):
    """A sentence about what prompts do for a model, and prompts to try."""

    hint: str
    examples: tuple[str, ...]

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read them from the configuration of a pipeline."""
        return cls(config.prompt_hint, tuple(config.prompt_examples))


class EngineInfo(Protocol):
    """The attributes of an engine that the page reads."""

    capacity: int  # how many live sessions there may be; clips do not count
    takes_jpegs: bool  # whether frames are pushed and returned as JPEGs
    needs_gpu_session: bool  # whether frames are processed only while the page's `gpu_session` runs
    styles: dict[str, Style]
    default_style: str
    about: str  # a sentence about the model
    prompt_help: PromptHelp
    size: int  # the working size n: a frame is processed at about n x n pixels
    failure: str  # why the device is lost, "" while it works; once it is lost, the process has to end

    @property
    def device(self) -> str:
        """Return the name of the device."""
        ...


class EngineProtocol(EngineInfo, Protocol):
    """The methods of an engine that the page, the waiting line and the clip queue call; see `Engine`."""

    admission: Callable[[str], AbstractContextManager]  # entered to give a key its place; raises EngineBusy
    count_waiting: Callable[[], int]  # how many wait for a place
    fetch: Callable[[str | None], Future[None]]
    open: Callable[[str, StreamSettings], Future[str]]
    push: Callable[..., Future[FrameResult]]  # key, frame, tag=None
    update: Callable[..., Future[str]]  # key, settings, blend=BLEND_FRAMES
    restart: Callable[[str], Future[str]]
    close: Callable[[str], Future[None]]
    session_keys: Callable[[], set[str]]
    make_room: Callable[[], None]
    time_left: Callable[[str], float | None]
    stats: Callable[[], dict[str, Any]]
    end: Callable[..., None]  # clips=True
    shutdown: Callable[[], None]

    def clip(
        self, key: str, settings: StreamSettings, frames: int | None = None
    ) -> AbstractContextManager[ClipStream]:
        """Open a stream for a clip; the context closes it."""
        ...
