"""The page: a Video tab (clip in, clip out) and a Live tab (camera in, picture out).

    python app.py [--model auto] [--style pencil] [--host 127.0.0.1] [--port 7860] [--share]

Importing this loads no model. `build(engine)` makes the page for any engine; `main` loads a model and
serves the page for it.
"""

from __future__ import annotations

try:
    import spaces  # noqa: F401 - on a Space with ZeroGPU, before anything that knows of CUDA
except ImportError:  # it is there on Spaces only
    pass

import argparse
import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr

from live2diff.config import WARMUP_FRAMES
from live2diff.engine import Engine, StreamGone
from live2diff.line import WaitingLine
from live2diff.live_view import connect, live_view
from live2diff.options import add_model_options, load_model
from live2diff.video import Limits, Progress, probe, translate
from live2diff.visit_button import visit_button
from live2diff.zero import space_engine

EXAMPLES = Path(__file__).resolve().parent / "examples"
LIMITS = Limits(max_frames=1800, max_seconds=60.0)
UPLOAD_MEGABYTES = 200
CLIPS_AT_ONCE = 1  # the others wait in line, and see their place in it
KEPT_SECONDS = 3600  # how long uploads and results stay on the disk
ENGINE = space_engine()  # on ZeroGPU the weights are loaded at import; elsewhere nothing is
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
TITLE = """# Live2Diff
Video in another style as it comes in: each frame is made from the frames so far, never from later ones."""
CSS = """
.gradio-container { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container footer .divider { display: none; }
#clip video, #result video { max-height: 318px !important; } /* leaves room for the buttons under it */
#examples .fixed-height { min-height: 0 !important; max-height: none !important; }
@media (max-width: 640px) {
  .gradio-container > main { padding: 12px !important; }
  #clip, #result { height: 280px !important; }
  #examples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
}
"""
LAUNCH = {
    # The system's own fonts: the page asks nobody but this server for anything.
    "theme": gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=("ui-monospace", "monospace")),
    "css": CSS,
    "allowed_paths": [str(EXAMPLES)],  # the page may be started from any folder
    "max_file_size": f"{UPLOAD_MEGABYTES}mb",
    "footer_links": ["api"],
    "ssr_mode": False,
}


def presets() -> list[dict]:
    """The clips in examples/ with a style, a prompt and a seed for each."""
    path = EXAMPLES / "presets.json"
    return json.loads(path.read_text()) if path.exists() else []


def clip_key(request: gr.Request) -> str:
    """What the engine calls this visitor's clip; their live stream is called by the session alone."""
    return f"{request.session_hash or secrets.token_urlsafe(16)}/clip"


def time_left(progress: Progress) -> str:
    """Such as `Translating, about 12 s left`, once there is something to judge by."""
    seconds = progress.seconds_left
    if seconds is None or progress.done <= WARMUP_FRAMES:  # those are only gathered at first
        return "Translating"
    if seconds >= 90:
        return f"Translating, about {seconds / 60:.0f} min left"
    return f"Translating, about {seconds:.0f} s left"


def translated_clip(engine: Engine, key: str, clip: str, target: Path, settings: dict) -> Iterator[Progress]:
    """The clip at `clip` into `target`. Everything is freed when this generator ends, however it ends."""
    engine.fetch(settings["style"]).result()
    count = probe(clip, LIMITS).frame_count
    with engine.clip(key, frames=count, **settings) as stream:
        if stream.ignored_words:
            gr.Warning(f"The prompt is too long. Not read: “{stream.ignored_words}”")
        with closing(translate(stream, clip, target, limits=LIMITS)) as steps:
            yield from steps


def video_tab(engine: Engine) -> None:
    """Upload or pick a clip, choose a style, watch the time left, see the result beside the original."""
    styles = [(style.title, name) for name, style in engine.styles.items()]
    offered = [preset for preset in presets() if preset["style"] in engine.styles]
    with gr.Row():
        clip = gr.Video(label="Your clip", sources=["upload", "webcam"], height=360, elem_id="clip")
        result = gr.Video(
            label="Translated", interactive=False, height=360, buttons=["download"], elem_id="result"
        )
    with gr.Row():
        with gr.Column(scale=2):
            style = gr.Radio(styles, value=engine.default_style, label="Style", elem_id="style")
            prompt = gr.Textbox(
                label="Prompt", placeholder="What is in it: a man at a desk", elem_id="prompt"
            )
        with gr.Column(scale=1):
            seed = gr.Number(0, label="Seed", info="The same seed gives the same result.", precision=0)
            with gr.Row():
                start = gr.Button("Translate", variant="primary", min_width=120, elem_id="translate")
                cancel = gr.Button("Cancel", min_width=120, elem_id="cancel")
    gr.Markdown(
        f"At most {LIMITS.max_seconds:.0f} seconds, {LIMITS.max_frames} frames and {UPLOAD_MEGABYTES} MB."
    )

    def run(
        clip: str | None,
        style: str,
        prompt: str,
        seed: int | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio passes it
    ) -> str:
        """Translate a clip into a style: an mp4 with the frames, the frame rate and the sound of the clip."""
        if clip is None:
            raise gr.Error("Choose a clip first: upload one, or pick an example.", print_exception=False)
        settings = {"style": style, "prompt": prompt or "", "seed": int(seed or 0)}
        # Written where Gradio keeps what it serves, so that it makes no copy and deletes the file in time.
        cache = Path(result.GRADIO_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        target = cache / f"live2diff-{secrets.token_hex(8)}.mp4"
        progress(0, desc="Waiting for the model")
        try:
            for step in translated_clip(engine, clip_key(request), clip, target, settings):
                progress((step.done, step.total), desc=time_left(step), unit="frames")
        except StreamGone:
            raise gr.Error("The translation was cancelled.", print_exception=False) from None
        except (ValueError, OSError) as error:  # a ClipError, or settings that cannot be had
            raise gr.Error(str(error), print_exception=False) from None
        return str(target)

    def stop(request: gr.Request) -> None:
        engine.close(clip_key(request))

    running = start.click(
        run,
        [clip, style, prompt, seed],
        result,
        api_name="translate",
        concurrency_limit=CLIPS_AT_ONCE,
        scroll_to_output=True,
    )
    cancel.click(stop, cancels=[running], queue=False, api_visibility="private")
    if offered:
        example_gallery(engine, offered, [clip, style, prompt, seed])


def example_gallery(engine: Engine, offered: list[dict], inputs: list[gr.components.Component]) -> None:
    """Thumbnails of the clips that come with the project; a click fills in the clip and what suits it."""
    titles = {name: style.title for name, style in engine.styles.items()}
    pictures = [(EXAMPLES / f"{Path(p['clip']).stem}.jpg", titles[p["style"]]) for p in offered]
    gr.Markdown("Or pick an example:")
    gallery = gr.Gallery(
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

    def pick(event: gr.SelectData) -> tuple[str, str, str, int]:
        preset = offered[event.index]
        return str(EXAMPLES / preset["clip"]), preset["style"], preset["prompt"], preset["seed"]

    gallery.select(pick, None, inputs, api_visibility="private", queue=False)


def build(engine: Engine) -> gr.Blocks:
    """The whole page on `engine`, ready for `.launch(**LAUNCH)`."""
    gr.set_static_paths([EXAMPLES])  # served as they are, never copied, never deleted

    def leave(request: gr.Request) -> None:
        engine.close(request.session_hash)
        engine.close(clip_key(request))

    with gr.Blocks(title="Live2Diff", analytics_enabled=False, delete_cache=(300, KEPT_SECONDS)) as demo:
        gr.Markdown(TITLE)
        with gr.Tab("Video"):
            video_tab(engine)
        with gr.Tab("Live"):
            live_view(engine)
        if engine.needs_visit:
            visit_button(engine)
        gr.Markdown(engine.about, elem_id="about")
        demo.unload(leave)
    return demo.queue(max_size=32, default_concurrency_limit=4)


def serve(engine: Engine, **options: Any) -> gr.Blocks:
    """The page on `engine`, served; `options` are those of `launch`. Ends with `.close()`."""
    demo = build(engine)
    demo.launch(prevent_thread_lock=True, **LAUNCH, **options)
    connect(demo, engine, WaitingLine(engine))
    return demo


def main(arguments: list[str] | None = None) -> None:
    """Load a model and serve the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.add_argument("--streams", type=int, default=4, help="live visitors at once (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        engine = ENGINE or Engine(load_model(options), capacity=options.streams)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    where = {"server_name": options.host, "server_port": options.port, "share": options.share}
    serve(engine, **where).block_thread()


if __name__ == "__main__":
    main()
