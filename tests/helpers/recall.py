"""A model that remembers all frames since its warmup and starts at once, for the workers of a cluster."""

from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from live2diff.config import WARMUP_FRAMES
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.styles import STYLES, Style

LORAS = {"felt": 1, "glass": 2}  # styles with weights of their own: name, seed
WORDS = 77  # of a prompt


class Recall:
    """The part of a pipeline that an engine uses; results depend on settings and all frames of a stream."""

    default_style = "pencil"
    about = "It remembers."
    config = SimpleNamespace(size=32, prompt_hint="", prompt_examples=[])
    unet = SimpleNamespace(device=SimpleNamespace(type="cpu"))

    def __init__(self) -> None:
        self.styles = {name: style for name, style in STYLES.items() if not style.has_weights}
        self.styles |= {
            name: Style(name.title(), "{}", loras=((f"{name}.safetensors", 1.0),)) for name in LORAS
        }

    def fetch(self, style: str | None) -> None:
        pass

    def stream(self, settings: StreamSettings | None = None, **options: Any) -> "RecallStream":
        given = {name: value for name, value in options.items() if name in StreamSettings.model_fields}
        return RecallStream(self.styles, settings or StreamSettings(**given))

    def __call__(self, frames: Iterable[np.ndarray], **options: Any) -> list[np.ndarray]:
        stream = self.stream(**options)
        return [out for frame in frames for out in stream.push(frame)] + stream.flush()


class RecallStream:
    """Collects a warmup of 8 frames as usual; with n steps a later frame comes out n-1 pushes later."""

    def __init__(self, styles: dict[str, Style], settings: StreamSettings) -> None:
        self.styles, self.frames_in, self.frames_out = styles, 0, 0
        self.recent: deque[np.ndarray] = deque(maxlen=WARMUP_FRAMES)
        self.rows: deque[np.ndarray] = deque()  # frames between two steps
        self.memory = np.zeros(())
        self.update(settings)

    @property
    def warm(self) -> bool:
        return self.frames_in >= WARMUP_FRAMES

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        self.recent.append(frame)
        self.frames_in += 1
        if self.frames_in < WARMUP_FRAMES:
            return []
        if self.frames_in == WARMUP_FRAMES:
            self.restart()
            return self._count([self._draw(each) for each in self.recent])
        self.rows.append(self._draw(frame))
        return self._count([self.rows.popleft()] if len(self.rows) == self.steps else [])

    def flush(self) -> list[np.ndarray]:
        rows = [*self.rows] if self.warm else [self._draw(frame) for frame in self.recent]
        self.rows.clear()
        return self._count(rows)

    def update(self, settings: StreamSettings, **options: Any) -> None:
        if settings.style is not None and settings.style not in self.styles:
            raise ValueError(f"There is no style {settings.style!r}.")
        self.settings, self.steps = settings, settings.steps or 2
        self.ignored_words = " ".join((settings.prompt or "").split()[WORDS:])

    def restart(self) -> None:
        self.memory = np.mean([*self.recent], axis=0)

    def close(self) -> None:
        pass

    def _draw(self, frame: np.ndarray) -> np.ndarray:
        self.memory = 0.9 * self.memory + 0.1 * frame
        look = sum(map(ord, f"{self.settings.style} {self.settings.prompt} {self.settings.seed}")) % 64
        return ((frame + 3 * self.memory + 4 * look) / 5).astype(np.uint8)

    def _count(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        self.frames_out += len(frames)
        return frames


def recall_engine() -> Engine:
    """An engine with room for two."""
    return Engine(Recall(), capacity=2, idle_seconds=float("inf"))
