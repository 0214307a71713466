"""Both tabs as axe-core sees them, light and dark: nothing serious for a keyboard or a screen reader."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.browser import chromium, needs_browser, opened
from helpers.live_tab import run, stop
from playwright.sync_api import Browser, Page

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(playwright) -> Iterator[Browser]:
    with chromium(playwright, None) as browser:
        yield browser


@pytest.fixture(scope="module", params=["light", "dark"])
def page(browser, address, request) -> Iterator[Page]:
    with opened(browser, address, color_scheme=request.param) as page:
        page.locator("#live .start").wait_for()
        yield page


def serious(page: Page) -> list[str]:
    """Return the serious violations: rule, the element's selector and what is wrong with it."""
    violations = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']}: {node['target']} {node['failureSummary']} {node['html'][:200]}"
        for each in violations
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def test_the_live_tab_idle_and_running(page):
    page.locator("#live .more").evaluate("more => { more.open = true; }")
    assert serious(page) == []
    run(page)
    page.locator("#live .views label", has_text="Slider").click()
    assert serious(page) == []
    stop(page)


def test_the_video_tab_empty_and_with_a_result(page):
    page.get_by_role("tab", name="Video").click()
    page.locator("#examples .pick").first.wait_for()
    assert serious(page) == []
    page.locator("#examples .pick").first.click()
    page.wait_for_function("() => document.querySelector('#result video').readyState >= 1")
    assert serious(page) == []


def test_everything_on_the_live_tab_is_reached_by_the_tab_key(page):
    page.get_by_role("tab", name="Live").click()
    page.locator("#live .start").focus()
    names, name = (
        [],
        "document.activeElement.closest('[class]').className + ' ' + document.activeElement.className",
    )
    for _ in range(12):
        names.append(page.evaluate(name))
        page.keyboard.press("Tab")
    reached = " ".join(names)
    for part in ("start", "styles", "prompt", "more"):
        assert part in reached, names
