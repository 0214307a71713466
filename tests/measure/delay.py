# ruff: noqa: E402 - the path of the package and of the helpers is set before they are imported
"""Measure the delay that the Live tab adds, and its frame rate: `python tests/measure/delay.py`.

The camera is a clip with a number in each frame, the model one that changes nothing. A plain `<video>` of the
same camera in the same page shows each frame without delay; added is the time until its number is on the
canvas. Measured on loopback, through a proxy that adds latency, and for Gradio's own `.stream` into an image.
Prints a table; the last line is JSON.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # tests, the package
from helpers.browser import BITS, READ_NUMBER, Identity, chromium, numbered, write_camera
from helpers.waiting import wait_for
from measure.server import free_port

import app
from live2diff.serving.engine import Engine

FRAMES = 160  # of the clip; less than 2 ** BITS
AHEAD = 10  # frames that a picture may be seen before the plain video shows them
WAIT = 60.0  # seconds for a page to get going

# Records when each number is shown by the plain video and by the watched element. The camera gives all its
# frames: browsers otherwise reduce them to the rate that a page asks for.
TAP = (
    READ_NUMBER
    + """
window.plain = []; window.ours = [];
const own = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = (constraints) => {
  if (constraints.video?.frameRate) delete constraints.video.frameRate;
  return own(constraints);
};
window.watchPlain = async () => {
  const video = document.createElement("video");
  video.muted = true;
  video.style = "position: fixed; top: 0; left: 0; width: 64px";
  video.srcObject = await own({ video: { width: 640, height: 480 } });
  document.body.append(video);
  await video.play();
  let frames = 0;
  const seen = (now, metadata) => {
    if (++frames % 3 === 0)  // reading each would cost more than what is measured
      window.plain.push([readNumber(video), metadata.expectedDisplayTime, metadata.captureTime ?? now]);
    video.requestVideoFrameCallback(seen);
  };
  video.requestVideoFrameCallback(seen);
};
window.watchCanvas = (selector) => {
  const canvas = document.querySelector(selector), draw = CanvasRenderingContext2D.prototype.drawImage;
  CanvasRenderingContext2D.prototype.drawImage = function (...rest) {
    draw.apply(this, rest);
    if (this.canvas === canvas) window.ours.push([readNumber(canvas), performance.now()]);
  };
};
window.watchImage = (selector) =>
  document.querySelector(selector).addEventListener("load", ({ target }) => {
    if (target.tagName === "IMG") window.ours.push([readNumber(target), performance.now()]);
  }, true);
"""
)


def no_bytes() -> Any:
    """Return counters that processes share, of the bytes to the server and to the page."""
    return multiprocessing.get_context("spawn").Array("Q", 2, lock=False)


async def forward(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    seconds: float,
    rate: float,
    carried: Any,
    way: int,
) -> None:
    """Write what is read, so many seconds later and at `rate` bits a second; count it in `carried[way]`."""
    loop = asyncio.get_running_loop()
    delayed: asyncio.Queue = asyncio.Queue()

    async def write() -> None:
        while (item := await delayed.get()) is not None:
            due, data = item
            await asyncio.sleep(due - loop.time())
            writer.write(data)
            await writer.drain()
        writer.close()

    writing = asyncio.create_task(write())
    free = 0.0  # when the last byte has left
    while data := await reader.read(1500 if rate < float("inf") else 1 << 16):
        free = max(free, loop.time()) + 8 * len(data) / rate
        delayed.put_nowait((free + seconds, data))
        carried[way] += len(data)
    delayed.put_nowait(None)
    await writing


def run_proxy(port: int, target: int, milliseconds: float, rate: float, carried: Any) -> None:
    """Forward connections to `target`, adding latency to the round trip, at `rate` bits a second each way."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", target)
        half = milliseconds / 2000
        both = (
            forward(reader, there[1], half, rate, carried, 0),
            forward(there[0], writer, half, rate, carried, 1),
        )
        await asyncio.gather(*both, return_exceptions=True)

    async def serve() -> None:
        async with await asyncio.start_server(accept, "127.0.0.1", port) as server:
            await server.serve_forever()

    asyncio.run(serve())


@contextmanager
def proxy(target: int, milliseconds: float, rate: float = float("inf"), carried: Any = None) -> Iterator[int]:
    """Run the proxy in a process of its own, so that it does not wait for the server; yield its port.

    `carried` counts the bytes, as `no_bytes` makes it.
    """
    port = free_port()
    carried = no_bytes() if carried is None else carried
    process = multiprocessing.get_context("spawn").Process(
        target=run_proxy, args=(port, target, milliseconds, rate, carried), daemon=True
    )
    process.start()

    def ready() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    wait_for(ready)
    yield port
    process.terminate()
    process.join()


def live(page: Page) -> None:
    """Start the Live tab."""
    page.get_by_role("tab", name="Live").click()
    page.locator("#live .start").click()
    page.wait_for_selector('#live .stage[data-state="running"]')
    page.evaluate("""() => {  // not mirrored, so that the number can be read
      const mirror = document.querySelector("#live .mirror");
      if (mirror.checked) mirror.click();
      watchCanvas("#live canvas");
    }""")


def echo(page: Page) -> None:
    """Start Gradio's own stream."""
    page.locator("#echo").wait_for()
    page.evaluate("watchImage('#echo')")
    page.locator("#camera").get_by_text("Click to Access Webcam").click()
    page.locator("#camera .button-wrap button").first.click()
    page.wait_for_function("window.ours.length > 0")


def echo_page() -> gr.Blocks:
    """Build a page with Gradio's own stream."""
    with gr.Blocks() as demo:
        camera = gr.Image(sources=["webcam"], streaming=True, type="numpy", elem_id="camera")
        result = gr.Image(format="jpeg", elem_id="echo")
        camera.stream(
            lambda frame: frame, camera, result, stream_every=1 / 60, time_limit=300, concurrency_limit=1
        )
    return demo.queue()


def measure(
    page: Page, address: str, begin: Callable[[Page], None], seconds: float, carried: Any = (0, 0)
) -> dict[str, float]:
    """Return frames and bytes a second, and the delay in milliseconds: added, and from camera to screen."""
    page.add_init_script(TAP)
    page.goto(address)
    begin(page)
    page.evaluate("watchPlain()")
    page.wait_for_function("window.plain.length > 20")
    page.evaluate("() => { plain.length = ours.length = 0; }")
    before = sum(carried)
    page.wait_for_timeout(seconds * 1000)
    sent = (sum(carried) - before) / seconds
    plain, ours = page.evaluate("[plain, ours]")
    return compare(plain, ours) | {"bytes_per_second": sent}


def compare(plain: list[list[float]], ours: list[list[float]]) -> dict[str, float]:
    """Compare the times at which each number was shown; those of the plain video are interpolated."""
    seen = np.array([entry for entry in plain if entry[0] >= 0])
    running, shown_at, captured_at = np.unwrap(seen[:, 0], period=FRAMES), seen[:, 1], seen[:, 2]
    pictures = [(int(number), at) for number, at in ours if number >= 0]
    added, whole = [], []
    for number, at in pictures:
        behind = (np.interp(at, shown_at, running) - number + AHEAD) % FRAMES - AHEAD
        frame = np.interp(at, shown_at, running) - behind
        if running[0] <= frame <= running[-1] and at <= shown_at[-1]:
            added.append(at - np.interp(frame, running, shown_at))
            whole.append(at - np.interp(frame, running, captured_at))
    assert len(added) > 10, f"of {len(ours)} pictures {len(pictures)} had a number, {len(added)} a known one"
    changes = [at for (number, at), (last, _) in zip(pictures[1:], pictures, strict=False) if number != last]
    return {
        "pictures_per_second": (len(changes) - 1) * 1000 / (changes[-1] - changes[0]),
        "added_p50": float(np.median(added)),
        "added_p95": float(np.percentile(added, 95)),
        "camera_to_screen_p50": float(np.median(whole)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (%(default)s)")
    parser.add_argument("--rate", type=int, default=66, help="camera frames a second (%(default)s)")
    parser.add_argument("--away", type=float, default=50.0, help="milliseconds of network (%(default)s)")
    options = parser.parse_args()
    assert FRAMES < 2**BITS
    engine = Engine(Identity())
    live_demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    echo_demo = echo_page()
    _, echo_address, _ = echo_demo.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False
    )
    images = (numbered(number) for number in range(FRAMES))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        camera = write_camera(Path(folder) / "numbers.y4m", images, options.rate)
        results = {}
        with proxy(live_demo.server_port, options.away) as port:
            runs = {
                "live": (live_demo.local_url, live),
                f"live, {options.away:.0f} ms away": (f"http://127.0.0.1:{port}/", live),
                "gr.Image.stream": (echo_address, echo),
            }
            for name, (address, begin) in runs.items():
                with chromium(playwright, camera) as browser:
                    page = browser.new_page(viewport={"width": 1280, "height": 900})
                    page.set_default_timeout(WAIT * 1000)
                    results[name] = measure(page, address, begin, options.seconds)
                print(name, results[name], file=sys.stderr, flush=True)
    live_demo.close()
    echo_demo.close()
    engine.shutdown()
    print(f"{'':22} {'pictures/s':>10} {'added p50':>10} {'added p95':>10} {'camera to screen':>17}")
    for name, values in results.items():
        print(f"{name:22} {values['pictures_per_second']:10.1f} {values['added_p50']:7.1f} ms", end=" ")
        print(f"{values['added_p95']:7.1f} ms {values['camera_to_screen_p50']:14.1f} ms")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
