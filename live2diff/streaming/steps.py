"""The path of a frame: the newest frames of one or more streams, as rows of one UNet call.

`collect` → `encode_inputs` → `warm_up_if_due` → `denoise_step` → `decode_outputs` → `return_outputs`.
`launch` runs all between the first and the last. On a GPU it does not wait for the results, and may be called
with the next frames before `complete` returns the images of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ..errors import NonFiniteError, is_out_of_memory
from ..model.attention import Window
from ..model.depth import DepthRange, depth_pictures
from ..model.lcm import add_noise, concatenate, denoise
from .images import Download, check_frame, to_device, upload
from .recovery import all_finite, recover
from .state import Frame, StreamState
from .warmup import collect_warmup, frame_noise, warm_up_if_due

StepResult = list[np.ndarray] | RuntimeError  # the images of one stream, or why there are none


@dataclass(frozen=True, eq=False)
class PendingFrame:
    """A frame that a stream has accepted, for `push_together`."""

    state: StreamState
    image: np.ndarray  # uint8 [height, width, 3]
    noise: torch.Tensor | None  # [steps, C, h, w]; None if the frame is skipped
    prompt_embeds: torch.Tensor  # [tokens, dim]


@dataclass(eq=False)
class DecodedFrames:
    """The finished frames of one stream, and the download with their images and flag."""

    frames: list[Frame]
    download: Download | None  # None if there are no frames, or if a recovery has replaced them
    first: int = 0  # index of the first image in the download
    stream: int = 0  # index of the flag in the download

    def wait(self) -> tuple[list[np.ndarray], bool]:
        """Return the images, and whether they and the frames in flight are finite."""
        download = self.download  # another thread may set it to None
        if download is None:
            return [], not self.frames
        images, flags = download.wait()
        return images[self.first : self.first + len(self.frames)], flags[self.stream]


@dataclass
class Batch:
    """Streams with the result of the last step for each, and those that failed with their errors."""

    values: dict[StreamState, Any]
    errors: dict[StreamState, RuntimeError] = field(default_factory=dict)

    def together(self, step: Callable[[Sequence[StreamState], list], Sequence]) -> None:
        """Run a step on all streams at once; if memory runs out, on one after the other.

        The step may run twice, so it must not change state before everything that can fail is done.
        """
        states = list(self.values)
        try:
            if states:
                self.values = dict(zip(states, step(states, list(self.values.values())), strict=True))
            return
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(states) == 1:
                self.errors[states[0]] = error.with_traceback(None)  # the traceback refers to tensors
                self.values = {}
                return
        torch.cuda.empty_cache()
        self.each(lambda state, value: step([state], [value])[0])

    def each(self, step: Callable[[StreamState, Any], Any]) -> None:
        """Run a step once on each stream; a stream that fails leaves the batch."""
        done: dict[StreamState, Any] = {}
        for state, value in self.values.items():
            try:
                done[state] = step(state, value)
            except RuntimeError as error:
                if not (isinstance(error, NonFiniteError) or is_out_of_memory(error)):
                    raise
                self.errors[state] = error.with_traceback(None)
        self.values = done


@dataclass(frozen=True, eq=False)
class LaunchedBatch:
    """The newest frames of some streams, which the device is computing."""

    states: list[StreamState]
    batch: Batch  # its values are `DecodedFrames`
    skipped: list[StreamState]

    def wait(self) -> None:
        """Wait for the images, so that `complete` need not; any thread may call it."""
        for decoded in self.batch.values.values():
            decoded.wait()


@torch.no_grad()
def launch(pending: Sequence[PendingFrame]) -> LaunchedBatch:
    """Start to process the newest frame of each of these streams in one batch.

    They are a single stream, or warm ones of the same `pool`. If memory runs out for all of them at once,
    they are processed one after the other, and only those fail that run out on their own.
    """
    skipped = [p.state for p in pending if p.noise is None]
    for state in skipped:
        state.counts.frames_in += 1
    batch = Batch({p.state: p for p in pending if p.noise is not None})
    batch.together(encode_inputs)
    if pending[0].state.warm:
        batch.each(warm_up_if_due)
        batch.together(denoise_step)
    else:
        batch.each(collect_warmup)
    batch.together(decode_outputs)
    for state, decoded in batch.values.items():
        state.outputs.launched.append(decoded)
    return LaunchedBatch([p.state for p in pending], batch, skipped)


@torch.no_grad()
def complete(launched: LaunchedBatch) -> list[StepResult]:
    """Return for each stream what `Stream.push` returns, or the error that it raises.

    Batches of one stream must be completed in the order of their launch. A stream that was closed since has
    no images.
    """
    launched.batch.each(return_outputs)
    results = launched.batch.values | launched.batch.errors
    results |= {state: repeat_output(state) for state in launched.skipped}
    return [results[state] for state in launched.states]


def push_together(pending: Sequence[PendingFrame]) -> list[StepResult]:
    """Process the newest frame of each of these streams as `launch`, and return the images."""
    return complete(launch(pending))


def unwrap(result: StepResult) -> list[np.ndarray]:
    """Return the images of a result, or raise its error."""
    if isinstance(result, RuntimeError):
        raise result
    return result


def collect(state: StreamState, image: np.ndarray) -> PendingFrame:
    """Accept the next frame, as `Stream.receive`: check it, detect a scene change, draw its noise."""
    model = state.model
    check_frame(image)
    # A repeated output replaces that of a frame in flight, so all must have one size.
    shapes = [row.shape for row in state.rows if row is not None]
    last = state.similar.last_output
    repeatable = last is not None and all(shape == image.shape[:2] for shape in (last.shape[:2], *shapes))
    changing = state.restart_due or state.prompt.frames_left > 0
    if state.similar.skips(image, allowed=state.warm and repeatable and not changing):
        return PendingFrame(state, image, None, state.prompt.embeds)
    if not state.recent:
        height, width = image.shape[:2]
        state.working_size = state.caches.pools.nearest(
            model.working_size(height, width, state.settings.size)
        )
    state.scenes.see(image)
    if state.scenes.cut and state.warm:
        state.depth_range = DepthRange()
    return PendingFrame(state, image, frame_noise(state), state.prompt.next_embeds())


def repeat_output(state: StreamState) -> list[np.ndarray]:
    """Return the last image again, for a frame that is skipped."""
    assert state.similar.last_output is not None, "only a frame after the first output is skipped"
    state.counts.frames_out += 1
    return [state.similar.last_output.copy()]


def depth_is_due(state: StreamState) -> bool:
    """Return whether to estimate the depth of the next frame; otherwise the last estimate is reused."""
    if not state.warm or state.scenes.cut:
        return True
    every = state.settings.depth_every
    return state.counts.frames_in // every != state.recent[-1].number // every


def encode_inputs(states: Sequence[StreamState], pending: Sequence[PendingFrame]) -> list[Frame]:
    """Encode images and their depth to latents, in one batch for the depth estimator and one for the VAE."""
    model, size, warm = states[0].model, states[0].working_size, states[0].warm
    images = upload([p.image for p in pending], size, model.unet.device)
    due = [index for index, state in enumerate(states) if depth_is_due(state)]
    depth: dict[int, torch.Tensor] = {}
    if due:
        estimated = model.inverse_depth(images if len(due) == len(states) else images[due])
        depth = dict(zip(due, estimated, strict=True))
    # Before the warmup the depth range is not known yet.
    ranges = {index: replace(states[index].depth_range) for index in due if warm}
    normalised = [depth_pictures(ranges[index].normalise(depth[index][None]), size) for index in ranges]
    latents = model.encode(torch.cat([images, *normalised]) if normalised else images).to(model.unet.dtype)
    latents, encoded_depth = latents[: len(states)], dict(zip(ranges, latents[len(states) :], strict=True))
    frames = []
    for index, (state, p) in enumerate(zip(states, pending, strict=True)):
        assert p.noise is not None
        state.depth_range = ranges.get(index, state.depth_range)
        last = state.recent[-1].depth_latents if warm else None
        frames.append(
            Frame(
                latents=latents[index],
                depth=depth.get(index),
                depth_latents=encoded_depth.get(index, last),
                noise=p.noise,
                prompt_embeds=p.prompt_embeds,
                shape=p.image.shape[:2],
                number=state.counts.frames_in,
            )
        )
    return frames


def denoise_step(states: Sequence[StreamState], entering: Sequence[Frame | None]) -> list[list[Frame]]:
    """Move every frame in flight on by one denoising step; return the finished frames of each stream.

    1, 2, 4, 8, ... streams are one UNet call. Rows without a frame are computed on zeros; their count does
    not advance, so nothing that they write to the cache is ever read.
    """
    leases = [state.lease for state in states if state.lease is not None]
    pool, model = leases[0].pool, states[0].model
    for state, frame in zip(states, entering, strict=True):
        state.rows[0] = frame
    rows = [row for state in states for row in state.rows]
    real = next(row for row in rows if row is not None)
    parts = ("latents", "depth_latents", "noise", "prompt_embeds")
    empty = replace(real, **{name: torch.zeros_like(getattr(real, name)) for name in parts})
    filled = [(index % pool.steps, row or empty) for index, row in enumerate(rows)]

    schedule = concatenate([state.schedule for state in states])
    latents, depth_latents, embeds = (
        torch.stack([getattr(row, name) for _, row in filled])
        for name in ("latents", "depth_latents", "prompt_embeds")
    )
    noise = torch.stack([row.noise[step] for step, row in filled])
    sample = add_noise(schedule, slice(None), latents, noise)
    inputs = (sample, schedule.timesteps, embeds, depth_latents)
    outputs, first = [], 0
    for streams in powers_of_two(len(states)):
        cache = pool.batch(leases[first : first + streams])
        part = slice(first * pool.steps, (first + streams) * pool.steps)
        window = Window.stream(cache.counts)
        outputs.append(model.predict(*[tensor[part] for tensor in inputs], window, cache))  # pyright: ignore
        first += streams
    clean = denoise(schedule, slice(None), sample, torch.cat(outputs) if len(outputs) > 1 else outputs[0])
    is_real = torch.tensor([row is not None for row in rows])
    pool.batch(leases).advance(to_device(is_real, model.unet.device))

    finished = []
    for state, own in zip(states, clean.unflatten(0, (-1, pool.steps)), strict=True):
        moved = [row and replace(row, latents=latents) for row, latents in zip(state.rows, own, strict=True)]
        state.rows = [None, *moved[:-1]]
        finished.append([row for row in moved[-1:] if row is not None])
    return finished


def powers_of_two(count: int) -> list[int]:
    """Split a number of streams, like 5 into 4 and 1, so that graphs are needed for few shapes only."""
    return [1 << bit for bit in reversed(range(count.bit_length())) if count & (1 << bit)]


def decode_outputs(states: Sequence[StreamState], finished: Sequence[list[Frame]]) -> list[DecodedFrames]:
    """Decode the finished frames of all streams in one batch; check these and those in flight for NaN."""
    frames = [frame for own in finished for frame in own]
    if not frames:
        return [DecodedFrames([], None) for _ in states]
    decoded = states[0].model.decode(torch.stack([frame.latents for frame in frames]))
    in_flight = [[row.latents for row in state.rows if row is not None] for state in states]
    images = decoded.split([len(own) for own in finished])
    finite = torch.stack([all_finite([i, *latents]) for i, latents in zip(images, in_flight, strict=True)])
    download = Download(decoded, finite, [frame.shape for frame in frames])
    starts = accumulate((len(own) for own in finished), initial=0)
    return [
        DecodedFrames(own, download if own else None, first, number)
        for number, (own, first) in enumerate(zip(finished, starts, strict=False))
    ]


def return_outputs(state: StreamState, decoded: DecodedFrames) -> list[np.ndarray]:
    """Count and return the images of one stream; recover from NaN or infinity first.

    Raises:
        NonFiniteError: recovery failed; the stream is closed.
    """
    if decoded in state.outputs.launched:
        state.outputs.launched.remove(decoded)
    images, is_finite = decoded.wait() if state.pipeline else ([], True)
    try:
        while not is_finite:
            again = decoded.frames if decoded.download is None else recover(state, decoded.frames)
            (decoded,) = decode_outputs([state], [again])
            images, is_finite = decoded.wait()
    except NonFiniteError:
        state.close()
        raise
    state.counts.frames_out += len(images)
    state.similar.keep(images)
    earlier, state.outputs.finished = state.outputs.finished, []
    return earlier + images


def finish(state: StreamState, frames: list[Frame]) -> list[np.ndarray]:
    """Decode and return the finished frames of one stream."""
    return return_outputs(state, decode_outputs([state], [frames])[0])
