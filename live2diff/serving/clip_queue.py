"""Visitors' clips: one after the other, each of them stopped at any time without losing what is done.

The page and the endpoints for programs both run clips through `ClipQueue.run`. Nothing here knows of Gradio.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ClipStopped, NonFiniteError, StreamClosed, StreamOutOfMemory
from ..streaming.settings import StreamSettings
from ..video.reader import Cut, Limits, probe
from ..video.translate import Progress, translate
from .engine import Engine
from .limits import Counts, VisitorLimits
from .temp_files import sweep

LIMITS = Limits(max_frames=1800, max_seconds=60.0)  # of the part that is translated
ASK_AGAIN = 0.5  # seconds between two looks at the line


@dataclass(frozen=True)
class Waiting:
    """A clip that has not begun: how many are before it."""

    before: int


@dataclass
class Result:
    """The file of a job, and how many frames are in it: 0 while there is no file."""

    path: Path
    frames: int = 0


class ClipQueue:
    """Clips on `engine`, one at a time, first come, first served; results go to `folder`, for an hour.

    `per_address` clips may be in line from one address. If `most_bytes` is given, `folder.parent` is the
    page's own, and the oldest files there are deleted when they are more than that.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        limits: Limits = LIMITS,
        per_address: int = VisitorLimits.clips,
        most_bytes: int | None = None,
    ):
        self.engine, self.folder, self.limits = engine, folder, limits
        self.per_address, self.most_bytes = per_address, most_bytes
        self._counts = Counts(per_address, "clips")
        self._lock = threading.Lock()
        self._line: list[object] = []
        self._files: list[Path] = []  # that jobs read and write now
        self._stops: dict[str, list[threading.Event]] = {}  # of the jobs of each key

    def new_result(self) -> Result:
        """A place for a result; what is too old is deleted on the way."""
        self.tidy()
        self.folder.mkdir(parents=True, exist_ok=True)
        return Result(self.folder / f"live2diff-{secrets.token_hex(8)}.mp4")

    def tidy(self) -> None:
        """Delete what nobody can want any more."""
        with self._lock:
            in_use = set(self._files)
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
        """Translate a cut of `clip` into `result`; all but the file is freed when this generator ends,
        however it ends. What was made before it ended early is a playable file all the same.

        Yields:
            `Waiting` while others are before it, the end of the prompt if that is too long to be read, and
            `Progress` after each frame.

        Raises:
            ClipStopped: by `stop(key)`, or the server could not go on.
            ValueError, OSError: a clip or a setting that cannot be used, or too many clips of one `address`,
                with words for people.
            RuntimeError: the model failed.
        """
        files = [Path(clip), result.path]
        with (
            self._counts.one_more(address),
            self._stoppable(key) as stop,
            self._in_line(files) as before,
        ):
            while ahead := before():
                yield Waiting(ahead)
                if stop.wait(ASK_AGAIN):
                    raise ClipStopped()
            try:
                frames = probe(clip, self.limits, cut).frame_count  # before anything is begun for it
                self.engine.fetch(settings.style).result()
                with self.engine.clip(key, settings, frames) as stream:
                    if stop.is_set():
                        raise ClipStopped()
                    if stream.ignored_words:
                        yield stream.ignored_words
                    options = {"limits": self.limits, "cut": cut, "keep": True}
                    with closing(translate(stream, clip, result.path, **options)) as steps:
                        for step in steps:
                            result.frames = step.written
                            yield step
            except StreamClosed as gone:
                raise ClipStopped("Cancelled." if stop.is_set() else str(gone)) from None
            except (NonFiniteError, StreamOutOfMemory) as failed:
                raise ClipStopped(str(failed)) from None
            finally:
                if not result.path.exists():
                    result.frames = 0

    def stop(self, key: str) -> None:
        """End the clips of `key`, the one that runs at its next frame."""
        for stop in list(self._stops.get(key, ())):
            stop.set()
        self.engine.close(key)

    @contextmanager
    def _stoppable(self, key: str) -> Iterator[threading.Event]:
        stop = threading.Event()
        with self._lock:
            self._stops.setdefault(key, []).append(stop)
        try:
            yield stop
        finally:
            with self._lock:
                self._stops[key].remove(stop)
                if not self._stops[key]:
                    del self._stops[key]

    @contextmanager
    def _in_line(self, files: list[Path]) -> Iterator[Any]:
        """Stand in line; gives a function that says how many are before."""
        ticket = object()
        with self._lock:
            self._line.append(ticket)
            self._files += files
        try:
            yield lambda: self._line.index(ticket)
        finally:
            with self._lock:
                self._line.remove(ticket)
                for file in files:
                    self._files.remove(file)
