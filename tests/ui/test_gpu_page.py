"""The page as on a GPU: graphs captured at the start, viewers with other cameras come and go in one batch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import chromium, needs_browser, opened, write_camera
from helpers.graph_emulator import Graphs, emulate
from helpers.live_tab import count_images, marker, reach, shown
from helpers.page import served_page
from helpers.waiting import wait_for
from playwright.sync_api import Page

from live2diff.runtime.cuda_graphs import CudaRuntime, Way
from live2diff.serving.engine import Engine
from live2diff.serving.warm_start import warm_start
from live2diff.streaming.cache_pool import CachePools

pytest.importorskip("triton", reason="on Linux only")
CAPACITY = 2


@pytest.fixture
def served(tiny_pipeline, monkeypatch) -> Iterator[tuple[str, Graphs, Engine]]:
    """The page of a tiny model in the full one's layout, under emulated graphs."""
    graphs = emulate(monkeypatch)
    monkeypatch.setattr(tiny_pipeline, "runtime", CudaRuntime(tiny_pipeline, Way(attention=True, fused=True)))

    def open_pools(*arguments: object) -> CachePools:
        pools = CachePools(CAPACITY)
        warm_start(tiny_pipeline, pools, CAPACITY)
        return pools

    monkeypatch.setattr("live2diff.serving.warm_start.open_pools", open_pools)
    engine = Engine(tiny_pipeline, capacity=CAPACITY, together=True)
    with served_page(engine) as demo:
        yield demo.local_url, graphs, engine


def camera(folder: Path, upright: bool) -> Path:
    """Write a camera's clip, lying or upright."""
    images = [marker(0.2 + number / 50) for number in range(30)]
    images = [image.transpose(1, 0, 2).copy() for image in images] if upright else images
    return write_camera(folder / f"{upright}.y4m", images, rate=15)


def visit(page: Page) -> None:
    """Start, and wait for images of several rounds."""
    count_images(page)
    page.get_by_role("tab", name="Live").click()
    page.locator("#live .start").click()
    reach(page, "running")
    wait_for(lambda: shown(page) > 5)


@needs_browser
@pytest.mark.slow
def test_two_viewers_of_different_shapes_come_and_go_and_nothing_is_captured(served, playwright, tmp_path):
    address, graphs, engine = served
    captured = graphs.captured
    assert captured > 0
    with (
        chromium(playwright, camera(tmp_path, upright=False)) as lying,
        chromium(playwright, camera(tmp_path, upright=True)) as upright,
        opened(lying, address) as first,
    ):
        visit(first)
        with opened(upright, address) as second:
            visit(second)
            aspects = [
                page.eval_on_selector("#live canvas", "c => c.width / c.height") for page in (first, second)
            ]
            assert aspects[0] > 1 > aspects[1]
        wait_for(lambda: len(engine.session_keys()) == 1)
        before = shown(first)
        wait_for(lambda: shown(first) > before + 5)
        with opened(upright, address) as third:
            visit(third)
    assert graphs.captured == captured and graphs.replayed > 0
