"""The Live tab in Firefox and WebKit, on a model that returns its input; Chromium has tests of its own."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from helpers.browser import PIXELS, Identity, wait_for
from helpers.network import Network
from helpers.other_browsers import OtherBrowser, firefox, webkit

import app
from live2diff.serving.engine import Engine

MESSAGE = "return document.querySelector('#live .message').textContent"
COLOUR = f"return ({PIXELS})(['#live canvas', 1, 1]).slice(0, 3)"
STATE = "return document.querySelector('#live .stage').dataset.state"
STYLE = "return document.querySelector('#live .styles input:checked').value"
BEYOND = """const { x, y, right, bottom } = document.querySelector('#live canvas').getBoundingClientRect();
return [x, y, right - innerWidth, bottom - innerHeight];"""
KEY = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }))"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Engine, str]]:
    engine = Engine(Identity(), capacity=1)
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield engine, demo.local_url
    demo.close()
    engine.shutdown()


@pytest.fixture(scope="module", params=[firefox, webkit], ids=lambda start: start.__name__)
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


def test_a_link_sets_the_look_and_a_cut_visit_goes_on_with_it(browser, server):
    engine, address = server
    network = Network(urlsplit(address).port)
    browser.open(f"http://127.0.0.1:{network.port}/#style=ink&steps=2")
    wait_for(lambda: browser.run(STYLE) == "ink")
    browser.click("#live .start")
    browser.reach("running")
    (former,) = engine.registry.all()
    assert (former.settings.style, former.settings.steps) == ("ink", 2)
    network.cut()
    browser.reach("cut")
    wait_for(lambda: engine.stats()["streams"] == 0)
    network.mend()
    browser.reach("running")
    (session,) = engine.registry.all()
    assert session is not former and session.settings == former.settings
    browser.click("#live .stop")
    browser.reach("idle")
    network.close()


def test_the_clean_view_is_the_picture_alone_and_obeys_keys(browser, server):
    engine, address = server
    browser.open(f"{address}?view=clean#style=ink")

    # It starts by itself, in WebKit before there is the camera: then it needs a click.
    def runs() -> bool:
        if (state := browser.run(STATE)) == "idle":
            browser.click("#live .screen")
        return state == "running"

    wait_for(runs)
    assert browser.run(BEYOND) == [0, 0, 0, 0]
    (session,) = engine.registry.all()
    browser.run(KEY)
    wait_for(lambda: session.settings.style == "pencil")
    browser.go("about:blank")
    wait_for(lambda: engine.stats()["streams"] == 0)
