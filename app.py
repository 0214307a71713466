"""The page: a Live tab (camera in, picture out) and a Video tab (clip in, clip out).

    python app.py [--model auto] [--style pencil] [--host 127.0.0.1] [--port 7860] [--share] [--mcp]

Importing this loads no model. `build(engine)` makes the page for any engine; `main` loads a model and
serves the page for it.
"""

from __future__ import annotations

try:
    import spaces  # noqa: F401 - on a Space with ZeroGPU, before anything that knows of CUDA
except ImportError:  # it is there on Spaces only
    pass

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from live2diff.cli import add_model_options, load_model, operator_options
from live2diff.serving import event_log
from live2diff.serving.admission import WaitingLine
from live2diff.serving.clip_queue import ClipQueue
from live2diff.serving.engine import Engine
from live2diff.serving.limits import VisitorLimits
from live2diff.serving.shutdown import GRACE_SECONDS, serve_until_stopped
from live2diff.serving.temp_files import KEPT_SECONDS, MOST_BYTES, keep_tidy
from live2diff.styles import THUMBNAILS, thumbnail_of
from live2diff.ui.api import add_endpoints
from live2diff.ui.live_tab import connect, live_view
from live2diff.ui.theme import STYLESHEET, THEME
from live2diff.ui.video_tab import EXAMPLES, UPLOAD_MEGABYTES, clip_key, video_tab
from live2diff.zerogpu.button import gpu_session_button
from live2diff.zerogpu.engine import ZeroGpuEngine, on_zero_gpu


def space_engine() -> ZeroGpuEngine | None:
    """Load the model of LIVE2DIFF_OPTIONS on ZeroGPU; return None elsewhere."""
    if not on_zero_gpu():
        return None
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    options, _ = parser.parse_known_args(operator_options())
    # Eager: this process has no GPU, and each GPU session would capture its graphs again.
    return ZeroGpuEngine(load_model(options, device="cuda", eager=True))


ENGINE = space_engine()  # on ZeroGPU the weights are loaded at import; elsewhere nothing is
HEADER = """<h1>Live<span>2</span>Diff</h1>
<p>See yourself, live, in another style.</p>"""
LAUNCH = {
    # The system's own fonts, and no statistics: the page asks nobody but this server for anything.
    "theme": THEME,
    "css_paths": [STYLESHEET],
    "allowed_paths": [str(EXAMPLES)],  # the page may be started from any folder
    "max_file_size": f"{UPLOAD_MEGABYTES}mb",
    "footer_links": ["api"],
    "run_history": False,  # would keep a copy of everything in the visitor's browser
    "enable_monitoring": False,
    "ssr_mode": False,
}


DEFAULT_LIMITS = VisitorLimits()


def clip_jobs(engine: Engine, limits: VisitorLimits = DEFAULT_LIMITS) -> ClipQueue:
    """The clips of a page. Its temporary files are bounded where they have a folder of their own."""
    folder, is_own = Path(get_upload_folder()), bool(os.environ.get("GRADIO_TEMP_DIR"))
    most = MOST_BYTES if is_own else None
    return ClipQueue(engine, folder / "live2diff-results", per_address=limits.clips, most_bytes=most)


def build(engine: Engine, limits: VisitorLimits = DEFAULT_LIMITS, jobs: ClipQueue | None = None) -> gr.Blocks:
    """The whole page on `engine`, ready for `.launch(**LAUNCH)`."""
    jobs = jobs or clip_jobs(engine, limits)
    pictures = [thumbnail_of(name, style) for name, style in engine.styles.items()]
    # Served as they are, never copied, never deleted.
    gr.set_static_paths([EXAMPLES, THUMBNAILS, *(path for path in pictures if path)])

    with gr.Blocks(title="Live2Diff", analytics_enabled=False, delete_cache=(300, KEPT_SECONDS)) as demo:

        def leave(request: gr.Request) -> None:
            jobs.stop(clip_key(request))

        gr.HTML(HEADER, elem_id="header", apply_default_css=False)
        with gr.Tab("Live"):
            live_view(engine, limits)
        with gr.Tab("Video"):
            video_tab(engine, jobs)
        if engine.needs_gpu_session:
            gpu_session_button(engine)
        gr.Markdown(engine.about, elem_id="about")
        add_endpoints(engine, jobs)
        demo.unload(leave)
    return demo.queue(max_size=32, default_concurrency_limit=4)


def serve(engine: Engine, limits: VisitorLimits = DEFAULT_LIMITS, **options: Any) -> gr.Blocks:
    """The page on `engine`, served; `options` are those of `launch`. Ends with `.close()`."""
    jobs = clip_jobs(engine, limits)
    demo = build(engine, limits, jobs)
    demo.launch(prevent_thread_lock=True, **LAUNCH, **options)
    keep_tidy(jobs.tidy, lambda: demo.is_running)
    connect(demo, engine, WaitingLine(engine, limits.turn_seconds), limits)
    return demo


def streams_of(text: str) -> int | None:
    """A number, or `auto` for as many as there is room for."""
    return None if text == "auto" else int(text)


def start_engine(options: argparse.Namespace) -> Engine:
    """An engine for the model that the options ask for; says how many visitors it has room for."""
    pipe = load_model(options)
    from torch import int8  # it is there now; before, it would take seconds

    cache_dtype = int8 if options.small_memory else None
    engine = Engine(pipe, options.streams, cache_dtype=cache_dtype)
    print(engine.room)
    return engine


def add_limit_options(parser: argparse.ArgumentParser) -> None:
    """Declare what the operator can set of what a visitor may have."""
    told = (
        ("visits", int, "--visits-per-address", "live visits from one address at once"),
        ("clips", int, "--clips-per-address", "clips from one address at once, waiting ones included"),
        ("turn_seconds", float, "--turn-seconds", "how long a live visit lasts once others wait"),
    )
    for name, kind, flag, words in told:
        default = getattr(DEFAULT_LIMITS, name)
        parser.add_argument(flag, type=kind, default=default, help=f"{words} (default: %(default)s)")


def main(arguments: list[str] | None = None) -> None:
    """Load a model and serve the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_options(parser)
    parser.add_argument("--host", help="address to listen on; 0.0.0.0 for all (default: this machine only)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.add_argument(
        "--streams",
        type=streams_of,
        metavar="N|auto",
        help="live visitors at once (default: as many as a GPU has memory for, up to 8; on a CPU 4)",
    )
    parser.add_argument(
        "--small-memory", action="store_true", help="on a GPU, half as much for each visitor: more fit"
    )
    parser.add_argument("--mcp", action="store_true", help="serve the endpoints as MCP tools as well")
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=GRACE_SECONDS,
        help="what clips have to finish when the server is stopped (default: %(default)s)",
    )
    add_limit_options(parser)
    if arguments is None:
        arguments = [*operator_options(), *sys.argv[1:]]
    options = parser.parse_args(arguments)
    user = os.getuid() if hasattr(os, "getuid") else "files"  # a folder of another user cannot be written to
    os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(tempfile.gettempdir()) / f"live2diff-{user}"))
    if options.mcp and importlib.util.find_spec("mcp") is None:
        parser.error(f"--mcp needs one package more: pip install 'gradio[mcp]=={gr.__version__}'")
    try:
        limits = VisitorLimits(options.visits_per_address, options.clips_per_address, options.turn_seconds)
        engine = ENGINE or start_engine(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    where = {"server_name": options.host, "server_port": options.port, "share": options.share}
    event_log.configure()
    page = serve(engine, limits, mcp_server=options.mcp or None, **where)
    serve_until_stopped(page, engine, options.grace_seconds)


if __name__ == "__main__":
    main()
