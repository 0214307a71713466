"""Translate the files named on standard input, one a line, within limits; print a line of JSON for each.

    python tests/helpers/read_hostile.py FOLDER < names

A process of its own: a decoder that crashes, hangs or fills the memory ends this and not the tests.
"""

import faulthandler
import json
import re
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from live2diff.errors import ClipError
from live2diff.video.reader import Limits
from live2diff.video.translate import translate

SECONDS, MEMORY, OUTPUT = 30, 3 * 2**30, 64 * 2**20  # for one file; beyond them this process ends
LIMITS = Limits(max_frames=300, max_seconds=20.0, max_pixels=1920 * 1080, max_bytes=64 * 2**20)


class Through:
    """A stream that returns its frames unchanged."""

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        return [frame]

    def flush(self) -> list[np.ndarray]:
        return []


def read(source: Path, target: Path) -> str:
    """Return "made", or the message of the refusal."""
    try:
        for _ in translate(Through(), source, target, limits=LIMITS):
            pass
    except ClipError as error:
        return f"refused: {error}"
    return "made"


def peak_megabytes() -> int:
    """Return the most memory of this process; `ru_maxrss` would include that of its parent."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) // 1024


def main() -> None:
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT, OUTPUT))
    target = Path(sys.argv[1]) / "out.mp4"
    for line in sys.stdin:
        source = Path(line.rstrip("\n"))
        print(json.dumps({"begun": source.name}), flush=True)
        signal.alarm(SECONDS)  # nobody catches it
        begun = time.monotonic()
        outcome = read(source, target)
        signal.alarm(0)
        made = {
            "name": source.name,
            "outcome": outcome,
            "seconds": round(time.monotonic() - begun, 2),
            "peak_mb": peak_megabytes(),
            "bytes": target.stat().st_size if target.exists() else 0,
            "left": sorted(path.name for path in target.parent.glob(".*")),
        }
        target.unlink(missing_ok=True)
        print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
