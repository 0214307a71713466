# ruff: noqa: E402 - started as a script, it does not find the package and the helpers beside its folder
"""What happens when more comes in than can be done: `python tests/load.py [--visitors 1 2 4 8]`.

The real app with the nano model in a process of its own, and visitors who each send camera frames through a
real socket at three times the rate at which one alone is answered. Prints a table, and as its last line JSON:
for each number of visitors how many were held and how many waited in line, pictures a second for each, the
delay from sending a frame to having its picture, how much that grew from the first to the last third, the
share of frames left out before the model, and the frames that went into the model and never came out (none).
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

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]  # tests, the package

import cv2
import numpy as np
from helpers.browser import numbered
from measure.soak import SETTINGS, served
from websockets.asyncio.client import ClientConnection, connect

OVERLOAD = 3.0  # times our own speed
PICTURE = struct.Struct("<5I")
SETTLED = 16  # answers, the 8 of the warmup included
FILM = [cv2.imencode(".jpg", numbered(number, 384, 288))[1].tobytes() for number in range(32)]


@dataclass
class Seen:
    """What one visitor saw."""

    held: bool = False
    sent: dict[int, float] = field(default_factory=dict)  # number -> when
    before: int = 0  # frames sent before the first picture
    came: list[tuple[float, float]] = field(default_factory=list)  # (when, seconds since its frame was sent)
    lost: int = 0  # frames that the model took and that no picture shows


async def take(socket: ClientConnection, seen: Seen, running: asyncio.Event) -> None:
    """Whatever the server says."""
    async for message in socket:
        if isinstance(message, str):
            told = json.loads(message)
            assert "error" not in told, told
            seen.held |= "started" in told
            continue
        shows, takes, *_, gathered = PICTURE.unpack_from(message)
        if gathered:
            continue
        if not running.is_set():
            running.set()
            seen.before = len(seen.sent)
        seen.lost += shows != takes  # with one denoising step each frame that goes in comes out at once
        seen.came.append((time.monotonic(), time.monotonic() - seen.sent[shows]))


async def give(socket: ClientConnection, seen: Seen, number: int) -> None:
    seen.sent[number] = time.monotonic()
    await socket.send(struct.pack("<I", number) + FILM[number % len(FILM)])


async def visit(url: str, rate: float, seconds: float, seen: Seen) -> None:
    """Frames at `rate` for so long, from the first picture on; whoever waits in line goes on waiting."""
    async with connect(url, compression=None, max_queue=None) as socket:
        running = asyncio.Event()
        taking = asyncio.create_task(take(socket, seen, running))
        await socket.send(json.dumps({"start": SETTINGS}))
        number, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            if taking.done():
                taking.result()
                return
            if not seen.held:
                await asyncio.sleep(0.1)
                continue
            number += 1
            await give(socket, seen, number)
            begun += 0 if running.is_set() else 1 / rate
            await asyncio.sleep(1 / rate)
        taking.cancel()


async def own_speed(url: str, frames: int = 60) -> float:
    """Pictures a second for one visitor of whom one frame is worked on and the next is there already. The
    first ones do not count: parts are loaded then."""
    async with connect(url, compression=None) as socket:
        await socket.send(json.dumps({"start": SETTINGS}))
        sent = taken = answers = 0
        while answers < SETTLED + frames:
            message = await socket.recv()
            if isinstance(message, str) and "started" not in json.loads(message):
                continue
            if isinstance(message, bytes):
                _, taken, *_ = PICTURE.unpack_from(message)
                answers += 1
                if answers == SETTLED:
                    begun = time.monotonic()
            while sent - taken < 2:
                sent += 1
                await socket.send(struct.pack("<I", sent) + FILM[sent % len(FILM)])
        return frames / (time.monotonic() - begun)


def judged(visitors: list[Seen], seconds: float) -> dict[str, float]:
    """The line of the table for so many visitors at once."""
    held = [seen for seen in visitors if seen.came]
    delays = np.array([delay for seen in held for _, delay in seen.came]) * 1000
    first = min(when for seen in held for when, _ in seen.came)
    last = max(when for seen in held for when, _ in seen.came)
    third = (last - first) / 3
    early, late = (
        np.median([delay * 1000 for seen in held for when, delay in seen.came if low <= when - first <= high])
        for low, high in ((0, third), (2 * third, 3 * third))
    )
    sent = sum(len(seen.sent) - seen.before for seen in held)
    p50, p95, p99 = np.percentile(delays, [50, 95, 99])
    return {
        "visitors": len(visitors),
        "held": len(held),
        "in_line": len(visitors) - len(held),
        "each_per_second": round(len(delays) / seconds / len(held), 2),
        "delay_p50": round(p50, 1),
        "delay_p95": round(p95, 1),
        "delay_p99": round(p99, 1),
        "grew_by": round(late - early, 1),
        "left_out": round(1 - len(delays) / sent, 3),
        "lost_inside": sum(seen.lost for seen in held),
    }


async def load(url: str, numbers: list[int], seconds: float, rate: float) -> list[dict[str, float]]:
    """Each number of visitors, one after the other."""
    rows = []
    for count in numbers:
        visitors = [Seen() for _ in range(count)]
        async with asyncio.TaskGroup() as group:
            for seen in visitors:
                group.create_task(visit(url, rate, seconds, seen))
        rows.append(judged(visitors, seconds))
        print(" ".join(f"{value:>11}" for value in rows[-1].values()), flush=True)
        await asyncio.sleep(1)  # the places are free again
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each (%(default)s)")
    parser.add_argument("--visitors", type=int, nargs="+", default=[1, 2, 4, 8], help="how many at once")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as (_, address):
        url = address.replace("http", "ws", 1) + "live-socket"
        speed = asyncio.run(own_speed(url))
        print(f"alone: {speed:.1f} pictures a second; each visitor sends {OVERLOAD * speed:.1f}")
        names = (
            "visitors",
            "held",
            "in line",
            "each/s",
            "p50 ms",
            "p95 ms",
            "p99 ms",
            "grew by",
            "left out",
            "lost",
        )
        print(" ".join(f"{name:>11}" for name in names))
        rows = asyncio.run(load(url, options.visitors, options.seconds, OVERLOAD * speed))
    print(json.dumps({"alone_per_second": round(speed, 2), "seconds": options.seconds, "rows": rows}))
    sys.exit(any(row["lost_inside"] for row in rows))


if __name__ == "__main__":
    main()
