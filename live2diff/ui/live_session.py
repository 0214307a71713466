"""The server's side of the Live tab: one WebSocket per viewer; its stream ends with it.

Why a WebSocket and not WebRTC (FastRTC):
- WebRTC needs a TURN server on Spaces and behind many firewalls; a WebSocket passes wherever the page does.
- Each result carries its frame's number, so the page shows exactly the original that it was made from.
- The waiting line, settings and errors share the connection with the frames, in one order.
- It is fast enough: the round trip adds 14 ms (median, tests/measure/delay.py).
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ..errors import EngineBusy, GpuSessionOver, ServerStopping, StreamClosed
from ..serving.admission import WaitingLine
from ..serving.limits import BURST_SECONDS, BYTES_A_SECOND, MESSAGES_A_SECOND, SILENT_SECONDS, TAKEN_SECONDS
from ..serving.sessions import EngineProtocol
from ..streaming.settings import StreamSettings
from .frame_relay import CameraFrame, FrameRelay
from .live_protocol import Codec, Echo, Restart, Start, Stop, Update, parse_frame, parse_message
from .live_visits import Visit, Visits
from .video_codec import is_vp9

OPEN_SECONDS = 0.3  # minimum between two streams of one viewer
POLL_SECONDS = 1.0  # between updates of the queue position and of the time left
FETCH_SECONDS = 0.5  # a download that takes longer is announced to the page
ALIVE_SECONDS = 2.0  # between keep-alive messages to the page
VIDEO_FRAME_BYTES = int(BYTES_A_SECOND / 70)  # minimum charge: VP9 frames are decoded even if dropped
REJECTED, RESTARTING = 1008, 1012  # close codes; after the second the page connects again
# Close codes after which the page connects again: cut (1005 is uvicorn's), ping timeout, silence.
CUT = {1005, 1006, 1011, RESTARTING, 4000}

log = logging.getLogger(__name__)


@dataclass
class RateBudget:
    """Limit the messages and bytes a second of one socket, and allow a burst."""

    clock: Callable[[], float] = time.monotonic
    paid_until: float = 0.0

    def charge(self, size: int) -> float:
        """Charge a message of `size` bytes; return the seconds to wait before reading the next."""
        now = self.clock()
        cost = max(1 / MESSAGES_A_SECOND, size / BYTES_A_SECOND)
        self.paid_until = max(self.paid_until, now - BURST_SECONDS) + cost
        return max(0.0, self.paid_until - now)

    async def spend(self, size: int) -> None:
        """Charge a message of `size` bytes, and wait until the next one may be read."""
        await asyncio.sleep(self.charge(size))


@dataclass(eq=False)
class LiveSession:
    """Serve one socket of a visit and its stream, which ends with the socket."""

    socket: WebSocket
    engine: EngineProtocol
    visits: Visits
    visit: Visit
    abort: Callable[[], None]  # drops the connection without waiting for the other side
    settings: StreamSettings = field(default_factory=StreamSettings)  # the last requested
    applied_settings: StreamSettings = field(default_factory=StreamSettings)  # the last accepted
    last_update: Update = field(default_factory=lambda: Update.model_construct())
    relay: FrameRelay | None = None  # of the open stream
    rate_budget: RateBudget = field(default_factory=RateBudget)
    opened_at: float = 0.0  # when a stream was last opened
    tasks: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    session_task: asyncio.Task[None] | None = None  # from the waiting line to the end of the viewer's turn
    update_task: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        """Return the key of the visit in the engine and the waiting line."""
        return self.visit.key

    @property
    def line(self) -> WaitingLine:
        """Return the waiting line of all visits."""
        return self.visits.line

    async def run(self) -> None:
        """Serve the socket until it closes; after a cut, hold the place for the next connection."""
        self.visit.connection = self
        was_cut = False
        try:
            async with self.tasks:
                alive_task = self.tasks.create_task(self.send_alive())
                was_cut = await self.read() and self.session_task is not None
                alive_task.cancel()
                self.cancel_tasks()
        finally:
            self.cancel_tasks()
            if self.visit.connection is self:  # no other connection has taken over
                self.close_stream()
                (self.visits.hold if was_cut else self.visits.end)(self.visit)

    def drop(self) -> None:
        """Close the connection and its stream at once, as another connection takes over the visit."""
        self.cancel_tasks()
        self.close_stream()
        self.abort()

    def end(self) -> None:
        """Close the stream and leave the waiting line; may be called at any time."""
        self.cancel_tasks()
        self.visits.revoke(self.visit)
        self.close_stream()
        self.line.leave(self.key)

    def cancel_tasks(self) -> None:
        """Cancel the tasks of the stream, except the calling one."""
        for task in (self.session_task, self.update_task):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self.session_task = self.update_task = None

    async def send_alive(self) -> None:
        """Send keep-alive messages, without which the page would give up the connection."""
        while True:
            await asyncio.sleep(ALIVE_SECONDS)
            await self.send_json(alive=True)

    def close_stream(self) -> None:
        """Close the stream, and keep the place in line."""
        self.relay = None
        self.engine.close(self.key)

    async def read(self) -> bool:
        """Read messages and frames until the socket closes; return whether it was cut."""
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    message = await self.socket.receive()
            except TimeoutError:
                if self.session_task is not None and not self.session_task.done() and self.relay is None:
                    continue  # this viewer waits in line
                await self.reject(ValueError("This page sent nothing for five minutes."))
                return False
            if message["type"] == "websocket.disconnect":
                return message.get("code") in CUT
            if self.visit.connection is not self:  # sent before the next connection took over
                continue
            data, text = message.get("bytes"), message.get("text") or ""
            size = len(data or text)
            try:
                if data is None:
                    await self.handle_message(text)
                else:
                    number, image = parse_frame(data)
                    if is_vp9(image):
                        size = max(size, VIDEO_FRAME_BYTES)
                    if self.relay is not None:  # else the frame was sent before the page knew
                        self.relay.put(CameraFrame(image, number, time.monotonic()))
            except ValueError as error:
                await self.reject(error)
                return False
            await self.rate_budget.spend(size)

    async def reject(self, error: ValueError) -> None:
        """Send an error and close the socket, after an invalid message or frame."""
        self.end()
        await self.send_json(error=str(error))
        await self.close_socket(REJECTED)

    async def close_socket(self, code: int) -> None:
        """Close the socket, if it is open."""
        if self.socket.application_state is WebSocketState.CONNECTED:
            await self.socket.close(code)

    async def handle_message(self, text: str) -> None:
        """Act on a text message of the page."""
        match parse_message(text):
            case Start(start=settings):
                self.settings = settings
                self.start()
            case Update(update=settings) as message:
                self.settings, self.last_update = self.settings.updated_live(settings), message
                self.sync_settings()
            case Restart():
                if self.relay is not None:
                    with suppress(StreamClosed):  # the next frame opens another stream
                        self.engine.restart(self.key)
            case Stop():
                self.end()
            case Codec(codec=codec, rate=rate):
                if self.relay is not None:
                    self.relay.set_result_rate(rate if codec == "vp9" else None)
            case Echo(echo=echo):
                await self.send_json(echo=echo)

    def start(self) -> None:
        """Open a stream with the current settings, after waiting in line if need be."""
        if self.session_task is not None:
            self.session_task.cancel()
        if self.relay is not None:
            self.close_stream()
        self.session_task = self.tasks.create_task(self.stream_in_turns())

    def sync_settings(self) -> None:
        """Apply the current settings to the stream if they differ from its own."""
        if self.relay is not None and self.update_task is None and self.settings != self.applied_settings:
            self.update_task = self.tasks.create_task(self.apply_settings())

    async def apply_settings(self) -> None:
        """Update the stream until it has the last requested settings."""
        while self.relay is not None and self.settings != self.applied_settings:
            settings, refill = self.settings, self.last_update.refill
            blend = 0 if refill else self.last_update.blend
            try:
                await self.fetch(settings.style)
                if settings != self.settings:
                    continue
                updated = self.engine.update(self.key, settings, blend=blend)
                if refill:
                    self.engine.restart(self.key)
                ignored = await asyncio.wrap_future(updated)
                self.applied_settings = settings
                frame = self.relay.frames_in if self.relay else 0
                await self.send_json(updated=settings.style, ignored=ignored, frame=frame)
            except StreamClosed:
                break  # the next frame opens another stream, with these settings
            except (ValueError, OSError) as error:
                if settings != self.settings:
                    continue  # others were requested meanwhile
                self.settings = kept = self.applied_settings
                values = kept.model_dump(mode="json", exclude_none=True)
                await self.send_json(refused=str(error), style=kept.style, settings=values)
            except RuntimeError as error:
                await self.fail_in_model(error)
        self.update_task = None

    async def fetch(self, style: str | None) -> None:
        """Wait until the engine has a style's files, or another style is chosen; announce a long download."""
        fetched, is_announced = asyncio.wrap_future(self.engine.fetch(style)), False
        try:
            while self.settings.style == style:
                await asyncio.wait({fetched}, timeout=FETCH_SECONDS)
                if fetched.done():
                    return fetched.result()
                if not is_announced:
                    await self.send_json(loading=style)
                    is_announced = True
        finally:
            fetched.cancel()

    async def stream_in_turns(self) -> None:
        """Wait for a place, open the stream and relay its frames until the turn is over; repeat."""
        await self.send_json(resume=self.visits.new_token(self.visit))
        while True:
            settings = self.settings
            try:
                await self.fetch(settings.style)  # first: a free place is held for seconds only
                while (place := self.line.join(self.key)).position > 0:
                    await self.send_json(waiting=place.position, seconds=place.seconds)
                    await asyncio.sleep(POLL_SECONDS)
                await asyncio.sleep(self.opened_at + OPEN_SECONDS - time.monotonic())
                if settings.style != self.settings.style:
                    continue
                self.opened_at, settings = time.monotonic(), self.settings
                ignored = await asyncio.wrap_future(self.engine.open(self.key, settings))
            except EngineBusy:  # the place was not taken in time
                await asyncio.sleep(POLL_SECONDS)
                continue
            except ServerStopping:
                return await self.close_socket(RESTARTING)
            except (StreamClosed, ValueError, OSError) as error:
                return await self.fail(str(error))
            except RuntimeError as error:
                return await self.fail_in_model(error)
            self.relay, self.applied_settings = FrameRelay(self.engine, self.key, self.send), settings
            key = self.key if self.engine.needs_gpu_session else None
            await self.send_json(started=ignored, gpu_session=key, codecs=self.relay.codecs)
            self.sync_settings()
            if not await self.relay_frames(self.relay):
                return

    async def relay_frames(self, relay: FrameRelay) -> bool:
        """Relay frames until the stream or the turn ends; return whether to open another stream."""
        task = asyncio.create_task(relay.run())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # or asyncio logs it
        refusal, is_over = "", False
        try:
            is_over = await self.watch_turn(task)
            if task.done() or not is_over:  # closed as idle: the next frame raises StreamClosed
                await task
        except StreamClosed as error:
            if not isinstance(error, GpuSessionOver):
                refusal = str(error)
        except ValueError as error:
            await self.reject(error)
            return False
        except RuntimeError as error:
            await self.fail_in_model(error)
            return False
        finally:
            task.cancel()
        if self.engine.needs_gpu_session and self.key in self.engine.session_keys():
            self.relay = None  # the engine keeps the last frames for the next GPU session
            reason = refusal or "Your time on the GPU is over."
            await self.send_json(gpu_session_over=reason, again=not refusal)
            return False
        self.close_stream()
        if is_over:
            self.line.leave(self.key)
            await self.send_json(over="Your turn is over.")
        return True

    async def watch_turn(self, task: asyncio.Task[None]) -> bool:
        """Send the time left until the stream has ended; return whether that was the end of the turn."""
        left = None
        while not task.done() and self.key in self.engine.session_keys():
            before, left = left, self.line.time_left(self.key)
            if left != before:
                await self.send_json(time_left=left)
            await asyncio.wait({task}, timeout=POLL_SECONDS)
        return left is not None and left <= 2 * POLL_SECONDS

    async def fail_in_model(self, error: RuntimeError) -> None:
        """Log a model error and end the stream with it."""
        log.error("a live stream failed", exc_info=error)
        await self.fail(f"The model failed: {(str(error).splitlines() or ['no reason given'])[0]}")

    async def fail(self, text: str) -> None:
        """End the stream and send the reason."""
        self.end()
        await self.send_json(error=text)

    async def send_json(self, **message: Any) -> None:
        """Send a text message to the page."""
        await self.send(json.dumps(message))

    async def send(self, data: str | bytes) -> None:
        """Send to the page; drop the connection if the page does not receive."""
        try:
            async with asyncio.timeout(TAKEN_SECONDS):
                if isinstance(data, str):
                    await self.socket.send_text(data)
                else:
                    await self.socket.send_bytes(data)
        except TimeoutError:
            self.abort()
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: closed from this side, maybe after a ping
            if self.socket.application_state is WebSocketState.CONNECTED:
                self.abort()
