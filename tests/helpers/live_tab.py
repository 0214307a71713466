"""What the Live tab's tests do in the page: press its buttons, and look at what it shows."""

import cv2
import numpy as np
from playwright.sync_api import Page


def marker(place: float) -> np.ndarray:
    """A dark picture with a bright disc."""
    picture = np.full((240, 320, 3), 30, np.uint8)
    return cv2.circle(picture, (round(320 * place), 150), 50, (250, 235, 120), -1)


def disc(picture: np.ndarray) -> float:
    """Where the bright disc is, from 0 at the left to 1; nan where there is none."""
    light = picture.mean(axis=2)
    bright = np.clip(light - (light.min() + light.max()) / 2, 0, None).sum(axis=0)
    centres = (np.arange(len(bright)) + 0.5) / len(bright)
    return float((bright * centres).sum() / bright.sum()) if bright.any() else float("nan")


def start(page: Page, style: str = "pencil") -> None:
    """Choose a style and one denoising step, and press Start."""
    page.get_by_role("tab", name="Live").click()
    page.locator(f"#live .styles label:has(input[value={style}])").click()
    page.locator("#live .more").evaluate("more => { more.open = true; }")
    page.locator("#live .steps select").select_option("1")
    page.locator("#live .start").click()


def stop(page: Page) -> None:
    """For who comes next: nothing runs, and the result alone is to be seen."""
    if page.locator("#live .stop").is_visible():
        page.locator("#live .views label", has_text="Result").click()
        page.locator("#live .stop").click()
    reach(page, "idle")


def reach(page: Page, state: str) -> None:
    page.wait_for_selector(f'#live .stage[data-state="{state}"]')


def note_states(page: Page) -> None:
    """From now on, `states` in the page holds every one that the Live tab comes to, however shortly."""
    page.evaluate("""() => {
      const { dataset } = document.querySelector("#live .stage");
      const note = () => states.push(dataset.state, dataset.empty === "yes" ? "empty" : "full");
      window.states = [];
      new MutationObserver(note).observe(document.querySelector("#live .stage"), { attributes: true });
    }""")


def passes(page: Page, *names: str) -> None:
    """Wait until it has come to these since `note_states`, one after the other."""
    page.wait_for_function("names => RegExp(names).test(states.join(' '))", arg=".*".join(names))


def shown(page: Page) -> int:
    """How many pictures were shown since `count_pictures`."""
    return page.evaluate("window.pictures")


def count_pictures(page: Page) -> None:
    """From now on, whatever is drawn on the canvas of the Live tab is counted."""
    page.evaluate("""() => {
      const own = CanvasRenderingContext2D.prototype.drawImage;
      window.pictures = 0;
      CanvasRenderingContext2D.prototype.drawImage = function (...rest) {
        if (this.canvas === document.querySelector("#live canvas")) window.pictures += 1;
        return own.apply(this, rest);
      };
    }""")
