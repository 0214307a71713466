"""An engine whose GPU is lent for each session, by default in a process forked as `spaces` forks it."""

from collections.abc import Iterator

import pytest
from helpers.gpu_visits import in_forked_process

from live2diff.zerogpu.engine import ZeroGpuEngine


@pytest.fixture
def engine(request, tiny_pipeline) -> Iterator[ZeroGpuEngine]:
    engine = ZeroGpuEngine(tiny_pipeline, capacity=3, wrap=getattr(request, "param", in_forked_process))
    pipes = len(engine.pipes.free)
    yield engine
    engine.shutdown()
    assert len(engine.pipes.free) == pipes, "a pipe was not given back"
