"""Video sources and display of the Live tab: cameras, screens, full screen; no model."""

import re
from collections.abc import Iterator

import pytest
from helpers.browser import Identity, chromium, needs_browser, opened, write_camera
from helpers.live_tab import marker, reach, run, stop, wait_for_images
from helpers.page import served_page
from helpers.waiting import wait_for
from playwright.sync_api import Browser, Page, expect

from live2diff.serving.engine import Engine

pytestmark = needs_browser
CAMERA = """() => {
  const [track] = document.querySelector("#live video").srcObject.getTracks();
  return [track.getSettings().deviceId, track.readyState, track.getSettings().displaySurface ?? "camera"];
}"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served_page(Engine(Identity())) as demo:
        yield demo.local_url


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory) -> Iterator[Browser]:
    """Start a browser whose camera shows a disc that jumps every two seconds."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with chromium(playwright, write_camera(path, map(marker, (0.2, 0.8)), 20, 40)) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(browser, address) -> Iterator[Page]:
    with opened(browser, address) as page:
        yield page


@pytest.fixture
def page(pages) -> Iterator[Page]:
    yield pages
    stop(pages)


def sources(page: Page) -> list[str]:
    return [option.get_attribute("value") for option in page.locator("#live .source option").all()]


def test_frames_that_hardly_change_are_not_sent_on_request(page):
    run(page)
    dropped = page.locator("#live .dropped")
    page.locator("#live .similar").check()
    expect(dropped).to_have_text(re.compile(r"^([6-9]\d|100) %$"))
    expect(page.locator("#live .fps")).not_to_have_text("–")  # a jump of the disc, and one a second besides
    page.locator("#live .similar").uncheck()
    expect(dropped).to_have_text(re.compile(r"^[1-4]?\d %$"))


def test_full_screen_by_keyboard_shows_the_whole_image_and_its_slider(page):
    run(page)
    page.locator("#live .views label", has_text="Slider").click()
    page.locator("#live button.full").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.fullscreenElement?.classList.contains('screen')")
    boxes = [page.locator(f"#live {part}").bounding_box() for part in ("canvas", ".split", ".screen")]
    assert boxes[0] == boxes[1] and boxes[0]["width"] < boxes[2]["width"]
    assert boxes[0]["width"] / boxes[0]["height"] == pytest.approx(320 / 240, abs=0.01)
    wait_for_images(page)
    page.locator("#live .split").focus()
    page.keyboard.press("End")
    expect(page.locator("#live .split")).to_have_value("100")
    page.evaluate("document.exitFullscreen()")
    page.wait_for_function("document.fullscreenElement === null")


def test_the_camera_can_be_changed_while_it_runs(playwright, address):
    flags = "--use-fake-device-for-media-stream=device-count=2"
    with chromium(playwright, None, flags) as browser, opened(browser, address) as page:
        run(page)
        first, state, _ = page.evaluate(CAMERA)
        others = [source for source in sources(page) if source not in (first, "screen")]
        assert state == "live" and len(others) == 1
        page.locator("#live .source select").select_option(others[0])
        wait_for(lambda: page.evaluate(CAMERA) == [others[0], "live", "camera"])
        reach(page, "running")
        expect(page.locator("#live .source select")).to_have_value(others[0])
        wait_for_images(page)


def test_a_screen_can_be_shared_while_it_runs_unmirrored_and_its_end_is_reported(page):
    run(page)
    page.locator("#live .source select").select_option("screen")
    wait_for(lambda: page.evaluate(CAMERA)[1:] != ["live", "camera"])
    assert page.evaluate(CAMERA)[1] == "live"
    reach(page, "running")
    expect(page.locator("#live .mirror")).not_to_be_checked()
    expect(page.locator("#live .source select")).to_have_value("screen")
    wait_for_images(page)
    page.evaluate("""() => document.querySelector("#live video").srcObject.getTracks()[0]
      .dispatchEvent(new Event("ended"))""")
    expect(page.locator("#live .message")).to_have_text("The screen is no longer shared.")
    expect(page.locator("#live .start")).to_be_visible()


def test_a_phone_that_opens_one_camera_at_a_time_changes_it(playwright, address):
    one_at_a_time = """const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      const tracks = [];
      const { clone } = MediaStreamTrack.prototype;
      MediaStreamTrack.prototype.clone = function () { tracks.push(clone.call(this)); return tracks.at(-1); };
      navigator.mediaDevices.getUserMedia = async (wanted) => {
        const isTaken = tracks.some(({ readyState }) => readyState === "live");
        if (isTaken) throw new DOMException("", "NotReadableError");
        const stream = await open(wanted);
        tracks.push(...stream.getTracks());
        return stream;
      };"""
    flags = "--use-fake-device-for-media-stream=device-count=2"
    with chromium(playwright, None, flags) as browser, opened(browser, address, one_at_a_time) as page:
        run(page)
        first, *_ = page.evaluate(CAMERA)
        other = next(source for source in sources(page) if source not in (first, "screen"))
        page.locator("#live .source select").select_option(other)
        wait_for(lambda: page.evaluate(CAMERA) == [other, "live", "camera"])
        expect(page.locator("#live .message")).to_be_hidden()


def test_a_change_of_source_that_fails_changes_nothing_and_can_be_tried_again(browser, address):
    refused = """navigator.mediaDevices.getDisplayMedia = async () => {
      window.asked = (window.asked ?? 0) + 1;
      throw new DOMException("", "NotAllowedError");
    };"""
    with opened(browser, address, refused) as page:
        run(page)
        before = page.evaluate(CAMERA)
        for times in (1, 2):
            page.locator("#live .source select").select_option("screen")
            wait_for(lambda times=times: page.evaluate("window.asked") == times)
            expect(page.locator("#live .message")).to_contain_text("No screen or window was chosen.")
            expect(page.locator("#live .source select")).to_have_value(before[0])
        assert page.evaluate(CAMERA) == before
        expect(page.locator("#live .stage")).to_have_attribute("data-state", "running")


def test_a_camera_that_is_plugged_in_appears_in_the_list_and_the_mirror_stays_as_it_was_set(browser, address):
    with opened(browser, address) as page:
        run(page)
        page.locator("#live .mirror").uncheck()
        stop(page)
        page.evaluate("""async () => {
          const devices = await navigator.mediaDevices.enumerateDevices();
          const added = { kind: "videoinput", deviceId: "added", label: "Added camera" };
          navigator.mediaDevices.enumerateDevices = async () => [...devices, added];
          navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
        }""")
        wait_for(lambda: "added" in sources(page))
        run(page)
        expect(page.locator("#live .mirror")).not_to_be_checked()
