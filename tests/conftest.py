"""Fixtures: a pipeline of all the real classes at tiny width with random weights, an engine, the page."""

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.tiny_models import build_tiny_pipeline

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
# With tiny models, two threads that wait for each other take five times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from helpers.published import write_base

from live2diff import Live2DiffPipeline
from live2diff.serving.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Playwright


@pytest.fixture(scope="module", autouse=True)
def frozen_objects() -> None:
    """Exempt the libraries' objects from `gc.collect`, which would spend a second on them."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: at the end, one process would work on the last one alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish() -> None:
    """Let Python free everything at its end: nanobind reports what is left."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def same_log() -> Iterator[None]:
    """Undo a server's changes to the log: its handler writes to a file that is closed after the test."""
    log = logging.getLogger("live2diff")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Live2DiffPipeline:
    return build_tiny_pipeline(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def engine(tiny_pipeline) -> Iterator[Engine]:
    """The engine behind `address`."""
    engine = Engine(tiny_pipeline)
    yield engine
    engine.shutdown()


@pytest.fixture(scope="session")
def address(engine) -> Iterator[str]:
    """The address of the page, served."""
    import app  # brings Gradio with it, which most tests do without

    demo = app.serve(engine, quiet=True, server_name="127.0.0.1")
    yield demo.local_url
    demo.close()


@pytest.fixture(scope="module")
def playwright() -> Iterator["Playwright"]:
    """Playwright, closed after the module: no other may run beside it."""
    from playwright.sync_api import sync_playwright  # need not be where a GPU is

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A random model in the layout of `stable-diffusion-v1-5`, with a DPT in `depth`; do not change it."""
    return write_base(tmp_path_factory.mktemp("base"))
