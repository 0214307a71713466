"""Delete temporary files of the page by age and total size."""

import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from .event_log import log

KEPT_SECONDS = 3600  # how long results stay
EMPTY_SECONDS = 600  # how long empty folders stay
MOST_BYTES = 4 * 2**30  # of all files together
SWEEP_SECONDS = 20.0  # between two sweeps; files that come in between may exceed the limit


def keep_tidy(tidy: Callable[[], None], running: Callable[[], bool]) -> None:
    """Call `tidy` every SWEEP_SECONDS on a thread of its own while `running` returns true."""

    def keep() -> None:
        while running():
            try:
                tidy()
            except OSError as error:  # for example, a disk is full or away for a moment
                log.warning("temporary files could not be tidied: %s", error)
            time.sleep(SWEEP_SECONDS)

    threading.Thread(target=keep, name="temp files", daemon=True).start()


def sweep(folder: Path, most_bytes: int | None = None, in_use: Collection[Path] = ()) -> None:
    """Delete results in `folder` that are over an hour old, and empty folders beside it.

    Gradio deletes its own old files, but leaves a folder for each. With `most_bytes`, the oldest files of
    `folder.parent` that are not in use are deleted too, at any age, until at most so many bytes are left.
    """
    now = time.time()
    for path in folder.glob("*.mp4"):  # half-written ones too
        delete_if_old(path, now - KEPT_SECONDS)
    for path in folder.parent.iterdir() if folder.parent.exists() else ():
        if path.is_dir() and path != folder:
            delete_if_old(path, now - EMPTY_SECONDS)
    if most_bytes is not None:
        delete_oldest(folder.parent, most_bytes, in_use)


def delete_oldest(folder: Path, most_bytes: int, in_use: Collection[Path]) -> None:
    """Delete the oldest files that are not in use until at most `most_bytes` are left."""
    files: list[tuple[float, int, Path]] = []
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            try:
                status = path.lstat()
            except OSError:  # deleted meanwhile
                continue
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most_bytes:
            return
        if path not in in_use and delete_if_old(path, float("inf")):
            total -= size


def delete_if_old(path: Path, before: float) -> bool:
    """Delete a file or empty folder last changed before a Unix time; return whether it is gone."""
    try:
        if path.stat().st_mtime < before:
            path.rmdir() if path.is_dir() else path.unlink()
            return True
    except OSError:
        pass  # deleted meanwhile, not empty, or another user's
    return not path.exists()
