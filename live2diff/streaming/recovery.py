"""NaN and infinity, out of damaged weights or too narrow a float: found, named, mended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import NonFiniteError

if TYPE_CHECKING:
    from .steps import Frame


def broken_in(part: str, dtype: torch.dtype) -> NonFiniteError:
    """The error, with words for people."""
    width = " (or too large for float16: load them as float32)" if dtype == torch.float16 else ""
    return NonFiniteError(
        f"The model gave NaN or infinity in {part}, twice in a row. Its weights may be damaged{width}: "
        "copy or download them again, or take another model or style."
    )


def is_finite(frame: Frame) -> bool:
    """Whether the frame was encoded well; waits for the device."""
    return all(part is None or bool(part.isfinite().all()) for part in (frame.latents, frame.depth))


def broken(newest: Frame, latents: torch.Tensor) -> NonFiniteError:
    """What to say of a picture with these latents, when `newest` came in last: the first part that failed."""
    for part, numbers in (
        ("the prompt's embeddings (text encoder)", newest.prompt_embeds),
        ("the latents of the camera (VAE encoder)", newest.latents),
        ("the depth", newest.depth),
        ("the latents of the depth (VAE encoder)", newest.depth_latents),
        ("what the UNet made", latents),
    ):
        if numbers is not None and not numbers.isfinite().all():
            return broken_in(part, latents.dtype)
    return broken_in("the picture (VAE decoder)", latents.dtype)


def mended(frames: list[Frame]) -> list[Frame]:
    """The frames, each of those that could not be encoded as the nearest good one in its place.

    Raises:
        NonFiniteError: there is no good one.
    """
    good = [is_finite(frame) for frame in frames]
    if not any(good):
        raise broken(frames[-1], frames[-1].latents)
    stand_ins = []
    for index, frame in enumerate(frames):
        near = min((i for i, is_good in enumerate(good) if is_good), key=lambda i: (abs(i - index), i))
        stand_ins.append(replace(frames[near], number=frame.number, shape=frame.shape))
    return stand_ins


def are_finite(tensors: torch.Tensor) -> torch.Tensor:
    """Which of `[n, ...]` hold neither NaN nor infinity, bool `[n]`: a sum keeps both, and is quick."""
    return tensors.flatten(1).sum(dim=1, dtype=torch.float32).isfinite()
