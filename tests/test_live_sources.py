"""Where the Live tab's picture comes from, and how it is seen: cameras, screens, full screen; no model at all."""

import re
from collections.abc import Iterator

import pytest
from browser import (
    CHROMIUM,
    CHROMIUM_FLAGS,
    READ_NUMBER,
    Identity,
    chromium,
    needs_browser,
    numbered,
    opened,
    wait_for,
    write_camera,
)
from playwright.sync_api import Browser, Page, expect, sync_playwright
from test_live_page import marker, reach, start

import app
from live2diff.engine import Engine

pytestmark = needs_browser
SOURCE = """() => {
  const [track] = document.querySelector("#live video").srcObject.getTracks();
  return { label: track.label, id: track.getSettings().deviceId, screen: track.getSettings().displaySurface };
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    engine = Engine(Identity())
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield demo.local_url
    demo.close()
    engine.shutdown()
