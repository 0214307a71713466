"""`app.py --cluster local` in a real browser: the page's worker is killed, and the page goes on."""

import os
import re
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
from helpers.browser import chromium, needs_browser, opened, write_camera
from helpers.live_tab import count_images, note_states, reach, shown, start
from helpers.paths import EXAMPLES
from helpers.waiting import wait_for
from measure.server import served
from playwright.sync_api import expect

from live2diff.video.reader import read_frames

pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.long, needs_browser]


def test_the_page_survives_the_death_of_its_worker(playwright, tmp_path):
    log, sockets = tmp_path / "log", []
    frames = (frame for frame, _ in read_frames(EXAMPLES / "traveller.mp4"))
    camera = write_camera(tmp_path / "camera.y4m", frames, 24)
    with (
        TemporaryDirectory() as short,  # Ray's sockets are there: at most 107 characters
        served(Path(short), "--cluster", "local", log=log) as (_, address),
        chromium(playwright, camera) as browser,
    ):

        def workers() -> dict:
            return httpx.get(f"{address}health", timeout=60).json()["workers"]

        with opened(browser, address) as page:
            wait_for(lambda: all(worker["slots"] for worker in workers().values()))
            page.on("websocket", lambda socket: sockets.append(socket))
            start(page, "ink")
            reach(page, "running")
            note_states(page)
            count_images(page)
            wait_for(lambda: shown(page) > 10)
            [drawing] = [key for key, worker in workers().items() if worker["streams"]]
            process = re.findall(rf"ready worker={drawing} process=(\d+)", log.read_text())[-1]

            os.kill(int(process), signal.SIGKILL)
            expect(page.locator("#live .notice")).to_have_text("Moved to another GPU")
            images = shown(page)
            wait_for(lambda: shown(page) > images + 10)
            expect(page.locator("#live .notice")).to_be_hidden()
            assert len(sockets) == 1 and not sockets[0].is_closed(), "the same socket goes on"
            assert set(page.evaluate("states")) <= {"running", "full"}
            other = next(key for key, worker in workers().items() if worker["streams"])
            assert other != drawing
            assert re.search(rf"moved id=\w+ from={drawing} to={other} milliseconds=\d+", log.read_text())
            assert f'live2diff_worker_streams{{worker="{other}"}} 1.0' in httpx.get(f"{address}metrics").text
            wait_for(lambda: all(worker["slots"] for worker in workers().values()))
