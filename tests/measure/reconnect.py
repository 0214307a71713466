# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Measure how soon a live visit goes on after its network was away: `python tests/measure/reconnect.py`.

The nano model, an example clip as the camera, a relay between page and server. Its connections are reset, or
it swallows everything without a word. Prints the seconds from its return to the first new image.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package
from helpers.browser import chromium, write_camera
from helpers.network import Network
from helpers.paths import EXAMPLES
from helpers.waiting import wait_for
from measure.server import served
from playwright.sync_api import Page, sync_playwright

from live2diff.video.reader import read_frames

WAIT = 120.0  # seconds for the page to get going
DRAWN = """(() => {
  const own = CanvasRenderingContext2D.prototype.drawImage;
  window.drawn = [];
  CanvasRenderingContext2D.prototype.drawImage = function (...rest) {
    if (this.canvas === document.querySelector("#live canvas")) drawn.push(Date.now());
    return own.apply(this, rest);
  };
})()"""


def seconds_until_image(
    page: Page, away: float, leave: Callable[[], None], back: Callable[[], None]
) -> float:
    """Take the network away for so long; return the seconds from its return to the first image."""
    leave()
    page.wait_for_timeout(away * 1000)
    page.evaluate("drawn.length = 0")
    returned = time.time() * 1000
    back()
    wait_for(lambda: page.evaluate("drawn.length > 0"))
    return (page.evaluate("drawn[0]") - returned) / 1000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--away", type=float, nargs="+", default=[2.0, 20.0], help="seconds (%(default)s)")
    parser.add_argument("--times", type=int, default=5, help="of each measurement (%(default)s)")
    options = parser.parse_args()
    frames = (frame for frame, _ in read_frames(EXAMPLES / "traveller.mp4"))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        camera = write_camera(Path(folder) / "camera.y4m", frames, 24)
        with served(Path(folder)) as (_, address), chromium(playwright, camera) as browser:
            network = Network(urlsplit(address).port or 0)
            page = browser.new_page()
            page.set_default_timeout(WAIT * 1000)
            page.add_init_script(DRAWN)
            page.goto(f"http://127.0.0.1:{network.port}/")
            page.get_by_role("tab", name="Live").click()
            page.locator("#live .start").click()
            for way, leave, back in (
                ("reset", network.cut, network.mend),
                ("silent", network.die, network.revive),
            ):
                for away in options.away:
                    seconds = []
                    for _ in range(options.times):
                        page.wait_for_selector('#live .stage[data-state="running"]')
                        page.wait_for_timeout(3000)
                        seconds.append(seconds_until_image(page, away, leave, back))
                    print(f"{way}, {away:4.0f} s away:", *(f"{each:5.2f}" for each in sorted(seconds)), "s")
            network.close()


if __name__ == "__main__":
    main()
