# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Measure the app under overload: `python tests/measure/load.py [--visitors 1 2 4 8]`.

The real app with the nano model in a process of its own, and visitors who each send camera frames through a
real socket at three times the rate at which one alone gets results. Prints a table; the last line is JSON:
for each number of visitors how many were admitted and how many queued, results a second for each, the delay
from sending a frame to its result, its growth from the first to the last third, the share of frames dropped
before the model, and the number of frames that went into the model and never came out (none).
"""

import argparse
import asyncio
import json
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package

import cv2
import numpy as np
from helpers.browser import numbered
from measure.server import live_socket, served
from websockets.asyncio.client import ClientConnection, connect

OVERLOAD = 3.0  # times the rate of a single visitor
SETTINGS = {"style": "pencil", "prompt": "", "seed": 0, "steps": 1}
RESULT = struct.Struct("<5I")
UNTIMED = 16  # results, the 8 of the warmup included
CAMERA = [cv2.imencode(".jpg", numbered(number, 384, 288))[1].tobytes() for number in range(32)]


@dataclass
class Visitor:
    """Frames and results of one visitor."""

    admitted: bool = False
    sent: dict[int, float] = field(default_factory=dict)  # number -> time
    before: int = 0  # frames sent before the first result
    results: list[tuple[float, float]] = field(default_factory=list)  # (time, delay in seconds)
    lost: int = 0  # frames that the model took and that no result shows


async def receive(socket: ClientConnection, visitor: Visitor, running: asyncio.Event) -> None:
    """Record all results."""
    async for message in socket:
        if isinstance(message, str):
            content = json.loads(message)
            assert "error" not in content, content
            visitor.admitted |= "started" in content
            continue
        shows, takes, *_, gathered = RESULT.unpack_from(message)
        if gathered:
            continue
        if not running.is_set():
            running.set()
            visitor.before = len(visitor.sent)
        visitor.lost += shows != takes  # with one denoising step each frame that goes in comes out at once
        visitor.results.append((time.monotonic(), time.monotonic() - visitor.sent[shows]))


async def send(socket: ClientConnection, visitor: Visitor, number: int) -> None:
    """Send a frame."""
    visitor.sent[number] = time.monotonic()
    await socket.send(struct.pack("<I", number) + CAMERA[number % len(CAMERA)])


async def visit(url: str, rate: float, seconds: float, visitor: Visitor) -> None:
    """Send frames at `rate` for so long, from the first result on; in the queue, wait."""
    async with connect(url, compression=None, max_queue=None) as socket:
        running = asyncio.Event()
        receiving = asyncio.create_task(receive(socket, visitor, running))
        await socket.send(json.dumps({"start": SETTINGS}))
        number, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            if receiving.done():
                receiving.result()
                return
            if not visitor.admitted:
                await asyncio.sleep(0.1)
                continue
            number += 1
            await send(socket, visitor, number)
            begun += 0 if running.is_set() else 1 / rate
            await asyncio.sleep(1 / rate)
        receiving.cancel()


async def single_rate(url: str, frames: int = 60) -> float:
    """Return results a second for one visitor whose next frame is always there already.

    The first ones do not count: parts are loaded then.
    """
    async with connect(url, compression=None) as socket:
        await socket.send(json.dumps({"start": SETTINGS}))
        sent = taken = results_count = 0
        while results_count < UNTIMED + frames:
            message = await socket.recv()
            if isinstance(message, str) and "started" not in json.loads(message):
                continue
            if isinstance(message, bytes):
                _, taken, *_ = RESULT.unpack_from(message)
                results_count += 1
                if results_count == UNTIMED:
                    begun = time.monotonic()
            while sent - taken < 2:
                sent += 1
                await socket.send(struct.pack("<I", sent) + CAMERA[sent % len(CAMERA)])
        return frames / (time.monotonic() - begun)


def summarise(visitors: list[Visitor], seconds: float) -> dict[str, float]:
    """Return the row of the table."""
    admitted = [visitor for visitor in visitors if visitor.results]
    delays = np.array([delay for visitor in admitted for _, delay in visitor.results]) * 1000
    first = min(when for visitor in admitted for when, _ in visitor.results)
    last = max(when for visitor in admitted for when, _ in visitor.results)
    third = (last - first) / 3
    early, late = (
        np.median(
            [
                delay * 1000
                for visitor in admitted
                for when, delay in visitor.results
                if low <= when - first <= high
            ]
        )
        for low, high in ((0, third), (2 * third, 3 * third))
    )
    sent = sum(len(visitor.sent) - visitor.before for visitor in admitted)
    p50, p95, p99 = np.percentile(delays, [50, 95, 99])
    return {
        "visitors": len(visitors),
        "admitted": len(admitted),
        "queued": len(visitors) - len(admitted),
        "each_per_second": round(len(delays) / seconds / len(admitted), 2),
        "delay_p50": round(p50, 1),
        "delay_p95": round(p95, 1),
        "delay_p99": round(p99, 1),
        "growth": round(late - early, 1),
        "dropped": round(1 - len(delays) / sent, 3),
        "lost_inside": sum(visitor.lost for visitor in admitted),
    }


async def load(url: str, numbers: list[int], seconds: float, rate: float) -> list[dict[str, float]]:
    """Measure each number of visitors, one after the other."""
    rows = []
    for count in numbers:
        visitors = [Visitor() for _ in range(count)]
        async with asyncio.TaskGroup() as group:
            for visitor in visitors:
                group.create_task(visit(url, rate, seconds, visitor))
        rows.append(summarise(visitors, seconds))
        print(" ".join(f"{value:>11}" for value in rows[-1].values()), flush=True)
        await asyncio.sleep(1)  # the sessions have ended
    return rows


def main() -> None:
    """Measure and print; exit with 1 if a frame was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each (%(default)s)")
    parser.add_argument("--visitors", type=int, nargs="+", default=[1, 2, 4, 8], help="how many at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (_, address):
        url = live_socket(address)
        speed = asyncio.run(single_rate(url))
        print(f"alone: {speed:.1f} results a second; each visitor sends {OVERLOAD * speed:.1f}")
        names = (
            "visitors",
            "admitted",
            "queued",
            "each/s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "growth",
            "dropped",
            "lost",
        )
        print(" ".join(f"{name:>11}" for name in names))
        rows = asyncio.run(load(url, options.visitors, options.seconds, OVERLOAD * speed))
    print(json.dumps({"alone_per_second": round(speed, 2), "seconds": options.seconds, "rows": rows}))
    sys.exit(any(row["lost_inside"] for row in rows))


if __name__ == "__main__":
    main()
