"""Add the hidden button of a GPU session: ZeroGPU lends a GPU to a viewer within a click.

The page's script sets `window.live2diffVisit` to the key of the viewer's stream and clicks `#visit`.
"""

from collections.abc import Iterator

import gradio as gr

from ..errors import StreamClosed
from .engine import ZeroGpuEngine

KEY_OF_THE_PAGE = "() => [window.live2diffVisit ?? '']"


def gpu_session_button(engine: ZeroGpuEngine) -> None:
    """Add the button `#visit`, and `#visit-left` for the seconds left; call this within `gr.Blocks`."""

    def visit(key: str) -> Iterator[float | None]:
        try:
            yield from engine.gpu_session(key)
        except StreamClosed as error:
            raise gr.Error(str(error), print_exception=False) from None

    key = gr.Textbox(visible="hidden", label="Stream")
    left = gr.Number(visible="hidden", label="Seconds left", elem_id="visit-left")
    gr.Button("GPU session", visible="hidden", elem_id="visit").click(
        visit,
        key,
        left,
        js=KEY_OF_THE_PAGE,
        api_visibility="private",
        concurrency_limit=engine.capacity,
        show_progress="hidden",
    )
