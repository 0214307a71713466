# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Check that nothing grows over time: `python tests/measure/soak.py [--minutes 10] [--cycles 50]`.

The real page with the nano model, a camera, and a visitor who changes the style now and then. Then streams
are opened and ended in every possible way. Prints the resources of server and browser; the last line is JSON
with the first and the last of them. Exits with 1 if one grew by more than `TOLERANCE`.
"""

import argparse
import itertools
import json
import os
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package

import cv2
from helpers.browser import chromium, numbered, write_camera
from measure.server import live_socket, served
from playwright.sync_api import CDPSession, Page, sync_playwright
from websockets.sync.client import connect

STYLE_SECONDS = 15.0
SETTINGS = {"style": "pencil", "prompt": "", "seed": 0, "steps": 1}
# Allowed growth: allocators and compilers take a while to settle. Fifty streams that were not freed, or their
# sockets, would be far more.
TOLERANCE = {
    "server_mb": 60.0,
    "threads": 4,
    "open_files": 4,
    "temporary_mb": 1.0,
    "temporary_files": 4,
    "heap_mb": 3.0,
    "nodes": 100,
}


def megabytes(folder: Path) -> float:
    """Return the size of all files in a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def resources(server: int, folder: Path, browser: CDPSession) -> dict[str, float]:
    """Return the resources of the server's process, its temporary files and the page."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{server}/status").read_text().splitlines())
    browser.send("HeapProfiler.collectGarbage")
    metrics = {
        metric["name"]: metric["value"] for metric in browser.send("Performance.getMetrics")["metrics"]
    }
    return {
        "server_mb": round(int(status["VmRSS"].split()[0]) / 1000, 1),
        "threads": int(status["Threads"]),
        "open_files": len(os.listdir(f"/proc/{server}/fd")),
        "temporary_mb": round(megabytes(folder), 2),
        "temporary_files": sum(1 for _ in folder.rglob("*")),
        "heap_mb": round(metrics["JSHeapUsedSize"] / 1e6, 2),
        "nodes": int(metrics["Nodes"]),
    }


def use(page: Page, seconds: float) -> None:
    """Use the page for so long, choosing one style after the other."""
    styles = page.locator("#live .styles label")
    end, chosen = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        chosen = (chosen + 1) % styles.count()
        styles.nth(chosen).click()
        page.wait_for_timeout(min(STYLE_SECONDS, max(0.1, end - time.monotonic())) * 1000)
        state = page.locator("#live .stage").get_attribute("data-state")
        assert state == "running", f"{state}: {page.locator('#live .message').inner_text()}"


def open_and_end(address: str, cycles: int) -> None:
    """Open streams, push some frames, and end them: by Stop, by closing, by a cut, by an invalid message."""
    url = live_socket(address)
    jpeg = cv2.imencode(".jpg", numbered(1, 320, 240))[1].tobytes()
    for _, end in zip(range(cycles), itertools.cycle(("stop", "close", "cut", "nonsense")), strict=False):
        with connect(url, compression=None) as visitor:
            visitor.send(json.dumps({"start": SETTINGS}))
            number = 0
            while number < 10:
                message = visitor.recv(120)
                if isinstance(message, bytes) or "started" in json.loads(message):
                    number += 1
                    visitor.send(struct.pack("<I", number) + jpeg)
            if end == "cut":
                visitor.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                visitor.socket.close()
            elif end != "close":
                visitor.send(json.dumps({"stop": True}) if end == "stop" else "nonsense")


def growth(first: dict[str, float], last: dict[str, float]) -> list[str]:
    """Describe each resource that grew by more than its tolerance."""
    return [
        f"{name}: {first[name]} -> {last[name]}"
        for name, tolerance in TOLERANCE.items()
        if last[name] - first[name] > tolerance
    ]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--cycles", type=int, default=50, help="streams opened and ended (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name) / "temporary"
        folder.mkdir()
        images = (numbered(number, 320, 240) for number in range(200))
        camera = write_camera(Path(name) / "camera.y4m", images, 30)
        with served(folder) as (server, address), chromium(playwright, camera) as browser:
            page = browser.new_page()
            page.goto(address)
            page.get_by_role("tab", name="Live").click()
            page.locator("#live .start").click()
            page.wait_for_selector('#live .stage[data-state="running"]', timeout=180_000)
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            samples: list[dict[str, float]] = []

            def sample(title: str) -> None:
                samples.append(resources(server, folder, session))
                print(f"{title:18}", samples[-1], flush=True)

            use(page, min(20.0, options.minutes * 6))  # fonts and such are loaded only once
            sample("start")
            for tenth in range(1, 11):
                use(page, options.minutes * 6)
                sample(f"{options.minutes * tenth / 10:.1f} min")
            page.locator("#live .stop").click()
            open_and_end(address, 4)  # each way once before the first sample
            sample("before streams")
            open_and_end(address, options.cycles)
            sample("after streams")
    result = {"minutes": options.minutes, "start": samples[0], "end": samples[-3]}
    result |= {"cycles": options.cycles, "before": samples[-2], "after": samples[-1]}
    result["grown"] = growth(samples[0], samples[-3]) + growth(samples[-2], samples[-1])
    print(json.dumps(result))
    sys.exit(bool(result["grown"]))


if __name__ == "__main__":
    main()
