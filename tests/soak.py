"""Minutes of live use in a real browser, to see that nothing grows: `python tests/soak.py [--minutes 10]`.

The real page with the nano model, a camera, and a visitor who changes the style now and then. Prints what
server and browser hold every tenth of the time, and as its last line JSON with the first and the last of it.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from browser import chromium, numbered, wait_for, write_camera
from playwright.sync_api import CDPSession, Page, sync_playwright

ROOT = Path(__file__).parent.parent
STYLE_SECONDS = 15.0


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (%(default)s)")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name) / "temporary"
        folder.mkdir()
        server = subprocess.Popen(
            [sys.executable, ROOT / "app.py", "--model", "nano", "--port", str(port)],
            env=os.environ | {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "gradio")},
        )

        def ready() -> bool:
            assert server.poll() is None, "app.py has ended"
            try:
                return urllib.request.urlopen(f"{address}config", timeout=5).status == 200
            except OSError:
                return False

        try:
            wait_for(ready)
            film = (numbered(number, 320, 240) for number in range(200))
            with chromium(playwright, write_camera(Path(name) / "camera.y4m", film, 30)) as browser:
                page = browser.new_page()
                page.goto(address)
                page.get_by_role("tab", name="Live").click()
                page.locator("#live .start").click()
                page.wait_for_selector('#live .stage[data-state="running"]', timeout=180_000)
                session = page.context.new_cdp_session(page)
                session.send("Performance.enable")
                use(page, min(20.0, options.minutes * 6))  # what is loaded only once, such as fonts
                looks = [looked_at(server.pid, folder, session)]
                print(f"{0:5.1f} min", looks[0], flush=True)
                for tenth in range(1, 11):
                    use(page, options.minutes * 6)
                    looks.append(looked_at(server.pid, folder, session))
                    print(f"{options.minutes * tenth / 10:5.1f} min", looks[-1], flush=True)
        finally:
            server.terminate()
            server.wait(30)
    print(json.dumps({"minutes": options.minutes, "start": looks[0], "end": looks[-1]}))


if __name__ == "__main__":
    main()
