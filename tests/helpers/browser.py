"""Chromium with a clip as its camera, numbered images, and a model that returns its input."""

import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Playwright, expect

from live2diff.streaming.settings import StreamSettings

from .waiting import PATIENCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = (
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --no-sandbox --disable-gpu "
    "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
).split()
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here: apt-get install chromium"
)
# The pixels of an element that shows an image, scaled to the given size: [width * height * 4].
PIXELS = """([selector, width, height]) => {
  const source = document.querySelector(selector), small = document.createElement("canvas");
  small.width = width; small.height = height;
  const context = small.getContext("2d");
  context.drawImage(source, 0, 0, width, height);
  return Array.from(context.getImageData(0, 0, width, height).data);
}"""


def write_camera(path: Path, images: Iterable[np.ndarray], rate: int, repeat: int = 1) -> Path:
    """Write images `[height, width, 3]`, each `repeat` times, as a video for Chromium's camera."""
    with path.open("wb") as file:
        for number, image in enumerate(images):
            height, width = image.shape[:2]
            if number == 0:
                file.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
            planes = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420).tobytes()
            file.write((b"FRAME\n" + planes) * repeat)
    return path


@contextmanager
def chromium(playwright: Playwright, camera: Path | None, *flags: str) -> Iterator[Browser]:
    """Start a browser whose camera shows the video at `camera`, or a test pattern."""
    assert CHROMIUM, "CI is set, and no Chromium is installed"
    video = [f"--use-file-for-fake-video-capture={camera}"] if camera else []
    arguments = [*CHROMIUM_FLAGS, *video, *flags]
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield browser
    browser.close()


@contextmanager
def opened(browser: Browser, address: str, script: str = "", **context: object) -> Iterator[Page]:
    """Open a page that runs `script` before its own; check that it sent requests to its server only."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
    page.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("websocket", lambda socket: requests.append(socket.url.replace("ws", "http", 1)))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.add_init_script(script)
    try:
        page.goto(address)
        yield page
    finally:
        page.close()
    own = re.split("[?#]", address)[0]
    assert [url for url in requests if not url.startswith((own, "data:", "blob:"))] == []
    assert errors == []


def pixels(page: Page, selector: str, width: int = 16, height: int = 12) -> np.ndarray:
    """Return what an element shows, as float `[height, width, 3]`."""
    values = page.evaluate(PIXELS, [selector, width, height])
    return np.array(values, float).reshape(height, width, 4)[..., :3]


class Identity:
    """A model that returns its input, for tests of everything but the model.

    Args:
        gate: while it is not set, a frame stays in the model.
        error: raised in place of frame 21.
    """

    default_style = "pencil"
    about = "No model at all."
    config = SimpleNamespace(size=256, prompt_hint="Words do nothing.", prompt_examples=["a cat", "a dog"])
    unet = SimpleNamespace(device=SimpleNamespace(type="cpu"))

    def __init__(self, gate: threading.Event | None = None, error: Exception | None = None) -> None:
        from live2diff.styles import STYLES

        self.gate, self.error = gate, error
        self.styles = {name: style for name, style in STYLES.items() if not style.has_weights}

    def fetch(self, style: str | None) -> None:
        pass

    def stream(self, settings: StreamSettings | None = None, **options: object) -> "IdentityStream":
        return IdentityStream(settings or StreamSettings(), self.gate, self.error)


class IdentityStream:
    """A stream that returns its frames, after the usual warmup."""

    ignored_words = ""

    def __init__(
        self, settings: StreamSettings, gate: threading.Event | None, error: Exception | None
    ) -> None:
        self.settings = settings
        self.gate, self.error = gate, error
        self.frames_in = self.frames_out = 0
        self.collected: list[np.ndarray] = []

    @property
    def warm(self) -> bool:
        return self.frames_in >= 8

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        if self.gate is not None:
            self.gate.wait()
        if self.error is not None and self.frames_in == 20:
            raise self.error
        self.frames_in += 1
        self.collected.append(frame)
        if not self.warm:
            return []
        frames, self.collected = self.collected, []
        self.frames_out += len(frames)
        return frames

    def flush(self) -> list[np.ndarray]:
        frames, self.collected = self.collected, []
        self.frames_out += len(frames)
        return frames

    def update(self, settings: StreamSettings, **options: object) -> None:
        self.settings = settings

    def restart(self) -> None:
        pass

    def close(self) -> None:
        pass


BITS = 10  # of a frame number


def numbered(number: int, width: int = 640, height: int = 480) -> np.ndarray:
    """Return an image with its number in it: a row of squares for the bits, and their opposites below.

    The squares are shaded: Chromium's VP9 encoder misses flat ones that swap black and white.
    """
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // width, rows * 255 // height
    image = np.dstack([red, green, np.full_like(red, 128)]).astype(np.uint8)
    cell = max(1, width // BITS)
    ramp = (rows % cell + columns % cell) * 32 // cell
    for bit in range(BITS):
        value = 255 * (number >> bit & 1)
        for row, shade in enumerate((value, 255 - value)):
            part = np.s_[row * cell : (row + 1) * cell, bit * cell : (bit + 1) * cell]
            image[part] = np.abs(shade - ramp[part])[..., None]
    return image


@contextmanager
def with_numbered_camera(playwright: "Playwright", folder: Path, count: int) -> Iterator["Browser"]:
    """Start Chromium with a camera that shows `count` numbered images, 20 a second, again and again."""
    images = (numbered(number, 320, 240) for number in range(count))
    with chromium(playwright, write_camera(folder / "camera.y4m", images, 20)) as browser:
        yield browser


# The number in an image of `numbered`, whatever its size; -1 where there is none. `left` and `span` are the
# part of the element that shows it.
READ_NUMBER = """(() => {
const small = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
window.readNumber = (source, left = 0, span = 1) => {
  const whole = source.videoWidth || source.naturalWidth || source.width;
  const width = whole * span, bits = 10, cell = width / bits;
  if (!width) return -1;
  small.canvas.width = bits * 4; small.canvas.height = 8;
  small.drawImage(source, left * whole, 0, width, 2 * cell, 0, 0, bits * 4, 8);
  const data = small.getImageData(0, 0, bits * 4, 8).data;
  const at = (column, row) => data[4 * ((row * 4 + 2) * bits * 4 + column * 4 + 2)];
  let number = 0;
  for (let bit = 0; bit < bits; bit++) {
    const first = at(bit, 0) > 128, second = at(bit, 1) > 128;
    if (first === second) return -1;
    if (first) number |= 1 << bit;
  }
  return number;
};
})();"""
