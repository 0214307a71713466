"""The Video tab in a real browser, on a model of all the real classes at tiny width."""

import itertools
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import chromium, needs_browser, numbered, opened, write_camera
from helpers.clips import RATE, frame_count, sound_seconds, write_clip
from helpers.waiting import PATIENCE, wait_for
from playwright.sync_api import Browser, Page, expect, sync_playwright

from live2diff.serving.clip_queue import ClipQueue
from live2diff.ui.examples import presets, result_of

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    camera = write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m", map(numbered, range(20)), 20)
    with sync_playwright() as playwright, chromium(playwright, camera) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, address) -> Iterator[Page]:
    """Open the page at the Video tab once for all tests: loading it takes most of the time."""
    with opened(browser, address) as page:
        page.get_by_role("tab", name="Video").click()
        yield page


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """A clip that is not finished before it is cancelled."""
    return write_clip(tmp_path_factory.mktemp("long") / "clip.mp4", 700, sound="aac")


def clear(page: Page) -> None:
    """Remove the clip of the last test."""
    remove = page.locator("#clip").get_by_label("Clear")
    if remove.is_visible():
        remove.click()
    reach(page, "empty")


def upload(page: Page, clip: Path) -> None:
    clear(page)
    page.locator("#clip input[type=file]").set_input_files(clip)
    page.wait_for_function("() => document.querySelector('#clip video')?.readyState >= 1")


def open_trim(page: Page) -> None:
    if not page.get_by_label("End, in seconds").is_visible():
        page.get_by_role("button", name="Trim").click()


def downloaded(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator("#result a[download]").click()
    download.value.save_as(folder / "result.mp4")
    return folder / "result.mp4"


def reach(page: Page, name: str) -> None:
    """Wait until the stage is in a state."""
    page.wait_for_selector(f'#result .stage[data-state="{name}"]')


def test_a_result_has_the_frames_and_the_sound_of_the_clip_and_plays_in_sync(page, engine, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 40, sound="aac")
    upload(page, clip)
    page.locator("#prompt textarea, #prompt input").first.fill("a ball")
    page.locator("#style").get_by_label("Pencil").check()
    page.get_by_role("button", name="Translate", exact=True).click()
    reach(page, "done")
    expect(page.locator("#result .text")).to_have_text("40 frames.")
    result = downloaded(page, tmp_path)
    assert frame_count(result) == 40
    assert sound_seconds(result) == pytest.approx(sound_seconds(clip), abs=0.05)
    assert engine.stats()["clips"] == 0

    times = "() => ['#result', '#clip'].map(id => document.querySelector(id + ' video').currentTime)"
    playing = "() => [...document.querySelectorAll('video')].filter(video => !video.paused).length"
    page.get_by_role("button", name="Play both").click()
    page.wait_for_function(f"{playing} === 2")
    page.get_by_role("button", name="Pause both").click()
    page.wait_for_function(f"{playing} === 0")
    page.locator("#clip video").evaluate("video => { video.currentTime = 1; }")
    page.wait_for_function(f"() => ({times})().every(time => Math.abs(time - 1) < 0.2)")


@pytest.fixture
def slow_model(engine, monkeypatch) -> None:
    """Let frames after the first 20 take 0.3 s each, so that even a busy browser sees a long clip run."""
    call, frames = engine.call, itertools.count()

    def slowly(*arguments: object) -> object:
        if next(frames) > 20:
            time.sleep(0.3)
        return call(*arguments)

    monkeypatch.setattr(engine, "call", slowly)


def test_a_preview_shows_and_cancel_keeps_a_playable_part(page, engine, slow_model, long_clip, tmp_path):
    upload(page, long_clip)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("#result img")).to_be_visible()
    expect(page.locator("#result img")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    expect(page.locator("#result .text")).to_have_text(re.compile(r"\d+ of 700 frames"))
    page.get_by_role("button", name="Cancel").click()
    reach(page, "done")
    text = page.locator("#result .text").inner_text()
    kept = int(re.fullmatch(r"Cancelled. The (\d+) frames made by then are kept, with their sound.", text)[1])
    result = downloaded(page, tmp_path)
    assert 8 <= frame_count(result) == kept < 700
    assert sound_seconds(result) == pytest.approx(kept / RATE, abs=0.06)
    wait_for(lambda: engine.stats()["clips"] == 0)
    expect(page.get_by_role("button", name="Translate", exact=True)).to_be_enabled()


def test_a_clip_that_is_replaced_is_no_longer_translated_nor_shown(
    page, engine, slow_model, long_clip, tmp_path
):
    upload(page, long_clip)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("#result img")).to_be_visible()
    upload(page, write_clip(tmp_path / "next.mp4", 20))
    wait_for(lambda: engine.stats()["clips"] == 0)
    expect(page.get_by_role("button", name="Translate", exact=True)).to_be_enabled()
    expect(page.locator("#result .stage")).to_have_attribute("data-state", "empty")
    page.get_by_role("button", name="Translate", exact=True).click()
    reach(page, "done")
    assert frame_count(downloaded(page, tmp_path)) == 20


def test_an_example_ends_the_translation_before_it(page, engine, slow_model, long_clip):
    upload(page, long_clip)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("#result img")).to_be_visible()
    page.locator("#examples button:has(img)").first.click()
    expect(page.locator("#result .text")).to_contain_text("Made before")
    wait_for(lambda: engine.stats()["clips"] == 0)
    expect(page.locator("#result .text")).to_contain_text("Made before")
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()


def test_clips_of_two_viewers_take_turns_and_each_gets_their_own(
    page, browser, address, engine, slow_model, long_clip, tmp_path
):
    upload(page, long_clip)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("#result .text")).to_have_text(re.compile(r"\d+ of 700 frames"))
    with opened(browser, address) as other:
        other.get_by_role("tab", name="Video").click()
        upload(other, write_clip(tmp_path / "short.mp4", 20))
        other.get_by_role("button", name="Translate", exact=True).click()
        expect(other.locator("#result .text")).to_have_text("1 clip is before yours. It begins by itself.")
        page.get_by_role("button", name="Cancel").click()
        reach(other, "done")
        assert frame_count(downloaded(other, tmp_path)) == 20
    expect(page.locator("#result .text")).to_contain_text("Cancelled")
    wait_for(lambda: engine.stats()["clips"] == 0)


def test_only_the_chosen_part_is_translated_and_plays_in_sync_with_it(page, tmp_path):
    upload(page, write_clip(tmp_path / "clip.mp4", 75))
    open_trim(page)
    expect(page.get_by_label("End, in seconds")).to_have_value("3")
    page.get_by_label("End, in seconds").fill("2")
    page.locator("#clip video").evaluate("video => { video.currentTime = 1; }")
    page.get_by_role("button", name="Start where the player is").click()
    expect(page.get_by_label("Start, in seconds")).to_have_value("1")
    page.get_by_role("button", name="Translate", exact=True).click()
    reach(page, "done")
    assert frame_count(downloaded(page, tmp_path)) == 25
    page.locator("#result video").evaluate("video => { video.currentTime = 0.5; }")
    original = "document.querySelector('#clip video').currentTime"
    page.wait_for_function(f"() => Math.abs({original} - 1.5) < 0.2")


def test_a_clip_chosen_while_the_server_clears_the_one_before_is_trimmed_to_its_end(
    page, tmp_path, monkeypatch
):
    upload(page, write_clip(tmp_path / "first.mp4", 50))
    open_trim(page)
    expect(page.get_by_label("End, in seconds")).to_have_value("2")
    entered, release = threading.Event(), threading.Event()

    def tidy(jobs: ClipQueue) -> None:
        entered.set()
        assert release.wait(PATIENCE)

    monkeypatch.setattr(ClipQueue, "tidy", tidy)
    clear(page)
    assert entered.wait(PATIENCE)
    upload(page, write_clip(tmp_path / "second.mp4", 75))
    release.set()
    expect(page.get_by_label("End, in seconds")).to_have_value("3")


def test_an_example_shows_its_finished_result_at_once_and_runs_again_on_request(page, engine, tmp_path):
    preset = next(preset for preset in presets() if result_of(preset).exists())
    page.locator("#examples button:has(img)").nth(presets().index(preset)).click()
    page.wait_for_function("() => document.querySelector('#result video').readyState >= 1")
    expect(page.locator("#result .text")).to_contain_text("Made before, by the nano model.")
    assert downloaded(page, tmp_path).read_bytes() == result_of(preset).read_bytes()
    expect(page.locator("#prompt textarea, #prompt input").first).to_have_value(preset["prompt"])
    expect(page.locator(f"#style input[value={preset['style']}]")).to_be_checked()
    open_trim(page)
    page.get_by_label("End, in seconds").fill("0.4")
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("#result .text")).to_have_text("10 frames.")
    assert downloaded(page, tmp_path).read_bytes() != result_of(preset).read_bytes()


def test_an_example_plays_beside_its_original_while_the_pointer_is_over_it(page):
    card, other = page.locator("#examples .card").nth(1), page.locator("#examples .card").nth(2)
    times = (
        "card => [...card.querySelectorAll('video')].map(({ currentTime, paused }) => [currentTime, paused])"
    )
    assert other.evaluate(times) == [[0, True]] * 2
    card.hover()
    wait_for(lambda: card.evaluate(times)[1][0] > 0.4)
    expect(card.locator(".result")).to_be_visible()
    (original, _), (result, _) = card.evaluate(times)
    assert abs(original - result) < 0.3
    other.hover()
    wait_for(lambda: [paused for _, paused in card.evaluate(times)] == [True, True])


def test_the_look_of_an_example_is_tried_on_the_camera(page):
    preset = next(preset for preset in presets() if preset["style"] == "comic")
    page.get_by_role("button", name="Try this look on my camera: Comic").click()
    expect(page.locator("#live .start")).to_be_focused()
    expect(page.locator("#live .styles input[value=comic]")).to_be_checked()
    expect(page.locator("#live .prompt input")).to_have_value(preset["prompt"])
    page.locator("#live .start").click()
    page.wait_for_selector('#live .stage[data-state="running"]')
    page.locator("#live .stop").click()
    page.get_by_role("tab", name="Video").click()


def test_on_a_phone_clip_and_translate_are_in_sight_at_once(browser, address):
    with opened(browser, address, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        page.get_by_role("tab", name="Video").click()
        expect(page.get_by_role("button", name="Translate", exact=True)).to_be_in_viewport(ratio=1)
        expect(page.locator("#clip")).to_be_in_viewport(ratio=0.9)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_files_that_cannot_be_translated_are_reported_beside_the_clip(page, tmp_path):
    clear(page)
    page.get_by_role("button", name="Translate", exact=True).click()
    expect(page.locator("#result .text")).to_contain_text("Choose a clip first")
    broken = tmp_path / "notes.mp4"
    broken.write_text("not a video\n" * 100)
    page.locator("#clip input[type=file]").set_input_files(broken)
    expect(page.locator("#result .text")).to_contain_text("is not a video")
    page.get_by_role("button", name="Translate", exact=True).click()
    reach(page, "error")
    expect(page.get_by_role("button", name="Translate", exact=True)).to_be_enabled()


def test_styles_are_chosen_by_keyboard_and_show_their_thumbnails(page):
    expect(page.locator("#style label").first).to_be_visible()
    page.locator("#style input").first.focus()
    page.keyboard.press("Tab")  # Gradio gives each radio button a group of its own: no arrows
    page.keyboard.press("Space")
    expect(page.locator("#style input").nth(1)).to_be_checked()
    picture = "label => getComputedStyle(label, '::before').backgroundImage"
    url = page.locator("#style label").first.evaluate(picture).split('"')[1]
    assert page.request.get(url).headers["content-type"] == "image/jpeg"
    page.get_by_role("tab", name="Live").click()
    expect(page.locator("#live")).to_be_visible()
