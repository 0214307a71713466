"""The page's temporary files: how long uploads and results stay, and how many bytes of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

KEPT_SECONDS = 3600  # how long results stay on the disk
EMPTY_SECONDS = 600  # how long an empty folder does
MOST_BYTES = 4 * 2**30  # of all of them together
LOOK_SECONDS = 20.0  # what comes in between two looks may exceed that


def keep_tidy(tidy: Callable[[], None], running: Callable[[], bool]) -> None:
    """Call `tidy` now and then, in the background, as long as `running` says so."""

    def keep() -> None:
        while running():
            tidy()
            time.sleep(LOOK_SECONDS)

    threading.Thread(target=keep, name="housekeeping", daemon=True).start()


def sweep(folder: Path, most_bytes: int | None = None, in_use: Collection[Path] = ()) -> None:
    """Delete results in `folder` that are older than an hour, and empty folders beside it: Gradio deletes its
    old files, and leaves a folder for each. If all that lies there has more than `most_bytes`, the oldest
    files go, whatever their age, but for those in use."""
    now = time.time()
    for path in folder.glob("*.mp4"):  # half-written ones too
        delete_if_old(path, now - KEPT_SECONDS)
    for path in folder.parent.iterdir() if folder.parent.exists() else ():
        if path.is_dir() and path != folder:
            delete_if_old(path, now - EMPTY_SECONDS)
    if most_bytes is not None:
        make_room(folder.parent, most_bytes, in_use)


def make_room(folder: Path, most_bytes: int, in_use: Collection[Path]) -> None:
    """Delete the oldest files until no more than so many bytes are left."""
    files: list[tuple[float, int, Path]] = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            try:
                status = path.lstat()
            except FileNotFoundError:  # gone meanwhile
                continue
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most_bytes:
            return
        if path not in in_use:
            path.unlink(missing_ok=True)
            total -= size


def delete_if_old(path: Path, before: float) -> None:
    """Delete a file, or a folder if it is empty, that nobody has changed since."""
    try:
        if path.stat().st_mtime < before:
            path.rmdir() if path.is_dir() else path.unlink()
    except OSError:
        pass  # gone meanwhile, not empty, or somebody else's
