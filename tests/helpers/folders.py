"""Translators for tests of folders: a stream that returns its frames, and clips that kill their worker."""

import os
import signal
from collections.abc import Generator
from pathlib import Path

import numpy as np

from live2diff.video.folder import ClipJob
from live2diff.video.translate import Progress, translate


class Identity:
    """A stream that returns each frame as it is."""

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        return [frame]

    def flush(self) -> list[np.ndarray]:
        return []


class CopyingTranslator:
    """Write each clip again as it is.

    A clip called `deadly` kills the process each time; `once` kills it once, in the middle.
    """

    def __init__(self, error: str = "") -> None:
        if error:
            raise ValueError(error)

    def __call__(self, job: ClipJob) -> Generator[Progress]:
        marker = job.target.with_suffix(".began")
        for step in translate(Identity(), job.source, job.target):
            if job.source.stem == "deadly" or (job.source.stem == "once" and not marker.exists()):
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield step


def results(folder: Path) -> list[str]:
    """The files of a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
