"""Check, resize, upload and download images."""

from __future__ import annotations

import cv2
import numpy as np
import torch


def check_frame(frame: np.ndarray) -> None:
    """Raises `ValueError`, with advice, for what is not a uint8 array `[height, width, 3]` with pixels."""
    wanted = "A frame must be a uint8 array [height, width, 3]"
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"{wanted}; this is {type(frame).__name__}.")
    if 0 in frame.shape:
        raise ValueError(f"A frame must have pixels; this one is {list(frame.shape)}.")
    if frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8:
        return
    advice = ""
    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        advice = " Repeat its grey: np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)."
    elif frame.ndim == 3 and frame.shape[2] == 4:
        advice = " Leave out its alpha: frame[..., :3]."
    elif frame.dtype == np.uint16:
        advice = " Take its upper 8 bits: (frame >> 8).astype(np.uint8)."
    elif np.issubdtype(frame.dtype, np.floating):
        advice = " Scale it from 0..1: (frame * 255).round().astype(np.uint8)."
    raise ValueError(f"{wanted}; this is {frame.dtype} {list(frame.shape)}.{advice}")


def upload(frames: list[np.ndarray], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """uint8 `[height, width, 3]` frames as pictures `[n, 3, h, w]` of `size` in `[-1, 1]`, on the device."""
    pixels = sent(torch.from_numpy(np.stack([resize(frame, size) for frame in frames])), device)
    pictures = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return pictures.contiguous(memory_format=torch.channels_last)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; to a GPU from pinned memory, so that the copy need not be waited for."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def download(pictures: torch.Tensor, shapes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Pictures `[n, 3, h, w]` as uint8 `[height, width, 3]` frames of these (height, width)."""
    pixels = (pictures.float() * 127.5).add_(127.5).clamp_(0, 255).round_().to(torch.uint8)
    pixels = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [resize(picture, shape) for picture, shape in zip(pixels, shapes, strict=True)]


def resize(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 `[height, width, 3]` at another (height, width)."""
    if picture.shape[:2] == tuple(shape):
        return np.ascontiguousarray(picture)
    times = min(side // wanted for side, wanted in zip(picture.shape, shape, strict=False))
    if times > 1:  # averages of whole pixels are ten times quicker than those of fractions
        half_way = picture.shape[1] // times, picture.shape[0] // times
        picture = cv2.resize(picture, half_way, interpolation=cv2.INTER_AREA)
    shrinks = shape[0] * shape[1] < picture.shape[0] * picture.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(picture, (shape[1], shape[0]), interpolation=interpolation)
