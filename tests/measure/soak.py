# ruff: noqa: E402 - started as a script, it does not find the package and the helpers beside its folder
"""Hours in minutes, to see that nothing grows: `python tests/soak.py [--minutes 10] [--cycles 50]`.

The real page with the nano model, a camera, and a visitor who changes the style now and then. Then streams
are opened and left, in every way there is. Prints what server and browser hold, and as its last line JSON
with the first and the last of it; ends with 1 if something grew by more than `TOLERANCE`.
"""

import argparse
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]  # tests, the package

import cv2
from helpers.browser import chromium, numbered, wait_for, write_camera
from playwright.sync_api import CDPSession, Page, sync_playwright
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

ROOT = Path(__file__).parents[2]
STYLE_SECONDS = 15.0
SETTINGS = {"style": "pencil", "prompt": "", "seed": 0, "steps": 1}
# What each may grow by: allocators and compilers take a while to settle. Fifty streams that were not freed,
# or their sockets, would be far more.
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
    files = [file for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def looked_at(server: int, folder: Path, browser: CDPSession) -> dict[str, float]:
    """What the server's process, its folder of temporary files, and the page hold."""
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


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, str]]:
    """The app in a process of its own, with its temporary files in `folder`: its number and address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen(
        [sys.executable, ROOT / "app.py", "--model", "nano", "--port", str(port)],
        env=os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")},
    )

    def ready() -> bool:
        assert server.poll() is None, "app.py has ended"
        try:
            with connect(address.replace("http", "ws", 1) + "live-socket"):  # the last thing to be there
                return True
        except (OSError, InvalidStatus):
            return False

    try:
        wait_for(ready)
        yield server.pid, address
    finally:
        server.terminate()
        server.wait(30)


def use(page: Page, seconds: float) -> None:
    """A visitor for so long, who tries one style after the other."""
    styles = page.locator("#live .styles label")
    end, chosen = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        chosen = (chosen + 1) % styles.count()
        styles.nth(chosen).click()
        page.wait_for_timeout(min(STYLE_SECONDS, max(0.1, end - time.monotonic())) * 1000)
        state = page.locator("#live .stage").get_attribute("data-state")
        assert state == "running", f"{state}: {page.locator('#live .message').inner_text()}"


def come_and_go(address: str, cycles: int) -> None:
    """Streams are opened, get some frames, and are left: by Stop, by a farewell, by a cut, after nonsense."""
    url = address.replace("http", "ws", 1) + "live-socket"
    jpeg = cv2.imencode(".jpg", numbered(1, 320, 240))[1].tobytes()
    for _, leave in zip(range(cycles), itertools.cycle(("stop", "close", "cut", "nonsense")), strict=False):
        with connect(url, compression=None) as visitor:
            visitor.send(json.dumps({"start": SETTINGS}))
            number = 0
            while number < 10:
                message = visitor.recv(120)
                if isinstance(message, bytes) or "started" in json.loads(message):
                    number += 1
                    visitor.send(struct.pack("<I", number) + jpeg)
            if leave == "cut":
                visitor.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                visitor.socket.close()
            elif leave != "close":
                visitor.send(json.dumps({"stop": True}) if leave == "stop" else "nonsense")


def grown(first: dict[str, float], last: dict[str, float]) -> list[str]:
    return [
        f"{name}: {first[name]} -> {last[name]}"
        for name, room in TOLERANCE.items()
        if last[name] - first[name] > room
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    parser.add_argument("--cycles", type=int, default=50, help="streams opened and left (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name) / "temporary"
        folder.mkdir()
        film = (numbered(number, 320, 240) for number in range(200))
        camera = write_camera(Path(name) / "camera.y4m", film, 30)
        with served(folder) as (server, address), chromium(playwright, camera) as browser:
            page = browser.new_page()
            page.goto(address)
            page.get_by_role("tab", name="Live").click()
            page.locator("#live .start").click()
            page.wait_for_selector('#live .stage[data-state="running"]', timeout=180_000)
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            looks: list[dict[str, float]] = []

            def look(what: str) -> None:
                looks.append(looked_at(server, folder, session))
                print(f"{what:18}", looks[-1], flush=True)

            use(page, min(20.0, options.minutes * 6))  # what is loaded only once, such as fonts
            look("at first")
            for tenth in range(1, 11):
                use(page, options.minutes * 6)
                look(f"{options.minutes * tenth / 10:.1f} min")
            page.locator("#live .stop").click()
            come_and_go(address, 4)  # each way once before the first look
            look("before the visits")
            come_and_go(address, options.cycles)
            look("after the visits")
    result = {"minutes": options.minutes, "start": looks[0], "end": looks[-3]}
    result |= {"cycles": options.cycles, "before": looks[-2], "after": looks[-1]}
    result["grown"] = grown(looks[0], looks[-3]) + grown(looks[-2], looks[-1])
    print(json.dumps(result))
    sys.exit(bool(result["grown"]))


if __name__ == "__main__":
    main()
