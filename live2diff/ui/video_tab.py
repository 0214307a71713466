"""The Video tab: upload or record a clip, trim it, choose a style, compare the result with the original."""

import base64
import json
import logging
import math
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from ..config import WARMUP_FRAMES
from ..errors import ClipError, ClipStopped
from ..serving.clip_queue import LIMITS, ClipQueue, Result, Waiting
from ..serving.limits import visitor_address
from ..serving.sessions import EngineProtocol
from ..streaming.images import encode_jpeg, limit_side
from ..streaming.settings import StreamSettings
from ..styles import thumbnail_of
from ..video.reader import Cut, Limits, probe
from ..video.translate import Progress
from .examples import EXAMPLES, RESULTS_BY, example_wall, presets, result_of
from .theme import STATIC, file_url

UPLOAD_MEGABYTES = 200
ANY_LENGTH = Limits(max_frames=10**9, max_seconds=1e9)
PREVIEW_SECONDS = 0.3  # between two previews
PREVIEW_SIDE = 480  # pixels
PREVIEW_QUALITY = 75
CLIPS_WAITING = 8  # clips that hold a thread each; further ones wait in Gradio's queue
NO_CLIP = "Choose a clip first: upload one, record one, or pick an example."
UNEXPECTED = "The translation failed; the server's log says why. Try again, or try another clip."
CLIP_ERRORS = (ValueError, OSError, RuntimeError, gr.Error)  # gr.Error: no GPU is available

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # of event listeners

log = logging.getLogger(__name__)
StageValue = dict[str, Any]


def stage_value(state: str, text: str = "", **more: Any) -> StageValue:
    """Return a value of the stage, as static/stage.js reads it; `run` names the translation it is of."""
    empty = {"run": None, "progress": None, "preview": None, "path": None, "offset": 0.0}
    return {"state": state, "text": text, **empty, **more}


def clip_key(request: gr.Request) -> str:
    """Return the key of a viewer's clips in the engine."""
    return f"{request.session_hash or secrets.token_urlsafe(16)}/clip"


def address_of(request: gr.Request) -> str | None:
    """Return the address for which the limits count a viewer's clips."""
    return visitor_address(request.headers, request.client and request.client.host)


def time_left(progress: Progress) -> str:
    """Format progress as `45 of 110 frames, about 12 s left`; without a time during the warmup."""
    text = f"{progress.done} of {progress.total} frames"
    seconds = progress.seconds_left
    if seconds is None or progress.done <= WARMUP_FRAMES:
        return text
    if seconds >= 90:
        return f"{text}, about {seconds / 60:.0f} min left"
    return f"{text}, about {math.ceil(seconds)} s left"


def parse_inputs(
    style: str,
    prompt: str | None,
    seed: float | None,
    start: float | None,
    end: float | None,
    steps: float | None,
    strength: float | None,
) -> tuple[StreamSettings, Cut]:
    """Convert inputs to stream settings and the part to translate; 0 or None stands for the default."""
    settings = StreamSettings(
        style=style,
        prompt=prompt or "",
        seed=int(seed or 0),
        steps=int(steps) if steps else None,
        strength=float(strength) if strength else None,
    )
    return settings, Cut(float(start or 0), float(end) if end else None)


def explain(error: Exception) -> str:
    """Describe one of CLIP_ERRORS in a sentence; log a failure of the model."""
    if isinstance(error, gr.Error):
        return error.message
    if isinstance(error, (ClipStopped, ValueError, OSError)):
        return str(error)
    log.error("a clip failed", exc_info=error)
    return f"The model failed: {(str(error).splitlines() or ['no reason given'])[0]}"


def kept_frames(result: Result) -> str:
    """Describe the partial result of a clip that ended early; "" if there is none."""
    return f" The {result.frames} frames made by then are kept, with their sound." if result.frames else ""


def stage_values(
    jobs: ClipQueue, clip: str, settings: StreamSettings, cut: Cut, request: gr.Request
) -> Iterator[StageValue]:
    """Translate a clip and yield the values of the stage.

    The last value has all frames made, however the clip ends; only after it is an unexpected error raised.
    """
    result, notes, shown = jobs.new_result(), [], -PREVIEW_SECONDS
    state, text, is_complete = "error", UNEXPECTED, False
    try:
        for step in jobs.run(clip_key(request), clip, result, cut, settings, address_of(request)):
            if isinstance(step, Waiting):
                others = "1 clip is" if step.before == 1 else f"{step.before} clips are"
                yield stage_value("waiting", f"{others} before yours. It begins by itself.")
            elif isinstance(step, str):
                notes.append(f"The prompt is too long. Not read: “{step}”")
            elif time.monotonic() - shown > PREVIEW_SECONDS:
                shown = time.monotonic()
                preview = None
                if step.frame is not None:
                    jpeg = encode_jpeg(limit_side(step.frame, PREVIEW_SIDE), PREVIEW_QUALITY)
                    preview = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
                share = step.done / step.total
                yield stage_value("running", time_left(step), progress=share, preview=preview)
        state, text, is_complete = "done", f"{result.frames} frames.", True
    except CLIP_ERRORS as error:
        text = explain(error)
        if isinstance(error, ClipStopped):
            state = "done" if result.frames else "empty"
    except GeneratorExit:  # the viewer has left
        state = "closed"
        raise
    finally:
        if state != "closed":
            notes.insert(0, text if is_complete else text + kept_frames(result))
            made = {"path": str(result.path), "offset": cut.start} if result.frames else {}
            yield stage_value(state, " ".join(notes), **made)


def trim_fields() -> tuple[gr.Number, gr.Number]:
    """Create the fields of start and end in seconds, each with a button for the player's position."""
    position = "() => Number((document.querySelector('#clip video')?.currentTime ?? 0).toFixed(2))"
    with gr.Accordion("Trim", open=False), gr.Row():
        fields = []
        for name, label in (("start", "Start, in seconds"), ("end", "End, in seconds (empty: to the end)")):
            with gr.Column(min_width=140):
                field = gr.Number(None, label=label, minimum=0, step=0.1, elem_id=name)
                button = gr.Button(f"{name.title()} where the player is", size="sm")
                button.click(None, None, field, js=position, api_visibility="private")
                fields.append(field)
    return fields[0], fields[1]


def style_choice(engine: EngineProtocol) -> gr.Radio:
    """Create the list of styles, each with its thumbnail."""
    rules = []
    for name, style in engine.styles.items():
        if address := file_url(thumbnail_of(name, style)):
            label = f"#style label:has([value={json.dumps(name)}])"
            rules.append(f"{label} {{ --thumbnail: url({json.dumps(address)}); }}")
    gr.HTML(f"<style>{' '.join(rules)}</style>", visible="hidden")
    choices = [(style.title, name) for name, style in engine.styles.items()]
    return gr.Radio(choices, value=engine.default_style, label="Style", elem_id="style")


@dataclass(frozen=True)
class Controls:
    """The components of the tab; `stage` shows previews and the result."""

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
    def inputs(self) -> list[Component]:
        """Return the clip and the inputs of `parse_inputs`, in its order."""
        first = [self.clip, self.style, self.prompt, self.seed]
        return [*first, self.start, self.end, self.steps, self.strength]

    def buttons(self, is_running: bool = False) -> dict[Component, Any]:
        """Return the updates of Translate and Cancel."""
        return {
            self.begin: gr.update(interactive=not is_running),
            self.cancel: gr.update(interactive=is_running),
        }


def video_tab(engine: EngineProtocol, jobs: ClipQueue) -> None:
    """Create the tab, within `gr.Blocks`."""
    offered = [preset for preset in presets() if preset["style"] in engine.styles]
    wall = example_wall(engine, offered) if offered else None
    controls = lay_out(engine, jobs)
    translation = wire(controls, jobs)
    if wall is not None:
        wire_examples(wall, offered, controls, translation)


def lay_out(engine: EngineProtocol, jobs: ClipQueue) -> Controls:
    """Create the components."""
    with gr.Row():
        with gr.Column(min_width=280):
            clip = gr.Video(
                label="Your clip", show_label=False, sources=["upload", "webcam"], height=300, elem_id="clip"
            )
            start, end = trim_fields()
        with gr.Column(min_width=280):
            stage = gr.HTML(
                stage_value("empty"),
                html_template=(STATIC / "stage.html").read_text(),
                css_template=(STATIC / "stage.css").read_text(),
                js_on_load=(STATIC / "stage.js").read_text(),
                apply_default_css=False,
                elem_id="result",
            )
    style = style_choice(engine)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            label, hint = "What is in the clip", "A man at a desk"
            prompt = gr.Textbox(label=label, placeholder=hint, max_length=4000, elem_id="prompt")
            with gr.Accordion("More", open=False), gr.Row():
                seed = gr.Number(0, label="Seed", info="The same seed gives the same result.", precision=0)
                choices = [("Style default", 0), *((str(count), count) for count in range(1, 5))]
                steps = gr.Dropdown(choices, value=0, label="Steps", info="More are slower.")
                info = "1 is the most; 0 leaves it to the style."
                strength = gr.Slider(0, 1, 0, step=0.05, label="Strength", info=info)
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


def wire(controls: Controls, jobs: ClipQueue) -> Dependency:
    """Attach the event listeners; return the event of a translation."""

    def run(inputs: dict[Component, Any], request: gr.Request) -> Iterator[dict[Component, Any]]:
        clip, *values = (inputs[component] for component in controls.inputs)
        if clip is None:
            yield {controls.stage: stage_value("error", NO_CLIP)}
            return
        key = {"run": secrets.token_hex(8)}
        waiting = stage_value("waiting", "Waiting for the model.", **key)
        yield {controls.stage: waiting, **controls.buttons(is_running=True)}
        try:
            for value in stage_values(jobs, clip, *parse_inputs(*values), request):
                yield {controls.stage: value | key}
        except (ValueError, OSError) as error:  # a setting, or a disk that cannot be written to
            yield {controls.stage: stage_value("error", str(error))}

    def change_clip(clip: str | None) -> tuple[StageValue, None, float | None]:
        """Reset the trim fields; the end becomes that of the new clip."""
        jobs.tidy()
        try:
            seconds = None if clip is None else probe(clip, ANY_LENGTH).duration
        except ClipError as error:
            return stage_value("error", str(error)), None, None
        # In hundredths, rounded up: else a cut that ends with the clip would lose a frame.
        return gr.skip(), None, seconds and math.ceil(round(100 * seconds, 3)) / 100

    def stop(request: gr.Request) -> None:
        jobs.stop(clip_key(request))

    queue: dict[str, Any] = {"concurrency_limit": CLIPS_WAITING, "concurrency_id": "clips"}
    buttons = [controls.begin, controls.cancel]
    event = controls.begin.click(run, set(controls.inputs), [controls.stage, *buttons], **queue, **PRIVATE)
    for after in (event.then, event.failure):  # `then` alone does not follow an error
        after(controls.buttons, None, buttons, queue=False, **PRIVATE)
    controls.cancel.click(stop, queue=False, **PRIVATE)
    clip = controls.clip
    changes = [clip.upload, clip.clear, clip.stop_recording]
    # In the browser, at once: the server's answer might come after the next translation has begun.
    empty = f"() => ({json.dumps(stage_value('empty'))})"
    gr.on(changes, None, None, controls.stage, js=empty, **PRIVATE)
    # The previous clip's translation is cancelled: its images would reach the stage of this clip.
    gr.on(changes, controls.buttons, None, buttons, cancels=event, queue=False, **PRIVATE)
    trim = [controls.stage, controls.start, controls.end]
    # By default, Gradio drops an event that comes before the last one is answered.
    gr.on(changes, change_clip, clip, trim, trigger_mode="always_last", **PRIVATE)
    return event


def wire_examples(wall: gr.HTML, offered: list[dict], controls: Controls, translation: Dependency) -> None:
    """Fill in a clip and its settings on a click, and show its finished result."""

    def pick(event: gr.SelectData) -> dict[Component, Any]:
        preset = offered[event.index]
        made, clip = result_of(preset), str(EXAMPLES / preset["clip"])
        settings = [clip, preset["style"], preset["prompt"], preset["seed"], None, None, 0, 0]
        text = f"Made before, by the {RESULTS_BY} model. Translate makes it again."
        value = stage_value("done", text, path=str(made)) if made.exists() else stage_value("empty")
        filled = dict(zip(controls.inputs, settings, strict=True))
        return {**filled, controls.stage: value, **controls.buttons()}

    outputs = [*controls.inputs, controls.stage, controls.begin, controls.cancel]
    wall.select(pick, None, outputs, cancels=translation, api_visibility="private", queue=False)
