"""Serve the page in this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from live2diff.serving.limits import VisitorLimits
from live2diff.serving.sessions import EngineProtocol


@contextmanager
def served_page(engine: EngineProtocol, *limits: VisitorLimits) -> Iterator[Any]:
    """Serve the page on an engine; yield the launched `gr.Blocks`, and end both after the block."""
    import app  # brings Gradio with it, which most tests do without

    demo = app.serve(engine, *limits, quiet=True, server_name="127.0.0.1")
    try:
        yield demo
    finally:
        demo.close()
        engine.shutdown()
