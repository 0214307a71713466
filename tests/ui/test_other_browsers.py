"""The Live tab in Firefox and WebKit, on a model that returns its input; Chromium has tests of its own."""

from collections.abc import Iterator

import pytest
from helpers.browser import PIXELS, Identity, wait_for
from helpers.other_browsers import OtherBrowser, firefox, webkit

import app
from live2diff.serving.engine import Engine

MESSAGE = "return document.querySelector('#live .message').textContent"
COLOUR = f"return ({PIXELS})(['#live canvas', 1, 1]).slice(0, 3)"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Engine, str]]:
    engine = Engine(Identity(), capacity=1)
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield engine, demo.local_url
    demo.close()
    engine.shutdown()


@pytest.fixture(params=[firefox, webkit], ids=lambda start: start.__name__)
def browser(request) -> Iterator[OtherBrowser]:
    with request.param() as browser:
        yield browser


def test_the_live_tab_starts_shows_results_changes_its_style_and_stops(browser, server):
    engine, address = server
    browser.open(address)
    browser.click("#live .start")
    browser.reach("running")
    colours: set[tuple[int, ...]] = set()
    wait_for(lambda: colours.add(tuple(browser.run(COLOUR))) or len(colours) > 4)
    assert max(max(colour) - min(colour) for colour in colours) > 60, "the camera's colours do not arrive"
    wait_for(lambda: browser.run("return document.querySelector('#live .fps').textContent") != "–")
    browser.click("#live .styles input[value=oil]")
    (session,) = engine.registry.all()
    wait_for(lambda: session.settings.style == "oil")
    assert browser.run(MESSAGE) == ""
    browser.click("#live .stop")
    browser.reach("idle")
    wait_for(lambda: engine.stats()["streams"] == 0)
