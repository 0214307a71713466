"""Steps of the Live tab's tests: press its buttons, read its display."""

import cv2
import numpy as np
from playwright.sync_api import Page

from .waiting import wait_for


def marker(position: float) -> np.ndarray:
    """Return a dark image with a bright disc."""
    image = np.full((240, 320, 3), 30, np.uint8)
    return cv2.circle(image, (round(320 * position), 150), 50, (250, 235, 120), -1)


def disc(image: np.ndarray) -> float:
    """Return the position of the bright disc, from 0 at the left to 1; nan where there is none."""
    light = image.mean(axis=2)
    threshold = light.min() + 0.75 * (light.max() - light.min())  # above a style's lighter background too
    bright = np.clip(light - threshold, 0, None).sum(axis=0)
    centres = (np.arange(len(bright)) + 0.5) / len(bright)
    return float((bright * centres).sum() / bright.sum()) if bright.any() else float("nan")


def start(page: Page, style: str = "pencil") -> None:
    """Choose a style and one denoising step, and press Start."""
    page.get_by_role("tab", name="Live").click()
    page.locator(f"#live .styles label:has(input[value={style}])").click()
    page.locator("#live .more").evaluate("more => { more.open = true; }")
    page.locator("#live .steps select").select_option("1")
    page.locator("#live .start").click()


def run(page: Page, style: str = "pencil") -> None:
    """Start, and wait until results are shown."""
    start(page, style)
    reach(page, "running")


def stop(page: Page) -> None:
    """Reset the page for the next test: nothing runs, and the result alone is shown."""
    if page.locator("#live .stop").is_visible():
        page.locator("#live .views label", has_text="Result").click()
        page.locator("#live .stop").click()
    reach(page, "idle")


def unequal_pairs(page: Page) -> set[tuple[int, int]]:
    """Show numbered originals beside their results; return the pairs of numbers that are not the same."""
    page.locator("#live .mirror").uncheck()
    page.locator("#live .views label", has_text="Side by side").click()
    both = "() => [0, 0.5].map((left) => readNumber(document.querySelector('#live canvas'), left, 0.5))"
    readable: set[tuple[int, int]] = set()

    def read() -> bool:
        if -1 not in (pair := tuple(page.evaluate(both))):
            readable.add(pair)
        return len(readable) > 10

    wait_for(read)
    return {(left, right) for left, right in readable if left != right}


def reach(page: Page, state: str) -> None:
    """Wait until the Live tab is in a state."""
    page.wait_for_selector(f'#live .stage[data-state="{state}"]')


def note_states(page: Page) -> None:
    """Record every state of the Live tab from now on, however short, in the page's `states`."""
    page.evaluate("""() => {
      const { dataset } = document.querySelector("#live .stage");
      const note = () => states.push(dataset.state, dataset.empty === "yes" ? "empty" : "full");
      window.states = [];
      new MutationObserver(note).observe(document.querySelector("#live .stage"), { attributes: true });
    }""")


def passes(page: Page, *names: str) -> None:
    """Wait until these states have occurred in this order since `note_states`."""
    page.wait_for_function("names => RegExp(names).test(states.join(' '))", arg=".*".join(names))


def shown(page: Page) -> int:
    """Return how many images were shown since `count_images`."""
    return page.evaluate("window.images")


def count_images(page: Page) -> None:
    """Count what is drawn on the canvas of the Live tab from now on."""
    page.evaluate("""() => {
      const own = CanvasRenderingContext2D.prototype.drawImage;
      window.images = 0;
      CanvasRenderingContext2D.prototype.drawImage = function (...rest) {
        if (this.canvas === document.querySelector("#live canvas")) window.images += 1;
        return own.apply(this, rest);
      };
    }""")


def wait_for_images(page: Page) -> None:
    """Wait until new images are shown."""
    count_images(page)
    wait_for(lambda: shown(page) > 3)
