"""Clips whose translation fails midway: the frames kept, the message, and that the page still works."""

import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from helpers.browser import Identity, chromium, needs_browser, opened
from helpers.clips import frame_count, write_clip
from helpers.page import served_page
from playwright.sync_api import expect

from live2diff.errors import ClipStopped
from live2diff.serving.clip_queue import ClipQueue
from live2diff.serving.engine import Engine
from live2diff.streaming.settings import StreamSettings
from live2diff.ui.video_tab import UNEXPECTED, explain, stage_values
from live2diff.video.reader import Cut

REQUEST = SimpleNamespace(session_hash="ann", headers={}, client=None)
SETTINGS = StreamSettings(style="pencil")
KEPT = "The 20 frames made by then are kept, with their sound."


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 40, sound="aac")


@pytest.mark.parametrize(
    ("error", "text", "is_expected"),
    [
        (
            RuntimeError("expected scalar type Half\nmore"),
            "The model failed: expected scalar type Half",
            True,
        ),
        (OSError("No space left on device"), "No space left on device", True),
        (LookupError("a bug"), UNEXPECTED, False),
    ],
    ids=["model", "disk", "bug"],
)
def test_the_stage_says_why_and_keeps_the_frames(error, text, is_expected, clip, tmp_path):
    engine = Engine(Identity(error=error))
    values = []
    try:
        for value in stage_values(
            ClipQueue(engine, tmp_path / "results"), str(clip), SETTINGS, Cut(0.2), REQUEST
        ):
            values.append(value)
        assert is_expected
    except LookupError as raised:  # Gradio logs it
        assert raised is error and not is_expected
    last = values[-1]
    assert (last["state"], last["text"], last["offset"]) == ("error", f"{text} {KEPT}", 0.2)
    assert frame_count(last["path"]) == 20
    engine.shutdown()


def test_a_viewer_who_leaves_gets_no_last_value(clip, tmp_path):
    engine = Engine(Identity())
    values = stage_values(ClipQueue(engine, tmp_path / "results"), str(clip), SETTINGS, Cut(), REQUEST)
    assert next(values)["state"] == "running"
    values.close()
    assert engine.stats()["clips"] == 0
    engine.shutdown()


def test_an_error_of_the_model_is_logged_and_a_wrong_clip_is_not(caplog):
    assert explain(ValueError("This is not a video.")) == "This is not a video."
    assert explain(ClipStopped()) == "Cancelled." and caplog.text == ""
    assert explain(RuntimeError("")) == "The model failed: no reason given"
    assert "a clip failed" in caplog.text


def test_a_program_reads_why_and_where_the_frames_are(clip, tmp_path):
    with served_page(Engine(Identity(error=RuntimeError("expected scalar type Half")))) as demo:
        client = Client(demo.local_url, verbose=False)
        with pytest.raises(AppError) as raised:
            client.predict(clip=handle_file(clip), style="pencil", api_name="/translate")
        text, _, path = str(raised.value).rpartition(" ")
        assert text == f"The model failed: expected scalar type Half {KEPT}"
        (tmp_path / "kept.mp4").write_bytes(httpx.get(demo.local_url + path).raise_for_status().content)
        assert frame_count(tmp_path / "kept.mp4") == 20


@needs_browser
def test_after_an_unexpected_error_the_next_clip_can_be_translated(playwright, clip):
    with (
        served_page(Engine(Identity(error=LookupError("a bug")))) as demo,
        chromium(playwright, None) as browser,
        opened(browser, demo.local_url) as page,
    ):
        page.get_by_role("tab", name="Video").click()
        page.locator("#clip input[type=file]").set_input_files(clip)
        page.wait_for_function("() => document.querySelector('#clip video')?.readyState >= 1")
        translate = page.get_by_role("button", name="Translate", exact=True)
        for _ in range(2):
            translate.click()
            expect(page.locator("#result .text")).to_have_text(re.compile(re.escape(f"{UNEXPECTED} {KEPT}")))
            expect(translate).to_be_enabled()
            expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
