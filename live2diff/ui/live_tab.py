"""The Live tab: a component of our own, camera in and translated picture out.

The browser's side is `page/*.js`; `live_socket` is the server's.
"""

from __future__ import annotations

import base64
import io
import json
import os
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
from PIL import Image
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from ..errors import LimitReached
from ..serving.admission import WaitingLine
from ..serving.limits import SOCKETS_AT_ONCE, Counts, VisitorLimits, visitor_address
from ..serving.sessions import EngineProtocol as SessionManager
from ..styles import SAMPLES, Style
from .live_protocol import FRAME, LARGEST_FRAME, is_ours
from .live_session import Visit

PAGE = Path(__file__).parent / "static"
SCRIPTS = ("camera.js", "screen.js", "recorder.js", "live.js")  # one scope, in this order
SMALLEST_SIDE = 384  # of what the browser sends, whatever little the model works with
PATH = "/live-socket"
PING_SECONDS = 5.0  # a network that was cut without a word is noticed after this and the next
THUMBNAIL = (160, 120)  # width and height


def thumbnail(name: str, style: Style) -> str:
    """What a style is chosen by, as a data URL: its own picture or `page/styles/NAME.jpg`; "" for none."""
    file = Path(style.thumbnail) if style.thumbnail else PAGE / "styles" / f"{Path(name).name}.jpg"
    if not file.is_file():
        return ""
    with Image.open(file) as picture:
        picture = picture.convert("RGB")
        if picture.size != THUMBNAIL:
            picture.thumbnail(THUMBNAIL)
        small = io.BytesIO()
        picture.save(small, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(small.getvalue()).decode()


def sample(name: str) -> str:
    """The address of what the style makes of a picture; "" for none."""
    file = SAMPLES / f"{Path(name).name}.jpg"
    return f"gradio_api/file={file}" if file.is_file() else ""


def page_script() -> str:
    """All the page's scripts as one; the worker's source comes in it as a text."""
    worker = (PAGE / "worker.js").read_text()
    scripts = [(PAGE / name).read_text() for name in SCRIPTS]
    return "\n".join([f"const WORKER_SOURCE = {json.dumps(worker)};", *scripts])


def live_view(engine: SessionManager, limits: VisitorLimits) -> gr.HTML:
    """The Live tab's content; `connect` is what it talks to."""
    return gr.HTML(
        html_template=(PAGE / "live.html").read_text(),
        css_template=(PAGE / "live.css").read_text(),
        js_on_load=page_script(),
        styles=[
            {
                "name": name,
                "title": style.title,
                "thumbnail": thumbnail(name, style),
                "loras": len(style.loras) or "",
                "sample": sample(name),
                "checked": "checked" if name == engine.default_style else "",
            }
            for name, style in engine.styles.items()
        ],
        side=max(SMALLEST_SIDE, round(1.5 * engine.size)),
        limits=limits.in_words(),
        apply_default_css=False,
        elem_id="live",
    )


def cut(demo: gr.Blocks, socket: WebSocket) -> None:
    """Close a connection whose other side takes nothing: an ordinary end would wait until it does."""
    for protocol in list(demo.server.server_state.connections):
        if protocol.scope and protocol.scope["headers"] == socket.scope["headers"]:  # its key is in there
            protocol.transport.abort()


def connect(demo: gr.Blocks, engine: SessionManager, line: WaitingLine, limits: VisitorLimits) -> None:
    """Add the socket to the server of a page that was launched with `prevent_thread_lock=True`.

    `line` is the one before `engine`.
    """
    visits = Counts(limits.visits, "live visits")
    addresses = (demo.share_url, demo.root_path)
    hosts = {urlsplit(address).netloc for address in addresses if address}
    hosts.add(os.environ.get("SPACE_HOST", ""))
    open_sockets = 0

    async def serve(socket: WebSocket) -> None:
        nonlocal open_sockets
        if not is_ours(socket.headers, hosts) or open_sockets >= SOCKETS_AT_ONCE:
            return await socket.close(1008)  # before it was accepted: the browser reads a refusal
        open_sockets += 1
        try:
            await socket.accept()
            visit = Visit(socket, engine, line, partial(cut, demo, socket))
            with visits.one_more(visitor_address(socket.headers, socket.client and socket.client.host)):
                await visit.run()
        except LimitReached as error:
            await visit.refuse(error)
        finally:
            open_sockets -= 1

    demo.app.router.routes.insert(0, WebSocketRoute(PATH, serve))
    # Of this server's sockets: read for each new one. JPEGs do not get smaller by being deflated.
    config = demo.server.config
    config.ws_per_message_deflate = False
    config.ws_max_size = LARGEST_FRAME + FRAME.size
    config.ws_ping_interval = config.ws_ping_timeout = PING_SECONDS
