"""Viewers lost without a close: a killed browser, a dead network.

Each stream is freed within seconds, because of the connection; by idle time alone it would take an hour here.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from helpers.browser import chromium, needs_browser
from helpers.live_socket import SETTINGS, answer, receive
from helpers.network import Network
from helpers.page import served_page
from helpers.waiting import wait_for
from playwright.sync_api import sync_playwright
from websockets.sync.client import connect

from live2diff.serving.engine import Engine
from live2diff.ui.live_protocol import PATH


@pytest.fixture
def engine(tiny_pipeline) -> Engine:
    return Engine(tiny_pipeline, capacity=1, idle_seconds=3600.0)


@pytest.fixture
def address(engine) -> Iterator[str]:
    with served_page(engine) as demo:
        yield demo.local_url


def seconds_until_free(engine: Engine, go: Callable[[], None]) -> float:
    """Return the time until the place is free."""
    assert engine.stats()["streams"] == 1
    gone = time.monotonic()
    go()
    wait_for(lambda: engine.stats()["streams"] == 0)
    return time.monotonic() - gone


@needs_browser
@pytest.mark.long
def test_a_browser_that_is_killed_while_it_streams_frees_its_place(engine, address):
    with sync_playwright() as playwright, chromium(playwright, None) as browser:
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("tab", name="Live").click()
        page.locator("#live .start").click()
        page.wait_for_selector('#live .stage[data-state="running"]', timeout=180_000)
        processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
        (process,) = [process["id"] for process in processes if process["type"] == "browser"]
        print(f"killed: {seconds_until_free(engine, lambda: os.kill(process, signal.SIGKILL)):.2f} s")


@pytest.mark.long
def test_a_network_that_is_silently_dead_frees_its_place(engine, address):
    network = Network(urlsplit(address).port)
    with connect(f"ws://127.0.0.1:{network.port}{PATH}", close_timeout=0) as viewer:
        viewer.send(json.dumps({"start": SETTINGS}))
        receive(viewer, "started")
        for number in range(1, 10):
            answer(viewer, number)
        print(f"network dead: {seconds_until_free(engine, network.die):.2f} s")
    network.close()
