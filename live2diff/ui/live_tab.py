"""The Live tab: a custom component, camera frames in and translated images out.

The browser's side is `static/*.js`; `live_session` is the server's.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from ..errors import LimitReached
from ..serving.admission import WaitingLine
from ..serving.limits import SOCKETS_AT_ONCE, Counts, VisitorLimits, visitor_address
from ..serving.sessions import EngineProtocol
from ..streaming.images import LARGEST_FRAME
from ..styles import SAMPLES, Style, thumbnail_of
from .live_protocol import FRAME, PATH, is_same_origin
from .live_session import LiveSession
from .live_visits import Visits
from .theme import STATIC, file_url

LIVE_SCRIPTS = ("camera.js", "screen.js", "recorder.js", "link.js", "cues.js", "meter.js", "keys.js")
SCRIPTS = (*LIVE_SCRIPTS, "live.js", "command.js")  # one scope, in this order
WORKER_SCRIPTS = ("codec.js", "worker.js")
SMALLEST_SIDE = 384  # pixels; the browser sends no smaller frames, however small the working size
RESUME = "live2diff.resume"  # subprotocol that resumes a visit; the client offers its token beside it
PING_SECONDS = 5.0  # interval and timeout of pings: a dead network is noticed within twice this


def page_script() -> str:
    """Join the scripts of the page, with the worker's source as a string constant."""
    worker = json.dumps("\n".join((STATIC / name).read_text() for name in WORKER_SCRIPTS))
    scripts = [(STATIC / name).read_text() for name in SCRIPTS]
    return "\n".join([f"const WORKER_SOURCE = {worker};", *scripts])


def style_entry(name: str, style: Style, default_style: str) -> dict[str, str | int]:
    """Return the fields of a style for live.html; "" for an image that does not exist."""
    sample = SAMPLES / f"{Path(name).name}.jpg"
    return {
        "name": name,
        "title": style.title,
        "thumbnail": file_url(thumbnail_of(name, style)),
        "loras": len(style.loras) or "",
        "sample": file_url(sample if sample.is_file() else None),
        "checked": "checked" if name == default_style else "",
    }


def live_view(engine: EngineProtocol, limits: VisitorLimits) -> gr.HTML:
    """Create the content of the Live tab, which talks to `live_route`."""
    html = (STATIC / "live.html").read_text()
    return gr.HTML(
        html_template=html.replace("<!-- command.html -->", (STATIC / "command.html").read_text()),
        css_template="\n".join((STATIC / name).read_text() for name in ("live.css", "command.css")),
        js_on_load=page_script(),
        styles=[style_entry(name, style, engine.default_style) for name, style in engine.styles.items()],
        side=max(SMALLEST_SIDE, round(1.5 * engine.size)),
        limits=limits.in_words(),
        hint=engine.prompt_help.hint,
        suggestions=[{"text": text} for text in engine.prompt_help.examples],
        mixable=[
            {"name": name, "title": style.title}
            for name, style in engine.styles.items()
            if not style.has_weights
        ],
        apply_default_css=False,
        elem_id="live",
    )


def live_route(
    demo: gr.Blocks, engine: EngineProtocol, line: WaitingLine, limits: VisitorLimits
) -> WebSocketRoute:
    """Create the WebSocket's route, for `demo.launch(app_kwargs={"routes": [route]})`."""
    visits = Visits(Counts(limits.visits, "live visits"), line)
    open_sockets = 0

    async def serve(socket: WebSocket) -> None:
        nonlocal open_sockets
        addresses = (demo.share_url, demo.root_path)
        hosts = {urlsplit(address).netloc for address in addresses if address}
        hosts.add(os.environ.get("SPACE_HOST", ""))
        if not is_same_origin(socket.headers, hosts) or open_sockets >= SOCKETS_AT_ONCE:
            return await socket.close(1008)  # before it is accepted: an HTTP 403
        open_sockets += 1
        try:
            offered = [*socket.scope["subprotocols"], "", ""]
            await socket.accept(RESUME if offered[0] == RESUME else None)
            address = visitor_address(socket.headers, socket.client and socket.client.host)
            try:
                visit = visits.enter(offered[1], address)
            except LimitReached as error:
                await socket.send_json({"error": str(error)})
                return await socket.close(1008)
            abort_socket = partial(abort, demo, socket)
            await LiveSession(socket, engine, visits, visit, abort_socket).run()
        finally:
            open_sockets -= 1

    return WebSocketRoute(PATH, serve)


# Gradio has no public access to the socket options of its server, nor to a connection. `demo.server` is a
# uvicorn server; tests/ui/test_socket_limits.py fails if that or one of these names changes.


def configure_sockets(demo: gr.Blocks) -> None:
    """Set the WebSocket options of a launched page's server; they hold for new sockets."""
    config = demo.server.config
    config.ws_per_message_deflate = False  # images are compressed already
    config.ws_max_size = LARGEST_FRAME + FRAME.size
    config.ws_ping_interval = config.ws_ping_timeout = PING_SECONDS


def abort(demo: gr.Blocks, socket: WebSocket) -> None:
    """Drop a connection whose client does not receive: an ordinary close would wait for it."""
    connections: list[Any] = list(demo.server.server_state.connections)
    for connection in connections:
        if connection.scope and connection.scope["headers"] == socket.scope["headers"]:  # has a random key
            connection.transport.abort()
