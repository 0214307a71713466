"""The Live tab in a real browser, with a clip as its camera.

Tests of images run on the nano model, tests of the way there and back on none. Loading the page takes most of
the time: the tests share it, and leave it stopped.
"""

import re
import time
from collections.abc import Callable, Iterator

import av
import cv2
import numpy as np
import pytest
from helpers.browser import (
    READ_NUMBER,
    Identity,
    chromium,
    needs_browser,
    numbered,
    opened,
    pixels,
    write_camera,
)
from helpers.live_tab import (
    count_images,
    disc,
    marker,
    note_states,
    passes,
    reach,
    run,
    shown,
    start,
    stop,
    unequal_pairs,
    wait_for_images,
)
from helpers.page import served_page
from helpers.waiting import PATIENCE, wait_for
from playwright.sync_api import Browser, Page, expect

import live2diff
from live2diff.serving.engine import Engine

pytestmark = needs_browser
RATE = 20
MARKER_FRAMES = 40  # between two positions of the marker
POSITIONS = (0.2, 0.5, 0.8)  # of the marker's middle, from the left


def video_frames() -> Iterator[np.ndarray]:
    """Yield the disc at one position after the other, and above it each frame's number."""
    for number in range(2 * len(POSITIONS) * MARKER_FRAMES):
        image = marker(POSITIONS[number // MARKER_FRAMES % len(POSITIONS)])
        image[:64] = numbered(number, 320, 240)[:64]
        yield image


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory) -> Iterator[Browser]:
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with chromium(playwright, write_camera(path, video_frames(), RATE)) as browser:
        yield browser


def served(engine: Engine) -> Iterator[tuple[Engine, str]]:
    with served_page(engine) as demo:
        yield engine, demo.local_url


@pytest.fixture(scope="module")
def nano() -> Iterator[tuple[Engine, str]]:
    yield from served(Engine(live2diff.load("nano"), capacity=2))


@pytest.fixture(scope="module")
def identity() -> Iterator[tuple[Engine, str]]:
    yield from served(Engine(Identity(), capacity=1))


@pytest.fixture(scope="module")
def nano_pages(browser, nano) -> Iterator[Page]:
    with opened(browser, nano[1]) as page:
        yield page


@pytest.fixture(scope="module")
def pages(browser, identity) -> Iterator[Page]:
    with opened(browser, identity[1]) as page:
        page.evaluate(READ_NUMBER)
        yield page


@pytest.fixture
def nano_page(nano_pages, nano) -> Iterator[Page]:
    yield nano_pages
    stop(nano_pages)
    streams(nano[0])(0)


@pytest.fixture
def page(pages, identity) -> Iterator[Page]:
    """Return a page on a model that changes nothing."""
    yield pages
    stop(pages)
    streams(identity[0])(0)


def streams(engine: Engine) -> Callable[[int], None]:
    return lambda count: wait_for(lambda: engine.stats()["streams"] == count)


def test_start_counts_the_warmup_and_the_results_follow_the_camera(nano_page, nano):
    page = nano_page
    page.get_by_role("tab", name="Live").click()
    page.locator("#live .start").wait_for()
    page.evaluate("""() => {
      const notice = document.querySelector("#live .notice");
      const note = () => notices.push(notice.textContent);
      window.notices = [];
      new MutationObserver(note).observe(notice, { childList: true });
    }""")
    start(page, "oil")
    reach(page, "warmup")
    expect(page.locator("#live video")).to_be_visible()  # the viewer's own image, meanwhile
    reach(page, "running")
    warmup = {notice for notice in page.evaluate("notices") if notice.startswith("Warming up")}
    assert [f"Warming up {number} / 8" for number in range(1, 9)] == sorted(warmup)
    page.locator("#live .views label", has_text="Side by side").click()
    distances: dict[float, list[float]] = {position: [] for position in POSITIONS}

    former = np.zeros(0)  # what was shown last

    def all_positions_seen() -> bool:
        nonlocal former
        both = pixels(page, "#live canvas", 96, 36)
        if np.array_equal(both, former):
            return False
        former = both
        original, translated = disc(both[12:, :48]), disc(both[12:, 48:])
        for position, values in distances.items():
            if abs(1 - position - original) < 0.05:  # as in a mirror
                values.append(abs(original - translated))
        return min(map(len, distances.values())) >= 5

    wait_for(all_positions_seen)
    medians = {position: float(np.median(values)) for position, values in distances.items()}
    assert max(medians.values()) < 0.12, f"distance of the disc in original and result: {medians}"
    expect(page.locator("#live .fps")).to_have_text(re.compile(r"^\d+\.\d$"))
    expect(page.locator("#live .delay")).to_have_text(re.compile(r"^(\d+ ms|\d+\.\d s)$"))
    expect(page.locator("#live .dropped")).to_have_text(re.compile(r"^\d+ %$"))
    stop(page)
    streams(nano[0])(0)


def test_the_style_changes_while_it_runs_and_two_viewers_have_one_each(browser, nano, nano_page):
    run(nano_page, "pencil")
    with opened(browser, nano[1]) as other:
        run(other, "neon")
        assert nano[0].stats()["streams"] == 2

        def colour(page: Page) -> np.ndarray:
            return pixels(page, "#live canvas").mean(axis=(0, 1))

        wait_for(lambda: np.abs(colour(nano_page) - colour(other)).mean() > 12)
        nano_page.locator("#live .styles label:has(input[value=neon])").click()
        wait_for(lambda: np.abs(colour(nano_page) - colour(other)).mean() < 6)
        expect(nano_page.locator("#live .message")).to_be_hidden()
    streams(nano[0])(1)


LOADED = """ending => {
  const { src, complete, naturalWidth } = document.querySelector("#live .sample");
  return src.endsWith(ending) && complete && naturalWidth > 0;
}"""


def test_a_sample_of_the_style_is_shown_before_the_start(page):
    for style in ("neon", "woodblock"):
        page.locator(f"#live .styles label:has(input[value={style}])").click()
        page.wait_for_function(LOADED, arg=f"/{style}.jpg")
    run(page)
    expect(page.locator("#live .sample")).to_be_hidden()


def test_the_original_beside_a_result_is_the_frame_it_was_made_from(page):
    start(page)
    reach(page, "running")  # the camera, once it is there, sets whether it is mirrored
    assert not unequal_pairs(page)
    page.locator("#live .views label", has_text="Slider").click()
    slider = page.locator("#live .split")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_value("0")


def test_without_a_track_processor_the_frames_come_from_the_video_element(browser, identity):
    with opened(browser, identity[1], "delete window.MediaStreamTrackProcessor; " + READ_NUMBER) as page:
        run(page)
        page.locator("#live .mirror").uncheck()
        numbers: set[int] = set()
        number = "readNumber(document.querySelector('#live canvas'))"
        wait_for(lambda: numbers.add(page.evaluate(number)) or len(numbers - {-1}) > 5)
    streams(identity[0])(0)


def test_a_seed_opens_another_stream_under_the_last_image(page, identity):
    run(page)
    note_states(page)
    page.locator("#live .seed input").fill("7")
    passes(page, "warmup", "running")
    assert identity[0].stats()["streams"] == 1
    assert "empty" not in page.evaluate("states"), "the screen was empty for a while"
    page.locator("#live .restart").click()
    wait_for_images(page)


def test_words_of_the_prompt_that_are_not_read_are_shown_as_text(nano_page):
    page = nano_page
    page.locator("#live .prompt input").fill("word " * 85 + "<b id=bold onclick=alert(1)>bold</b>")
    run(page)
    expect(page.locator("#live .message")).to_contain_text(re.compile("Not read: .*bold"))
    assert page.locator("#live .message *").count() == 0
    page.locator("#live .prompt input").fill("")


CAMERA_FRAMES = """count => new Promise((done) => {
  const camera = document.createElement("video");
  const next = () => (--count > 0 ? camera.requestVideoFrameCallback(next) : done());
  Object.assign(camera, { muted: true, srcObject: document.querySelector("#live video").srcObject });
  camera.requestVideoFrameCallback(next);
  camera.play();
})"""
MAX_IN_FLIGHT = 16  # static/worker.js


def test_pause_keeps_the_image_and_the_stream(page, identity):
    run(page)
    page.locator("#live .pause").click()
    expect(page.locator("#live .notice")).to_have_text("Paused")
    (session,) = identity[0].registry.all()
    before = session.stream.frames_in
    page.evaluate(CAMERA_FRAMES, 3 * MAX_IN_FLIGHT)
    assert session.stream.frames_in - before <= MAX_IN_FLIGHT
    assert identity[0].stats()["streams"] == 1
    count_images(page)
    page.locator("#live .pause").click()
    wait_for(lambda: shown(page) > 3)


def test_a_stream_that_the_server_closed_is_opened_again_by_itself(page, identity):
    run(page)
    (key,) = identity[0].session_keys()
    note_states(page)
    identity[0].close(key).result(PATIENCE)
    passes(page, "warmup", "running")
    expect(page.locator("#live .message")).to_be_hidden()


def test_a_viewer_beyond_the_capacity_sees_the_queue_position_and_gets_a_place(browser, page, identity):
    run(page)
    with opened(browser, identity[1]) as second:
        start(second)
        reach(second, "waiting")
        expect(second.locator("#live .notice")).to_have_text(re.compile("You are 1st in line, about .+"))
        expect(second.locator("#live video")).to_be_visible()
        expect(page.locator("#live .left")).to_have_text(re.compile(r"\d+:\d\d"))
        page.locator("#live .stop").click()
        reach(second, "running")


def test_a_recording_plays_and_has_the_length_that_was_recorded(page, tmp_path):
    run(page)
    started = time.monotonic()
    page.locator("#live .record").click()
    expect(page.locator("#live .record")).to_have_text(re.compile(r"Finish 0:(0[3-9]|[1-5]\d)"))
    with page.expect_download() as download:
        page.locator("#live .record").click()
    longest = time.monotonic() - started
    name = download.value.suggested_filename
    assert re.fullmatch(r"live2diff-pencil-[\d-]+\.(mp4|webm)", name)
    download.value.save_as(tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        assert container.format.name.split(",")[0] in ({"mp4": "mov", "webm": "matroska"}[name.split(".")[1]])
        times = [float(frame.time) for frame in container.decode(video=0)]
        size = container.streams.video[0].width, container.streams.video[0].height
    assert size == (320, 240) and len(times) > 4
    assert 2 < times[-1] - times[0] < longest

    with page.expect_download() as download:
        page.locator("#live .still").click()
    download.value.save_as(tmp_path / "still.png")
    assert cv2.imread(str(tmp_path / "still.png")).shape == (240, 320, 3)


INSECURE = "Object.defineProperty(window, 'isSecureContext', { value: false, configurable: true });"
REFUSED = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s') };"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (REFUSED % "NotAllowedError", "Allow it"),
        (REFUSED % "NotFoundError", "No camera"),
        (INSECURE, "over https"),
    ],
    ids=["not allowed", "none there", "not secure"],
)
def test_without_a_camera_the_page_says_what_to_do(page, script, words):
    page.evaluate(f"() => {{ {script} }}")
    start(page)
    expect(page.locator("#live .message")).to_contain_text(words)
    expect(page.locator("#live .start")).to_be_visible()
    page.evaluate(
        f"() => {{ delete navigator.mediaDevices.getUserMedia; {INSECURE.replace('false', 'true')} }}"
    )


def test_a_camera_that_is_unplugged_is_reported(page):
    run(page)
    page.evaluate("""() => document.querySelector("#live video").srcObject.getTracks()[0]
      .dispatchEvent(new Event("ended"))""")
    expect(page.locator("#live .message")).to_contain_text("disconnected")
    expect(page.locator("#live .start")).to_be_visible()


def test_the_page_finds_its_socket_under_a_root_path(page):
    """As behind a proxy that serves the page under a longer path."""
    addresses: list[str] = []
    page.on("websocket", lambda socket: addresses.append(socket.url))
    page.evaluate(
        "window.ownRoot = gradio_config.root; gradio_config.root = location.origin + '/some/where/'"
    )
    start(page)
    expect(page.locator("#live .message")).to_contain_text("server cannot be reached")
    page.evaluate("gradio_config.root = ownRoot")
    own = page.url.partition("#")[0]
    assert addresses[0] == own.replace("http", "ws", 1) + "some/where/live-socket"
