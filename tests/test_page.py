"""The page in a real browser, with a clip as its camera, and through `gradio_client`: on the nano model."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Page, expect, sync_playwright

import app
import live2diff
from live2diff.engine import Engine

ROOT = Path(__file__).parent.parent
PATIENCE = 180.0  # seconds: how long a condition may take on a busy machine without a GPU
SCENE_SECONDS = 3
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMIUM_FLAGS = (
    "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --no-sandbox --disable-gpu "
    "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
).split()
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here: apt-get install chromium"
)

# The mean colours of a 16 x 12 grid over what an element shows: enough to tell pictures apart.
GRID = """selector => {
  const source = document.querySelector(selector), grid = document.createElement("canvas");
  grid.width = 16; grid.height = 12;
  const context = grid.getContext("2d");
  context.drawImage(source, 0, 0, 16, 12);
  return Array.from(context.getImageData(0, 0, 16, 12).data);
}"""


def scenes() -> list[np.ndarray]:
    """Two pictures nobody would confuse: bright with a dark disc on the left, dark with a bright one."""
    pictures = []
    for ground, disc, centre in ((225, (160, 30, 40), 90), (30, (240, 220, 90), 230)):
        picture = np.full((240, 320, 3), ground, np.uint8)
        pictures.append(cv2.circle(picture, (centre, 120), 70, disc, -1))
    return pictures


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> Path:
    """What the browser takes for its camera: the two scenes in turn, over and over."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n")
        for picture in scenes():
            planes = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).tobytes()
            file.write((b"FRAME\n" + planes) * (10 * SCENE_SECONDS))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A clip of 12 frames, 96 x 64."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for number in range(12):
            picture = np.roll(cv2.resize(scenes()[0], (96, 64)), number * 4, axis=1)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
    return path


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(live2diff.load("nano"), capacity=2)
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def address(engine) -> Iterator[str]:
    demo = app.build(engine)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **app.LAUNCH)
    yield url
    demo.close()


@pytest.fixture(scope="module")
def browser(camera) -> Iterator[Browser]:
    assert CHROMIUM, "CI is set, and no Chromium is installed"
    flags = [*CHROMIUM_FLAGS, f"--use-file-for-fake-video-capture={camera}"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    """The page, open; when the test is over, it must have asked nobody but our server for anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    asked: list[str] = []
    broken: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(address)
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert broken == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def grid(page: Page, selector: str) -> np.ndarray:
    return np.array(page.evaluate(GRID, selector), float).reshape(12, 16, 4)[..., :3]


def start_live(page: Page) -> None:
    page.get_by_role("tab", name="Live").click()
    page.locator("#live .start").click()


@needs_browser
def test_the_live_tab_translates_the_camera_follows_it_and_frees_the_stream_on_stop(page, engine):
    start_live(page)
    states = ("warmup", "running")
    seen = [page.wait_for_selector(f'#live .stage[data-state="{state}"]') for state in states]
    assert len(seen) == 2 and engine.stats()["streams"] == 1
    dark: list[np.ndarray] = []
    bright: list[np.ndarray] = []

    def both_scenes_seen() -> bool:
        (bright if grid(page, "#live video").mean() > 128 else dark).append(grid(page, "#live canvas"))
        return min(len(bright), len(dark)) >= 15

    wait_for(both_scenes_seen)
    # The pictures are late by some frames, but the median over a scene is a picture of that scene.
    difference = np.abs(np.median(bright, axis=0) - np.median(dark, axis=0)).max()
    assert difference > 20, (
        f"the two scenes came out alike: no cell differs by more than {difference:.1f} of 255"
    )
    expect(page.locator("#live .fps")).to_have_text(re.compile(r"^\d+\.\d$"))
    expect(page.locator("#live .delay")).to_have_text(re.compile(r"^\d+ ms$"))

    page.locator("#live .stop").click()
    page.wait_for_selector('#live .stage[data-state="idle"]')
    wait_for(lambda: engine.stats()["streams"] == 0)


@needs_browser
def test_another_style_shows_while_it_runs(page, engine):
    page.get_by_role("tab", name="Live").click()
    names = page.locator("#live .styles input").evaluate_all("inputs => inputs.map(input => input.value)")
    assert names == list(engine.styles)
    means = {}
    page.locator("#live .start").click()
    for name in ("pencil", "blueprint"):
        page.locator(f"#live .styles label:has(input[value={name}])").click()
        expected = live2diff.STYLES[name].title
        expect(page.locator("#live .styles label:has(input:checked)")).to_have_text(expected)
        page.wait_for_selector('#live .stage[data-state="running"]')
        frames = engine_frames(engine)
        wait_for(lambda frames=frames: engine_frames(engine) > frames + 14)  # past the blend
        wait_for(lambda: grid(page, "#live video").mean() > 128)
        means[name] = grid(page, "#live canvas").mean(axis=(0, 1))
    difference = np.abs(means["pencil"] - means["blueprint"]).mean()
    assert difference > 8, f"the two styles look alike: mean difference {difference:.1f} of 255"
    expect(page.locator("#live .message")).to_be_hidden()


def engine_frames(engine: Engine) -> int:
    return sum(visitor.stream.frames_in for visitor in engine._visitors.values() if visitor.stream)


@needs_browser
def test_a_stream_that_was_freed_meanwhile_begins_again_by_itself(page, engine):
    start_live(page)
    page.wait_for_selector('#live .stage[data-state="warmup"]')
    (key,) = engine._visitors
    engine.close(key).result(PATIENCE)
    wait_for(lambda: engine.stats()["streams"] == 1)
    page.wait_for_selector('#live .stage[data-state="running"]')
    expect(page.locator("#live .message")).to_be_hidden()


@needs_browser
def test_closing_the_tab_frees_the_stream(page, engine):
    start_live(page)
    page.wait_for_selector('#live .stage[data-state="warmup"]')
    assert engine.stats()["streams"] == 1
    page.close()
    wait_for(lambda: engine.stats()["streams"] == 0)


@needs_browser
def test_a_visitor_too_many_reads_that_every_place_is_taken(page, engine, monkeypatch):
    monkeypatch.setattr(engine, "capacity", 1)
    engine.open("somebody else", style="pencil").result(PATIENCE)
    start_live(page)
    expect(page.locator("#live .message")).to_contain_text("places are taken")
    expect(page.locator("#live .start")).to_be_visible()
    engine.close("somebody else").result(PATIENCE)


REFUSED = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', '%s') };"


@needs_browser
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (REFUSED % "NotAllowedError", "Allow it"),
        (REFUSED % "NotFoundError", "No camera"),
        ("Object.defineProperty(window, 'isSecureContext', { value: false });", "over https"),
    ],
    ids=["not allowed", "none there", "not secure"],
)
def test_without_a_camera_the_page_says_what_to_do(page, script, words):
    page.evaluate(f"() => {{ {script} }}")
    start_live(page)
    expect(page.locator("#live .message")).to_contain_text(words)
    expect(page.locator("#live .start")).to_be_visible()


@needs_browser
def test_the_video_tab_translates_an_uploaded_clip(page, clip, engine, tmp_path):
    page.locator("#clip input[type=file]").set_input_files(clip)
    page.locator("#clip video").wait_for()
    page.locator("#prompt textarea, #prompt input").first.fill("a ball")
    page.locator("#translate").click()
    page.locator("#result video").wait_for()
    with page.expect_download() as download:
        page.locator("#result a[download]").click()
    result = tmp_path / "result.mp4"
    download.value.save_as(result)
    assert frame_count(result) == frame_count(clip) == 12
    assert engine.stats()["clips"] == 0


@needs_browser
def test_cancel_frees_the_clip_and_the_next_one_runs(page, clip, engine):
    page.locator("#clip input[type=file]").set_input_files(clip)
    page.locator("#clip video").wait_for()
    go_on = threading.Event()
    engine._device.submit(go_on.wait, PATIENCE)  # keeps the device busy, so that there is time to cancel
    page.locator("#translate").click()
    wait_for(lambda: engine.stats()["clips"] == 1)
    page.locator("#cancel").click()
    wait_for(lambda: engine.stats()["clips"] == 0)
    go_on.set()
    page.locator("#translate").click()
    page.locator("#result video").wait_for()
    wait_for(lambda: engine.stats()["clips"] == 0)


@needs_browser
def test_the_video_tab_says_what_is_wrong_with_what_it_is_given(page, tmp_path):
    page.locator("#translate").click()
    page.get_by_text("Choose a clip first").wait_for()
    broken = tmp_path / "notes.mp4"
    broken.write_text("not a video\n" * 100)
    page.locator("#clip input[type=file]").set_input_files(broken)
    page.locator("#clip video").wait_for(state="attached")
    page.locator("#translate").click()
    page.get_by_text("is not a video").wait_for()


@needs_browser
@pytest.mark.skipif(not app.presets(), reason="no examples/presets.json")
def test_an_example_fills_in_its_clip_and_its_settings(page):
    preset = app.presets()[0]
    page.locator("#examples button:has(img)").first.click()
    page.locator("#clip video").wait_for()
    expect(page.locator("#prompt textarea, #prompt input").first).to_have_value(preset["prompt"])
    expect(page.locator(f"#style input[value={preset['style']}]")).to_be_checked()


def frame_count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[str]:
    """`python app.py`, as a newcomer starts it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, ROOT / "app.py", "--port", str(port)], cwd=tmp_path_factory.mktemp("elsewhere")
    )

    def ready() -> bool:
        assert process.poll() is None, "app.py has ended"
        try:
            return urllib.request.urlopen(f"{url}/config", timeout=5).status == 200
        except OSError:
            return False

    try:
        wait_for(ready)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)


def test_programs_translate_a_clip_through_the_named_endpoint(served, clip, tmp_path):
    client = Client(served, verbose=False, download_files=tmp_path)
    arguments = {"clip": handle_file(clip), "style": "pencil", "prompt": "a ball", "seed": 1}
    results = [Path(client.predict(**arguments, api_name="/translate")) for _ in range(2)]
    assert frame_count(results[0]) == 12
    assert results[0].read_bytes() == results[1].read_bytes(), "the same seed gave another result"
    with pytest.raises(AppError, match="is not in the list of choices"):
        client.predict(**arguments | {"style": "no such style"}, api_name="/translate")
    broken = tmp_path / "notes.mp4"
    broken.write_text("not a video")
    with pytest.raises(AppError, match="is not a video"):
        client.predict(**arguments | {"clip": handle_file(broken)}, api_name="/translate")
    with pytest.raises(AppError, match="Choose a clip first"):
        client.predict(**arguments | {"clip": None}, api_name="/translate")
