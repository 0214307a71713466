"""The Video tab: upload or record a clip, trim it, choose a style, watch it come, see both in step."""

from __future__ import annotations

import base64
import json
import logging
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from ..config import WARMUP_FRAMES
from ..errors import ClipError, ClipStopped
from ..serving.clip_queue import LIMITS, ClipQueue, Result, Waiting
from ..serving.engine import Engine
from ..serving.limits import visitor_address
from ..streaming.settings import StreamSettings
from ..styles import thumbnail_of
from ..video.reader import Cut, Limits, probe
from ..video.translate import Progress

PAGE = Path(__file__).parent / "static"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RESULTS_BY = "nano"  # the model that made examples/results
UPLOAD_MEGABYTES = 200
ANY_LENGTH = Limits(max_frames=10**9, max_seconds=1e9)
PREVIEW_SECONDS = 0.3  # between two preview pictures
PREVIEW_SIDE = 480
PREVIEW_QUALITY = 75
CLIPS_WAITING = 8  # that hold a thread each; more wait in Gradio's queue
NO_CLIP = "Choose a clip first: upload one, record one, or pick an example."

log = logging.getLogger(__name__)
Said = dict[str, Any]


def said(state: str, text: str = "", **more: Any) -> Said:
    """What the stage is to show; page/stage.js reads it."""
    return {"state": state, "text": text, "share": None, "picture": None, "path": None, "offset": 0.0} | more


def presets() -> list[dict]:
    """The clips in examples/ with a style, a prompt and a seed for each."""
    path = EXAMPLES / "presets.json"
    return json.loads(path.read_text()) if path.exists() else []


def result_of(preset: dict) -> Path:
    """The finished result of a preset; examples/render.py makes them."""
    return EXAMPLES / "results" / f"{Path(preset['clip']).stem}-{preset['style']}.mp4"


def clip_key(request: gr.Request) -> str:
    """What the engine calls this visitor's clip; their live stream is called by the session alone."""
    return f"{request.session_hash or secrets.token_urlsafe(16)}/clip"


def address_of(request: gr.Request) -> str | None:
    """Whom the limits count this visitor's clips for."""
    return visitor_address(request.headers, request.client and request.client.host)


def time_left(progress: Progress) -> str:
    """Such as `45 of 110 frames, about 12 s left`, once there is something to judge by."""
    told = f"{progress.done} of {progress.total} frames"
    seconds = progress.seconds_left
    if seconds is None or progress.done <= WARMUP_FRAMES:  # those are only gathered at first
        return told
    if seconds >= 90:
        return f"{told}, about {seconds / 60:.0f} min left"
    return f"{told}, about {math.ceil(seconds)} s left"


def preview(frame: np.ndarray) -> str:
    """A small JPEG of the frame as a data URL."""
    scale = min(1.0, PREVIEW_SIDE / max(frame.shape[:2]))
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def settings_of(
    style: str, prompt: str | None, seed: float | None, steps: float | None, strength: float | None
) -> StreamSettings:
    """The settings of a stream; a 0 or nothing for steps and strength leaves them to the style."""
    return StreamSettings(
        style=style,
        prompt=prompt or "",
        seed=int(seed or 0),
        steps=int(steps) if steps else None,
        strength=float(strength) if strength else None,
    )


def cut_of(start: float | None, end: float | None) -> Cut:
    """The part from `start` to `end`, where nothing or 0 for the end is the end of the clip."""
    return Cut(float(start or 0), float(end) if end else None)


def translated(
    jobs: ClipQueue, key: str, clip: str, cut: Cut, settings: StreamSettings, address: str | None
) -> Iterator[Said]:
    """Run a clip, telling the stage how it goes; the last thing said holds whatever was made."""
    result, notes, shown = jobs.new_result(), [], -PREVIEW_SECONDS
    try:
        for step in jobs.run(key, clip, result, cut, settings, address):
            if isinstance(step, Waiting):
                others = "1 clip is" if step.before == 1 else f"{step.before} clips are"
                yield said("waiting", f"{others} before yours. It begins by itself.")
            elif isinstance(step, str):
                notes.append(f"The prompt is too long. Not read: “{step}”")
            elif time.monotonic() - shown > PREVIEW_SECONDS:
                shown = time.monotonic()
                picture = preview(step.frame) if step.frame is not None else None
                yield said("running", time_left(step), share=step.done / step.total, picture=picture)
        yield said("done", " ".join([f"{result.frames} frames.", *notes]), **shown_of(result, cut))
        return
    except ClipStopped as stopped:
        end, why = "done", str(stopped)
    except (ValueError, OSError) as error:  # a ClipError, or settings that cannot be had
        end, why = "error", str(error)
    except RuntimeError as error:  # what torch raises, out of memory included
        log.exception("a clip failed")
        end, why = "error", f"The model failed: {str(error).splitlines()[0]}"
    if result.frames:
        why += f" The {result.frames} frames made by then are kept, with their sound."
        yield said(end, " ".join([why, *notes]), **shown_of(result, cut))
    else:
        yield said("empty" if end == "done" else end, why)


def shown_of(result: Result, cut: Cut) -> Said:
    """A result, as the stage wants to know it."""
    return {"path": str(result.path), "offset": cut.start}


def trim_fields() -> tuple[gr.Number, gr.Number]:
    """From when until when, in seconds; also set at what the player shows."""
    here = "() => Number((document.querySelector('#clip video')?.currentTime ?? 0).toFixed(2))"
    with gr.Accordion("Trim", open=False, elem_id="trim"), gr.Row():
        fields = []
        for name, label in (("start", "Start, in seconds"), ("end", "End, in seconds (empty: to the end)")):
            with gr.Column(min_width=140):
                field = gr.Number(None, label=label, minimum=0, step=0.1, elem_id=name)
                at = gr.Button(f"{name.title()} where the player is", size="sm")
                at.click(None, None, field, js=here, api_visibility="private")
                fields.append(field)
    return fields[0], fields[1]


def style_choice(engine: Engine) -> gr.Radio:
    """The styles to choose from, each with its picture."""
    rules = []
    for name, style in engine.styles.items():
        path = thumbnail_of(name, style)
        if path is not None:
            picture = f"url({json.dumps('gradio_api/file=' + str(path))})"
            rules.append(f"#style label:has([value={json.dumps(name)}]) {{ --picture: {picture}; }}")
    gr.HTML(f"<style>{' '.join(rules)}</style>", visible="hidden")
    choices = [(style.title, name) for name, style in engine.styles.items()]
    return gr.Radio(choices, value=engine.default_style, label="Style", elem_id="style")


@dataclass(frozen=True)
class Controls:
    """What a visitor handles in the tab; `stage` shows the preview and the result."""

    clip: gr.Video
    start: gr.Number
    end: gr.Number
    stage: gr.HTML
    style: gr.Radio
    prompt: gr.Textbox
    seed: gr.Number
    steps: gr.Dropdown
    strength: gr.Slider
    begin: gr.Button
    cancel: gr.Button

    @property
    def settings(self) -> list[gr.components.Component]:
        """All that decides the result, in the order in which `run` and the examples know it."""
        told = [self.clip, self.style, self.prompt, self.seed]
        return [*told, self.start, self.end, self.steps, self.strength]


def video_tab(engine: Engine, jobs: ClipQueue) -> None:
    """The whole tab."""
    offered = [preset for preset in presets() if preset["style"] in engine.styles]
    gallery = example_gallery(engine, offered) if offered else None
    controls = lay_out(engine, jobs)
    wire(controls, jobs)
    if gallery is not None:
        wire_examples(gallery, offered, controls)


def lay_out(engine: Engine, jobs: ClipQueue) -> Controls:
    """The controls, where they belong."""
    with gr.Row(elem_id="pair"):
        with gr.Column(min_width=280):
            clip = gr.Video(
                label="Your clip", show_label=False, sources=["upload", "webcam"], height=300, elem_id="clip"
            )
            start, end = trim_fields()
        with gr.Column(min_width=280):
            stage = gr.HTML(
                said("empty"),
                html_template=(PAGE / "stage.html").read_text(),
                css_template=(PAGE / "stage.css").read_text(),
                js_on_load=(PAGE / "stage.js").read_text(),
                apply_default_css=False,
                elem_id="result",
            )
    style = style_choice(engine)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            label, hint = "What is in the clip", "A man at a desk"
            prompt = gr.Textbox(label=label, placeholder=hint, max_length=4000, elem_id="prompt")
            seed, steps, strength = more_fields()
        with gr.Column(scale=1, min_width=280):
            with gr.Row(elem_id="go"):
                begin = gr.Button("Translate", variant="primary", min_width=120, elem_id="translate")
                cancel = gr.Button("Cancel", min_width=120, interactive=False, elem_id="cancel")
            gr.Markdown(
                f"At most {LIMITS.max_seconds:.0f} seconds ({LIMITS.max_frames} frames), from a file of up "
                f"to {UPLOAD_MEGABYTES} MB. A longer clip can be trimmed. "
                f"At most {jobs.per_address} clips at once from one address.",
                elem_classes="hint",
            )
    return Controls(clip, start, end, stage, style, prompt, seed, steps, strength, begin, cancel)


def more_fields() -> tuple[gr.Number, gr.Dropdown, gr.Slider]:
    """Seed, steps and strength."""
    with gr.Accordion("More", open=False, elem_id="more"), gr.Row():
        seed = gr.Number(0, label="Seed", info="The same seed gives the same result.", precision=0)
        choices = [("Style default", 0), *((str(count), count) for count in range(1, 5))]
        steps = gr.Dropdown(choices, value=0, label="Steps", info="More are slower.")
        info = "1 is the most; 0 leaves it to the style."
        strength = gr.Slider(0, 1, 0, step=0.05, label="Strength", info=info)
    return seed, steps, strength


def wire(controls: Controls, jobs: ClipQueue) -> None:
    """What happens when."""

    def run(clip, style, prompt, seed, start, end, steps, strength, request: gr.Request) -> Iterator[tuple]:
        if clip is None:
            yield said("error", NO_CLIP), gr.skip(), gr.skip()
            return
        off, on = gr.update(interactive=False), gr.update(interactive=True)
        yield said("waiting", "Waiting for the model."), off, on
        told: Said = said("empty")
        try:
            settings = settings_of(style, prompt, seed, steps, strength)
            cut, address = cut_of(start, end), address_of(request)
            for told in translated(jobs, clip_key(request), clip, cut, settings, address):
                yield told, gr.skip(), gr.skip()
        except (ClipError, OSError) as error:  # a cut that is none, a disk that cannot be written to
            told = said("error", str(error))
        yield told, on, off

    def chosen(clip: str | None) -> tuple[Said, None, float | None]:
        """A new clip: nothing of the one before is true of it."""
        jobs.tidy()
        try:
            seconds = None if clip is None else rounded_up(probe(clip, ANY_LENGTH).duration)
        except ClipError as error:
            return said("error", str(error)), None, None
        return gr.skip(), None, seconds

    def stop(request: gr.Request) -> None:
        jobs.stop(clip_key(request))

    controls.begin.click(
        run,
        controls.settings,
        [controls.stage, controls.begin, controls.cancel],
        api_visibility="private",
        concurrency_limit=CLIPS_WAITING,
        concurrency_id="clips",
        show_progress="hidden",
    )
    controls.cancel.click(stop, queue=False, api_visibility="private")
    clip = controls.clip
    new = [clip.upload, clip.clear, clip.stop_recording]
    # In the browser, at once: an answer of the server might come when the next translation has begun.
    empty = f"() => ({json.dumps(said('empty'))})"
    gr.on(new, None, None, controls.stage, js=empty, api_visibility="private")
    gr.on(
        new,
        chosen,
        clip,
        [controls.stage, controls.start, controls.end],
        api_visibility="private",
        show_progress="hidden",
    )


def rounded_up(seconds: float) -> float:
    """In hundredths: a cut that ends where the clip does is to lose no frame."""
    return math.ceil(round(100 * seconds, 3)) / 100


def example_gallery(engine: Engine, offered: list[dict]) -> gr.Gallery:
    """Each example as half original, half translated."""
    gr.Markdown("Click an example to see its result, or bring a clip of your own.", elem_classes="hint")
    pictures = []
    for preset in offered:
        poster = result_of(preset).with_suffix(".jpg")
        thumbnail = EXAMPLES / f"{Path(preset['clip']).stem}.jpg"
        pictures.append((poster if poster.exists() else thumbnail, engine.styles[preset["style"]].title))
    return gr.Gallery(
        pictures,
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


def wire_examples(gallery: gr.Gallery, offered: list[dict], controls: Controls) -> None:
    """A click fills in the clip and what suits it, and shows the result that was made before."""

    def pick(event: gr.SelectData) -> list[Any]:
        preset = offered[event.index]
        made, clip = result_of(preset), str(EXAMPLES / preset["clip"])
        filled = [clip, preset["style"], preset["prompt"], preset["seed"], None, None, 0, 0]
        text = f"Made before, by the {RESULTS_BY} model. Translate makes it afresh."
        shown = said("done", text, path=str(made)) if made.exists() else said("empty")
        return [*filled, shown]

    gallery.select(pick, None, [*controls.settings, controls.stage], api_visibility="private", queue=False)
