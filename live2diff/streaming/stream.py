"""Stream: all that one viewer's stream remembers. What it does with a frame is in `batch.py`, where streams
work alone or together."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..config import WARMUP_FRAMES, WINDOW
from ..model.attention import Window
from ..model.depth import DepthRange, depth_pictures
from ..model.kv_cache import KVCache
from ..model.lcm import Schedule, add_noise, denoise
from .cache_pool import CacheLease, CachePool, CachePools
from .images import check_frame, to_device
from .recovery import broken, mended
from .scene_change import SceneChangeDetector
from .settings import BLEND_FRAMES, StreamSettings
from .steps import Frame, PendingFrame, StepResult, advance, give_out, push_together

if TYPE_CHECKING:
    from ..pipeline import Live2DiffPipeline


class Stream:
    """One viewer's stream: frames in, as many frames out, in order; open it with `Live2DiffPipeline.stream`.

    The first 8 frames are gathered and translated together (the warmup). From then on each pushed frame
    enters row 0 of the stream batch, the frames in flight move on by one denoising step in the same UNet
    call, and the one that has done its last step comes out: n - 1 pushes after it went in, with n denoising
    steps.

    Not for use by several threads at once.

    Attributes:
        frames_in, frames_out: how many frames were pushed and given back.
        schedule: the denoising steps.
    """

    def __init__(
        self,
        pipeline: Live2DiffPipeline,
        settings: StreamSettings,
        schedule: Schedule,
        cache_dtype: torch.dtype | None = None,
        pools: CachePools | None = None,
    ):
        self.settings = settings
        self._scenes = SceneChangeDetector(settings.scene_cut)
        self.schedule = schedule.to(pipeline.unet.device)
        self.frames_in = self.frames_out = 0
        self._pipeline: Live2DiffPipeline | None = pipeline
        self._working_size: tuple[int, int] | None = None
        pipeline.tokenize(settings.style, settings.prompt)  # complain before any weights change
        pipeline.activate_style(settings.style, self, settings.lora_scale)
        self._embeds = self._target_embeds = pipeline.encode_prompt(settings.style, settings.prompt)
        self._blend_left = 0
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._depth_range = DepthRange()
        self._gathered: list[Frame] = []  # before the warmup
        self._recent: deque[Frame] = deque(maxlen=WARMUP_FRAMES)  # what a restart warms up from
        self._rows: list[Frame | None] = [None] * schedule.steps  # the stream batch; row r waits for step r
        self._cache_dtype = cache_dtype
        self._pools = pools or CachePools()
        self._slot: CacheLease | None = None
        self._restart = False
        self._mended_at = -WINDOW  # frames given out when the memory was last begun anew

    @property
    def warm(self) -> bool:
        """Whether the warmup is done and frames come out one for one."""
        return self._slot is not None

    @property
    def pool(self) -> CachePool | None:
        """Where its memory lies, once it is warm; streams in the same slots can be pushed together."""
        return self._slot and self._slot.slots

    @property
    def _cache(self) -> KVCache | None:
        return self._slot and self._slot.cache

    @property
    def nbytes(self) -> int:
        """Bytes of the stream's cache; 0 before the warmup."""
        return self._cache.nbytes if self._cache else 0

    @torch.no_grad()
    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Take in one frame, and give back those that are finished.

        Args:
            frame: uint8 `[height, width, 3]` RGB, any size.

        Returns:
            uint8 `[height, width, 3]` RGB, each at the size at which it came in: none while 8 frames are
            gathered, then those 8, then none n - 1 times, then one a push.

        Raises:
            ValueError: not such an array.
            RuntimeError: the stream is closed.
            NonFiniteError: the model gives NaN or infinity, also after another warmup; the stream is closed.
        """
        return given_or_raised(push_together([self.receive(frame)]))

    def receive(self, frame: np.ndarray) -> PendingFrame:
        """The first half of `push`; `push_together` is the second, and has to follow before the next frame.

        Raises:
            ValueError, RuntimeError: as `push`.
        """
        pipeline = self._open
        check_frame(frame)
        if self._working_size is None:
            self._working_size = pipeline.working_size(*frame.shape[:2], self.settings.size)
        self._scenes.see(frame)
        if self._scenes.cut and self.warm:
            self._depth_range = DepthRange()
        return PendingFrame(self, frame, self._noise(), self._next_embeds())

    @torch.no_grad()
    def flush(self) -> list[np.ndarray]:
        """Finish the frames in flight and give them back, at the end of a clip; more frames may be pushed
        afterwards.

        With fewer than 8 frames so far, the last one stands in for the missing warmup frames.
        """
        out = []
        if self._gathered:
            out += given_or_raised(give_out([self], [self._warm_up_gathered()]))
        while any(self._rows):
            finished = advance([self], [None])
            out += given_or_raised(give_out([self], finished))
        return out

    def update(
        self,
        settings: StreamSettings | None = None,
        *,
        blend: int = BLEND_FRAMES,
        keep_memory: bool = False,
        **changes: Any,
    ) -> None:
        """Change prompt or style from the next frame on; the denoising steps stay.

        The memory is kept where the weights stay the same. Where a style brings others, keys and values were
        made by weights that are gone, so the stream warms up again from its last 8 frames, without a gap.

        Args:
            settings: the settings from now on, None for the present ones. Only style, prompt and lora_scale
                can differ from the present ones.
            blend: over how many frames the old prompt turns into the new one; 0 or 1 for at once.
            keep_memory: keep it although the weights change: what was drawn so far fades out slowly.
            **changes: fields of `StreamSettings` that replace those of `settings`.

        Raises:
            ValueError: as `Live2DiffPipeline.wear` and `.tokenize`; the stream goes on as before.
            OSError: the style's weights cannot be had; the stream goes on as before.
        """
        pipeline = self._open
        settings = (settings or self.settings).updated(**changes)
        self.settings.check_update(settings)
        pipeline.tokenize(settings.style, settings.prompt)
        changed = pipeline.activate_style(settings.style, self, settings.lora_scale)
        self.settings = settings
        self._target_embeds = pipeline.encode_prompt(settings.style, settings.prompt)
        # Embeddings of two text encoders have nothing between them.
        self._blend_left = max(1, blend) if self.frames_in and not changed else 1
        if changed and not keep_memory:
            self.restart()

    def restart(self) -> None:
        """Warm up again at the next frame, from the last 8 frames and with the current prompt, without a gap.

        Frames in flight go on in the new memory. Before the first warmup there is nothing to restart.
        """
        self._restart = self.warm

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._pipeline is not None:
            self._pipeline.release_style(self)
        if self._slot is not None:
            self._slot.free()
        self._pipeline = self._slot = None
        self._gathered, self._rows = [], []
        self._recent.clear()

    @property
    def ignored_words(self) -> str:
        """The end of the prompt that is too long for the text encoder, "" if it all fits."""
        return self._open.ignored_words(self.settings.style, self.settings.prompt)

    @property
    def _open(self) -> Live2DiffPipeline:
        if self._pipeline is None:
            raise RuntimeError("This stream is closed; open a new one.")
        return self._pipeline

    def _next_embeds(self) -> torch.Tensor:
        """The prompt embeddings of the next frame: one step closer to the prompt last set."""
        if self._blend_left:
            self._embeds = torch.lerp(self._embeds, self._target_embeds, 1 / self._blend_left)
            self._blend_left -= 1
        return self._embeds

    def _noise(self) -> torch.Tensor:
        """Fresh noise for all steps of one frame, `[steps, C, h, w]`; drawn on the CPU, so that a seed means
        the same on every device."""
        shape = self._open.latent_shape(self._working_size)
        noise = torch.randn(self.schedule.steps, *shape, generator=self._generator)
        return to_device(noise, self._open.unet.device).to(self._open.unet.dtype)

    @property
    def depth_is_due(self) -> bool:
        """Whether the depth of the next frame is looked at, or that of the frame before does for it."""
        return not self.warm or self._scenes.cut or self.frames_in % self.settings.depth_every == 0

    def _depth_pictures(self, depth: torch.Tensor) -> torch.Tensor:
        return depth_pictures(self._depth_range.normalise(depth), self._working_size)

    def _gather(self, frame: Frame) -> list[Frame]:
        """A frame before the warmup; the 8th gives all of them, translated."""
        self.frames_in += 1
        self._gathered.append(frame)
        return self._warm_up_gathered() if len(self._gathered) == WARMUP_FRAMES else []

    def _enter(self, frame: Frame) -> Frame:
        """A frame after the warmup, and after another warmup if one was asked for or the scene is new."""
        if self._scenes.cut:  # the one picture that there is of it, 8 times
            self._recent.extend([frame] * WARMUP_FRAMES)
            self._restart = True
        if self._restart:
            recent = [
                replace(f, prompt_embeds=frame.prompt_embeds, noise=self._noise()) for f in self._recent
            ]
            self._warm_up(recent)
            self._scenes.remember()
        self._restart = self._scenes.settled  # at the next frame: then this one is among the recent ones
        self.frames_in += 1
        self._recent.append(frame)
        return frame

    def _begin_anew(self, finished: list[Frame]) -> list[Frame]:
        """A new memory from the last good frames, after NaN or infinity; the frames to give out and those in
        flight go on with what that warmup makes of them.

        Raises:
            NonFiniteError: it has just been tried, or there is no good frame.
        """
        if self.frames_out - self._mended_at < WINDOW:
            raise broken(self._recent[-1], finished[-1].latents)
        recent = mended(list(self._recent))
        self._mended_at = self.frames_out
        self._slot.cache.zero_()  # what a mask hides still counts: nothing times NaN is NaN
        recent = self._with_new_depth(recent)
        self._recent.extend(recent)
        clean = self._warm_up(recent)
        done = {f.number: replace(f, latents=latents) for f, latents in zip(recent, clean, strict=True)}

        def again(frame: Frame) -> Frame:
            return replace(
                done.get(frame.number, done[recent[-1].number]), number=frame.number, shape=frame.shape
            )

        self._rows = [row and again(row) for row in self._rows]
        return [again(frame) for frame in finished]

    def _with_new_depth(self, frames: list[Frame]) -> list[Frame]:
        """The frames with their depth in a range of their own; the one so far may know of NaN."""
        self._depth_range = DepthRange()
        seen = [frame.depth for frame in frames if frame.depth is not None]
        latents = iter(self._open.encode(self._depth_pictures(torch.stack(seen))) if seen else ())
        last, renewed = None, []
        for frame in frames:
            last = last if frame.depth is None else next(latents)
            renewed.append(frame if last is None else replace(frame, depth_latents=last))
        return renewed

    def _warm_up_gathered(self) -> list[Frame]:
        """Translate the gathered frames together, filled up with the last one if there are not 8."""
        pipeline, real = self._open, len(self._gathered)
        frames = self._gathered + [self._gathered[-1]] * (WARMUP_FRAMES - real)
        depth_latents = pipeline.encode(self._depth_pictures(torch.stack([frame.depth for frame in frames])))
        frames = [
            replace(frame, depth_latents=latents, prompt_embeds=self._embeds)
            for frame, latents in zip(frames, depth_latents, strict=True)
        ]
        self._gathered = []
        self._recent.extend(frames)
        size = tuple(frames[0].latents.shape[1:])
        self._slot = self._pools.take(pipeline.unet, self.schedule.steps, size, self._cache_dtype)
        clean = self._warm_up(frames)
        done = [replace(frame, latents=latents) for frame, latents in zip(frames, clean, strict=True)]
        return done[:real]

    def _warm_up(self, frames: list[Frame]) -> torch.Tensor:
        """Denoise 8 frames together, step by step, filling the cache's first 8 slots; their clean latents."""
        pipeline, schedule = self._open, self.schedule
        clean, depth_latents, noise, embeds = (
            torch.stack([getattr(frame, name) for frame in frames])
            for name in ("latents", "depth_latents", "noise", "prompt_embeds")
        )
        window, cache = Window.warmup(clean.device), self._slot.cache
        cache.count.zero_()
        for step in range(schedule.steps):
            sample = add_noise(schedule, step, clean, noise[:, step])
            timesteps = schedule.timesteps[step].expand(WARMUP_FRAMES)
            output = pipeline.predict(sample, timesteps, embeds, depth_latents, window, cache.row(step))
            clean = denoise(schedule, step, sample, output)
        return clean


def given_or_raised(given: list[StepResult]) -> list[np.ndarray]:
    """The pictures for the only stream."""
    (only,) = given
    if isinstance(only, RuntimeError):
        raise only
    return only
