"""Cues: changes of a stream read from a file, each applied before a given frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from .settings import BLEND_FRAMES, LIVE_FIELDS, Blend, Integer, StreamSettings

if TYPE_CHECKING:
    from .state import FrameModel
    from .stream import Stream

EXAMPLE = '{"start": {"style": "pencil", "seed": 0}, "cues": [{"frame": 40, "style": "ink", "blend": 8}]}'


class Cue(StreamSettings):
    """A change of a running stream; settings that it does not name stay as they are.

    Attributes:
        frame: number of frames that the stream has received before the change.
        blend: number of frames over which the old prompt turns into the new one.
        refill: whether to fill the cache again with the new prompt, which then replaces the old one at once.
    """

    frame: Annotated[Integer, Field(ge=0)] | None = None
    blend: Blend = BLEND_FRAMES
    refill: bool = False

    @model_validator(mode="after")
    def check_fields(self) -> Self:
        """Check that there is a frame, and that the settings can change while a stream runs."""
        if self.frame is None:
            raise ValueError(
                "It has no frame; step to it once on the page, or write the number of the frame."
            )
        fixed = sorted(self.model_fields_set - {*LIVE_FIELDS, "frame", "blend", "refill"})
        if fixed:
            raise ValueError(f"{fixed[0]} cannot change while a stream runs; it belongs in start.")
        return self

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that it names."""
        return self.model_dump(include=self.model_fields_set & set(LIVE_FIELDS))

    def apply(self, stream: Stream) -> None:
        """Make the change; raise as `Stream.update`."""
        stream.update(blend=0 if self.refill else self.blend, **self.changes)
        if self.refill:
            stream.restart()


@dataclass(frozen=True)
class CueSheet:
    """The settings that a stream starts with, and its cues in the order of their frames."""

    start: dict[str, Any]
    cues: tuple[Cue, ...]

    def check(self, model: FrameModel, settings: StreamSettings) -> None:
        """Check the cues against a model, for a stream that is opened with `settings`.

        Raises:
            ValueError: a cue cannot be applied; the message names it.
        """
        for number, cue in enumerate(self.cues, 1):
            settings = settings.updated(**cue.changes)
            try:
                model.schedule(settings)
                for prompt in settings.prompts:
                    model.tokenize(*prompt)
            except ValueError as error:
                raise ValueError(f"Cue {number}, at frame {cue.frame}: {error}") from None


def read_cues(file: str | Path) -> CueSheet:
    """Read a cue sheet saved by the page or written by hand; see `EXAMPLE`.

    Raises:
        ValueError: the file is invalid; the message names the first mistake.
        OSError: the file cannot be read.
    """
    try:
        sheet = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from None
    start, cues = (sheet.get("start", {}), sheet.get("cues")) if isinstance(sheet, dict) else (None, None)
    if not isinstance(start, dict) or not isinstance(cues, list):
        raise ValueError(f"{file} must be like {EXAMPLE}.")
    return CueSheet(start, tuple(sorted(parse(file, start, cues), key=lambda cue: cue.frame or 0)))


def parse(file: str | Path, start: dict[str, Any], entries: list[Any]) -> Iterator[Cue]:
    """Check `start` and yield the cues."""
    name = "start"
    try:
        StreamSettings(**start)
        for number, entry in enumerate(entries, 1):
            name = f"cue {number}"
            if not isinstance(entry, dict):
                raise ValueError(f'It must be an object like {{"frame": 40, "style": "ink"}}, not {entry!r}.')
            yield Cue(**entry)
    except ValueError as error:
        raise ValueError(f"{file}, {name}: {error}") from None


class CuedStream:
    """A stream that applies cues as frames are pushed, for `video.translate`."""

    def __init__(self, stream: Stream, sheet: CueSheet) -> None:
        self.stream, self.due = stream, list(sheet.cues)

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Apply the cues of this frame and push it; raise as `Stream.update` and `Stream.push`."""
        while self.due and (self.due[0].frame or 0) <= self.stream.frames_in:
            self.due.pop(0).apply(self.stream)
        return self.stream.push(frame)

    def flush(self) -> list[np.ndarray]:
        """Return the frames in flight, as `Stream.flush`."""
        return self.stream.flush()
