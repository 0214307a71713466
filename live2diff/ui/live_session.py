"""The server's side of the Live tab: a WebSocket for each visitor, whose stream lives as long as it does.

`live_messages` says what goes through it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ..errors import EngineBusy, StreamClosed
from ..serving.admission import WaitingLine
from ..serving.limits import BURST_SECONDS, BYTES_A_SECOND, MESSAGES_A_SECOND, SILENT_SECONDS, TAKEN_SECONDS
from ..serving.sessions import EngineProtocol as SessionManager
from ..streaming.settings import StreamSettings
from .live_protocol import FRAME, PICTURE, decode_frame, encode_frame, read_message

ANSWERS_AT_ONCE = 4  # frames on their way through model, encoder and network
OPEN_SECONDS = 0.3  # between two streams of one visitor, so that asking for many costs nobody else anything
POLL_SECONDS = 1.0  # how often the place in line and the time left are looked at

log = logging.getLogger(__name__)
codec = ThreadPoolExecutor(max_workers=4, thread_name_prefix="jpeg")


@dataclass(frozen=True)
class Mail:
    jpeg: bytes
    number: int
    arrived: float


@dataclass
class Pending:
    """A frame that the engine has, or the newest of several that one answer is for."""

    answer: Future
    mail: Mail
    epoch: int


@dataclass(eq=False)
class Visit:
    """One socket. Its tasks end with it, and its stream and its place in line with them."""

    socket: WebSocket
    engine: SessionManager
    line: WaitingLine
    cut: Callable[[], None]  # ends the connection without waiting for the other side
    key: str = field(default_factory=lambda: f"live/{secrets.token_urlsafe(16)}")
    settings: StreamSettings = field(default_factory=StreamSettings)  # as asked
    worn: StreamSettings = field(default_factory=StreamSettings)  # as last accepted
    is_open: bool = False
    epoch: int = 0  # rises with every stream: what belongs to an older one is dropped
    mailbox: Mail | None = None
    came: asyncio.Event = field(default_factory=asyncio.Event)  # something is in the mailbox
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # the engine has freed the stream
    last: Pending | None = None  # what the engine was given last
    answers: asyncio.Queue[Pending] = field(default_factory=asyncio.Queue)
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ANSWERS_AT_ONCE))
    finished: float = 0.0  # when the last answer was
    opened: float = 0.0  # when a stream was last asked for
    paid_until: float = 0.0  # up to when what was read is paid for, see `pace`
    tasks: asyncio.TaskGroup | None = None
    living: asyncio.Task | None = None  # from the line to the end of the visitor's turn
    updating: asyncio.Task | None = None

    async def run(self) -> None:
        """Until the socket closes."""
        try:
            async with asyncio.TaskGroup() as self.tasks:
                workers = [self.tasks.create_task(work()) for work in (self.take_frames, self.give_answers)]
                await self.read()
                self.end()
                for task in workers:
                    task.cancel()
        finally:
            self.end()

    def end(self) -> None:
        """Free the stream and the place in line; may be called at any time."""
        for task in (self.living, self.updating):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        self.living = self.updating = None
        self.close_stream()
        self.line.leave(self.key)

    def forget_frames(self) -> None:
        self.is_open = False
        self.epoch += 1
        self.mailbox = self.last = None

    def close_stream(self) -> None:
        self.forget_frames()
        self.engine.close(self.key)

    async def read(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    message = await self.socket.receive()
            except TimeoutError:
                if self.waits_in_line():
                    continue
                return await self.refuse(ValueError("Nothing came from this page for five minutes."))
            if message["type"] == "websocket.disconnect":
                return
            await self.pace(len(message.get("bytes") or message.get("text") or ""))
            try:
                if message.get("bytes") is not None:
                    self.put(message["bytes"])
                else:
                    self.obey(message.get("text") or "")
            except ValueError as error:
                return await self.refuse(error)

    def waits_in_line(self) -> bool:
        return self.living is not None and not self.living.done() and not self.is_open

    async def pace(self, size: int) -> None:
        """Who sends more than a page does is read more slowly, and takes nobody else's time."""
        cost = max(1 / MESSAGES_A_SECOND, size / BYTES_A_SECOND)
        now = time.monotonic()
        self.paid_until = max(self.paid_until, now - BURST_SECONDS) + cost
        if self.paid_until > now:
            await asyncio.sleep(self.paid_until - now)

    async def refuse(self, error: ValueError) -> None:
        """For what this page never sends: the words, and the end."""
        await self.say(error=str(error))
        if self.socket.application_state is WebSocketState.CONNECTED:
            await self.socket.close(1008)

    def put(self, data: bytes) -> None:
        """A frame into the mailbox, in place of one that waits there."""
        if len(data) <= FRAME.size:
            raise ValueError("The camera frame is empty.")
        if self.is_open:  # not the last ones of a stream that has just ended
            (number,) = FRAME.unpack_from(data)
            self.mailbox = Mail(data[FRAME.size :], number, time.monotonic())
            self.came.set()

    def obey(self, text: str) -> None:
        message = read_message(text)
        if "start" in message:
            self.settings = StreamSettings.from_message(message["start"])
            self.begin()
        elif "update" in message:
            self.settings = self.settings.updated_live(StreamSettings.from_message(message["update"]))
            self.keep_up()
        elif "restart" in message:
            if self.is_open:
                self.attempt(self.engine.restart, self.key)
        elif "stop" in message:
            self.end()
        else:
            raise ValueError("The message is not one that this page sends.")

    def begin(self) -> None:
        """A new stream with the present settings; who has a place keeps it."""
        if self.living is not None:
            self.living.cancel()
        if self.is_open:
            self.close_stream()
        self.living = self.tasks.create_task(self.live())

    def keep_up(self) -> None:
        """Bring the stream to the present settings, if it has others."""
        if self.is_open and self.updating is None and self.settings != self.worn:
            self.updating = self.tasks.create_task(self.update())

    def attempt(self, function: Any, *arguments: Any, **settings: Any) -> Future | None:
        """Its future; None if the stream is gone, which begins it again."""
        try:
            return function(*arguments, **settings)
        except StreamClosed:
            self.is_open = False
            self.gone.set()
            return None

    async def live(self) -> None:
        """Wait for a place, open the stream, end it when the turn is over; again and again."""
        while True:
            try:
                await self.wait_for_place()
                await asyncio.sleep(self.opened + OPEN_SECONDS - time.monotonic())
                self.opened, asked = time.monotonic(), self.settings
                await asyncio.wrap_future(self.engine.fetch(asked.style))
                ignored = await asyncio.wrap_future(self.engine.open(self.key, asked))
            except EngineBusy:  # the place was not taken in time: wait for another
                await asyncio.sleep(POLL_SECONDS)
                continue
            except (StreamClosed, ValueError, OSError) as error:
                return await self.fail(str(error))
            except RuntimeError as error:
                return await self.fail_in_model(error)
            self.gone.clear()
            self.is_open, self.worn = True, asked
            await self.say(started=ignored, visit=self.key if self.engine.needs_gpu_session else None)
            self.keep_up()
            is_over = await self.turn_ends()
            if self.engine.needs_gpu_session and self.key in self.engine.session_keys():
                self.forget_frames()  # and nothing else: the next visit goes on from the last ones
                return await self.say(visit_over="Your time on the GPU is over.")
            self.close_stream()
            if is_over:
                self.line.leave(self.key)
                await self.say(over="Your turn is over.")

    async def wait_for_place(self) -> None:
        while True:
            place = self.line.join(self.key)
            if place.position == 0:
                return
            await self.say(waiting=place.position, seconds=place.seconds)
            await asyncio.sleep(POLL_SECONDS)

    async def turn_ends(self) -> bool:
        """Tell the time left until the stream ends; whether that is because there was none left."""
        told = None
        while not self.gone.is_set() and self.key in self.engine.session_keys():
            left = self.line.time_left(self.key)
            if left != told:
                told = left
                await self.say(time_left=left)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.gone.wait(), POLL_SECONDS)
        if told is None or told > 2 * POLL_SECONDS:  # freed after a silence: wait for the next frame
            await self.gone.wait()
            return False
        return True

    async def update(self) -> None:
        while self.is_open and self.settings != self.worn:
            asked = self.settings
            try:
                await asyncio.wrap_future(self.engine.fetch(asked.style))
                future = self.attempt(self.engine.update, self.key, asked)
                if future is not None:
                    ignored = await asyncio.wrap_future(future)
                    self.worn = asked
                    await self.say(updated=asked.style, ignored=ignored)
            except StreamClosed:
                break  # the next frame finds that out as well, and begins again with these settings
            except (ValueError, OSError) as error:
                if asked == self.settings:
                    self.settings = self.worn
                await self.say(refused=str(error), style=self.worn.style)
            except RuntimeError as error:
                await self.fail_in_model(error)
        self.updating = None

    async def take_frames(self) -> None:
        """From the mailbox to the engine."""
        loop = asyncio.get_running_loop()
        while True:
            await self.room.acquire()
            while self.mailbox is None:
                self.came.clear()
                await self.came.wait()
            (mail, self.mailbox), epoch = (self.mailbox, None), self.epoch
            try:
                frame = await loop.run_in_executor(codec, decode_frame, mail.jpeg)
            except ValueError as error:
                self.room.release()
                await self.refuse(error)
                continue
            future = None
            if epoch == self.epoch and self.is_open:
                future = self.attempt(self.engine.push, self.key, frame, tag=mail.number)
            if future is None or (self.last is not None and future is self.last.answer):
                self.room.release()  # the frame before it waits no more: one answer for both
                if future is not None:
                    self.last.mail = mail
            else:
                self.last = Pending(future, mail, epoch)
                self.answers.put_nowait(self.last)

    async def give_answers(self) -> None:
        """From the engine to the page, in order."""
        while True:
            pending = await self.answers.get()
            try:
                await self.give(pending)
            except StreamClosed:
                if pending.epoch == self.epoch:
                    self.is_open = False
                    self.gone.set()
            except (ValueError, RuntimeError) as error:  # torch's, out of memory included
                if pending.epoch == self.epoch:
                    await self.fail_in_model(error)
            except asyncio.CancelledError:  # of the frame, by an engine that closes; or of this task
                if asyncio.current_task().cancelling():
                    raise
            finally:
                self.room.release()

    async def give(self, pending: Pending) -> None:
        loop = asyncio.get_running_loop()
        answer = await asyncio.wrap_future(pending.answer)
        jpeg = b""
        if answer.frames:
            jpeg = answer.jpeg or await loop.run_in_executor(codec, encode_frame, answer.frames[-1])
        if pending.epoch != self.epoch:
            return
        now, mail = time.monotonic(), pending.mail
        held, worked = now - mail.arrived, now - max(mail.arrived, self.finished)
        self.finished = now
        gathered = 0 if answer.warm else answer.frames_in
        times = (min(int(seconds * 1e6), 2**32 - 1) for seconds in (held, worked))
        await self.send(PICTURE.pack(answer.tag or 0, mail.number, *times, gathered) + jpeg)

    async def fail_in_model(self, error: ValueError | RuntimeError) -> None:
        log.error("a live stream failed", exc_info=error)
        await self.fail(f"The model failed: {(str(error).splitlines() or ['no reason given'])[0]}")

    async def fail(self, words: str) -> None:
        """The stream has ended, and why."""
        self.end()
        await self.say(error=words)

    async def say(self, **message: Any) -> None:
        await self.send(json.dumps(message))

    async def send(self, data: str | bytes) -> None:
        try:
            async with asyncio.timeout(TAKEN_SECONDS):
                if isinstance(data, str):
                    await self.socket.send_text(data)
                else:
                    await self.socket.send_bytes(data)
        except TimeoutError:
            self.cut()
        except (WebSocketDisconnect, RuntimeError):  # closed: `read` hears of it as well
            if self.socket.application_state is WebSocketState.CONNECTED:
                raise
