"""Relay live frames between one viewer's socket and the engine; README.md has a figure."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..config import WARMUP_FRAMES
from ..serving.sessions import EngineProtocol, FrameResult
from ..streaming.images import JPEG_QUALITY, decode_frame, encode_jpeg
from .live_protocol import EARLIER, RESULT
from .video_codec import CameraDecoder, ResultEncoder, VideoError, is_vp9

FRAMES_IN_ENGINE = 2  # one being processed, and one that waits for it
LARGEST_MICROSECONDS = 2**32 - 1

jpeg_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="jpeg")


@dataclass(frozen=True)
class CameraFrame:
    """A JPEG or VP9 frame from the socket, received at `arrived` seconds on the monotonic clock."""

    data: bytes
    number: int
    arrived: float


@dataclass
class PendingFrame:
    """A frame in the engine, or the newest of `count` frames that share one result."""

    result: Future[FrameResult]
    frame: CameraFrame
    count: int = 1


class FrameRelay:
    """Relay one stream's camera frames to the engine and its results to the socket, in order.

    The newest frame is kept compressed and decoded only when the engine has room for it: a JPEG that is
    replaced under overload costs nothing, a VP9 frame little. After a VP9 error, JPEGs are used until the
    stream ends.
    """

    def __init__(
        self, engine: EngineProtocol, key: str, send: Callable[[bytes | str], Awaitable[None]]
    ) -> None:
        self.engine, self.key, self.send = engine, key, send
        self.newest: CameraFrame | None = None
        self.earlier: deque[CameraFrame] = deque(maxlen=WARMUP_FRAMES)  # from before a cut, oldest first
        self.arrived = asyncio.Event()
        self.in_engine = asyncio.Semaphore(FRAMES_IN_ENGINE)
        self.pending: asyncio.Queue[PendingFrame] = asyncio.Queue()
        self.last_result = 0.0  # when the last one was sent, on the monotonic clock
        self.frames_in = 0  # frames that the stream had received at the last result
        self.decoder: CameraDecoder | None = CameraDecoder()  # None: VP9 has failed
        self.encoder: ResultEncoder | None = None  # None: results are JPEGs

    @property
    def codecs(self) -> list[str]:
        """Return the codecs that a client may use besides JPEG."""
        return [] if self.engine.takes_jpegs else ["vp9"]

    def set_result_rate(self, rate: int | None) -> None:
        """Send results as VP9 at `rate` bits a second, or as JPEGs if it is None."""
        if rate is not None and self.encoder is not None:
            self.encoder.rate = rate
        else:
            self.encoder = None if rate is None else ResultEncoder(rate)

    def put(self, frame: CameraFrame) -> None:
        """Keep a frame in place of one that still waits; frames from before a cut are all kept.

        Raises:
            ValueError: the VP9 frame is too large, or several in one.
        """
        if frame.number == EARLIER:
            self.earlier.append(frame)
        else:
            self.newest = frame
            if self.decoder is not None and is_vp9(frame.data):
                try:
                    self.decoder.put(frame.data)
                except VideoError:
                    self.decoder = None
        self.arrived.set()

    async def run(self) -> None:
        """Relay frames until the stream ends or the task is cancelled.

        Raises:
            StreamClosed: the engine has closed the stream.
            ValueError: a camera frame that cannot be used.
            RuntimeError: the model failed.
        """
        tasks = [asyncio.create_task(work()) for work in (self.push_frames, self.send_results)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def push_frames(self) -> None:
        """Decode and push the newest frame whenever the engine has room."""
        last: PendingFrame | None = None
        while True:
            await self.in_engine.acquire()
            await self.push_earlier()
            while self.newest is None:
                self.arrived.clear()
                await self.arrived.wait()
                await self.push_earlier()
            frame, self.newest = self.newest, None
            image = await self.image(frame)
            if image is None:
                self.in_engine.release()
                continue
            result = self.engine.push(self.key, image, tag=frame.number)
            if last is not None and result is last.result:  # the frame before it still waited
                last.frame = frame
                last.count += 1
            else:
                last = PendingFrame(result, frame)
                self.pending.put_nowait(last)

    async def image(self, frame: CameraFrame) -> np.ndarray | bytes | None:
        """Decode a frame, unless the engine takes JPEGs; if VP9 fails, request JPEGs and return None."""
        loop = asyncio.get_running_loop()
        if self.engine.takes_jpegs:
            return frame.data
        if frame.number == EARLIER or not is_vp9(frame.data):
            return await loop.run_in_executor(jpeg_threads, decode_frame, frame.data)
        if self.decoder is not None:
            try:
                return await loop.run_in_executor(jpeg_threads, self.decoder.decode, self.decoder.take())
            except VideoError:
                self.decoder = None
        await self.send('{"codec": "jpeg"}')

    def encode(self, image: np.ndarray) -> bytes:
        """Encode a result as VP9 if it is in use, else or after an error as JPEG."""
        encoder = self.encoder  # may be replaced by another thread
        if encoder is not None:
            try:
                return encoder.encode(image)
            except VideoError:
                self.encoder = None
        return encode_jpeg(image, JPEG_QUALITY)

    async def push_earlier(self) -> None:
        """Push the frames from before a cut one by one: none is replaced, and no result is sent for them."""
        while self.earlier:
            frame = self.earlier.popleft()
            result = self.engine.push(self.key, await self.image(frame), tag=EARLIER)
            if not self.engine.needs_gpu_session:  # else the engine keeps them until a GPU session begins
                await asyncio.wrap_future(result)

    async def send_results(self) -> None:
        """Send the engine's results to the client, in order."""
        loop = asyncio.get_running_loop()
        while True:
            pending = await self.pending.get()
            result = await asyncio.wrap_future(pending.result)
            image = result.frames[-1] if result.frames else b""
            if not isinstance(image, bytes):
                image = await loop.run_in_executor(jpeg_threads, self.encode, image)
            if result.moved:
                await self.send('{"moved": true}')
            await self.send(self.header(result, pending.frame) + image)
            for _ in range(pending.count):
                self.in_engine.release()

    def header(self, result: FrameResult, frame: CameraFrame) -> bytes:
        """Pack the header of a result, and record when it is sent."""
        now = time.monotonic()
        seconds = now - frame.arrived, now - max(frame.arrived, self.last_result)
        self.last_result, self.frames_in = now, result.frames_in
        times = (min(int(each * 1e6), LARGEST_MICROSECONDS) for each in seconds)
        collected = 0 if result.warm else result.frames_in
        return RESULT.pack(result.tag or 0, frame.number, *times, collected)
