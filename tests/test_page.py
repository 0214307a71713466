"""The Video tab in a real browser, and the page through `gradio_client`: on the nano model."""

import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from browser import PATIENCE, chromium, needs_browser, opened, wait_for, write_camera
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Page, expect, sync_playwright

import app
import live2diff
from live2diff.engine import Engine

ROOT = Path(__file__).parent.parent


def scenes() -> list[np.ndarray]:
    """Two pictures nobody would confuse: bright with a dark disc on the left, dark with a bright one."""
    pictures = []
    for ground, disc, centre in ((225, (160, 30, 40), 90), (30, (240, 220, 90), 230)):
        picture = np.full((240, 320, 3), ground, np.uint8)
        pictures.append(cv2.circle(picture, (centre, 120), 70, disc, -1))
    return pictures


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
    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield demo.local_url
    demo.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    camera = write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m", scenes(), rate=10, repeat=30)
    with sync_playwright() as playwright, chromium(playwright, camera) as browser:
        yield browser


@pytest.fixture
def page(browser, address) -> Iterator[Page]:
    with opened(browser, address) as page:
        yield page


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
