"""A worker's process."""

import asyncio
import os
from types import SimpleNamespace

import pytest

from live2diff.cluster.worker import Worker, load_engine
from live2diff.errors import DEVICE_LOST


@pytest.mark.parametrize(("failure", "codes"), [("", []), ("The device has failed: x", [DEVICE_LOST])])
def test_it_ends_when_its_device_is_lost_and_ray_starts_another(monkeypatch, failure, codes):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    worker = Worker(lambda: SimpleNamespace(failure=failure))
    asyncio.run(worker.ping())
    assert ended == [], "it has no engine yet"
    worker._engine = worker._make_engine()
    asyncio.run(worker.ping())
    assert ended == codes


def test_its_engine_has_the_size_that_was_given(tiny_pipeline):
    size = tiny_pipeline.config.size
    engine = load_engine(lambda: tiny_pipeline, size=48)
    engine.shutdown()
    tiny_pipeline.register_to_config(size=size)
    assert engine.size == 48
