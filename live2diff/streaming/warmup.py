"""Fill the cache from 8 frames: at the start of a stream, after a scene change, or on request."""

from dataclasses import replace

import torch

from ..config import WARMUP_FRAMES
from ..model.attention import Window
from ..model.depth import depth_pictures
from ..model.lcm import add_noise, denoise
from .state import Frame, StreamState


def collect_warmup(state: StreamState, frame: Frame) -> list[Frame]:
    """Collect a frame for the warmup; with the 8th, return all of them translated."""
    state.counts.frames_in += 1
    state.recent.append(frame)
    return warm_up_collected(state) if len(state.recent) == WARMUP_FRAMES else []


def warm_up_collected(state: StreamState) -> list[Frame]:
    """Translate the collected frames together; if there are fewer than 8, repeat the last one."""
    model, collected = state.model, list(state.recent)
    frames = collected + collected[-1:] * (WARMUP_FRAMES - len(collected))
    depth = torch.stack([frame.depth for frame in frames if frame.depth is not None])
    depth_latents = model.encode(depth_pictures(state.depth_range.normalise(depth), state.working_size))
    frames = [
        replace(frame, depth_latents=latents, prompt_embeds=state.prompt.embeds)
        for frame, latents in zip(frames, depth_latents, strict=True)
    ]
    height, width = frames[0].latents.shape[1:]
    state.lease = state.caches.take(state.schedule.steps, (height, width))
    state.recent.extend(frames)
    clean = warm_up(state, frames)
    translated = [replace(frame, latents=latents) for frame, latents in zip(frames, clean, strict=True)]
    return translated[: len(collected)]


def warm_up_if_due(state: StreamState, frame: Frame) -> Frame:
    """Prepare a frame to enter the stream batch; fill the cache again first, if that is due.

    After a cut the cache is filled with this frame 8 times, as there is no other of the new scene.
    """
    if state.scenes.cut:
        state.recent.extend([frame] * WARMUP_FRAMES)
    if state.scenes.cut or state.restart_due:
        embeds = frame.prompt_embeds
        frames = [replace(recent, prompt_embeds=embeds, noise=frame_noise(state)) for recent in state.recent]
        warm_up(state, frames)
        state.scenes.remember()
    state.restart_due = state.scenes.settled  # at the next frame, so that `recent` includes this one
    state.counts.frames_in += 1
    state.recent.append(frame)
    return frame


def warm_up(state: StreamState, frames: list[Frame]) -> torch.Tensor:
    """Denoise 8 frames together and fill the cache with them; return the clean latents."""
    schedule, cache = state.schedule, state.cache
    clean, depth_latents, noise, embeds = (
        torch.stack([getattr(frame, name) for frame in frames])
        for name in ("latents", "depth_latents", "noise", "prompt_embeds")
    )
    window = Window.warmup(clean.device)
    cache.count.zero_()
    for step in range(schedule.steps):
        sample = add_noise(schedule, step, clean, noise[:, step])
        timesteps = schedule.timesteps[step].expand(WARMUP_FRAMES)
        output = state.model.predict(sample, timesteps, embeds, depth_latents, window, cache.row(step))
        clean = denoise(schedule, step, sample, output)
    return clean


def frame_noise(state: StreamState) -> torch.Tensor:
    """Draw the noise of one frame for all its steps, `[steps, C, h, w]`, on the device of the model."""
    noise = state.draw_noise((state.schedule.steps, *state.model.latent_shape(state.working_size)))
    return noise.to(state.model.unet.dtype)
