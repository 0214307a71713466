"""Check, resize, compress, upload and download images. Only functions on tensors import torch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

LARGEST_FRAME = 1_000_000  # bytes of a camera frame's JPEG; one of 384 pixels has about 20,000
LONGEST_SIDE = 1280  # pixels of a camera frame
JPEG_QUALITY = 85  # of the results


def check_frame(frame: object) -> None:
    """Check that a frame is a uint8 array `[height, width, 3]` with pixels.

    Raises:
        ValueError: it is not such an array; the message says how to convert it.
    """
    required = "A frame must be a uint8 array [height, width, 3]"
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"{required}; this is {type(frame).__name__}.")
    if 0 in frame.shape:
        raise ValueError(f"A frame must have pixels; this one is {list(frame.shape)}.")
    if frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8:
        return
    advice = ""
    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        advice = " Repeat its grey channel: np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)."
    elif frame.ndim == 3 and frame.shape[2] == 4:
        advice = " Leave out its alpha channel: frame[..., :3]."
    elif frame.dtype == np.uint16:
        advice = " Take its upper 8 bits: (frame >> 8).astype(np.uint8)."
    elif np.issubdtype(frame.dtype, np.floating):
        advice = " Scale it from 0..1: (frame * 255).round().astype(np.uint8)."
    raise ValueError(f"{required}; this is {frame.dtype} {list(frame.shape)}.{advice}")


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resize a uint8 image `[height, width, 3]` to another (height, width)."""
    if image.shape[:2] == tuple(shape):
        return np.ascontiguousarray(image)
    factor = min(image.shape[0] // shape[0], image.shape[1] // shape[1])
    if factor > 1:  # averaging whole pixels first is ten times as fast as averaging fractions of them
        smaller = image.shape[1] // factor, image.shape[0] // factor
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    shrinks = shape[0] * shape[1] < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (shape[1], shape[0]), interpolation=interpolation)


def limit_side(image: np.ndarray, longest_side: int) -> np.ndarray:
    """Shrink an image to sides of at most `longest_side` pixels, keeping its aspect ratio."""
    scale = longest_side / max(image.shape[:2])
    if scale >= 1:
        return image
    return resize(image, (max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))))


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Compress a uint8 RGB image `[height, width, 3]` to JPEG; `quality` is 0 to 100."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def check_frame_bytes(data: bytes) -> None:
    """Raise `ValueError` if a camera frame's JPEG is over 1 MB."""
    if len(data) > LARGEST_FRAME:
        raise ValueError(f"The camera frame has {len(data)} bytes, the limit is {LARGEST_FRAME}.")


def check_frame_jpeg(data: bytes) -> None:
    """Check the size and the header of a camera frame's JPEG.

    Raises:
        ValueError: it is over 1 MB, over 1280 pixels a side, or not a JPEG.
    """
    check_frame_bytes(data)
    check_jpeg(data, LONGEST_SIDE)


def decode_frame(data: bytes) -> np.ndarray:
    """Decode a camera frame's JPEG to uint8 `[height, width, 3]` RGB; raise as `check_frame_jpeg`."""
    check_frame_bytes(data)
    return decode_jpeg(data, LONGEST_SIDE)


def check_jpeg(data: bytes, longest_side: int) -> None:
    """Check the header of a JPEG.

    Raises:
        ValueError: it is not a JPEG, or has a side of more than `longest_side` pixels.
    """
    try:
        # Only the header: a few bytes can declare an image that does not fit into memory.
        width, height = Image.open(io.BytesIO(data), formats=["JPEG"]).size
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError("The image is not a readable JPEG.") from error
    if max(width, height) > longest_side:
        raise ValueError(f"The image is {width}x{height}, the limit is {longest_side} pixels a side.")


def decode_jpeg(data: bytes, longest_side: int) -> np.ndarray:
    """Decode a JPEG to a uint8 RGB image `[height, width, 3]`; raise as `check_jpeg`."""
    check_jpeg(data, longest_side)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError("The image is not a readable JPEG.")
    return image


def upload(images: list[np.ndarray], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Resize uint8 images to `size` and copy them to a device, `[n, 3, height, width]` in `[-1, 1]`."""
    import torch

    pixels = to_device(torch.from_numpy(np.stack([resize(image, size) for image in images])), device)
    tensors = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return tensors.contiguous(memory_format=torch.channels_last)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device; to a GPU from pinned memory, without waiting for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Download:
    """A copy of images and flags from a device to the host, asynchronous from a GPU.

    Args:
        images: `[n, 3, h, w]` in about `[-1, 1]`.
        flags: bool `[streams]`, on the same device.
        shapes: (height, width) to which each image is resized.
    """

    def __init__(self, images: torch.Tensor, flags: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> None:
        import torch

        pixels = (images.float() * 127.5).add_(127.5).clamp_(0, 255).round_().to(torch.uint8)
        pixels = pixels.permute(0, 2, 3, 1).contiguous()  # on the device, where it is fast
        self._shapes, self._done = shapes, None
        self._result: tuple[list[np.ndarray], list[bool]] | None = None
        if images.device.type != "cuda":
            self._pixels, self._flags = pixels.cpu(), flags.cpu()
            return
        copies = copy_stream(images.device)
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            hosts = [torch.empty_like(t, device="cpu", pin_memory=True) for t in (pixels, flags)]
            for host, tensor in zip(hosts, (pixels, flags), strict=True):
                host.copy_(tensor, non_blocking=True)
                tensor.record_stream(copies)
            self._pixels, self._flags = hosts
            self._done = copies.record_event()

    def wait(self) -> tuple[list[np.ndarray], list[bool]]:
        """Wait for the copy; return uint8 images `[height, width, 3]` and the flags. Thread-safe."""
        if self._result is None:
            self._result = self.finish()
        return self._result

    def finish(self) -> tuple[list[np.ndarray], list[bool]]:
        """Compute the result that `wait` keeps."""
        if self._done is not None:
            self._done.synchronize()
        images = zip(self._pixels.numpy(), self._shapes, strict=True)
        return [resize(image, shape) for image, shape in images], self._flags.tolist()


def download(images: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Convert `[n, 3, h, w]` in about `[-1, 1]` to uint8 images of these (height, width)."""
    return Download(images, images.new_empty(0), shapes).wait()[0]


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the CUDA stream for copies of results to the host."""
    import torch

    return torch.cuda.Stream(device)
