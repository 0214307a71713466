"""Changes of a running stream from the Live tab, links, clean view, picture in picture, cues, the meter."""

import re
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from helpers.browser import Identity, needs_browser, opened, with_numbered_camera
from helpers.live_tab import note_states, reach, run, start, stop
from helpers.page import served_page
from helpers.waiting import wait_for
from playwright.sync_api import Browser, Page, expect

from live2diff.serving.engine import Engine
from live2diff.streaming.cues import read_cues
from live2diff.streaming.settings import StreamSettings

pytestmark = needs_browser
LOOK = "#style=ink&prompt=a+cat+%26+a+dog&mix_style=neon&mix_prompt=fog&mix=0.5&steps=2"
LOOK += "&strength=0.3&seed=7&view=both"


class RecordingEngine(Engine):
    """An engine that records the updates of its streams."""

    def __init__(self) -> None:
        super().__init__(Identity(), capacity=1)
        self.updates: list[tuple[StreamSettings, int]] = []
        self.restarts = 0

    def update(self, key, settings, blend=8):
        self.updates.append((settings, blend))
        return super().update(key, settings, blend)

    def restart(self, key):
        self.restarts += 1
        return super().restart(key)


@pytest.fixture(scope="module")
def browser(playwright, tmp_path_factory) -> Iterator[Browser]:
    with with_numbered_camera(playwright, tmp_path_factory.mktemp("camera"), 100) as browser:
        yield browser


@pytest.fixture(scope="module")
def served() -> Iterator[SimpleNamespace]:
    engine = RecordingEngine()
    with served_page(engine) as demo:
        yield SimpleNamespace(engine=engine, address=demo.local_url)


@pytest.fixture
def engine(served) -> Iterator[RecordingEngine]:
    served.engine.updates.clear()
    served.engine.restarts = 0
    yield served.engine
    wait_for(lambda: served.engine.stats()["streams"] == 0)


@pytest.fixture(scope="module")
def pages(browser, served) -> Iterator[Page]:
    with opened(browser, served.address) as page:
        yield page


@pytest.fixture
def page(pages, engine) -> Iterator[Page]:
    yield pages
    stop(pages)


def present(engine: RecordingEngine) -> StreamSettings:
    (session,) = engine.registry.all()
    return session.settings


def value(page: Page, selector: str) -> str:
    return page.locator(f"#live {selector}").input_value()


def open_all(page: Page) -> None:
    page.locator("#live").evaluate(
        "live => live.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )


def look(page: Page) -> dict[str, str]:
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


def test_a_link_sets_the_look_which_follows_changes_and_survives_a_reload(browser, served, engine):
    with opened(browser, served.address + LOOK) as page:
        expect(page.locator("#live .prompt input")).to_have_value("a cat & a dog")
        assert page.locator("#live .stage").get_attribute("data-view") == "both"
        page.locator("#live .start").click()
        reach(page, "running")
        asked = {"mix_style": "neon", "mix_prompt": "fog", "mix": 0.5, "steps": 2, "strength": 0.3, "seed": 7}
        assert present(engine) == StreamSettings(style="ink", prompt="a cat & a dog", **asked)
        page.locator("#live .styles label:has(input[value=oil])").click()
        page.locator("#live .views label", has_text="Slider").click()
        page.wait_for_function("location.hash.includes('style=oil') && location.hash.includes('view=slider')")
        kept = look(page)
        assert kept == dict(style="oil", view="slider", prompt="a cat & a dog") | {
            name: str(number) for name, number in asked.items()
        }
        page.reload()
        expect(page.locator("#live .styles input[value=oil]")).to_be_checked()
        assert (value(page, ".strength input"), value(page, ".seed input")) == ("0.3", "7")
        page.goto(served.address)  # without the link: from the browser's storage
        expect(page.locator("#live .prompt input")).to_have_value("a cat & a dog")
        assert page.locator("#live .stage").get_attribute("data-view") == "slider"


def test_share_copies_a_link_also_where_the_clipboard_is_closed(browser, served, engine):
    allowed = ["clipboard-read", "clipboard-write"]
    with opened(browser, served.address, permissions=allowed) as page:
        page.locator("#live .prompt input").fill("a cat")
        page.locator("#live .share").click()
        expect(page.locator("#live .share")).to_have_text("Link copied")
        link = page.evaluate("navigator.clipboard.readText()")
        assert link == page.url and link.endswith("#style=pencil&prompt=a+cat")
        expect(page.locator("#live .share")).to_have_text("Share")
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(Error('closed')); }")
        page.locator("#live .prompt input").fill("a dog")
        page.locator("#live .share").click()
        expect(page.locator("#live .share")).to_have_text("Link copied")
        assert page.evaluate("navigator.clipboard.readText()").endswith("prompt=a+dog")
        page.evaluate("() => { document.execCommand = () => false; }")
        page.locator("#live .share").click()
        expect(page.locator("#live .message")).to_contain_text("Copy this link: http")


def test_a_hostile_link_is_clamped_and_told(browser, served, engine):
    mark = "<img src=x onerror=window.hit=1>"
    hostile = f"#style={mark}&prompt={mark}{'x' * 5000}&strength=NaN&steps=99&seed=%ff&mix=-4&__proto__=1"
    with opened(browser, served.address + hostile) as page:
        message = page.locator("#live .message")
        expect(message).to_have_text(
            "From the link: unknown style; prompt cut, it is too long; share set to 0."
        )
        assert page.locator("#live .message *").count() == 0
        assert len(value(page, ".prompt input")) == 500
        assert (value(page, ".steps select"), value(page, ".seed input")) == ("4", "0")
        assert page.locator("#live .strength output").text_content() == "style default"
        page.locator("#live .start").click()
        reach(page, "running")
        assert (present(engine).style, present(engine).steps) == ("pencil", 4)
        assert page.evaluate("window.hit") is None


def test_the_clean_view_is_the_picture_alone_and_obeys_keys(browser, served, engine):
    with opened(browser, f"{served.address}?view=clean#style=neon") as page:
        reach(page, "running")  # without a click
        box = page.locator("#live canvas").bounding_box()
        assert box == {"x": 0, "y": 0, **page.viewport_size}
        shown = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((each) =>
          each.checkVisibility({ visibilityProperty: true, opacityProperty: true }) &&
          each.childElementCount === 0 &&
          each.getBoundingClientRect().width > 1).map((each) => each.tagName + "." + each.className)""")
        assert shown == ["CANVAS."]
        page.keyboard.press("ArrowRight")
        wait_for(lambda: present(engine).style == "pencil")  # neon is the last: round to the first
        page.keyboard.press("ArrowLeft")
        wait_for(lambda: present(engine).style == "neon")
        page.keyboard.press("r")
        wait_for(lambda: engine.restarts == 1)
        page.keyboard.press("Space")
        expect(page.locator("#live .notice")).to_have_text("Paused")
        page.keyboard.press("Space")
        with page.expect_download() as download:
            page.keyboard.press("s")
        assert download.value.suggested_filename.endswith(".png")
        page.keyboard.press("f")
        page.wait_for_function("document.fullscreenElement !== null")


def test_the_clean_view_says_why_there_is_no_picture_and_starts_with_a_click(browser, served, engine):
    refused = """const refuse = async () => { throw new DOMException("", "NotAllowedError"); };
      navigator.mediaDevices.getUserMedia = refuse;
      window.allow = () => delete navigator.mediaDevices.getUserMedia;"""
    with opened(browser, f"{served.address}?view=clean", refused) as page:
        expect(page.locator("#live .message")).to_be_visible()
        expect(page.locator("#live .message")).to_contain_text("Allow it")
        page.evaluate("allow()")
        page.locator("#live .screen").click(position={"x": 20, "y": 20})
        reach(page, "running")


def test_keys_leave_fields_and_buttons_alone(page, engine):
    run(page)
    page.locator("#live .prompt input").press_sequentially("r s")
    assert value(page, ".prompt input") == "r s"
    page.locator("#live .restart").focus()
    page.keyboard.press("ArrowRight")
    assert present(engine).style == "pencil"
    page.locator("#live .prompt input").fill("")
    page.locator("#live .prompt input").blur()
    assert page.locator("#live .notice").text_content() == "" and engine.restarts == 0


POP_OUT = """
Object.defineProperty(document, "pictureInPictureEnabled", { value: true, configurable: true });
HTMLVideoElement.prototype.requestPictureInPicture = async function () {
  window.popped = this;
  Object.defineProperty(document, "pictureInPictureElement", { value: this, configurable: true });
};
document.exitPictureInPicture = async () => {
  Object.defineProperty(document, "pictureInPictureElement", { value: null, configurable: true });
  popped.dispatchEvent(new Event("leavepictureinpicture"));
};"""


def test_the_picture_pops_out_and_goes_on_while_the_tab_is_hidden(browser, served, engine):
    with opened(browser, served.address, POP_OUT) as page:
        run(page)
        page.locator("#live .pip").click()
        expect(page.locator("#live .pip")).to_have_attribute("aria-pressed", "true")
        assert page.evaluate("[popped.videoWidth, popped.videoHeight]") == [320, 240]
        page.evaluate("""Object.defineProperty(document, "hidden", { value: true, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));""")
        (session,) = engine.registry.all()
        before = session.stream.frames_in
        wait_for(lambda: session.stream.frames_in > before + 20)  # more than can be in flight
        page.locator("#live .pip").click()
        expect(page.locator("#live .pip")).to_have_attribute("aria-pressed", "false")
        assert page.evaluate("popped.srcObject.getTracks().every((track) => track.readyState === 'ended')")


def test_without_picture_in_picture_there_is_no_button(browser, served):
    missing = "Object.defineProperty(document, 'pictureInPictureEnabled', { value: undefined });"
    with opened(browser, served.address, missing) as page:
        expect(page.locator("#live .start")).to_be_visible()
        expect(page.locator("#live .pip")).to_have_attribute("hidden", "")


def test_a_hint_says_what_words_do_and_its_prompts_can_be_clicked(page, engine):
    expect(page.locator("#live .words")).to_contain_text("Words do nothing.")
    run(page)
    page.locator("#live .suggestion", has_text="a dog").click()
    wait_for(lambda: present(engine).prompt == "a dog")
    page.locator("#live .prompt input").fill("")


def test_strength_steps_and_mixture_change_the_running_stream(page, engine):
    run(page)
    open_all(page)
    note_states(page)
    page.locator("#live .strength input").fill("0.8")
    wait_for(lambda: present(engine).strength == 0.8)
    page.locator("#live .steps select").select_option("3")
    wait_for(lambda: present(engine).steps == 3)
    page.locator("#live .second-style select").select_option("neon")
    page.locator("#live .second-prompt input").fill("fog")
    page.locator("#live .blend input").fill("30")
    page.locator("#live .share-of input").fill("40")
    wait_for(lambda: present(engine).mix == 0.4)
    assert (present(engine).mix_style, present(engine).mix_prompt) == ("neon", "fog")
    assert engine.updates[-1][1] == 30 and engine.restarts == 0
    assert page.evaluate("states").count("warmup") == 0, "another stream was opened"
    page.locator("#live .memory").uncheck()
    page.locator("#live .styles label:has(input[value=oil])").click()
    wait_for(lambda: engine.restarts == 1)
    assert engine.updates[-1][0].style == "oil" and engine.updates[-1][1] == 0
    page.locator("#live .memory").check()
    page.locator("#live .own").click()
    wait_for(lambda: present(engine).strength is None)


def test_cues_are_stepped_through_by_key_and_saved_with_their_frames(page, engine, tmp_path):
    open_all(page)
    for style, blend in (("pencil", "8"), ("oil", "4"), ("comic", "20")):
        page.locator(f"#live .styles label:has(input[value={style}])").click()
        page.locator("#live .blend input").fill(blend)
        page.locator("#live .cue-add").click()
    page.locator("#live .cues li button").first.click()
    run(page)
    (session,) = engine.registry.all()
    for key, style in (("n", "oil"), ("n", "comic"), ("p", "oil")):
        page.locator("#live canvas").click()
        page.keyboard.press(key)
        wait_for(lambda style=style: present(engine).style == style)
        expect(page.locator("#live .cues [aria-current]")).to_contain_text("at frame")
        seen = session.stream.frames_in
        wait_for(lambda seen=seen: session.stream.frames_in > seen + 3)  # so that no two cues share a frame
    assert [(settings.style, blend) for settings, blend in engine.updates] == [
        ("oil", 4),
        ("comic", 20),
        ("oil", 4),
    ]
    expect(page.locator("#live .cues li").nth(1).locator("[aria-current]")).to_contain_text(
        "over 4 frames · at frame"
    )
    with page.expect_download() as download:
        page.locator("#live .cue-save").click()
    download.value.save_as(tmp_path / "cues.json")
    sheet = read_cues(tmp_path / "cues.json")
    assert [cue.style for cue in sheet.cues] == [
        "pencil",
        "comic",
        "oil",
    ]  # in the order of their last frames
    assert sheet.cues[0].frame == 0 and sheet.start["style"] == "pencil"

    page.locator("#live .cues li button[aria-label='Remove cue 1']").click()
    assert page.locator("#live .cues li").count() == 2
    page.locator("#live .cues input[type=file]").set_input_files(tmp_path / "cues.json")
    expect(page.locator("#live .cues li")).to_have_count(3)
    bad = {"name": "bad.json", "mimeType": "application/json", "buffer": b'{"cues": [{"style": "<b>x</b>"}]}'}
    page.locator("#live .cues input[type=file]").set_input_files(bad)
    expect(page.locator("#live .message")).to_have_text("bad.json: Cue 1: unknown style.")
    expect(page.locator("#live .cues li")).to_have_count(3)


def test_a_cue_keeps_the_focus_and_no_frame_of_a_stream_that_is_over(page, engine):
    open_all(page)
    page.locator("#live .cue-add").click()
    run(page)
    cue = page.locator("#live .cues li button").first
    cue.focus()
    page.keyboard.press("Enter")
    wait_for(lambda: len(engine.updates) == 1)
    expect(cue).to_contain_text("at frame")
    expect(cue).to_be_focused()
    page.locator("#live .seed input").fill("99999999999999999999")
    expect(cue).not_to_contain_text("at frame")  # the seed starts another stream
    wait_for(lambda: present(engine).seed == 2147483647)
    reach(page, "running")
    expect(page.locator("#live .message")).to_be_hidden()


def test_after_a_refusal_the_page_shows_the_settings_that_are_kept(page, engine, monkeypatch):
    def update(key: str, settings: StreamSettings, blend: int = 8) -> None:
        if settings.steps == 4:
            raise ValueError("There is no memory for 4 steps.")
        return original(key, settings, blend)

    original = engine.update
    monkeypatch.setattr(engine, "update", update)
    open_all(page)
    run(page)
    steps = page.locator("#live .steps select")
    before = steps.input_value()
    steps.select_option("4")
    expect(page.locator("#live .message")).to_have_text("There is no memory for 4 steps.")
    expect(steps).to_have_value(before)
    page.locator("#live .prompt input").fill("a cat")
    wait_for(lambda: present(engine).prompt == "a cat")
    expect(page.locator("#live .message")).to_be_hidden()


def test_a_page_that_records_is_not_left_unasked(page):
    run(page)
    leaves = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    assert page.evaluate(leaves)
    page.locator("#live .record").click()
    assert not page.evaluate(leaves)
    with page.expect_download():
        page.locator("#live .record").click()
    assert page.evaluate(leaves)


def test_the_meter_says_what_limits_and_how_steady_the_picture_is(browser, page, served):
    run(page)
    expect(page.locator("#live .why")).to_have_text(re.compile("^(camera|model|network)$"))
    words = r"Camera \d+ a second · model .* a frame · network .* · "
    words += r"(what stands still flickers \d+\.\d times as much as the camera's|nothing stands still)"
    expect(page.locator("#live .meter")).to_have_text(re.compile(words))
    with opened(browser, served.address) as second:
        start(second)
        reach(second, "waiting")
        expect(second.locator("#live .why")).to_have_text("line")
