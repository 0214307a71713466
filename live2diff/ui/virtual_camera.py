"""The translated live picture as a camera of this machine, for video calls and recording programs."""

import logging
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

import cv2
import numpy as np

from ..serving.sessions import EngineProtocol, FrameResult
from ..streaming.images import decode_frame, resize

WIDTH, HEIGHT, RATE = 1280, 720, 30  # what programs for calls expect of a camera
MISSING = "--virtual-camera needs another package: pip install pyvirtualcam==0.15.0"
NO_DEVICE = (
    "There is no virtual camera to write to ({}). On Linux: modprobe v4l2loopback exclusive_caps=1; on macOS "
    "and Windows: install OBS Studio, and start and stop its virtual camera once."
)

log = logging.getLogger(__name__)


class Device(Protocol):
    """The methods of a `pyvirtualcam.Camera` that are used."""

    def send(self, frame: np.ndarray) -> None:
        """Show a frame, uint8 `[HEIGHT, WIDTH, 3]` RGB."""

    def sleep_until_next_frame(self) -> None:
        """Wait until the next frame is due."""

    def close(self) -> None:
        """Close the device."""


def open_device() -> Device:
    """Open this machine's virtual camera.

    Raises:
        ValueError: pyvirtualcam is not installed, or there is no device.
    """
    try:
        import pyvirtualcam  # an extra: live2diff[camera] # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        return pyvirtualcam.Camera(WIDTH, HEIGHT, RATE)
    except RuntimeError as error:
        raise ValueError(NO_DEVICE.format(" ".join(str(error).split()))) from None


def letterbox(image: np.ndarray) -> np.ndarray:
    """Fit a uint8 image `[height, width, 3]` into `[HEIGHT, WIDTH, 3]`, with black bars."""
    height, width = image.shape[:2]
    scale = min(HEIGHT / height, WIDTH / width)
    image = resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    down, right = HEIGHT - image.shape[0], WIDTH - image.shape[1]
    edges = down // 2, down - down // 2, right // 2, right - right // 2
    return cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=(0, 0, 0))


class VirtualCamera:
    """Write the newest result of one live session to a device, at the device's rate; black without one.

    The first session owns the camera until it ends, then the next one that sends a frame.
    """

    def __init__(self, engine: EngineProtocol, device: Device) -> None:
        self._engine, self._device = engine, device
        self._push, engine.push = engine.push, self._push_and_watch
        self._key: str | None = None  # of the session that owns the camera
        self._newest: tuple[str, np.ndarray] | None = None  # its key and newest result, replaced at once
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="virtual camera", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the device, and restore the engine's `push`."""
        self._engine.push = self._push
        self._stopped.set()
        self._thread.join()

    def _push_and_watch(self, key: str, frame: np.ndarray, tag: Any = None) -> Future[FrameResult]:
        result = self._push(key, frame, tag=tag)
        if self._key not in self._engine.session_keys():
            self._key = key
        if key == self._key:
            result.add_done_callback(partial(self._take, key))
        return result

    def _take(self, key: str, result: Future[FrameResult]) -> None:
        if key != self._key:  # a late result of the former owner
            return
        if not result.cancelled() and result.exception() is None and result.result().frames:
            image = result.result().frames[-1]
            self._newest = key, decode_frame(image) if isinstance(image, bytes) else image

    def _run(self) -> None:
        shown, frame, black = None, None, np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        try:
            while not self._stopped.is_set():
                newest = self._newest
                image = newest[1] if newest and newest[0] in self._engine.session_keys() else None
                if image is not shown or frame is None:
                    shown, frame = image, black if image is None else letterbox(image)
                self._device.send(frame)
                self._device.sleep_until_next_frame()
        except RuntimeError:
            log.exception("the virtual camera failed; the page goes on without it")
        finally:
            self._device.close()
