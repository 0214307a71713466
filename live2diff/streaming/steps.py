"""The stream batch: the newest frames of one stream or of several, as rows of one UNet call.

The functions here are the working half of `Stream`, which holds what there is to remember.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import NonFiniteError
from ..model.attention import Window
from ..model.lcm import add_noise, denoise, joined
from .images import download, to_device, upload
from .recovery import are_finite

if TYPE_CHECKING:
    from .stream import Stream


@dataclass(eq=False)
class Frame:
    """A frame on its way: what it needs from the moment it comes in until it is decoded.

    Attributes:
        latents: `[C, h, w]`, without noise: those of the camera's picture, then what each step makes of them.
        depth: inverse depth `[H, W]` at the estimator's size; None where it was not looked at.
        depth_latents: `[C, h, w]`, once the range is known.
        noise: `[steps, C, h, w]`, the frame's own noise for each of its steps.
        prompt_embeds: `[tokens, dim]`, the prompt it was begun with.
        shape: (height, width) at which it came in and will go out.
        number: how many frames the stream took in before it.
    """

    latents: torch.Tensor
    depth: torch.Tensor | None
    depth_latents: torch.Tensor | None
    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    shape: tuple[int, int]
    number: int


@dataclass(frozen=True, eq=False)
class PendingFrame:
    """A frame that a stream has accepted, for `push_together`: with it, its noise `[steps, C, h, w]` and its
    prompt `[tokens, dim]`."""

    stream: Stream
    pixels: np.ndarray
    noise: torch.Tensor
    prompt_embeds: torch.Tensor


StepResult = list[np.ndarray] | RuntimeError  # the pictures for one stream, or why there are none


@torch.no_grad()
def push_together(arrivals: Sequence[PendingFrame]) -> list[StepResult]:
    """The newest frame of each of these streams, in one batch; what `push` gives back or raises, for each.

    They are a single stream, or warm ones in the same `slots`. Where there is not the memory for all of them
    at once, they are worked on one after the other, and only those fail for which there is none even so.
    """
    streams = [arrival.stream for arrival in arrivals]
    so_far: dict[Stream, Any] = dict(zip(streams, arrivals, strict=True))
    failed: dict[Stream, RuntimeError] = {}
    is_warm = streams[0].warm
    for work in (look, enter, advance, give_out) if is_warm else (look, gather, give_out):
        so_far = one_by_one_if_need_be(work, so_far, failed)
    return [failed.get(stream) or so_far[stream] for stream in streams]


def one_by_one_if_need_be(
    work: Callable[[Sequence[Stream], list], list],
    so_far: dict[Stream, Any],
    failed: dict[Stream, RuntimeError],
) -> dict[Stream, Any]:
    """What `work` makes of what each stream has so far; a stream that fails goes to `failed`."""
    if not so_far:
        return {}
    try:
        return dict(zip(so_far, work(list(so_far), list(so_far.values())), strict=True))
    except torch.OutOfMemoryError as error:
        shortage = error.with_traceback(None)  # which holds what the memory is full of
    if len(so_far) == 1:
        (stream,) = so_far
        failed[stream] = shortage
        return {}
    torch.cuda.empty_cache()
    done: dict[Stream, Any] = {}
    for stream, value in so_far.items():
        done |= one_by_one_if_need_be(work, {stream: value}, failed)
    return done


def gather(streams: Sequence[Stream], frames: Sequence[Frame]) -> list[list[Frame]]:
    """Before the warmup; the 8th frame of a stream gives all of them, translated."""
    return [stream._gather(frame) for stream, frame in zip(streams, frames, strict=True)]


def enter(streams: Sequence[Stream], frames: Sequence[Frame]) -> list[Frame]:
    """After the warmup, and after another one where it was asked for."""
    return [stream._enter(frame) for stream, frame in zip(streams, frames, strict=True)]


def look(streams: Sequence[Stream], arrivals: Sequence[PendingFrame]) -> list[Frame]:
    """Pixels to latents and depth: one batch for the depth estimator and one for the VAE."""
    pipeline, size, warm = streams[0]._open, streams[0]._working_size, streams[0].warm
    pictures = upload([arrival.pixels for arrival in arrivals], size, pipeline.unet.device)
    due = [index for index, stream in enumerate(streams) if stream.depth_is_due]
    depth: dict[int, torch.Tensor] = {}
    if due:
        seen = pictures if len(due) == len(streams) else pictures[due]
        depth = dict(zip(due, pipeline.inverse_depth(seen), strict=True))
    # Camera and depth in one batch; before the warmup the depth's range is not known yet.
    ranged = [streams[index]._depth_pictures(depth[index][None]) for index in due if warm]
    latents = pipeline.encode(torch.cat([pictures, *ranged]) if ranged else pictures).to(pipeline.unet.dtype)
    latents, of_depth = latents[: len(streams)], iter(latents[len(streams) :])
    frames = []
    for index, (arrival, seen) in enumerate(zip(arrivals, latents, strict=True)):
        last = arrival.stream._recent[-1].depth_latents if warm else None
        depth_latents = next(of_depth) if warm and index in depth else last
        shape = arrival.pixels.shape[:2]
        embeds, number = arrival.prompt_embeds, arrival.stream.frames_in
        frames.append(Frame(seen, depth.get(index), depth_latents, arrival.noise, embeds, shape, number))
    return frames


def advance(streams: Sequence[Stream], entering: Sequence[Frame | None]) -> list[list[Frame]]:
    """One UNet call: every frame in flight takes its next step; those that took their last are given back.

    Rows are those of a block of slots. An empty row, and one of a slot in the block that belongs to another
    stream, computes along on zeros; its count stays, so it leaves nothing in the cache.
    """
    for stream, frame in zip(streams, entering, strict=True):
        stream._rows[0] = frame
    slots, pipeline = streams[0].pool, streams[0]._open
    block = slots.around([stream._slot for stream in streams])
    owner = {stream._slot.index: stream for stream in streams}
    idle: list[Frame | None] = [None] * slots.steps
    rows = [row for index in block for row in (owner[index]._rows if index in owner else idle)]
    nothing = None if all(rows) else blank(next(row for row in rows if row is not None))
    real = to_device(torch.tensor([row is not None for row in rows]), pipeline.unet.device)
    filled = [(index % slots.steps, row or nothing) for index, row in enumerate(rows)]

    schedule = joined([owner.get(index, streams[0]).schedule for index in block])
    latents, depth_latents, embeds = (
        torch.stack([getattr(row, name) for _, row in filled])
        for name in ("latents", "depth_latents", "prompt_embeds")
    )
    noise = torch.stack([row.noise[step] for step, row in filled])
    sample = add_noise(schedule, slice(None), latents, noise)
    cache = slots.block(block.start, block.stop)
    window = Window.stream(cache.count)
    output = pipeline.predict(sample, schedule.timesteps, embeds, depth_latents, window, cache)
    clean = denoise(schedule, slice(None), sample, output).unflatten(0, (-1, slots.steps))
    cache.count += real

    finished = []
    for stream in streams:
        of_stream = clean[stream._slot.index - block.start]
        moved = [
            row and replace(row, latents=latents)
            for row, latents in zip(stream._rows, of_stream, strict=True)
        ]
        stream._rows = [None, *moved[:-1]]
        finished.append([moved[-1]] if moved[-1] is not None else [])
    return finished


def blank(frame: Frame) -> Frame:
    """A frame of zeros, such as this one."""
    names = ("latents", "depth_latents", "noise", "prompt_embeds")
    return replace(frame, **{name: torch.zeros_like(getattr(frame, name)) for name in names})


def give_out(streams: Sequence[Stream], finished: Sequence[list[Frame]]) -> list[StepResult]:
    """The finished frames of each stream, decoded in one batch, at the size that each came in.

    A stream whose pictures or frames in flight hold NaN or infinity begins anew, and gives what that makes.
    Where that has been tried, or cannot be, it is closed, and there is a `NonFiniteError` for it.
    """
    frames = [frame for of_stream in finished for frame in of_stream]
    if not frames:
        return [[] for _ in streams]
    latents = torch.stack([frame.latents for frame in frames])
    pictures = streams[0]._open.decode(latents)
    in_flight = [[row.latents for row in stream._rows if row is not None] for stream in streams]
    finite = [are_finite(pictures)]
    if any(in_flight):
        finite.append(are_finite(torch.stack([row for rows in in_flight for row in rows])))
    pixels = iter(download(pictures, [frame.shape for frame in frames]))
    finite = torch.cat(finite).tolist()  # the device has been waited for already
    of_pictures, of_rows = iter(finite[: len(frames)]), iter(finite[len(frames) :])
    given = []
    for stream, of_stream, rows in zip(streams, finished, in_flight, strict=True):
        own = [next(pixels) for _ in of_stream]
        is_good = [next(of_pictures) for _ in of_stream] + [next(of_rows) for _ in rows]
        if not of_stream or all(is_good):
            stream.frames_out += len(own)
            given.append(own)
            continue
        try:
            given += give_out([stream], [stream._begin_anew(of_stream)])
        except NonFiniteError as error:
            given.append(error)
            stream.close()
    return given
