"""The page: a Live tab (camera in, images out) and a Video tab (clip in, clip out).

    python app.py [--model auto] [--style pencil] [--size auto] [--host 127.0.0.1] [--port 7860] [--share]

Importing this loads no model, except on ZeroGPU. `build(engine)` makes the page for any engine; `main` loads
a model and serves the page for it.
"""

try:
    import spaces  # noqa: F401 - on a Space with ZeroGPU it must be imported before torch
except ImportError:
    pass

import argparse
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from gradio.http_server import LOCALHOST_NAME
from starlette.routing import BaseRoute

from live2diff.cli import (
    add_model_options,
    explain_out_of_memory,
    load_model,
    model_loader,
    operator_options,
)
from live2diff.cluster.start import start_cluster
from live2diff.cluster.worker import load_engine
from live2diff.command import run_main
from live2diff.serving import event_log
from live2diff.serving.admission import WaitingLine
from live2diff.serving.clip_queue import ClipQueue
from live2diff.serving.engine import Engine
from live2diff.serving.limits import VisitorLimits, trusted_proxies
from live2diff.serving.sessions import EngineProtocol
from live2diff.serving.shutdown import GRACE_SECONDS, serve_until_stopped
from live2diff.serving.temp_files import KEPT_SECONDS, MOST_BYTES, keep_tidy
from live2diff.serving.working_size import set_work, start_fitting
from live2diff.styles import THUMBNAILS, thumbnail_of
from live2diff.ui.api import add_endpoints
from live2diff.ui.examples import EXAMPLES
from live2diff.ui.live_tab import configure_sockets, live_route, live_view
from live2diff.ui.theme import STYLESHEET, THEME
from live2diff.ui.video_tab import UPLOAD_MEGABYTES, clip_key, video_tab
from live2diff.ui.virtual_camera import VirtualCamera, open_device
from live2diff.zerogpu.button import gpu_session_button
from live2diff.zerogpu.engine import ZeroGpuEngine, on_zero_gpu

DEFAULT_LIMITS = VisitorLimits()
LAST_PORT = 65535
LOAD_ERRORS = (ImportError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
HEADER = """<h1>Live<span>2</span>Diff</h1>
<p>See yourself, live, in another style.</p>"""
LAUNCH = {
    # The system's own fonts, and no statistics: the page sends requests to this server only.
    "theme": THEME,
    "css_paths": [STYLESHEET],
    "allowed_paths": [str(EXAMPLES)],  # the page may be started from any folder
    "max_file_size": f"{UPLOAD_MEGABYTES}mb",
    "footer_links": ["api"],
    "run_history": False,  # would keep a copy of everything in the viewer's browser
    "enable_monitoring": False,
    "ssr_mode": False,
}


def number_or_auto(text: str) -> int | None:
    """Parse a number, or `auto` for what fits the machine."""
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto")
    return None if text == "auto" else int(text)


def port_number(text: str) -> int:
    """Parse a port number; not 0, as Gradio would not know the port that was assigned."""
    if not text.isdecimal() or not 1 <= int(text) <= LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to {LAST_PORT}")
    return int(text)


def clip_queue(engine: EngineProtocol, limits: VisitorLimits = DEFAULT_LIMITS) -> ClipQueue:
    """Create the clip queue of a page, and a folder for its temporary files."""
    folder = own_temporary_folder() / "live2diff-results"
    return ClipQueue(engine, folder, per_address=limits.clips, most_bytes=MOST_BYTES)


def own_temporary_folder() -> Path:
    """Make Gradio keep its files in a folder of this user's page alone, which may be swept; return it.

    It is in GRADIO_TEMP_DIR, which others may share, or in the system's temporary folder.
    """
    user = os.getuid() if hasattr(os, "getuid") else "files"  # a folder of another user is not writable
    folder, name = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()), f"live2diff-{user}"
    if folder.name != name:
        folder /= name
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


def build(
    engine: EngineProtocol, limits: VisitorLimits = DEFAULT_LIMITS, jobs: ClipQueue | None = None
) -> gr.Blocks:
    """Build the page on an engine; `serve` launches it."""
    jobs = jobs or clip_queue(engine, limits)
    thumbnails = [thumbnail_of(name, style) for name, style in engine.styles.items()]
    # Static files are served as they are, never copied or deleted.
    gr.set_static_paths([EXAMPLES, THUMBNAILS, *(path for path in thumbnails if path)])

    with gr.Blocks(title="Live2Diff", analytics_enabled=False, delete_cache=(300, KEPT_SECONDS)) as demo:

        def stop_clips(request: gr.Request) -> None:
            jobs.stop(clip_key(request))

        gr.HTML(HEADER, elem_id="header", apply_default_css=False)
        with gr.Tab("Live"):
            live_view(engine, limits)
        with gr.Tab("Video"):
            video_tab(engine, jobs)
        if isinstance(engine, ZeroGpuEngine):
            gpu_session_button(engine)
        gr.Markdown(engine.about, elem_id="about")
        add_endpoints(engine, jobs)
        demo.unload(stop_clips)
    return demo.queue(max_size=32, default_concurrency_limit=4)


def serve(
    engine: EngineProtocol,
    limits: VisitorLimits = DEFAULT_LIMITS,
    routes: Sequence[BaseRoute] = (),
    **options: Any,
) -> gr.Blocks:
    """Serve the page and further routes on an engine until `.close()`; `options` go to `launch`."""
    jobs = clip_queue(engine, limits)
    demo = build(engine, limits, jobs)
    route = live_route(demo, engine, WaitingLine(engine, limits.turn_seconds), limits)
    demo.launch(prevent_thread_lock=True, app_kwargs={"routes": [route, *routes]}, **LAUNCH, **options)
    configure_sockets(demo)
    keep_tidy(jobs.tidy, lambda: demo.is_running)
    return demo


def start_engine(options: argparse.Namespace) -> Engine:
    """Load the model of the options, start an engine on it, and print how many viewers fit.

    Raises:
        ValueError, OSError: as `load_model`, or the GPU does not have enough memory for one viewer.
    """
    advice = "Close other programs that use the GPU, or take --small-memory or a smaller model"
    with explain_out_of_memory(f"{advice} (--model nano)."):
        pipe = load_model(options)
        work = (options.size, options.steps, options.small_memory)
        engine, sentence = start_fitting(pipe, options.streams, *work)
    if sentence:
        print(sentence)
    print(engine.room)
    return engine


def start_cluster_engine(options: argparse.Namespace) -> tuple[EngineProtocol, list[BaseRoute]]:
    """Start an engine on a Ray cluster, whose workers load the model; return it and its HTTP routes.

    Raises:
        ValueError, OSError, RuntimeError: as `start_cluster`.
    """
    work = options.size, options.steps, options.streams, options.small_memory
    make_engine = partial(load_engine, model_loader(options), *work)
    engine = start_cluster(options.cluster, make_engine, options.autoscale)
    from live2diff.cluster.metrics import metric_routes  # needs the extra `cluster`

    print(engine.room)
    return engine, [*metric_routes(engine)]


def build_parser(cls: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Create the parser of the command line."""
    parser = cls(description="Serve the page.")
    add_model_options(parser)
    add = parser.add_argument
    size = "work at about N x N pixels (default: the most that is fast enough; nano 256-448, full 384-512)"
    add("--size", type=number_or_auto, metavar="N|auto", help=size)
    steps = "denoising steps, 1 to 4, unless a viewer chooses (default: likewise; the full model 1 to 3)"
    add("--steps", type=number_or_auto, metavar="N|auto", help=steps)
    add("--host", help="address to listen on; 0.0.0.0 for all (default: this machine only)")
    add("--port", type=port_number, help="default: the first free one from 7860 on")
    add("--share", action="store_true", help="make a public link through Gradio's tunnel")
    add("--mcp", action="store_true", help="serve the endpoints as MCP tools as well")
    camera = "write the first viewer's live picture to a virtual camera"
    add("--virtual-camera", action="store_true", help=camera)
    streams = "live viewers at once (default: as many as fit into a GPU's memory, up to 8; on a CPU 4)"
    add("--streams", type=number_or_auto, metavar="N|auto", help=streams)
    add("--small-memory", action="store_true", help="on a GPU, 8-bit caches: half the memory per viewer")
    cluster = "run on Ray: local (one worker for each GPU, on a CPU two), auto or the address of a cluster"
    add("--cluster", metavar="local|auto|ADDRESS", help=cluster)
    autoscale = "let the cluster's autoscaler add and remove workers as viewers need them"
    add("--autoscale", action="store_true", help=autoscale)
    numbers = (
        ("--visits-per-address", int, DEFAULT_LIMITS.visits, "live sessions from one address at once"),
        ("--clips-per-address", int, DEFAULT_LIMITS.clips, "clips from one address, waiting ones included"),
        ("--turn-seconds", float, DEFAULT_LIMITS.turn_seconds, "length of a live turn while others wait"),
        ("--grace-seconds", float, GRACE_SECONDS, "time for clips to finish when the server is stopped"),
    )
    for name, kind, default, text in numbers:
        add(name, type=kind, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    return parser


class OperatorParser(argparse.ArgumentParser):
    """A parser of LIVE2DIFF_OPTIONS that raises ValueError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise the error."""
        raise ValueError(f"LIVE2DIFF_OPTIONS is wrong: {message}")


def space_engine() -> ZeroGpuEngine | None:
    """Load the model of LIVE2DIFF_OPTIONS, or else nano, on ZeroGPU; return None elsewhere."""
    if not on_zero_gpu():
        return None
    parser = build_parser(OperatorParser)
    options = parser.parse_args([])
    # Eager: this process has no GPU; the one that has it captures graphs at its first run.
    try:
        options = parser.parse_args(operator_options())
        pipe = load_model(options, device="cuda", eager=True)
        set_work(pipe, options.size, options.steps)  # by default the model's own: no GPU to measure on
        return ZeroGpuEngine(pipe, graphs=not options.eager)
    except LOAD_ERRORS as error:  # a Space that does not start helps nobody
        event_log.log.exception("the model %s cannot be loaded", options.model)
        pipe = load_model(parser.parse_args(["--model", "nano"]), device="cuda", eager=True)
        pipe.about = f"Model: nano, the small one. {options.model} cannot be loaded: {error}"
        return ZeroGpuEngine(pipe, graphs=not options.eager)


ENGINE = space_engine()  # on ZeroGPU the weights must be loaded at import


def check_address(host: str, port: int) -> None:
    """Check that the server can listen on an address, before a model is loaded; port 0 is any free one.

    Raises:
        ValueError: it cannot.
    """
    addresses, failure = [], None
    try:
        addresses = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        failure = error
    for family, *_, address in addresses:  # one is enough: one of localhost's two may be disabled
        try:
            return socket.create_server(address, family=family).close()
        except OSError as error:
            failure = error
    advice = "--host is an address of this machine, for example 127.0.0.1, or 0.0.0.0 for all"
    advice += ", --port a free one that this user may open" * (port > 0)
    raise ValueError(f"The server cannot listen on {host}: {failure}. Correct the options: {advice}.")


def run(options: argparse.Namespace) -> None:
    """Load a model and serve the page until the process is stopped."""
    if options.mcp and importlib.util.find_spec("mcp") is None:
        raise ValueError("--mcp needs another package: pip install 'mcp<2'")
    if options.autoscale and not options.cluster:
        raise ValueError("--autoscale needs a cluster: add --cluster auto or --cluster ADDRESS")
    trusted_proxies()  # raises if it cannot be read
    check_address(options.host or LOCALHOST_NAME, options.port or 0)
    device = open_device() if options.virtual_camera else None
    limits = VisitorLimits(options.visits_per_address, options.clips_per_address, options.turn_seconds)
    event_log.configure()
    routes: list[BaseRoute] = []
    if options.cluster:
        engine, routes = start_cluster_engine(options)
    else:
        engine = ENGINE or start_engine(options)
    address = {"server_name": options.host, "server_port": options.port, "share": options.share}
    if device is not None:
        VirtualCamera(engine, device)
    page = serve(engine, limits, routes, mcp_server=options.mcp or None, **address)
    serve_until_stopped(page, engine, options.grace_seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page; return the exit code."""
    parser = build_parser()
    if arguments is None:
        arguments = sys.argv[1:]
        try:
            operator = operator_options()
            build_parser(OperatorParser).parse_args(operator)
            arguments = [*operator, *arguments]
        except ValueError as error:
            if ENGINE is None:  # else `space_engine` has said so, and serves nano
                parser.error(str(error))
    return run_main(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
