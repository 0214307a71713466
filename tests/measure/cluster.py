# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Measure what a cluster adds: `python tests/measure/cluster.py delay` or `kills`.

On this machine, with two workers and a model that changes nothing. `delay` compares the time from a camera's
JPEG to the result's JPEG with that of a local engine, in turns. `kills` ends a worker by signal 9 each minute
while viewers stream: no viewer may be lost, nothing may be left behind. The last line is JSON.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])

import numpy as np
from helpers.browser import Identity
from helpers.waiting import PATIENCE, wait_for

from live2diff.cluster.start import start_cluster
from live2diff.serving.engine import Engine
from live2diff.streaming.images import JPEG_QUALITY, decode_frame, encode_jpeg
from live2diff.streaming.settings import StreamSettings

SIDE = 384  # pixels of a camera frame


def identity_engine() -> Engine:
    """Return an engine on a model that changes nothing."""
    return Engine(Identity(), capacity=2, idle_seconds=float("inf"))


def camera_frame(seed: int) -> bytes:
    """Return a JPEG of some 30 kB."""
    small = np.random.default_rng(seed).integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    return encode_jpeg(np.kron(small, np.ones((8, 8, 1), np.uint8)), 80)


def measure_delay(cluster: Any, frames: int) -> dict[str, float]:
    """Return median and 95th percentile of both ways in milliseconds, and what the cluster adds."""
    local, jpegs = identity_engine(), [camera_frame(seed) for seed in range(16)]
    times: dict[str, list[float]] = {"local": [], "cluster": []}

    def through_local(jpeg: bytes) -> None:
        frame = local.push("ann", decode_frame(jpeg)).result(PATIENCE).frames[-1]
        encode_jpeg(frame, JPEG_QUALITY)

    def through_cluster(jpeg: bytes) -> None:
        assert cluster.push("ann", jpeg).result(PATIENCE).frames[-1]

    for engine in (local, cluster):
        engine.open("ann", StreamSettings()).result(PATIENCE)
    for jpeg in jpegs[:8]:
        local.push("ann", decode_frame(jpeg)).result(PATIENCE)
        cluster.push("ann", jpeg).result(PATIENCE)
    for number in range(frames):
        for name, push in (("local", through_local), ("cluster", through_cluster)):
            began = time.perf_counter()
            push(jpegs[number % len(jpegs)])
            times[name].append(1000 * (time.perf_counter() - began))
    for engine in (local, cluster):
        engine.close("ann").result(PATIENCE)
    local.shutdown()
    p50, p95 = ({name: float(np.percentile(each, q)) for name, each in times.items()} for q in (50, 95))
    return {
        "bytes": len(jpegs[0]),
        **{f"{name}_p50": value for name, value in p50.items()},
        **{f"{name}_p95": value for name, value in p95.items()},
        "added_p50": p50["cluster"] - p50["local"],
    }


def left_behind(cluster: Any) -> dict[str, int]:
    """Return what must not grow: threads and files of the front, streams and calls of the workers."""
    return {
        "threads": threading.active_count(),
        "files": len(os.listdir(f"/proc/{os.getpid()}/fd")),
        "streams": sum(len(worker.streams) for worker in cluster.pool.ready()),
    }


def watch_kills(cluster: Any, minutes: float, every: float, viewers: int = 2) -> dict[str, Any]:
    """Stream while workers are killed, `every` so many seconds; return frames, freezes and what is left."""
    before, over, freezes = left_behind(cluster), threading.Event(), [0.0] * viewers
    counts, lost, errors = [0] * viewers, [0] * viewers, []

    def view(viewer: int) -> None:
        key, last = f"viewer {viewer}", time.monotonic()
        cluster.open(key, StreamSettings()).result(PATIENCE)
        for number in count():
            if over.wait(0.05):
                break
            try:
                result = cluster.push(key, camera_frame(number % 16)).result(PATIENCE)
            except RuntimeError as error:
                errors.append(repr(error))
                break
            counts[viewer] += 1
            if result.frames:
                now = time.monotonic()
                freezes[viewer], last = max(freezes[viewer], now - last), now
            elif result.warm:
                lost[viewer] += 1
        cluster.close(key).result(PATIENCE)

    threads = [threading.Thread(target=view, args=[viewer]) for viewer in range(viewers)]
    for thread in threads:
        thread.start()
    kills, end = 0, time.monotonic() + 60 * minutes
    while not over.wait(every) and time.monotonic() < end:
        wait_for(lambda: len(cluster.pool.ready()) >= 2)  # else there is nowhere to go on
        worker = max(cluster.pool.ready(), key=lambda worker: len(worker.streams))
        os.kill(worker.announced.process, signal.SIGKILL)
        kills += 1
    over.set()
    for thread in threads:
        thread.join()
    while len(cluster.pool.ready()) < 2:
        time.sleep(0.5)
    return {
        "minutes": minutes,
        "kills": kills,
        "frames": counts,
        "lost_frames": lost,
        "longest_freeze_s": freezes,
        "errors": errors,
        "before": before,
        "after": left_behind(cluster),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("delay", "kills"))
    parser.add_argument("--frames", type=int, default=500, help="of the delay (%(default)s)")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between kills (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the kills (%(default)s)")
    options = parser.parse_args()
    cluster: Any = start_cluster("local", identity_engine)
    while len(cluster.pool.ready()) < 2:
        time.sleep(0.5)
    try:
        if options.what == "delay":
            print(json.dumps(measure_delay(cluster, options.frames)))
        else:
            print(json.dumps(watch_kills(cluster, options.minutes, options.every)))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
