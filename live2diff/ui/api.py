"""The named endpoints for programs; with `--mcp` they are MCP tools as well."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import api

from ..serving.clip_queue import ClipQueue, Waiting
from ..serving.sessions import EngineProtocol
from ..video.translate import Progress
from .theme import file_url
from .video_tab import CLIP_ERRORS, address_of, clip_key, explain, kept_frames, parse_inputs, time_left


def without_folder(name: str) -> str:
    """Strip this machine's folders from the name of a weight file."""
    return Path(name).name if Path(name).is_absolute() else name


def describe(step: Waiting | Progress | str) -> tuple[tuple[int, int | None], str]:
    """Describe a step of a clip as `gr.Progress` takes it: (done, total), text."""
    if isinstance(step, Waiting):
        return (0, None), f"Waiting, {step.before} before this one"
    if isinstance(step, Progress):
        return (step.done, step.total), time_left(step)
    return (0, None), f"The prompt is too long. Not read: {step}"


def clip_inputs(engine: EngineProtocol) -> list[Component]:
    """Create the inputs of `/translate`: hidden components, so that Gradio accepts uploaded files only."""
    hidden: dict[str, Any] = {"visible": False}
    return [
        gr.Video(label="clip", sources=["upload"], **hidden),
        gr.Textbox(engine.default_style, label="style", **hidden),
        gr.Textbox("", label="prompt", **hidden),
        *(gr.Number(0, label=name, **hidden) for name in ("seed", "start", "end", "steps", "strength")),
    ]


def add_translate(engine: EngineProtocol, jobs: ClipQueue) -> None:
    """Add `/translate`."""

    def translate(
        clip: str | None,
        style: str,
        prompt: str = "",
        seed: float = 0,
        start: float = 0,
        end: float = 0,
        steps: float = 0,
        strength: float = 0,
        request: gr.Request | None = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
    ) -> str:
        """Translate a video clip into another style.

        The result is an mp4 with the frames, the frame rate and the sound of the clip. If the translation
        ends early, the error says why, how many frames are kept, and the address of the mp4 with them,
        relative to the server: gradio_api/file=PATH. It is kept for an hour.

        Args:
            clip: the video: mp4, webm, mov, mkv, gif and others.
            style: name of a style, as /styles lists them.
            prompt: describes what is in the video; may be empty.
            seed: the same seed and clip give the same result.
            start: start of the part to translate, in seconds.
            end: end of that part, in seconds; 0 is the end of the clip.
            steps: 1 to 4 denoising steps, more are slower; 0 is the style's own number.
            strength: distance from the video, up to 1; 0 is the style's own.
            request: passed by Gradio.
            progress: passed by Gradio.

        Returns:
            The path of the mp4.
        """
        if clip is None:
            raise gr.Error("There is no clip: pass the file to translate.", print_exception=False)
        assert request is not None  # Gradio passes it
        result = jobs.new_result()
        try:
            style = style or engine.default_style
            settings, cut = parse_inputs(style, prompt, seed, start, end, steps, strength)
            for step in jobs.run(clip_key(request), clip, result, cut, settings, address_of(request)):
                count, text = describe(step)
                progress(count, desc=text, unit="frames")
        except CLIP_ERRORS as error:
            kept = f"{kept_frames(result)} {file_url(result.path)}" if result.frames else ""
            raise gr.Error(explain(error) + kept, print_exception=False) from None
        return str(result.path)

    result = gr.Video(label="result", visible=False)
    gr.on([], translate, clip_inputs(engine), result, api_name="translate", concurrency_limit=4)


def add_endpoints(engine: EngineProtocol, jobs: ClipQueue) -> None:
    """Add `/translate`, `/styles` and `/health`, within `gr.Blocks`."""
    add_translate(engine, jobs)

    def styles() -> list[dict[str, str]]:
        """List the styles: name for /translate, title, and the weights needed besides the model's, if any."""
        return [
            {"name": name, "title": style.title, "needs": ", ".join(map(without_folder, style.files))}
            for name, style in engine.styles.items()
        ]

    def health() -> dict[str, Any]:
        """Report the state of the server: "ok", or the failure of its device, after which it ends.

        Also model and device; live streams, clips and capacity now; frames dropped since the start; over the
        last seconds, frames per second and a frame's seconds in the server (median and 95th percentile).
        """
        about = {"state": engine.failure or "ok", "model": engine.about, "device": engine.device}
        return about | engine.stats()

    api(styles, api_name="styles", queue=False)
    api(health, api_name="health", queue=False)
