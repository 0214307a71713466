"""Translate viewers' clips one at a time; a cancelled clip keeps the frames that are done."""

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import wait as wait_for
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClipStopped, NonFiniteError, StreamClosed, StreamOutOfMemory
from ..streaming.settings import StreamSettings
from ..video.reader import Cut, Limits, probe
from ..video.translate import Progress, translate
from .limits import Counts, VisitorLimits
from .sessions import EngineProtocol
from .temp_files import sweep

LIMITS = Limits(max_frames=1800, max_seconds=60.0)  # of the part that is translated
POLL_SECONDS = 0.5  # how often a waiting clip checks whether it is next, or cancelled


@dataclass(frozen=True)
class Waiting:
    """A clip that has not begun, and how many are before it."""

    before: int


@dataclass
class Result:
    """The file of a clip's result, and the frames in it: 0 while there is no file."""

    path: Path
    frames: int = 0


class ClipQueue:
    """Clips on an engine, one at a time, first come, first served.

    Results stay in `folder` for an hour. At most `per_address` clips of one address may wait or run. With
    `most_bytes`, `folder.parent` belongs to the page: above this size its oldest files are deleted.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        folder: Path,
        limits: Limits = LIMITS,
        per_address: int = VisitorLimits.clips,
        most_bytes: int | None = None,
    ) -> None:
        self.engine, self.folder, self.limits = engine, folder, limits
        self.per_address, self.most_bytes = per_address, most_bytes
        self._counts = Counts(per_address, "clips")
        self._lock = threading.Lock()
        self._line: list[threading.Event] = []  # the running clip's first, then those that wait
        self._jobs: dict[threading.Event, tuple[str, list[Path]]] = {}  # stop: (key, files read and written)

    def new_result(self) -> Result:
        """Return a result with a new path and no frames, after deleting old files."""
        self.tidy()
        self.folder.mkdir(parents=True, exist_ok=True)
        return Result(self.folder / f"live2diff-{secrets.token_hex(8)}.mp4")

    def tidy(self) -> None:
        """Delete old files."""
        with self._lock:
            in_use = {file for _, files in self._jobs.values() for file in files}
        sweep(self.folder, self.most_bytes, in_use)

    def run(
        self,
        key: str,
        clip: str | Path,
        result: Result,
        cut: Cut,
        settings: StreamSettings,
        address: str | None = None,
    ) -> Iterator[Waiting | Progress | str]:
        """Translate a cut of a clip into `result`; if it ends early, the frames made by then are kept.

        Yields:
            `Waiting` while others are before it, the part of the prompt that is too long for the model, and
            `Progress` after each frame.

        Raises:
            ClipStopped: `stop(key)` was called, or the server could not go on.
            ValueError, OSError: the clip or a setting cannot be used, or the address has too many clips.
            RuntimeError: the model failed.
        """
        with self._counts.one_more(address), self._job(key, [Path(clip), result.path]) as stop:
            try:
                frames = probe(clip, self.limits, cut).frame_count
                # Download before the clip takes the only turn.
                fetched = self.engine.fetch(settings.style)
                while not wait_for([fetched], POLL_SECONDS).done:
                    if stop.is_set():
                        raise ClipStopped
                fetched.result()
                with self._turn(stop):
                    while before := self._line.index(stop):
                        yield Waiting(before)
                        if stop.wait(POLL_SECONDS):
                            raise ClipStopped
                    with self.engine.clip(key, settings, frames) as stream:
                        if stop.is_set():
                            raise ClipStopped
                        if stream.ignored_words:
                            yield stream.ignored_words
                        options = {"limits": self.limits, "cut": cut, "keep": True}
                        with closing(translate(stream, clip, result.path, **options)) as steps:
                            for step in steps:
                                result.frames = step.written
                                yield step
            except StreamClosed as error:
                raise ClipStopped("Cancelled." if stop.is_set() else str(error)) from None
            except (NonFiniteError, StreamOutOfMemory) as error:
                raise ClipStopped(str(error)) from None
            finally:
                if not result.path.exists():
                    result.frames = 0

    def stop(self, key: str) -> None:
        """Cancel the clips of a key; a running one ends at its next frame."""
        with self._lock:
            stops = [stop for stop, (owner, _) in self._jobs.items() if owner == key]
        for stop in stops:
            stop.set()
        self.engine.close(key)

    @contextmanager
    def _job(self, key: str, files: list[Path]) -> Iterator[threading.Event]:
        """Register a clip and its files while the context lasts; yield the event that cancels it."""
        stop = threading.Event()
        with self._lock:
            self._jobs[stop] = key, files
        try:
            yield stop
        finally:
            with self._lock:
                del self._jobs[stop]

    @contextmanager
    def _turn(self, ticket: threading.Event) -> Iterator[None]:
        """Keep a clip in the queue while the context lasts."""
        with self._lock:
            self._line.append(ticket)
        try:
            yield
        finally:
            with self._lock:
                self._line.remove(ticket)
