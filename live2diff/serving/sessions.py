"""What every engine has: places for visitors, by key, who is silent in one, and figures of how it goes.

`Engine` runs streams on a device of its own, `ZeroGpuEngine` on one that is borrowed for each visit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from ..errors import GONE, EngineBusy, ServerStopping, StreamClosed
from ..streaming.settings import BLEND_FRAMES, StreamSettings
from .event_log import log_event

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline
    from ..styles import Style

RATE_SECONDS = 5.0  # the frame rate in `stats` is that of the last so many seconds
QUIET_SECONDS = 10.0  # a visitor silent for this long gives way when another needs the place


@dataclass(frozen=True)
class FrameResult:
    """What one frame gave: the finished frames in order, and the tag of the frame that the last one shows."""

    frames: list[np.ndarray]  # each uint8 [height, width, 3]
    tag: Any
    frames_in: int
    warm: bool
    jpeg: bytes | None = None  # the last frame once more, where the engine had to encode it anyway


@dataclass(eq=False, kw_only=True)
class Visitor:
    """Somebody with a place, or a clip, which takes none."""

    is_clip: bool = False
    name: str = ""  # in the log
    last_seen: float = field(default_factory=time.monotonic)
    opened: float = 0.0  # when its stream was
    closed: bool = False
    reason: str = "closed"  # why it ended, for the log

    @property
    def kind(self) -> str:
        return "clip" if self.is_clip else "live"

    def tell_opened(self, settings: StreamSettings) -> None:
        """Write down that it has a stream now."""
        self.opened = time.monotonic()
        asked = {name: getattr(settings, name) for name in ("style", "steps", "size")}
        log_event("opened", kind=self.kind, id=self.name, **asked)

    def tell_closed(self, reason: str, frames_in: int, frames_out: int) -> None:
        """Write down that the stream has ended."""
        counts = {"frames_in": frames_in, "frames_out": frames_out}
        seconds = time.monotonic() - self.opened
        log_event("closed", kind=self.kind, id=self.name, reason=reason, **counts, seconds=seconds)

    def gone(self) -> StreamClosed:
        """What there is to say to who asks for a stream that has ended."""
        return ServerStopping() if self.reason == "stopped" else StreamClosed(GONE)

    def is_busy(self) -> bool:
        """Whether the silence is ours: something is being done for this visitor."""
        return False

    def is_idle(self, seconds: float) -> bool:
        """Silent for so long. A clip never is: whoever runs it closes it."""
        return not (self.is_clip or self.is_busy()) and time.monotonic() - self.last_seen > seconds


class ClipStream:
    """A stream for a clip: `push` and `flush` wait for their turn on the device."""

    def __init__(self, ignored_words: str, run: Callable[..., list[np.ndarray]]) -> None:
        self.ignored_words = ignored_words  # the end of the prompt, if that is too long
        self._run = run

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        return self._run("push", frame)

    def flush(self) -> list[np.ndarray]:
        return self._run("flush")


AnyVisitor = TypeVar("AnyVisitor", bound=Visitor)


class SessionManager(Generic[AnyVisitor]):
    """Visitors by key, and what can be known without a device.

    Attributes:
        capacity: how many live visitors there may be; clips do not count.
        admission: entered with a key while a stream is given its place; raises `EngineBusy` for who is not to
            have one. A `WaitingLine` puts itself here.
        needs_gpu_session: whether the page must click the visit button for frames to be worked on.
    """

    needs_gpu_session = False

    def __init__(self, pipe: Live2DiffPipeline, capacity: int, idle_seconds: float) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, but the engine needs room for one stream at least.")
        self.capacity = capacity
        self.idle_seconds = idle_seconds
        self.admission: Callable[[str], AbstractContextManager] = nullcontext
        self._pipe = pipe
        self._downloads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="downloads")
        self._lock = threading.Lock()
        self._visitors: dict[str, AnyVisitor] = {}
        self._finished: deque[tuple[float, float]] = deque(maxlen=512)  # (when, how long it took)
        self._dropped = 0
        self._stopped = threading.Event()
        self._ending = False
        threading.Thread(target=self._reap, name="reaper", daemon=True).start()

    @property
    def styles(self) -> dict[str, Style]:
        """The presets that visitors can choose from."""
        return self._pipe.styles

    @property
    def default_style(self) -> str:
        """The one that is chosen at first."""
        return self._pipe.default_style or next(iter(self._pipe.styles))

    @property
    def about(self) -> str:
        """Which model this is, in a sentence."""
        return self._pipe.about

    @property
    def size(self) -> int:
        """The working size: a frame is worked on at about so many pixels squared."""
        return self._pipe.config.size

    @property
    def device(self) -> str:
        """Where the model runs: the name of the GPU, or such as `cpu`."""
        from torch.cuda import get_device_name  # not before a model is there: it takes seconds

        device = self._pipe.unet.device
        return get_device_name(device) if device.type == "cuda" else device.type

    def fetch(self, style: str | None) -> Future[None]:
        """Download what a style needs, if anything, while frames go on; before `open` or `update` with it."""
        return self._downloads.submit(self._pipe.fetch, style)

    def close(self, key: str) -> Future[None]:
        """Free the stream of `key`, if it has one; the future tells when that is done."""
        raise NotImplementedError

    def session_keys(self) -> set[str]:
        """Who has a place."""
        with self._lock:
            return {key for key, visitor in self._visitors.items() if not visitor.is_clip}

    def make_room(self) -> None:
        """Close the streams of those who have been silent for a while, because others want their places."""
        self._close_idle(QUIET_SECONDS)

    def time_left(self, key: str) -> float | None:
        """Seconds until the stream of `key` ends by itself; None if it does not."""
        return None

    def stats(self) -> dict[str, float]:
        """Streams and clips open, capacity, frames a second, frames dropped, delay in here in seconds."""
        now = time.monotonic()
        with self._lock:
            clips = sum(visitor.is_clip for visitor in self._visitors.values())
            streams = len(self._visitors) - clips
            recent = [delay for when, delay in self._finished if now - when <= RATE_SECONDS]
            dropped = self._dropped
        p50, p95 = np.percentile(recent, [50, 95]).tolist() if recent else (0.0, 0.0)
        return {
            "streams": streams,
            "clips": clips,
            "capacity": self.capacity,
            "fps": len(recent) / RATE_SECONDS,
            "dropped": dropped,
            "delay_p50": p50,
            "delay_p95": p95,
        }

    def end(self, clips: bool = True) -> None:
        """Close every stream, of live visitors alone without `clips`; none begins any more."""
        self._ending = True
        with self._lock:
            ended = [key for key, visitor in self._visitors.items() if clips or not visitor.is_clip]
        for key in ended:
            self._close_because("stopped", key)

    def shutdown(self) -> None:
        """Close every stream and end what runs in the background."""
        self._stopped.set()
        self.end()
        self._downloads.shutdown(wait=False, cancel_futures=True)

    def _give_place(self, key: str, visitor: AnyVisitor) -> AnyVisitor | None:
        """The place of `key` is this visitor's now; who had it before, if anybody, is still to be freed.

        Raises:
            EngineBusy: there is no room, or others come first.
        """
        with self.admission(key):
            if self._ending:
                raise ServerStopping
            if len(self.session_keys() - {key}) >= self.capacity:
                self.make_room()
            with self._lock:
                others = sum(not other.is_clip for name, other in self._visitors.items() if name != key)
                if others >= self.capacity:
                    raise EngineBusy(f"All {self.capacity} places are taken. Try again in a minute.")
                former = self._take_out(key)
                self._visitors[key] = visitor
        return former

    def _note_shown(self, seconds: float) -> None:
        """A picture is ready, so long after its frame came."""
        with self._lock:
            self._finished.append((time.monotonic(), seconds))

    def _note_dropped(self) -> None:
        with self._lock:
            self._dropped += 1

    # The next two are for who holds the lock.

    def _visitor(self, key: str) -> AnyVisitor:
        if key not in self._visitors:
            raise StreamClosed(GONE)
        return self._visitors[key]

    def _take_out(self, key: str) -> AnyVisitor | None:
        visitor = self._visitors.pop(key, None)
        if visitor is not None:
            visitor.closed = True
        return visitor

    def _forget(self, key: str, visitor: AnyVisitor) -> None:
        with self._lock:
            visitor.closed = True
            if self._visitors.get(key) is visitor:
                del self._visitors[key]

    def _close_idle(self, seconds: float) -> None:
        with self._lock:
            idle = [key for key, visitor in self._visitors.items() if visitor.is_idle(seconds)]
        for key in idle:
            self._close_because("silent", key)

    def _close_because(self, reason: str, key: str) -> None:
        with self._lock:
            if key in self._visitors:
                self._visitors[key].reason = reason
        self.close(key)

    def _reap(self) -> None:
        while not self._stopped.wait(min(self.idle_seconds / 4, 5.0)):
            self._close_idle(self.idle_seconds)


class EngineProtocol(Protocol):
    """What the page, the waiting line and the clip queue call of an engine, wherever its streams run."""

    capacity: int
    admission: Callable[[str], AbstractContextManager]
    needs_gpu_session: bool

    @property
    def styles(self) -> dict[str, Style]:
        """Return the presets that viewers can choose from."""
        ...

    @property
    def default_style(self) -> str:
        """Return the style chosen at first."""
        ...

    @property
    def about(self) -> str:
        """Return which model this is, in a sentence."""
        ...

    @property
    def size(self) -> int:
        """Return the working size n: a frame is processed at about n x n pixels."""
        ...

    @property
    def device(self) -> str:
        """Return the name of the device."""
        ...

    def fetch(self, style: str | None) -> Future[None]:
        """Download what a style needs."""
        ...

    def open(self, key: str, settings: StreamSettings) -> Future[str]:
        """Open a stream; the result is the end of the prompt that the model cannot read."""
        ...

    def push(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        """Translate a frame; a frame that still waits is replaced and shares this future."""
        ...

    def update(self, key: str, settings: StreamSettings, blend: int = BLEND_FRAMES) -> Future[str]:
        """Change style, prompt and LoRA scale."""
        ...

    def restart(self, key: str) -> Future[Any]:
        """Warm up again from the last frames."""
        ...

    def close(self, key: str) -> Future[None]:
        """Free the stream of a key, if there is one."""
        ...

    def clip(
        self, key: str, settings: StreamSettings, frames: int | None = None
    ) -> AbstractContextManager[ClipStream]:
        """Open a stream for a clip, closed with the context."""
        ...

    def session_keys(self) -> set[str]:
        """Return the keys of the live sessions."""
        ...

    def make_room(self) -> None:
        """Close the streams of live sessions that have been silent for a while."""
        ...

    def time_left(self, key: str) -> float | None:
        """Return the seconds until the stream ends by itself; None if it does not."""
        ...

    def stats(self) -> dict[str, float]:
        """Return the figures of the server, as `/health` shows them."""
        ...

    def end(self, clips: bool = True) -> None:
        """Close every stream, without `clips` only the live ones; none begins from then on."""
        ...

    def shutdown(self) -> None:
        """Close every stream and end all threads."""
        ...
