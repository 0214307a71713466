"""For programs: the named endpoints, which are MCP tools as well when the app is started with `--mcp`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ClipStopped
from ..serving.clip_queue import ClipQueue, Waiting
from ..serving.engine import Engine
from ..styles import Style
from ..video.translate import Progress
from .video_tab import address_of, clip_key, cut_of, settings_of, time_left


def refused(message: str) -> gr.Error:
    """An error that the caller reads, and that is none of the server's: nothing of it in the log."""
    return gr.Error(message, print_exception=False)


def needs(style: Style) -> str:
    """The weights that a style brings with it, "" for those of the model."""
    weights = [style.base, *(name for name, _ in style.loras)]
    return ", ".join(Path(name).name if Path(name).is_absolute() else name for name in weights if name)


def described(step: Waiting | Progress | str) -> tuple[tuple[int, int | None], str]:
    """A step of a job as `gr.Progress` takes it."""
    if isinstance(step, Waiting):
        return (0, None), f"Waiting, {step.before} before this one"
    if isinstance(step, Progress):
        return (step.done, step.total), time_left(step)
    return (0, None), f"The prompt is too long. Not read: {step}"


def clip_inputs(engine: Engine) -> list[gr.components.Component]:
    """What `/translate` takes. Components, although nobody sees them: through these Gradio makes sure that
    the clip is a file that was uploaded."""
    hidden: dict[str, Any] = {"visible": False}
    return [
        gr.Video(label="clip", sources=["upload"], **hidden),
        gr.Textbox(engine.default_style, label="style", **hidden),
        gr.Textbox("", label="prompt", **hidden),
        *(gr.Number(0, label=name, **hidden) for name in ("seed", "start", "end", "steps", "strength")),
    ]


def add_endpoints(engine: Engine, jobs: ClipQueue) -> None:
    """`/translate`, `/styles` and `/health`; to be called within `gr.Blocks`."""

    def translate(
        clip: str | None,
        style: str,
        prompt: str = "",
        seed: float = 0,
        start: float = 0,
        end: float = 0,
        steps: float = 0,
        strength: float = 0,
        request: gr.Request = None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
    ) -> str:
        """Translate a video clip into another style. The result is an mp4 with the frames, the frame rate and
        the sound of the clip.

        Args:
            clip: the video: mp4, webm, mov, mkv, gif and others.
            style: the name of a style; /styles lists them.
            prompt: what is in the video, in words; may be empty.
            seed: the same seed and clip give the same result.
            start: where to begin, in seconds.
            end: where to end, in seconds; 0 is the end of the clip.
            steps: 1 to 4 denoising steps, more are slower; 0 leaves it to the style.
            strength: how far from the video, up to 1; 0 leaves it to the style.
        """
        if clip is None:
            raise refused("There is no clip: give the file to translate.")
        result = jobs.new_result()
        try:
            settings = settings_of(style or engine.default_style, prompt, seed, steps, strength)
            cut, address = cut_of(start, end), address_of(request)
            for step in jobs.run(clip_key(request), clip, result, cut, settings, address):
                count, words = described(step)
                progress(count, desc=words, unit="frames")
        except ClipStopped as stopped:
            raise refused(str(stopped)) from None
        except (ValueError, OSError) as error:  # a ClipError, or settings that cannot be had
            raise refused(str(error)) from None
        return str(result.path)

    def styles() -> list[dict[str, str]]:
        """The styles that clips can be translated into: the name to ask for, the title to show, and the
        weights that it needs besides the model's own, if any."""
        return [
            {"name": name, "title": style.title, "needs": needs(style)}
            for name, style in engine.styles.items()
        ]

    def health() -> dict[str, Any]:
        """How the server is: its model and device; the live streams and clips now; the capacity for streams;
        the frames dropped so far; over the last seconds the frames a second and the delay of a frame in the
        server in seconds, the median and the 95th percentile."""
        return {"model": engine.about, "device": engine.device} | engine.stats()

    result = gr.Video(label="result", visible=False)
    gr.on([], translate, clip_inputs(engine), result, api_name="translate", concurrency_limit=4)
    gr.api(styles, api_name="styles", queue=False)
    gr.api(health, api_name="health", queue=False)
