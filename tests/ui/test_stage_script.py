"""The script of the Video tab's stage, without Gradio."""

from helpers.browser import chromium, needs_browser

from live2diff.ui.theme import STATIC
from live2diff.ui.video_tab import stage_value

PAGE = (STATIC / "stage.html").read_text()
SCRIPT = (STATIC / "stage.js").read_text()
SETUP = """([code, value]) => {
  window.props = { value };
  const watch = (name, show) => (window.changed = show);
  new Function("element", "props", "watch", code)(document.body, props, watch);
}"""


@needs_browser
def test_a_late_image_of_a_translation_does_not_replace_the_next_clip(playwright):
    with chromium(playwright, None) as browser:
        page = browser.new_page()
        page.set_content(PAGE)
        page.evaluate(SETUP, [SCRIPT, stage_value("empty")])

        def text_after(text: str, run: str | None) -> str:
            page.evaluate(
                "value => { props.value = value; changed(); }", stage_value("running", text, run=run)
            )
            return page.locator(".text").inner_text()

        assert text_after("1 of 9", "a") == "1 of 9"
        assert text_after("2 of 9", "a") == "2 of 9"
        assert text_after("Made before", None) == "Made before"
        assert text_after("3 of 9", "a") == "Made before"
        assert text_after("", None) == ""
        assert text_after("4 of 9", "a") == "", "also after a second change"
        assert text_after("1 of 5", "b") == "1 of 5"
        assert text_after("5 of 9", "a") == "1 of 5"
