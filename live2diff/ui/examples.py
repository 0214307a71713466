"""The examples of the Video tab: clips with settings and finished results."""

import json
from pathlib import Path

import gradio as gr

from ..serving.sessions import EngineProtocol
from .theme import STATIC, file_url

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"  # only in the repository
RESULTS_BY = "nano"  # the model that examples/results were rendered with


def presets() -> list[dict]:
    """Read the clips in examples/, each with a style, a prompt and a seed; none outside the repository."""
    path = EXAMPLES / "presets.json"
    return json.loads(path.read_text()) if path.exists() else []


def result_of(preset: dict) -> Path:
    """Return the path of a preset's result, which examples/render.py renders."""
    return EXAMPLES / "results" / f"{Path(preset['clip']).stem}-{preset['style']}.mp4"


def example_wall(engine: EngineProtocol, offered: list[dict]) -> gr.HTML:
    """Create the wall of examples, each with original and result; its `select` event has the index."""
    examples = []
    for preset in offered:
        clip, result = EXAMPLES / preset["clip"], result_of(preset)
        is_made = result.exists()
        poster = result.with_suffix(".jpg") if is_made else clip.with_suffix(".jpg")
        addresses = {"poster": poster, "original": clip, "result": result if is_made else None}
        texts = {
            "title": engine.styles[preset["style"]].title,
            "style": preset["style"],
            "prompt": preset["prompt"],
        }
        examples.append(texts | {name: file_url(path) for name, path in addresses.items()})
    return gr.HTML(
        html_template=(STATIC / "wall.html").read_text(),
        css_template=(STATIC / "wall.css").read_text(),
        js_on_load=(STATIC / "wall.js").read_text(),
        examples=examples,
        apply_default_css=False,
        elem_id="examples",
    )
