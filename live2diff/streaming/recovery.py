"""Recover from NaN and infinity, which come from damaged weights or overflow in float16."""

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..config import WINDOW
from ..errors import NonFiniteError
from ..model.depth import DepthRange, depth_pictures
from .state import Frame, StreamState
from .warmup import warm_up


def all_finite(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return whether all numbers are finite, a bool on the device; sums preserve NaN and infinity."""
    return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).sum().isfinite()


def non_finite_error(newest: Frame, latents: torch.Tensor) -> NonFiniteError:
    """Return an error that names the first network whose output is not finite; `latents` are the UNet's."""
    parts = {
        "the prompt's embeddings (text encoder)": newest.prompt_embeds,
        "the latents of the camera (VAE encoder)": newest.latents,
        "the depth": newest.depth,
        "the latents of the depth (VAE encoder)": newest.depth_latents,
        "the UNet's output": latents,
    }
    broken = (name for name, t in parts.items() if t is not None and not t.isfinite().all())
    part = next(broken, "the output image (VAE decoder)")
    too_large = " (or too large for float16: load them as float32)" if latents.dtype == torch.float16 else ""
    return NonFiniteError(
        f"The model gave NaN or infinity in {part}, twice in a row. Its weights may be damaged{too_large}: "
        "copy or download them again, or choose another model or style."
    )


def replace_non_finite(frames: list[Frame]) -> list[Frame]:
    """Replace each frame with non-finite latents or depth by the nearest finite one.

    Raises:
        NonFiniteError: there is none.
    """
    parts = [[part for part in (frame.latents, frame.depth) if part is not None] for frame in frames]
    good = [index for index, tensors in enumerate(parts) if all(t.isfinite().all() for t in tensors)]
    if not good:
        raise non_finite_error(frames[-1], frames[-1].latents)
    nearest = [frames[min(good, key=lambda i: (abs(i - index), i))] for index in range(len(frames))]
    pairs = zip(nearest, frames, strict=True)
    return [replace(near, number=frame.number, shape=frame.shape) for near, frame in pairs]


def renew_depth(state: StreamState, frames: list[Frame]) -> list[Frame]:
    """Normalise and encode the depth of these frames again in a new range, as the old one may be NaN."""
    state.depth_range = DepthRange()
    estimated = [frame.depth for frame in frames if frame.depth is not None]
    latents = iter(())
    if estimated:
        normalised = state.depth_range.normalise(torch.stack(estimated))
        latents = iter(state.model.encode(depth_pictures(normalised, state.working_size)))
    last, renewed = None, []
    for frame in frames:
        last = last if frame.depth is None else next(latents)
        renewed.append(frame if last is None else replace(frame, depth_latents=last))
    return renewed


def recover(state: StreamState, finished: list[Frame]) -> list[Frame]:
    """Clear the cache and fill it from the latest finite frames; return `finished`, translated again.

    Frames in flight, and those launched since, continue with the results of that warmup.

    Raises:
        NonFiniteError: the last recovery was less than 16 frames ago, or there is no finite frame.
    """
    counts = state.counts
    if counts.frames_out - counts.recovered_at < WINDOW:
        raise non_finite_error(state.recent[-1], finished[-1].latents)
    frames = replace_non_finite(list(state.recent))
    counts.recovered_at = counts.frames_out
    state.cache.zero_()  # also masked entries, as zero times NaN is NaN
    frames = renew_depth(state, frames)
    state.recent.extend(frames)
    clean = warm_up(state, frames)
    done = {f.number: replace(f, latents=latents) for f, latents in zip(frames, clean, strict=True)}
    newest = done[frames[-1].number]

    def again(frame: Frame) -> Frame:
        return replace(done.get(frame.number, newest), number=frame.number, shape=frame.shape)

    state.rows = [row and again(row) for row in state.rows]
    for later in state.outputs.launched:
        later.frames, later.download = [again(frame) for frame in later.frames], None
    return [again(frame) for frame in finished]
