# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Take the README's screenshots of the page: `python tests/measure/screenshots.py [NAME ...]`.

Starts the app on the nano model, opens it in Chromium with an example clip as its camera, waits for output,
and writes examples/page/*.jpg. Parts of their names choose among them, like `video` or `phone`.
"""

import argparse
import itertools
import re
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package

from helpers.browser import chromium, write_camera
from helpers.paths import EXAMPLES
from measure.server import served
from playwright.sync_api import Browser, Page, expect, sync_playwright

from live2diff.video.reader import read_frames

OUT = EXAMPLES / "page"
CAMERA = EXAMPLES / "traveller.mp4"
CAMERA_FILE = "camera.y4m"
PATIENCE = 300_000  # milliseconds: a busy machine without a GPU
LARGEST = 120_000  # bytes of a file
SCREENS = {"": (1280, 900), "phone-": (375, 812)}
# A large visible canvas shows an image: not all of it has the same colour.
PAINTED = """() => [...document.querySelectorAll("canvas")].some((canvas) => {
  if (!canvas.offsetParent || canvas.width < 64) return false;
  const small = document.createElement("canvas");
  small.width = small.height = 8;
  small.getContext("2d").drawImage(canvas, 0, 0, 8, 8);
  return new Set(new Uint32Array(small.getContext("2d").getImageData(0, 0, 8, 8).data.buffer)).size > 8;
})"""


def live(page: Page) -> None:
    """Show the Live tab with output."""
    page.get_by_role("tab", name="Live").click()
    page.get_by_role("button", name=re.compile("^Start")).first.click()
    # Past the warmup, over the camera's own image: until the frame rate is shown.
    page.wait_for_function(PAINTED)
    expect(page.locator("#live")).not_to_contain_text(re.compile("warming|waiting|starting", re.IGNORECASE))
    expect(page.locator("#live .fps")).to_have_text(re.compile(r"\d"))
    page.wait_for_timeout(6000)  # the figures are averages of the last seconds
    # Chromium's stand-in for a camera bears the name of its file.
    page.locator("#live option", has_text=CAMERA_FILE).evaluate(
        "option => { option.textContent = 'Camera'; }"
    )


def video(page: Page) -> None:
    """Show the Video tab with a finished result."""
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


def choose(names: list[str]) -> list[tuple[str, str, str]]:
    """Return (screen, tab, theme) of the screenshots that the names are part of."""
    every = itertools.product(SCREENS, ("live", "video"), ("light", "dark"))
    return [one for one in every if not names or any(name in "{}{}-{}".format(*one) for name in names)]


def take(browser: Browser, address: str, screen: str, tab: str, theme: str) -> None:
    """Take one screenshot, compressed to fit."""
    width, height = SCREENS[screen]
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=theme, device_scale_factor=1
    )
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}?__theme={theme}")
    {"live": live, "video": video}[tab](page)
    path = OUT / f"{screen}{tab}-{theme}.jpg"
    for quality in (85, 75, 65, 50):
        page.screenshot(path=path, type="jpeg", quality=quality)
        if path.stat().st_size <= LARGEST:
            break
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    page.close()


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of their names (default: all)")
    names = parser.parse_args().names
    expect.set_options(timeout=PATIENCE)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        images = (frame for frame, _ in read_frames(CAMERA))
        camera = write_camera(Path(folder) / CAMERA_FILE, images, 25)
        with served(Path(folder)) as (_, address), chromium(playwright, camera) as browser:
            for one in choose(names):
                take(browser, address, *one)


if __name__ == "__main__":
    main()
