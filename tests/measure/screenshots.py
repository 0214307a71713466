"""Pictures of the page for the README: `python tests/screenshots.py` writes examples/page/*.jpg.

Starts the app on the nano model, opens it in Chromium with an example clip as its camera, and waits until
there is something to see. Parts of their names choose among the pictures: `... video`, `... phone dark`.
"""

import argparse
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from live2diff.video.reader import read_frames  # noqa: E402 - started as a script

OUT = ROOT / "examples" / "page"
CAMERA = ROOT / "examples" / "traveller.mp4"
CAMERA_FILE = "camera.y4m"
PATIENCE = 300_000  # milliseconds: a busy machine without a GPU
LARGEST = 120_000  # bytes of a picture
SCREENS = {"": (1280, 900), "phone-": (375, 812)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--no-sandbox",
    "--disable-gpu",
]
# The largest visible canvas shows a picture: not all of it has the same colour.
PAINTED = """() => [...document.querySelectorAll("canvas")].some((canvas) => {
  if (!canvas.offsetParent || canvas.width < 64) return false;
  const small = document.createElement("canvas");
  small.width = small.height = 8;
  small.getContext("2d").drawImage(canvas, 0, 0, 8, 8);
  return new Set(new Uint32Array(small.getContext("2d").getImageData(0, 0, 8, 8).data.buffer)).size > 8;
})"""


def write_camera(path: Path) -> None:
    """The clip as what Chromium takes for a camera."""
    with path.open("wb") as file:
        for frame, _ in read_frames(CAMERA):
            if not file.tell():
                file.write(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (frame.shape[1], frame.shape[0]))
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())


@contextmanager
def served() -> Iterator[str]:
    """The address of the app on the nano model, which ends with this."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, ROOT / "app.py", "--model", "nano", "--port", str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/config", timeout=5).close()
                break
            except OSError:
                continue
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def live(page: Page) -> None:
    """The Live tab, with pictures coming out."""
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name=re.compile("^Start")).first.click()
    # Past the warmup, over the visitor's own picture: until something counts frames.
    page.wait_for_function(PAINTED)
    expect(page.locator("#live")).not_to_contain_text(re.compile("warming|waiting|starting", re.IGNORECASE))
    expect(page.locator("#live").get_by_text(re.compile(r"\d ms"))).to_be_visible()
    # Chromium's stand-in for a camera bears the name of its file.
    page.locator("#live option", has_text=CAMERA_FILE).evaluate(
        "option => { option.textContent = 'Camera'; }"
    )


def video(page: Page) -> None:
    """The Video tab, with a finished result."""
    page.get_by_role("tab", name="Video").click()
    page.locator("#examples button:has(img)").first.click()
    result = page.locator("#result video")
    page.wait_for_function("() => document.querySelector('#result video')?.readyState >= 2")
    page.wait_for_function("() => document.querySelector('#clip video')?.readyState >= 2")
    expect(result).to_be_visible()
    for selector in ("#clip", "#result"):
        page.locator(f"{selector} video").evaluate("video => { video.pause(); video.currentTime = 1.6; }")
    videos = "[...document.querySelectorAll('#clip video, #result video')]"
    page.wait_for_function(
        f"() => {videos}.every(video => !video.seeking && video.readyState === 4 && video.networkState === 1)"
    )
    page.wait_for_timeout(1500)  # the player's own sign that it is loading fades
    if page.viewport_size["width"] < 640:
        page.locator("#clip").evaluate("clip => clip.scrollIntoView()")
    page.evaluate("() => document.activeElement?.blur()")
    page.mouse.move(2, 2)


def wanted(names: list[str]) -> list[tuple[str, str, str]]:
    """(screen, tab, theme) of the pictures that the names are part of."""
    every = [
        (screen, tab, look) for tab in ("live", "video") for screen in SCREENS for look in ("light", "dark")
    ]
    return [one for one in every if not names or any(name in "{}{}-{}".format(*one) for name in names)]


def picture(browser: Browser, address: str, screen: str, tab: str, look: str) -> None:
    width, height = SCREENS[screen]
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=look, device_scale_factor=1
    )
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/?__theme={look}")
    {"live": live, "video": video}[tab](page)
    path = OUT / f"{screen}{tab}-{look}.jpg"
    for quality in (85, 75, 65, 50):
        page.screenshot(path=path, type="jpeg", quality=quality)
        if path.stat().st_size <= LARGEST:
            break
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    page.close()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("names", nargs="*", help="parts of their names (default: all)")
    told = words.parse_args()
    expect.set_options(timeout=PATIENCE)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, served() as address, sync_playwright() as playwright:
        camera = Path(folder) / CAMERA_FILE
        write_camera(camera)
        flags = [*FLAGS, f"--use-file-for-fake-video-capture={camera}"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        for one in wanted(told.names):
            picture(browser, address, *one)
        browser.close()


if __name__ == "__main__":
    main()
