"""The page in Firefox and WebKit, on a model that returns its input; Chromium has tests of its own."""

import base64
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from helpers.browser import PIXELS, Identity
from helpers.clips import write_clip
from helpers.network import Network
from helpers.other_browsers import OtherBrowser, firefox, webkit
from helpers.page import served_page
from helpers.video_frames import goes_on, note_traffic
from helpers.waiting import wait_for

from live2diff.serving.engine import Engine
from live2diff.video.reader import read_frames

MESSAGE = "return document.querySelector('#live .message').textContent"
COLOUR = f"return ({PIXELS})(['#live canvas', 1, 1]).slice(0, 3)"
STATE = "return document.querySelector('#live .stage').dataset.state"
STYLE = "return document.querySelector('#live .styles input:checked').value"
BEYOND = """const { x, y, right, bottom } = document.querySelector('#live canvas').getBoundingClientRect();
return [x, y, right - innerWidth, bottom - innerHeight];"""
UPLOAD = """const bytes = Uint8Array.from(atob(%s), (character) => character.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], "clip.mp4", { type: "video/mp4" }));
const input = document.querySelector("#clip input[type=file]");
input.files = files.files;
input.dispatchEvent(new Event("change", { bubbles: true }));"""
TAKES_CLIPS = "return Boolean(document.querySelector('#clip input[type=file]'))"
SHOWS_CLIP = "return Boolean(document.querySelector('#clip video'))"
RESULT = "return document.querySelector('#result a[download]')?.href"
# VP9 however fast JPEGs are.
ALWAYS_VIDEO = """const Former = window.Worker;
window.Worker = function (...rest) {
  const worker = new Former(...rest);
  worker.postMessage({ options: { slow: -1e9, encoding: 60000, pause: 20 } });
  return worker;
};"""
# WebKit on Linux has VP9 where GStreamer's plugins have it.
CODECS = """const config = { codec: "vp09.00.40.08", width: 384, height: 288 };
const supports = async (kind) => Boolean((await kind?.isConfigSupported(config))?.supported);
Promise.all([self.VideoEncoder, self.VideoDecoder].map(supports)).then((found) => {
  document.body.dataset.codecs = found.every(Boolean) ? "yes" : "no";
});"""
KEY = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }))"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Engine, str]]:
    engine = Engine(Identity(), capacity=1)
    with served_page(engine) as demo:
        yield engine, demo.local_url


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


def test_vp9_goes_both_ways_where_the_browser_has_it(browser, server, monkeypatch):
    _, address = server
    traffic = note_traffic(monkeypatch)
    browser.open(address)
    browser.add_script(ALWAYS_VIDEO)
    browser.click("#live .start")
    browser.reach("running")
    browser.add_script(CODECS)
    wait_for(lambda: browser.run("return document.body.dataset.codecs"))
    has_codecs = browser.run("return document.body.dataset.codecs") == "yes"
    wait_for(lambda: len(traffic.results) > 40 and goes_on(traffic, video=has_codecs))
    colours: set[tuple[int, ...]] = set()
    wait_for(lambda: colours.add(tuple(browser.run(COLOUR))) or len(colours) > 4)
    assert browser.run(MESSAGE) == ""
    browser.click("#live .stop")
    browser.reach("idle")


def test_the_video_tab_translates_an_upload(browser, server, tmp_path):
    _, address = server
    clip = write_clip(tmp_path / "clip.mp4", 30, sound="aac")
    browser.open(address)
    browser.click_text("[role=tab]", "Video")
    wait_for(lambda: browser.run(TAKES_CLIPS))
    browser.run(UPLOAD % json.dumps(base64.b64encode(clip.read_bytes()).decode()))
    wait_for(lambda: browser.run(SHOWS_CLIP))
    browser.click_text("button", "Translate")
    wait_for(lambda: browser.run(RESULT))
    assert browser.run("return document.querySelector('#result .text').textContent") == "30 frames."
    result = tmp_path / "result.mp4"
    result.write_bytes(httpx.get(browser.run(RESULT)).content)
    assert sum(1 for _ in read_frames(result)) == 30
