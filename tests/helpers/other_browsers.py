"""Firefox and WebKit with a camera of the test's own, driven by scripts in the page."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .waiting import PATIENCE, wait_for

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
WEBKIT_DRIVER = shutil.which("WebKitWebDriver")
MINI_BROWSER = next(Path("/usr/lib").glob("*/webkit2gtk-4.1/MiniBrowser"), None)
FIREFOX_PREFERENCES = {
    "media.navigator.streams.fake": True,  # a camera that shows changing colours
    "media.navigator.permission.disabled": True,
    "browser.safebrowsing.update.enabled": False,
}
# A canvas in place of the camera: WebKit's own stand-in asks for permission in a window.
CANVAS_CAMERA = """
const canvas = Object.assign(document.createElement("canvas"), { width: 640, height: 480 });
const context = canvas.getContext("2d");
let count = 0;
setInterval(() => {
  context.fillStyle = `hsl(${(count += 7) % 360} 80% 50%)`;
  context.fillRect(0, 0, 640, 480);
}, 50);
const devices = { getUserMedia: async () => canvas.captureStream(20), enumerateDevices: async () => [] };
Object.defineProperty(navigator, "mediaDevices", { value: devices });
"""


class OtherBrowser:
    """A page in a browser that Playwright does not drive."""

    def __init__(self, driver: Any, go: Any, camera: str) -> None:
        self.driver, self.go, self.camera = driver, go, camera

    def open(self, address: str) -> None:
        """Open a page, with the camera of the test."""
        self.go(address)
        wait_for(lambda: self.run("return Boolean(document.querySelector('#live .start'))"))
        self.run(self.camera)

    def run(self, script: str) -> Any:
        """Run a script in the page and return what it returns."""
        return self.driver.execute_script(script)

    def add_script(self, script: str) -> None:
        """Run a script as one of the page's own: what it sets, the page sees."""
        element = f"Object.assign(document.createElement('script'), {{ text: {json.dumps(script)} }})"
        self.run(f"document.head.append({element})")

    def click(self, selector: str) -> None:
        """Click an element."""
        self.run(f"document.querySelector({selector!r}).click()")

    def click_text(self, selector: str, text: str) -> None:
        """Click the element with this text among those of a selector."""
        elements = f"[...document.querySelectorAll({selector!r})]"
        self.run(f"{elements}.find((each) => each.textContent.trim() === {text!r}).click()")

    def reach(self, state: str) -> None:
        """Wait until the Live tab is in a state."""
        wait_for(lambda: self.run("return document.querySelector('#live .stage').dataset.state") == state)


@contextmanager
def firefox() -> Iterator[OtherBrowser]:
    """Start Firefox without a window."""
    if FIREFOX is None and not os.environ.get("CI"):
        pytest.skip("no Firefox here: apt-get install firefox-esr")
    from marionette_driver.marionette import Marionette

    with tempfile.TemporaryDirectory() as logs:
        options = {"headless": True, "prefs": FIREFOX_PREFERENCES, "gecko_log": logs}
        driver = Marionette(bin=FIREFOX, startup_timeout=PATIENCE, **options)
        try:
            driver.start_session()
            driver.timeout.page_load = PATIENCE
            yield OtherBrowser(driver, driver.navigate, "")
        finally:
            driver.cleanup()


@contextmanager
def webkit() -> Iterator[OtherBrowser]:
    """Start WebKitGTK's small browser on a screen of its own."""
    if not (WEBKIT_DRIVER and MINI_BROWSER and shutil.which("Xvfb")) and not os.environ.get("CI"):
        pytest.skip("no WebKit here: apt-get install webkit2gtk-driver xvfb")
    from selenium import webdriver
    from selenium.webdriver.webkitgtk.options import Options
    from selenium.webdriver.webkitgtk.service import Service

    read, write = os.pipe()
    screen = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-nolisten", "tcp"], pass_fds=[write])
    display = f":{os.read(read, 20).decode().strip()}"
    options = Options()
    options.binary_location = str(MINI_BROWSER)
    for argument in ("--automation", "--enable-media-stream=true"):
        options.add_argument(argument)
    environment = {**os.environ, "DISPLAY": display, "WEBKIT_DISABLE_DMABUF_RENDERER": "1"}
    driver = None
    try:
        driver = webdriver.WebKitGTK(options=options, service=Service(WEBKIT_DRIVER, env=environment))
        yield OtherBrowser(driver, driver.get, CANVAS_CAMERA)
    finally:
        if driver is not None:
            driver.quit()
        screen.terminate()
        screen.wait()
        os.close(read)
        os.close(write)
