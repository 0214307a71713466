"""The examples of the Video tab: clips with settings and finished results."""

import json
from pathlib import Path

import gradio as gr

from ..serving.sessions import EngineProtocol

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"  # only in the repository
RESULTS_BY = "nano"  # the model that made examples/results


def presets() -> list[dict]:
    """Return the clips in examples/ with a style, a prompt and a seed each."""
    path = EXAMPLES / "presets.json"
    return json.loads(path.read_text()) if path.exists() else []


def result_of(preset: dict) -> Path:
    """Return the path of a preset's finished result, which examples/render.py makes."""
    return EXAMPLES / "results" / f"{Path(preset['clip']).stem}-{preset['style']}.mp4"


def example_gallery(engine: EngineProtocol, offered: list[dict]) -> gr.Gallery:
    """Create the gallery of examples, each half original and half translated."""
    gr.Markdown("Click an example to see its result, or use a clip of your own.", elem_classes="hint")
    images = []
    for preset in offered:
        poster = result_of(preset).with_suffix(".jpg")
        original = EXAMPLES / f"{Path(preset['clip']).stem}.jpg"
        images.append((poster if poster.exists() else original, engine.styles[preset["style"]].title))
    return gr.Gallery(
        images,
        label="Examples",
        show_label=False,
        columns=6,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )
