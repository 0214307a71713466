"""`Stream`: restyle one viewer's frames, one for one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..model.lcm import Schedule
from .cache_pool import CacheLease, CachePool, CachePools, CacheSource
from .scene_change import SceneChangeDetector
from .settings import BLEND_FRAMES, StreamSettings
from .similar_frames import SimilarFrameFilter
from .state import FrameModel, StreamState
from .steps import PendingFrame, collect, denoise_step, finish, push_together, unwrap
from .warmup import frame_noise, warm_up_collected


class Stream:
    """One viewer's stream: frames in, as many frames out, in order. `Live2DiffPipeline.stream` opens it.

    The first 8 frames are collected and translated together (the warmup). From then on each pushed frame
    enters row 0 of the stream batch, the frames in flight move on by one denoising step in the same UNet
    call, and the one that has completed its last step is returned: with n denoising steps, n - 1 pushes
    after its own. Not thread-safe.
    """

    def __init__(
        self,
        model: FrameModel,
        settings: StreamSettings,
        cache_dtype: torch.dtype | None = None,
        pools: CachePools | None = None,
    ) -> None:
        pools = CachePools() if pools is None else pools
        schedule = model.schedule(settings)
        self.state = StreamState(
            pipeline=model,
            settings=settings,
            schedule=schedule,
            caches=CacheSource(pools, model.unet, cache_dtype),
            draw_noise=noise_source(settings.seed, model.config["fixed_noise"], model.unet.device),
            scenes=SceneChangeDetector(settings.scene_cut),
            similar=SimilarFrameFilter(settings.similar_frame_skip, settings.seed),
            rows=[None] * schedule.steps,
        )
        self._apply(settings)

    def push(self, frame: np.ndarray) -> list[np.ndarray]:
        """Process one frame, uint8 `[height, width, 3]` RGB of any size, and return the finished frames.

        Each has the size of its input. There are none while 8 frames are collected, then these 8, then none
        n - 1 times, then one per push.

        Raises:
            ValueError: the frame is not such an array.
            RuntimeError: the stream is closed.
            NonFiniteError: the model gives NaN or infinity, also after another warmup; the stream is closed.
        """
        return unwrap(push_together([self.receive(frame)])[0])

    def receive(self, frame: np.ndarray) -> PendingFrame:
        """Accept a frame for `push_together`, to be called before the next frame; raise as `push`."""
        return collect(self.state, frame)

    @torch.no_grad()
    def flush(self) -> list[np.ndarray]:
        """Finish and return the frames in flight, at the end of a clip; more may be pushed afterwards.

        With fewer than 8 frames, the last one is repeated for the warmup.
        """
        self._finish_all()
        out, self.state.outputs.finished = self.state.outputs.finished, []
        return out

    def update(
        self,
        settings: StreamSettings | None = None,
        *,
        blend: int = BLEND_FRAMES,
        keep_cache: bool = False,
        **changes: Any,
    ) -> None:
        """Change prompt, style or denoising steps from the next frame on.

        If weights and steps stay the same, so does the cache; otherwise it is filled again from the last 8
        frames, without a gap. With another number of steps, the frames in flight are finished first and
        returned by the next `push`.

        Args:
            settings: the new settings, None for the present ones. Only the fields in `settings.LIVE_FIELDS`
                may differ from the present ones.
            blend: number of frames over which the old prompt turns into the new one; 0 or 1 for at once.
            keep_cache: keep the cache although weights or timesteps change; the old style fades out slowly.
            **changes: fields of `StreamSettings` that replace those of `settings`.

        Raises:
            ValueError: a setting that cannot change, an unknown style, a file that does not fit, or weights
                that other streams use; the stream goes on as before.
            OSError: the style's weights cannot be read or downloaded; the stream goes on as before.
            torch.OutOfMemoryError: there is no memory for so many steps; the stream goes on with the previous
                number, or is closed if there is no memory for that either.
        """
        settings = (settings or self.settings).updated(**changes)
        self.settings.check_update(settings)
        if self._apply(settings, blend if self.frames_in else 1) and not keep_cache:
            self.restart()

    def restart(self) -> None:
        """Fill the cache again at the next frame, from the last 8 frames and with the current prompt.

        Frames in flight continue with the new cache. Before the first warmup this has no effect.
        """
        self.state.restart_due = self.warm

    def close(self) -> None:
        """Free the cache and all frames; may be called twice."""
        self.state.close()

    @property
    def settings(self) -> StreamSettings:
        """The present settings."""
        return self.state.settings

    @property
    def schedule(self) -> Schedule:
        """The denoising steps."""
        return self.state.schedule

    @property
    def frames_in(self) -> int:
        """Number of frames pushed."""
        return self.state.counts.frames_in

    @property
    def frames_out(self) -> int:
        """Number of frames returned, or waiting for the next `push` to return them."""
        return self.state.counts.frames_out

    @property
    def warm(self) -> bool:
        """Whether the warmup is done."""
        return self.state.warm

    @property
    def pool(self) -> CachePool | None:
        """The pool of the cache, None before the warmup; streams of one pool can be pushed together."""
        return self.state.lease and self.state.lease.pool

    @property
    def nbytes(self) -> int:
        """Bytes of the stream's cache; 0 before the warmup."""
        return self.state.cache.nbytes if self.warm else 0

    @property
    def ignored_words(self) -> str:
        """The end of the prompt, if it is too long for the text encoder; else ""."""
        return self.state.model.ignored_words(self.settings)

    def _apply(self, settings: StreamSettings, blend: int = 1) -> bool:
        """Activate style, prompt and steps; return whether weights or steps changed."""
        state, model = self.state, self.state.model
        same_steps = model.timesteps(settings) == model.timesteps(state.settings)
        for prompt in settings.prompts:
            model.tokenize(*prompt)  # raises before any weights change
        changed = model.activate_style(settings.style, state, settings.lora_scale)
        former, state.settings = state.settings, settings
        state.prompt.target = model.encode_prompts(settings)
        # Embeddings of two different text encoders cannot be blended.
        state.prompt.frames_left = 1 if changed else max(1, blend)
        if same_steps:
            return changed
        try:
            self._change_schedule(model.schedule(settings))
        except RuntimeError:
            state.settings = former
            if state.pipeline is not None:  # the stream is still open
                self._apply(former)
            raise
        return True

    @torch.no_grad()
    def _change_schedule(self, schedule: Schedule) -> None:
        """Change the denoising steps; for another number of them, also the cache rows."""
        state, same_number = self.state, schedule.steps == self.schedule.steps
        if not same_number and state.lease is not None:
            self._finish_all()
            self._exchange_lease(state.lease, schedule.steps)
        state.schedule = schedule
        if not same_number:
            state.rows = [None] * schedule.steps
            for _ in range(len(state.recent)):
                frame = state.recent.popleft()
                state.recent.append(replace(frame, noise=frame_noise(state)))

    def _finish_all(self) -> None:
        """Finish the frames in flight, for the next `push` to return."""
        state = self.state
        if state.recent and not state.warm:
            state.outputs.finished = finish(state, warm_up_collected(state))
        while any(row is not None for row in state.rows):
            state.outputs.finished = finish(state, denoise_step([state], [None])[0])

    def _exchange_lease(self, lease: CacheLease, steps: int) -> None:
        """Free the cache rows and lease `steps` others, or as many as before if that fails.

        Raises:
            torch.OutOfMemoryError: there is no memory for `steps` rows; the stream is closed if there is none
                for the previous number either.
        """
        state = self.state
        height, width = state.recent[-1].latents.shape[1:]
        lease.free()
        state.lease, state.restart_due = None, True
        try:
            state.lease = state.caches.take(steps, (height, width))
            return
        except RuntimeError as error:
            failure = error.with_traceback(None)  # the traceback refers to tensors
        try:
            state.lease = state.caches.take(lease.pool.steps, (height, width))
        except RuntimeError:
            state.close()
        raise failure


def noise_source(
    seed: int, is_fixed: bool, device: torch.device
) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Return a function that draws noise of a given shape: new noise at each call, or always the same.

    A seed gives the same noise on one kind of device only.
    """
    generator = torch.Generator(device)
    generator.manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        source = generator.manual_seed(seed) if is_fixed else generator
        return torch.randn(shape, generator=source, device=device)

    return draw
