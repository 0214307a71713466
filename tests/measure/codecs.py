# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Measure bytes and delay of JPEG and VP9 on the live socket: `python tests/measure/codecs.py`.

An example clip with a number in each frame is the camera, the model changes nothing; a proxy adds latency and
limits the rate. Each network is measured with JPEGs, with VP9, and as the page chooses. The delay is from
camera to screen. Prints a table; the last line is JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package
import numpy as np
from helpers.browser import Identity, chromium, numbered, write_camera
from helpers.paths import EXAMPLES
from measure.delay import FRAMES, WAIT, live, measure, no_bytes, proxy
from playwright.sync_api import sync_playwright

import app
from live2diff.serving.engine import Engine
from live2diff.streaming.images import resize
from live2diff.video.reader import read_frames

SLOW = {"JPEG": 1e9, "VP9": -1e9, "the page's choice": None}  # the worker's option
SCRIPT = """window.Worker = class extends Worker {
  constructor(...rest) { super(...rest); this.postMessage({ options: { slow: %s } }); }
};"""


def camera_images() -> Iterator[np.ndarray]:
    """Yield frames of a clip, to and fro, each with its number above it."""
    clip = [
        resize(frame, (480, 640)) for frame, _ in islice(read_frames(EXAMPLES / "traveller.mp4"), FRAMES // 2)
    ]
    for number in range(FRAMES):
        image = clip[min(number, FRAMES - 1 - number) % len(clip)].copy()
        image[:128] = numbered(number)[:128]
        yield image


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (%(default)s)")
    parser.add_argument("--rate", type=int, default=24, help="camera frames a second (%(default)s)")
    parser.add_argument(
        "--away", type=float, nargs="+", default=[0.0, 50.0], help="ms there and back (%(default)s)"
    )
    parser.add_argument(
        "--megabits", type=float, nargs="+", default=[2.0, 10.0], help="a second (%(default)s)"
    )
    options = parser.parse_args()
    engine = Engine(Identity())
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        camera = write_camera(Path(folder) / "camera.y4m", camera_images(), options.rate)
        networks = [(away, megabits) for away in options.away for megabits in options.megabits]
        for away, megabits in networks:
            for name, slow in SLOW.items():
                carried = no_bytes()
                with (
                    proxy(demo.server_port, away, megabits * 1e6, carried) as port,
                    chromium(playwright, camera) as browser,
                ):
                    page = browser.new_page(viewport={"width": 1280, "height": 900})
                    page.set_default_timeout(2 * WAIT * 1000)
                    if slow is not None:
                        page.add_init_script(SCRIPT % slow)
                    values = measure(page, f"http://127.0.0.1:{port}/", live, options.seconds, carried)
                    codec = "VP9" if "VP9" in (page.locator("#live .meter").text_content() or "") else "JPEG"
                label = f"{away:.0f} ms, {megabits:g} Mbit/s, {name}"
                results[label] = values
                print(f"{label:38} {codec:5} {values['bytes_per_second'] / 1000:8.0f} kB/s", end=" ")
                print(
                    f"{values['camera_to_screen_p50']:8.0f} ms {values['pictures_per_second']:6.1f} a second"
                )
                sys.stdout.flush()
    demo.close()
    engine.shutdown()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
