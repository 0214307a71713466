"""The Live tab in a real browser whose connection is cut: the visit goes on without a click.

The clocks of engine and line stand still: nothing is freed because time passes, and turns never end.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import pytest
from helpers.browser import Identity, needs_browser, opened, with_numbered_camera
from helpers.gpu_visits import Clock
from helpers.live_socket import SETTINGS, receive, send_json, socket_address
from helpers.live_tab import note_states, reach, start, wait_for_images
from helpers.network import Network
from helpers.page import served_page
from helpers.waiting import wait_for
from playwright.sync_api import Browser, Page, expect
from websockets.sync.client import connect

import app
from live2diff.serving.admission import HELD_SECONDS, WaitingLine
from live2diff.serving.engine import Engine
from live2diff.zerogpu.engine import GPU_SECONDS, ZeroGpuEngine

pytestmark = needs_browser
ATTEMPTS = 5
# Shortens the pauses between attempts, and lets a test change the worker's options.
QUICK = """window.Worker = class extends Worker {
  constructor(...rest) {
    super(...rest);
    window.change = (options) => this.postMessage({ options });
    change({ pause: 20, longestPause: 100, giveUp: 3600_000, silence: 3600_000 });
  }
};"""


class Server:
    """A server of the page, which can be restarted, behind a network that can be cut."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.clock = capacity, Clock()
        self.open()
        self.network = Network(self.demo.server_port)
        self.address = f"http://127.0.0.1:{self.network.port}/"

    def open(self, port: int | None = None) -> None:
        self.engine = Engine(Identity(), self.capacity, clock=Clock())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "WaitingLine", lambda *options: WaitingLine(*options, clock=self.clock))
            self.demo = app.serve(self.engine, quiet=True, server_name="127.0.0.1", server_port=port)

    def close(self) -> None:
        self.demo.close()
        self.engine.shutdown()

    def has_streams(self, count: int) -> Callable[[], bool]:
        return lambda: self.engine.stats()["streams"] == count


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory) -> Iterator[Browser]:
    with with_numbered_camera(playwright, tmp_path_factory.mktemp("camera"), 60) as browser:
        yield browser


@pytest.fixture(params=[1])
def server(request) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.network.close()
    server.close()


def runs(page: Page) -> None:
    """Wait until the page runs, and for new images."""
    reach(page, "running")
    wait_for_images(page)


def cut(server: Server, page: Page) -> None:
    """Cut the network until the page has tried several times."""
    server.network.cut()
    reach(page, "cut")
    expect(page.locator("#live .notice")).to_have_text("Reconnecting")
    before = server.network.refused
    wait_for(lambda: server.network.refused >= before + ATTEMPTS)


def finished_recording(page: Page, path: Path) -> list[float]:
    """Finish a recording, and return the times of its frames in seconds."""
    with page.expect_download() as download:
        page.locator("#live .record").click()
    download.value.save_as(path)
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def test_a_cut_connection_goes_on_with_the_same_settings_in_one_recording(browser, server, tmp_path):
    with opened(browser, server.address, QUICK) as page:
        start(page, "oil")
        runs(page)
        page.locator("#live .record").click()
        note_states(page)
        cut(server, page)
        wait_for(server.has_streams(0))
        server.network.mend()  # within the grace
        runs(page)
        (session,) = server.engine.registry.all()
        assert (session.settings.style, session.settings.steps) == ("oil", 1)

        page.locator("#live .pause").click()  # no camera frame is sent from here on
        cut(server, page)
        page.locator("#live .styles label:has(input[value=neon])").click()
        server.clock.now += HELD_SECONDS + 5
        server.network.mend()  # the grace is over
        expect(page.locator("#live .notice")).to_have_text("Paused")
        wait_for(lambda: [each.stream.frames_in for each in server.engine.registry.all()] == [8])
        (session,) = server.engine.registry.all()
        assert session.settings.style == "neon" and session.stream.warm
        page.locator("#live .pause").click()
        runs(page)
        states = page.evaluate("states")
        assert not {"idle", "starting", "waiting", "empty"} & set(states), "the last image stays"
        times = finished_recording(page, tmp_path / "recording")
    assert len(times) > 8 and times == sorted(set(times))


def test_a_server_that_was_restarted_goes_on(browser, server):
    with opened(browser, server.address, QUICK) as page:
        start(page)
        runs(page)
        page.evaluate("window.mark = 'not reloaded'")
        server.close()
        reach(page, "cut")
        server.open(server.demo.server_port)
        runs(page)
        assert page.evaluate("window.mark") == "not reloaded"
        expect(page.locator("#live .message")).to_be_hidden()


@pytest.mark.parametrize("server", [2], indirect=True)
def test_of_two_visitors_one_is_cut_and_the_other_unhurt(browser, server):
    with opened(browser, server.demo.local_url) as other, opened(browser, server.address, QUICK) as page:
        for each in (other, page):
            start(each)
            runs(each)
        note_states(other)
        cut(server, page)
        wait_for(server.has_streams(1))
        runs(other)
        server.network.mend()
        runs(page)
        runs(other)
        assert set(other.evaluate("states")) <= {"running", "full"}


def test_a_page_that_hears_nothing_connects_anew_and_one_that_gives_up_offers_a_button(browser, server):
    with opened(browser, server.address, QUICK) as page:
        start(page)
        runs(page)
        page.evaluate("change({ silence: 0 })")  # as if the network were silently dead
        reach(page, "cut")
        page.evaluate("change({ silence: 3600_000 })")
        runs(page)
        page.evaluate("change({ giveUp: -1 })")
        server.network.cut()
        again = page.get_by_role("button", name="Try again")
        again.wait_for()
        expect(page.locator("#live .message")).to_have_text("The connection to the server was lost.")
        again.click()
        expect(page.locator("#live .message")).to_have_text("The server cannot be reached.")
        server.clock.now += HELD_SECONDS + 1  # it was long enough: the place is given back
        server.network.mend()
        again.click()
        runs(page)


def test_stop_and_a_closed_tab_give_up_the_place_at_once(browser, server):
    address = socket_address(server.demo)
    with opened(browser, server.address, QUICK) as page:
        for leave in (lambda: page.locator("#live .stop").click(), page.reload, page.close):
            start(page)
            runs(page)
            with connect(address) as next_in_line:
                send_json(next_in_line, start=SETTINGS)
                receive(next_in_line, "waiting")
                leave()
                receive(next_in_line, "started")


def test_the_next_gpu_session_begins_by_itself_when_the_last_one_is_over(browser, tiny_pipeline):
    clock = Clock()
    engine = ZeroGpuEngine(tiny_pipeline, capacity=1, clock=clock)
    with served_page(engine) as demo, opened(browser, demo.local_url) as page:
        start(page)
        runs(page)
        note_states(page)
        (session,) = engine.registry.all()
        first = session.run
        clock.now += GPU_SECONDS
        wait_for(lambda: session.run not in (None, first))
        runs(page)
        assert "empty" not in page.evaluate("states")
